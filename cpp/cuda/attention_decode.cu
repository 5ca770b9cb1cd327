// Attention of few query rows over many keys, bound by memory: keys are split at multiples of 512, K and V are read once for all
// rows of a group, and splits are added in key order, whatever the batch and the device.
#include "cuda/decode_matrix.hpp"
#include "cuda/decode_vector.hpp"

namespace maskattn::cuda {

namespace {

// A block does the pieces of one split for up to kRows rows. `Rows` is VectorRows or MatrixRows.
template <class Rows>
__global__ void __launch_bounds__(32 * kDecodeWarps, Rows::kBlocks)
    decode_kernel(AttentionCall call, ScoreTerms terms, DecodeShape shape, Partials partials) {
  using S = typename Rows::S;
  using T = typename Rows::T;
  let_next_kernel_begin();
  char* slots = dynamic_shared<char>();
  auto& memory = *reinterpret_cast<typename Rows::Memory*>(slots + kDecodeWarps * kSlotMemory);
  DecodeBlock& block = memory.block;  // every thread's own would take registers that there are not
  if (threadIdx.x == 0) block = decode_block<Rows::kRows>(call, shape);
  __syncthreads();
  if (!look(call, shape, block, memory.sight)) return finish_unseen_split<T>(call, shape, block, partials);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  char* const mine = slots + warp * kSlotMemory;
  KeyStream<T, Rows::kColumns> stream(call, block, memory.sight.any, mine);
  for (int n = thread; n < Rows::kRows * kMostHeadDim; n += 32 * kDecodeWarps) {  // while the first keys are on their way
    const int r = n / kMostHeadDim, d = n % kMostHeadDim;
    const bool real = r < block.rows && d < call.head_dim;
    const std::int64_t row = real ? row_offset(call.q, block.b, block.head(shape, r), block.query(shape, r)) : 0;
    memory.set_query(r, d, real ? terms.sign * to_float(at<T>(call.q, row)[d]) : 0.f);
  }
  __syncthreads();
  Rows rows(call, terms, shape, memory);
  const int key_parts = S::parts(call.head_dim), value_parts = S::parts(call.v_head_dim);
#pragma unroll 1
  for (int piece = warp; piece < kPieces; piece += kDecodeWarps) {
    if (memory.sight.any[piece] == 0) continue;
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
  finish_split<T, Rows::kRows, Rows::kColumns>(call, shape, block, partials, memory.states, reinterpret_cast<const float*>(slots),
                                               kSlotMemory / static_cast<int>(sizeof(float)));
}

template <class Rows>
void launch_decode(const AttentionCall& call, const DecodeShape& shape, const Partials& partials, Stream stream) {
  const std::int64_t heads = std::int64_t{call.batch} * call.kv_heads, row_groups = (shape.rows + Rows::kRows - 1) / Rows::kRows;
  launch(decode_kernel<Rows>, heads * shape.splits * row_groups, dim3(32 * kDecodeWarps),
         kDecodeWarps * kSlotMemory + sizeof(typename Rows::Memory), stream, call, score_terms(call), shape, partials);
  if (shape.splits > 1)
    launch_early(decode_merge_kernel<typename Rows::T>, heads * shape.rows, dim3(32 * kMergeWarps), 0, stream, call, shape,
                 partials);
}

template <int kColumns>
void launch_columns(const AttentionCall& call, const DecodeShape& shape, const Partials& partials, Stream stream) {
  if (call.dtype == Dtype::float16) return launch_decode<MatrixRows<Dtype::float16, kColumns>>(call, shape, partials, stream);
  if (call.dtype == Dtype::bfloat16) return launch_decode<MatrixRows<Dtype::bfloat16, kColumns>>(call, shape, partials, stream);
  const auto run = shape.rows == 1   ? launch_decode<VectorRows<kColumns, 1>>
                   : shape.rows <= 4 ? launch_decode<VectorRows<kColumns, 4>>
                                     : launch_decode<VectorRows<kColumns, 8>>;
  run(call, shape, partials, stream);
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
  return !call.k_scales && call.q_len <= 8 && call.kv_len > 0 && call.head_dim <= kMostHeadDim &&
         call.v_head_dim <= kMostHeadDim && whole_words(call.k, call.head_dim) && whole_words(call.v, call.v_head_dim);
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
