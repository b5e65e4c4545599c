// Vector: 16 floats in two AVX registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Vector {
  __m256 low;
  __m256 high;
};

// The micro-kernel of a product keeps kMR x kNRVectors Vectors of the result in the 16 registers.
constexpr int kMR = 6;
constexpr int kNRVectors = 1;

// Attention multiplies kStreamTile streams with kDotEntries entries, or with kSumVectors Vectors, in registers.
constexpr int kStreamTile = 2;
constexpr int kDotEntries = 2;
constexpr int kSumVectors = 2;
// The same with rows as wide as can be.
constexpr int kWideStreams = 2;
constexpr int kWideVectors = 2;
// Where there are many queries, 16 of them are multiplied with kLaneEntries entries.
constexpr int kLaneEntries = 6;

inline Vector zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vector broadcast(float number) { return {_mm256_set1_ps(number), _mm256_set1_ps(number)}; }
inline Vector load(const float* source) { return {_mm256_loadu_ps(source), _mm256_loadu_ps(source + 8)}; }
inline void store(float* target, Vector a) {
  _mm256_storeu_ps(target, a.low);
  _mm256_storeu_ps(target + 8, a.high);
}

// To memory without reading its line into the caches before; `target` is aligned to a cache line. Other threads see it
// after finish_stores_past_cache.
inline void store_past_cache(float* target, Vector a) {
  _mm256_stream_ps(target, a.low);
  _mm256_stream_ps(target + 8, a.high);
}
inline void finish_stores_past_cache() { _mm_sfence(); }

inline __m128i load_half(const uint16_t* source) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source)); }
inline Vector load_float16(const uint16_t* source) {
  return {_mm256_cvtph_ps(load_half(source)), _mm256_cvtph_ps(load_half(source + 8))};
}
inline void store_float16(uint16_t* target, Vector a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target + 8), _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256 upcast_bfloat16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vector load_bfloat16(const uint16_t* source) {
  return {upcast_bfloat16(load_half(source)), upcast_bfloat16(load_half(source + 8))};
}

inline Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

// The larger of both; b where a is NaN.
inline Vector maximum_of(Vector a, Vector b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }

// x where a > b, else y.
inline Vector where_greater(Vector a, Vector b, Vector x, Vector y) {
  return {_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ)),
          _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ))};
}

inline Vector nearest_integer(Vector a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, mode), _mm256_round_ps(a.high, mode)};
}

inline __m256 scaled_by_power(__m256 a, __m256 exponent, __m256 argument, __m256 least) {
  const __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(exponent), 23);
  const __m256 scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), shifted));
  return _mm256_andnot_ps(_mm256_cmp_ps(argument, least, _CMP_LT_OQ), scaled);
}

// a · 2^exponent for an integer exponent and a normal result, or zero where `argument` is below `least`.
inline Vector scaled_by_power(Vector a, Vector exponent, Vector argument, Vector least) {
  return {scaled_by_power(a.low, exponent.low, argument.low, least.low),
          scaled_by_power(a.high, exponent.high, argument.high, least.high)};
}

// The first `count` < 16 numbers, then zeros.
inline Vector load_first(const float* source, int count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i low = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
  const __m256i high = _mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), lanes);
  return {_mm256_maskload_ps(source, low), count > 8 ? _mm256_maskload_ps(source + 8, high) : _mm256_setzero_ps()};
}

// Lane i of half h: the sum of the lanes of vectors[8 h + i].
inline Vector sums_of_lanes(const Vector (&vectors)[16]) {
  __m256 quarters[4];  // per 128-bit lane, partial sums of four vectors
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    __m256 halves[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) halves[j] = _mm256_add_ps(vectors[4 * i + j].low, vectors[4 * i + j].high);
    const __m256d ab = _mm256_castps_pd(
        _mm256_add_ps(_mm256_unpacklo_ps(halves[0], halves[1]), _mm256_unpackhi_ps(halves[0], halves[1])));
    const __m256d cd = _mm256_castps_pd(
        _mm256_add_ps(_mm256_unpacklo_ps(halves[2], halves[3]), _mm256_unpackhi_ps(halves[2], halves[3])));
    quarters[i] =
        _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)), _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
  }
  const auto low_plus_high = [](__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  };
  return {low_plus_high(quarters[0], quarters[1]), low_plus_high(quarters[2], quarters[3])};
}

inline float sum_of_lanes(Vector a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float largest_lane(Vector a) {
  const __m256 eight = _mm256_max_ps(a.low, a.high);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

// 16 unsigned numbers of 32 bits.
struct Words {
  __m256i low;
  __m256i high;
};

inline Words broadcast_word(uint32_t word) {
  const __m256i all = _mm256_set1_epi32(static_cast<int>(word));
  return {all, all};
}
inline Words load_words(const uint32_t* source) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 8))};
}
inline void store_words(uint32_t* target, Words a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), a.low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + 8), a.high);
}
inline Words operator^(Words a, Words b) {
  return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
}

// The upper and the lower half of each lane's product with `factor`.
inline void multiply_words(__m256i a, uint32_t factor, __m256i& high, __m256i& low) {
  constexpr int odd_lanes = 0xaa;
  const __m256i by = _mm256_set1_epi32(static_cast<int>(factor));
  const __m256i even = _mm256_mul_epu32(a, by), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), by);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, odd_lanes);
  low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), odd_lanes);
}
inline void multiply_words(Words a, uint32_t factor, Words& high, Words& low) {
  multiply_words(a.low, factor, high.low, low.low);
  multiply_words(a.high, factor, high.high, low.high);
}

// `values` where the words are above the limit, else zero.
inline __m256 where_above(__m256i words, uint32_t limit, __m256 values) {
  const __m256i sign = _mm256_set1_epi32(static_cast<int>(0x80000000u));  // moves unsigned order to signed order
  const __m256i above = _mm256_cmpgt_epi32(_mm256_xor_si256(words, sign),
                                           _mm256_set1_epi32(static_cast<int>(limit ^ 0x80000000u)));
  return _mm256_and_ps(_mm256_castsi256_ps(above), values);
}
inline Vector where_above(Words words, uint32_t limit, Vector values) {
  return {where_above(words.low, limit, values.low), where_above(words.high, limit, values.high)};
}

// Which lanes of a are not at most b's: larger or NaN.
inline uint32_t not_at_most(Vector a, Vector b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_NLE_UQ))) |
         static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_NLE_UQ))) << 8;
}

// The first `count` lanes become zero; count < 16.
inline Vector without_first(Vector a, int count) {
  const __m256i dropped = _mm256_set1_epi32(count - 1);
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
  return {_mm256_and_ps(a.low, _mm256_castsi256_ps(_mm256_cmpgt_epi32(low, dropped))),
          _mm256_and_ps(a.high, _mm256_castsi256_ps(_mm256_cmpgt_epi32(high, dropped)))};
}

constexpr int kKeyLanes = 4;  // 64-bit integers in a register

// Rows that are multiplied with a vector together.
constexpr int kDotRows = 4;
// Rows and vectors that are multiplied together where there are several vectors.
constexpr int kGemvRows = 2;
constexpr int kGemvVectors = 2;

}  // namespace
