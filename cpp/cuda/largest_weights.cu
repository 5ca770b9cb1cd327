// The largest weights of each row, by a warp: all weights, then the least of those wanted, then those above it, sorted.
#include <algorithm>

#include "cuda/weights_row.hpp"

namespace maskattn::cuda {

namespace {

constexpr int kWarps = 4;
constexpr std::int64_t kMostScratch = 128 << 20;  // bytes, or what one block's rows need

// Weights as integers in their order; a key that is not seen comes before them.
constexpr std::uint32_t kUnseen = 0;
__device__ std::uint32_t code_of(float weight) { return __float_as_uint(weight) + 1; }
__device__ float weight_of(std::uint32_t code) { return __uint_as_float(code - 1); }

// Minus infinity is the score of a key that is not seen; where one that is seen has it, this weighs nothing as well.
constexpr float kLeastScore = -0x1.fffffep127f;

// The codes of a row's weights.
struct Codes {
  const std::uint32_t* codes;
  int count;

  // Calls visit(key, code) by all lanes together, for 32 keys at a time, the last ones unseen if there are none.
  template <class Visit>
  __device__ void for_each(const Visit& visit) const {
    for (int first = 0; first < count; first += 32) {
      const int key = first + static_cast<int>(threadIdx.x) % 32;
      visit(key, key < count ? codes[key] : kUnseen);
    }
  }

  __device__ int at_least(std::uint32_t code) const {
    int found = 0;
    for_each([&](int, std::uint32_t each) { found += __popc(__ballot_sync(0xffffffffu, each >= code)); });
    return found;
  }

  // The code at place `wanted` (from 1), from its highest bit to the lowest.
  __device__ std::uint32_t selected(int wanted) const {
    std::uint32_t code = 0;
    for (std::uint32_t bit = 0x80000000u; bit != 0; bit >>= 1)
      if (at_least(code | bit) >= wanted) code |= bit;
    return code;
  }
};

template <class Stored>
__device__ void write_codes(const AttentionCall& call, const ScoreTerms& terms, PlainRow row, const float* query,
                            std::uint32_t* codes) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const RowSoftmax softmax = softmax_of_row<Stored>(call, terms, row, query, [&](int tile, const PlainScores& found) {
    for (int half = 0; half < 2; ++half) {
      const int key = tile * kTile + 32 * half + lane;
      const bool least = found.seen[half] && found.s[half] == kMinusInfinity;
      if (key < call.kv_len) codes[key] = __float_as_uint(least ? kLeastScore : found.s[half]);
    }
  });
  for (int key = lane; key < call.kv_len; key += 32) {  // each lane those that it has written
    const float s = __uint_as_float(codes[key]);
    codes[key] = s == kMinusInfinity ? kUnseen : code_of(softmax.weight(s, terms));
  }
  __syncwarp();
}

// The first `wanted` by weight, and among the last of equal weight by key; in the order of keys.
__device__ void gather(const Codes& all, int wanted, std::int64_t* keys, float* weights) {
  const std::uint32_t least = all.selected(wanted);
  const unsigned before = (1u << threadIdx.x % 32) - 1;  // lanes
  int taken = 0, equals = wanted - all.at_least(least + 1);
  all.for_each([&](int key, std::uint32_t code) {
    const unsigned equal = __ballot_sync(0xffffffffu, code == least);
    const bool take = code > least || (code == least && __popc(equal & before) < equals);
    const unsigned takers = __ballot_sync(0xffffffffu, take);
    if (take) {
      keys[taken + __popc(takers & before)] = key;
      weights[taken + __popc(takers & before)] = weight_of(code);
    }
    taken += __popc(takers);
    equals -= min(__popc(equal), equals);
  });
  __syncwarp();
}

__device__ void exchange(std::int64_t* keys, float* weights, unsigned earlier, unsigned later) {
  const std::uint32_t a = code_of(weights[earlier]), b = code_of(weights[later]);
  if (a > b || (a == b && keys[earlier] < keys[later])) return;
  const std::int64_t key = keys[earlier];
  keys[earlier] = keys[later], keys[later] = key;
  weights[earlier] = weight_of(b), weights[later] = weight_of(a);
}

// A bitonic sort whose exchanges all point one way, so that what is missing to a power of two may be thought behind the end.
__device__ void sort(std::int64_t* keys, float* weights, int count) {
  const auto end = static_cast<unsigned>(count);
  for (unsigned half = 1; half < end; half *= 2)  // sorted runs of so many become runs of twice as many
    for (unsigned step = half; step > 0; step /= 2) {
      for (unsigned pair = threadIdx.x % 32;; pair += 32) {
        const unsigned place = pair & (step - 1), earlier = 2 * pair - place;
        if (earlier >= end) break;
        const unsigned later = step == half ? earlier - 2 * place + 2 * half - 1 : earlier + step;
        if (later < end) exchange(keys, weights, earlier, later);
      }
      __syncwarp();
    }
}

template <class T, class Stored>
__global__ void __launch_bounds__(32 * kWarps, 6)
    largest_kernel(LargestCall largest, ScoreTerms terms, std::int64_t first_row, std::int64_t end_row) {
  MASKATTN_SHARED float queries[kWarps][kMostColumns];
  const AttentionCall& call = largest.of.call;
  const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32, number = first_row + place;
  if (number >= end_row) return;
  const PlainRow row = row_of(call, largest.of.rows, largest.of.row_count, number);
  float* query = queries[threadIdx.x / 32];
  load_query<T>(call, terms, row, query);
  std::uint32_t* codes = largest.scratch + place * call.kv_len;
  write_codes<Stored>(call, terms, row, query, codes);
  const Codes all{codes, call.kv_len};
  const int wanted = min(largest.count, all.at_least(kUnseen + 1));
  std::int64_t* keys = largest.keys + number * largest.count;
  float* weights = largest.weights + number * largest.count;
  if (wanted > 0) {
    gather(all, wanted, keys, weights);
    sort(keys, weights, wanted);
  }
  for (int n = wanted + static_cast<int>(threadIdx.x) % 32; n < largest.count; n += 32) keys[n] = -1, weights[n] = 0;
}

// Rows of one launch, whose weights the scratch holds.
std::int64_t rows_at_once(const WeightsCall& weights) {
  const std::int64_t row_bytes = std::int64_t{weights.call.kv_len} * static_cast<std::int64_t>(sizeof(std::uint32_t));
  return std::min(rows_asked(weights), std::max<std::int64_t>(kMostScratch / std::max<std::int64_t>(row_bytes, 1), kWarps));
}

}  // namespace

std::size_t largest_scratch_bytes(const WeightsCall& weights) {
  return static_cast<std::size_t>(rows_at_once(weights) * weights.call.kv_len) * sizeof(std::uint32_t);
}

void largest_weights(const LargestCall& largest, Stream stream) {
  const std::int64_t rows = rows_asked(largest.of), step = rows_at_once(largest.of);
  with_types(largest.of.call, [&](auto number, auto stored) {
    for (std::int64_t first = 0; first < rows; first += step) {
      const std::int64_t end = std::min(rows, first + step);
      launch(largest_kernel<decltype(number), decltype(stored)>, (end - first + kWarps - 1) / kWarps, dim3(32 * kWarps), 0,
             stream, largest, score_terms(largest.of.call), first, end);
    }
  });
}

}  // namespace maskattn::cuda
