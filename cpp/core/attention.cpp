#include "maskattn/attention.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "block.hpp"
#include "dispatch.hpp"
#include "state.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

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
    const std::int64_t segments = (in_.kv_len + kSegment - 1) / kSegment;
    // Whole blocks leave threads idle when there are few of them and their number is no multiple of the threads'.
    const bool uneven = blocks < threads_ || (blocks % threads_ != 0 && blocks < 4 * threads_);
    if (uneven && threads_ > 1 && segments >= 2 * threads_) {
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
    return call_.cut.place(in_, shared ? inner : outer, shared ? outer : inner, call_.cut.blocks - 1 - part);
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
    const std::int64_t rows = place.rows, all = (in_.kv_len + kSegment - 1) / kSegment;
    std::vector<T> parts(static_cast<std::size_t>(all * rows * columns_)), maxima(static_cast<std::size_t>(all * rows)),
        sums(maxima.size());
    const std::int64_t per_piece = std::max<std::int64_t>(1, all / (4 * threads_));
    parallel_for((all + per_piece - 1) / per_piece, threads_, [&](std::int64_t piece) {
      const MatrixUse use(call_.matrix);
      Block<T> block(call_, place);
      State<T> state;
      for (std::int64_t s = piece * per_piece; s < std::min(all, (piece + 1) * per_piece); ++s) {
        state.clear(block.rows());
        if (s >= block.first_segment() && s < block.last_segment())
          block.attend(s, state, &parts[static_cast<std::size_t>(s * rows * columns_)]);
        std::copy_n(state.maximum, rows, &maxima[static_cast<std::size_t>(s * rows)]);
        std::copy_n(state.sum, rows, &sums[static_cast<std::size_t>(s * rows)]);
      }
    });
    Block<T> block(call_, place);
    State<T> state;
    state.clear(block.rows());
    T* out = block.scratch().out;
    std::fill_n(out, rows * columns_, T{0});
    for (int r = 0; r < rows; ++r) {
      for (std::int64_t s = 0; s < all; ++s) {
        const std::size_t at = static_cast<std::size_t>(s * rows + r);
        T old_scale, new_scale;
        merge_state(state.maximum[r], state.sum[r], maxima[at], sums[at], old_scale, new_scale);
        if (new_scale != 0)
          kernels_.merge(out + r * columns_, &parts[at * static_cast<std::size_t>(columns_)], old_scale, new_scale,
                         static_cast<int>(columns_));
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
};

// How many bfloat16 numbers an element becomes where a matrix unit multiplies: one that is such a number stays one.
int pieces(const AttentionInputs& in) {
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
    Attention<float>(in, threads, set.kernels, set.matrices.by_pieces[pieces(in)], out, lse).run();
}

}  // namespace maskattn
