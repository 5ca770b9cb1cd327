// Attention of few query rows over many keys, bound by memory: keys are split at multiples of 512, K and V are read once for all
// rows of a group, and splits are added in key order, whatever the batch and the device.
#include "cuda/decode_split.hpp"

namespace maskattn::cuda {

namespace {

constexpr int kMostColumns = 256;

template <int kRows>
struct VectorMemory {
  float query[kRows][kMostColumns];
  float weights[kDecodeWarps][kRows][kPiece];    // first the scores
  float lane_sums[kDecodeWarps][kRows][kPiece];  // of the weights of each lane's keys
  float factors[kDecodeWarps][kRows];            // of what was summed up before the last piece
  RowState states[kDecodeWarps][kRows];
  Sight<kRows> sight;
};

// Rows of a warp, without matrix units: a lane has one key of a piece while scores are made, and then columns of the values.
template <class T, int kColumns, int kRows>
class VectorRows {
  using S = Slots<T, kColumns>;
  static constexpr int kPerUnit = 16 / static_cast<int>(sizeof(T)), kLaneBytes = S::kPart / 32,
                       kLaneColumns = kLaneBytes / static_cast<int>(sizeof(T));

 public:
  static constexpr int kParts = kColumns * static_cast<int>(sizeof(T)) / S::kPart;  // of the widest values

  __device__ VectorRows(const AttentionCall& call, const ScoreTerms& terms, VectorMemory<kRows>& memory)
      : call_(call),
        terms_(terms),
        memory_(memory),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      memory.lane_sums[warp_][r][lane_] = 0;
      if (lane_ == 0) memory.states[warp_][r] = RowState();
      if (lane_ == 0) memory.factors[warp_][r] = 1;  // of rows that are not there, too
    }
    __syncwarp();
  }

  // A chain for each 32 columns, added in order.
  __device__ void add_products(const char* keys, int part) {
    const int units = (call_.head_dim - part * S::kUnits * kPerUnit) / kPerUnit;
    const float* query = &memory_.query[0][part * S::kUnits * kPerUnit];
#pragma unroll 1
    for (int first = 0; first < S::kUnits && first < units; first += 32 / kPerUnit) {
      float chain[kRows] = {};
#pragma unroll
      for (int unit = first; unit < first + 32 / kPerUnit; ++unit) {
        if (unit >= units) break;
        float k[kPerUnit];
        load_floats<T, 16>(keys + S::unit_offset(lane_, unit), k);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int i = 0; i < kPerUnit; i += 4) {
            const float4 q = *reinterpret_cast<const float4*>(query + r * kMostColumns + unit * kPerUnit + i);
            chain[r] = fmaf(q.w, k[i + 3], fmaf(q.z, k[i + 2], fmaf(q.y, k[i + 1], fmaf(q.x, k[i], chain[r]))));
          }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) scores_[r] += chain[r];
    }
  }

  // Scores become weights, which every lane may read then. Rows are a loop and not unrolled: it is long, and few lanes would
  // gain.
  __device__ void softmax(const DecodeShape& shape, const DecodeBlock& block, int piece) {
    float (&weights)[kRows][kPiece] = memory_.weights[warp_];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      weights[r][lane_] = scores_[r];
      scores_[r] = 0;
    }
#pragma unroll 1
    for (int r = 0; r < block.rows; ++r) softmax_row(shape, block, piece, r);
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float factor = memory_.factors[warp_][r];
      if (factor == 1.f) continue;
#pragma unroll
      for (int n = 0; n < kParts; ++n)
#pragma unroll
        for (int c = 0; c < kLaneColumns; ++c) sums_[r][n][c] *= factor;
    }
  }

  // kMixed: some row does not see a key of the piece that another sees, whose values may be anything. `part` is a constant where
  // this is inlined, or the sums would not be registers.
  template <bool kMixed>
  __device__ __forceinline__ void add_values(const char* values, int part, int piece) {
    const float (&weights)[kRows][kPiece] = memory_.weights[warp_];
#pragma unroll 2
    for (int first = 0; first < kPiece; first += 4) {
      float4 weight[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) weight[r] = *reinterpret_cast<const float4*>(&weights[r][first]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float v[kLaneColumns];
        const int byte = lane_ * kLaneBytes;
        load_floats<T, kLaneBytes>(values + S::unit_offset(first + i, byte / 16) + byte % 16, v);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (kMixed && !(memory_.sight.row[r][piece] >> (first + i) & 1)) continue;
          const float p = i == 0 ? weight[r].x : i == 1 ? weight[r].y : i == 2 ? weight[r].z : weight[r].w;
#pragma unroll
          for (int c = 0; c < kLaneColumns; ++c) sums_[r][part][c] = fmaf(p, v[c], sums_[r][part][c]);
        }
      }
    }
  }

  // To [kRows][kColumns] of the warp, and the states.
  __device__ void store(float* sums) {
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = warp_sum(memory_.lane_sums[warp_][r][lane_]);
      if (lane_ == 0) memory_.states[warp_][r].sum = sum;
#pragma unroll
      for (int n = 0; n < kParts; ++n)
#pragma unroll
        for (int c = 0; c < kLaneColumns; ++c)
          sums[r * kColumns + n * 32 * kLaneColumns + lane_ * kLaneColumns + c] = sums_[r][n][c];
    }
  }

 private:
  __device__ void softmax_row(const DecodeShape& shape, const DecodeBlock& block, int piece, int r) {
    const int key = block.split * kSplit + piece * kPiece + lane_;
    float& slot = memory_.weights[warp_][r][lane_];
    const bool seen = memory_.sight.row[r][piece] >> lane_ & 1;
    const float s =
        seen ? finished_score(call_, terms_, slot, block.b, block.head(shape, r), block.query(shape, r), key) : kMinusInfinity;
    RowState state = memory_.states[warp_][r];
    const float factor = state.raise(warp_maximum(s), terms_.log2.high);  // by now all lanes have read the state
    const float weight = seen ? softmax_weight(s, terms_.log2.high, terms_.log2.low, state.base()) : 0.f;
    float& sum = memory_.lane_sums[warp_][r][lane_];
    sum = fmaf(sum, factor, weight);
    slot = weight;
    if (lane_ == 0) {
      memory_.factors[warp_][r] = factor;
      memory_.states[warp_][r] = state;
    }
  }

  const AttentionCall& call_;
  const ScoreTerms& terms_;
  VectorMemory<kRows>& memory_;
  int warp_, lane_;
  float scores_[kRows] = {}, sums_[kRows][kParts][kLaneColumns] = {};
};

