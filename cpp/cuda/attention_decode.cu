// Attention of few query rows over many keys, bound by memory: keys are split at multiples of 512, K and V are read once for all
// rows of a group, and splits are added in key order, whatever the batch and the device.
#include <algorithm>

#include "cuda/decode_matrix.hpp"
#include "cuda/decode_vector.hpp"

namespace maskattn::cuda {

namespace {

// A block does the pieces of one split for up to kRows rows. `Rows` is VectorRows or MatrixRows.
template <class Rows>
__global__ void __launch_bounds__(32 * kDecodeWarps, Rows::kBlocks)
    decode_kernel(AttentionCall call, ScoreTerms terms, DecodeShape shape, Partials partials) {
  using S = typename Rows::S;
  using Stored = typename Rows::Stored;
  let_next_kernel_begin();
  char* slots = dynamic_shared<char>();
  auto& memory = *reinterpret_cast<typename Rows::Memory*>(slots + kDecodeWarps * kSlotMemory);
  DecodeBlock& block = memory.block;  // every thread's own would take registers that there are not
  if (threadIdx.x == 0) block = decode_block<Rows::kRows>(call, shape);
  __syncthreads();
  if (!look(call, shape, block, memory.sight)) return finish_unseen_split(call, shape, block, partials);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  char* const mine = slots + warp * kSlotMemory;
  KeyStream<Stored, Rows::kColumns> stream(call, block, memory.sight.any, mine);
  for (int n = thread; n < Rows::kRows * kMostHeadDim; n += 32 * kDecodeWarps) {  // while the first keys are on their way
    const int r = n / kMostHeadDim, d = n % kMostHeadDim;
    const bool real = r < block.rows && d < call.head_dim;
    const std::int64_t row = real ? row_offset(call.q, block.b, block.head(shape, r), block.query(shape, r)) : 0;
    memory.set_query(r, d, real ? terms.sign * read_float(call.q.data, call.dtype, row + d) : 0.f);
  }
  __syncthreads();
  Rows rows(call, terms, shape, memory);
  const int key_parts = S::parts(call.head_dim), value_parts = S::parts(call.v_head_dim);
#pragma unroll 1
  for (int piece = warp; piece < kPieces; piece += kDecodeWarps) {
    if (memory.sight.any[piece] == 0) continue;
    rows.begin(piece);
#pragma unroll 1
    for (int part = 0; part < key_parts; ++part) rows.add_products(stream.next(), part);
    rows.softmax(piece);
#pragma unroll
    for (int part = 0; part < Rows::kParts; ++part)
      if (part < value_parts) rows.add_values(stream.next(), part, piece);
  }
  __syncwarp();  // the last slot has been read
  rows.store(reinterpret_cast<float*>(mine));
  __syncthreads();
  finish_split<Rows::kRows, Rows::kColumns>(call, shape, block, partials, memory.states, reinterpret_cast<const float*>(slots),
                                            kSlotMemory / static_cast<int>(sizeof(float)));
}

// The splits of a row become its result: warp w adds splits w, w + 8, ... in order, then the warps' sums are added in theirs. A
// block for each row, numbered sequence by sequence and key head by key head.
constexpr int kMergeWarps = 8;
__global__ void __launch_bounds__(32 * kMergeWarps)
    decode_merge_kernel(AttentionCall call, DecodeShape shape, Partials partials) {
  MASKATTN_SHARED float sums[kMergeWarps][kMostHeadDim];
  MASKATTN_SHARED float totals[kMergeWarps];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int of_head = static_cast<int>(blockIdx.x) / shape.rows, of_row = static_cast<int>(blockIdx.x) % shape.rows;
  const DecodeBlock block{of_head / call.kv_heads, of_head % call.kv_heads, of_row, 1, 0};
  const std::int64_t first = block.partial(call, shape, 0);
  wait_for_previous_kernel();
  if (block.query(shape, 0) >= queries_of(call, block.b)) return;
  RowState row;
  for (int s = lane; s < shape.splits; s += 32) row.maximum = fmaxf(row.maximum, partials.states[first + s].x);
  row.maximum = warp_maximum(row.maximum);
  float mine[8] = {}, total = 0;  // columns 4 lane.., and 128 + 4 lane..
#pragma unroll 4
  for (int s = warp; s < shape.splits; s += kMergeWarps) {
    const float2 state = partials.states[first + s];
    const float factor = merge_factor(state.x, row.maximum);
    total = fmaf(state.y, factor, total);
    if (state.x == kMinusInfinity && state.y == 0) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = 128 * half + 4 * lane;
      if (column >= call.v_head_dim) continue;
      const float4 x = *reinterpret_cast<const float4*>(partials.sums + (first + s) * call.v_head_dim + column);
      mine[4 * half] = fmaf(x.x, factor, mine[4 * half]);
      mine[4 * half + 1] = fmaf(x.y, factor, mine[4 * half + 1]);
      mine[4 * half + 2] = fmaf(x.z, factor, mine[4 * half + 2]);
      mine[4 * half + 3] = fmaf(x.w, factor, mine[4 * half + 3]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[warp][128 * (i / 4) + 4 * lane + i % 4] = mine[i];
  if (lane == 0) totals[warp] = total;
  __syncthreads();
  for (int w = 0; w < kMergeWarps; ++w) row.sum += totals[w];
  const int head = block.head(shape, 0), query = block.query(shape, 0);
  const RowResult result = finish(row, call.sinks ? call.sinks + head : nullptr);
  if (thread < call.v_head_dim) {
    float value = 0;
    for (int w = 0; w < kMergeWarps; ++w) value += sums[w][thread];
    write_float(call.out.data, call.dtype, row_offset(call.out, block.b, head, query) + thread, value * result.factor);
  }
  if (call.lse && thread == 0) store_lse(call, block.b, head, query, result.lse);
}

template <class Rows>
void launch_decode(const AttentionCall& call, const DecodeShape& shape, const Partials& partials, Stream stream) {
  const std::int64_t heads = std::int64_t{call.batch} * call.kv_heads, row_groups = (shape.rows + Rows::kRows - 1) / Rows::kRows;
  launch(decode_kernel<Rows>, heads * shape.splits * row_groups, dim3(32 * kDecodeWarps),
         kDecodeWarps * kSlotMemory + sizeof(typename Rows::Memory), stream, call, score_terms(call), shape, partials);
  if (shape.splits > 1)
    launch_early(decode_merge_kernel, heads * shape.rows, dim3(32 * kMergeWarps), 0, stream, call, shape, partials);
}

template <class Stored, int kColumns>
void launch_vectors(const AttentionCall& call, const DecodeShape& shape, const Partials& partials, Stream stream) {
  const auto run = shape.rows == 1   ? launch_decode<VectorRows<Stored, kColumns, 1>>
                   : shape.rows <= 4 ? launch_decode<VectorRows<Stored, kColumns, 4>>
                                     : launch_decode<VectorRows<Stored, kColumns, 8>>;
  run(call, shape, partials, stream);
}

template <int kColumns>
void launch_columns(const AttentionCall& call, const DecodeShape& shape, const Partials& partials, Stream stream) {
  // A lane has at least 4 bytes of a row.
  if (call.k_scales) return launch_vectors<std::int8_t, std::max(kColumns, 128)>(call, shape, partials, stream);
  if (call.dtype == Dtype::float16) return launch_decode<MatrixRows<Dtype::float16, kColumns>>(call, shape, partials, stream);
  if (call.dtype == Dtype::bfloat16) return launch_decode<MatrixRows<Dtype::bfloat16, kColumns>>(call, shape, partials, stream);
  launch_vectors<float, kColumns>(call, shape, partials, stream);
}

bool whole_words(const Rows<const void>& rows, int dim) {
  const auto bytes = static_cast<std::ptrdiff_t>(size_of(rows.dtype));
  bool whole = reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && dim * bytes % 16 == 0;
  for (const std::ptrdiff_t stride : rows.stride) whole = whole && stride * bytes % 16 == 0;
  return whole;
}

}  // namespace

// Eight queries are those of a speculation; more have enough work for matrix units.
bool decode_can(const AttentionCall& call) {
  return call.q_len <= 8 && call.kv_len > 0 && call.head_dim <= kMostHeadDim && call.v_head_dim <= kMostHeadDim &&
         whole_words(call.k, call.head_dim) && whole_words(call.v, call.v_head_dim);
}

std::size_t decode_workspace_bytes(const AttentionCall& call) {
  const DecodeShape shape = decode_shape(call);
  if (shape.splits <= 1) return 0;
  return partial_count(call, shape) * (sizeof(float2) + static_cast<std::size_t>(call.v_head_dim) * sizeof(float));
}

void attention_decode(const AttentionCall& call, void* workspace, Stream stream) {
  const DecodeShape shape = decode_shape(call);
  // Sums first: rows of them are read 16 bytes at a time.
  auto* sums = static_cast<float*>(workspace);
  const Partials partials{
      reinterpret_cast<float2*>(sums + partial_count(call, shape) * static_cast<std::size_t>(call.v_head_dim)), sums};
  const auto run = call.v_head_dim <= 64    ? launch_columns<64>
                   : call.v_head_dim <= 128 ? launch_columns<128>
                                            : launch_columns<256>;
  run(call, shape, partials, stream);
}

}  // namespace maskattn::cuda
