#include "quantized_items.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace plr_kernels {

namespace {

constexpr double kUnit = 0x1p-24;
constexpr double kLeastNorm = 0x1p-40, kMostNorm = 0x1p40;  // of a state; of an item
constexpr float kLeastScale = 0x1p-74f;
constexpr double kMargin = 1 + 0x1p-20;  // more than sums of 2**20 terms in double precision err

// G: below 2**15, so that a number is 256 · high + low of 8-bit integers.
int64_t largest_number(int64_t dim) {
  return std::min<int64_t>(127 * 256 + 127, std::numeric_limits<int32_t>::max() / (127 * dim));
}

// γ.
double state_error(int64_t dim) {
  return std::sqrt(static_cast<double>(dim)) / (2.0 * static_cast<double>(largest_number(dim))) * (1 + 0x1p-10);
}

float rounded_up(double value) {
  return std::nextafter(static_cast<float>(value), std::numeric_limits<float>::infinity());
}

}  // namespace

QuantizedItems::QuantizedItems(int64_t items, int64_t dim)
    : dim_(dim),
      bytes_(round_up(items, kPanelColumns) / kLanes * quantized_group_bytes(dim) / static_cast<int64_t>(sizeof(float))),
      radii_(round_up(items, kPanelColumns) / kLanes, 0.0f) {}

void QuantizedItems::put(int64_t first, int64_t count, const float* rows) {
  auto* target = reinterpret_cast<uint8_t*>(bytes_.data()) + first / kLanes * quantized_group_bytes(dim_);
  std::memset(target, 0, 2 * quantized_group_bytes(dim_));  // scales of items that there are not, too
  for (int64_t i = 0; i < count; ++i) {
    const double radius = put_item(first + i, rows + i * kPanelColumns, kPanelColumns * kPanelColumns);
    float& largest = radii_[(first + i) / kLanes];
    largest = std::max(largest, rounded_up(radius));
  }
}

double QuantizedItems::put_item(int64_t item, const float* row, int64_t step) {
  uint8_t* group = reinterpret_cast<uint8_t*>(bytes_.data()) + item / kLanes * quantized_group_bytes(dim_);
  auto* scale = reinterpret_cast<float*>(group + quads(dim_) * kQuad * kLanes) + item % kLanes;
  double squares = 0.0;
  float largest = 0.0f;
  for (int64_t first = 0; first < dim_; first += kPanelColumns) {
    const float* numbers = row + first / kPanelColumns * step;
    for (int64_t i = 0; i < std::min(kPanelColumns, dim_ - first); ++i) {
      squares += static_cast<double>(numbers[i]) * numbers[i];
      largest = std::max(largest, std::abs(numbers[i]));
    }
  }
  const double norm = std::sqrt(squares) * kMargin;
  if (!(norm <= kMostNorm)) {
    *scale = std::numeric_limits<float>::quiet_NaN();
    ++unbounded_;
    return 0.0;
  }
  const float s = std::max(largest / 127.0f, kLeastScale), inverse = 1.0f / s;
  *scale = s;
  uint8_t* place = group + item % kLanes * kQuad;
  double residual = 0.0;
  for (int64_t first = 0; first < dim_; first += kPanelColumns) {
    const float* numbers = row + first / kPanelColumns * step;
    const int64_t count = std::min(kPanelColumns, dim_ - first);
    uint8_t bytes[kPanelColumns] = {};
    for (int64_t i = 0; i < count; ++i) {
      const float q = std::clamp(numbers[i] * inverse + 0x1.8p23f - 0x1.8p23f, -127.0f, 127.0f);  // to nearest
      const double rest = numbers[i] - static_cast<double>(s) * q;
      residual += rest * rest;
      bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(q) + 128);
    }
    for (int64_t i = 0; i < count; i += kQuad) {
      std::memcpy(place + (first + i) * kLanes, bytes + i, kQuad);
    }
  }
  const double r = std::sqrt(residual) * kMargin, gamma = state_error(dim_), dim = static_cast<double>(dim_);
  const double roundings = (2 * (dim + dim / 256 + 2) + 16) * kUnit;
  const double radius = r + (roundings + gamma) * (1 + gamma) * (norm + r) + (dim + 4) * 0x1p-84;
  return radius / s * kMargin / (1 - 32 * kUnit);
}

QuantizedStates::QuantizedStates(const Matrix& states) {
  const int64_t dim = states.columns, padded = quads(dim) * kQuad;
  numbers_.resize(states.rows * padded);
  high_.resize(states.rows * padded);
  low_.resize(states.rows * padded);
  for (int64_t row = 0; row < states.rows; ++row) {
    int16_t* numbers = numbers_.data() + row * padded;
    int8_t *high = high_.data() + row * padded, *low = low_.data() + row * padded;
    states_.push_back({numbers, high, low, 0, 0.0f, 0.0f});
    const auto* h = static_cast<const float*>(row_of(states, row));
    double squares = 0.0;
    float largest = 0.0f;
    for (int64_t i = 0; i < dim; ++i) {
      squares += static_cast<double>(h[i]) * h[i];
      largest = std::max(largest, std::abs(h[i]));
    }
    const double norm = std::sqrt(squares);
    if (!(norm >= kLeastNorm * kMargin && norm * kMargin <= kMostNorm)) continue;
    const double most = static_cast<double>(largest_number(dim));
    const float t = largest / static_cast<float>(most);
    double residual = 0.0;
    uint32_t sum = 0;
    for (int64_t i = 0; i < dim; ++i) {
      const double g = std::clamp(std::nearbyint(h[i] / static_cast<double>(t)), -most, most);
      const double rest = h[i] - static_cast<double>(t) * g;
      residual += rest * rest;
      numbers[i] = static_cast<int16_t>(g);
      low[i] = static_cast<int8_t>(numbers[i]);
      high[i] = static_cast<int8_t>((numbers[i] - low[i]) / 256);
      sum += static_cast<uint32_t>(int32_t{numbers[i]});
    }
    if (!(std::sqrt(residual) * kMargin <= state_error(dim) * norm)) continue;
    states_.back() = {numbers, high, low, 0u - 128u * sum, t, rounded_up(norm * kMargin)};
  }
}

}  // namespace plr_kernels
