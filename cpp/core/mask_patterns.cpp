// Leaves that are patterns: chunks, dilated windows, global tokens, trees, blocks, neighbourhoods.
#include <algorithm>
#include <limits>
#include <stdexcept>

#include "mask_expr.hpp"
#include "program_writer.hpp"

namespace maskattn {
namespace {

class Queries final : public MaskExpr {
 public:
  Queries(const bool* keep, std::int64_t sequences, std::int64_t length)
      : keep_(keep, keep + sequences * length), sequences_(static_cast<std::size_t>(sequences)), length_(length) {}
  std::int64_t batch() const override { return static_cast<std::int64_t>(sequences_); }
  void check(const Geometry& geometry) const override {
    for (const std::int64_t offset : geometry.q_offset)
      check_covers("QueryPadding", length_, offset + geometry.q_len, "query positions");
  }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    const std::size_t at = pick(query.b, sequences_) * static_cast<std::size_t>(length_);
    if (query.position >= 0 && keep_[at + static_cast<std::size_t>(query.position)]) push_clipped(out, 0, query.keys, query.keys);
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    const std::int64_t row_words = (length_ + 63) / 64;
    std::vector<std::uint64_t> bits(sequences_ * static_cast<std::size_t>(row_words));
    for (std::size_t at = 0; at < keep_.size(); ++at) {
      const std::size_t sequence = at / static_cast<std::size_t>(length_), position = at % static_cast<std::size_t>(length_);
      bits[sequence * static_cast<std::size_t>(row_words) + position / 64] |= std::uint64_t{keep_[at]} << position % 64;
    }
    const std::int64_t at = program.words(bits);
    auto& a = program.leaf(MaskOp::queries, use, 1).a;
    a[0] = at, a[1] = row_words, a[2] = batch();
    return true;
  }

 private:
  std::vector<bool> keep_;
  std::size_t sequences_;
  std::int64_t length_;
};

class Chunks final : public MaskExpr {
 public:
  Chunks(std::int64_t size, bool earlier) : size_(size), earlier_(earlier) {}
  std::int64_t settled_before(std::int64_t keys) const override { return floor_div(keys, size_) * size_; }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    const std::int64_t begin = floor_div(query.position, size_) * size_;
    push_clipped(out, earlier_ ? 0 : begin, begin + size_, query.keys);
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    auto& a = program.leaf(MaskOp::chunks, use, 1).a;
    a[0] = size_, a[1] = earlier_;
    return true;
  }

 private:
  std::int64_t size_;
  bool earlier_;
};

class Dilated final : public MaskExpr {
 public:
  Dilated(std::int64_t window, std::int64_t stride) : window_(window), stride_(stride) {}
  std::int64_t settled_before(std::int64_t keys) const override { return keys - window_ * stride_; }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    if (stride_ == 1) return push_clipped(out, query.position - window_, query.position + window_ + 1, query.keys);
    // From the first tooth of the comb at or past 0.
    const std::int64_t skipped = std::max<std::int64_t>(0, -floor_div(query.position - window_ * stride_, stride_));
    for (std::int64_t t = skipped - window_; t <= window_; ++t) {
      const std::int64_t key = query.position + t * stride_;
      if (key >= query.keys) break;
      push_clipped(out, key, key + 1, query.keys);
    }
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    auto& a = program.leaf(MaskOp::dilated, use, stride_ == 1 ? 1 : 2 * window_ + 1).a;
    a[0] = window_, a[1] = stride_;
    return true;
  }

 private:
  std::int64_t window_, stride_;
};

class GlobalTokens final : public MaskExpr {
 public:
  explicit GlobalTokens(std::vector<std::int64_t> positions) : positions_(std::move(positions)) {
    std::sort(positions_.begin(), positions_.end());
    for (const std::int64_t position : positions_) {
      if (position == std::numeric_limits<std::int32_t>::max()) break;  // behind the last key that there can be
      if (!spans_.empty() && position <= spans_.back().end)
        spans_.back().end = static_cast<std::int32_t>(position + 1);
      else
        spans_.push_back({static_cast<std::int32_t>(position), static_cast<std::int32_t>(position + 1)});
    }
  }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    if (std::binary_search(positions_.begin(), positions_.end(), query.position))
      push_clipped(out, 0, query.keys, query.keys);
    else
      push_clipped(out, spans_, query.keys);
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    const std::int64_t at = program.integers(positions_), table = program.table({spans_});
    auto& a = program.leaf(MaskOp::global_tokens, use, std::max<std::int64_t>(1, program.longest({spans_}))).a;
    a[0] = at, a[1] = static_cast<std::int64_t>(positions_.size()), a[2] = table;
    return true;
  }

 private:
  std::vector<std::int64_t> positions_;
  std::vector<Span> spans_;
};

