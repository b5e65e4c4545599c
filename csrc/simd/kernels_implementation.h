// The kernels of kernels.h in terms of Vector. Included once per instruction set, after the header that defines Vector;
// everything here is local to that translation unit, so that no code for a wider instruction set leaks into others.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "../panels.h"

namespace {

using plr_kernels::DataType;
using plr_kernels::Kernels;
using plr_kernels::kLanes;
using plr_kernels::kPanelColumns;
using plr_kernels::kProductDepth;
using plr_kernels::Matrix;
using plr_kernels::MutableMatrix;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// 2^argument to within one unit in the last place; zero below the normal numbers.
inline Vector exp2(Vector argument) {
  const Vector exponent = nearest_integer(argument);
  const Vector f = argument - exponent;  // in [-1/2, 1/2], exact
  // The polynomial with the least relative error (2e-9) among those with constant term 1.
  Vector power = broadcast(1.5353362e-4f);
  power = multiply_add(power, f, broadcast(1.3398874e-3f));
  power = multiply_add(power, f, broadcast(9.6184369e-3f));
  power = multiply_add(power, f, broadcast(5.5503324e-2f));
  power = multiply_add(power, f, broadcast(2.4022648e-1f));
  power = multiply_add(power, f, broadcast(6.9314718e-1f));
  power = multiply_add(power, f, broadcast(1.0f));
  return scaled_by_power(power, exponent, argument, broadcast(-126.0f));
}

// ------------------------------------------------------------------------------------------ rows <-> panels

inline Vector load_raised(const void* source, DataType type, int64_t offset) {
  switch (type) {
    case DataType::float16:
      return load_float16(static_cast<const uint16_t*>(source) + offset);
    case DataType::bfloat16:
      return load_bfloat16(static_cast<const uint16_t*>(source) + offset);
    default:
      return load(static_cast<const float*>(source) + offset);
  }
}

// To nearest, ties to even.
inline uint16_t lower_bfloat16(float number) {
  uint32_t bits;
  __builtin_memcpy(&bits, &number, sizeof(bits));
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);  // NaN
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void store_lowered(void* target, DataType type, int64_t offset, Vector values) {
  switch (type) {
    case DataType::float16:
      store_float16(static_cast<uint16_t*>(target) + offset, values);
      break;
    case DataType::bfloat16: {
      float numbers[kLanes];
      store(numbers, values);
      for (int lane = 0; lane < kLanes; ++lane) {
        static_cast<uint16_t*>(target)[offset + lane] = lower_bfloat16(numbers[lane]);
      }
      break;
    }
    default:
      store(static_cast<float*>(target) + offset, values);
  }
}

void load_rows(const Matrix& source, int64_t first, int64_t count, float* panels, int64_t panels_rows) {
  const int64_t bytes = plr_kernels::bytes_of(source.type);
  for (int64_t i = 0; i < count; ++i) {
    const char* row = static_cast<const char*>(plr_kernels::row_of(source, first + i));
    for (int64_t column = 0; column < source.columns; column += kLanes) {
      float* target = panels + (column / kPanelColumns * panels_rows + i) * kPanelColumns + column % kPanelColumns;
      const int64_t left = source.columns - column;
      if (left >= kLanes) {
        store(target, load_raised(row, source.type, column));
      } else {
        alignas(64) char padded[kLanes * sizeof(float)] = {};
        __builtin_memcpy(padded, row + column * bytes, left * bytes);
        store(target, load_raised(padded, source.type, 0));
      }
    }
  }
}

void store_rows(const float* panels, int64_t panels_rows, int64_t count, int64_t columns, float scale,
                const MutableMatrix& target, int64_t first) {
  const int64_t bytes = plr_kernels::bytes_of(target.type);
  for (int64_t i = 0; i < count; ++i) {
    char* row = static_cast<char*>(plr_kernels::row_of(target, first + i));
    for (int64_t column = 0; column < columns; column += kLanes) {
      const float* source =
          panels + (column / kPanelColumns * panels_rows + i) * kPanelColumns + column % kPanelColumns;
      const Vector values = load(source) * broadcast(scale);
      const int64_t left = columns - column;
      if (left >= kLanes) {
        store_lowered(row, target.type, column, values);
      } else {
        alignas(64) char padded[kLanes * sizeof(float)];
        store_lowered(padded, target.type, 0, values);
        __builtin_memcpy(row + column * bytes, padded, left * bytes);
      }
    }
  }
}

// ------------------------------------------------------------------------------------------ products

// Rows x Vectors of the result in registers. Row i, term k of a is a[i * row_step + k * term_step] as long as k stays
// within `inner` terms, after which a moves on by `jump`; b and c have rows of one panel.
template <int Rows, int Vectors>
inline void tile(int64_t k, const float* a, int64_t row_step, int64_t term_step, int64_t inner, int64_t jump,
                 const float* b, float* c, bool accumulate) {
  Vector sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) sums[i][j] = zero();
  }
  for (int64_t done = 0; done < k; done += inner) {
    const int64_t terms = smaller(inner, k - done);
    for (int64_t term = 0; term < terms; ++term) {
      Vector from_b[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) from_b[j] = load(b + j * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const Vector from_a = broadcast(a[i * row_step]);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) sums[i][j] = multiply_add(from_a, from_b[j], sums[i][j]);
      }
      a += term_step;
      b += kPanelColumns;
    }
    a += jump;
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      float* target = c + i * kPanelColumns + j * kLanes;
      store(target, accumulate ? load(target) + sums[i][j] : sums[i][j]);
    }
  }
}

