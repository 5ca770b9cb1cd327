// Leaves that speak of the query's position, of keys, or of documents.
#include <algorithm>
#include <unordered_map>

#include "mask_expr.hpp"
#include "program_writer.hpp"

namespace maskattn {
namespace {

class Band final : public MaskExpr {
 public:
  Band(std::optional<std::int64_t> left, std::optional<std::int64_t> right) : left_(left), right_(right) {}
  std::int64_t settled_before(std::int64_t keys) const override { return right_ ? keys - *right_ : kNoPosition; }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    push_clipped(out, left_ ? query.position - *left_ : 0, right_ ? query.position + *right_ + 1 : query.keys, query.keys);
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    auto& a = program.leaf(MaskOp::band, use, 1).a;
    a[0] = left_.has_value(), a[1] = left_.value_or(0), a[2] = right_.has_value(), a[3] = right_.value_or(0);
    return true;
  }

 private:
  std::optional<std::int64_t> left_, right_;
};

class KeyRange final : public MaskExpr {
 public:
  KeyRange(std::vector<std::int64_t> begin, std::vector<std::int64_t> end) : begin_(std::move(begin)), end_(std::move(end)) {}
  std::int64_t batch() const override { return static_cast<std::int64_t>(begin_.size()); }
  std::int64_t settled_before(std::int64_t keys) const override {
    return *std::max_element(end_.begin(), end_.end()) <= keys ? kEveryPosition : kNoPosition;
  }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    const std::size_t b = pick(query.b, begin_.size());
    push_clipped(out, begin_[b], end_[b], query.keys);
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    const std::int64_t at = program.integers(begin_);
    program.integers(end_);
    auto& a = program.leaf(MaskOp::key_range, use, 1).a;
    a[0] = at, a[1] = batch();
    return true;
  }

 private:
  std::vector<std::int64_t> begin_, end_;
};

class LastKeys final : public MaskExpr {
 public:
  explicit LastKeys(std::vector<std::int64_t> counts) : counts_(std::move(counts)) {}
  bool counts_from_end() const override { return true; }
  std::int64_t batch() const override { return static_cast<std::int64_t>(counts_.size()); }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    push_clipped(out, query.keys - counts_[pick(query.b, counts_.size())], query.keys, query.keys);
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    const std::int64_t at = program.integers(counts_);
    auto& a = program.leaf(MaskOp::last_keys, use, 1).a;
    a[0] = at, a[1] = batch();
    return true;
  }

 private:
  std::vector<std::int64_t> counts_;
};

class Keys final : public MaskExpr {
 public:
  Keys(const bool* keep, std::int64_t sequences, std::int64_t keys) : spans_(static_cast<std::size_t>(sequences)), keys_(keys) {
    for (auto& spans : spans_) {
      for_each_equal_run(keep, keys, [&](bool kept, Span run) {
        if (kept) spans.push_back(run);
      });
      keep += keys;
    }
  }
  std::int64_t batch() const override { return static_cast<std::int64_t>(spans_.size()); }
  std::int64_t settled_before(std::int64_t keys) const override {
    const auto ends = [keys](const std::vector<Span>& spans) { return spans.empty() || spans.back().end <= keys; };
    return std::all_of(spans_.begin(), spans_.end(), ends) ? kEveryPosition : kNoPosition;
  }
  void check(const Geometry& geometry) const override { check_covers("KeyPadding", keys_, geometry.kv_len, "keys"); }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    push_clipped(out, spans_[pick(query.b, spans_.size())], query.keys);
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    const std::int64_t table = program.table(spans_);
    auto& a = program.leaf(MaskOp::keys, use, program.longest(spans_)).a;
    a[0] = table, a[1] = batch();
    return true;
  }

 private:
  std::vector<std::vector<Span>> spans_;
  std::int64_t keys_;
};

class Documents final : public MaskExpr {
 public:
  Documents(const std::int64_t* q_ids, std::int64_t q_length, const std::int64_t* kv_ids, std::int64_t kv_length,
            std::int64_t sequences)
      : q_ids_(q_ids, q_ids + q_length * sequences), q_length_(q_length), kv_length_(kv_length) {
    for (std::int64_t s = 0; s < sequences; ++s) {
      auto& spans = spans_.emplace_back();
      for_each_equal_run(kv_ids + s * kv_length, kv_length, [&](std::int64_t id, Span run) { spans[id].push_back(run); });
    }
  }
  std::int64_t batch() const override { return static_cast<std::int64_t>(spans_.size()); }
  void check(const Geometry& geometry) const override {
    check_covers("Documents: kv_ids", kv_length_, geometry.kv_len, "keys");
    for (const std::int64_t offset : geometry.q_offset)
      check_covers("Documents: ids", q_length_, offset + geometry.q_len, "query positions");
  }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    if (query.position < 0) return;
    const std::size_t s = pick(query.b, spans_.size());
    const auto found = spans_[s].find(q_ids_[s * static_cast<std::size_t>(q_length_) + static_cast<std::size_t>(query.position)]);
    if (found != spans_[s].end()) push_clipped(out, found->second, query.keys);
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    std::vector<std::vector<Span>> lines;
    std::vector<std::int64_t> line_of;  // [sequences][q_length]
    for (std::size_t s = 0; s < spans_.size(); ++s) {
      std::unordered_map<std::int64_t, std::int64_t> line_of_id;
      for (const auto& [id, spans] : spans_[s]) {
        line_of_id.emplace(id, static_cast<std::int64_t>(lines.size()));
        lines.push_back(spans);
      }
      const std::int64_t* ids = q_ids_.data() + s * static_cast<std::size_t>(q_length_);
      for (std::int64_t position = 0; position < q_length_; ++position) {
        const auto found = line_of_id.find(ids[position]);
        line_of.push_back(found == line_of_id.end() ? -1 : found->second);
      }
    }
    const std::int64_t at = program.integers(line_of), table = program.table(lines);
    auto& a = program.leaf(MaskOp::documents, use, program.longest(lines)).a;
    a[0] = at, a[1] = q_length_, a[2] = batch(), a[3] = table, a[4] = static_cast<std::int64_t>(lines.size());
    return true;
  }

 private:
  std::vector<std::int64_t> q_ids_;
  std::int64_t q_length_, kv_length_;
  std::vector<std::unordered_map<std::int64_t, std::vector<Span>>> spans_;
};

}  // namespace

MaskRef mask_band(std::optional<std::int64_t> left, std::optional<std::int64_t> right) {
  return std::make_shared<Band>(left, right);
}
MaskRef mask_key_range(std::vector<std::int64_t> begin, std::vector<std::int64_t> end) {
  if (begin.size() != end.size() || begin.empty()) throw std::invalid_argument("begin and end must have the same size, not 0");
  return std::make_shared<KeyRange>(std::move(begin), std::move(end));
}
MaskRef mask_last_keys(std::vector<std::int64_t> counts) { return std::make_shared<LastKeys>(std::move(counts)); }
MaskRef mask_keys(const bool* keep, std::int64_t sequences, std::int64_t keys) {
  return std::make_shared<Keys>(keep, sequences, keys);
}
MaskRef mask_documents(const std::int64_t* q_ids, std::int64_t q_length, const std::int64_t* kv_ids, std::int64_t kv_length,
                       std::int64_t sequences) {
  return std::make_shared<Documents>(q_ids, q_length, kv_ids, kv_length, sequences);
}

}  // namespace maskattn
