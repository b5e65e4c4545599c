// The inner loops, compiled once for each instruction set and chosen when the process runs.
//
// Only these functions are compiled for more than the baseline instruction set. They allocate nothing and start no
// threads. Matrices are in panels (panels.h); `*_rows` is the number of rows that one panel of that matrix has room for.
//
// Scores are logits times log2(e), so that exp2 gives the exponentials. They are stored items first,
// [items, states], so that neighbouring states fill a Vector and sums over items need no shuffling.
#pragma once

#include <cstdint>

#include "attention.h"
#include "matrix.h"

namespace plr_kernels {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

constexpr int64_t kMostRanked = 128;  // numbers that `rank` takes

// Of every state, over some of the items; see pairwise_kl.cpp. With m the largest score, t = s − m, and r the difference
// of t from its mean over the group, "top" the first item with s = m:
struct DivergenceStatistics {
  float* maximum;    // m
  float* rest;       // Σ exp2(t) over all items but the top
  float* at_top;     // r of the top
  float* deviation;  // Σ exp2(t) (r − r of the top)
  float* top;        // the top's number within the block; merge_divergence leaves it alone
};

// Products of bfloat16, summed in float32. The cells of their operands' panels are pairs of numbers that are neighbours
// along the inner dimension, so that k counts pairs; results are panels of float32.
struct PairKernels {
  void (*product)(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_rows, const float* b, int64_t b_rows,
                  float* c, int64_t c_rows, float scale, bool accumulate);
  void (*product_transposed)(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_rows, const float* b,
                             int64_t b_rows, float* c, int64_t c_rows);

  // As rows_product below: the rows of the source and of b are cells; `fetched` has twice as many columns.
  void (*rows_product)(const Matrix& source, int64_t first, int64_t count, int64_t columns, const float* b, float* c,
                       const Matrix& fetched, int64_t fetched_first, int64_t fetched_count);

  // A row of a matrix, divided by its norm where it has one, rounded to bfloat16.
  void (*round_row)(const Matrix& source, int64_t row, uint16_t* target);

  // A row of bfloat16 to row i of panels [rows, columns / 2], padded with zero.
  void (*pair_columns)(const uint16_t* row, int64_t columns, int64_t i, float* panels, int64_t panels_rows);

  // Two rows of bfloat16, null for one of zeros, to row i of panels [rows / 2, columns].
  void (*pair_rows)(const uint16_t* row, const uint16_t* next_row, int64_t columns, int64_t i, float* panels,
                    int64_t panels_rows);

  // Scores [items, states], rounded to bfloat16, to panels [items, states / 2] and, where not null, [items / 2, states].
  void (*pair_scores)(const float* scores, int64_t scores_rows, int64_t items, int64_t states, float* by_state,
                      int64_t by_state_rows, float* by_item, int64_t by_item_rows);
};

struct Kernels {
  const char* name;

  // Rows [first, first + count) of a matrix to panels of float32, divided by their norms where the matrix has them.
  void (*load_rows)(const Matrix& source, int64_t first, int64_t count, float* panels, int64_t panels_rows);

  // The first `count` rows of panels, times `scale`, to rows [first, first + count) of a matrix with `columns` columns.
  void (*store_rows)(const float* panels, int64_t panels_rows, int64_t count, int64_t columns, float scale,
                     const MutableMatrix& target, int64_t first);

  // The Euclidean norms of rows [first, first + count) of a matrix, as they lie in memory.
  void (*row_norms)(const Matrix& source, int64_t first, int64_t count, float* norms);

  // row -= (row · unit) unit, for a row of panels whose numbers `kPanelColumns` apart are `step` numbers apart.
  void (*remove_component)(float* row, int64_t step, const float* unit, int64_t columns);

  // c [m, n] = a [m, k] b [k, n] · scale, or += where `accumulate`; n a multiple of 16.
  void (*product)(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_rows, const float* b, int64_t b_rows,
                  float* c, int64_t c_rows, float scale, bool accumulate);

  // c [m, n] += aᵀ b with a [k, m] and b [k, n]; m a multiple of 32, n of 16.
  void (*product_transposed)(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_rows, const float* b,
                             int64_t b_rows, float* c, int64_t c_rows);

