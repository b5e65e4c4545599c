// Numbers of a block's queries and entries, such as probabilities: a row per query where there are few queries, a row per
// entry, with the queries in the lanes, where there are many.
#pragma once

#include <cstdint>

#include "../../attention.h"

namespace plr_kernels {
namespace {

struct RowPerQuery {
  const float* data;
  int64_t row_size;

  float at(int64_t query, int64_t entry) const { return data[query * row_size + entry]; }
  RowPerQuery from(int64_t query, int64_t entry) const { return {data + query * row_size + entry, row_size}; }
};

struct RowPerEntry {
  const float* data;

  float at(int64_t query, int64_t entry) const { return data[entry * kQueriesPerBlock + query]; }
  RowPerEntry from(int64_t query, int64_t entry) const { return {data + entry * kQueriesPerBlock + query}; }
};

}  // namespace
}  // namespace plr_kernels
