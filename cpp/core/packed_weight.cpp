// Weights as they are stored: their layout is told in kernels/linear_table.hpp.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "dispatch.hpp"
#include "maskattn/packed_linear.hpp"
#include "threads.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace maskattn {
namespace {

constexpr float kSmallest = 1e-36f;  // below it 127 times the inverse is infinite
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::uint16_t to_bfloat(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bfloat(std::uint16_t x) {
  const std::uint32_t bits = std::uint32_t{x} << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

float from_half(std::uint16_t x) {
  const int exponent = x >> 10 & 31, mantissa = x & 1023;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                        : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return x & 0x8000 ? -magnitude : magnitude;
}

// The nearest float16, at most the largest finite one; x is finite.
std::uint16_t to_half(float x) {
  const float most = std::min(std::abs(x), 65504.f);
  const int exponent = most < 0x1p-14f ? -14 : std::ilogb(most);
  const auto ulps = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(most, 10 - exponent)));  // of that exponent's
  return static_cast<std::uint16_t>((std::signbit(x) ? 0x8000u : 0u) + (static_cast<std::uint32_t>(exponent + 14) << 10) + ulps);
}

// Where input i of output o of a block stands, in elements.
std::size_t place(int group, std::int64_t i, std::int64_t o) {
  return static_cast<std::size_t>((i / group * kBlockOutputs + o) * group + i % group);
}

// Nearest, of two the even one; for |x| below 2^22.
int rounded(float x) {
  constexpr float kInteger = 0x1.8p23f;  // a sum with it has no room for a fraction
  return static_cast<int>((x + kInteger) - kInteger);
}

// Some outputs of a block, from rows of floats.
struct Outputs {
  std::int64_t begin, end;  // of the block's
  const float* rows;        // of `begin` and those after it
  std::ptrdiff_t stride;

  const float* of(std::int64_t output) const { return rows + (output - begin) * stride; }
};

// put(place, input, output) for all, few inputs of all outputs at a time: both sides stay in the first-level cache.
template <class Put>
void in_tiles(int group, std::int64_t inputs, const Outputs& outputs, const Put& put) {
  constexpr std::int64_t kTile = 16;
  for (std::int64_t tile = 0; tile < inputs; tile += kTile)
    for (std::int64_t o = outputs.begin; o < outputs.end; ++o)
      for (std::int64_t i = tile; i < std::min(inputs, tile + kTile); ++i) put(place(group, i, o), i, o);
}

void fill_integers(std::byte* block, std::int64_t padded, std::int64_t inputs, const Outputs& outputs) {
  auto* scales = reinterpret_cast<BlockScales*>(block + padded * kBlockOutputs);
  float factors[kBlockOutputs];
  for (std::int64_t o = outputs.begin; o < outputs.end; ++o) {
    float most = 0;
    for (std::int64_t i = 0; i < inputs; ++i) most = std::max(most, std::abs(outputs.of(o)[i]));
    factors[o] = most > kSmallest ? 127 / most : 0;
    scales->scale[o] = most / 127;
    scales->sum[o] = 0;
  }
  in_tiles(4, inputs, outputs, [&](std::size_t at, std::int64_t i, std::int64_t o) {
    const int q = rounded(outputs.of(o)[i] * factors[o]);
    scales->sum[o] += q;
    reinterpret_cast<std::int8_t*>(block)[at] = static_cast<std::int8_t>(q);
  });
}

// One output's weights of one group: 4 bits each, a scale and a zero point.
class Nibbles {
 public:
  Nibbles(std::byte* group, std::int64_t inputs, std::int64_t output, bool has_zero)
      : bytes_(reinterpret_cast<std::uint8_t*>(group) + 4 * output),
        scale_(reinterpret_cast<std::uint16_t*>(group + inputs * kBlockOutputs / 2) + output),
        zero_(has_zero ? scale_ + kBlockOutputs : nullptr) {}

  void put(std::int64_t input, int q) {
    const int shift = input % 8 / 4 * 4;
    std::uint8_t& byte = bytes_[at(input)];
    byte = static_cast<std::uint8_t>((byte & ~(15 << shift)) | q << shift);
  }
  int q(std::int64_t input) const { return bytes_[at(input)] >> input % 8 / 4 * 4 & 15; }
  void scale(float scale, float zero) {
    *scale_ = to_half(scale);
    if (zero_) *zero_ = to_half(zero);
  }
  float scale() const { return from_half(*scale_); }
  float zero() const { return zero_ ? from_half(*zero_) : 8; }