// One tile of `rows` rows, and as many Vectors as a tile has or one.
template <bool Transposed, int Rows>
inline void tile_of(int64_t rows, int64_t vectors, int64_t k, const float* a, int64_t a_rows, const float* b, float* c,
                    bool accumulate) {
  if constexpr (Rows > 1) {
    if (rows < Rows) {
      tile_of<Transposed, Rows - 1>(rows, vectors, k, a, a_rows, b, c, accumulate);
      return;
    }
  }
  const int64_t row_step = Transposed ? 1 : kPanelColumns;
  const int64_t term_step = Transposed ? kPanelColumns : 1;
  const int64_t inner = Transposed ? k : kPanelColumns;
  const int64_t jump = Transposed ? 0 : (a_rows - 1) * kPanelColumns;
  if (vectors == kTileVectors) {
    tile<Rows, kTileVectors>(k, a, row_step, term_step, inner, jump, b, c, accumulate);
  } else {
    tile<Rows, 1>(k, a, row_step, term_step, inner, jump, b, c, accumulate);
  }
}

// Rows [0, m) of one panel of the result, in tiles of nearly equal height.
template <bool Transposed>
inline void column_of_tiles(int64_t m, int64_t columns, int64_t k, const float* a, int64_t a_rows, const float* b,
                            float* c, bool accumulate) {
  const int64_t tiles = (m + kTileRows - 1) / kTileRows;
  int64_t i = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t rows = (m - i + tiles - t - 1) / (tiles - t);
    for (int64_t j = 0; j < columns; j += kTileVectors * kLanes) {
      const int64_t vectors = smaller(kTileVectors, (columns - j) / kLanes);
      tile_of<Transposed, kTileRows>(rows, vectors, k, a + i * (Transposed ? 1 : kPanelColumns), a_rows, b + j,
                                     c + i * kPanelColumns + j, accumulate);
    }
    i += rows;
  }
}

void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_rows, const float* b, int64_t b_rows, float* c,
             int64_t c_rows, bool accumulate) {
  for (int64_t first = 0; first < k; first += kProductDepth) {
    const int64_t depth = smaller(kProductDepth, k - first);
    for (int64_t j = 0; j < n; j += kPanelColumns) {
      const int64_t panel = j / kPanelColumns;
      column_of_tiles<false>(m, smaller(kPanelColumns, n - j), depth, a + first * a_rows, a_rows,
                             b + (panel * b_rows + first) * kPanelColumns, c + panel * c_rows * kPanelColumns,
                             accumulate || first > 0);
    }
  }
}

void product_transposed(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_rows, const float* b,
                        int64_t b_rows, float* c, int64_t c_rows) {
  for (int64_t i = 0; i < m; i += kPanelColumns) {
    for (int64_t j = 0; j < n; j += kPanelColumns) {
      column_of_tiles<true>(kPanelColumns, smaller(kPanelColumns, n - j), k, a + i * a_rows, a_rows, b + j * b_rows,
                            c + (j * c_rows) + i * kPanelColumns, true);
    }
  }
}

// ------------------------------------------------------------------------------------------ softmax

