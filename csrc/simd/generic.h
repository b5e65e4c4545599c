// Vector: 16 floats in standard C++, for the compiler to vectorise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kWidth = 16;

struct Vector {
  float value[kWidth];
};

constexpr int kMR = 2;
constexpr int kNRVectors = 1;

// Attention multiplies kStreamTile streams with kDotEntries entries, or with kSumVectors Vectors, in registers.
constexpr int kStreamTile = 2;
constexpr int kDotEntries = 1;
constexpr int kSumVectors = 1;
// The same with rows as wide as can be.
constexpr int kWideStreams = 2;
constexpr int kWideVectors = 1;
// Where there are many queries, 16 of them are multiplied with kLaneEntries entries.
constexpr int kLaneEntries = 2;

// A Vector, or other numbers of 16 lanes, of what the function says of each lane.
template <class Result = Vector, class Function>
inline Result each(Function function) {
  Result result;
  for (int lane = 0; lane < kWidth; ++lane) result.value[lane] = function(lane);
  return result;
}

inline Vector broadcast(float number) {
  return each([&](int) { return number; });
}
inline Vector zero() { return broadcast(0.0f); }
inline Vector load(const float* source) {
  Vector result;
  std::memcpy(result.value, source, sizeof(result.value));
  return result;
}
inline void store(float* target, Vector a) { std::memcpy(target, a.value, sizeof(a.value)); }

// No way past the caches without instructions for it.
inline void store_past_cache(float* target, Vector a) { store(target, a); }
inline void finish_stores_past_cache() {}

inline float from_bits(uint32_t bits) {
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline uint32_t bits_of(float number) {
  uint32_t result;
  std::memcpy(&result, &number, sizeof(result));
  return result;
}

inline float upcast_float16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  // Normal numbers: move the exponent from bias 15 to bias 127; infinity and NaN: to the largest exponent.
  if (magnitude >= 0x0400) {
    return from_bits(sign | ((magnitude << 13) + ((magnitude >= 0x7c00 ? 224u : 112u) << 23)));
  }
  const float small = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -small : small;
}
inline uint16_t downcast_float16(float number) {
  const uint32_t bits = bits_of(number);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;   // NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
  if (magnitude < 0x38800000) {                       // below the normal numbers: a multiple of 2^-24
    return sign | static_cast<uint16_t>(std::nearbyint(from_bits(magnitude) * 0x1p24f));
  }
  // To nearest, ties to even: add half of what is dropped, less one where the last kept bit is 0.
  return sign | static_cast<uint16_t>((magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13);
}

inline Vector load_float16(const uint16_t* source) {
  return each([&](int lane) { return upcast_float16(source[lane]); });
}
inline void store_float16(uint16_t* target, Vector a) {
  for (int lane = 0; lane < kWidth; ++lane) target[lane] = downcast_float16(a.value[lane]);
}
inline Vector load_bfloat16(const uint16_t* source) {
  return each([&](int lane) { return from_bits(static_cast<uint32_t>(source[lane]) << 16); });
}

inline Vector operator+(Vector a, Vector b) {
  return each([&](int lane) { return a.value[lane] + b.value[lane]; });
}
inline Vector operator-(Vector a, Vector b) {
  return each([&](int lane) { return a.value[lane] - b.value[lane]; });
}
inline Vector operator*(Vector a, Vector b) {
  return each([&](int lane) { return a.value[lane] * b.value[lane]; });
}
inline Vector operator/(Vector a, Vector b) {
  return each([&](int lane) { return a.value[lane] / b.value[lane]; });
}
inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return each([&](int lane) { return a.value[lane] * b.value[lane] + c.value[lane]; });
}

// The larger of both; b where a is NaN.
inline Vector maximum_of(Vector a, Vector b) {
  return each([&](int lane) { return a.value[lane] > b.value[lane] ? a.value[lane] : b.value[lane]; });
}

