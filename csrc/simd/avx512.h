// Vector: 16 floats in one AVX-512 register.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own intrinsics, wherever they are used
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

namespace {

struct Vector {
  __m512 value;
};

// The micro-kernel of a product keeps kMR x kNRVectors Vectors of the result in the 32 registers.
constexpr int kMR = 12;
constexpr int kNRVectors = 2;

// Attention multiplies kStreamTile streams with kDotEntries entries, or with kSumVectors Vectors, in registers.
constexpr int kStreamTile = 4;
constexpr int kDotEntries = 4;
constexpr int kSumVectors = 4;
// The same with rows as wide as can be.
constexpr int kWideStreams = 2;
constexpr int kWideVectors = 8;
// Where there are many queries, 16 of them are multiplied with kLaneEntries entries.
constexpr int kLaneEntries = 8;

inline Vector zero() { return {_mm512_setzero_ps()}; }
inline Vector broadcast(float number) { return {_mm512_set1_ps(number)}; }
inline Vector load(const float* source) { return {_mm512_loadu_ps(source)}; }
inline void store(float* target, Vector a) { _mm512_storeu_ps(target, a.value); }

// To memory without reading its line into the caches before; `target` is aligned to a cache line. Other threads see it
// after finish_stores_past_cache.
inline void store_past_cache(float* target, Vector a) { _mm512_stream_ps(target, a.value); }
inline void finish_stores_past_cache() { _mm_sfence(); }

inline Vector load_float16(const uint16_t* source) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)))};
}
inline void store_float16(uint16_t* target, Vector a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm512_cvtps_ph(a.value, _MM_FROUND_TO_NEAREST_INT));
}
inline Vector load_bfloat16(const uint16_t* source) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

// To nearest, ties to even.
inline void store_bfloat16(uint16_t* target, Vector a) {
  const __m512i bits = _mm512_castps_si512(a.value);
  const __m512i upper = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i rounded_up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 not_a_number = _mm512_cmp_ps_mask(a.value, a.value, _CMP_UNORD_Q);
  const __m512i rounded =
      _mm512_mask_or_epi32(_mm512_srli_epi32(rounded_up, 16), not_a_number, upper, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm512_cvtepi32_epi16(rounded));
}

inline Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.value, b.value)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.value, b.value)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.value, b.value)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.value, b.value)}; }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }

#ifdef __AVX512BF16__
// c plus the products of both numbers of each pair.
inline Vector multiply_add_pairs(Vector a, Vector b, Vector c) {
  return {_mm512_dpbf16_ps(c.value, reinterpret_cast<__m512bh>(a.value), reinterpret_cast<__m512bh>(b.value))};
}

// Numbers 0 to 15 and 16 to 31 as pairs (0, 1), (2, 3) …
inline Vector neighbours_as_pairs(Vector low, Vector high) {
  return {reinterpret_cast<__m512>(_mm512_cvtne2ps_pbh(high.value, low.value))};
}

// Pairs of the numbers in the same lane.
inline Vector lanes_as_pairs(Vector first, Vector second) {
  const auto wide = [](Vector a) {
    return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.value)));
  };
  return {_mm512_castsi512_ps(_mm512_or_si512(wide(first), _mm512_slli_epi32(wide(second), 16)))};
}
#endif

// The larger of both; b where a is NaN.
inline Vector maximum_of(Vector a, Vector b) { return {_mm512_max_ps(a.value, b.value)}; }

// x where a > b, else y.
inline Vector where_greater(Vector a, Vector b, Vector x, Vector y) {
  return {_mm512_mask_mov_ps(y.value, _mm512_cmp_ps_mask(a.value, b.value, _CMP_GT_OQ), x.value)};
}

inline Vector nearest_integer(Vector a) {
  return {_mm512_roundscale_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// a · 2^exponent for an integer exponent, or zero where `argument` is below `least`.
inline Vector scaled_by_power(Vector a, Vector exponent, Vector argument, Vector least) {
  const __mmask16 kept = _mm512_cmp_ps_mask(argument.value, least.value, _CMP_NLT_UQ);
  return {_mm512_maskz_scalef_ps(kept, a.value, exponent.value)};
}

// The first `count` < 16 numbers, then zeros.
inline Vector load_first(const float* source, int count) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), source)};
}

// Lane i: the sum of the lanes of vectors[i].
inline Vector sums_of_lanes(const Vector (&vectors)[16]) {
  __m512 quarters[4];  // per 128-bit lane, partial sums of four vectors
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = vectors[4 * i].value, b = vectors[4 * i + 1].value;
    const __m512 c = vectors[4 * i + 2].value, d = vectors[4 * i + 3].value;
    const __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
    const __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
    quarters[i] =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
  }
  const auto even_plus_odd = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return {even_plus_odd(even_plus_odd(quarters[0], quarters[1]), even_plus_odd(quarters[2], quarters[3]))};
}

inline float sum_of_lanes(Vector a) { return _mm512_reduce_add_ps(a.value); }
inline float largest_lane(Vector a) { return _mm512_reduce_max_ps(a.value); }

// 16 unsigned numbers of 32 bits.
struct Words {
  __m512i value;
};

inline Words broadcast_word(uint32_t word) { return {_mm512_set1_epi32(static_cast<int>(word))}; }
inline Words load_words(const uint32_t* source) { return {_mm512_loadu_si512(source)}; }
inline void store_words(uint32_t* target, Words a) { _mm512_storeu_si512(target, a.value); }
inline Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.value, b.value)}; }

// The upper and the lower half of each lane's product with `factor`.
inline void multiply_words(Words a, uint32_t factor, Words& high, Words& low) {
  constexpr __mmask16 odd_lanes = 0xaaaa;
  const __m512i by = _mm512_set1_epi32(static_cast<int>(factor));
  const __m512i even = _mm512_mul_epu32(a.value, by), odd = _mm512_mul_epu32(_mm512_srli_epi64(a.value, 32), by);
  high = {_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), odd_lanes, odd)};
  low = {_mm512_mask_mov_epi32(even, odd_lanes, _mm512_slli_epi64(odd, 32))};
}

// `values` where the words are above the limit, else zero.
inline Vector where_above(Words words, uint32_t limit, Vector values) {
  const __mmask16 above = _mm512_cmpgt_epu32_mask(words.value, _mm512_set1_epi32(static_cast<int>(limit)));
  return {_mm512_maskz_mov_ps(above, values.value)};
}

// Which lanes of a are not at most b's: larger or NaN.
inline uint32_t not_at_most(Vector a, Vector b) { return _mm512_cmp_ps_mask(a.value, b.value, _CMP_NLE_UQ); }

// The first `count` lanes become zero; count < 16.
inline Vector without_first(Vector a, int count) {
  return {_mm512_maskz_mov_ps(static_cast<__mmask16>(0xffffu << count), a.value)};
}

constexpr int kKeyLanes = 8;  // 64-bit integers in a register

// Rows that are multiplied with a vector together.
constexpr int kDotRows = 8;
// Rows and vectors that are multiplied together where there are several vectors.
constexpr int kGemvRows = 4;
constexpr int kGemvVectors = 4;

}  // namespace
