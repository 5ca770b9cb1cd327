// Lowering: one KeySet per row, stored once where neighbours agree.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "mask_expr.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

constexpr std::int64_t kRowsPerPiece = 512;

bool uniform(const std::vector<std::int64_t>& values) {
  return std::all_of(values.begin(), values.end(), [&](std::int64_t value) { return value == values[0]; });
}

void check_extent(const char* what, std::int64_t mask, std::int64_t call) {
  if (mask != 1 && mask != call)
    throw std::invalid_argument(std::string("mask must have a ") + what + " of " + std::to_string(call) + " or 1, got " +
                                std::to_string(mask) + "; build it from parameters for this call");
}

}  // namespace

MaskPlan::MaskPlan(const MaskRef& mask, Geometry geometry, int threads) : geometry_(std::move(geometry)) {
  const Geometry& g = geometry_;
  if (g.kv_len > std::numeric_limits<std::int32_t>::max() - kRowsPerPiece)
    throw std::invalid_argument("kv_len must be below 2**31 - 512, got " + std::to_string(g.kv_len));
  check_extent("batch", mask->batch(), g.batch);
  check_extent("head count", mask->heads(), g.heads);
  mask->check(g);
  const bool one_batch = mask->batch() == 1 && !mask->varies_by_batch() && uniform(g.q_offset) && uniform(g.kv_lengths);
  plan_batch_ = one_batch ? std::min<std::int64_t>(1, g.batch) : g.batch;
  plan_heads_ = mask->varies_by_head() ? g.heads : std::min(mask->heads(), g.heads);

  struct Piece {
    std::vector<Row> rows;
    std::vector<Span> spans;
    std::vector<std::uint64_t> bits;
  };
  const std::int64_t total = plan_batch_ * plan_heads_ * g.q_len;
  std::vector<Piece> pieces(static_cast<std::size_t>((total + kRowsPerPiece - 1) / kRowsPerPiece));
  parallel_for(static_cast<std::int64_t>(pieces.size()), threads, [&](std::int64_t p) {
    Piece& piece = pieces[static_cast<std::size_t>(p)];
    RowQuery query;
    KeySet set, former;
    const std::int64_t last = std::min(total, (p + 1) * kRowsPerPiece);
    for (std::int64_t r = p * kRowsPerPiece; r < last; ++r) {
      query.i = r % g.q_len;
      query.h = r / g.q_len % plan_heads_;
      query.b = r / g.q_len / plan_heads_;
      query.position = g.offset_of(query.b) + query.i;
      query.keys = g.length_of(query.b);
      set.spans.clear();
      set.irregular = false;
      mask->row(query, 0, set);
      normalize(set, query.keys);
      const bool same = !piece.rows.empty() && set.irregular == former.irregular &&
                        (set.irregular ? set.bits == former.bits : set.spans == former.spans);
      if (same) {
        piece.rows.push_back(piece.rows.back());
        continue;
      }
      Row row{static_cast<std::int64_t>(piece.spans.size()), 0, set.irregular, static_cast<std::int64_t>(piece.bits.size())};
      row.count = static_cast<std::int32_t>(set.spans.size());
      piece.spans.insert(piece.spans.end(), set.spans.begin(), set.spans.end());
      if (set.irregular) piece.bits.insert(piece.bits.end(), set.bits.begin(), set.bits.end());
      piece.rows.push_back(row);
      std::swap(set, former);
    }
  });
  if (pieces.size() == 1) {
    rows_ = std::move(pieces[0].rows);
    spans_ = std::move(pieces[0].spans);
    bits_ = std::move(pieces[0].bits);
    return;
  }
  rows_.reserve(static_cast<std::size_t>(total));
  for (const Piece& piece : pieces) {
    for (Row row : piece.rows) {
      row.offset += static_cast<std::int64_t>(spans_.size());
      row.bit_offset += static_cast<std::int64_t>(bits_.size());
      rows_.push_back(row);
    }
    spans_.insert(spans_.end(), piece.spans.begin(), piece.spans.end());
    bits_.insert(bits_.end(), piece.bits.begin(), piece.bits.end());
  }
}

PlanRow MaskPlan::row(std::int64_t b, std::int64_t h, std::int64_t i) const {
  const std::int64_t index = ((plan_batch_ == 1 ? 0 : b) * plan_heads_ + (plan_heads_ == 1 ? 0 : h)) * geometry_.q_len + i;
  const Row& row = rows_[static_cast<std::size_t>(index)];
  return {spans_.data() + row.offset, row.count, row.irregular ? bits_.data() + row.bit_offset : nullptr};
}

std::size_t MaskPlan::bytes() const {
  return sizeof *this + rows_.size() * sizeof(Row) + spans_.size() * sizeof(Span) + bits_.size() * sizeof(std::uint64_t);
}

namespace {

template <class Element>
void fill_row(const PlanRow& row, std::int64_t kv_len, Element* out, Element shown, Element hidden) {
  std::fill_n(out, kv_len, hidden);
  for (int s = 0; s < row.count; ++s) {
    if (!row.bits) {
      std::fill(out + row.spans[s].begin, out + row.spans[s].end, shown);
      continue;
    }
    for (std::int64_t key = row.spans[s].begin; key < row.spans[s].end; ++key)
      out[key] = row.bits[key / 64] >> (key % 64) & 1 ? shown : hidden;
  }
}

template <class Element>
void fill(const MaskPlan& plan, Element* out, std::uint64_t shown, std::uint64_t hidden, int threads) {
  const Geometry& g = plan.geometry();
  const std::int64_t rows = g.batch * g.heads * g.q_len;
  const std::int64_t piece = std::max<std::int64_t>(1, 65536 / std::max<std::int64_t>(1, g.kv_len));
  parallel_for((rows + piece - 1) / piece, threads, [&](std::int64_t p) {
    for (std::int64_t r = p * piece; r < std::min(rows, (p + 1) * piece); ++r)
      fill_row(plan.row(r / g.q_len / g.heads, r / g.q_len % g.heads, r % g.q_len), g.kv_len, out + r * g.kv_len,
               static_cast<Element>(shown), static_cast<Element>(hidden));
  });
}

}  // namespace

void fill_from_plan(const MaskPlan& plan, void* out, std::size_t element_bytes, std::uint64_t shown, std::uint64_t hidden,
                    int threads) {
  switch (element_bytes) {
    case 1: return fill(plan, static_cast<std::uint8_t*>(out), shown, hidden, threads);
    case 2: return fill(plan, static_cast<std::uint16_t*>(out), shown, hidden, threads);
    case 4: return fill(plan, static_cast<std::uint32_t*>(out), shown, hidden, threads);
    case 8: return fill(plan, static_cast<std::uint64_t*>(out), shown, hidden, threads);
    default: throw std::invalid_argument("element_bytes must be 1, 2, 4 or 8");
  }
}

}  // namespace maskattn
