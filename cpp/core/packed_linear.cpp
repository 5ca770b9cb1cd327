#include "maskattn/packed_linear.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "dispatch.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

// Products, and bytes of weights, that are not worth waking a thread for.
constexpr double kFewProducts = 4e5, kFewBytes = 1.5e5;

constexpr std::int64_t kRowsAtOnce = 4 * kBlockRows;  // of which there are copies
// Rows of a task: their sums are finished while they are in the first-level cache, and threads end at about the same time.
constexpr std::int64_t kTaskRows = kBlockRows / 2;

// The rows of a call as kernels take them: where they are, or converted, or copies with zeros behind them.
class Rows {
 public:
  Rows(const PackedLinear& call, const LinearTable& kernels)
      : call_(call),
        convert_(kernels.convert[static_cast<int>(call.weight->type())]),
        inputs_(static_cast<int>(call.weight->padded_inputs())),
        copied_(!call.rounded && (convert_ || call.weight->inputs() != inputs_)) {
    const std::size_t row_bytes = is_four_bit(call.weight->type()) ? SignedRow::size(inputs_)
                                  : convert_                       ? QuantizedRow::size(inputs_)
                                                                   : sizeof(float) * static_cast<std::size_t>(inputs_);
    size_ = (row_bytes + kAlign - 1) / kAlign * kAlign;
    if (copied_) copies_ = static_cast<std::byte*>(thread_memory(size_ * static_cast<std::size_t>(call.rows)));
  }
  bool copied() const { return copied_; }
  void copy(std::int64_t row) const {
    const auto* from = reinterpret_cast<const float*>(call_.x_row(row));
    const auto inputs = static_cast<int>(call_.weight->inputs());
    if (convert_) {
      convert_(from, inputs, inputs_, at(row));
      return;
    }
    auto* to = reinterpret_cast<float*>(at(row));
    std::fill(std::copy_n(from, inputs, to), to + inputs_, 0.f);
  }
  const void* operator[](std::int64_t row) const {
    if (copied_) return at(row);
    return call_.x_row(row);
  }

 private:
  std::byte* at(std::int64_t row) const { return copies_ + static_cast<std::size_t>(row) * size_; }

  const PackedLinear& call_;
  void (*convert_)(const float*, int, int, void*);
  int inputs_;
  bool copied_;
  std::size_t size_;
  std::byte* copies_ = nullptr;
};

// The product of up to kTaskRows rows from `first_row` on with a block, [rows][kBlockOutputs].
void multiply_block(const PackedLinear& call, const LinearTable& kernels, const Rows& rows, std::int64_t first_row, int count,
                    std::int64_t block, float* tile) {
  const void* x[kTaskRows];
  for (int r = 0; r < count; ++r) x[r] = rows[first_row + r];
  const auto inputs = static_cast<int>(call.weight->padded_inputs()), group = static_cast<int>(call.weight->group());
  const LinearArgs args{call.weight->block(block), inputs, group, x, count, tile};
  kernels.multiply[static_cast<int>(call.weight->type())](args);
}

int rows_of_block(const PackedLinear& call, std::int64_t first_row) {
  return static_cast<int>(std::min<std::int64_t>(kTaskRows, call.rows - first_row));
}

// Which of its 64 outputs are among those of the call: it may begin before them, and end behind them.
struct BlockSpan {
  std::int64_t origin, begin, end;  // in outputs of the call
  BlockSpan(const PackedWeight& weight, std::int64_t block)
      : origin(block * kBlockOutputs - weight.first_output()),
        begin(std::max<std::int64_t>(origin, 0)),
        end(std::min(origin + kBlockOutputs, weight.outputs())) {}
};

void multiply(const PackedLinear& call, const LinearTable& kernels, const Rows& rows, std::int64_t first_row,
              std::int64_t block) {
  alignas(kAlign) float tile[kTaskRows * kBlockOutputs], other[kTaskRows * kBlockOutputs];
  const int count = rows_of_block(call, first_row);
  const BlockSpan span(*call.weight, block);
  multiply_block(call, kernels, rows, first_row, count, block, tile);
  const std::int64_t half = call.weight->outputs() / 2 / kBlockOutputs;
  if (call.finish.gated) multiply_block(call, kernels, rows, first_row, count, block + half, other);
  const std::int64_t skipped = span.begin - span.origin, factors = span.begin + half * kBlockOutputs;
  FinishArgs finish{};
  finish.bias = call.bias ? call.bias + span.begin : nullptr;
  finish.function = call.finish.activation ? static_cast<int>(*call.finish.activation) : -1;
  finish.factor_bias = call.bias && call.finish.gated ? call.bias + factors : nullptr;
  finish.added = call.finish.added;
  finish.rounded = call.finish.rounded;
  finish.count = static_cast<int>(span.end - span.begin);
  for (int r = 0; r < count; ++r) {
    finish.x = tile + r * kBlockOutputs + skipped;
    finish.factor = call.finish.gated ? other + r * kBlockOutputs + skipped : nullptr;
    finish.out = call.out_row(first_row + r) + span.begin * (finish.rounded ? 2 : 4);
    kernels.finish(finish);
  }
}

