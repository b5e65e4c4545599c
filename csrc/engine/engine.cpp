#include "engine.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>

namespace plr_kernels {

namespace {

// Rows of histories that go through the engine together: enough for the products, few enough for the second-level
// cache. No result depends on it.
constexpr int64_t kGroupRows = 512;
constexpr int64_t kGroupStates = 256;  // of streams

// Takes back what was taken from an arena when it goes, whatever ends it.
struct Released {
  Arena& arena;
  ~Released() { arena.release(); }
};

Buffer packed(const Kernels& kernels, const float* rows, int64_t count, int64_t dim) {
  Buffer result(panels_size(count, dim), 0.0f);
  kernels.load_rows({rows, DataType::float32, count, dim, dim}, 0, count, result.data(), count);
  return result;
}

void normalize(float* state, int64_t dim) {
  double squares = 0.0;
  for (int64_t d = 0; d < dim; ++d) squares += static_cast<double>(state[d]) * state[d];
  const double norm = std::max(std::sqrt(squares), 1e-12);
  for (int64_t d = 0; d < dim; ++d) state[d] = static_cast<float>(state[d] / norm);
}

// Their log-softmax, in place.
void normalize_scores(std::vector<double>& scores) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  for (const double score : scores) sum += std::exp(score - largest);
  for (double& score : scores) score -= largest + std::log(sum);
}

}  // namespace

Engine::Engine(const Kernels& kernels, const EngineWeights& weights, const Matrix& table)
    : kernels_(kernels),
      table_(table),
      dim_(weights.dim),
      max_length_(weights.max_length),
      causal_(weights.causal),
      cosine_(weights.cosine),
      position_(packed(kernels, weights.position, weights.max_length, weights.dim)),
      input_norm_(weights.input_norm, weights.dim, weights.input_norm_eps),
      row_work_(static_cast<double>(weights.layers.size()) * static_cast<double>(weights.dim) *
                static_cast<double>(4 * weights.dim + 2 * weights.ffn_dim)),
      streams_(weights.reasoning.streams),
      steps_(weights.reasoning.steps),
      components_(weights.reasoning.components()),
      pooling_(weights.reasoning.pooling),
      fast_state_(weights.reasoning.fast_state),
      mixes_(weights.reasoning.mixes_distributions) {
  for (const LayerWeights& layer : weights.layers) layers_.emplace_back(layer, dim_, weights.heads, weights.ffn_dim);
  const ReasoningWeights& reasoning = weights.reasoning;
  if (streams_ > 0 && steps_ > 0) {
    const int64_t size = panels_size(streams_, dim_);
    step_inputs_ = Buffer(steps_ * size);
    for (int64_t t = 0; t < steps_; ++t) {
      const Buffer one = packed(kernels, reasoning.step_inputs + t * streams_ * dim_, streams_, dim_);
      std::copy_n(one.data(), size, step_inputs_.data() + t * size);
    }
  } else if (streams_ > 0) {
    heads_.emplace(reasoning.heads, Columns::adjacent(dim_), Columns::adjacent(streams_ * dim_));
  }
  if (reasoning.gate != nullptr) {
    gate_.assign(reasoning.gate, reasoning.gate + components_ * dim_);
    gate_bias_.assign(reasoning.gate_bias, reasoning.gate_bias + components_);
  }
}

double Engine::work(int64_t rows, int64_t histories) const {
  return row_work_ * (static_cast<double>(rows) + static_cast<double>(histories * streams_ * steps_));
}

void Engine::states(const Threads& threads, const int64_t* ids, const int64_t* offsets, int64_t histories,
                    float* states, float* log_weights) const {
  for (int64_t i = 0; i < histories; ++i) {
    if (offsets[i + 1] <= offsets[i]) {
      throw std::invalid_argument("offsets must grow: every history needs an item; found " +
                                  std::to_string(offsets[i]) + " and " + std::to_string(offsets[i + 1]) +
                                  " for history " + std::to_string(i));
    }
  }
  for (int64_t i = 0; i < histories; ++i) check_ids(ids, offsets, i);
  run(threads, nullptr, ids, offsets, histories, states, log_weights);
}

void Engine::append(const Threads& threads, const std::vector<Session*>& sessions, const int64_t* ids,
                    const int64_t* offsets, float* states, float* log_weights) const {
  if (!causal_) throw std::invalid_argument("a session needs a causal encoder: items change what came before them here");
  const int64_t count = static_cast<int64_t>(sessions.size());
  for (int64_t i = 0; i < count; ++i) {  // of all, before an id is read: else offsets may lead out of the ids
    const int64_t begin = sessions[i]->length(), items = offsets[i + 1] - offsets[i];
    if (!sessions[i]->belongs_to(layers_)) throw std::invalid_argument("the session is another engine's");
    if (items < 1 || begin + items > max_length_) {
      throw std::invalid_argument("a session of " + std::to_string(begin) + " items takes 1 to " +
                                  std::to_string(max_length_ - begin) + " more (max_length " +
                                  std::to_string(max_length_) + "), found " + std::to_string(items));
    }
  }
  for (int64_t i = 0; i < count; ++i) check_ids(ids, offsets, i);
  std::vector<Session*> sorted = sessions;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    throw std::invalid_argument("sessions must be different ones; found one twice");
  }
  for (int64_t i = 0; i < count; ++i) sessions[i]->reserve(sessions[i]->length() + offsets[i + 1] - offsets[i]);
  run(threads, sessions.data(), ids, offsets, count, states, log_weights);
  for (int64_t i = 0; i < count; ++i) sessions[i]->set_length(sessions[i]->length() + offsets[i + 1] - offsets[i]);
}

