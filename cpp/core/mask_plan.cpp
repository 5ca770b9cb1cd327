// Lowering: one KeySet per row, pushed into pieces of rows; pieces that agree are stored once.
#include <algorithm>
#include <atomic>
#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "mask_expr.hpp"
#include "mask_piece.hpp"
#include "threads.hpp"

namespace maskattn {

using PieceRef = std::shared_ptr<PlanPiece>;

struct PlanGrowth {
  Geometry before, after;                     // of the plan that it is for, and of what that becomes
  std::int64_t row_base;                      // of both
  std::int64_t kept;                          // rows in front that stay as they are
  std::vector<std::vector<PieceRef>> pieces;  // of each (sequence, head): the rows behind those, cut where pieces end
};

namespace {

bool uniform(const std::vector<std::int64_t>& values) {
  return std::all_of(values.begin(), values.end(), [&](std::int64_t value) { return value == values[0]; });
}

void check_extent(const char* what, std::int64_t mask, std::int64_t call) {
  if (mask != 1 && mask != call)
    throw std::invalid_argument(std::string("mask must have a ") + what + " of " + std::to_string(call) + " or 1, got " +
                                std::to_string(mask) + "; build it from parameters for this call");
}

// `row_base`: rows of the call in front of the geometry's.
void check(const MaskExpr& mask, const Geometry& geometry, std::int64_t row_base) {
  if (geometry.kv_len > std::numeric_limits<std::int32_t>::max())
    throw std::invalid_argument("kv_len must be below 2**31, got " + std::to_string(geometry.kv_len));
  if (row_base == 0) return mask.check(geometry);
  Geometry call = geometry;
  call.q_len += row_base;
  for (auto& offset : call.q_offset) offset -= row_base;
  mask.check(call);
}

// The pieces made so far, to find those that agree.
class Pool {
 public:
  PieceRef intern(PlanPiece&& piece) {
    const std::uint64_t hash = piece.hash();
    const std::lock_guard lock(guard_);
    const auto [first, last] = pieces_.equal_range(hash);
    const auto found = std::find_if(first, last, [&](const auto& entry) { return *entry.second == piece; });
    if (found != last) return found->second;
    return pieces_.emplace(hash, std::make_shared<PlanPiece>(std::move(piece)))->second;
  }

 private:
  std::mutex guard_;
  std::unordered_multimap<std::uint64_t, PieceRef> pieces_;
};

// Lowers a range of rows; `row_base` rows of the call are in front of the geometry's.
struct Lowering {
  const MaskExpr& mask;
  const RowRange range;
  std::int64_t row_base;

  // Rows [begin, end) of a strip.
  PlanPiece piece(RowQuery& query, KeySet& set, std::int64_t strip, std::int64_t begin, std::int64_t end) const {
    PlanPiece piece;
    piece.reserve(end - begin);
    query.b = strip / range.heads;
    query.h = strip % range.heads;
    query.keys = range.geometry.length_of(query.b);
    for (std::int64_t i = begin; i < end; ++i) {
      query.i = row_base + i;
      query.position = range.geometry.offset_of(query.b) + i;
      set.spans.clear();
      set.irregular = false;
      mask.row(query, 0, set);
      normalize(set, query.keys);
      piece.push({set.spans.data(), static_cast<int>(set.spans.size()), set.irregular ? set.bits.data() : nullptr});
    }
    piece.shrink();
    return piece;
  }

