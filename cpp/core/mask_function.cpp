// Masks that a function decides. It is asked in tiles before rows are lowered, and its answers are kept.
#include <algorithm>
#include <map>
#include <mutex>

#include "mask_expr.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

constexpr std::size_t kKeptBytes = std::size_t{256} << 20;
constexpr std::int64_t kTilePairs = 1 << 20, kParallelTilePairs = 1 << 16;

// What is known of one row: bits of the keys before `known`. Immutable once others can see it.
struct Answer {
  std::int64_t known;
  std::vector<std::uint64_t> bits;
  std::size_t bytes() const { return sizeof *this + bits.size() * sizeof(std::uint64_t); }
};
using AnswerRef = std::shared_ptr<const Answer>;

std::int64_t known_keys(const AnswerRef& answer) { return answer ? answer->known : 0; }

// The answers that one lowering needs.
struct Answers {
  std::size_t batch, heads, rows;
  std::vector<std::int64_t> begin;  // [batch]: the first row's position
  std::vector<AnswerRef> of;        // [batch][heads][rows]

  AnswerRef* strip(std::size_t b, std::size_t h) { return of.data() + (b * heads + h) * rows; }
  const Answer& at(std::int64_t b, std::int64_t h, std::int64_t position) const {
    const std::size_t s = pick(b, batch);
    return *of[(s * heads + pick(h, heads)) * rows + static_cast<std::size_t>(position - begin[s])];
  }
};

class Function final : public MaskExpr {
 public:
  Function(MaskTileFunction answer, bool parallel, bool per_sequence, bool per_head)
      : answer_(std::move(answer)), parallel_(parallel), per_sequence_(per_sequence), per_head_(per_head) {}
  bool varies_by_batch() const override { return per_sequence_; }
  bool varies_by_head() const override { return per_head_; }

