// What the kernels of an encoder's layers are given.
#pragma once

#include <cstdint>

#include "panels.h"

namespace plr_kernels {

constexpr int64_t kQueryRows = 16;  // most queries that `attend` takes

// Numbers from one head's columns to the next one's: whole panels, or half a panel.
constexpr int64_t head_step(int64_t dim) { return dim <= kLanes ? kLanes : round_up(dim, kPanelColumns); }

// Queries of one head, softmax(query keyᵀ · scale) value over a prefix and each query's own entries.
struct AttendCall {
  int64_t rows;  // queries, at most kQueryRows
  int64_t dim;   // D
  float scale;   // with log2(e) in it
  Panels query;  // of the head: [rows, head_step]

  // The prefix: keys as panels of their transpose, [keys / 32][D][32], and values [keys, head_step].
  int64_t keys;  // that the last query may read
  bool causal;   // whether each query before reads one key less
  const float* key;
  Panels value;

  // Query i's own entries: rows i of `suffix` matrices of keys and values.
  int64_t suffix;
  const Panels* suffix_key;
  const Panels* suffix_value;

  float* memory;  // attend_memory(keys, suffix) numbers
  MutablePanels output;
};

constexpr int64_t attend_memory(int64_t keys, int64_t suffix) {
  return panels_size(kQueryRows, keys) + kQueryRows * round_up(suffix, kLanes);
}

}  // namespace plr_kernels
