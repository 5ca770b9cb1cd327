// Plans as arrays: a row is its hidden pattern with the spans painted over.
#include <algorithm>
#include <stdexcept>

#include "maskattn/mask.hpp"
#include "threads.hpp"

namespace maskattn {
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
