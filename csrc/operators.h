// The operators' two passes on raw memory; the Python side checks shapes and types and allocates what they write.
#pragma once

#include <cstdint>

#include "attention.h"
#include "exclusions.h"
#include "kernels.h"
#include "matrix.h"
#include "threads.h"

namespace plr_kernels {

// What every operator needs besides its arguments.
struct Context {
  const Kernels& kernels;
  const Threads& threads;
  bool rounds_float32 = false;  // whether float32 numbers may be rounded to bfloat16 before they are multiplied
};

// states [batch · group, dim], group >= 2. Kept of every state for the backward pass: statistics [5, batch · group],
// the columns of DivergenceColumns (pairwise_kl.cpp), and argmax [batch · group], the item with the largest score.
// Returns the loss.
double pairwise_kl_forward(const Context& context, const Matrix& states, int64_t group, const Matrix& items,
                           double temperature, float* statistics, int64_t* argmax);
void pairwise_kl_backward(const Context& context, const Matrix& states, int64_t group, const Matrix& items,
                          double temperature, bool detach_reference, const float* statistics, const int64_t* argmax,
                          double loss_gradient, const MutableMatrix* states_gradient,
                          const MutableMatrix* items_gradient);

// The loss and its gradients in float32, null where not wanted. Takes memory for the scores of `chunk_states` states, or of
// 16 groups, with all items.
double pairwise_kl_gradients(const Context& context, const Matrix& states, int64_t group, const Matrix& items,
                             double temperature, bool detach_reference, int64_t chunk_states,
                             const MutableMatrix* states_gradient, const MutableMatrix* items_gradient);

// targets and losses [rows]; statistics [3, rows]: the columns of TargetStatistics (target_softmax.h). Rows with the
// target `ignore_index` are not computed: their loss is 0.
void linear_cross_entropy_forward(const Context& context, const Matrix& states, const Matrix& items,
                                  const int64_t* targets, double temperature, int64_t ignore_index, float* losses,
                                  float* statistics);
void linear_cross_entropy_backward(const Context& context, const Matrix& states, const Matrix& items,
                                   const int64_t* targets, double temperature, int64_t ignore_index,
                                   const float* statistics, const float* losses_gradient,
                                   const MutableMatrix* states_gradient, const MutableMatrix* items_gradient);

// Gradients in float32, null where not wanted, of a sum or mean of losses over the rows that count: linear_cross_entropy of
// states [rows, dim] where log_weights is null and streams 1, else mixture_cross_entropy of states [rows · streams, dim];
// log_weights and their gradient [rows, streams]. losses: the cross-entropy of every state, 0 where its row does not
// count. Takes memory for the scores of `chunk_states` states, or of one row's, with all items.
void cross_entropy_gradients(const Context& context, const Matrix& states, const Matrix& items, const int64_t* targets,
                             int64_t streams, const float* log_weights, double temperature, int64_t ignore_index,
                             bool mean, int64_t chunk_states, float* losses, const MutableMatrix* states_gradient,
                             float* weights_gradient, const MutableMatrix* items_gradient);

// Two views of each history, in each of them a mixture of `streams` states.
struct ConsistentRows {
  const int64_t* targets;    // [histories]
  const int64_t* drawn;      // [histories]: which stream of each is drawn together
  const float* log_weights;  // [histories, 2, streams]
  int64_t streams;
  int64_t ignore_index;
};

// Gradients, as above, of consistent_mixture_cross_entropy of states [histories · 2 · streams, dim], at least one history
// and a weight that is not 0. losses: the cross-entropy of every state, 0 where its history does not count. Returns the
// divergence. Takes memory for the scores of `chunk_states` states, or of 16 histories', with all items.
double consistent_cross_entropy_gradients(const Context& context, const Matrix& states, const Matrix& items,
                                          const ConsistentRows& rows, double temperature, double weight,
                                          int64_t chunk_states, float* losses, const MutableMatrix* states_gradient,
                                          float* weights_gradient, const MutableMatrix* items_gradient);

// Lists of items: ids [count], one list for all rows, or [rows, count]; -1 fills a list up. log_q is as ids, or null.
struct CandidateLists {
  const int64_t* ids;
  int64_t count;
  bool shared;
  const float* log_q;
};

// How a state, its target and its candidates become a loss: cross-entropy over them, or a sigmoid for each.
struct CandidateLoss {
  bool softmax;
  double positive_power;  // of the target's sigmoid
  double temperature;
  int64_t ignore_index;
};

// targets and losses [rows]. Kept for the backward pass: the loss' derivatives w.r.t. the logits of the candidates,
// weights [round_up(rows, 32) · count] (candidate_cross_entropy.cpp), and of the target, target_weights [rows].
void candidate_cross_entropy_forward(const Context& context, const Matrix& states, const Matrix& items,
                                     const int64_t* targets, const CandidateLists& candidates,
                                     const CandidateLoss& loss, float* losses, float* weights, float* target_weights);
void candidate_cross_entropy_backward(const Context& context, const Matrix& states, const Matrix& items,
                                      const int64_t* targets, const CandidateLists& candidates,
                                      const CandidateLoss& loss, const float* weights, const float* target_weights,
                                      const float* losses_gradient, const MutableMatrix* states_gradient,
                                      const MutableMatrix* items_gradient);

// A view [groups · batch, dim], of whose rows only the directions count; norms below the floor count as the floor.
struct View {
  Matrix vectors;
  float norm_floor;
};

// Labels [groups · batch, columns] of the rows of both views: rows of a group that have one in common, in the same
// column, are no negatives of each other.
struct Labels {
  const int64_t* data;
  int64_t columns;  // 0 where there are none
};

// statistics [2, 3, groups · batch]: of every row of view1 over those of view2, and of every row of view2 over those of
// view1, the columns of TargetStatistics (target_softmax.h); the target is the positive. Returns the loss.
double info_nce_forward(const Context& context, const View& view1, const View& view2, const Labels& labels,
                        int64_t groups, double temperature, float* statistics);
void info_nce_backward(const Context& context, const View& view1, const View& view2, const Labels& labels,
                       int64_t groups, double temperature, const float* statistics, double loss_gradient,
                       const MutableMatrix* view1_gradient, const MutableMatrix* view2_gradient);

// output [B, H, M, D] in the type of the inputs; lse [B, H, M], log2 of the sum of every softmax, null where not
// wanted.
void stream_attention_forward(const Context& context, const AttentionCall& call, void* output, float* lse);
void stream_attention_backward(const Context& context, const AttentionCall& call, const Strided& output_gradient,
                               AttentionGradients wanted);

// scores and ids [states.rows, k], best first, ties to the smaller id; -inf and -1 where there are fewer candidates.
void top_items(const Context& context, const Matrix& states, const Matrix& items, int64_t k,
               const ExcludedIds& excluded, float* scores, int64_t* ids);

// greater and equal [states.rows]; -1 in both where a score is not finite.
void target_rank(const Context& context, const Matrix& states, const Matrix& items, const int64_t* targets,
                 const ExcludedIds& excluded, int64_t* greater, int64_t* equal);

// Mixtures: states [rows · streams, dim], log_weights [rows, streams].
void target_mixture_rank(const Context& context, const Matrix& states, const float* log_weights, int64_t streams,
                         const Matrix& items, const int64_t* targets, double temperature, const ExcludedIds& excluded,
                         int64_t* greater, int64_t* equal);

// As top_items. Returns how many rows took a second sweep of the items.
int64_t top_mixture_items(const Context& context, const Matrix& states, const float* log_weights, int64_t streams,
                          const Matrix& items, int64_t k, double temperature, const ExcludedIds& excluded,
                          float* scores, int64_t* ids);

}  // namespace plr_kernels