// Nodes stand at start + t, or are the last keys there are.
class Tree final : public MaskExpr {
 public:
  Tree(std::vector<std::int64_t> parents, std::optional<std::int64_t> start) : parents_(std::move(parents)), start_(start) {
    for (std::size_t t = 0; t < parents_.size(); ++t)
      if (parents_[t] < -1 || parents_[t] >= static_cast<std::int64_t>(t))
        throw std::invalid_argument("parents must be -1 or the index of an earlier node, got " + std::to_string(parents_[t]) +
                                    " for node " + std::to_string(t));
  }
  std::int64_t settled_before(std::int64_t keys) const override { return keys; }
  bool counts_from_end() const override { return !start_; }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    const std::int64_t nodes = static_cast<std::int64_t>(parents_.size());
    const std::int64_t start = start_ ? *start_ : query.keys - nodes, node = query.position - start;
    push_clipped(out, 0, std::min(start, query.position + 1), query.keys);
    if (node < 0 || node >= nodes) return;
    std::vector<std::int64_t> path;
    for (std::int64_t t = node; t >= 0; t = parents_[static_cast<std::size_t>(t)]) path.push_back(t);
    for (auto t = path.rbegin(); t != path.rend(); ++t) {
      const std::int64_t key = start + *t;
      if (!out.spans.empty() && out.spans.back().end == key && key >= 0 && key < query.keys)
        ++out.spans.back().end;
      else
        push_clipped(out, key, key + 1, query.keys);
    }
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    std::vector<std::vector<Span>> paths;
    for (std::size_t node = 0; node < parents_.size(); ++node) {
      auto& path = paths.emplace_back();
      if (parents_[node] >= 0) path = paths[static_cast<std::size_t>(parents_[node])];
      const auto t = static_cast<std::int32_t>(node);
      if (!path.empty() && path.back().end == t)
        ++path.back().end;
      else
        path.push_back({t, t + 1});
    }
    const std::int64_t table = program.table(paths);
    auto& a = program.leaf(MaskOp::tree, use, 1 + program.longest(paths)).a;
    a[0] = start_.has_value(), a[1] = start_.value_or(0), a[2] = static_cast<std::int64_t>(parents_.size()), a[3] = table;
    return true;
  }

 private:
  std::vector<std::int64_t> parents_;
  std::optional<std::int64_t> start_;
};

class BlockSparse final : public MaskExpr {
 public:
  BlockSparse(const bool* keep, const std::int64_t (&shape)[4], std::int64_t size)
      : spans_(static_cast<std::size_t>(shape[0] * shape[1] * shape[2])), size_(size) {
    std::copy(shape, shape + 4, shape_);
    for (auto& spans : spans_) {
      for_each_equal_run(keep, shape[3], [&](bool kept, Span run) {
        if (kept) spans.push_back(run);
      });
      keep += shape[3];
    }
  }
  std::int64_t batch() const override { return shape_[0]; }
  std::int64_t heads() const override { return shape_[1]; }
  void check(const Geometry& geometry) const override {
    check_covers("BlockSparse", shape_[3] * size_, geometry.kv_len, "keys");
    for (const std::int64_t offset : geometry.q_offset)
      check_covers("BlockSparse", shape_[2] * size_, offset + geometry.q_len, "query positions");
  }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    if (query.position < 0) return;
    const std::size_t b = pick(query.b, static_cast<std::size_t>(shape_[0])),
                      h = pick(query.h, static_cast<std::size_t>(shape_[1]));
    const std::size_t line = (b * static_cast<std::size_t>(shape_[1]) + h) * static_cast<std::size_t>(shape_[2]) +
                             static_cast<std::size_t>(query.position / size_);
    for (const Span span : spans_[line]) push_clipped(out, span.begin * size_, span.end * size_, query.keys);
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    const std::int64_t table = program.table(spans_);
    auto& a = program.leaf(MaskOp::block_sparse, use, program.longest(spans_)).a;
    a[0] = table;
    std::copy(shape_, shape_ + 3, a + 1);
    a[4] = size_;
    return true;
  }

 private:
  std::int64_t shape_[4];
  std::vector<std::vector<Span>> spans_;
  std::int64_t size_;
};

