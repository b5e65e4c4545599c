// The loss of rows of M states from the cross-entropies of their states: −log Σ_m exp(log_weights[m]) p_m(target) = −log
// Σ_m exp(log_weights[m] − CE_m). Its gradient w.r.t. CE_m is the responsibility r_m = exp(log_weights[m] − CE_m + loss),
// and w.r.t. log_weights[m] −r_m.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace plr_kernels {

// The rows whose target counts.
inline std::vector<int64_t> counted_rows(const int64_t* targets, int64_t rows, int64_t ignore_index) {
  std::vector<int64_t> counted;
  for (int64_t row = 0; row < rows; ++row) {
    if (targets[row] != ignore_index) counted.push_back(row);
  }
  return counted;
}

// Replaces the cross-entropies of a row's states by their responsibilities.
inline void responsibilities(const float* log_weights, std::vector<double>& losses) {
  double largest = -std::numeric_limits<double>::infinity();
  for (std::size_t m = 0; m < losses.size(); ++m) largest = std::max(largest, log_weights[m] - losses[m]);
  if (!std::isfinite(largest)) largest = 0.0;
  double sum = 0.0;
  for (std::size_t m = 0; m < losses.size(); ++m) sum += std::exp(log_weights[m] - losses[m] - largest);
  const double log_p = largest + std::log(sum);
  for (std::size_t m = 0; m < losses.size(); ++m) losses[m] = std::exp(log_weights[m] - losses[m] - log_p);
}

}  // namespace plr_kernels
