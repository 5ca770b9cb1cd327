#include "maskattn/attention.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "block.hpp"
#include "dispatch.hpp"
#include "memory.hpp"
#include "state.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

// Memory for the parts of a split that a thread keeps for the next call.
constexpr std::size_t kKeptParts = 1 << 20;

template <class T>
class Attention {
 public:
  Attention(const AttentionInputs& in, int threads, const Kernels& kernels, const MatrixTable* matrix, Rows<void> out,
            Rows<void> lse)
      : in_(in),
        threads_(threads),
        call_(in, threads, in.v_head_dim, kernels, matrix),
        kernels_(call_.kernels),
        columns_(call_.columns),
        out_(out),
        lse_(lse) {}

  void run() {
    const std::int64_t blocks = in_.batch * in_.kv_heads * call_.cut.blocks;
    if (threads_ > 1) longest_first();
    if (threads_ > 1 && !whole_blocks_balance(blocks)) {
      for (std::int64_t index = 0; index < blocks; ++index) split_over_keys(place(index));
    } else {
      parallel_for(blocks, threads_, [this](std::int64_t index) { whole(place(index)); });
    }
  }

 private:
  // Tells a matrix unit that this thread is going to use it.
  struct MatrixUse {
    const MatrixTable* const matrix;
    explicit MatrixUse(const MatrixTable* matrix) : matrix(matrix) {
      if (matrix && matrix->begin) matrix->begin();
    }
    MatrixUse(const MatrixUse&) = delete;
    MatrixUse& operator=(const MatrixUse&) = delete;
    ~MatrixUse() {
      if (matrix && matrix->end) matrix->end();
    }
  };

  // Blocks of late queries come first: under a causal mask they are the longest. Sequences that share a bias follow each other,
  // which keeps it in the second-level cache.
  BlockPlace place(std::int64_t index) const {
    const auto [part, pair] = divide(index, in_.batch * in_.kv_heads);
    const bool shared = in_.bias.data && in_.bias.stride[0] == 0;
    const auto [outer, inner] = divide(pair, shared ? in_.batch : in_.kv_heads);
    const std::int64_t sequence = shared ? inner : outer, kv_head = shared ? outer : inner;
    return call_.cut.place(in_, order_.empty() ? sequence : order_[static_cast<std::size_t>(sequence)], kv_head,
                           call_.cut.blocks - 1 - part);
  }

  // The keys that the last query of a sequence sees, and those between them.
  std::int64_t length(std::int64_t b) const {
    if (!in_.mask) return in_.kv_lengths ? in_.kv_lengths[b] : in_.kv_len;
    if (in_.q_len == 0) return 0;
    const PlanRow row = in_.mask->row(b, 0, in_.q_rows ? in_.q_rows[in_.q_len - 1] : in_.q_len - 1);
    return row.count > 0 ? row.spans[row.count - 1].end - row.spans[0].begin : 0;
  }