// Positions are the cells of a height x width grid, row by row; the window around a cell is pushed inside at the edges.
class Neighborhood final : public MaskExpr {
 public:
  Neighborhood(const std::int64_t (&shape)[2], const std::int64_t (&kernel)[2]) {
    std::copy(shape, shape + 2, shape_);
    std::copy(kernel, kernel + 2, kernel_);
  }
  std::int64_t settled_before(std::int64_t keys) const override {
    return keys >= shape_[0] * shape_[1] ? kEveryPosition : kNoPosition;
  }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    if (query.position < 0 || query.position >= shape_[0] * shape_[1]) return;
    const std::int64_t top = first(query.position / shape_[1], 0), left = first(query.position % shape_[1], 1);
    for (std::int64_t y = top; y < top + kernel_[0]; ++y) {
      const std::int64_t begin = y * shape_[1] + left;
      if (kernel_[1] == shape_[1] && !out.spans.empty() && out.spans.back().end == begin)  // whole lines are one span
        out.spans.back().end = static_cast<std::int32_t>(std::min(begin + kernel_[1], query.keys));
      else
        push_clipped(out, begin, begin + kernel_[1], query.keys);
    }
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    auto& a = program.leaf(MaskOp::neighborhood, use, kernel_[1] == shape_[1] ? 1 : kernel_[0]).a;
    a[0] = shape_[0], a[1] = shape_[1], a[2] = kernel_[0], a[3] = kernel_[1];
    return true;
  }

 private:
  std::int64_t first(std::int64_t cell, int axis) const {
    return std::clamp<std::int64_t>(cell - kernel_[axis] / 2, 0, shape_[axis] - kernel_[axis]);
  }
  std::int64_t shape_[2], kernel_[2];
};

// [noisy; clean], `length` positions each: a noisy block sees itself and the clean blocks before it, a clean block itself and the
// clean blocks before it.
class BlockDiffusion final : public MaskExpr {
 public:
  BlockDiffusion(std::int64_t size, std::int64_t length) : size_(size), length_(length) {}
  std::int64_t settled_before(std::int64_t keys) const override { return keys >= 2 * length_ ? kEveryPosition : kNoPosition; }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    const std::int64_t q = query.position;
    if (q < 0 || q >= 2 * length_) return;
    const std::int64_t begin = q % length_ / size_ * size_, end = std::min(begin + size_, length_);
    if (q < length_) {
      push_clipped(out, begin, end, query.keys);
      // The two touch where the noisy block is the last.
      if (end == length_ && begin > 0 && !out.spans.empty() && out.spans.back().end == length_)
        out.spans.back().end = static_cast<std::int32_t>(std::min(length_ + begin, query.keys));
      else
        push_clipped(out, length_, length_ + begin, query.keys);
    } else {
      push_clipped(out, length_, length_ + end, query.keys);
    }
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    auto& a = program.leaf(MaskOp::block_diffusion, use, 2).a;
    a[0] = size_, a[1] = length_;
    return true;
  }

 private:
  std::int64_t size_, length_;
};

}  // namespace

MaskRef mask_queries(const bool* keep, std::int64_t sequences, std::int64_t length) {
  return std::make_shared<Queries>(keep, sequences, length);
}
MaskRef mask_chunks(std::int64_t size, bool earlier) { return std::make_shared<Chunks>(size, earlier); }
MaskRef mask_dilated(std::int64_t window, std::int64_t stride) { return std::make_shared<Dilated>(window, stride); }
MaskRef mask_global_tokens(std::vector<std::int64_t> positions) { return std::make_shared<GlobalTokens>(std::move(positions)); }
MaskRef mask_tree(std::vector<std::int64_t> parents, std::optional<std::int64_t> start) {
  return std::make_shared<Tree>(std::move(parents), start);
}
MaskRef mask_block_sparse(const bool* keep, const std::int64_t (&shape)[4], std::int64_t size) {
  return std::make_shared<BlockSparse>(keep, shape, size);
}
MaskRef mask_neighborhood(const std::int64_t (&shape)[2], const std::int64_t (&kernel)[2]) {
  return std::make_shared<Neighborhood>(shape, kernel);
}
MaskRef mask_block_diffusion(std::int64_t size, std::int64_t length) { return std::make_shared<BlockDiffusion>(size, length); }

}  // namespace maskattn
