// What a plan tells without being materialised: O(rows x spans), or a word of bits at a time.
#include <algorithm>
#include <bit>

#include "mask_expr.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

// Set bits in [begin, end).
std::int64_t count_bits(const std::uint64_t* words, std::int64_t begin, std::int64_t end) {
  std::int64_t count = 0;
  for (std::int64_t at = begin; at < end;) {
    const std::int64_t next = std::min(end, (at / 64 + 1) * 64);
    const std::uint64_t mine = ~std::uint64_t{0} >> (64 - (next - at)) << (at % 64);
    count += std::popcount(words[at / 64] & mine);
    at = next;
  }
  return count;
}

// Keys of the row in [begin, end).
std::int64_t count_keys(const PlanRow& row, std::int64_t begin, std::int64_t end) {
  std::int64_t count = 0;
  const Span* last = row.spans + row.count;
  const Span* span = std::partition_point(row.spans, last, [&](Span s) { return s.end <= begin; });
  for (; span < last && span->begin < end; ++span) {
    const std::int64_t from = std::max<std::int64_t>(span->begin, begin), to = std::min<std::int64_t>(span->end, end);
    count += row.bits ? count_bits(row.bits, from, to) : to - from;
  }
  return count;
}

// Calls visit(row index, row) for every row of every sequence and head.
template <class Visit>
void for_each_row(const MaskPlan& plan, const Visit& visit) {
  const Geometry& g = plan.geometry();
  for (std::int64_t r = 0; r < g.batch * g.heads * g.q_len; ++r)
    visit(r, plan.row(r / g.q_len / g.heads, r / g.q_len % g.heads, r % g.q_len));
}

}  // namespace

std::int64_t count_pairs(const MaskPlan& plan) {
  std::int64_t count = 0;
  for_each_row(plan, [&](std::int64_t, const PlanRow& row) { count += count_keys(row, 0, plan.geometry().kv_len); });
  return count;
}

void empty_rows(const MaskPlan& plan, bool* out) {
  for_each_row(plan, [&](std::int64_t r, const PlanRow& row) { out[r] = count_keys(row, 0, plan.geometry().kv_len) == 0; });
}

void tile_map(const MaskPlan& plan, std::int64_t q_size, std::int64_t kv_size, Tile* out, int threads) {
  const Geometry& g = plan.geometry();
  const std::int64_t q_blocks = (g.q_len + q_size - 1) / q_size, kv_blocks = (g.kv_len + kv_size - 1) / kv_size;
  parallel_for(g.batch * g.heads * q_blocks, threads, [&](std::int64_t index) {
    Tile* line = out + index * kv_blocks;
    const std::int64_t first = index % q_blocks * q_size, last = std::min(g.q_len, first + q_size);
    std::vector<std::int64_t> seen(static_cast<std::size_t>(kv_blocks), 0);
    for (std::int64_t i = first; i < last; ++i) {
      const PlanRow row = plan.row(index / q_blocks / g.heads, index / q_blocks % g.heads, i);
      for (int s = 0; s < row.count; ++s)
        for (std::int64_t k = row.spans[s].begin / kv_size; k * kv_size < row.spans[s].end; ++k) {
          const std::int64_t from = std::max<std::int64_t>(row.spans[s].begin, k * kv_size);
          const std::int64_t to = std::min<std::int64_t>(row.spans[s].end, (k + 1) * kv_size);
          seen[static_cast<std::size_t>(k)] += row.bits ? count_bits(row.bits, from, to) : to - from;
        }
    }
    for (std::int64_t k = 0; k < kv_blocks; ++k) {
      const std::int64_t size = (last - first) * (std::min(g.kv_len, (k + 1) * kv_size) - k * kv_size);
      const std::int64_t count = seen[static_cast<std::size_t>(k)];
      line[k] = count == 0 ? Tile::empty : count == size ? Tile::full : Tile::partial;
    }
  });
}

}  // namespace maskattn