// The scores of the states in one Vector: item i is at [i * kPanelColumns].
inline float* of_states(float* scores, int64_t scores_rows, int64_t state) {
  return scores + state / kPanelColumns * scores_rows * kPanelColumns + state % kPanelColumns;
}
inline const float* of_states(const float* scores, int64_t scores_rows, int64_t state) {
  return of_states(const_cast<float*>(scores), scores_rows, state);
}

inline Vector largest(const float* scores, int64_t items, Vector start) {
  // Two chains, so that one need not wait for the other.
  Vector even = start, odd = start;
  int64_t i = 0;
  for (; i + 1 < items; i += 2) {
    even = maximum_of(load(scores + i * kPanelColumns), even);
    odd = maximum_of(load(scores + (i + 1) * kPanelColumns), odd);
  }
  if (i < items) even = maximum_of(load(scores + i * kPanelColumns), even);
  return maximum_of(even, odd);
}

void update_softmax(const float* scores, int64_t scores_rows, int64_t items, int64_t states, float* maximum,
                    float* sum) {
  for (int64_t state = 0; state < states; state += kLanes) {
    const float* column = of_states(scores, scores_rows, state);
    const Vector before = load(maximum + state);
    const Vector now = largest(column, items, before);
    Vector added = zero();
    for (int64_t i = 0; i < items; ++i) added = added + exp2(load(column + i * kPanelColumns) - now);
    store(maximum + state, now);
    store(sum + state, multiply_add(load(sum + state), exp2(before - now), added));
  }
}

void merge_softmax(int64_t states, const float* other_maximum, const float* other_sum, const float* other_deviation,
                   float* maximum, float* sum, float* deviation) {
  for (int64_t state = 0; state < states; state += kLanes) {
    const Vector now = maximum_of(load(other_maximum + state), load(maximum + state));
    const Vector factor = exp2(load(maximum + state) - now);
    const Vector other_factor = exp2(load(other_maximum + state) - now);
    store(sum + state, multiply_add(load(sum + state), factor, load(other_sum + state) * other_factor));
    if (deviation != nullptr) {
      store(deviation + state,
            multiply_add(load(deviation + state), factor, load(other_deviation + state) * other_factor));
    }
    store(maximum + state, now);
  }
}

void softmax_gradient(float* scores, int64_t scores_rows, int64_t items, int64_t states, const float* maximum,
                      const float* inverse_sum, const float* weight) {
  for (int64_t state = 0; state < states; state += kLanes) {
    float* column = of_states(scores, scores_rows, state);
    const Vector largest_score = load(maximum + state);
    const Vector factor = load(inverse_sum + state) * load(weight + state);
    for (int64_t i = 0; i < items; ++i) {
      float* place = column + i * kPanelColumns;
      store(place, exp2(load(place) - largest_score) * factor);
    }
  }
}

// ------------------------------------------------------------------------------------------ divergence in groups

// Per item, the mean over the group that starts at `state` of its scores.
inline void group_mean(const float* scores, int64_t scores_rows, int64_t items, int64_t state, int64_t group,
                       float* mean) {
  const float share = 1.0f / static_cast<float>(group);
  for (int64_t member = 0; member < group; ++member) {
    const float* column = of_states(scores, scores_rows, state + member * kLanes);
    const Vector factor = broadcast(member == group - 1 ? share : 1.0f);
    for (int64_t i = 0; i < items; ++i) {
      const Vector score = load(column + i * kPanelColumns);
      store(mean + i * kLanes, (member == 0 ? score : load(mean + i * kLanes) + score) * factor);
    }
  }
}

void update_divergence(const float* scores, int64_t scores_rows, int64_t items, int64_t states, int64_t group,
                       float* mean, float* maximum, float* sum, float* deviation) {
  for (int64_t first = 0; first < states; first += group * kLanes) {
    group_mean(scores, scores_rows, items, first, group, mean);
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      const float* column = of_states(scores, scores_rows, state);
      const Vector before = load(maximum + state);
      const Vector now = largest(column, items, before);
      Vector added_sum = zero(), added_deviation = zero();
      for (int64_t i = 0; i < items; ++i) {
        const Vector score = load(column + i * kPanelColumns);
        const Vector power = exp2(score - now);
        added_sum = added_sum + power;
        added_deviation = multiply_add(power, score - load(mean + i * kLanes), added_deviation);
      }
      const Vector factor = exp2(before - now);
      store(maximum + state, now);
      store(sum + state, multiply_add(load(sum + state), factor, added_sum));
      store(deviation + state, multiply_add(load(deviation + state), factor, added_deviation));
    }
  }
}