// Copies what has to be copied; `threads` for many rows only.
void copy_rows(const PackedLinear& call, const Rows& rows, int threads) {
  if (!rows.copied()) return;
  const std::int64_t part = (call.rows + threads - 1) / threads;
  parallel_for(threads, call.rows < 16 ? 1 : threads, [&](std::int64_t t) {
    for (std::int64_t r = t * part; r < std::min(call.rows, (t + 1) * part); ++r) rows.copy(r);
  });
}

int worthwhile_threads(const PackedLinear& call) {
  const double weights = static_cast<double>(call.weight->inputs() * call.weight->outputs());
  const bool few =
      static_cast<double>(call.rows) * weights < kFewProducts && static_cast<double>(call.weight->bytes()) < kFewBytes;
  return few ? 1 : call.threads;
}

// Blocks of the weight's memory in which its rows lie.
struct BlockRange {
  std::int64_t first, count;
  explicit BlockRange(const PackedWeight& weight)
      : first(weight.first_output() / kBlockOutputs),
        count((weight.first_output() + weight.outputs() + kBlockOutputs - 1) / kBlockOutputs - first) {}
};

// The largest numbers of a row so far, in order.
class Largest {
 public:
  explicit Largest(std::int64_t count) : count_(static_cast<std::size_t>(count)) {}
  // Whether some number up to `most` of outputs behind all that have been put may be among them.
  bool may_take(float most) const { return kept_.size() < count_ ? most == most : most > kept_.back().first; }
  void put(float value, std::int64_t output) {
    const auto behind = [](const Item& a, const Item& b) {
      return a.first > b.first || (a.first == b.first && a.second < b.second);
    };
    const Item item{value, output};
    if (!(value == value) || (kept_.size() == count_ && !behind(item, kept_.back()))) return;
    kept_.insert(std::upper_bound(kept_.begin(), kept_.end(), item, behind), item);
    if (kept_.size() > count_) kept_.pop_back();
  }
  void put(const Largest& other) {
    for (const auto& [value, output] : other.kept_) put(value, output);
  }
  void write(float* values, std::int64_t* outputs) const {
    for (std::size_t i = 0; i < count_; ++i) {
      values[i] = i < kept_.size() ? kept_[i].first : -std::numeric_limits<float>::infinity();
      outputs[i] = i < kept_.size() ? kept_[i].second : 0;
    }
  }

 private:
  using Item = std::pair<float, std::int64_t>;
  std::size_t count_;
  std::vector<Item> kept_;
};

// Added in the order of the blocks, whatever thread they came from.
float logsumexp(const BlockSummary* blocks, std::int64_t count) {
  float exponent = -std::numeric_limits<float>::infinity();
  for (std::int64_t b = 0; b < count; ++b)
    if (blocks[b].sum != blocks[b].sum) return blocks[b].sum;
  for (std::int64_t b = 0; b < count; ++b)
    if (blocks[b].sum > 0) exponent = std::max(exponent, blocks[b].exponent);
  double sum = 0;
  for (std::int64_t b = 0; b < count; ++b) {
    const float power = blocks[b].exponent - exponent;
    if (blocks[b].sum > 0 && power > -100) sum += std::ldexp(static_cast<double>(blocks[b].sum), static_cast<int>(power));
  }
  return static_cast<float>(std::log(sum) + static_cast<double>(exponent) * 0.6931471805599453);
}

}  // namespace

bool can_gate(const PackedWeight& weight) {
  return weight.first_output() % kBlockOutputs == 0 && weight.outputs() % (2 * kBlockOutputs) == 0;
}

bool rounds_rows(const PackedWeight& weight) {
  // Pairs are written whole: blocks must not share one.
  const bool whole = weight.inputs() == weight.padded_inputs() && weight.first_output() % 2 == 0 && weight.outputs() % 2 == 0;
  return whole && weight.type() == WeightType::bfloat16 && current_linears().convert[static_cast<int>(WeightType::bfloat16)];
}

