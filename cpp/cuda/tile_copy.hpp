// Rows of an array, and their way into shared memory.
#pragma once

#include "cuda/numbers.hpp"
#include "cuda/ptx_async.hpp"

namespace maskattn::cuda {

// The rows of one (sequence, head), or of one head in pages.
struct RowsAt {
  const char* base;
  std::int64_t row_bytes, page_bytes;
  const int* pages;  // of the sequence, or null
  int page_size, page_count;

  __device__ const char* operator()(int row) const {
    if (!pages) return base + row * row_bytes;
    return base + pages[row / page_size % page_count] * page_bytes + row % page_size * row_bytes;
  }
};

template <int kElementBytes>
__device__ RowsAt rows_at(const Rows<const void>& rows, const AttentionCall& call, bool paged, int b, int h) {
  const bool in_pages = paged && call.page_table;
  const std::int64_t first = in_pages ? h * rows.stride[1] : row_offset(rows, b, h, 0);
  return {static_cast<const char*>(rows.data) + first * kElementBytes,
          rows.stride[2] * kElementBytes,
          rows.stride[0] * kElementBytes,
          in_pages ? call.page_table + static_cast<std::int64_t>(b) * call.pages_per_sequence : nullptr,
          call.page_size,
          call.pages_per_sequence};
}

// Whether all rows begin at multiples of 16 bytes, as asynchronous copies want it.
template <int kElementBytes>
bool rows_are_aligned(const Rows<const void>& rows) {
  bool aligned = reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0;
  for (const std::ptrdiff_t stride : rows.stride) aligned = aligned && stride * kElementBytes % 16 == 0;
  return aligned;
}

// Where 16-byte chunk number `chunk` of a row is. The exclusive or puts the chunks of one number of 8 rows into different banks.
template <int kRowBytes>
__device__ int swizzled(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// The same `rows`, a multiple of 8, and `chunks`, which have no bit in common with chunk, further on: where these are constants,
// few registers hold the addresses of all.
template <int kRowBytes>
__device__ int swizzled(int row, int chunk, int rows, int chunks) {
  return (row + rows) * kRowBytes + (chunks & ~7) * 16 + (((chunks & 7) ^ chunk ^ (row & 7)) << 4);
}

// The first `bytes` (at most 16) of a chunk, the rest zero, from an address of any alignment.
template <int kElementBytes>
__device__ uint4 read_chunk(const char* from, int bytes) {
  std::uint32_t word[4] = {};
#pragma unroll
  for (int i = 0; i < 16 / kElementBytes; ++i)
    if (i * kElementBytes < bytes) {
      if constexpr (kElementBytes == 4)
        word[i] = reinterpret_cast<const std::uint32_t*>(from)[i];
      else
        word[i / 2] |= static_cast<std::uint32_t>(reinterpret_cast<const std::uint16_t*>(from)[i]) << (16 * (i % 2));
    }
  return {word[0], word[1], word[2], word[3]};
}

// kRows rows of kRowBytes, of which `bytes` exist, by kThreads threads into swizzled memory. `address(row)` is null for a row of
// zeros; `anywhere` is an address that exists.
template <int kElementBytes, int kRows, int kRowBytes, int kThreads, class Address>
__device__ void copy_tile(char* to, const void* anywhere, int bytes, bool aligned, const Address& address) {
  constexpr int kChunks = kRowBytes / 16, kRowsAtOnce = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kRowsAtOnce == 0);
  const int chunk = threadIdx.x % kChunks, first = threadIdx.x / kChunks;
  const int mine = min(max(bytes - chunk * 16, 0), 16);
#pragma unroll 4
  for (int i = 0; i < kRows; i += kRowsAtOnce) {
    const int row = first + i;
    const char* const from = address(row);
    char* const place = to + swizzled<kRowBytes>(row, chunk);
    const bool any = from && mine;
    const void* const source = any ? from + chunk * 16 : anywhere;
    if (aligned)
      copy_async(place, source, any ? mine : 0);
    else
      *reinterpret_cast<uint4*>(place) = read_chunk<kElementBytes>(static_cast<const char*>(source), any ? mine : 0);
  }
}

}  // namespace maskattn::cuda
