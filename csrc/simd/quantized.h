// Upper bounds of scores from items of 8-bit integers (../quantized.h). Sums are of integers, hence exact in any order.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "../quantized.h"
#include "common.h"

namespace plr_kernels {
namespace {

// How many bytes before their use groups are fetched.
constexpr int64_t kQuantizedAhead = 16 * 1024;

inline void fetch_ahead(const uint8_t* bytes) { __builtin_prefetch(bytes + kQuantizedAhead, 0, 2); }

#if defined(__AVX512F__)
inline Vector as_vector(__m512i numbers) { return {_mm512_cvtepi32_ps(numbers)}; }
#elif defined(__AVX2__)
inline Vector as_vector(__m256i low, __m256i high) { return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)}; }
#endif

// (scale of the state · product + norm · radius) · scale, of 16 items.
__attribute__((always_inline)) inline void store_bounds(Vector products, const QuantizedState& state, float radius,
                                                        const uint8_t* scales, float* upper) {
  const Vector sum = multiply_add(products, broadcast(state.scale), broadcast(state.norm * radius));
  store(upper, sum * load(reinterpret_cast<const float*>(scales)));
}

#if defined(__AVX2__)

// Products of a group with States states: by pairs of 16-bit integers.
template <int States>
inline void group_bounds(const QuantizedGroups& groups, int64_t index, const QuantizedState* states, float* upper,
                         int64_t upper_step) {
  const uint8_t* group = groups.group(index);
  const float radius = groups.radii[index];
  __m256i sums[States][4];  // of items 4 i to 4 i + 3, two numbers each
#pragma GCC unroll 4
  for (int s = 0; s < States; ++s) {
    sums[s][0] = sums[s][1] = sums[s][2] = sums[s][3] = _mm256_setzero_si256();
  }
  for (int64_t quad = 0; quad < quads(groups.dim); ++quad) {
    fetch_ahead(group);
    __m256i b[States];
#pragma GCC unroll 4
    for (int s = 0; s < States; ++s) {
      long long numbers;
      __builtin_memcpy(&numbers, states[s].numbers + quad * kQuad, sizeof(numbers));
      b[s] = _mm256_set1_epi64x(numbers);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(group) + i));
#pragma GCC unroll 4
      for (int s = 0; s < States; ++s) sums[s][i] = _mm256_add_epi32(sums[s][i], _mm256_madd_epi16(a, b[s]));
    }
    group += kQuad * kLanes;
  }
  fetch_ahead(group);
#pragma GCC unroll 4
  for (int s = 0; s < States; ++s) {
    const __m256i correction = _mm256_set1_epi32(static_cast<int>(states[s].correction));
    constexpr int order = 0xd8;  // 64-bit lanes 0, 2, 1, 3
    const __m256i low = _mm256_add_epi32(
        _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[s][0], sums[s][1]), order), correction);
    const __m256i high = _mm256_add_epi32(
        _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[s][2], sums[s][3]), order), correction);
#if defined(__AVX512F__)
    const Vector products = as_vector(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
#else
    const Vector products = as_vector(low, high);
#endif
    store_bounds(products, states[s], radius, group, upper + s * upper_step);
  }
}

void bounds_by_pairs(const QuantizedGroups& groups, int64_t first, int64_t count, const QuantizedState* states,
                     int64_t states_count, float* upper, int64_t upper_step) {
  for (int64_t g = 0; g < count; ++g) {
    float* target = upper + g * kLanes;
    int64_t s = 0;
    for (; s + 2 <= states_count; s += 2) {
      group_bounds<2>(groups, first + g, states + s, target + s * upper_step, upper_step);
    }
    if (s < states_count) group_bounds<1>(groups, first + g, states + s, target + s * upper_step, upper_step);
  }
}

#endif

#if defined(__AVX512F__)
#define PLR_KERNELS_VNNI __attribute__((target("avx512vnni,avx512bw")))

// Products of Groups groups with States states, by quadruples of 8-bit integers.
template <int Groups, int States>
PLR_KERNELS_VNNI inline void vnni_bounds(const QuantizedGroups& groups, int64_t first, const QuantizedState* states,
                                         float* upper, int64_t upper_step) {
  const int64_t step = quantized_group_bytes(groups.dim);
  const uint8_t* group = groups.group(first);
  __m512i high[States][Groups], low[States][Groups];
#pragma GCC unroll 4
  for (int s = 0; s < States; ++s) {
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) high[s][g] = low[s][g] = _mm512_setzero_si512();
  }
  for (int64_t quad = 0; quad < quads(groups.dim); ++quad) {
    __m512i a[Groups];
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) {
      fetch_ahead(group + g * step);
      a[g] = _mm512_loadu_si512(group + g * step);
    }