  void longest_first() {
    if (in_.batch == 1 || !(in_.kv_lengths || in_.mask)) return;
    order_.resize(static_cast<std::size_t>(in_.batch));
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [this](std::int64_t a, std::int64_t b) { return length(a) > length(b); });
  }

  // Whether threads that take one whole block after the other, in this order, end at about the same time.
  bool whole_blocks_balance(std::int64_t blocks) const {
    if (blocks >= 8 * threads_ || in_.kv_len < 2 * threads_ * kSegment) return true;
    std::vector<std::int64_t> busy(static_cast<std::size_t>(threads_), 0);
    std::int64_t total = 0;
    for (std::int64_t index = 0; index < blocks; ++index) {
      const std::int64_t keys = length(place(index).b);
      *std::min_element(busy.begin(), busy.end()) += keys;
      total += keys;
    }
    return 8 * threads_ * *std::max_element(busy.begin(), busy.end()) <= 9 * total;
  }

  void whole(const BlockPlace& place) const {
    if (place.rows == 0) return;
    const MatrixUse use(call_.matrix);
    Block<T> block(call_, place);
    State<T> state;
    state.clear(block.rows());
    T* out = block.scratch().out;
    std::fill_n(out, block.rows() * columns_, T{0});
    for (std::int64_t s = block.first_segment(); s < block.last_segment(); ++s) block.attend(s, state, out);
    finish(block, state, out, place.b);
  }

  // Too few blocks for the threads: each segment's part is computed on its own, and the parts are merged in the order, and with
  // the arithmetic, of the walk above.
  void split_over_keys(const BlockPlace& place) const {
    if (place.rows == 0) return;
    Block<T> block(call_, place);
    const std::int64_t rows = place.rows, first = block.first_segment(), segments = block.last_segment() - first;
    const std::int64_t part = rows * columns_, count = segments * (part + 2 * rows);
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    const std::unique_ptr<T[]> large(bytes > kKeptParts ? new T[static_cast<std::size_t>(count)] : nullptr);
    T* const parts = large ? large.get() : static_cast<T*>(thread_memory(bytes, Use::parts));
    T *const maxima = parts + segments * part, *const sums = maxima + segments * rows;
    const std::int64_t per_piece = std::max<std::int64_t>(1, segments / (4 * threads_));
    parallel_for((segments + per_piece - 1) / per_piece, threads_, [&](std::int64_t piece) {
      const MatrixUse use(call_.matrix);
      Block<T> own(call_, place);
      State<T> state;
      for (std::int64_t s = piece * per_piece; s < std::min(segments, (piece + 1) * per_piece); ++s) {
        state.clear(place.rows);
        std::fill_n(parts + s * part, part, T{0});
        own.attend(first + s, state, parts + s * part);
        std::copy_n(state.maximum, rows, maxima + s * rows);
        std::copy_n(state.sum, rows, sums + s * rows);
      }
    });
    State<T> state;
    state.clear(place.rows);
    T* out = block.scratch().out;
    std::fill_n(out, part, T{0});
    for (int r = 0; r < rows; ++r) {
      for (std::int64_t s = 0; s < segments; ++s) {
        T old_scale, new_scale;
        merge_state(state.maximum[r], state.sum[r], maxima[s * rows + r], sums[s * rows + r], old_scale, new_scale);
        if (new_scale != 0)
          kernels_.merge(out + r * columns_, parts + s * part + r * columns_, old_scale, new_scale, static_cast<int>(columns_));
      }
    }
    finish(block, state, out, place.b);
  }

  void finish(const Block<T>& block, State<T>& state, T* from, std::int64_t b) const {
    const auto write = kernels_.write_quotients[static_cast<int>(out_.dtype)];
    for (int r = 0; r < block.rows(); ++r, from += columns_) {
      const std::int64_t h = block.head(r), i = block.query(r);
      const T old_scale = in_.sinks ? merge_sink(state.maximum[r], state.sum[r], in_.sinks[h]) : T{1}, sum = state.sum[r];
      if (sum == 0) std::fill_n(from, in_.v_head_dim, T{0});
      write(from, static_cast<int>(in_.v_head_dim), old_scale, sum == 0 ? T{1} : sum, out_.at(b, h, i));  // a zero's sign is +
      if (lse_.data) *static_cast<T*>(lse_.at(b, h, i)) = log_sum(state.maximum[r], sum);
    }
  }

  const AttentionInputs& in_;
  const int threads_;
  const Call<T> call_;
  const KernelTable<T>& kernels_;
  const std::int64_t columns_;
  const Rows<void> out_, lse_;
  std::vector<std::int64_t> order_;  // of the sequences, where they differ
};

// How many bfloat16 numbers an element becomes where a matrix unit multiplies: one that is such a number stays one.
int terms(const AttentionInputs& in) {
  const auto is_one = [](Dtype dtype) { return dtype == Dtype::bfloat16; };
  if (is_one(in.q.dtype) && is_one(in.k.dtype) && is_one(in.v.dtype)) return 1;
  return in.precision == Precision::highest ? 3 : in.precision == Precision::high ? 2 : 1;
}

// One thread where waking others costs more than the work: each key is packed and read once per key head, and then multiplied
// with every query row of its group.
int worthwhile_threads(const AttentionInputs& in) {
  constexpr double kSmall = 2e6, kPacking = 8;
  const double rows = static_cast<double>(in.q_len) * static_cast<double>(in.q_heads);
  const double keys = static_cast<double>(in.kv_len) * static_cast<double>(in.kv_heads);
  const double heads = static_cast<double>(std::max<std::int64_t>(1, in.kv_heads));
  const double work = static_cast<double>(in.batch * (in.head_dim + in.v_head_dim)) * keys * (rows / heads + kPacking);
  return work < kSmall ? 1 : in.threads;
}

}  // namespace

void attention(const AttentionInputs& in, Rows<void> out, Rows<void> lse) {
  const int threads = worthwhile_threads(in);
  const Set set = current_set();
  if (in.in_double())
    Attention<double>(in, threads, set.kernels, nullptr, out, lse).run();
  else
    Attention<float>(in, threads, set.kernels, set.matrices.by_terms[terms(in)], out, lse).run();
}

}  // namespace maskattn
