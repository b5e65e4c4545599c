// The kernels of kernels.h in terms of Vector. Included once per instruction set, after the header that defines Vector;
// everything here is local to that translation unit, so that no code for a wider instruction set leaks into others.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "../panels.h"

namespace {

using plr_kernels::DataType;
using plr_kernels::DivergenceStatistics;
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

// The 16 numbers from `offset` on, zeros for those beyond the `left` that there are.
inline Vector load_padded(const void* source, DataType type, int64_t offset, int64_t left) {
  if (left >= kLanes) return load_raised(source, type, offset);
  const int64_t bytes = plr_kernels::bytes_of(type);
  alignas(64) char padded[kLanes * sizeof(float)] = {};
  __builtin_memcpy(padded, static_cast<const char*>(source) + offset * bytes, left * bytes);
  return load_raised(padded, type, 0);
}

#ifndef __AVX512F__
// To nearest, ties to even.
inline uint16_t lower_bfloat16(float number) {
  uint32_t bits;
  __builtin_memcpy(&bits, &number, sizeof(bits));
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);  // NaN
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void store_bfloat16(uint16_t* target, Vector a) {
  float numbers[kLanes];
  store(numbers, a);
  for (int lane = 0; lane < kLanes; ++lane) target[lane] = lower_bfloat16(numbers[lane]);
}
#endif

inline void store_lowered(void* target, DataType type, int64_t offset, Vector values) {
  switch (type) {
    case DataType::float16:
      store_float16(static_cast<uint16_t*>(target) + offset, values);
      break;
    case DataType::bfloat16:
      store_bfloat16(static_cast<uint16_t*>(target) + offset, values);
      break;
    default:
      store(static_cast<float*>(target) + offset, values);
  }
}

void load_rows(const Matrix& source, int64_t first, int64_t count, float* panels, int64_t panels_rows) {
  for (int64_t i = 0; i < count; ++i) {
    const void* row = plr_kernels::row_of(source, first + i);
    const bool divided = source.norms != nullptr;
    const Vector divisor = broadcast(divided ? plr_kernels::divisor_of(source, first + i) : 1.0f);
    for (int64_t column = 0; column < source.columns; column += kLanes) {
      float* target = panels + (column / kPanelColumns * panels_rows + i) * kPanelColumns + column % kPanelColumns;
      const Vector values = load_padded(row, source.type, column, source.columns - column);
      store(target, divided ? values / divisor : values);
    }
  }
}

void row_norms(const Matrix& source, int64_t first, int64_t count, float* norms) {
  for (int64_t i = 0; i < count; ++i) {
    const void* row = plr_kernels::row_of(source, first + i);
    Vector squares = zero();
    for (int64_t column = 0; column < source.columns; column += kLanes) {
      const Vector values = load_padded(row, source.type, column, source.columns - column);
      squares = multiply_add(values, values, squares);
    }
    norms[i] = __builtin_sqrtf(sum_of_lanes(squares));
  }
}

void remove_component(float* row, int64_t step, const float* unit, int64_t columns) {
  const auto at = [&](int64_t column) { return row + column / kPanelColumns * step + column % kPanelColumns; };
  Vector products = zero();
  for (int64_t column = 0; column < columns; column += kLanes) {
    products = multiply_add(load(at(column)), load(unit + column), products);
  }
  const Vector component = broadcast(-sum_of_lanes(products));
  for (int64_t column = 0; column < columns; column += kLanes) {
    store(at(column), multiply_add(component, load(unit + column), load(at(column))));
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

// How a product multiplies and adds up: a cell of a panel is one float32, or a pair of bfloat16 that are neighbours along
// the inner dimension.
struct Singles {
  static constexpr int64_t numbers = 1;
  static Vector multiply_add(Vector a, Vector b, Vector c) { return ::multiply_add(a, b, c); }
};
#ifdef __AVX512BF16__
struct Pairs {
  static constexpr int64_t numbers = 2;
  static Vector multiply_add(Vector a, Vector b, Vector c) { return multiply_add_pairs(a, b, c); }
};
#endif

// Rows x Vectors of the result in registers. Row i, term k of a is a[i * row_step + k * term_step] as long as k stays
// within `inner` terms, after which a moves on by `jump`; b and c have rows of one panel.
template <class Cells, int Rows, int Vectors>
inline void tile(int64_t k, const float* a, int64_t row_step, int64_t term_step, int64_t inner, int64_t jump,
                 const float* b, float* c, float scale, bool accumulate) {
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
        for (int j = 0; j < Vectors; ++j) sums[i][j] = Cells::multiply_add(from_a, from_b[j], sums[i][j]);
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
      const Vector scaled = sums[i][j] * broadcast(scale);
      store(target, accumulate ? load(target) + scaled : scaled);
    }
  }
}

// One tile of `rows` rows, and as many Vectors as a tile has or one.
template <class Cells, bool Transposed, int Rows>
inline void tile_of(int64_t rows, int64_t vectors, int64_t k, const float* a, int64_t a_rows, const float* b, float* c,
                    float scale, bool accumulate) {
  if constexpr (Rows > 1) {
    if (rows < Rows) {
      tile_of<Cells, Transposed, Rows - 1>(rows, vectors, k, a, a_rows, b, c, scale, accumulate);
      return;
    }
  }
  const int64_t row_step = Transposed ? 1 : kPanelColumns;
  const int64_t term_step = Transposed ? kPanelColumns : 1;
  const int64_t inner = Transposed ? k : kPanelColumns;
  const int64_t jump = Transposed ? 0 : (a_rows - 1) * kPanelColumns;
  if (vectors == kTileVectors) {
    tile<Cells, Rows, kTileVectors>(k, a, row_step, term_step, inner, jump, b, c, scale, accumulate);
  } else {
    tile<Cells, Rows, 1>(k, a, row_step, term_step, inner, jump, b, c, scale, accumulate);
  }
}

// Rows [0, m) of one panel of the result, in tiles of nearly equal height.
template <class Cells, bool Transposed>
inline void column_of_tiles(int64_t m, int64_t columns, int64_t k, const float* a, int64_t a_rows, const float* b,
                            float* c, float scale, bool accumulate) {
  const int64_t tiles = (m + kTileRows - 1) / kTileRows;
  int64_t i = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t rows = (m - i + tiles - t - 1) / (tiles - t);
    for (int64_t j = 0; j < columns; j += kTileVectors * kLanes) {
      const int64_t vectors = smaller(kTileVectors, (columns - j) / kLanes);
      tile_of<Cells, Transposed, kTileRows>(rows, vectors, k, a + i * (Transposed ? 1 : kPanelColumns), a_rows, b + j,
                                            c + i * kPanelColumns + j, scale, accumulate);
    }
    i += rows;
  }
}