  // The nearest integers of some inputs. Without a zero point the largest weight becomes -8, which has no opposite.
  void quantize(const float* x, std::int64_t count) {
    const auto [low, high] = std::minmax_element(x, x + count);
    const float least = std::min(*low, 0.f), most = std::max(*high, 0.f);
    if (zero_)
      scale((most - least) / 15, most > least ? -least / ((most - least) / 15) : 0);
    else
      scale((-least > most ? least : most) / -8, 8);
    const float step = scale(), origin = zero();
    for (std::int64_t i = 0; i < count; ++i) put(i, rounded(std::clamp(step == 0 ? origin : x[i] / step + origin, 0.f, 15.f)));
  }

 private:
  static std::int64_t at(std::int64_t input) { return input / 8 * 4 * kBlockOutputs + input % 4; }

  std::uint8_t* bytes_;
  std::uint16_t *scale_, *zero_;
};

std::int64_t blocks_up_to(std::int64_t output) { return (output + kBlockOutputs - 1) / kBlockOutputs; }

std::int64_t round_up(std::int64_t x, std::int64_t unit) { return (x + unit - 1) / unit * unit; }

// Bytes of one group of a block.
std::size_t group_bytes(WeightType type, std::int64_t group) {
  return static_cast<std::size_t>(group * kBlockOutputs / 2 + (type == WeightType::uint4 ? 4 : 2) * kBlockOutputs);
}

std::size_t bytes_of_block(WeightType type, std::int64_t padded, std::int64_t group) {
  const auto elements = static_cast<std::size_t>(padded * kBlockOutputs);
  switch (type) {
    case WeightType::float32: return 4 * elements;
    case WeightType::bfloat16: return 2 * elements;
    case WeightType::int8: return elements + sizeof(BlockScales);
    default: return static_cast<std::size_t>(padded / group) * group_bytes(type, group);
  }
}

// Calls body(block, the outputs of it that are rows first to first + count).
template <class Body>
void over_blocks(std::int64_t first, std::int64_t count, int threads, const Body& body) {
  const std::int64_t end = first + count, first_block = first / kBlockOutputs;
  parallel_for(blocks_up_to(end) - first_block, threads, [&](std::int64_t index) {
    const std::int64_t block = first_block + index, origin = block * kBlockOutputs;
    body(block, std::max(origin, first) - origin, std::min(origin + kBlockOutputs, end) - origin);
  });
}

}  // namespace

PackedWeight::PackedWeight(WeightType type, std::int64_t outputs, std::int64_t inputs, std::int64_t group,
                           std::shared_ptr<const std::byte> data)
    : type_(type),
      outputs_(outputs),
      inputs_(inputs),
      padded_(round_up(inputs, is_four_bit(type) ? group : kInputGroup[static_cast<int>(type)])),
      group_(is_four_bit(type) ? group : 0),
      block_bytes_(bytes_of_block(type, padded_, group_)),
      whole_bytes_(static_cast<std::size_t>(blocks_up_to(outputs)) * block_bytes_),
      data_(std::move(data)) {
  all_outputs_ = outputs;
}

PackedWeight::PackedWeight(WeightType type, std::int64_t outputs, std::int64_t inputs, std::int64_t group)
    : PackedWeight(type, outputs, inputs, group, nullptr) {
  const std::align_val_t align{whole_bytes_ < kHugePage ? kPackedAlign : kHugePage};
  writable_ = static_cast<std::byte*>(::operator new(whole_bytes_, align));
  data_.reset(writable_, [align](const std::byte* p) { ::operator delete(const_cast<std::byte*>(p), align); });
#ifdef MADV_HUGEPAGE
  // A step reads weights from front to back: at the end of a small page the hardware's prefetching would stop.
  if (whole_bytes_ >= kHugePage) madvise(writable_, whole_bytes_, MADV_HUGEPAGE);
#endif
  std::memset(writable_, 0, whole_bytes_);
}

std::size_t PackedWeight::bytes() const {
  return static_cast<std::size_t>(blocks_up_to(first_ + outputs_) - first_ / kBlockOutputs) * block_bytes_;
}

PackedWeight PackedWeight::slice(std::int64_t start, std::int64_t stop) const {
  PackedWeight part = *this;
  part.first_ += start;
  part.outputs_ = stop - start;
  return part;
}

