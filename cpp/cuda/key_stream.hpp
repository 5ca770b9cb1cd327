// The keys and values of a decode on their way through shared memory: each warp reads pieces of 32 keys of its own, by
// asynchronous copies, and waits for nobody else.
//
// How much must be under way: by Little's law bandwidth * latency, on an H200 4.8 TB/s * 0.8 us = 3.8 MB, 29 KB for each of its
// 132 multiprocessors. A warp has 16 KB of slots, of which all but one are being filled: 8 KB (2 slots) or 12 KB (4 slots). Three
// blocks of 4 warps are at home on a multiprocessor (3 * 75 KB of its 228 KB), so that 96 KB are under way there. That is three
// times what is needed, so that one block suffices while others begin or end: their first look at the plan, the first latency,
// the last sums.
#pragma once

#include "cuda/decode_block.hpp"
#include "cuda/numbers.hpp"
#include "cuda/ptx_async.hpp"

namespace maskattn::cuda {

inline constexpr int kSlotMemory = 16 * 1024;  // of a warp

// A slot has kPart bytes of 32 rows, a part of their columns. The 16-byte units of row r are exchanged by r % 8, so that 8 lanes
// that read the same unit of 8 rows find it in different banks.
template <class T, int kColumns>
struct Slots {
  static constexpr int kPart = kColumns * static_cast<int>(sizeof(T)) <= 128 ? 128 : 256;
  static constexpr int kUnits = kPart / 16, kBytes = kPiece * kPart, kCount = kSlotMemory / kBytes;

  __device__ static int unit_offset(int row, int unit) { return row * kPart + ((unit ^ (row & 7)) << 4); }
  __host__ __device__ static int parts(int dim) { return (dim * static_cast<int>(sizeof(T)) + kPart - 1) / kPart; }
};

// The slots of a warp: for each of its pieces that is seen, the parts of the keys and then those of the values.
template <class T, int kColumns>
class KeyStream {
  using S = Slots<T, kColumns>;

 public:
  // seen[i]: the keys of piece i of the split of which some row sees any; others are not read, and are zeros here.
  __device__ KeyStream(const AttentionCall& call, const DecodeBlock& block, const std::uint32_t* seen, char* memory)
      : call_(call), block_(block), seen_(seen), memory_(memory) {
    key_parts_ = S::parts(call.head_dim);
    parts_ = key_parts_ + S::parts(call.v_head_dim);
    piece_ = static_cast<int>(threadIdx.x) / 32 - kDecodeWarps;
    next_piece();
#pragma unroll 1
    for (int i = 0; i < S::kCount - 1; ++i) issue();
  }

  // The next slot, which the one before the last call is no longer after.
  __device__ const char* next() {
    wait_copies<S::kCount - 2>();
    __syncwarp();
    const char* here = memory_ + ready_ * S::kBytes;
    ready_ = ready_ + 1 == S::kCount ? 0 : ready_ + 1;
    issue();
    return here;
  }

 private:
  __device__ void next_piece() {
    do piece_ += kDecodeWarps;
    while (piece_ < kPieces && seen_[piece_] == 0);
    part_ = 0;
    if (!call_.page_table || piece_ >= kPieces) return;
    const int lane = static_cast<int>(threadIdx.x) % 32, key = block_.split * kSplit + piece_ * kPiece + lane;
    if (!(seen_[piece_] >> lane & 1)) return;
    const std::int64_t pages = static_cast<std::int64_t>(block_.b) * call_.pages_per_sequence;
    page_ = call_.page_table[pages + key / call_.page_size % call_.pages_per_sequence];
    row_ = key % call_.page_size;
  }

  __device__ void issue() {
    if (piece_ < kPieces) {
      const bool values = part_ >= key_parts_;
      if (values)
        copy(call_.v, call_.v_head_dim, part_ - key_parts_);
      else
        copy(call_.k, call_.head_dim, part_);
      if (++part_ == parts_) next_piece();
    }
    commit_copies();
    filling_ = filling_ + 1 == S::kCount ? 0 : filling_ + 1;
  }

  __device__ void copy(const Rows<const void>& rows, int dim, int part) {
    const int lane = static_cast<int>(threadIdx.x) % 32, bytes = dim * static_cast<int>(sizeof(T)) - part * S::kPart;
    const T* base = at<T>(rows, block_.kv_head * rows.stride[1]) + part * (S::kPart / static_cast<int>(sizeof(T)));
    const std::int64_t first = call_.page_table ? 0 : row_offset(rows, block_.b, 0, block_.split * kSplit + piece_ * kPiece);
    char* to = memory_ + filling_ * S::kBytes;
    const std::uint32_t seen = seen_[piece_];
#pragma unroll 2
    for (int i = 0; i < S::kUnits; ++i) {
      const int row = (i * 32 + lane) / S::kUnits, unit = (i * 32 + lane) % S::kUnits;
      std::int64_t offset = first + row * rows.stride[2];
      if (call_.page_table)
        offset = __shfl_sync(0xffffffffu, page_, row) * rows.stride[0] + __shfl_sync(0xffffffffu, row_, row) * rows.stride[2];
      const bool wanted = seen >> row & 1;
      const T* from = base + (wanted ? offset : 0) + unit * (16 / static_cast<int>(sizeof(T)));
      const bool real = wanted && unit * 16 < bytes;
      // Columns are multiplied 16 at a time: zeros behind an odd number of 8.
      if (unit * 16 < bytes + 16) copy_async(to + S::unit_offset(row, unit), real ? from : base, real ? 16 : 0);
    }
  }

  const AttentionCall& call_;
  const DecodeBlock& block_;
  const std::uint32_t* seen_;
  char* memory_;
  int key_parts_, parts_;
  int piece_, part_ = 0, filling_ = 0;  // what is copied next, and to which slot
  int ready_ = 0;
  int page_ = 0, row_ = 0;  // where this lane's key of that piece is
};

}  // namespace maskattn::cuda
