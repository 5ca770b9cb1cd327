// The nodes above the leaves, and what all nodes tell of themselves.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "mask_expr.hpp"
#include "program_writer.hpp"

namespace maskattn {
namespace {

// `&` and `|`: terms are evaluated one by one into scratch and folded into the result. A row of `a & b` is settled once it is in
// one term, a row of `a | b` once it is in both.
template <void (*fold)(KeySet&, KeySet&, std::int64_t), const std::int64_t& (*settled)(const std::int64_t&, const std::int64_t&),
          MaskFold step>
class Combined final : public MaskExpr {
 public:
  explicit Combined(std::vector<MaskRef> terms) : terms_(std::move(terms)) {
    if (terms_.empty()) throw std::invalid_argument("terms must hold at least one mask, got none");
    for (const auto& term : terms_) {
      batch_ = agree("batch", batch_, term->batch());
      heads_ = agree("head count", heads_, term->heads());
    }
  }
  std::int64_t batch() const override { return batch_; }
  std::int64_t heads() const override { return heads_; }
  bool varies_by_batch() const override {
    return std::any_of(terms_.begin(), terms_.end(), [](const MaskRef& term) { return term->varies_by_batch(); });
  }
  bool varies_by_head() const override {
    return std::any_of(terms_.begin(), terms_.end(), [](const MaskRef& term) { return term->varies_by_head(); });
  }
  std::int64_t settled_before(std::int64_t keys) const override {
    std::int64_t position = terms_[0]->settled_before(keys);
    for (const auto& term : terms_) position = settled(position, term->settled_before(keys));
    return position;
  }
  bool counts_from_end() const override {
    return std::any_of(terms_.begin(), terms_.end(), [](const MaskRef& term) { return term->counts_from_end(); });
  }
  void check(const Geometry& geometry) const override {
    for (const auto& term : terms_) term->check(geometry);
  }
  void prepare(const RowRange& rows, Prepared& prepared) const override {
    for (const auto& term : terms_) term->prepare(rows, prepared);
  }
  void row(RowQuery& query, std::size_t depth, KeySet& out) const override {
    terms_[0]->row(query, depth, out);
    for (std::size_t t = 1; t < terms_.size(); ++t) {
      KeySet& other = query.scratch(depth);
      other.spans.clear();
      other.irregular = false;
      terms_[t]->row(query, depth + 1, other);
      fold(out, other, query.keys);
    }
  }
  int height() const override {
    int most = 0;
    for (const auto& term : terms_) most = std::max(most, term->height());
    return 1 + most;
  }
  // Negated, each term is, and `&` and `|` change places (De Morgan). Leaves come last: they are folded into the top of the
  // stack.
  bool write(ProgramWriter& program, StepUse use) const override {
    const MaskFold own = (step == MaskFold::intersect) != use.negated ? MaskFold::intersect : MaskFold::unite;
    std::vector<const MaskExpr*> terms;
    for (const auto& term : terms_) terms.push_back(term.get());
    std::stable_sort(terms.begin(), terms.end(), [](const MaskExpr* a, const MaskExpr* b) { return a->height() > b->height(); });
    const bool joins = use.fold == own;  // `a & (b & c)` needs no stack
    for (std::size_t t = 0; t < terms.size(); ++t)
      if (!terms[t]->write(program, {t == 0 && !joins ? MaskFold::push : own, use.negated})) return false;
    if (!joins && use.fold != MaskFold::push) program.fold(use.fold);
    return true;
  }

 private:
  static std::int64_t agree(const char* what, std::int64_t a, std::int64_t b) {
    if (a != 1 && b != 1 && a != b)
      throw std::invalid_argument(std::string("masks that are combined must agree in ") + what + ", got " + std::to_string(a) +
                                  " and " + std::to_string(b));
    return std::max(a, b);
  }
  std::vector<MaskRef> terms_;
  std::int64_t batch_ = 1, heads_ = 1;
};

class Not final : public MaskExpr {
 public:
  explicit Not(MaskRef term) : term_(std::move(term)) {}
  std::int64_t batch() const override { return term_->batch(); }
  std::int64_t heads() const override { return term_->heads(); }
  bool varies_by_batch() const override { return term_->varies_by_batch(); }
  bool varies_by_head() const override { return term_->varies_by_head(); }
  bool counts_from_end() const override { return term_->counts_from_end(); }
  void check(const Geometry& geometry) const override { term_->check(geometry); }
  void prepare(const RowRange& rows, Prepared& prepared) const override { term_->prepare(rows, prepared); }
  void row(RowQuery& query, std::size_t depth, KeySet& out) const override {
    term_->row(query, depth, out);
    complement(out, query.keys);
  }
  int height() const override { return term_->height(); }
  bool write(ProgramWriter& program, StepUse use) const override { return term_->write(program, {use.fold, !use.negated}); }

 private:
  MaskRef term_;
};

}  // namespace

void check_covers(const char* what, std::int64_t have, std::int64_t want, const char* unit) {
  if (have < want)
    throw std::invalid_argument(std::string(what) + " must cover the call's " + std::to_string(want) + " " + unit + ", got " +
                                std::to_string(have) + "; build the mask for the longer sequence");
}

MaskRef mask_and(std::vector<MaskRef> terms) {
  return std::make_shared<Combined<intersect, std::max<std::int64_t>, MaskFold::intersect>>(std::move(terms));
}
MaskRef mask_or(std::vector<MaskRef> terms) {
  return std::make_shared<Combined<unite, std::min<std::int64_t>, MaskFold::unite>>(std::move(terms));
}
MaskRef mask_not(MaskRef term) { return std::make_shared<Not>(std::move(term)); }
std::int64_t mask_batch(const MaskRef& mask) { return mask->batch(); }
std::int64_t mask_heads(const MaskRef& mask) { return mask->heads(); }

}  // namespace maskattn
