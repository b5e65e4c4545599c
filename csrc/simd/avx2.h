// Vector: 16 floats in two AVX registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Vector {
  __m256 low;
  __m256 high;
};

// A product keeps kTileRows x kTileVectors Vectors of its result in the 16 registers.
constexpr int kTileRows = 6;
constexpr int kTileVectors = 1;

inline Vector zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vector broadcast(float number) { return {_mm256_set1_ps(number), _mm256_set1_ps(number)}; }
inline Vector load(const float* source) { return {_mm256_loadu_ps(source), _mm256_loadu_ps(source + 8)}; }
inline void store(float* target, Vector a) {
  _mm256_storeu_ps(target, a.low);
  _mm256_storeu_ps(target + 8, a.high);
}

inline __m128i load_half(const uint16_t* source) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source)); }
inline Vector load_float16(const uint16_t* source) {
  return {_mm256_cvtph_ps(load_half(source)), _mm256_cvtph_ps(load_half(source + 8))};
}
inline void store_float16(uint16_t* target, Vector a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target + 8), _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256 raise_bfloat16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vector load_bfloat16(const uint16_t* source) {
  return {raise_bfloat16(load_half(source)), raise_bfloat16(load_half(source + 8))};
}

inline Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

// The larger of both; b where a is NaN.
inline Vector maximum_of(Vector a, Vector b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }

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

}  // namespace
