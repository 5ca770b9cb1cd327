// How much attention each key gets: first the softmax of every row, then the weights again, key by key, in fixed orders.
#include "cuda/weights_row.hpp"

namespace maskattn::cuda {

namespace {

constexpr int kWarps = 8;

template <class T, class Stored>
__global__ void __launch_bounds__(32 * kWarps) denominators_kernel(AttentionCall call, ScoreTerms terms, float2* softmaxes) {
  MASKATTN_SHARED float queries[kWarps][kMostColumns];
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (number >= std::int64_t{call.batch} * call.q_heads * call.q_len) return;
  const PlainRow row = row_of(call, nullptr, call.q_len, number);
  float* query = queries[threadIdx.x / 32];
  load_query<T>(call, terms, row, query);
  const RowSoftmax softmax = softmax_of_row<Stored>(call, terms, row, query, [](int, const PlainScores&) {});
  if (threadIdx.x % 32 == 0) softmaxes[number] = make_float2(softmax.base, softmax.factor);
}

// A block for each tile of keys of each head: warp w adds rows w, w + 8, ... in order, then the warps' sums are added in theirs.
template <class T, class Stored>
__global__ void __launch_bounds__(32 * kWarps)
    per_key_kernel(AttentionCall call, ScoreTerms terms, const float2* softmaxes, float* sums) {
  MASKATTN_SHARED float queries[kWarps][kMostColumns];
  MASKATTN_SHARED double parts[kWarps][kTile];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int tile = static_cast<int>(blockIdx.x) % call.plan.kv_tiles;
  const std::int64_t heads = blockIdx.x / static_cast<unsigned>(call.plan.kv_tiles);  // before this one
  double mine[2] = {};
  for (int query = warp; query < call.q_len; query += kWarps) {
    const std::int64_t number = heads * call.q_len + query;
    const PlainRow row = row_of(call, nullptr, call.q_len, number);
    std::uint64_t visible = call.plan.visible(row.b, row.head, row.query, tile);
    if (visible == 0) continue;
    __syncwarp();  // the last query has been read
    load_query<T>(call, terms, row, queries[warp]);
    const PlainScores found = scores_of_tile<Stored>(call, terms, row, queries[warp], tile, visible);
    const RowSoftmax softmax{softmaxes[number].x, softmaxes[number].y};
    for (int half = 0; half < 2; ++half)
      if (found.seen[half]) mine[half] += static_cast<double>(softmax.weight(found.s[half], terms));
  }
  for (int half = 0; half < 2; ++half) parts[warp][32 * half + lane] = mine[half];
  __syncthreads();
  const int key = static_cast<int>(threadIdx.x);
  if (key >= kTile || tile * kTile + key >= call.kv_len) return;
  double sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += parts[w][key];
  sums[heads * call.kv_len + tile * kTile + key] = static_cast<float>(sum);
}

}  // namespace

void weights_per_key(const AttentionCall& call, float* scratch, float* sums, Stream stream) {
  const std::int64_t heads = std::int64_t{call.batch} * call.q_heads, rows = heads * call.q_len;
  with_types(call, [&](auto number, auto stored) {
    using T = decltype(number);
    using Stored = decltype(stored);
    const ScoreTerms terms = score_terms(call);
    auto* const softmaxes = reinterpret_cast<float2*>(scratch);
    launch(denominators_kernel<T, Stored>, (rows + kWarps - 1) / kWarps, dim3(32 * kWarps), 0, stream, call, terms, softmaxes);
    launch(per_key_kernel<T, Stored>, heads * call.plan.kv_tiles, dim3(32 * kWarps), 0, stream, call, terms, softmaxes, sums);
  });
}

}  // namespace maskattn::cuda
