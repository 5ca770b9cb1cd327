// A row's weights by one warp, each score multiplied once: what the matrix of weights and all that is made of it share.
#pragma once

#include "cuda/plain_row.hpp"
#include "cuda/weights.hpp"

namespace maskattn::cuda {

// Row `number` of those asked about, numbered sequence by sequence and head by head; `rows` null: all queries.
__device__ inline PlainRow row_of(const AttentionCall& call, const int* rows, int row_count, std::int64_t number) {
  const int i = static_cast<int>(number % row_count);
  const auto heads = static_cast<int>(number / row_count);  // before this one
  const int head = heads % call.q_heads;
  return {heads / call.q_heads, head, head / (call.q_heads / call.kv_heads), rows ? rows[i] : i};
}

inline std::int64_t rows_asked(const WeightsCall& weights) {
  return std::int64_t{weights.call.batch} * weights.call.q_heads * weights.row_count;
}

// What makes weights of a row's scores.
struct RowSoftmax {
  float base, factor;

  __device__ float weight(float s, const ScoreTerms& terms) const {
    return softmax_weight(s, terms.log2.high, terms.log2.low, base) * factor;
  }
};

// Calls visit(tile, PlainScores) for every tile of keys, seen or not.
template <class Stored, class Visit>
__device__ RowSoftmax softmax_of_row(const AttentionCall& call, const ScoreTerms& terms, PlainRow row, const float* query,
                                     const Visit& visit) {
  RowState state;
  for (int tile = 0; tile < call.plan.kv_tiles; ++tile) {
    std::uint64_t visible = call.plan.visible(row.b, row.head, row.query, tile);
    const PlainScores found = scores_of_tile<Stored>(call, terms, row, query, tile, visible);
    state.sum *= state.raise(warp_maximum(fmaxf(found.s[0], found.s[1])), terms.log2.high);  // of this lane's keys
    visit(tile, found);
    for (int half = 0; half < 2; ++half)
      if (found.seen[half]) state.sum += softmax_weight(found.s[half], terms.log2.high, terms.log2.low, state.base());
  }
  state.sum = warp_sum(state.sum);
  return {state.base(), finish(state, call.sinks ? call.sinks + row.head : nullptr).factor};
}

}  // namespace maskattn::cuda
