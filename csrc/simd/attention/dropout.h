// The mask of dropout, the same on every backend (plr_kernels/stream_attention/keep_mask.py): an entry is kept where
// its random word is not below the threshold.
#pragma once

#include <cstdint>

#include "../../attention.h"
#include "../common.h"
#include "rows.h"

namespace plr_kernels {
namespace {

// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011): each lane's counter of four words becomes four random words.
inline void philox(Words (&counter)[4], uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    Words high0, low0, high1, low1;
    multiply_words(counter[0], 0xD2511F53, high0, low0);
    multiply_words(counter[2], 0xCD9E8D57, high1, low1);
    counter[0] = high1 ^ counter[1] ^ broadcast_word(key0);
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ broadcast_word(key1);
    counter[3] = low0;
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
}

// The random words of all entries that a block sees, laid out as their weights [Q, row_size]. The counter of four of
// them: entry / 4, row b · H · M + h · M + m (64 bits), 0 for the prefix and 1 for the suffix.
inline void draw_words(const AttentionCall& call, const QueryBlock& block, uint32_t* words, int64_t row_size) {
  uint32_t counter[4][kLanes] = {};
  uint32_t* targets[kLanes];
  int waiting = 0;
  const auto draw = [&] {
    Words drawn[4];
    for (int word = 0; word < 4; ++word) drawn[word] = load_words(counter[word]);
    philox(drawn, call.dropout->seed);
    for (int word = 0; word < 4; ++word) store_words(counter[word], drawn[word]);
    for (int i = 0; i < waiting; ++i) {
      for (int word = 0; word < 4; ++word) targets[i][word] = counter[word][i];
    }
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

// visit(entry, words) for the entries of a part, 0 the prefix and 1 the suffix, with the words of 16 consecutive rows.
template <class Visit>
inline void for_words_of_rows(const Dropout& dropout, uint64_t first_row, uint32_t part, int64_t entries,
                              const Visit& visit) {
  uint32_t low[kLanes], high[kLanes];
  for (uint64_t lane = 0; lane < kLanes; ++lane) {
    low[lane] = static_cast<uint32_t>(first_row + lane);
    high[lane] = static_cast<uint32_t>((first_row + lane) >> 32);
  }
  const Words rows_low = load_words(low), rows_high = load_words(high);
  for (int64_t entry = 0; entry < entries; entry += 4) {
    Words words[4] = {broadcast_word(static_cast<uint32_t>(entry / 4)), rows_low, rows_high, broadcast_word(part)};
    philox(words, dropout.seed);
    for (int word = 0; word < 4 && entry + word < entries; ++word) visit(entry + word, words[word]);
  }
}

// `factor` where dropout keeps the entry, else zero.
inline Vector kept_factor(const Dropout& dropout, Words words, Vector factor) {
  return dropout.threshold == 0 ? factor : where_above(words, static_cast<uint32_t>(dropout.threshold - 1), factor);
}

// `values` times `factor` where dropout keeps the entry, else times zero, which hides neither NaN nor infinity: as in
// the reference.
inline Vector dropped(const Dropout& dropout, Vector values, const uint32_t* words, Vector factor) {
  return values * kept_factor(dropout, load_words(words), factor);
}

}  // namespace
}  // namespace plr_kernels
