// A warp for each row, without matrix units: who asks for the matrix is bound by writing it, or does not mind.
#include "cuda/weights.hpp"

#include "cuda/plain_row.hpp"

namespace maskattn::cuda {

namespace {

constexpr int kWarps = 4;

// The row of a warp, and where its results begin.
struct WeightsRow {
  PlainRow row;
  std::int64_t first;
};

MASKATTN_HD int blocks_of_head(const WeightsCall& weights) {
  return weights.row_count / kWarps + (weights.row_count % kWarps != 0);
}

__device__ bool row_of_warp(const WeightsCall& weights, WeightsRow& mine) {
  const AttentionCall& call = weights.call;
  const int of_head = blocks_of_head(weights), heads = static_cast<int>(blockIdx.x) / of_head;  // before this one
  const int number = static_cast<int>(blockIdx.x) % of_head * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (number >= weights.row_count) return false;
  const int b = heads / call.q_heads, head = heads % call.q_heads;
  mine.row = {b, head, head / (call.q_heads / call.kv_heads), weights.rows ? weights.rows[number] : number};
  mine.first = ((static_cast<std::int64_t>(b) * call.q_heads + head) * weights.row_count + number) * call.kv_len;
  return true;
}

template <class T>
__device__ void load_query(const AttentionCall& call, const ScoreTerms& terms, PlainRow row, float* query) {
  const T* q = at<T>(call.q, row_offset(call.q, row.b, row.head, row.query));
  for (int d = static_cast<int>(threadIdx.x) % 32; d < call.head_dim; d += 32) query[d] = terms.sign * to_float(q[d]);
  __syncwarp();
}

// As finished_score, but times the scale, and large where the bias is: of a pair that is seen.
__device__ float natural_score(const AttentionCall& call, const ScoreTerms& terms, float dot, PlainRow row, int key) {
  const float s = terms.cap != 0 ? capped(dot, terms) : dot;
  const float array = call.bias ? array_bias(call, row.b, row.head, row.query, key) : 0.f;
  const float bias = terms.biased ? array + distance_bias(call, row.b, row.head, row.query, key) : 0.f;
  return fmaf(s, terms.scale.low, fmaf(s, terms.scale.high, bias));
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps) scores_kernel(WeightsCall weights, ScoreTerms terms) {
  MASKATTN_SHARED float queries[kWarps][kMostColumns];
  const AttentionCall& call = weights.call;
  WeightsRow mine;
  if (!row_of_warp(weights, mine)) return;
  const PlainRow row = mine.row;
  float* query = queries[threadIdx.x / 32];
  load_query<T>(call, terms, row, query);
  T* out = static_cast<T*>(weights.out) + mine.first;
  for (int key = static_cast<int>(threadIdx.x) % 32; key < call.kv_len; key += 32) {
    const std::uint64_t visible = call.plan.visible(row.b, row.head, row.query, key / kTile);
    float score = kMinusInfinity;
    if ((visible >> key % kTile & 1) && !hidden_by_bias(call, row.b, row.head, row.query, key)) {
      const T* k = at<T>(call.k, key_offset(call, call.k, row.b, row.kv_head, key));
      score = natural_score(call, terms, dot_product(query, k, call.head_dim), row, key);
    }
    out[key] = from_float<T>(score);
  }
}

// Scores are multiplied once: they are written, and read again when the row's denominator is known.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) weights_kernel(WeightsCall weights, ScoreTerms terms) {
  MASKATTN_SHARED float queries[kWarps][kMostColumns];
  const AttentionCall& call = weights.call;
  WeightsRow mine;
  if (!row_of_warp(weights, mine)) return;
  const PlainRow row = mine.row;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float* query = queries[threadIdx.x / 32];
  load_query<T>(call, terms, row, query);
  float* scores = weights.scores + mine.first;
  RowState state;
  for (int tile = 0; tile < call.plan.kv_tiles; ++tile) {
    std::uint64_t visible = call.plan.visible(row.b, row.head, row.query, tile);
    const PlainScores found = scores_of_tile<T>(call, terms, row, query, tile, visible);
    state.sum *= state.raise(warp_maximum(fmaxf(found.s[0], found.s[1])), terms.log2.high);  // of this lane's keys
    for (int half = 0; half < 2; ++half) {
      const int key = tile * kTile + 32 * half + lane;
      if (key < call.kv_len) scores[key] = found.s[half];
      if (found.seen[half]) state.sum += softmax_weight(found.s[half], terms.log2.high, terms.log2.low, state.base());
    }
  }
  state.sum = warp_sum(state.sum);
  const float factor = finish(state, call.sinks ? call.sinks + row.head : nullptr).factor;
  T* out = static_cast<T*>(weights.out) + mine.first;
  for (int key = lane; key < call.kv_len; key += 32) {  // each lane those that it has written
    const float s = scores[key];
    const float weight = softmax_weight(s, terms.log2.high, terms.log2.low, state.base()) * factor;
    out[key] = from_float<T>(s == kMinusInfinity ? 0.f : weight);
  }
}

std::int64_t blocks_of(const WeightsCall& weights) {
  return std::int64_t{weights.call.batch} * weights.call.q_heads * blocks_of_head(weights);
}

}  // namespace

void attention_scores(const WeightsCall& weights, Stream stream) {
  with_type(weights.call.dtype, [&](auto number) {
    launch(scores_kernel<decltype(number)>, blocks_of(weights), dim3(32 * kWarps), 0, stream, weights, score_terms(weights.call));
  });
}

void attention_weights(const WeightsCall& weights, Stream stream) {
  with_type(weights.call.dtype, [&](auto number) {
    launch(weights_kernel<decltype(number)>, blocks_of(weights), dim3(32 * kWarps), 0, stream, weights,
           score_terms(weights.call));
  });
}

}  // namespace maskattn::cuda