template <class Cells>
void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_rows, const float* b, int64_t b_rows, float* c,
             int64_t c_rows, float scale, bool accumulate) {
  for (int64_t first = 0; first < k; first += kProductDepth) {
    const int64_t depth = smaller(kProductDepth, k - first);
    for (int64_t j = 0; j < n; j += kPanelColumns) {
      const int64_t panel = j / kPanelColumns;
      column_of_tiles<Cells, false>(m, smaller(kPanelColumns, n - j), depth, a + first * a_rows, a_rows,
                                    b + (panel * b_rows + first) * kPanelColumns, c + panel * c_rows * kPanelColumns,
                                    scale, accumulate || first > 0);
    }
  }
}

template <class Cells>
void product_transposed(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_rows, const float* b,
                        int64_t b_rows, float* c, int64_t c_rows) {
  for (int64_t i = 0; i < m; i += kPanelColumns) {
    for (int64_t j = 0; j < n; j += kPanelColumns) {
      column_of_tiles<Cells, true>(kPanelColumns, smaller(kPanelColumns, n - j), k, a + i * a_rows, a_rows,
                                   b + j * b_rows, c + (j * c_rows) + i * kPanelColumns, 1.0f, true);
    }
  }
}

// ------------------------------------------------------------------------------------------ panels of pairs

#ifdef __AVX512BF16__

inline uint32_t pair_of(uint16_t first, uint16_t second) {
  return static_cast<uint32_t>(first) | static_cast<uint32_t>(second) << 16;
}

