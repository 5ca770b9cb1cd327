// What a plan tells without being materialised: O(rows x spans), or a word of bits at a time.
#include <algorithm>
#include <bit>
#include <stdexcept>

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

bool same_extents(const MaskPlan& a, const MaskPlan& b) {
  const Geometry &x = a.geometry(), &y = b.geometry();
  return x.batch == y.batch && x.heads == y.heads && x.q_len == y.q_len && x.kv_len == y.kv_len;
}

// A row as bits over all of kv_len.
void row_bits(const PlanRow& row, std::int64_t kv_len, std::vector<std::uint64_t>& bits) {
  bits.assign(static_cast<std::size_t>((kv_len + 63) / 64), 0);
  for (int s = 0; s < row.count; ++s) {
    set_bits(bits.data(), row.spans[s].begin, row.spans[s].end);
    if (row.bits)  // one span, which the bits thin out; they end where the last key does
      for (std::int64_t w = row.spans[s].begin / 64; w * 64 < row.spans[s].end; ++w)
        bits[static_cast<std::size_t>(w)] &= row.bits[w];
  }
}

// Takes the row's keys into a union, and returns how many panels of 64 keys they lie in.
std::int64_t unite_bits(const PlanRow& row, std::vector<std::uint64_t>& seen) {
  std::int64_t panels = 0;
  for (std::int64_t w = row.spans->begin / 64; w * 64 < row.spans->end; ++w) {
    seen[static_cast<std::size_t>(w)] |= row.bits[w];
    panels += row.bits[w] != 0;
  }
  return panels;
}
std::int64_t unite_spans(const PlanRow& row, std::vector<std::int64_t>& change) {
  std::int64_t panels = 0, next = 0;  // next: the first panel that is not counted yet
  for (const Span* span = row.spans; span < row.spans + row.count; ++span) {
    ++change[static_cast<std::size_t>(span->begin)];
    --change[static_cast<std::size_t>(span->end)];
    const std::int64_t first = std::max<std::int64_t>(next, span->begin / 64);
    next = (span->end + 63) / 64;
    panels += next - first;
  }
  return panels;
}

// True where every row of `a` is related to the same row of `b`: compare(keys of a, keys of b) on spans where both have spans,
// else on words of bits.
template <class Spans, class Words>
bool every_row(const MaskPlan& a, const MaskPlan& b, const Spans& spans, const Words& words) {
  const Geometry& g = a.geometry();
  std::vector<std::uint64_t> x, y;
  for (std::int64_t r = 0; r < g.batch * g.heads * g.q_len; ++r) {
    const std::int64_t sequence = r / g.q_len / g.heads, head = r / g.q_len % g.heads;
    const PlanRow left = a.row(sequence, head, r % g.q_len), right = b.row(sequence, head, r % g.q_len);
    if (!left.bits && !right.bits) {
      if (!spans(left, right)) return false;
      continue;
    }
    row_bits(left, g.kv_len, x);
    row_bits(right, g.kv_len, y);
    if (!words(x, y)) return false;
  }
  return true;
}

}  // namespace

bool same_pairs(const MaskPlan& a, const MaskPlan& b) {
  if (!same_extents(a, b)) return false;
  const auto spans = [](const PlanRow& x, const PlanRow& y) {
    return std::equal(x.spans, x.spans + x.count, y.spans, y.spans + y.count);
  };
  return every_row(a, b, spans, [](const auto& x, const auto& y) { return x == y; });
}

bool is_subset(const MaskPlan& a, const MaskPlan& b) {
  if (!same_extents(a, b)) throw std::invalid_argument("other must be a plan of the same batch, heads, q_len and kv_len");
  const auto spans = [](const PlanRow& x, const PlanRow& y) {
    const Span* outer = y.spans;
    return std::all_of(x.spans, x.spans + x.count, [&](Span span) {
      while (outer < y.spans + y.count && outer->end < span.end) ++outer;
      return outer < y.spans + y.count && outer->begin <= span.begin;
    });
  };
  return every_row(a, b, spans, [](const auto& x, const auto& y) {
    for (std::size_t w = 0; w < x.size(); ++w)
      if (x[w] & ~y[w]) return false;
    return true;
  });
}

std::int64_t count_pairs(const MaskPlan& plan) {
  std::int64_t count = 0;
  for_each_row(plan, [&](std::int64_t, const PlanRow& row) { count += count_keys(row, 0, plan.geometry().kv_len); });
  return count;
}

void empty_rows(const MaskPlan& plan, bool* out) {
  for_each_row(plan, [&](std::int64_t r, const PlanRow& row) { out[r] = count_keys(row, 0, plan.geometry().kv_len) == 0; });
}

std::int64_t used(const MaskPlan& plan, bool* rows, bool* keys) {
  constexpr std::int64_t panel = 64;
  const Geometry& g = plan.geometry();
  std::int64_t pairs = 0;
  for (std::int64_t b = 0; b < plan.stored_batch(); ++b, rows += g.q_len, keys += g.kv_len) {
    std::fill_n(rows, g.q_len, false);
    std::vector<std::uint64_t> seen(static_cast<std::size_t>((g.kv_len + 63) / 64), 0);
    std::vector<std::int64_t> change(static_cast<std::size_t>(g.kv_len + 1), 0);  // spans that begin, less those that end
    for (std::int64_t h = 0; h < plan.stored_heads(); ++h) {
      const Span* former = nullptr;
      std::int64_t panels = 0;
      for (std::int64_t i = 0; i < g.q_len; ++i) {
        const PlanRow row = plan.row(b, h, i);
        if (row.count == 0) continue;
        rows[i] = true;
        if (row.spans != former) {  // else it shares its storage with a row above
          former = row.spans;
          panels = row.bits ? unite_bits(row, seen) : unite_spans(row, change);
        }
        pairs += panels * panel;
      }
    }
    std::int64_t open = 0;
    for (std::int64_t key = 0; key < g.kv_len; ++key) {
      open += change[static_cast<std::size_t>(key)];
      keys[key] = open > 0 || (seen[static_cast<std::size_t>(key / 64)] >> (key % 64) & 1);
    }
  }
  return pairs == 0 ? 0 : pairs * (g.batch / plan.stored_batch()) * (g.heads / plan.stored_heads());
}

void tile_map(const MaskPlan& plan, std::int64_t q_size, std::int64_t kv_size, Tile* out, int threads) {
  const Geometry& g = plan.geometry();
  const std::int64_t q_blocks = (g.q_len + q_size - 1) / q_size, kv_blocks = (g.kv_len + kv_size - 1) / kv_size;
  constexpr std::int64_t kFew = 4096;  // rows that are not worth waking a thread for
  parallel_for(g.batch * g.heads * q_blocks, g.batch * g.heads * g.q_len < kFew ? 1 : threads, [&](std::int64_t index) {
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
