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

// Histories whose positions are computed, all or the latest of them, one after the other as rows of a matrix.
struct Histories {
  std::vector<int64_t> first_row{0};  // of each history, and how many rows there are
  std::vector<int64_t> begin;         // positions of each before its first row, which were computed earlier

  void add(int64_t before, int64_t rows) {
    begin.push_back(before);
    first_row.push_back(first_row.back() + rows);
  }
  int64_t count() const { return static_cast<int64_t>(begin.size()); }
  int64_t rows() const { return first_row.back(); }
  int64_t rows(int64_t history) const { return first_row[history + 1] - first_row[history]; }
  int64_t length(int64_t history) const { return begin[history] + rows(history); }
  int64_t longest() const;
};

// What queries read of one history in a layer.
struct KeysValues {
  float* key;  // panels of the transpose: [heads][panels of 32 keys][D][32]
  int64_t panels;
  MutablePanels value;  // [length, heads · head_step]
};

class Layer {
 public:
  Layer(const LayerWeights& weights, int64_t dim, int64_t heads, int64_t ffn_dim);

  // Keys and values of x [histories.rows(), d], of each history, all of whose positions these are.
  std::vector<KeysValues> keys_values(const Kernels& kernels, const Histories& histories, Panels x, Arena& arena) const;
  // Likewise into what is kept of each history, which has room for them.
  void keep(const Kernels& kernels, const Histories& histories, Panels x, const std::vector<KeysValues>& kept,
            Arena& arena) const;

  // All rows of x, in place: each reads its history, under a causal mask up to itself.
  void encode(const Kernels& kernels, const Histories& histories, bool causal, const std::vector<KeysValues>& read,
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
  void step(const Kernels& kernels, const Histories& histories, int64_t streams, const std::vector<KeysValues>& read,
            const Suffix& suffix, MutablePanels x, Arena& arena) const;

 private:
  // The values of x [histories.rows(), d], and its keys into those of each history.
  void project(const Kernels& kernels, const Histories& histories, Panels x, const std::vector<KeysValues>& keys,
               MutablePanels value, Arena& arena) const;
  // Queries of all heads at positions from `begin` on, [rows, heads · head_step], become what they attend to, of one
  // history with `length` positions.
  void attend(const Kernels& kernels, AttendCall& call, int64_t begin, int64_t rows, int64_t length,
              const KeysValues& read, MutablePanels query) const;
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
