// The mask of dropout, the same on every backend (plr_kernels/stream_attention/keep_mask.py): an entry is kept where
// its random word is not below the threshold.
#pragma once

#include <cstdint>

#include "../../attention.h"
#include "../common.h"
#include "rows.h"

namespace plr_kernels {
namespace {

// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011) for 16 counters; words[lane][4].
inline void philox(uint32_t (&counter)[4][kLanes], uint64_t seed, uint32_t (&words)[kLanes][4]) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t product0 = uint64_t{0xD2511F53} * counter[0][lane];
      const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2][lane];
      counter[0][lane] = static_cast<uint32_t>(product1 >> 32) ^ counter[1][lane] ^ key0;
      counter[1][lane] = static_cast<uint32_t>(product1);
      counter[2][lane] = static_cast<uint32_t>(product0 >> 32) ^ counter[3][lane] ^ key1;
      counter[3][lane] = static_cast<uint32_t>(product0);
    }
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int word = 0; word < 4; ++word) words[lane][word] = counter[word][lane];
  }
}

// The random words of all entries that a block sees, laid out as their weights [Q, row_size]. The counter of four of
// them: entry / 4, row b · H · M + h · M + m (64 bits), 0 for the prefix and 1 for the suffix.
inline void draw_words(const AttentionCall& call, const QueryBlock& block, uint32_t* words, int64_t row_size) {
  uint32_t counter[4][kLanes] = {};
  uint32_t drawn[kLanes][4];
  uint32_t* targets[kLanes];
  int waiting = 0;
  const auto draw = [&] {
    philox(counter, call.dropout->seed, drawn);
    for (int i = 0; i < waiting; ++i) __builtin_memcpy(targets[i], drawn[i], sizeof(drawn[i]));
    waiting = 0;
  };
  for (int64_t m = 0; m < block.count; ++m) {
    const uint64_t row = static_cast<uint64_t>(block.first_row(call) + m);
    const int64_t starts[2] = {0, round_up(block.length, kLanes)};
    const int64_t sizes[2] = {block.length_of(call, m), call.suffix};
    for (uint32_t part = 0; part < 2; ++part) {
      for (int64_t entry = 0; entry < sizes[part]; entry += 4) {
        counter[0][waiting] = static_cast<uint32_t>(entry / 4);
        counter[1][waiting] = static_cast<uint32_t>(row);
        counter[2][waiting] = static_cast<uint32_t>(row >> 32);
        counter[3][waiting] = part;
        targets[waiting] = words + m * row_size + starts[part] + entry;
        if (++waiting == kLanes) draw();
      }
    }
  }
  if (waiting > 0) draw();
}

// `values` times `factor` where dropout keeps the entry, else times zero, which hides neither NaN nor infinity: as in
// the reference.
inline Vector dropped(const Dropout& dropout, Vector values, const uint32_t* words, Vector factor) {
  if (dropout.threshold == 0) return values * factor;
  return values * where_above(words, static_cast<uint32_t>(dropout.threshold - 1), factor);
}

}  // namespace
}  // namespace plr_kernels