// x where a > b, else y.
inline Vector where_greater(Vector a, Vector b, Vector x, Vector y) {
  return each([&](int lane) { return a.value[lane] > b.value[lane] ? x.value[lane] : y.value[lane]; });
}

// Adding and subtracting 1.5 · 2^23 rounds to an integer, for magnitudes below 2^22.
inline Vector nearest_integer(Vector a) {
  return each([&](int lane) { return (a.value[lane] + 0x1.8p23f) - 0x1.8p23f; });
}

// a · 2^exponent for an integer exponent and a normal result, or zero where `argument` is below `least`.
inline Vector scaled_by_power(Vector a, Vector exponent, Vector argument, Vector least) {
  return each([&](int lane) {
    const float power = exponent.value[lane];
    // Out of range: the result is zero, or `a` is NaN and is to stay so.
    const int32_t shift = power > -127.0f && power < 128.0f ? static_cast<int32_t>(power) : 0;
    const float scaled = from_bits(bits_of(a.value[lane]) + (static_cast<uint32_t>(shift) << 23));
    return argument.value[lane] < least.value[lane] ? 0.0f : scaled;
  });
}

// The first `count` < 16 numbers, then zeros.
inline Vector load_first(const float* source, int count) {
  Vector result = zero();
  std::memcpy(result.value, source, count * sizeof(float));
  return result;
}

// Which lanes of a are not at most b's: larger or NaN.
inline uint32_t not_at_most(Vector a, Vector b) {
  uint32_t lanes = 0;
  for (int lane = 0; lane < kWidth; ++lane) {
    lanes |= static_cast<uint32_t>(!(a.value[lane] <= b.value[lane])) << lane;
  }
  return lanes;
}

// The first `count` lanes become zero; count < 16.
inline Vector without_first(Vector a, int count) {
  return each([&](int lane) { return lane < count ? 0.0f : a.value[lane]; });
}

inline float sum_of_lanes(Vector a) {
  for (int width = kWidth / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) a.value[lane] += a.value[lane + width];
  }
  return a.value[0];
}
// Lane i: the sum of the lanes of vectors[i].
inline Vector sums_of_lanes(const Vector (&vectors)[kWidth]) {
  return each([&](int lane) { return sum_of_lanes(vectors[lane]); });
}
inline float largest_lane(Vector a) {
  float largest = a.value[0];
  for (int lane = 1; lane < kWidth; ++lane) largest = a.value[lane] > largest ? a.value[lane] : largest;
  return largest;
}

// 16 unsigned numbers of 32 bits.
struct Words {
  uint32_t value[kWidth];
};

inline Words broadcast_word(uint32_t word) {
  return each<Words>([&](int) { return word; });
}
inline Words load_words(const uint32_t* source) {
  return each<Words>([&](int lane) { return source[lane]; });
}
inline void store_words(uint32_t* target, Words a) { std::memcpy(target, a.value, sizeof(a.value)); }
inline Words operator^(Words a, Words b) {
  return each<Words>([&](int lane) { return a.value[lane] ^ b.value[lane]; });
}

// The upper and the lower half of each lane's product with `factor`.
inline void multiply_words(Words a, uint32_t factor, Words& high, Words& low) {
  const auto product = [&](int lane) { return uint64_t{a.value[lane]} * factor; };
  high = each<Words>([&](int lane) { return static_cast<uint32_t>(product(lane) >> 32); });
  low = each<Words>([&](int lane) { return static_cast<uint32_t>(product(lane)); });
}

// `values` where the words are above the limit, else zero.
inline Vector where_above(Words words, uint32_t limit, Vector values) {
  return each([&](int lane) { return words.value[lane] > limit ? values.value[lane] : 0.0f; });
}

constexpr int kKeyLanes = 2;  // 64-bit integers in a register

// Rows that are multiplied with a vector together.
constexpr int kDotRows = 2;
// Rows and vectors that are multiplied together where there are several vectors.
constexpr int kGemvRows = 2;
constexpr int kGemvVectors = 1;

}  // namespace
