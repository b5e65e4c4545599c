// The inner loops, compiled once for each instruction set and chosen when the process runs.
//
// Only these functions are compiled for more than the baseline instruction set. They allocate nothing and start no
// threads. Matrices are in panels (panels.h) where nothing else is said; `panels_rows` is the number of rows that one
// panel has room for.
//
// Scores are logits times log2(e), so that exp2 gives the exponentials. They are stored items first,
// [items, states], so that neighbouring states fill a Vector and sums over items need no shuffling.
#pragma once

#include <cstdint>

#include "attention.h"
#include "encoder.h"
#include "matrix.h"
#include "panels.h"
#include "quantized.h"

namespace plr_kernels {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

constexpr int64_t kMostRanked = 128;  // numbers that `rank` takes
constexpr int64_t kAnchorNumbers = 3;  // of a stream: at, weight and taken (mix_streams)

// Scores [items, states] of a block, in panels with room for `rows` items.
struct Scores {
  float* data;
  int64_t rows;
  int64_t items;
  int64_t states;
};

// Running statistics [states] over some of the items; see pairwise_kl.cpp. With m the largest score, t = s − m, r the
// difference of t from its mean over the group, and argmax the first item with s = m:
struct DivergenceStatistics {
  float* maximum;      // m
  float* sum_of_rest;  // Σ exp2(t) over all items but the argmax
  float* argmax_r;     // r of the argmax
  float* deviation;    // Σ exp2(t) (r − r of the argmax)
  float* argmax;       // its number within the block; merge_divergence does not touch it
};

// Products of bfloat16, summed in float32. The cells of their operands' panels are pairs of numbers that are neighbours
// along the inner dimension, so that k counts pairs; results are panels of float32.
struct PairKernels {
  // As those of Kernels. In gemm_unpacked, a row of `a` and a row of b are cells; `prefetched` has two columns per
  // cell.
  void (*gemm)(int64_t m, int64_t n, int64_t k, Panels a, Panels b, float scale, bool accumulate, MutablePanels c);
  void (*gemm_transposed)(int64_t m, int64_t n, int64_t k, Panels a, Panels b, MutablePanels c);
  void (*gemm_unpacked)(const Matrix& a, int64_t columns, const float* b, float* c, const Matrix& prefetched,
                        int64_t first_prefetched, int64_t prefetched_count);

  // A row of a matrix, divided by its norm where it has one, rounded to bfloat16.
  void (*round_row)(const Matrix& source, int64_t row, uint16_t* target);

  // A row of bfloat16 to row i of panels [rows, columns / 2], padded with zero.
  void (*pair_columns)(const uint16_t* row, int64_t columns, int64_t i, float* panels, int64_t panels_rows);

  // Two rows of bfloat16, null for one of zeros, to row i of panels [rows / 2, columns].
  void (*pair_rows)(const uint16_t* row, const uint16_t* next_row, int64_t columns, int64_t i, float* panels,
                    int64_t panels_rows);

  // Scores [items, states], rounded to bfloat16, to panels [items, states / 2] and, where not null, [items / 2,
  // states].
  void (*pair_scores)(Scores scores, MutablePanels by_state, MutablePanels by_item);
};

// Products of float32 numbers, each split into the sum of three bfloat16: its parts of 8 bits, the leading one, the
// middle one and the last. Of the nine products of parts the three that are below the rounding of float32 are left out.
//
// A cell of an operand's panels is a pair of parts of numbers that are neighbours along the inner dimension. Of every
// 32 numbers along it there are 16 cells of leading parts, then 16 of middle and 16 of last ones; what is missing of 32
// is filled up with zeros. Results are panels of float32.
struct PartKernels {
  // As those of Kernels; k counts cells.
  void (*gemm)(int64_t m, int64_t n, int64_t k, Panels a, Panels b, float scale, bool accumulate, MutablePanels c);
  void (*gemm_transposed)(int64_t m, int64_t n, int64_t k, Panels a, Panels b, MutablePanels c);

  // The largest magnitude of the numbers in rows [first, first + count) of a matrix as they lie in memory; infinite or
  // NaN where one is not finite.
  float (*largest)(const Matrix& source, int64_t first, int64_t count);

  // Rows i, an even number, and i + 1 of float32, to panels [rows, cells of columns] and [cells of rows, columns], each
  // where not null. A null row is one of zeros, in the latter alone.
  void (*split_rows)(const float* row, const float* next_row, int64_t columns, int64_t i, MutablePanels along_columns,
                     MutablePanels along_rows);

  // Scores [items, states] times kPartsScale, to panels [items, cells of states] and, where not null, [cells of items,
  // states].
  void (*split_scores)(Scores scores, MutablePanels by_state, MutablePanels by_item);
};

// Of gradients, so that their last parts are not so small as to be taken for zero before the gradients are themselves.
constexpr float kPartsScale = 1 << 24;

struct Kernels {
  const char* name;

