// Two writers of memory front to back in runs, with one interface: one for outputs that caches hold, one for larger ones.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace maskattn {

inline constexpr std::size_t kLine = 64;  // bytes of a cache line

// An element of 1, 2, 4 or 8 bytes, repeated as it stands in the cache lines of an array that begins at `array`, which may be
// unaligned. Two lines, so that 64 bytes from anywhere in the first can be copied in one go.
struct LinePattern {
  alignas(kLine) char bytes[2 * kLine];
  bool one_byte;  // all bytes are the same

  LinePattern(std::uint64_t element, std::size_t size, const void* array) {
    constexpr std::uint64_t ones = ~std::uint64_t{0};
    const std::uint64_t all = element * (ones / (ones >> (64 - 8 * size)));  // side by side
    const int turn = static_cast<int>(reinterpret_cast<std::uintptr_t>(array) % size * 8);
    const std::uint64_t word = std::endian::native == std::endian::little ? std::rotl(all, turn) : std::rotr(all, turn);
    for (std::size_t i = 0; i < sizeof bytes; i += sizeof word) std::memcpy(bytes + i, &word, sizeof word);
    one_byte = word == (word & 0xff) * (ones / 0xff);
  }
};

// Ordinary stores of whole lines, which may reach past the end of a run: the next one overwrites it.
class CachedWriter {
 public:
  CachedWriter(char* begin, char* end) : to_(begin), end_(end) {}

  // The next `count` bytes of the pattern.
  void fill(const LinePattern& pattern, std::size_t count) {
    if (pattern.one_byte && count >= kLine) {  // the C library has wider stores than this file may use
      std::memset(to_, pattern.bytes[0], count);
      to_ += count;
      return;
    }
    if (count == 0) return;
    char* const next = to_ + count;
    const std::size_t at = reinterpret_cast<std::uintptr_t>(to_) % kLine;
    if (static_cast<std::size_t>(end_ - next) < kLine) {
      for (std::size_t from = at, part; to_ < next; to_ += part, from = 0) {
        part = std::min<std::size_t>(static_cast<std::size_t>(next - to_), kLine - from);
        std::memcpy(to_, pattern.bytes + from, part);
      }
      return;
    }
    std::memcpy(to_, pattern.bytes + at, kLine);
    for (char* line = to_ + (kLine - at); line < next; line += kLine) std::memcpy(line, pattern.bytes, kLine);
    to_ = next;
  }
  // `count` bytes; kLine more behind them must be readable.
  void copy(const char* from, std::size_t count) {
    if (static_cast<std::size_t>(end_ - to_) - count < kLine)
      std::memcpy(to_, from, count);
    else
      for (std::size_t done = 0; done < count; done += kLine) std::memcpy(to_ + done, from + done, kLine);
    to_ += count;
  }

 private:
  char *to_, *const end_;
};

// Non-temporal stores of whole lines: they go past the caches and spare the reading of each line before it is written. A line of
// several runs is put together first.
class StreamWriter {
 public:
  StreamWriter(char* begin, char*) {
    begin_ = at_ = reinterpret_cast<std::uintptr_t>(begin) % kLine;
    line_ = begin - at_;
  }
  StreamWriter(const StreamWriter&) = delete;
  StreamWriter& operator=(const StreamWriter&) = delete;
  ~StreamWriter() {
    std::memcpy(line_ + begin_, staged_ + begin_, at_ - begin_);
#ifdef __SSE2__
    _mm_sfence();
#endif
  }

  void fill(const LinePattern& pattern, std::size_t count) {
    if (at_) {
      const std::size_t part = std::min(count, kLine - at_);
      std::memcpy(staged_ + at_, pattern.bytes + at_, kLine);  // what is too much is overwritten later, or never put
      advance(part);
      count -= part;
    }
    if (count >= kLine) put(pattern.bytes, count / kLine);
    if (count %= kLine) {
      std::memcpy(staged_, pattern.bytes, kLine);
      at_ = count;
    }
  }
  void copy(const char* from, std::size_t count) {
    while (count) {
      const std::size_t part = std::min(count, kLine - at_);
      std::memcpy(staged_ + at_, from, kLine);
      advance(part);
      from += part;
      count -= part;
    }
  }

 private:
  void advance(std::size_t part) {
    at_ += part;
    if (at_ < kLine) return;
    if (begin_) {  // the first line, of which only the end is ours
      std::memcpy(line_ + begin_, staged_ + begin_, kLine - begin_);
      line_ += kLine;
    } else {
      put(staged_, 1);
    }
    begin_ = at_ = 0;
  }

  // The line `from`, `count` times.
  void put(const char* from, std::size_t count) {
#ifdef __SSE2__
    const __m128i* parts = reinterpret_cast<const __m128i*>(from);
    const __m128i a = parts[0], b = parts[1], c = parts[2], d = parts[3];
    __m128i* to = reinterpret_cast<__m128i*>(line_);
    line_ += count * kLine;
    for (; count; --count, to += 4) {
      _mm_stream_si128(to, a);
      _mm_stream_si128(to + 1, b);
      _mm_stream_si128(to + 2, c);
      _mm_stream_si128(to + 3, d);
    }
#else
    for (; count; --count, line_ += kLine) std::memcpy(line_, from, kLine);
#endif
  }

  char* line_;              // the line under way
  std::size_t begin_, at_;  // its bytes [begin_, at_) are ours and staged
  alignas(kLine) char staged_[2 * kLine];
};

}  // namespace maskattn