  std::vector<std::vector<PieceRef>> run() const {
    const std::int64_t strips = range.batch * range.heads, first = range.first, last = range.geometry.q_len;
    const std::int64_t base = row_base / kPieceRows * kPieceRows - row_base;  // where the first piece begins
    const std::int64_t skipped = (first - base) / kPieceRows;
    const std::int64_t each = first < last ? (last - base + kPieceRows - 1) / kPieceRows - skipped : 0;
    std::vector<std::vector<PieceRef>> pieces(static_cast<std::size_t>(strips));
    for (auto& strip : pieces) strip.resize(static_cast<std::size_t>(each));
    const std::int64_t count = strips * each, rows = std::min(kPieceRows, last - first);
    const std::int64_t task = rows > 0 ? (kPieceRows + rows - 1) / rows : 1;  // pieces: short ones are lowered together
    Prepared prepared;
    mask.prepare(range, prepared);
    Pool pool;
    parallel_for((count + task - 1) / task, range.threads, [&](std::int64_t t) {
      RowQuery query(prepared);
      KeySet set;
      for (std::int64_t index = t * task; index < std::min(count, (t + 1) * task); ++index) {
        const std::int64_t begin = base + (skipped + index % each) * kPieceRows;
        PlanPiece made = piece(query, set, index / each, std::max(begin, first), std::min(begin + kPieceRows, last));
        PieceRef& to = pieces[static_cast<std::size_t>(index / each)][static_cast<std::size_t>(index % each)];
        to = count == 1 ? std::make_shared<PlanPiece>(std::move(made)) : pool.intern(std::move(made));
      }
    });
    return pieces;
  }
};

// Leaves the first `rows` rows of a strip, and puts pieces of further ones behind them.
void replace_tail(std::vector<PieceRef>& strip, std::int64_t rows, const std::vector<PieceRef>& added) {
  strip.resize(static_cast<std::size_t>((rows + kPieceRows - 1) / kPieceRows));
  if (added.empty()) return;
  const std::int64_t inside = rows % kPieceRows;
  if (inside == 0) {
    strip.insert(strip.end(), added.begin(), added.end());
    return;
  }
  PieceRef& tail = strip.back();
  if (tail.use_count() > 1)
    tail = std::make_shared<PlanPiece>(*tail);  // others see it
  else
    std::atomic_thread_fence(std::memory_order_acquire);  // the last of the others, in whatever thread, is done with it
  tail->truncate(inside);
  for (std::int64_t r = 0; r < added[0]->rows(); ++r) tail->push(added[0]->row(r));
  strip.insert(strip.end(), added.begin() + 1, added.end());
}

}  // namespace

void check_mask(const MaskRef& mask, const Geometry& geometry) {
  check_extent("batch", mask->batch(), geometry.batch);
  check_extent("head count", mask->heads(), geometry.heads);
  check(*mask, geometry, 0);
}

MaskPlan::MaskPlan(const MaskRef& mask, Geometry geometry, int threads) : mask_(mask), geometry_(std::move(geometry)) {
  const Geometry& g = geometry_;
  check_mask(mask, g);
  const bool one_batch = mask->batch() == 1 && !mask->varies_by_batch() && uniform(g.q_offset) && uniform(g.kv_lengths);
  plan_batch_ = one_batch ? std::min<std::int64_t>(1, g.batch) : g.batch;
  plan_heads_ = mask->varies_by_head() ? g.heads : std::min(mask->heads(), g.heads);
  strip_of_.resize(static_cast<std::size_t>(plan_batch_ * plan_heads_));
  strips_.resize(1);
  take(0, Lowering{*mask_, {geometry_, plan_batch_, plan_heads_, 0, threads}, 0}.run());
}

// Strips that were one, and get the same pieces, stay one.
void MaskPlan::take(std::int64_t kept, const std::vector<Strip>& added) {
  const std::int64_t rows = row_base_ % kPieceRows + kept;
  if (added.size() == 1 && strips_.size() == 1) return replace_tail(strips_[0], rows, added[0]);
  std::map<std::pair<std::uint32_t, Strip>, std::uint32_t> next;  // (former strip, pieces behind it) -> strip
  std::vector<int> heirs(strips_.size());
  for (std::size_t at = 0; at < added.size(); ++at) {
    const std::uint32_t former = strip_of_[at];
    const auto [entry, is_new] = next.try_emplace({former, added[at]}, static_cast<std::uint32_t>(next.size()));
    strip_of_[at] = entry->second;
    heirs[former] += is_new;
  }
  std::vector<Strip> strips(next.size());
  for (const auto& [key, strip] : next) {
    Strip& former = strips_[key.first];
    strips[strip] = --heirs[key.first] == 0 ? std::move(former) : former;
    replace_tail(strips[strip], rows, key.second);
  }
  strips_ = std::move(strips);
}

std::shared_ptr<const PlanGrowth> MaskPlan::growth(std::int64_t n, int threads) const {
  Geometry after = geometry_;
  after.q_len += n;
  after.kv_len += n;
  for (auto& length : after.kv_lengths) length += n;
  check(*mask_, after, row_base_);
  std::int64_t kept = mask_->counts_from_end() ? 0 : geometry_.q_len;
  for (std::int64_t b = 0; b < plan_batch_; ++b) {
    const std::int64_t settled = mask_->settled_before(geometry_.length_of(b));
    if (settled != kEveryPosition)
      kept = std::min(kept, settled <= geometry_.offset_of(b) ? 0 : settled - geometry_.offset_of(b));
  }
  auto pieces = Lowering{*mask_, {after, plan_batch_, plan_heads_, kept, threads}, row_base_}.run();
  return std::make_shared<PlanGrowth>(PlanGrowth{geometry_, std::move(after), row_base_, kept, std::move(pieces)});
}

bool MaskPlan::grow(const PlanGrowth& growth) {
  if (geometry_ != growth.before || row_base_ != growth.row_base) return false;
  take(growth.kept, growth.pieces);
  geometry_ = growth.after;
  return true;
}

void MaskPlan::extend(std::int64_t n, int threads) { grow(*growth(n, threads)); }

MaskPlan MaskPlan::slice(std::int64_t begin, std::int64_t end) const {
  MaskPlan part;
  part.mask_ = mask_;
  part.geometry_ = geometry_;
  part.geometry_.q_len = end - begin;
  for (auto& offset : part.geometry_.q_offset) offset += begin;
  part.row_base_ = row_base_ + begin;
  part.plan_batch_ = plan_batch_;
  part.plan_heads_ = plan_heads_;
  part.strip_of_ = strip_of_;
  const std::int64_t inside = row_base_ % kPieceRows, first = (inside + begin) / kPieceRows;
  const std::int64_t last = (inside + end + kPieceRows - 1) / kPieceRows;
  for (const Strip& strip : strips_) part.strips_.emplace_back(strip.begin() + first, strip.begin() + last);
  return part;
}

PlanRow MaskPlan::row(std::int64_t b, std::int64_t h, std::int64_t i) const {
  const std::int64_t at = (plan_batch_ == 1 ? 0 : b) * plan_heads_ + (plan_heads_ == 1 ? 0 : h);
  const std::int64_t r = row_base_ % kPieceRows + i;
  const Strip& strip = strips_[strip_of_[static_cast<std::size_t>(at)]];
  return strip[static_cast<std::size_t>(r / kPieceRows)]->row(r % kPieceRows);
}

std::size_t MaskPlan::bytes() const {
  std::size_t bytes = sizeof *this + strip_of_.size() * sizeof strip_of_[0];
  std::unordered_set<const PlanPiece*> counted;
  for (const Strip& strip : strips_) {
    bytes += sizeof strip + strip.size() * sizeof strip[0];
    for (const PieceRef& piece : strip)
      if (counted.insert(piece.get()).second) bytes += piece->bytes();
  }
  return bytes;
}

}  // namespace maskattn
