#include "maskattn/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "block.hpp"
#include "dispatch.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

constexpr double kLn2 = 0.69314718055994530942;

template <class T>
class Attention {
 public:
  Attention(const AttentionInputs<T>& in, Rows<const T> v, std::int64_t v_head_dim, Rows<T> out, Rows<T> lse)
      : in_(in),
        kernels_(kernel_table<T>()),
        v_(v),
        v_head_dim_(v_head_dim),
        columns_((v_head_dim + kernels_.lanes - 1) / kernels_.lanes * kernels_.lanes),
        out_(out),
        lse_(lse),
        cut_(Blocking::of(in)) {}

  void run() {
    const std::int64_t blocks = in_.batch * in_.kv_heads * cut_.blocks;
    const std::int64_t segments = (in_.kv_len + kSegment - 1) / kSegment;
    // Whole blocks leave threads idle when there are few of them and their number is no multiple of the threads'.
    const bool uneven = blocks < in_.threads || (blocks % in_.threads != 0 && blocks < 4 * in_.threads);
    if (uneven && in_.threads > 1 && segments >= 2 * in_.threads) {
      for (std::int64_t index = 0; index < blocks; ++index) split_over_keys(place(index));
    } else {
      parallel_for(blocks, in_.threads, [this](std::int64_t index) { whole(place(index)); });
    }
  }

 private:
  struct State {
    T maximum[kBlockRows], sum[kBlockRows];
  };

  // Blocks of late queries come first: under a causal mask they are the longest.
  BlockPlace place(std::int64_t index) const {
    const std::int64_t pairs = in_.batch * in_.kv_heads, pair = index % pairs;
    return cut_.place(in_, pair / in_.kv_heads, pair % in_.kv_heads, cut_.blocks - 1 - index / pairs);
  }

  const T* values_of(const BlockPlace& place) const { return v_.at(place.b, place.kv_head, 0); }

  void whole(const BlockPlace& place) const {
    if (place.rows == 0) return;
    Block<T> block(in_, kernels_, cut_, place, columns_);
    State state;
    std::fill_n(state.maximum, block.rows(), -std::numeric_limits<T>::infinity());
    std::fill_n(state.sum, block.rows(), T{0});
    T* out = block.scratch().out;
    std::fill_n(out, block.rows() * columns_, T{0});
    T maximum[kBlockRows], sum[kBlockRows], old_scale[kBlockRows], new_scale[kBlockRows];
    for (std::int64_t s = block.first_segment(); s < block.last_segment(); ++s) {
      if (!block.score(s)) continue;
      block.softmax(maximum, sum);
      for (int r = 0; r < block.rows(); ++r)
        merge_state(state.maximum[r], state.sum[r], maximum[r], sum[r], old_scale[r], new_scale[r]);
      block.values(s, values_of(place), v_.stride[2], static_cast<int>(v_head_dim_), old_scale, new_scale, out);
    }
    finish(block, state, out, place.b);
  }