#pragma GCC unroll 4
    for (int s = 0; s < States; ++s) {
      int numbers_high, numbers_low;
      __builtin_memcpy(&numbers_high, states[s].high + quad * kQuad, sizeof(int));
      __builtin_memcpy(&numbers_low, states[s].low + quad * kQuad, sizeof(int));
      const __m512i b_high = _mm512_set1_epi32(numbers_high), b_low = _mm512_set1_epi32(numbers_low);
#pragma GCC unroll 4
      for (int g = 0; g < Groups; ++g) {
        high[s][g] = _mm512_dpbusd_epi32(high[s][g], a[g], b_high);
        low[s][g] = _mm512_dpbusd_epi32(low[s][g], a[g], b_low);
      }
    }
    group += kQuad * kLanes;
  }
#pragma GCC unroll 4
  for (int g = 0; g < Groups; ++g) fetch_ahead(group + g * step);
#pragma GCC unroll 4
  for (int s = 0; s < States; ++s) {
    const __m512i correction = _mm512_set1_epi32(static_cast<int>(states[s].correction));
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) {
      const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[s][g], 8), _mm512_add_epi32(low[s][g], correction));
      store_bounds(as_vector(sum), states[s], groups.radii[first + g], group + g * step,
                   upper + s * upper_step + g * kLanes);
    }
  }
}

template <int Groups>
PLR_KERNELS_VNNI inline void vnni_bounds_of(const QuantizedGroups& groups, int64_t first, const QuantizedState* states,
                                            int64_t states_count, float* upper, int64_t upper_step) {
  int64_t s = 0;
  for (; s + 2 <= states_count; s += 2) {
    vnni_bounds<Groups, 2>(groups, first, states + s, upper + s * upper_step, upper_step);
  }
  if (s < states_count) vnni_bounds<Groups, 1>(groups, first, states + s, upper + s * upper_step, upper_step);
}

PLR_KERNELS_VNNI void bounds_by_quadruples(const QuantizedGroups& groups, int64_t first, int64_t count,
                                           const QuantizedState* states, int64_t states_count, float* upper,
                                           int64_t upper_step) {
  constexpr int together = 4;  // groups: enough sums that do not wait for each other
  int64_t g = 0;
  for (; g + together <= count; g += together) {
    vnni_bounds_of<together>(groups, first + g, states, states_count, upper + g * kLanes, upper_step);
  }
  for (; g < count; ++g) vnni_bounds_of<1>(groups, first + g, states, states_count, upper + g * kLanes, upper_step);
}

#undef PLR_KERNELS_VNNI
#endif

// For one state the time is that of reading the items, and what the k best cost beside it; for more of them, that of the
// products. Measured.
inline int64_t measured_states(int64_t numbers, int64_t k, int64_t few, int64_t most) {
  if (numbers < 8 * 1024 * (k + 20)) return 0;
  if (numbers < 32 * 1024 * (k + 10)) return 1;
  return numbers < 128 * 1024 * (k + 10) ? few : most;
}

#if defined(__AVX512F__)
inline bool has_vnni() { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw"); }

void quantized_bounds(const QuantizedGroups& groups, int64_t first, int64_t count, const QuantizedState* states,
                      int64_t states_count, float* upper, int64_t upper_step) {
  const auto bounds = has_vnni() ? bounds_by_quadruples : bounds_by_pairs;
  bounds(groups, first, count, states, states_count, upper, upper_step);
}

constexpr auto kQuantizedBounds = quantized_bounds;
int64_t most_quantized_states(int64_t numbers, int64_t k) {
  constexpr int64_t any = int64_t{1} << 40;
  return has_vnni() ? measured_states(numbers, k, any, any) : measured_states(numbers, k, 1, 2);
}
#elif defined(__AVX2__)
constexpr auto kQuantizedBounds = bounds_by_pairs;
int64_t most_quantized_states(int64_t numbers, int64_t k) { return measured_states(numbers, k, 2, 8); }
#else
constexpr decltype(Kernels::quantized_bounds) kQuantizedBounds = nullptr;
int64_t most_quantized_states(int64_t, int64_t) { return 0; }
#endif

}  // namespace
}  // namespace plr_kernels
