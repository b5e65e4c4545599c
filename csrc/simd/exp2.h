// The exponential, 16 at a time.
#pragma once

#include "common.h"

namespace plr_kernels {
namespace {

// (2^f − 1) / f for f in [-1/2, 1/2], of the polynomial for 2^f with the least relative error (2e-9) among those with
// constant term 1.
inline Vector exp2_slope(Vector f) {
  Vector slope = broadcast(1.5353362e-4f);
  slope = multiply_add(slope, f, broadcast(1.3398874e-3f));
  slope = multiply_add(slope, f, broadcast(9.6184369e-3f));
  slope = multiply_add(slope, f, broadcast(5.5503324e-2f));
  slope = multiply_add(slope, f, broadcast(2.4022648e-1f));
  return multiply_add(slope, f, broadcast(6.9314718e-1f));
}

// 2^argument to within one unit in the last place; zero below the normal numbers.
inline Vector exp2(Vector argument) {
  const Vector exponent = nearest_integer(argument);
  const Vector f = argument - exponent;  // in [-1/2, 1/2], exact
  const Vector power = multiply_add(exp2_slope(f), f, broadcast(1.0f));
  return scaled_by_power(power, exponent, argument, broadcast(-126.0f));
}

// 2^argument − taken for an argument of -126 to 126; where taken is 1 without cancellation: for a small argument x it
// is x ln 2.
inline Vector exp2_less(Vector argument, Vector taken) {
  const Vector exponent = nearest_integer(argument);
  const Vector f = argument - exponent;
  const Vector power = scaled_by_power(broadcast(1.0f), exponent, argument, broadcast(-126.0f));  // exact
  return multiply_add(power, exp2_slope(f) * f, power - taken);
}

}  // namespace
}  // namespace plr_kernels
