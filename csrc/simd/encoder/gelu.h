// The GELU with the exact normal distribution function, in place.
#pragma once

#include <cstdint>

#include "../common.h"
#include "../exp2.h"

namespace plr_kernels {
namespace {

// x Φ(x) = max(x, 0) − u Q(u) with u = |x| and Q = 1 − Φ. log2 Q is nearly a parabola: its polynomial errs by 1e-7 near
// zero and by what u Q(u) scales down to 4e-8 elsewhere, and falls for ever beyond the fitted [0, 6].
inline Vector gelu(Vector x) {
  const Vector u = maximum_of(x, zero() - x);
  Vector log2_q = broadcast(-2.1026237e-6f);
  log2_q = multiply_add(log2_q, u, broadcast(3.0752970e-5f));
  log2_q = multiply_add(log2_q, u, broadcast(-1.4604954e-4f));
  log2_q = multiply_add(log2_q, u, broadcast(-2.3131004e-4f));
  log2_q = multiply_add(log2_q, u, broadcast(7.1823723e-3f));
  log2_q = multiply_add(log2_q, u, broadcast(-5.2574415e-2f));
  log2_q = multiply_add(log2_q, u, broadcast(-4.5918438e-1f));
  log2_q = multiply_add(log2_q, u, broadcast(-1.1511075f));
  log2_q = multiply_add(log2_q, u, broadcast(-1.0f));
  return multiply_add(zero() - u, exp2(log2_q), maximum_of(x, zero()));
}

void gelu_rows(int64_t rows, int64_t columns, MutablePanels x) {
  for (int64_t column = 0; column < columns; column += kLanes) {
    float* first = x.data + column / kPanelColumns * kPanelColumns * x.rows + column % kPanelColumns;
    for (int64_t i = 0; i < rows; ++i) store(first + i * kPanelColumns, gelu(load(first + i * kPanelColumns)));
  }
}

}  // namespace
}  // namespace plr_kernels