  // Running statistics of every state over the items seen so far: the largest score m, and Σ exp2(s − m).
  void (*update_softmax)(const float* scores, int64_t scores_rows, int64_t items, int64_t states, float* maximum,
                         float* sum);

  // Adds the running statistics of other items to those in `maximum` and `sum`.
  void (*merge_softmax)(int64_t states, const float* other_maximum, const float* other_sum, float* maximum, float* sum);

  // scores -> weight · exp2(s − m) · inverse_sum, per state.
  void (*softmax_gradient)(float* scores, int64_t scores_rows, int64_t items, int64_t states, const float* maximum,
                           const float* inverse_sum, const float* weight);

  // Statistics of every state over the items of one block, which destroys its scores. The states of a group are `group`
  // consecutive Vectors, one group per lane; `states` is a multiple of 16 · group. `memory` has room for 2 · `items` Vectors.
  void (*divergence_statistics)(float* scores, int64_t scores_rows, int64_t items, int64_t states, int64_t group,
                                float* memory, const DivergenceStatistics& result);

  // Adds the statistics of other, later items to those in `result`.
  void (*merge_divergence)(int64_t states, int64_t group, const DivergenceStatistics& other,
                           const DivergenceStatistics& result);

  // scores -> p (r − mean_deviation) ln 2, plus p − mean over the group of p unless `detach_reference`, with
  // t = s − m, p = exp2(t) · inverse_sum and r = t − mean over the group of t. `memory` has room for 4 · `items` Vectors.
  // sums [states] = that, summed over the items.
  void (*divergence_gradient)(float* scores, int64_t scores_rows, int64_t items, int64_t states, int64_t group,
                              bool detach_reference, float* memory, const float* maximum, const float* inverse_sum,
                              const float* mean_deviation, float* sums);

  // Adds exp2(s − bound) to `state_sum` [states] and, times `counted` [states], to `item_sum` [items, 16], whose 16
  // lanes are to be added up.
  void (*update_both_sums)(const float* scores, int64_t scores_rows, int64_t items, int64_t states, float bound,
                           const float* counted, float* state_sum, float* item_sum);

  // scores -> (softmax over items + softmax over states) · counted. Where `item_maximum` is null, each is the same as
  // the state's.
  void (*both_softmax_gradient)(float* scores, int64_t scores_rows, int64_t items, int64_t states,
                                const float* state_maximum, const float* state_inverse_sum,
                                const float* item_maximum, const float* item_inverse_sum, const float* counted);

  // Attention of the pair (b, h) with the number b · H + h: output [B, H, M, D], and log2 of every softmax' sum [B, H, M],
  // null where that is not wanted. `memory` has room for an AttentionWorkspace.
  void (*attention_forward)(const AttentionCall& call, int64_t pair, float* memory, void* output, float* log_sums);
  void (*attention_backward)(const AttentionCall& call, int64_t pair, float* memory, const Strided& output_gradient,
                             const AttentionGradients& wanted);

  // Ascending positions 16 · v + lane of the scores in `vectors` Vectors, `step` numbers apart, that are not at most
  // the bound of their lane, in bounds [16]: the larger ones and NaN. `found` has room for all. Returns their number.
  int64_t (*above)(const float* scores, int64_t step, int64_t vectors, const float* bounds, uint32_t* found);

  // The k largest of `count` distinct keys to the front, largest first; k <= count <= kMostRanked.
  void (*rank)(int64_t* keys, int64_t count, int64_t k);

  // result [count] = rows [first, first + count) of a matrix with at least 16 columns, each times the vector.
  void (*dots)(const Matrix& source, int64_t first, int64_t count, const float* vector, float* result);

  // c [count, columns] = rows [first, first + count) of a float32 matrix, as they are, times the panel b [k, columns];
  // columns is 16 or 32. Meanwhile brings rows [fetched_first, fetched_first + fetched_count) of a matrix with as many
  // columns, of any type, into the cache.
  void (*rows_product)(const Matrix& source, int64_t first, int64_t count, int64_t columns, const float* b, float* c,
                       const Matrix& fetched, int64_t fetched_first, int64_t fetched_count);

  // Null where the CPU has no products of bfloat16.
  PairKernels pairs;
};

// The kernels of the widest instruction set that this CPU has, or of the one named ("avx512", "avx2", "generic"), or
// null where this CPU or this build does not have it.
const Kernels* find_kernels(const char* name);

}  // namespace plr_kernels
