// Lists of candidate items: products with gathered rows of a matrix, and the sigmoid of every score.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "common.h"
#include "exp2.h"
#include "rows.h"
#include "softmax.h"

namespace plr_kernels {
namespace {

void gathered_dots(const Matrix& items, const int64_t* ids, int64_t count, const float* vector, float scale,
                   float* result, int64_t step) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0) {
      result[i * step] = 0.0f;
      continue;
    }
    const void* row = row_of(items, ids[i]);
    Vector sum = zero();
    for (int64_t column = 0; column < items.columns; column += kLanes) {
      sum = multiply_add(load_padded(row, items.type, column, items.columns - column), load(vector + column), sum);
    }
    result[i * step] = sum_of_lanes(sum) * scale;
  }
}

void gathered_sum(const Matrix& items, const int64_t* ids, int64_t count, const float* weights, int64_t step,
                  float* sum) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0) continue;
    const void* row = row_of(items, ids[i]);
    const Vector weight = broadcast(weights[i * step]);
    for (int64_t column = 0; column < items.columns; column += kLanes) {
      const Vector values = load_padded(row, items.type, column, items.columns - column);
      store(sum + column, multiply_add(weight, values, load(sum + column)));
    }
  }
}

// The sum of log2(1 + e) of the many e = exp2(-|s|) in [0, 1] is the logarithm of their product P, of which P − 1 is
// kept: that of P (1 + e) is (P − 1)(1 + e) + e, a sum of numbers that are not negative, so that the digits of an e far
// below 1 stay. 64 factors are at most 2^64, a number of float32; their products are double.
void sigmoid_terms(Scores scores, const float* scale, float* softplus) {
  constexpr int64_t factors = 64;
  for (int64_t state = 0; state < scores.states; state += kLanes) {
    float* column = score_column(scores, state);
    const Vector factor = load(scale + state), one = broadcast(1.0f);
    Vector positive = zero();
    alignas(64) float lanes[kLanes];
    double logs[kLanes] = {}, products_less_one[kLanes] = {};
    for (int64_t first = 0; first < scores.items; first += factors) {
      Vector product_less_one = zero();
      for (int64_t i = first; i < smaller(first + factors, scores.items); ++i) {
        float* place = column + i * kPanelColumns;
        const Vector s = load(place);
        const Vector e = exp2(where_greater(s, zero(), zero() - s, s));
        const Vector sum = one + e;
        product_less_one = multiply_add(product_less_one, sum, e);
        positive = positive + where_greater(s, zero(), s, zero());
        store(place, where_greater(s, zero(), one, e) / sum * factor);
      }
      store(lanes, product_less_one);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        double& product = products_less_one[lane];
        product += lanes[lane] + product * lanes[lane];
        if (product < 0x1p900) continue;
        logs[lane] += __builtin_log1p(product);
        product = 0.0;
      }
    }
    store(lanes, positive);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double logarithm = logs[lane] + __builtin_log1p(products_less_one[lane]);
      softplus[state + lane] = static_cast<float>(lanes[lane] + kLog2E * logarithm);
    }
  }
}

}  // namespace
}  // namespace plr_kernels