  // Too few blocks for the threads: each segment's part is computed on its own, and the parts are merged in the order, and with
  // the arithmetic, of the walk above.
  void split_over_keys(const BlockPlace& place) const {
    if (place.rows == 0) return;
    const std::int64_t rows = place.rows, all = (in_.kv_len + kSegment - 1) / kSegment;
    std::vector<T> parts(static_cast<std::size_t>(all * rows * columns_)), maxima(static_cast<std::size_t>(all * rows)),
        sums(maxima.size());
    const std::int64_t per_piece = std::max<std::int64_t>(1, all / (4 * in_.threads));
    parallel_for((all + per_piece - 1) / per_piece, in_.threads, [&](std::int64_t piece) {
      Block<T> block(in_, kernels_, cut_, place, columns_);
      T ones[kBlockRows];
      std::fill_n(ones, rows, T{1});
      for (std::int64_t s = piece * per_piece; s < std::min(all, (piece + 1) * per_piece); ++s) {
        T *maximum = &maxima[static_cast<std::size_t>(s * rows)], *sum = &sums[static_cast<std::size_t>(s * rows)];
        if (s < block.first_segment() || s >= block.last_segment() || !block.score(s)) {
          std::fill_n(maximum, rows, -std::numeric_limits<T>::infinity());
          continue;
        }
        block.softmax(maximum, sum);
        T scale[kBlockRows];
        for (int r = 0; r < rows; ++r) scale[r] = maximum[r] == -std::numeric_limits<T>::infinity() ? T{0} : T{1};
        block.values(s, values_of(place), v_.stride[2], static_cast<int>(v_head_dim_), ones, scale,
                     &parts[static_cast<std::size_t>(s * rows * columns_)]);
      }
    });
    Block<T> block(in_, kernels_, cut_, place, columns_);
    State state;
    T* out = block.scratch().out;
    std::fill_n(out, rows * columns_, T{0});
    for (int r = 0; r < rows; ++r) {
      state.maximum[r] = -std::numeric_limits<T>::infinity();
      state.sum[r] = 0;
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

  void finish(const Block<T>& block, const State& state, const T* from, std::int64_t b) const {
    for (int r = 0; r < block.rows(); ++r, from += columns_) {
      const std::int64_t h = block.head(r), i = block.query(r);
      T* to = out_.at(b, h, i);
      const T sum = state.sum[r];
      if (sum == 0)
        std::fill_n(to, v_head_dim_, T{0});
      else
        for (std::int64_t c = 0; c < v_head_dim_; ++c) to[c] = from[c] / sum + T{0};  // + 0: a zero's sign tells of nothing
      if (lse_.data)
        *lse_.at(b, h, i) =
            sum == 0 ? -std::numeric_limits<T>::infinity()
                     : static_cast<T>(static_cast<double>(state.maximum[r]) * kLn2 + std::log(static_cast<double>(sum)));
    }
  }

  const AttentionInputs<T>& in_;
  const KernelTable<T>& kernels_;  // looked up once: set_isa may be called meanwhile
  const Rows<const T> v_;
  const std::int64_t v_head_dim_, columns_;
  const Rows<T> out_;
  const Rows<T> lse_;
  const Blocking cut_;
};

// One thread where waking others costs more than the work: each key is packed and read once per key head, and then multiplied
// with every query row of its group.
template <class T>
int worthwhile_threads(const AttentionInputs<T>& in, std::int64_t v_head_dim) {
  constexpr double kSmall = 2e6, kPacking = 8;
  const double rows = static_cast<double>(in.q_len) * static_cast<double>(in.q_heads);
  const double keys = static_cast<double>(in.kv_len) * static_cast<double>(in.kv_heads);
  const double heads = static_cast<double>(std::max<std::int64_t>(1, in.kv_heads));
  const double work = static_cast<double>(in.batch * (in.head_dim + v_head_dim)) * keys * (rows / heads + kPacking);
  return work < kSmall ? 1 : in.threads;
}

}  // namespace

template <class T>
void attention(const AttentionInputs<T>& in, Rows<const T> v, std::int64_t v_head_dim, Rows<T> out, Rows<T> lse) {
  AttentionInputs<T> call = in;
  call.threads = worthwhile_threads(in, v_head_dim);
  Attention<T>(call, v, v_head_dim, out, lse).run();
}

template <class T>
void attention_weights(const AttentionInputs<T>& in, Stage stage, T* out) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const KernelTable<T>& kernels = kernel_table<T>();
  const Blocking cut = Blocking::of(in);
  const std::int64_t segments = (in.kv_len + kSegment - 1) / kSegment;
  parallel_for(in.batch * in.kv_heads * cut.blocks, in.threads, [&](std::int64_t index) {
    const BlockPlace place =
        cut.place(in, index / cut.blocks / in.kv_heads, index / cut.blocks % in.kv_heads, index % cut.blocks);
    Block<T> block(in, kernels, cut, place, 0);
    const auto row_of = [&](int r) {
      return out + ((place.b * in.q_heads + block.head(r)) * in.q_len + block.query(r)) * in.kv_len;
    };
    for (int r = 0; r < block.rows(); ++r) std::fill_n(row_of(r), in.kv_len, stage == Stage::softmax ? T{0} : -infinity);

    std::vector<T> maxima(static_cast<std::size_t>(segments * block.rows()), -infinity);
    T running[kBlockRows], total[kBlockRows] = {};
    std::fill_n(running, block.rows(), -infinity);
    const T scale = static_cast<T>(std::abs(in.scale));
    for (std::int64_t s = block.first_segment(); s < block.last_segment(); ++s) {
      if (!block.score(s)) continue;
      T* maximum = &maxima[static_cast<std::size_t>(s * block.rows())];
      T sum[kBlockRows];
      if (stage == Stage::softmax) block.softmax(maximum, sum);
      const int count = static_cast<int>(std::min<std::int64_t>(kSegment, in.kv_len - s * kSegment));
      for (int r = 0; r < block.rows(); ++r) {
        const T *from = block.scratch().scores + r * kSegment, *bias = block.scratch().bias + r * kSegment;
        T *to = row_of(r) + s * kSegment, old_scale, new_scale;
        if (stage == Stage::softmax) {
          std::copy_n(from, count, to);
          merge_state(running[r], total[r], maximum[r], sum[r], old_scale, new_scale);
          continue;
        }
        for (int key = 0; key < count; ++key)
          if (block.sees(r, key)) to[key] = from[key] * scale + (in.bias.data ? bias[key] : T{0});
      }
    }
    if (stage != Stage::softmax) return;
    for (int r = 0; r < block.rows(); ++r) {
      if (total[r] == 0) continue;
      for (std::int64_t s = block.first_segment(); s < block.last_segment(); ++s) {
        const T factor = power_of_two(maxima[static_cast<std::size_t>(s * block.rows() + r)] - running[r]);
        T* row = row_of(r);
        for (std::int64_t key = s * kSegment; key < std::min(in.kv_len, (s + 1) * kSegment); ++key)
          row[key] = row[key] * factor / total[r];
      }
    }
  });
}

#define MASKATTN_INSTANTIATE(T)                                                                      \
  template void attention(const AttentionInputs<T>&, Rows<const T>, std::int64_t, Rows<T>, Rows<T>); \
  template void attention_weights(const AttentionInputs<T>&, Stage, T*);
MASKATTN_INSTANTIATE(float)
MASKATTN_INSTANTIATE(double)

}  // namespace maskattn