void Engine::check_ids(const int64_t* ids, const int64_t* offsets, int64_t history) const {
  for (int64_t j = offsets[history]; j < offsets[history + 1]; ++j) {
    if (ids[j] < 0 || ids[j] >= table_.rows) {
      throw std::invalid_argument("ids must be in [0, V) (V=" + std::to_string(table_.rows) + "), found " +
                                  std::to_string(ids[j]) + " in history " + std::to_string(history));
    }
  }
}

void Engine::run(const Threads& threads, Session* const* sessions, const int64_t* ids, const int64_t* offsets,
                 int64_t histories, float* states, float* log_weights) const {
  // Groups of histories; where there are threads to share them, smaller ones.
  const int64_t group_rows = std::min(kGroupRows, (offsets[histories] - offsets[0]) / threads.count() + 1);
  const int64_t group_histories = std::max<int64_t>(1, kGroupStates / std::max<int64_t>(streams_, 1));
  std::vector<int64_t> first{0};
  int64_t rows = 0;
  for (int64_t i = 0; i < histories; ++i) {
    const int64_t length = std::min(max_length_, offsets[i + 1] - offsets[i]);
    if (i > first.back() && (rows + length > group_rows || i - first.back() >= group_histories)) {
      first.push_back(i);
      rows = 0;
    }
    rows += length;
  }
  if (histories > 0) first.push_back(histories);
  threads.run(static_cast<int64_t>(first.size()) - 1, [&](int64_t group, int) {
    thread_local Arena arena;
    const Released released{arena};
    const int64_t begin = first[group];
    const Output output{states + begin * states_per_row() * dim_,
                        mixes_ ? log_weights + begin * components_ : nullptr};
    run_group(sessions == nullptr ? nullptr : sessions + begin, ids, offsets + begin, first[group + 1] - begin, arena,
              output);
  });
}

void Engine::run_group(Session* const* sessions, const int64_t* ids, const int64_t* offsets, int64_t count,
                       Arena& arena, Output output) const {
  Histories histories;
  for (int64_t i = 0; i < count; ++i) {
    histories.add(sessions == nullptr ? 0 : sessions[i]->length(), std::min(max_length_, offsets[i + 1] - offsets[i]));
  }
  const MutablePanels x = embed(ids, offsets, histories, arena);
  std::vector<std::vector<KeysValues>> read;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    if (sessions == nullptr) {
      read.push_back(layers_[i].keys_values(kernels_, histories, view(x), arena));
    } else {
      read.emplace_back();
      for (int64_t j = 0; j < count; ++j) read.back().push_back(sessions[j]->kept(i));
      layers_[i].keep(kernels_, histories, view(x), read.back(), arena);
    }
    if (i + 1 < layers_.size()) layers_[i].encode(kernels_, histories, causal_, read.back(), x, arena);
  }
  // The last layer for the last positions only: tokens that read the whole history and have no entries of their own.
  const MutablePanels last = arena.panels(count, dim_);
  for (int64_t i = 0; i < count; ++i) {
    copy_row(view(x), histories.first_row[i + 1] - 1, last, i, dim_);
  }
  finish_group(histories, read, last, arena, output);
}

void Engine::finish_group(const Histories& histories, const std::vector<std::vector<KeysValues>>& read,
                          MutablePanels last, Arena& arena, Output output) const {
  const int64_t count = histories.count();
  layers_.back().step(kernels_, histories, 1, read.back(), {}, last, arena);
  float* fast = arena.take(count * dim_);
  kernels_.store_rows(last.data, last.rows, count, dim_, 1.0f, {fast, DataType::float32, dim_}, 0);

  const float* streams = streams_ > 0 ? streams_of(histories, read, fast, arena) : nullptr;
  for (int64_t i = 0; i < count; ++i) {
    const Output one{output.states + i * states_per_row() * dim_,
                     mixes_ ? output.log_weights + i * components_ : nullptr};
    finish(fast + i * dim_, streams == nullptr ? nullptr : streams + i * streams_ * dim_, one);
  }
}