  // Rows [first, first + count) of a matrix to panels of float32, divided by their norms where the matrix has them.
  void (*load_rows)(const Matrix& source, int64_t first, int64_t count, float* panels, int64_t panels_rows);

  // The first `count` rows of panels, times `scale`, to rows [first, first + count) of a matrix with `columns` columns.
  void (*store_rows)(const float* panels, int64_t panels_rows, int64_t count, int64_t columns, float scale,
                     const MutableMatrix& target, int64_t first);

  // The same, added to what the rows hold; a matrix of float32.
  void (*add_rows)(const float* panels, int64_t panels_rows, int64_t count, int64_t columns, float scale,
                   const MutableMatrix& target, int64_t first);

  // The Euclidean norms of rows [first, first + count) of a matrix, as they lie in memory.
  void (*row_norms)(const Matrix& source, int64_t first, int64_t count, float* norms);

  // row -= (row · unit) unit, for a row of panels whose numbers `kPanelColumns` apart are `step` numbers apart.
  void (*remove_component)(float* row, int64_t step, const float* unit, int64_t columns);

  // c [m, n] = a [m, k] b [k, n] · scale, or += where `accumulate`; n a multiple of 16.
  void (*gemm)(int64_t m, int64_t n, int64_t k, Panels a, Panels b, float scale, bool accumulate, MutablePanels c);

  // c [m, n] += aᵀ b with a [k, m] and b [k, n]; m a multiple of 32, n of 16.
  void (*gemm_transposed)(int64_t m, int64_t n, int64_t k, Panels a, Panels b, MutablePanels c);

  // Online softmax: updates per state, over the items seen so far, the largest score m and Σ exp2(s − m).
  void (*update_softmax)(Scores scores, float* maximum, float* sum);

  // Merges the statistics of other items into those in `maximum` and `sum`.
  void (*merge_softmax)(int64_t states, const float* other_maximum, const float* other_sum, float* maximum, float* sum);

  // scores -> grad_scale · exp2(s − m) · inverse_sum, the latter three per state: the gradient w.r.t. the logits of
  // grad_scale · ln Σ exp2(s).
  void (*softmax_gradient)(Scores scores, const float* maximum, const float* inverse_sum, const float* grad_scale);

  // Statistics of every state over the items of one block, whose scores are overwritten. The states of a group are
  // `group` consecutive Vectors, one group per lane; the number of states is a multiple of 16 · group. `memory` has
  // room for 2 · items Vectors.
  void (*divergence_statistics)(Scores scores, int64_t group, float* memory, const DivergenceStatistics& result);

  // Merges the statistics of other, later items into those in `result`.
  void (*merge_divergence)(int64_t states, int64_t group, const DivergenceStatistics& other,
                           const DivergenceStatistics& result);

  // scores -> p (r − mean_deviation) ln 2, plus p − mean over the group of p unless `detach_reference`, with
  // t = s − m, p = exp2(t) · inverse_sum and r = t − mean over the group of t. sums [states] = that, summed over the
  // items. `memory` has room for 4 · items Vectors.
  void (*divergence_gradient)(Scores scores, int64_t group, bool detach_reference, float* memory, const float* maximum,
                              const float* inverse_sum, const float* mean_deviation, float* sums);

  // result [i * step] = scale · row ids[i] of a matrix times a vector, which has zeros up to a multiple of 16, for `count`
  // ids; 0 for a negative one.
  void (*gathered_dots)(const Matrix& items, const int64_t* ids, int64_t count, const float* vector, float scale,
                        float* result, int64_t step);

  // sum += Σ weights [i * step] · row ids[i] of a matrix, without negative ids; sum has room for a multiple of 16.
  void (*gathered_sum)(const Matrix& items, const int64_t* ids, int64_t count, const float* weights, int64_t step,
                       float* sum);

  // scores -> scale · σ(s ln 2), and per state softplus = Σ log2(1 + exp2(s)); scale [states].
  void (*sigmoid_terms)(Scores scores, const float* scale, float* softplus);

  // Adds exp2(s − bound) to `state_sum` [states] and, where the state's `mask` [states] is 1, not 0, to `item_sum`
  // [items, 16], whose 16 lanes are still to be added up.
  void (*update_two_way_sums)(Scores scores, float bound, const float* mask, float* state_sum, float* item_sum);

  // scores -> (softmax over items + softmax over states) · mask. Where `item_maximum` is null, each is the same as the
  // state's.
  void (*two_way_softmax_gradient)(Scores scores, const float* state_maximum, const float* state_inverse_sum,
                                   const float* item_maximum, const float* item_inverse_sum, const float* mask);