void linear(const PackedLinear& call) {
  if (call.rows > kRowsAtOnce) {
    PackedLinear part = call;
    for (std::int64_t first = 0; first < call.rows; first += kRowsAtOnce) {
      part.rows = std::min(kRowsAtOnce, call.rows - first);
      part.x = call.x_row(first);
      part.out = call.out_row(first);
      linear(part);
    }
    return;
  }
  if (call.rows == 0) return;
  const LinearTable& kernels = current_linears();
  BlockRange blocks(*call.weight);
  if (call.finish.gated) blocks.count /= 2;
  const int threads = worthwhile_threads(call);
  const Rows rows(call, kernels);
  copy_rows(call, rows, threads);
  // Few rows: every thread walks through one piece of memory. Many: whoever is free takes the next block, rows innermost.
  const std::int64_t row_blocks = (call.rows + kTaskRows - 1) / kTaskRows;
  const bool few = call.rows <= kFewRows;
  const std::int64_t tasks = few ? threads : blocks.count * row_blocks;
  parallel_for(tasks, threads, [&](std::int64_t task) {
    if (few) {
      for (std::int64_t b = blocks.count * task / tasks; b < blocks.count * (task + 1) / tasks; ++b)
        multiply(call, kernels, rows, 0, blocks.first + b);
    } else {
      multiply(call, kernels, rows, task % row_blocks * kTaskRows, blocks.first + task / row_blocks);
    }
  });
}

void linear_best(const PackedLinear& call, const BestOutputs& best) {
  if (call.rows > kRowsAtOnce) {
    PackedLinear part = call;
    for (std::int64_t first = 0; first < call.rows; first += kRowsAtOnce) {
      part.rows = std::min(kRowsAtOnce, call.rows - first);
      part.x = call.x_row(first);
      linear_best(part, {best.count, best.values + first * best.count, best.outputs + first * best.count,
                         best.logsumexp ? best.logsumexp + first : nullptr});
    }
    return;
  }
  const LinearTable& kernels = current_linears();
  const BlockRange blocks(*call.weight);
  const int threads = worthwhile_threads(call);
  const Rows rows(call, kernels);
  copy_rows(call, rows, threads);
  std::vector<std::vector<Largest>> largest(static_cast<std::size_t>(threads));
  for (auto& each : largest) each.assign(static_cast<std::size_t>(call.rows), Largest(best.count));
  std::vector<BlockSummary> summaries(best.logsumexp ? static_cast<std::size_t>(call.rows * blocks.count) : 0);
  parallel_for(threads, threads, [&](std::int64_t task) {
    alignas(kAlign) float tile[kTaskRows * kBlockOutputs];
    for (std::int64_t first = 0; first < call.rows; first += kTaskRows)
      for (std::int64_t b = blocks.count * task / threads; b < blocks.count * (task + 1) / threads; ++b) {
        const int count = rows_of_block(call, first);
        multiply_block(call, kernels, rows, first, count, blocks.first + b, tile);
        const BlockSpan span(*call.weight, blocks.first + b);
        for (int r = 0; r < count; ++r) {
          float* x = tile + r * kBlockOutputs;
          std::fill(x, x + (span.begin - span.origin), -std::numeric_limits<float>::infinity());
          std::fill(x + (span.end - span.origin), x + kBlockOutputs, -std::numeric_limits<float>::infinity());
          if (call.bias)
            for (std::int64_t o = span.begin; o < span.end; ++o) x[o - span.origin] += call.bias[o];
          const BlockSummary summary = kernels.summarize(x, best.logsumexp);
          if (best.logsumexp) summaries[static_cast<std::size_t>((first + r) * blocks.count + b)] = summary;
          Largest& kept = largest[static_cast<std::size_t>(task)][static_cast<std::size_t>(first + r)];
          if (!kept.may_take(summary.maximum)) continue;
          for (std::int64_t o = span.begin; o < span.end; ++o) kept.put(x[o - span.origin], o);
        }
      }
  });
  for (std::int64_t r = 0; r < call.rows; ++r) {
    Largest& kept = largest[0][static_cast<std::size_t>(r)];
    for (std::size_t t = 1; t < largest.size(); ++t) kept.put(largest[t][static_cast<std::size_t>(r)]);
    kept.write(best.values + r * best.count, best.outputs + r * best.count);
    if (best.logsumexp) best.logsumexp[r] = logsumexp(summaries.data() + r * blocks.count, blocks.count);
  }
}

}  // namespace maskattn