void round_row(const Matrix& source, int64_t row, uint16_t* target) {
  const void* numbers = plr_kernels::row_of(source, row);
  const bool divided = source.norms != nullptr;
  const Vector divisor = broadcast(divided ? plr_kernels::divisor_of(source, row) : 1.0f);
  for (int64_t column = 0; column < source.columns; column += 2 * kLanes) {
    Vector values[2] = {zero(), zero()};
    const int64_t left = source.columns - column;
    values[0] = load_padded(numbers, source.type, column, left);
    if (left > kLanes) values[1] = load_padded(numbers, source.type, column + kLanes, left - kLanes);
    if (divided) {
      for (Vector& value : values) value = value / divisor;
    }
    const Vector rounded = neighbours_as_pairs(values[0], values[1]);
    __builtin_memcpy(target + column, &rounded, smaller(2 * kLanes, left) * sizeof(uint16_t));
  }
}

// A cell (i, c) of [rows, columns / 2]: row i, columns 2 c and 2 c + 1.
void pair_columns(const uint16_t* row, int64_t columns, int64_t i, float* panels, int64_t panels_rows) {
  for (int64_t column = 0; column < columns; column += 2 * kPanelColumns) {
    const int64_t numbers = smaller(2 * kPanelColumns, columns - column);
    float* target = panels + (column / 2 * panels_rows) + i * kPanelColumns;
    if (numbers < 2 * kPanelColumns) __builtin_memset(target, 0, kPanelColumns * sizeof(float));
    __builtin_memcpy(target, row + column, numbers * sizeof(uint16_t));
  }
}

// A cell (i, c) of [rows / 2, columns]: column c, rows 2 i and 2 i + 1. A row may be null: zeros.
void pair_rows(const uint16_t* row, const uint16_t* next_row, int64_t columns, int64_t i, float* panels,
               int64_t panels_rows) {
  static const uint16_t zeros[kPanelColumns] = {};
  for (int64_t column = 0; column < columns; column += kPanelColumns) {
    const uint16_t* first = row == nullptr ? zeros : row + column;
    const uint16_t* second = next_row == nullptr ? zeros : next_row + column;
    uint32_t cells[kPanelColumns] = {};
    const int64_t numbers = smaller(kPanelColumns, columns - column);
    if (numbers == kPanelColumns) {
      for (int64_t c = 0; c < kPanelColumns; ++c) cells[c] = pair_of(first[c], second[c]);
    } else {
      for (int64_t c = 0; c < numbers; ++c) cells[c] = pair_of(first[c], second[c]);
    }
    __builtin_memcpy(panels + column * panels_rows + i * kPanelColumns, cells, sizeof(cells));
  }
}

// scores [items, states] as [items, states / 2] and, where not null, as [items / 2, states]; rounded to nearest.
void pair_scores(const float* scores, int64_t scores_rows, int64_t items, int64_t states, float* by_state,
                 int64_t by_state_rows, float* by_item, int64_t by_item_rows) {
  for (int64_t state = 0; state < states; state += kPanelColumns) {
    const float* panel = scores + state * scores_rows;
    for (int64_t i = 0; i < items; ++i) {
      const float* row = panel + i * kPanelColumns;
      float* target = by_state + state / (2 * kPanelColumns) * (by_state_rows * kPanelColumns) + i * kPanelColumns +
                      state / 2 % kPanelColumns;
      store(target, neighbours_as_pairs(load(row), load(row + kLanes)));
    }
    if (by_item == nullptr) continue;
    for (int64_t i = 0; i < items; i += 2) {
      for (int64_t lane = 0; lane < kPanelColumns; lane += kLanes) {
        const float* row = panel + i * kPanelColumns + lane;
        const Vector next = i + 1 < items ? load(row + kPanelColumns) : zero();
        store(by_item + state * by_item_rows + i / 2 * kPanelColumns + lane, lanes_as_pairs(load(row), next));
      }
    }
  }
}

#endif

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