MutablePanels Engine::embed(const int64_t* ids, const int64_t* offsets, const Histories& histories,
                            Arena& arena) const {
  const MutablePanels x = arena.panels(histories.rows(), dim_);
  for (int64_t i = 0; i < histories.count(); ++i) {
    const int64_t rows = histories.rows(i);
    const MutablePanels of_history = from_row(x, histories.first_row[i]);
    for (int64_t j = 0; j < rows; ++j) {
      kernels_.load_rows(table_, ids[offsets[i + 1] - rows + j], 1, of_history.data + j * kPanelColumns, x.rows);
    }
    const Panels position = from_row(Panels{position_.data(), max_length_}, histories.begin[i]);
    input_norm_(kernels_, rows, view(of_history), position, of_history);
  }
  return x;
}

float* Engine::streams_of(const Histories& histories, const std::vector<std::vector<KeysValues>>& read,
                          const float* fast, Arena& arena) const {
  if (steps_ > 0) return reason(histories, read, fast, arena);
  const int64_t count = histories.count();
  const MutablePanels in = arena.panels(count, dim_), out = arena.panels(count, heads_->out());
  kernels_.load_rows({fast, DataType::float32, count, dim_, dim_}, 0, count, in.data, count);
  (*heads_)(kernels_, count, view(in), out);
  float* streams = arena.take(count * streams_ * dim_);
  kernels_.store_rows(out.data, count, count, streams_ * dim_, 1.0f, {streams, DataType::float32, streams_ * dim_}, 0);
  return streams;
}

float* Engine::reason(const Histories& histories, const std::vector<std::vector<KeysValues>>& read,
                      const float* fast, Arena& arena) const {
  const int64_t count = histories.count(), rows = count * streams_;
  const MutablePanels state = arena.panels(rows, dim_);
  for (int64_t row = 0; row < rows; ++row) {
    kernels_.load_rows({fast, DataType::float32, count, dim_, dim_}, row / streams_, 1,
                       state.data + row * kPanelColumns, rows);
  }
  float* pooled = arena.take(rows * dim_);
  float* latest = arena.take(rows * dim_);
  const MutableMatrix target{pooling_ == Pooling::last ? pooled : latest, DataType::float32, dim_};
  for (int64_t row = 0; row < rows; ++row) {
    if (pooling_ == Pooling::mean_with_start) {
      std::copy_n(fast + row / streams_ * dim_, dim_, pooled + row * dim_);
    } else {
      std::fill_n(pooled + row * dim_, dim_, 0.0f);
    }
  }
  std::vector<Layer::Suffix> suffixes(layers_.size());
  for (int64_t t = 0; t < steps_; ++t) {
    const Panels input{step_inputs_.data() + t * panels_size(streams_, dim_), streams_};
    for (int64_t row = 0; row < rows; row += streams_) {
      input_norm_(kernels_, streams_, from_row(view(state), row), input, from_row(state, row));
    }
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      layers_[i].append(kernels_, rows, view(state), suffixes[i], arena);
      layers_[i].step(kernels_, histories, streams_, read[i], suffixes[i], state, arena);
    }
    if (pooling_ == Pooling::last && t + 1 < steps_) continue;
    kernels_.store_rows(state.data, rows, rows, dim_, 1.0f, target, 0);
    if (pooling_ != Pooling::last) {
      for (int64_t i = 0; i < rows * dim_; ++i) pooled[i] += latest[i];
    }
  }
  if (pooling_ != Pooling::last) {
    const float states = static_cast<float>(steps_ + (pooling_ == Pooling::mean_with_start));
    for (int64_t i = 0; i < rows * dim_; ++i) pooled[i] /= states;
  }
  return pooled;
}

void Engine::finish(const float* fast, const float* streams, Output output) const {
  if (streams == nullptr) {
    std::copy_n(fast, dim_, output.states);
    if (cosine_) normalize(output.states, dim_);
    return;
  }
  std::vector<double> weights(components_, 0.0);
  if (!gate_.empty()) {
    for (int64_t c = 0; c < components_; ++c) {
      weights[c] = gate_bias_[c];
      for (int64_t d = 0; d < dim_; ++d) weights[c] += static_cast<double>(gate_[c * dim_ + d]) * fast[d];
    }
  }
  normalize_scores(weights);
  const auto component = [&](int64_t c, int64_t d) {
    if (c == streams_) return fast[d];
    return fast_state_ == FastState::added ? streams[c * dim_ + d] + fast[d] : streams[c * dim_ + d];
  };
  if (mixes_) {
    for (int64_t c = 0; c < components_; ++c) {
      for (int64_t d = 0; d < dim_; ++d) output.states[c * dim_ + d] = component(c, d);
      if (cosine_) normalize(output.states + c * dim_, dim_);
      output.log_weights[c] = static_cast<float>(weights[c]);
    }
    return;
  }
  for (double& weight : weights) weight = std::exp(weight);
  for (int64_t d = 0; d < dim_; ++d) {
    double sum = fast_state_ == FastState::ranking ? fast[d] : 0.0;
    for (int64_t c = 0; c < components_; ++c) sum += weights[c] * component(c, d);
    output.states[d] = static_cast<float>(sum);
  }
  if (cosine_) normalize(output.states, dim_);
}

}  // namespace plr_kernels