PackedWeight PackedWeight::take(const std::int64_t* outputs, std::int64_t count) const {
  PackedWeight taken(type_, count, inputs_, group_);
  // A block is lines of a 4-byte word for each output; 4-bit groups end with lines of 2 bytes, scales and zero points.
  const std::size_t stretch = group_ ? group_bytes(type_, group_) : block_bytes_;
  const std::size_t words = group_ ? static_cast<std::size_t>(group_) * kBlockOutputs / 2 : stretch;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::byte* from = block((first_ + outputs[i]) / kBlockOutputs);
    const auto o = static_cast<std::size_t>((first_ + outputs[i]) % kBlockOutputs),
               n = static_cast<std::size_t>(i % kBlockOutputs);
    std::byte* to = taken.writable_ + static_cast<std::size_t>(i / kBlockOutputs) * block_bytes_;
    for (std::size_t begin = 0; begin < block_bytes_; begin += stretch) {
      for (std::size_t at = begin; at < begin + words; at += 4 * kBlockOutputs)
        std::memcpy(to + at + 4 * n, from + at + 4 * o, 4);
      for (std::size_t at = begin + words; at < begin + stretch; at += 2 * kBlockOutputs)
        std::memcpy(to + at + 2 * n, from + at + 2 * o, 2);
    }
  }
  return taken;
}

void PackedWeight::fill(std::int64_t first, std::int64_t count, const float* rows, std::ptrdiff_t stride, int threads) {
  over_blocks(first_ + first, count, threads, [&](std::int64_t index, std::int64_t begin, std::int64_t end) {
    std::byte* block = writable_ + static_cast<std::size_t>(index) * block_bytes_;
    const float* from = rows + (index * kBlockOutputs + begin - first_ - first) * stride;
    const Outputs outputs{begin, end, from, stride};
    switch (type_) {
      case WeightType::float32:
        in_tiles(1, inputs_, outputs,
                 [&](std::size_t at, std::int64_t i, std::int64_t o) { reinterpret_cast<float*>(block)[at] = outputs.of(o)[i]; });
        break;
      case WeightType::bfloat16:
        in_tiles(2, inputs_, outputs, [&](std::size_t at, std::int64_t i, std::int64_t o) {
          reinterpret_cast<std::uint16_t*>(block)[at] = to_bfloat(outputs.of(o)[i]);
        });
        break;
      case WeightType::int8: fill_integers(block, padded_, inputs_, outputs); break;
      case WeightType::int4:
      case WeightType::uint4:
        for (std::int64_t i = 0; i < inputs_; i += group_, block += group_bytes(type_, group_))
          for (std::int64_t o = begin; o < end; ++o)
            Nibbles(block, group_, o, type_ == WeightType::uint4).quantize(outputs.of(o) + i, std::min(group_, inputs_ - i));
        break;
    }
  });
}

void PackedWeight::fill_groups(std::int64_t first, std::int64_t count, const std::uint8_t* q, const float* scales,
                               const float* zeros) {
  const std::int64_t groups = padded_ / group_;
  over_blocks(first_ + first, count, 1, [&](std::int64_t index, std::int64_t begin, std::int64_t end) {
    std::byte* block = writable_ + static_cast<std::size_t>(index) * block_bytes_;
    for (std::int64_t g = 0; g < groups; ++g, block += group_bytes(type_, group_))
      for (std::int64_t o = begin; o < end; ++o) {
        const std::int64_t row = index * kBlockOutputs + o - first_ - first;
        Nibbles nibbles(block, group_, o, zeros != nullptr);
        nibbles.scale(scales[row * groups + g], zeros ? zeros[row * groups + g] : 8);
        for (std::int64_t i = 0; i < std::min(group_, inputs_ - g * group_); ++i)
          nibbles.put(i, q[row * inputs_ + g * group_ + i]);
      }
  });
}

void PackedWeight::row(std::int64_t output, float* to) const {
  const std::byte* from = block((first_ + output) / kBlockOutputs);
  const std::int64_t o = (first_ + output) % kBlockOutputs;
  switch (type_) {
    case WeightType::float32:
      for (std::int64_t i = 0; i < inputs_; ++i) to[i] = reinterpret_cast<const float*>(from)[place(1, i, o)];
      break;
    case WeightType::bfloat16:
      for (std::int64_t i = 0; i < inputs_; ++i)
        to[i] = from_bfloat(reinterpret_cast<const std::uint16_t*>(from)[place(2, i, o)]);
      break;
    case WeightType::int8: {
      const float scale = reinterpret_cast<const BlockScales*>(from + padded_ * kBlockOutputs)->scale[o];
      for (std::int64_t i = 0; i < inputs_; ++i) to[i] = scale * reinterpret_cast<const std::int8_t*>(from)[place(4, i, o)];
      break;
    }
    case WeightType::int4:
    case WeightType::uint4:
      for (std::int64_t i = 0; i < inputs_; i += group_, from += group_bytes(type_, group_)) {
        const Nibbles nibbles(const_cast<std::byte*>(from), group_, o, type_ == WeightType::uint4);
        const float scale = nibbles.scale(), zero = nibbles.zero();
        for (std::int64_t j = 0; j < std::min(group_, inputs_ - i); ++j)
          to[i + j] = (static_cast<float>(nibbles.q(j)) - zero) * scale;
      }
      break;
  }
}

}  // namespace maskattn
