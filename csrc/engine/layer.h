// One post-norm Transformer layer: plr/models/layers/transformer.py.
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels.h"
#include "arena.h"
#include "linear.h"

namespace plr_kernels {

struct LayerWeights {
  WeightAndBias query, key_value, attention_output, attention_norm, ffn_in, ffn_out, ffn_norm;
  float attention_norm_eps, ffn_norm_eps;
};

// Histories one after the other: their rows in a matrix, and their keys' panels in a layer's keys.
struct Histories {
  std::vector<int64_t> first_row;  // of each history, and how many rows there are
  std::vector<int64_t> first_key_panel;

  int64_t count() const { return static_cast<int64_t>(first_row.size()) - 1; }
  int64_t rows() const { return first_row.back(); }
  int64_t length(int64_t history) const { return first_row[history + 1] - first_row[history]; }
  int64_t longest() const;
};

// What queries read of a layer. Keys are panels of their transpose, each history's [heads][panels of 32 keys][D][32].
struct KeysValues {
  float* key;
  MutablePanels value;  // [rows, heads · head_step]
};

class Layer {
 public:
  Layer(const LayerWeights& weights, int64_t dim, int64_t heads, int64_t ffn_dim);

  // Keys and values of x [histories.rows(), d].
  KeysValues keys_values(const Kernels& kernels, const Histories& histories, Panels x, Arena& arena) const;

  // All positions of x, in place.
  void encode(const Kernels& kernels, const Histories& histories, bool causal, const KeysValues& read, MutablePanels x,
              Arena& arena) const;

  // Of one history, the keys and values of positions from `begin` on, x [rows, d], into what is kept of it: with
  // room for `room` positions, a multiple of 32.
  void keep(const Kernels& kernels, int64_t begin, int64_t rows, int64_t room, Panels x, const KeysValues& kept,
            Arena& arena) const;
  // These positions, in place, each reading what is kept up to itself: what `encode` makes of them under a causal mask.
  void extend(const Kernels& kernels, int64_t begin, int64_t rows, int64_t room, const KeysValues& kept,
              MutablePanels x, Arena& arena) const;
  int64_t heads() const { return heads_; }
  int64_t keys_size(int64_t room) const { return room * heads_ * head_dim_; }
  int64_t values_size(int64_t room) const { return panels_size(room, value_.out()); }

  // Keys and values of the tokens x [rows, d] of streams, both [rows, heads · head_step].
  struct Suffix {
    std::vector<MutablePanels> key, value;  // of each step
  };
  void append(const Kernels& kernels, int64_t rows, Panels x, Suffix& suffix, Arena& arena) const;

  // `streams` tokens a history, x [histories · streams, d], in place: each reads its history and its own suffix.
  void step(const Kernels& kernels, const Histories& histories, int64_t streams, const KeysValues& read,
            const Suffix& suffix, MutablePanels x, Arena& arena) const;

 private:
  // Queries of all heads at positions from `begin` on, [rows, heads · head_step], become what they attend to; of one
  // history with `length` positions, whose heads' keys are `panels` panels apart.
  void attend(const Kernels& kernels, AttendCall& call, int64_t begin, int64_t rows, int64_t length, const float* key,
              int64_t panels, Panels value, MutablePanels query) const;
  // x [rows, d] -> norm(y + ffn(y)) with y = norm(x + attention_output(attended)), in place.
  void sublayers(const Kernels& kernels, int64_t rows, Panels attended, MutablePanels x, Arena& arena) const;
  Panels of_head(Panels matrix, int64_t head) const;
  MutablePanels of_head(MutablePanels matrix, int64_t head) const;

  int64_t dim_;
  int64_t heads_;
  int64_t head_dim_;
  Linear query_, key_, value_, attention_output_;
  Norm attention_norm_;
  Linear ffn_in_, ffn_out_;
  Norm ffn_norm_;
};

}  // namespace plr_kernels