void merge_softmax(int64_t states, const float* other_maximum, const float* other_sum, float* maximum, float* sum) {
  for (int64_t state = 0; state < states; state += kLanes) {
    const Vector now = maximum_of(load(other_maximum + state), load(maximum + state));
    const Vector factor = exp2(load(maximum + state) - now);
    const Vector other_factor = exp2(load(other_maximum + state) - now);
    store(sum + state, multiply_add(load(sum + state), factor, load(other_sum + state) * other_factor));
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

// Instead of a score that is not to count: its exponential is 0, and 0 times its distance from anything is 0 too.
constexpr float kNoScore = -1e38f;

// Scores of hundreds would round away what a state prefers, so a score counts by its distance from the state's maximum:
// where a probability matters, that is small. And the mean over a group is taken of differences from the group's first
// state, so that states which agree differ by exactly 0.
struct GroupMean {
  float* first;  // per item, of the group's first state
  float* mean;   // of the differences from it
};

inline GroupMean group_mean(const float* scores, int64_t scores_rows, int64_t items, int64_t state, int64_t group,
                            const float* maximum, float* memory) {
  const GroupMean result{memory, memory + items * kLanes};
  for (int64_t member = 0; member < group; ++member) {
    const float* column = of_states(scores, scores_rows, state + member * kLanes);
    const Vector largest_score = load(maximum + state + member * kLanes);
    const Vector share = broadcast(member == group - 1 ? 1.0f / static_cast<float>(group) : 1.0f);
    for (int64_t i = 0; i < items; ++i) {
      const Vector distance = load(column + i * kPanelColumns) - largest_score;
      if (member == 0) {
        store(result.first + i * kLanes, distance);
      } else {
        const Vector difference = distance - load(result.first + i * kLanes);
        store(result.mean + i * kLanes, (member == 1 ? difference : load(result.mean + i * kLanes) + difference) * share);
      }
    }
  }
  return result;
}

void divergence_statistics(float* scores, int64_t scores_rows, int64_t items, int64_t states, int64_t group,
                           float* memory, const DivergenceStatistics& result) {
  for (int64_t first = 0; first < states; first += group * kLanes) {
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      const float* column = of_states(scores, scores_rows, state);
      Vector largest_score = load(column), top = zero();
      for (int64_t i = 1; i < items; ++i) {
        const Vector score = load(column + i * kPanelColumns);
        top = where_greater(score, largest_score, broadcast(static_cast<float>(i)), top);
        largest_score = maximum_of(score, largest_score);
      }
      store(result.maximum + state, largest_score);
      store(result.top + state, top);
    }
    const GroupMean of_group = group_mean(scores, scores_rows, items, first, group, result.maximum, memory);
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      float* column = of_states(scores, scores_rows, state);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t top = static_cast<int64_t>(result.top[state + lane]);
        const float distance = column[top * kPanelColumns + lane] - result.maximum[state + lane];
        const int64_t place = top * kLanes + lane;
        result.at_top[state + lane] = (distance - of_group.first[place]) - of_group.mean[place];
        column[top * kPanelColumns + lane] = kNoScore;
      }
      const Vector largest_score = load(result.maximum + state);
      const Vector at_top = load(result.at_top + state);
      Vector rest = zero(), deviation = zero();
      for (int64_t i = 0; i < items; ++i) {
        const Vector distance = load(column + i * kPanelColumns) - largest_score;
        const Vector power = exp2(distance);
        rest = rest + power;
        const Vector off_mean = (distance - load(of_group.first + i * kLanes)) - load(of_group.mean + i * kLanes);
        deviation = multiply_add(power, off_mean - at_top, deviation);
      }
      store(result.rest + state, rest);
      store(result.deviation + state, deviation);
    }
  }
}

// Per lane, the mean over the group that starts at `state` of how far the maxima are below those of both.
inline Vector mean_rise(const float* maximum, const float* other_maximum, int64_t state, int64_t group) {
  Vector sum = zero();
  for (int64_t member = state; member < state + group * kLanes; member += kLanes) {
    const Vector own = load(maximum + member);
    sum = sum + (maximum_of(load(other_maximum + member), own) - own);
  }
  return sum * broadcast(1.0f / static_cast<float>(group));
}