template <class T, int kColumns, int kRows>
constexpr std::size_t kVectorBytes = kDecodeWarps * kSlotMemory + sizeof(VectorMemory<kRows>);

template <class T, int kColumns, int kRows>
__global__ void __launch_bounds__(32 * kDecodeWarps, 2)
    decode_vector_kernel(AttentionCall call, ScoreTerms terms, DecodeShape shape, Partials partials) {
  using S = Slots<T, kColumns>;
  char* slots = dynamic_shared<char>();
  auto& memory = *reinterpret_cast<VectorMemory<kRows>*>(slots + kDecodeWarps * kSlotMemory);
  const DecodeBlock block = decode_block<kRows>(shape);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  for (int n = thread; n < kRows * kMostColumns; n += 32 * kDecodeWarps) {
    const int r = n / kMostColumns, d = n % kMostColumns;
    const bool real = r < block.rows && d < call.head_dim;
    memory.query[r][d] =
        real ? terms.sign * to_float(at<T>(call.q, row_offset(call.q, block.b, block.head(shape, r), block.query(shape, r)))[d])
             : 0.f;
  }
  if (!look(call, shape, block, memory.sight)) return finish_unseen_split<T>(call, shape, block, partials);
  char* const mine = slots + warp * kSlotMemory;
  KeyStream<T, kColumns> stream(call, block.b, block.kv_head, block.split * kSplit, memory.sight.any, mine);
  VectorRows<T, kColumns, kRows> rows(call, terms, memory);
  const int key_parts = S::parts(call.head_dim), value_parts = S::parts(call.v_head_dim);
#pragma unroll 1
  for (int piece = warp; piece < kPieces; piece += kDecodeWarps) {
    if (memory.sight.any[piece] == 0) continue;
#pragma unroll 1
    for (int part = 0; part < key_parts; ++part) rows.add_products(stream.next(), part);
    rows.softmax(shape, block, piece);
    const bool mixed = memory.sight.any[piece] != memory.sight.all[piece];
#pragma unroll
    for (int part = 0; part < VectorRows<T, kColumns, kRows>::kParts; ++part) {
      if (part >= value_parts) break;
      if (mixed)
        rows.template add_values<true>(stream.next(), part, piece);
      else
        rows.template add_values<false>(stream.next(), part, piece);
    }
  }
  __syncwarp();  // the last slot has been read
  rows.store(reinterpret_cast<float*>(mine));
  __syncthreads();
  finish_split<T, kRows, kColumns>(call, shape, block, partials, memory.states, reinterpret_cast<const float*>(slots),
                                   kSlotMemory / static_cast<int>(sizeof(float)));
}

template <class T, int kColumns, int kRows>
void launch_vector(const AttentionCall& call, const DecodeShape& shape, const Partials& partials, Stream stream) {
  const dim3 grid(shape.splits, call.kv_heads * ((shape.rows + kRows - 1) / kRows), call.batch);
  launch(decode_vector_kernel<T, kColumns, kRows>, grid, dim3(32 * kDecodeWarps), kVectorBytes<T, kColumns, kRows>, stream, call,
         score_terms(call), shape, partials);
}

template <class T, int kColumns>
void launch_rows(const AttentionCall& call, const DecodeShape& shape, const Partials& partials, Stream stream) {
  if (shape.rows == 1)
    launch_vector<T, kColumns, 1>(call, shape, partials, stream);
  else if (shape.rows == 2)
    launch_vector<T, kColumns, 2>(call, shape, partials, stream);
  else if (shape.rows <= 4)
    launch_vector<T, kColumns, 4>(call, shape, partials, stream);
  else
    launch_vector<T, kColumns, 8>(call, shape, partials, stream);
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
  return call.q_len <= 8 && call.head_dim <= kMostColumns && call.v_head_dim <= kMostColumns &&
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
  with_type(call.dtype, [&](auto number) {
    using T = decltype(number);
    if (call.v_head_dim <= 64)
      launch_rows<T, 64>(call, shape, partials, stream);
    else if (call.v_head_dim <= 128)
      launch_rows<T, 128>(call, shape, partials, stream);
    else
      launch_rows<T, 256>(call, shape, partials, stream);
    if (shape.splits > 1)
      launch(decode_merge_kernel<T>, dim3(shape.rows, call.kv_heads, call.batch), dim3(32 * kMergeWarps), 0, stream, call, shape,
             partials);
  });
}

}  // namespace maskattn::cuda
