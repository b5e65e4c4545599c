// Vector: 16 floats in one AVX-512 register.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Vector {
  __m512 value;
};

// A product keeps kTileRows x kTileVectors Vectors of its result in the 32 registers.
constexpr int kTileRows = 12;
constexpr int kTileVectors = 2;

inline Vector zero() { return {_mm512_setzero_ps()}; }
inline Vector broadcast(float number) { return {_mm512_set1_ps(number)}; }
inline Vector load(const float* source) { return {_mm512_loadu_ps(source)}; }
inline void store(float* target, Vector a) { _mm512_storeu_ps(target, a.value); }

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

inline Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.value, b.value)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.value, b.value)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.value, b.value)}; }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }

// The larger of both; b where a is NaN.
inline Vector maximum_of(Vector a, Vector b) { return {_mm512_max_ps(a.value, b.value)}; }

inline Vector nearest_integer(Vector a) {
  return {_mm512_roundscale_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// a · 2^exponent for an integer exponent, or zero where `argument` is below `least`.
inline Vector scaled_by_power(Vector a, Vector exponent, Vector argument, Vector least) {
  const __mmask16 kept = _mm512_cmp_ps_mask(argument.value, least.value, _CMP_NLT_UQ);
  return {_mm512_maskz_scalef_ps(kept, a.value, exponent.value)};
}

}  // namespace
