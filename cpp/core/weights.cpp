// The weights themselves, on demand: the whole matrix at one of its stages, or only what a caller needs of it.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "block.hpp"
#include "dispatch.hpp"
#include "state.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

// Calls visit(place, block) for each block of the call, on the call's threads.
template <class T, class Visit>
void for_each_block(const Call<T>& call, const Visit& visit) {
  const AttentionInputs& in = call.in;
  const Blocking& cut = call.cut;
  parallel_for(in.batch * in.kv_heads * cut.blocks, in.threads, [&](std::int64_t index) {
    const BlockPlace place =
        cut.place(in, index / cut.blocks / in.kv_heads, index / cut.blocks % in.kv_heads, index % cut.blocks);
    Block<T> block(call, place);
    visit(place, block);
  });
}

// Walks a block's segments twice: first for the softmax's denominators, then with the final weights, consume(segment). The weight
// of (row r, key) of a segment is scratch().scores[r * kSegment + key].
template <class T, class Consume>
void replay(const Call<T>& call, Block<T>& block, const Consume& consume) {
  T running[kBlockRows], total[kBlockRows] = {}, maximum[kBlockRows], sum[kBlockRows], old_scale, new_scale;
  std::fill_n(running, block.rows(), -std::numeric_limits<T>::infinity());
  for (std::int64_t s = block.first_segment(); s < block.last_segment(); ++s) {
    if (!block.score(s)) continue;
    block.softmax(maximum, sum);
    for (int r = 0; r < block.rows(); ++r) merge_state(running[r], total[r], maximum[r], sum[r], old_scale, new_scale);
  }
  if (call.in.sinks)
    for (int r = 0; r < block.rows(); ++r) merge_sink(running[r], total[r], call.in.sinks[block.head(r)]);
  for (std::int64_t s = block.first_segment(); s < block.last_segment(); ++s) {
    if (!block.score(s)) continue;
    block.softmax(maximum, sum);
    for (int r = 0; r < block.rows(); ++r) {
      const T factor = maximum[r] == -std::numeric_limits<T>::infinity() ? T{0} : power_of_two(maximum[r] - running[r]);
      T* weights = block.scratch().scores + r * kSegment;
      for (int key = 0; key < kSegment; ++key)
        weights[key] = total[r] != 0 && block.sees(r, key) ? weights[key] * factor / total[r] : T{0};
    }
    consume(s);
  }
}

template <class T>
class Matrix {
 public:
  Matrix(const AttentionInputs& in, Stage stage, Dtype dtype, void* out)
      : in_(in),
        call_(in, in.threads, 0, current_kernels(), nullptr),
        stage_(stage),
        dtype_(dtype),
        out_(static_cast<char*>(out)) {}

  void run() {
    for_each_block(call_, [this](const BlockPlace& place, Block<T>& block) {
      std::vector<T> row(static_cast<std::size_t>(in_.kv_len), stage_ == Stage::softmax ? T{0} : kHidden);
      for (int r = 0; r < block.rows(); ++r) write(place, block, r, 0, in_.kv_len, row.data());
      if (stage_ == Stage::softmax)
        return replay(call_, block, [&](std::int64_t s) {
          for (int r = 0; r < block.rows(); ++r)
            write(place, block, r, s * kSegment, keys_of(s), block.scratch().scores + r * kSegment);
        });
      for (std::int64_t s = block.first_segment(); s < block.last_segment(); ++s)
        if (block.score(s)) logits(place, block, s);
    });
  }

 private:
  static constexpr T kHidden = -std::numeric_limits<T>::infinity();

  std::int64_t keys_of(std::int64_t segment) const { return std::min<std::int64_t>(kSegment, in_.kv_len - segment * kSegment); }

  void write(const BlockPlace& place, const Block<T>& block, int r, std::int64_t key, std::int64_t count, const T* from) const {
    const std::int64_t row = (place.b * in_.q_heads + block.head(r)) * in_.q_len + block.query(r);
    char* to = out_ + static_cast<std::size_t>(row * in_.kv_len + key) * size_of(dtype_);
    call_.kernels.write_row[static_cast<int>(dtype_)](from, static_cast<int>(count), to);
  }

  void logits(const BlockPlace& place, Block<T>& block, std::int64_t segment) const {
    const bool capped = in_.softcap != 0 && stage_ != Stage::scores;
    if (capped) block.cap();
    const T scale = capped ? T{1} : static_cast<T>(std::abs(in_.scale));
    for (int r = 0; r < block.rows(); ++r) {
      const T *scores = block.scratch().scores + r * kSegment, *bias = call_.biased() ? block.bias(r) : nullptr;
      T row[kSegment];
      for (int key = 0; key < keys_of(segment); ++key)
        row[key] = block.sees(r, key) ? scores[key] * scale + (bias ? bias[key] : T{0}) : kHidden;
      write(place, block, r, segment * kSegment, keys_of(segment), row);
    }
  }

