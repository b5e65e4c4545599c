// The kernels of ../kernels.h in terms of Vector. Included once per instruction set, after the header that defines
// Vector.
#pragma once

#include "../kernels.h"
#include "attention/batch_head.h"
#include "bfloat16_pairs.h"
#include "candidates.h"
#include "divergence.h"
#include "encoder/attend.h"
#include "encoder/gelu.h"
#include "encoder/norm.h"
#include "gemm.h"
#include "gemv.h"
#include "mixture.h"
#include "quantized.h"
#include "ranking.h"
#include "rows.h"
#include "softmax.h"
#include "two_way_softmax.h"

namespace plr_kernels {
namespace {

constexpr Kernels table(const char* name) {
  return {name,
          load_rows,
          store_rows,
          add_rows,
          row_norms,
          remove_component,
          gemm<Singles>,
          gemm_transposed<Singles>,
          update_softmax,
          merge_softmax,
          softmax_gradient,
          divergence_statistics,
          merge_divergence,
          divergence_gradient,
          gathered_dots,
          gathered_sum,
          sigmoid_terms,
          update_two_way_sums,
          two_way_softmax_gradient,
          attention_forward,
          attention_backward,
          find_above,
          rank,
          count_against,
          update_lane_softmax,
          mix_streams,
          gemv,
          kQuantizedBounds,
          most_quantized_states,
          gemm_unpacked<Singles>,
          fill_rows,
          normalize_rows,
          gelu_rows,
          attend,
#ifdef __AVX512BF16__
          {gemm<Pairs>, gemm_transposed<Pairs>, gemm_unpacked<Pairs>, round_row, pair_columns, pair_rows, pair_scores},
#else
          {},
#endif
          {}  // parts
  };
}

}  // namespace
}  // namespace plr_kernels