void divergence_gradient(float* scores, int64_t scores_rows, int64_t items, int64_t states, int64_t group,
                         bool detach_reference, float* mean, const float* maximum, const float* inverse_sum,
                         const float* mean_deviation) {
  const Vector ln2 = broadcast(0.693147182f);
  const Vector own = broadcast(detach_reference ? 0.0f : 1.0f);
  const Vector share = broadcast(-1.0f / static_cast<float>(group));
  float* probability = mean + items * kLanes;  // per item, the sum of the group's
  for (int64_t first = 0; first < states; first += group * kLanes) {
    group_mean(scores, scores_rows, items, first, group, mean);
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      float* column = of_states(scores, scores_rows, state);
      const Vector largest_score = load(maximum + state);
      const Vector factor = load(inverse_sum + state);
      const Vector expected = load(mean_deviation + state);
      for (int64_t i = 0; i < items; ++i) {
        float* place = column + i * kPanelColumns;
        const Vector score = load(place);
        const Vector p = exp2(score - largest_score) * factor;
        const Vector deviation = score - load(mean + i * kLanes) - expected;
        store(place, p * multiply_add(deviation, ln2, own));
        store(probability + i * kLanes, state == first ? p : load(probability + i * kLanes) + p);
      }
    }
    if (detach_reference) continue;
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      float* column = of_states(scores, scores_rows, state);
      for (int64_t i = 0; i < items; ++i) {
        float* place = column + i * kPanelColumns;
        store(place, multiply_add(load(probability + i * kLanes), share, load(place)));
      }
    }
  }
}

// ------------------------------------------------------------------------------------------ softmax both ways

void update_both_sums(const float* scores, int64_t scores_rows, int64_t items, int64_t states, float bound,
                      const float* counted, float* state_sum, float* item_sum) {
  const Vector largest_score = broadcast(bound);
  for (int64_t state = 0; state < states; state += kLanes) {
    const float* column = of_states(scores, scores_rows, state);
    const Vector mask = load(counted + state);
    Vector added = zero();
    for (int64_t i = 0; i < items; ++i) {
      const Vector power = exp2(load(column + i * kPanelColumns) - largest_score);
      added = added + power;
      store(item_sum + i * kLanes, multiply_add(power, mask, load(item_sum + i * kLanes)));
    }
    store(state_sum + state, load(state_sum + state) + added);
  }
}

void both_softmax_gradient(float* scores, int64_t scores_rows, int64_t items, int64_t states,
                           const float* state_maximum, const float* state_inverse_sum, const float* item_maximum,
                           const float* item_inverse_sum, const float* counted) {
  for (int64_t state = 0; state < states; state += kLanes) {
    float* column = of_states(scores, scores_rows, state);
    const Vector largest_score = load(state_maximum + state);
    const Vector factor = load(state_inverse_sum + state);
    const Vector mask = load(counted + state);
    if (item_maximum == nullptr) {
      for (int64_t i = 0; i < items; ++i) {
        float* place = column + i * kPanelColumns;
        store(place, exp2(load(place) - largest_score) * (factor + broadcast(item_inverse_sum[i])) * mask);
      }
      continue;
    }
    for (int64_t i = 0; i < items; ++i) {
      float* place = column + i * kPanelColumns;
      const Vector score = load(place);
      const Vector over_items = exp2(score - largest_score) * factor;
      // The mask here too: a state that does not count may lie above the maximum of those that do, without bound.
      const Vector over_states = exp2((score - broadcast(item_maximum[i])) * mask) * broadcast(item_inverse_sum[i]);
      store(place, (over_items + over_states) * mask);
    }
  }
}

}  // namespace

#include "attention_kernels.h"
#include "ranking.h"

namespace {

constexpr Kernels table(const char* name) {
  return {name,          load_rows,        store_rows,        product,
          product_transposed, update_softmax, merge_softmax,  softmax_gradient,
          update_divergence,  divergence_gradient, update_both_sums, both_softmax_gradient,
          attention_forward,   attention_backward,  above,            rank,
          dots,          rows_product};
}

}  // namespace