  void prepare(const RowRange& rows, Prepared& prepared) const override {
    if (prepared.count(this)) return;  // the leaf stands in several places of the expression
    const Geometry& g = rows.geometry;
    const auto answers = std::make_shared<Answers>();
    answers->batch = static_cast<std::size_t>(rows.batch);
    answers->heads = static_cast<std::size_t>(per_head_ ? rows.heads : std::min<std::int64_t>(1, rows.heads));
    answers->rows = static_cast<std::size_t>(g.q_len - rows.first);
    answers->of.resize(answers->batch * answers->heads * answers->rows);
    for (std::size_t b = 0; b < answers->batch; ++b) {
      const auto sequence = static_cast<std::int64_t>(b);
      answers->begin.push_back(g.offset_of(sequence) + rows.first);
      for (std::size_t h = 0; h < answers->heads; ++h)
        find({per_sequence_ ? sequence : 0, per_head_ ? static_cast<std::int64_t>(h) : 0, answers->begin[b], g.q_len - rows.first,
              0, g.length_of(sequence)},
             answers->strip(b, h), rows.threads);
    }
    prepared.emplace(this, answers);
  }

  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    if (query.keys == 0) return;
    const Answer& answer = static_cast<const Answers*>(query.prepared.at(this).get())->at(query.b, query.h, query.position);
    out.irregular = true;
    out.bits.assign(answer.bits.begin(), answer.bits.begin() + (query.keys + 63) / 64);
    if (query.keys % 64) out.bits.back() &= ~std::uint64_t{0} >> (64 - query.keys % 64);
  }

 private:
  // The rows of `all` into out[rows], asked where they are not known that far.
  void find(const MaskTile& all, AnswerRef* out, int threads) const {
    recall(all, out);
    for (std::int64_t r = 0, end; r < all.rows; r = end) {
      const std::int64_t known = known_keys(out[r]);
      for (end = r + 1; end < all.rows && known_keys(out[end]) == known;) ++end;
      if (known < all.keys) ask({all.b, all.h, all.q_begin + r, end - r, known, all.keys - known}, out + r, threads);
    }
    keep(all, out);
  }

  void recall(const MaskTile& all, AnswerRef* out) const {
    const std::lock_guard lock(guard_);
    const auto strip = kept_.find({all.b, all.h});
    if (strip == kept_.end()) return;
    for (std::int64_t r = 0; r < all.rows; ++r) {
      const auto found = strip->second.find(all.q_begin + r);
      if (found != strip->second.end()) out[r] = found->second;
    }
  }

  void keep(const MaskTile& all, const AnswerRef* answers) const {
    const std::lock_guard lock(guard_);
    auto& strip = kept_[{all.b, all.h}];
    for (std::int64_t r = 0; r < all.rows; ++r) {
      const auto found = strip.find(all.q_begin + r);
      const AnswerRef former = found == strip.end() ? nullptr : found->second;
      if (known_keys(answers[r]) <= known_keys(former)) continue;
      const std::size_t bytes = kept_bytes_ + answers[r]->bytes() - (former ? former->bytes() : 0);
      if (bytes > kKeptBytes) continue;
      kept_bytes_ = bytes;
      strip.insert_or_assign(all.q_begin + r, answers[r]);
    }
  }

  // Rows that are known up to the same key learn the keys of `wanted`; a thread takes whole rows.
  void ask(const MaskTile& wanted, AnswerRef* out, int threads) const {
    std::vector<std::shared_ptr<Answer>> rows(static_cast<std::size_t>(wanted.rows));
    for (std::size_t r = 0; r < rows.size(); ++r) {
      rows[r] = std::make_shared<Answer>();
      if (out[r]) rows[r]->bits = out[r]->bits;
      rows[r]->known = wanted.kv_begin + wanted.keys;
      rows[r]->bits.resize(static_cast<std::size_t>((rows[r]->known + 63) / 64));
    }
    const std::int64_t pairs = parallel_ ? kParallelTilePairs : kTilePairs;
    const std::int64_t width = std::min(wanted.keys, pairs), height = std::max<std::int64_t>(1, pairs / width);
    parallel_for((wanted.rows + height - 1) / height, parallel_ ? threads : 1, [&](std::int64_t t) {
      const std::int64_t first = t * height, count = std::min(height, wanted.rows - first);
      const std::unique_ptr<bool[]> keep(new bool[static_cast<std::size_t>(count * width)]);
      for (std::int64_t key = 0; key < wanted.keys; key += width) {
        const std::int64_t keys = std::min(width, wanted.keys - key);
        const MaskTile tile{wanted.b, wanted.h, wanted.q_begin + first, count, wanted.kv_begin + key, keys};
        answer_(tile, keep.get());
        for (std::int64_t r = 0; r < count; ++r)
          pack_bits(keep.get() + r * keys, keys, rows[static_cast<std::size_t>(first + r)]->bits.data(), tile.kv_begin);
      }
    });
    std::move(rows.begin(), rows.end(), out);
  }

  const MaskTileFunction answer_;
  const bool parallel_, per_sequence_, per_head_;
  mutable std::mutex guard_;  // held to look answers up and to put them in, never while the function is asked
  mutable std::map<std::pair<std::int64_t, std::int64_t>, std::unordered_map<std::int64_t, AnswerRef>> kept_;
  mutable std::size_t kept_bytes_ = 0;
};

}  // namespace

MaskRef mask_tiles(MaskTileFunction answer, bool per_sequence, bool per_head) {
  return std::make_shared<Function>(std::move(answer), false, per_sequence, per_head);
}

MaskRef mask_function(MaskFunction function, void* data, bool per_sequence, bool per_head) {
  const auto answer = [function, data](const MaskTile& tile, bool* keep) {
    for (std::int64_t q = tile.q_begin; q < tile.q_begin + tile.rows; ++q)
      for (std::int64_t k = tile.kv_begin; k < tile.kv_begin + tile.keys; ++k)
        *keep++ = function(tile.b, tile.h, q, k, data) != 0;
  };
  return std::make_shared<Function>(answer, true, per_sequence, per_head);
}

}  // namespace maskattn
