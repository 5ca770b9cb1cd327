#include "cuda/decoder/elementwise.hpp"

#include <algorithm>

#include "cuda/numbers.hpp"
#include "cuda/softmax.hpp"

namespace maskattn::cuda {
namespace {

constexpr int kThreads = 256, kWarpSize = 32, kWarps = kThreads / kWarpSize;

MASKATTN_HD std::int64_t blocks_of(std::int64_t count) { return (count + kThreads - 1) / kThreads; }
// Of a block that does one row: no more than it has elements.
unsigned threads_of(int width) {
  return static_cast<unsigned>(std::clamp((width + kWarpSize - 1) / kWarpSize * kWarpSize, kWarpSize, kThreads));
}

// The same sum in all threads of the block.
__device__ float block_sum(float x) {
  MASKATTN_SHARED float parts[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, warps = static_cast<int>(blockDim.x) / kWarpSize;
  x = warp_sum(x);
  __syncthreads();  // parts of the last sum may be read still
  if (threadIdx.x % kWarpSize == 0) parts[warp] = x;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < warps; ++i) sum += parts[i];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) normalize_rows(Norm norm, int width, const float* x, T* out) {
  const float* row = x + std::int64_t{blockIdx.x} * width;
  const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  float sum = 0, squares = 0;
  if (!norm.root)
    for (int i = first; i < width; i += step) sum += row[i];
  const float mean = norm.root ? 0 : block_sum(sum) / static_cast<float>(width);
  for (int i = first; i < width; i += step) squares += (row[i] - mean) * (row[i] - mean);
  const float factor = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(width) + norm.eps);
  for (int i = first; i < width; i += step) {
    const float value = (row[i] - mean) * factor * norm.weight[i];
    out[std::int64_t{blockIdx.x} * width + i] = from_float<T>(norm.bias ? value + norm.bias[i] : value);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) activate_rows(Function function, bool gated, int width, const float* x, T* out) {
  const int of_row = static_cast<int>(blocks_of(width)), number = static_cast<int>(blockIdx.x) / of_row;
  const int i = static_cast<int>(blockIdx.x) % of_row * kThreads + static_cast<int>(threadIdx.x);
  if (i >= width) return;
  const float* row = x + std::int64_t{number} * (gated ? 2 : 1) * width;
  const float value = apply(function, row[i]);
  out[std::int64_t{number} * width + i] = from_float<T>(gated ? value * row[i + width] : value);
}

template <class T>
__global__ void __launch_bounds__(kThreads) convert_elements(std::int64_t count, const float* x, T* out) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) out[i] = from_float<T>(x[i]);
}

__global__ void __launch_bounds__(kThreads) add_elements(std::int64_t count, const float* x, float* to) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) to[i] += x[i];
}

__global__ void __launch_bounds__(kThreads) cap_elements(std::int64_t count, float* x, float cap) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) x[i] = cap * tanhf(x[i] / cap);
}

template <class Element>
__global__ void __launch_bounds__(kThreads) gather_rows(int width, const Element* from, const int* rows, Element* out) {
  const int row = rows[blockIdx.x];
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x))
    out[std::int64_t{blockIdx.x} * width + i] = row < 0 ? Element{} : from[std::int64_t{row} * width + i];
}

template <class T>
__global__ void __launch_bounds__(kThreads) embed_rows(int width, const int* tokens, const T* table, float scale, float* x) {
  const T* row = table + std::int64_t{tokens[blockIdx.x]} * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x))
    x[std::int64_t{blockIdx.x} * width + i] = scale * to_float(row[i]);
}

__global__ void __launch_bounds__(kThreads) add_named_rows(int width, AddedRows added, float* x) {
  const float *segment = added.segments, *position = added.positions;
  if (segment && added.segment_of) segment += std::int64_t{added.segment_of[blockIdx.x]} * width;
  if (position)
    position += std::int64_t{min(added.position_of[blockIdx.x] + added.position_offset, added.position_count - 1)} * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
    float value = x[std::int64_t{blockIdx.x} * width + i];
    if (segment) value += segment[i];
    if (position) value += position[i];
    x[std::int64_t{blockIdx.x} * width + i] = value;
  }
}

__device__ std::int64_t place(const HeadsTarget& target, int sequence, int head, int position) {
  int page = sequence;
  if (target.table) {
    page = target.table[sequence * target.per_sequence + position / target.page_size];
    position %= target.page_size;
  }
  return page * target.strides[0] + head * target.strides[1] + position * target.strides[2];
}

// Coordinate c of a head, normalised by numbers that hold for all of it.
struct HeadNorm {
  Norm norm;
  float mean, factor;
  __device__ float operator()(const float* head, int c) const {
    if (!norm.weight) return head[c];
    const float value = (head[c] - mean) * factor * norm.weight[c];
    return norm.bias ? value + norm.bias[c] : value;
  }
};

__device__ HeadNorm measured(const Norm& norm, const float* head, int dim) {
  HeadNorm made{norm, 0, 1};
  if (!norm.weight) return made;
  const int lane = static_cast<int>(threadIdx.x);
  float sum = 0, squares = 0;
  if (!norm.root) {
    for (int c = lane; c < dim; c += kWarpSize) sum += head[c];
    made.mean = warp_sum(sum) / static_cast<float>(dim);
  }
  for (int c = lane; c < dim; c += kWarpSize) squares += (head[c] - made.mean) * (head[c] - made.mean);
  made.factor = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(dim) + norm.eps);
  return made;
}

constexpr int kHeadsPerBlock = 4;
MASKATTN_HD int blocks_of_heads(int heads) { return (heads + kHeadsPerBlock - 1) / kHeadsPerBlock; }

