// What is left of a plan when rows and keys are deleted.
#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

#include "mask_expr.hpp"

namespace maskattn {
namespace {

class Compressed final : public MaskExpr {
 public:
  Compressed(std::shared_ptr<const MaskPlan> plan, const bool* rows, const bool* keys)
      : plan_(std::move(plan)), sequences_(static_cast<std::size_t>(plan_->stored_batch())) {
    const Geometry& g = plan_->geometry();
    for (auto& sequence : sequences_) {
      for (std::int64_t i = 0; i < g.q_len; ++i)
        if (rows[i]) sequence.rows.push_back(i);
      sequence.kept.assign(static_cast<std::size_t>((g.kv_len + 63) / 64), 0);
      sequence.rank.assign(1, 0);
      for (std::int64_t key = 0; key < g.kv_len; ++key) {
        sequence.kept[static_cast<std::size_t>(key / 64)] |= std::uint64_t{keys[key]} << (key % 64);
        sequence.rank.push_back(sequence.rank.back() + keys[key]);
      }
      rows += g.q_len;
      keys += g.kv_len;
    }
  }
  std::int64_t batch() const override { return plan_->stored_batch(); }
  std::int64_t heads() const override { return plan_->stored_heads(); }
  void check(const Geometry& geometry) const override {
    for (const auto& sequence : sequences_) {
      check_room("q_len", geometry.q_len, static_cast<std::int64_t>(sequence.rows.size()), "rows");
      check_room("kv_len", geometry.kv_len, sequence.rank.back(), "keys");
    }
  }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    const Sequence& sequence = sequences_[pick(query.b, sequences_.size())];
    if (query.i >= static_cast<std::int64_t>(sequence.rows.size())) return;
    const PlanRow from = plan_->row(query.b, query.h, sequence.rows[static_cast<std::size_t>(query.i)]);
    if (from.bits) return compress_bits(from, sequence, query.keys, out);
    for (const Span* span = from.spans; span < from.spans + from.count; ++span) {
      const std::int32_t begin = sequence.rank[static_cast<std::size_t>(span->begin)];
      const std::int32_t end = sequence.rank[static_cast<std::size_t>(span->end)];
      if (!out.spans.empty() && out.spans.back().end == begin)  // what stood between them is deleted
        out.spans.back().end = end;
      else if (begin < end)
        out.spans.push_back({begin, end});
    }
  }

 private:
  struct Sequence {
    std::vector<std::int64_t> rows;   // of the plan, that are left
    std::vector<std::uint64_t> kept;  // bits of the keys that are left
    std::vector<std::int32_t> rank;   // [kv_len + 1]: keys left before each
  };

  static void check_room(const char* name, std::int64_t have, std::int64_t want, const char* what) {
    if (have < want)
      throw std::invalid_argument(std::string(name) + " must be at least " + std::to_string(want) + ", the " + what +
                                  " that are left, got " + std::to_string(have));
  }

  static void compress_bits(const PlanRow& from, const Sequence& sequence, std::int64_t keys, KeySet& out) {
    if (sees_all_between(from, sequence.kept))  // usual: what was irregular is what is deleted
      return push_clipped(out, sequence.rank[static_cast<std::size_t>(from.spans->begin)],
                          sequence.rank[static_cast<std::size_t>(from.spans->end)], keys);
    out.irregular = true;
    out.bits.assign(static_cast<std::size_t>((keys + 63) / 64), 0);
    for (std::int64_t w = from.spans->begin / 64; w * 64 < from.spans->end; ++w) {
      const std::uint64_t kept = sequence.kept[static_cast<std::size_t>(w)];
      for (std::uint64_t seen = from.bits[w] & kept; seen; seen &= seen - 1) {
        const std::int64_t key = sequence.rank[static_cast<std::size_t>(w * 64)] + std::popcount(kept & ((seen & -seen) - 1));
        out.bits[static_cast<std::size_t>(key / 64)] |= std::uint64_t{1} << (key % 64);
      }
    }
  }

  // Whether the row sees every key that is left, from the first that it sees to the last.
  static bool sees_all_between(const PlanRow& row, const std::vector<std::uint64_t>& kept) {
    for (std::int64_t w = row.spans->begin / 64; w * 64 < row.spans->end; ++w) {
      std::uint64_t hidden = kept[static_cast<std::size_t>(w)] & ~row.bits[w];
      if (w == row.spans->begin / 64) hidden &= ~std::uint64_t{0} << (row.spans->begin % 64);
      if (w == (row.spans->end - 1) / 64) hidden &= ~std::uint64_t{0} >> (63 - (row.spans->end - 1) % 64);
      if (hidden) return false;
    }
    return true;
  }

  std::shared_ptr<const MaskPlan> plan_;
  std::vector<Sequence> sequences_;
};

}  // namespace

MaskRef mask_compressed(std::shared_ptr<const MaskPlan> plan, const bool* rows, const bool* keys) {
  return std::make_shared<Compressed>(std::move(plan), rows, keys);
}

}  // namespace maskattn
