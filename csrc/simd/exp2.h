// The exponential, 16 at a time.
#pragma once

#include "common.h"

namespace plr_kernels {
namespace {

// 2^argument to within one unit in the last place; zero below the normal numbers.
inline Vector exp2(Vector argument) {
  const Vector exponent = nearest_integer(argument);
  const Vector f = argument - exponent;  // in [-1/2, 1/2], exact
  // The polynomial with the least relative error (2e-9) among those with constant term 1.
  Vector power = broadcast(1.5353362e-4f);
  power = multiply_add(power, f, broadcast(1.3398874e-3f));
  power = multiply_add(power, f, broadcast(9.6184369e-3f));
  power = multiply_add(power, f, broadcast(5.5503324e-2f));
  power = multiply_add(power, f, broadcast(2.4022648e-1f));
  power = multiply_add(power, f, broadcast(6.9314718e-1f));
  power = multiply_add(power, f, broadcast(1.0f));
  return scaled_by_power(power, exponent, argument, broadcast(-126.0f));
}

}  // namespace
}  // namespace plr_kernels