// A warp a head. Each coordinate of the first half that turns is turned with the one of the second half.
template <class T>
__global__ void __launch_bounds__(kWarpSize* kHeadsPerBlock) store_head_rows(HeadsCall call) {
  const int all = call.q_heads + 2 * call.kv_heads, of_row = blocks_of_heads(all), row = static_cast<int>(blockIdx.x) / of_row;
  const int index = static_cast<int>(blockIdx.x) % of_row * kHeadsPerBlock + static_cast<int>(threadIdx.y);
  if (index >= all) return;
  const bool query = index < call.q_heads, key = !query && index < call.q_heads + call.kv_heads;
  const int head = query ? index : (index - call.q_heads) % call.kv_heads;
  const float* from = call.joined + (std::int64_t{row} * all + index) * call.head_dim;
  const HeadNorm normed = measured(query ? call.q_norm : key ? call.k_norm : Norm{}, from, call.head_dim);
  const HeadsTarget& target = query ? call.q : key ? call.keys : call.values;
  const int position = query ? call.indices[row] : call.positions[row];
  T* to = static_cast<T*>(target.data) + place(target, call.sequences[row], head, position);
  const int half = query || key ? call.rotary_half : 0;
  for (int c = static_cast<int>(threadIdx.x); c < call.head_dim; c += kWarpSize) {
    float value = normed(from, c);
    if (c < 2 * half) {
      const int pair = c < half ? c : c - half;
      const float cosine = call.cosines[std::int64_t{row} * half + pair], sine = call.sines[std::int64_t{row} * half + pair];
      const float other = normed(from, c < half ? c + half : pair);
      value = c < half ? value * cosine - other * sine : value * cosine + other * sine;
    }
    to[c] = from_float<T>(value);
  }
}

template <class Element>
__global__ void __launch_bounds__(kThreads) copy_page_rows(PageCopy pool, const int* sources, const int* targets, int slots) {
  const std::int64_t page = std::int64_t{pool.heads} * pool.page_size * pool.dim;
  const int copied = static_cast<int>(blockIdx.x) / pool.heads;
  const std::int64_t head = std::int64_t{static_cast<int>(blockIdx.x) % pool.heads} * pool.page_size * pool.dim;
  Element* data = static_cast<Element*>(pool.pool);
  const Element* from = data + sources[copied] * page + head;
  Element* to = data + targets[copied] * page + head;
  for (int i = static_cast<int>(threadIdx.x); i < slots * pool.dim; i += static_cast<int>(blockDim.x)) to[i] = from[i];
}

}  // namespace

void normalize(const Norm& norm, int rows, int width, const float* x, void* out, Dtype dtype, Stream stream) {
  with_type(dtype, [&]<class T>(T) {
    launch(normalize_rows<T>, rows, threads_of(width), 0, stream, norm, width, x, static_cast<T*>(out));
  });
}

void activate(Function function, bool gated, int rows, int width, const float* x, void* out, Dtype dtype, Stream stream) {
  with_type(dtype, [&]<class T>(T) {
    launch(activate_rows<T>, rows * blocks_of(width), kThreads, 0, stream, function, gated, width, x, static_cast<T*>(out));
  });
}

void convert(std::int64_t count, const float* x, void* out, Dtype dtype, Stream stream) {
  with_type(dtype, [&]<class T>(T) {
    launch(convert_elements<T>, blocks_of(count), kThreads, 0, stream, count, x, static_cast<T*>(out));
  });
}

void add(std::int64_t count, const float* x, float* to, Stream stream) {
  launch(add_elements, blocks_of(count), kThreads, 0, stream, count, x, to);
}

void cap_scores(std::int64_t count, float* x, float cap, Stream stream) {
  launch(cap_elements, blocks_of(count), kThreads, 0, stream, count, x, cap);
}

void gather(int count, int width, int element_bytes, const void* from, const int* rows, void* out, Stream stream) {
  const auto run = [&]<class Element>(Element) {
    launch(gather_rows<Element>, count, threads_of(width), 0, stream, width, static_cast<const Element*>(from), rows,
           static_cast<Element*>(out));
  };
  if (element_bytes == 4)
    run(std::uint32_t{});
  else
    run(std::uint16_t{});
}

void embed(int rows, int width, const int* tokens, const void* table, Dtype dtype, float scale, float* x, Stream stream) {
  with_type(dtype, [&]<class T>(T) {
    launch(embed_rows<T>, rows, threads_of(width), 0, stream, width, tokens, static_cast<const T*>(table), scale, x);
  });
}

void add_rows(int rows, int width, const AddedRows& added, float* x, Stream stream) {
  if (added.segments || added.positions) launch(add_named_rows, rows, threads_of(width), 0, stream, width, added, x);
}

void store_heads(const HeadsCall& call, Dtype dtype, Stream stream) {
  const std::int64_t blocks = std::int64_t{call.rows} * blocks_of_heads(call.q_heads + 2 * call.kv_heads);
  with_type(dtype, [&]<class T>(T) { launch(store_head_rows<T>, blocks, dim3(kWarpSize, kHeadsPerBlock), 0, stream, call); });
}

void copy_pages(const PageCopy& pool, int count, const int* sources, const int* targets, int slots, Stream stream) {
  const auto run = [&]<class Element>(Element) {
    launch(copy_page_rows<Element>, std::int64_t{count} * pool.heads, threads_of(slots * pool.dim), 0, stream, pool, sources,
           targets, slots);
  };
  switch (pool.element_bytes) {
    case 1: return run(std::uint8_t{});
    case 2: return run(std::uint16_t{});
    default: return run(std::uint32_t{});
  }
}

}  // namespace maskattn::cuda