void merge_divergence(int64_t states, int64_t group, const DivergenceStatistics& other,
                      const DivergenceStatistics& result) {
  const Vector one = broadcast(1.0f);
  for (int64_t first = 0; first < states; first += group * kLanes) {
    const Vector rise = mean_rise(result.maximum, other.maximum, first, group);
    const Vector other_rise = mean_rise(other.maximum, result.maximum, first, group);
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      const Vector maximum = load(result.maximum + state), other_maximum = load(other.maximum + state);
      const Vector now = maximum_of(other_maximum, maximum);
      // r of both tops, with the distances from the maxima of both.
      const Vector at_top = load(result.at_top + state) + (rise - (now - maximum));
      const Vector other_at_top = load(other.at_top + state) + (other_rise - (now - other_maximum));
      const auto of_larger = [&](Vector own, Vector others) {
        return where_greater(other_maximum, maximum, others, own);
      };
      const auto of_smaller = [&](Vector own, Vector others) { return of_larger(others, own); };
      const Vector rest = load(result.rest + state), other_rest = load(other.rest + state);
      const Vector deviation = load(result.deviation + state), other_deviation = load(other.deviation + state);
      const Vector factor = exp2(of_smaller(maximum, other_maximum) - now);
      const Vector added = (one + of_smaller(rest, other_rest)) * factor;
      const Vector new_at_top = of_larger(at_top, other_at_top);
      const Vector offset = of_smaller(at_top, other_at_top) - new_at_top;
      const Vector added_deviation = multiply_add(added, offset, of_smaller(deviation, other_deviation) * factor);
      store(result.rest + state, of_larger(rest, other_rest) + added);
      store(result.deviation + state, of_larger(deviation, other_deviation) + added_deviation);
      store(result.at_top + state, new_at_top);
    }
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      store(result.maximum + state, maximum_of(load(other.maximum + state), load(result.maximum + state)));
    }
  }
}

void divergence_gradient(float* scores, int64_t scores_rows, int64_t items, int64_t states, int64_t group,
                         bool detach_reference, float* memory, const float* maximum, const float* inverse_sum,
                         const float* mean_deviation, float* sums) {
  const Vector ln2 = broadcast(0.693147182f);
  const Vector share = broadcast(-1.0f / static_cast<float>(group));
  // Per item, the first state's probability and the sum of the others' differences from it.
  float* first_p = memory + 2 * items * kLanes;
  float* difference_sum = memory + 3 * items * kLanes;
  for (int64_t first = 0; first < states; first += group * kLanes) {
    const GroupMean of_group = group_mean(scores, scores_rows, items, first, group, maximum, memory);
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      float* column = of_states(scores, scores_rows, state);
      const Vector largest_score = load(maximum + state);
      const Vector factor = load(inverse_sum + state);
      const Vector expected = load(mean_deviation + state);
      Vector sum = zero();
      for (int64_t i = 0; i < items; ++i) {
        float* place = column + i * kPanelColumns;
        const Vector distance = load(place) - largest_score;
        const Vector p = exp2(distance) * factor;
        const Vector off_mean = (distance - load(of_group.first + i * kLanes)) - load(of_group.mean + i * kLanes);
        const Vector gradient = p * ((off_mean - expected) * ln2);
        if (detach_reference) {
          store(place, gradient);
          sum = sum + gradient;
        } else if (state == first) {
          store(place, gradient);
          store(first_p + i * kLanes, p);
          store(difference_sum + i * kLanes, zero());
        } else {
          const Vector difference = p - load(first_p + i * kLanes);
          store(place, gradient + difference);
          store(difference_sum + i * kLanes, load(difference_sum + i * kLanes) + difference);
        }
      }
      store(sums + state, sum);
    }
    if (detach_reference) continue;
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      float* column = of_states(scores, scores_rows, state);
      Vector sum = zero();
      for (int64_t i = 0; i < items; ++i) {
        float* place = column + i * kPanelColumns;
        const Vector gradient = multiply_add(load(difference_sum + i * kLanes), share, load(place));
        store(place, gradient);
        sum = sum + gradient;
      }
      store(sums + state, sum);
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
  return {name,
          load_rows,
          store_rows,
          row_norms,
          remove_component,
          product<Singles>,
          product_transposed<Singles>,
          update_softmax,
          merge_softmax,
          softmax_gradient,
          divergence_statistics,
          merge_divergence,
          divergence_gradient,
          update_both_sums,
          both_softmax_gradient,
          attention_forward,
          attention_backward,
          above,
          rank,
          dots,
          rows_product<Singles>,
#ifdef __AVX512BF16__
          {product<Pairs>, product_transposed<Pairs>, rows_product<Pairs>, round_row, pair_columns, pair_rows,
           pair_scores}
#else
          {}
#endif
  };
}

}  // namespace
