// A warp for each row, without matrix units: who asks for the matrix is bound by writing it, or does not mind.
#include "cuda/weights_row.hpp"

namespace maskattn::cuda {

namespace {

constexpr int kWarps = 4;

__device__ std::int64_t row_of_warp() { return static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; }

// As finished_score, but times the scale, and large where the bias is: of a pair that is seen.
__device__ float natural_score(const AttentionCall& call, const ScoreTerms& terms, float dot, PlainRow row, int key) {
  const float s = terms.cap != 0 ? capped(dot, terms) : dot;
  const float array = call.bias ? array_bias(call, row.b, row.head, row.query, key) : 0.f;
  const float bias = terms.biased ? array + distance_bias(call, row.b, row.head, row.query, key) : 0.f;
  return fmaf(s, terms.scale.low, fmaf(s, terms.scale.high, bias));
}

template <class T, class Stored>
__global__ void __launch_bounds__(32 * kWarps) scores_kernel(WeightsCall weights, ScoreTerms terms, std::int64_t rows) {
  MASKATTN_SHARED float queries[kWarps][kMostColumns];
  const AttentionCall& call = weights.call;
  const std::int64_t number = row_of_warp();
  if (number >= rows) return;
  const PlainRow row = row_of(call, weights.rows, weights.row_count, number);
  float* query = queries[threadIdx.x / 32];
  load_query<T>(call, terms, row, query);
  T* out = static_cast<T*>(weights.out) + number * call.kv_len;
  for (int key = static_cast<int>(threadIdx.x) % 32; key < call.kv_len; key += 32) {
    const std::uint64_t visible = call.plan.visible(row.b, row.head, row.query, key / kTile);
    float score = kMinusInfinity;
    if ((visible >> key % kTile & 1) && !hidden_by_bias(call, row.b, row.head, row.query, key)) {
      const auto k = stored_row<Stored>(call, call.k, call.k_scales, row.b, row.kv_head, key);
      score = natural_score(call, terms, dot_product(query, k, call.head_dim), row, key);
    }
    out[key] = from_float<T>(score);
  }
}

// Scores are multiplied once: they are written, and read again when the row's denominator is known.
template <class T, class Stored>
__global__ void __launch_bounds__(32 * kWarps) weights_kernel(WeightsCall weights, ScoreTerms terms, std::int64_t rows) {
  MASKATTN_SHARED float queries[kWarps][kMostColumns];
  const AttentionCall& call = weights.call;
  const std::int64_t number = row_of_warp();
  if (number >= rows) return;
  const PlainRow row = row_of(call, weights.rows, weights.row_count, number);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float* query = queries[threadIdx.x / 32];
  load_query<T>(call, terms, row, query);
  float* scores = weights.scores + number * call.kv_len;
  const RowSoftmax softmax = softmax_of_row<Stored>(call, terms, row, query, [&](int tile, const PlainScores& found) {
    for (int half = 0; half < 2; ++half) {
      const int key = tile * kTile + 32 * half + lane;
      if (key < call.kv_len) scores[key] = found.s[half];
    }
  });
  T* out = static_cast<T*>(weights.out) + number * call.kv_len;
  for (int key = lane; key < call.kv_len; key += 32) {  // each lane those that it has written
    const float s = scores[key];
    out[key] = from_float<T>(s == kMinusInfinity ? 0.f : softmax.weight(s, terms));
  }
}

std::int64_t blocks_of(const WeightsCall& weights) { return (rows_asked(weights) + kWarps - 1) / kWarps; }

}  // namespace

void attention_scores(const WeightsCall& weights, Stream stream) {
  with_types(weights.call, [&](auto number, auto stored) {
    launch(scores_kernel<decltype(number), decltype(stored)>, blocks_of(weights), dim3(32 * kWarps), 0, stream, weights,
           score_terms(weights.call), rows_asked(weights));
  });
}

void attention_weights(const WeightsCall& weights, Stream stream) {
  with_types(weights.call, [&](auto number, auto stored) {
    launch(weights_kernel<decltype(number), decltype(stored)>, blocks_of(weights), dim3(32 * kWarps), 0, stream, weights,
           score_terms(weights.call), rows_asked(weights));
  });
}

}  // namespace maskattn::cuda
