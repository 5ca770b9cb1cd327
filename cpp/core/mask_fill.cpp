// Plans as arrays. Every byte is written once, front to back: hidden runs and shown ones in turn.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "maskattn/mask.hpp"
#include "run_writer.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

// Outputs beyond this many bytes go past the caches, where whoever reads them would not find them anyway.
constexpr std::int64_t kCaches = 8 << 20;
constexpr std::int64_t kTaskBytes = 256 << 10;

// What an element of the output may be.
struct Values {
  std::uint64_t shown, hidden;
  LinePattern shown_line, hidden_line;
  Values(std::uint64_t shown, std::uint64_t hidden, std::size_t size, const void* array)
      : shown(shown), hidden(hidden), shown_line(shown, size, array), hidden_line(hidden, size, array) {}
};

// The elements of irregular rows: four keys at a time, looked up by their bits.
template <class Element>
class Expander {
 public:
  explicit Expander(const Values& values) {
    for (unsigned bits = 0; bits < 16; ++bits)
      for (unsigned key = 0; key < 4; ++key)
        four_[bits][key] = static_cast<Element>(bits >> key & 1 ? values.shown : values.hidden);
  }

  template <class Writer>
  void write(const std::uint64_t* bits, Span hull, Writer& writer) const {
    Element keys[64 + kLine / sizeof(Element)];
    std::memset(keys + 64, 0, kLine);
    for (std::int64_t at = hull.begin; at < hull.end;) {
      const std::int64_t word = at / 64, next = std::min<std::int64_t>(hull.end, (word + 1) * 64);
      for (int four = 0; four < 16; ++four) std::memcpy(keys + 4 * four, four_[bits[word] >> (4 * four) & 15], sizeof four_[0]);
      writer.copy(reinterpret_cast<const char*>(keys + at % 64), static_cast<std::size_t>(next - at) * sizeof(Element));
      at = next;
    }
  }

 private:
  Element four_[16][4];
};

template <class Element, class Writer>
void write_row(const PlanRow& row, std::int64_t kv_len, const Values& values, const Expander<Element>& expander, Writer& writer) {
  const auto bytes = [](std::int64_t keys) { return static_cast<std::size_t>(keys) * sizeof(Element); };
  std::int64_t at = 0;
  for (int s = 0; s < row.count; ++s) {
    const Span span = row.spans[s];
    writer.fill(values.hidden_line, bytes(span.begin - at));
    if (row.bits)
      expander.write(row.bits, span, writer);
    else
      writer.fill(values.shown_line, bytes(span.end - span.begin));
    at = span.end;
  }
  writer.fill(values.hidden_line, bytes(kv_len - at));
}

// Calls body(first, last) for ranges of the rows of all sequences and heads, about kTaskBytes of output each.
template <class Body>
void for_row_ranges(const Geometry& g, std::int64_t row_bytes, int threads, const Body& body) {
  const std::int64_t rows = g.batch * g.heads * g.q_len;
  const std::int64_t task = std::max<std::int64_t>(1, kTaskBytes / std::max<std::int64_t>(1, row_bytes));
  parallel_for((rows + task - 1) / task, threads, [&](std::int64_t t) { body(t * task, std::min(rows, (t + 1) * task)); });
}

PlanRow row_at(const MaskPlan& plan, std::int64_t r) {
  const Geometry& g = plan.geometry();
  return plan.row(r / g.q_len / g.heads, r / g.q_len % g.heads, r % g.q_len);
}

template <class Element, class Writer>
void fill(const MaskPlan& plan, char* out, std::uint64_t shown, std::uint64_t hidden, int threads) {
  const std::int64_t kv_len = plan.geometry().kv_len, row_bytes = kv_len * static_cast<std::int64_t>(sizeof(Element));
  const Values values(static_cast<Element>(shown), static_cast<Element>(hidden), sizeof(Element), out);
  const Expander<Element> expander(values);
  for_row_ranges(plan.geometry(), row_bytes, threads, [&](std::int64_t first, std::int64_t last) {
    Writer writer(out + first * row_bytes, out + last * row_bytes);
    for (std::int64_t r = first; r < last; ++r) write_row(row_at(plan, r), kv_len, values, expander, writer);
  });
}

template <class Element>
void fill(const MaskPlan& plan, void* out, std::uint64_t shown, std::uint64_t hidden, int threads) {
  const Geometry& g = plan.geometry();
  const bool large = g.batch * g.heads * g.q_len * g.kv_len * static_cast<std::int64_t>(sizeof(Element)) > kCaches;
  const auto write = large ? &fill<Element, StreamWriter> : &fill<Element, CachedWriter>;
  write(plan, static_cast<char*>(out), shown, hidden, threads);
}

void set_bytes(std::uint8_t* out, Span span) {
  const std::int32_t first = span.begin / 8, last = (span.end - 1) / 8;
  const auto head = static_cast<std::uint8_t>(0xff << span.begin % 8),
             tail = static_cast<std::uint8_t>(0xff >> (7 - (span.end - 1) % 8));
  if (first == last) {
    out[first] |= head & tail;
    return;
  }
  out[first] |= head;
  std::memset(out + first + 1, 0xff, static_cast<std::size_t>(last - first - 1));
  out[last] |= tail;
}

}  // namespace

void fill_from_plan(const MaskPlan& plan, void* out, std::size_t element_bytes, std::uint64_t shown, std::uint64_t hidden,
                    int threads) {
  switch (element_bytes) {
    case 1: return fill<std::uint8_t>(plan, out, shown, hidden, threads);
    case 2: return fill<std::uint16_t>(plan, out, shown, hidden, threads);
    case 4: return fill<std::uint32_t>(plan, out, shown, hidden, threads);
    case 8: return fill<std::uint64_t>(plan, out, shown, hidden, threads);
    default: throw std::invalid_argument("element_bytes must be 1, 2, 4 or 8");
  }
}

void bits_from_plan(const MaskPlan& plan, std::uint8_t* out, int threads) {
  const std::int64_t row_bytes = (plan.geometry().kv_len + 7) / 8;
  for_row_ranges(plan.geometry(), row_bytes, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      std::uint8_t* to = out + r * row_bytes;
      std::memset(to, 0, static_cast<std::size_t>(row_bytes));
      const PlanRow row = row_at(plan, r);
      if (row.bits)
        for (std::int64_t byte = 0; byte * 8 < row.spans->end; ++byte)
          to[byte] = static_cast<std::uint8_t>(row.bits[byte / 8] >> (byte % 8 * 8));
      else
        for (int s = 0; s < row.count; ++s) set_bytes(to, row.spans[s]);
    }
  });
}

}  // namespace maskattn