  // stream_attention of the batch entry and head with the number b · H + h: output [B, H, M, D] and lse [B, H, M], log2
  // of every softmax' sum, null where not wanted. `memory` has room for an AttentionWorkspace.
  void (*attention_forward)(const AttentionCall& call, int64_t number, float* memory, void* output, float* lse);
  void (*attention_backward)(const AttentionCall& call, int64_t number, float* memory, const Strided& output_gradient,
                             const AttentionGradients& wanted);

  // Ascending positions 16 · v + lane of the scores in `vectors` Vectors, `step` numbers apart, that are not at most
  // the bound of their lane, in bounds [16]: the larger ones and NaN. `found` has room for all. Returns their number.
  int64_t (*find_above)(const float* scores, int64_t step, int64_t vectors, const float* bounds, uint32_t* found);

  // The k largest of `count` distinct keys to the front, largest first; k <= count <= kMostRanked.
  void (*rank)(int64_t* keys, int64_t count, int64_t k);

  // Adds to greater and less [16] how many scores of a lane are above and below the lane's `bar` [16], and makes
  // not_finite [16] NaN where a score is not finite. The scores are `vectors` Vectors, `step` numbers apart; counts are
  // exact up to 2**24.
  void (*count_against)(const float* scores, int64_t step, int64_t vectors, const float* bar, float* greater,
                        float* less, float* not_finite);

  // Online softmax per lane: updates the largest score and Σ exp2((score − maximum) · scale), [16] each. Before the first
  // score they are the lowest finite number and 0. The scores are `vectors` Vectors, `step` numbers apart.
  void (*update_lane_softmax)(const float* scores, int64_t step, int64_t vectors, float scale, float* maximum,
                              float* sum);

  // result [vectors, 16] = Σ over the streams of weight · (exp2((score − at) · scale) − taken), the power being at most
  // 2**100, from anchors [streams, 3, 16]: at, weight and taken, 0 or 1. A stream's scores are `vectors` Vectors, `step`
  // numbers apart. Makes not_finite [16] NaN where no score − at is above −∞, or one is +∞; the result is NaN where one
  // is NaN.
  void (*mix_streams)(const float* const* streams_scores, int64_t streams, int64_t step, int64_t vectors, float scale,
                      const float* anchors, float* result, float* not_finite);

  // result [j * result_step + i] = row first + i of a matrix, which has at least 16 columns, times vector j, for `count`
  // rows and `vectors_count` vectors, `vectors_step` numbers apart. A result depends on its row, its vector and on
  // whether there is more than one vector, not on where they stand.
  void (*gemv)(const Matrix& matrix, int64_t first, int64_t count, const float* vectors, int64_t vectors_step,
               int64_t vectors_count, float* result, int64_t result_step);

  // upper [s * upper_step + i]: the bound of the score of item i of `count` groups from group `first` on, for state s
  // (quantized_items.h).
  void (*quantized_bounds)(const QuantizedGroups& groups, int64_t first, int64_t count, const QuantizedState* states,
                           int64_t states_count, float* upper, int64_t upper_step);

  // For how many states at once the k best items of a table of so many numbers are found faster by these bounds than by
  // scores; quantized_bounds is null where never.
  int64_t (*most_quantized_states)(int64_t numbers, int64_t k);

  // c [a.rows, columns] = a b for a float32 matrix as it lies in memory and the panel b [k, columns]; columns is 16 or
  // 32. Meanwhile prefetches rows [first_prefetched, … + prefetched_count) of a matrix with as many columns, of any
  // type.
  void (*gemm_unpacked)(const Matrix& a, int64_t columns, const float* b, float* c, const Matrix& prefetched,
                        int64_t first_prefetched, int64_t prefetched_count);

  // Of an encoder's layers (encoder.h). Every row of c is `row`; both have `columns` columns, a multiple of 16.
  void (*fill_rows)(const float* row, int64_t columns, int64_t rows, MutablePanels c);

  // c = LayerNorm(a + b) · weight + bias. Columns beyond the last, up to a multiple of 16, are zeros in all.
  void (*normalize_rows)(int64_t rows, int64_t columns, Panels a, Panels b, const float* weight, const float* bias,
                         float eps, MutablePanels c);

  // x -> x Φ(x).
  void (*gelu_rows)(int64_t rows, int64_t columns, MutablePanels x);

  void (*attend)(const AttendCall& call);

  // Null where the CPU has no products of bfloat16.
  PairKernels pairs;

  // Null but where these are asked for.
  PartKernels parts;
};

// The kernels of the instruction set with this name ("avx512_amx_parts": avx512_amx with products of parts), the widest
// that this CPU has for "auto", or null where this CPU or this build does not have it.
const Kernels* find_kernels(const char* name);

}  // namespace plr_kernels