  const AttentionInputs& in_;
  const Call<T> call_;
  const Stage stage_;
  const Dtype dtype_;
  char* const out_;
};

template <class T>
struct Weighted {
  std::int64_t key;
  T weight;
  // Larger weights first, earlier keys first among equals.
  bool operator<(const Weighted& other) const { return weight != other.weight ? weight > other.weight : key < other.key; }
};

template <class T>
void largest(const AttentionInputs& in, std::int64_t count, std::int64_t* keys, T* weights) {
  const Call<T> call(in, in.threads, 0, current_kernels(), nullptr);
  for_each_block(call, [&](const BlockPlace& place, Block<T>& block) {
    std::vector<std::vector<Weighted<T>>> best(static_cast<std::size_t>(block.rows()));  // heaps, the least on top
    replay(call, block, [&](std::int64_t s) {
      for (int r = 0; r < block.rows(); ++r) {
        auto& heap = best[static_cast<std::size_t>(r)];
        for (int key = 0; key < kSegment; ++key) {
          const Weighted<T> next{s * kSegment + key, block.scratch().scores[r * kSegment + key]};
          if (!block.sees(r, key) || next.key >= in.kv_len) continue;
          if (static_cast<std::int64_t>(heap.size()) == count) {
            if (!(next < heap.front())) continue;
            std::pop_heap(heap.begin(), heap.end());
            heap.back() = next;
          } else {
            heap.push_back(next);
          }
          std::push_heap(heap.begin(), heap.end());
        }
      }
    });
    for (int r = 0; r < block.rows(); ++r) {
      auto& heap = best[static_cast<std::size_t>(r)];
      std::sort_heap(heap.begin(), heap.end());
      const std::int64_t row = (place.b * in.q_heads + block.head(r)) * in.q_len + block.query(r);
      for (std::int64_t n = 0; n < count; ++n) {
        const bool there = n < static_cast<std::int64_t>(heap.size());
        keys[row * count + n] = there ? heap[static_cast<std::size_t>(n)].key : -1;
        weights[row * count + n] = there ? heap[static_cast<std::size_t>(n)].weight : T{0};
      }
    }
  });
}

// Blocks are added in order within fixed parts, and the parts in order, so that no bit depends on the threads.
template <class T>
void per_key(const AttentionInputs& in, T* sums) {
  constexpr std::int64_t kParts = 16;
  const Call<T> call(in, 1, 0, current_kernels(), nullptr);  // cut as for one thread
  const std::int64_t group = call.cut.group, pairs = in.batch * in.kv_heads;
  const std::size_t size = static_cast<std::size_t>(group * in.kv_len);
  std::vector<double> parts(static_cast<std::size_t>(pairs * kParts) * size);
  parallel_for(pairs * kParts, in.threads, [&](std::int64_t index) {
    const std::int64_t pair = index / kParts, part = index % kParts;
    double* to = parts.data() + static_cast<std::size_t>(index) * size;
    for (std::int64_t i = part * call.cut.blocks / kParts; i < (part + 1) * call.cut.blocks / kParts; ++i) {
      const BlockPlace place = call.cut.place(in, pair / in.kv_heads, pair % in.kv_heads, i);
      Block<T> block(call, place);
      replay(call, block, [&](std::int64_t s) {
        const std::int64_t count = std::min<std::int64_t>(kSegment, in.kv_len - s * kSegment);
        for (int r = 0; r < block.rows(); ++r) {
          double* row = to + (block.head(r) - place.kv_head * group) * in.kv_len + s * kSegment;
          const T* weights = block.scratch().scores + r * kSegment;
          for (std::int64_t key = 0; key < count; ++key) row[key] += static_cast<double>(weights[key]);
        }
      });
    }
  });
  for (std::int64_t pair = 0; pair < pairs; ++pair)
    for (std::size_t at = 0; at < size; ++at) {
      double sum = 0;
      for (std::int64_t part = 0; part < kParts; ++part) sum += parts[static_cast<std::size_t>(pair * kParts + part) * size + at];
      sums[static_cast<std::size_t>(pair) * size + at] = static_cast<T>(sum);
    }
}

}  // namespace

void attention_weights(const AttentionInputs& in, Stage stage, Dtype out_dtype, void* out) {
  if (in.in_double())
    Matrix<double>(in, stage, out_dtype, out).run();
  else
    Matrix<float>(in, stage, out_dtype, out).run();
}

void largest_weights(const AttentionInputs& in, std::int64_t count, std::int64_t* keys, void* weights) {
  if (in.in_double())
    largest(in, count, keys, static_cast<double*>(weights));
  else
    largest(in, count, keys, static_cast<float*>(weights));
}

void weights_per_key(const AttentionInputs& in, void* sums) {
  if (in.in_double())
    per_key(in, static_cast<double*>(sums));
  else
    per_key(in, static_cast<float*>(sums));
}

}  // namespace maskattn
