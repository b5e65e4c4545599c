// From histories to what ranks the items for them, in one call: encoder, reasoning, gate and pooling.
//
// A history's numbers are computed from its own rows by sums whose order the sizes of the model alone decide: they are
// the same to the bit alone or among others, in any order and on any number of threads.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../buffer.h"
#include "../kernels.h"
#include "../matrix.h"
#include "../threads.h"
#include "layer.h"
#include "linear.h"
#include "session.h"

namespace plr_kernels {

enum class Pooling { mean, last, mean_with_start };
enum class FastState { none, added, component, ranking };

// How streams reason; their number is 0 for a model that ranks by h_0.
struct ReasoningWeights {
  int64_t streams = 0;
  int64_t steps = 0;  // 0: stream m is a linear map of h_0
  const float* step_inputs = nullptr;  // [steps, streams, d], what is added to the state before
  WeightAndBias heads{};               // [streams · d, d], without steps
  Pooling pooling = Pooling::mean;
  FastState fast_state = FastState::none;
  bool mixes_distributions = false;
  const float* gate = nullptr;  // [components, d], null for equal weights
  const float* gate_bias = nullptr;

  int64_t components() const { return streams + (fast_state == FastState::component); }
};

struct EngineWeights {
  int64_t dim, heads, ffn_dim, max_length;
  bool causal;
  bool cosine;  // whether what ranks are unit vectors
  const float* position;  // [max_length, d]
  WeightAndBias input_norm;
  float input_norm_eps;
  std::vector<LayerWeights> layers;
  ReasoningWeights reasoning;
};

class Engine {
 public:
  // Packs the weights, which are not needed any more; the table [V, d], float32, is read where it is.
  Engine(const Kernels& kernels, const EngineWeights& weights, const Matrix& table);

  int64_t states_per_row() const { return mixes_ ? components_ : 1; }

  // History i is ids[offsets[i]] to ids[offsets[i + 1] - 1], of which the last max_length count. states [histories,
  // states_per_row, d]; log_weights [histories, states_per_row], null where there are none.
  void states(const Threads& threads, const int64_t* ids, const int64_t* offsets, int64_t histories, float* states,
              float* log_weights) const;

  // A history without items yet, whose keys and values are kept.
  Session new_session() const { return Session(layers_); }

  // Appends items to different sessions of this engine, ids[offsets[i]] to ids[offsets[i + 1] - 1] to session i: states
  // and log_weights are then those that `states` makes of their whole histories, to the bit. Causal encoders only, and
  // max_length items at most. Where anything is refused, or memory ends, nothing has been appended to any of them.
  void append(const Threads& threads, const std::vector<Session*>& sessions, const int64_t* ids, const int64_t* offsets,
              float* states, float* log_weights) const;

  // Multiply-adds of a call, roughly.
  double work(int64_t rows, int64_t histories) const;

 private:
  struct Output {
    float* states;
    float* log_weights;
  };
  void check_ids(const int64_t* ids, const int64_t* offsets, int64_t history) const;
  // Of histories, or of what is appended to sessions; sessions are null for the former, and keep their lengths.
  void run(const Threads& threads, Session* const* sessions, const int64_t* ids, const int64_t* offsets,
           int64_t histories, float* states, float* log_weights) const;
  void run_group(Session* const* sessions, const int64_t* ids, const int64_t* offsets, int64_t histories, Arena& arena,
                 Output output) const;
  // From the last layer's last positions, [histories, d], on.
  void finish_group(const Histories& histories, const std::vector<std::vector<KeysValues>>& read, MutablePanels last,
                    Arena& arena, Output output) const;
  MutablePanels embed(const int64_t* ids, const int64_t* offsets, const Histories& histories, Arena& arena) const;
  // What is pooled of the streams, [histories, streams, d].
  float* streams_of(const Histories& histories, const std::vector<std::vector<KeysValues>>& read, const float* fast,
                    Arena& arena) const;
  float* reason(const Histories& histories, const std::vector<std::vector<KeysValues>>& read, const float* fast,
                Arena& arena) const;
  void finish(const float* fast, const float* streams, Output output) const;

  const Kernels& kernels_;
  Matrix table_;
  int64_t dim_, max_length_;
  bool causal_, cosine_;
  Buffer position_;  // panels [max_length, d]
  Norm input_norm_;
  std::vector<Layer> layers_;
  double row_work_;

  int64_t streams_, steps_, components_;
  Pooling pooling_;
  FastState fast_state_;
  bool mixes_;
  Buffer step_inputs_;  // panels [streams, d] of each step
  std::optional<Linear> heads_;
  std::vector<float> gate_, gate_bias_;  // [components, d], or empty
};

}  // namespace plr_kernels
