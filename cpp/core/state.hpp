// The state of an online softmax: a row's maximum, an integer power of two, and its sum relative to that.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace maskattn {

inline constexpr double kLog2E = 1.4426950408889634074;

// 2^k for an integer k <= 0, 0 where that is not normal; NaN for NaN.
template <class T>
T power_of_two(T k) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  constexpr int kLowest = std::numeric_limits<T>::min_exponent - 1, kMantissa = std::numeric_limits<T>::digits - 1;
  if (!(k >= kLowest)) return k != k ? k : T{0};
  return std::bit_cast<T>(static_cast<Bits>(static_cast<int>(k) + 1 - kLowest) << kMantissa);
}

// The running (maximum, sum) of a row takes in a segment's; the factors are for the running output and for the segment's.
template <class T>
void merge_state(T& maximum, T& sum, T segment_maximum, T segment_sum, T& old_scale, T& new_scale) {
  if (segment_maximum == -std::numeric_limits<T>::infinity()) {
    old_scale = 1;
    new_scale = 0;
    return;
  }
  const T merged = std::max(maximum, segment_maximum);
  old_scale = power_of_two(maximum - merged);
  new_scale = power_of_two(segment_maximum - merged);
  sum = sum * old_scale + segment_sum * new_scale;
  maximum = merged;
}

// The same for a sink, a score without a value; returns the factor for the running output. Rows that see nothing stay as they
// are.
template <class T>
T merge_sink(T& maximum, T& sum, double sink) {
  if (sum == 0) return 1;
  const double z = sink * kLog2E, whole = std::rint(z);
  T old_scale, new_scale;
  const bool nothing = std::isinf(sink) && sink < 0;
  merge_state(maximum, sum, nothing ? -std::numeric_limits<T>::infinity() : static_cast<T>(whole),
              static_cast<T>(nothing ? 0 : std::exp2(z - whole)), old_scale, new_scale);
  return old_scale;
}

// The natural logarithm of the sum that a state stands for.
template <class T>
T log_sum(T maximum, T sum) {
  constexpr double kLn2 = 0.69314718055994530942;
  if (sum == 0) return -std::numeric_limits<T>::infinity();
  return static_cast<T>(static_cast<double>(maximum) * kLn2 + std::log(static_cast<double>(sum)));
}

}  // namespace maskattn
