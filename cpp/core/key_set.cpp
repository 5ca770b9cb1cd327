#include <algorithm>
#include <bit>
#include <cstring>

#include "mask_expr.hpp"

namespace maskattn {
namespace {

std::size_t word_count(std::int64_t keys) { return static_cast<std::size_t>((keys + 63) / 64); }

// Calls emit(span) for each run of set bits.
template <class Emit>
void for_each_run(const std::vector<std::uint64_t>& bits, std::int64_t keys, const Emit& emit) {
  std::int64_t begin = -1;  // of the run under way
  for (std::size_t w = 0; w < bits.size(); ++w) {
    std::uint64_t changes = bits[w] ^ (bits[w] << 1 | (begin >= 0 ? 1 : 0));
    for (; changes; changes &= changes - 1) {
      const std::int64_t at = static_cast<std::int64_t>(w) * 64 + std::countr_zero(changes);
      if (begin < 0) {
        begin = at;
      } else {
        emit(Span{static_cast<std::int32_t>(begin), static_cast<std::int32_t>(at)});
        begin = -1;
      }
    }
  }
  if (begin >= 0) emit(Span{static_cast<std::int32_t>(begin), static_cast<std::int32_t>(keys)});
}

}  // namespace

void set_bits(std::uint64_t* words, std::int64_t begin, std::int64_t end) {
  if (begin >= end) return;
  const std::int64_t first = begin / 64, last = (end - 1) / 64;
  const std::uint64_t head = ~std::uint64_t{0} << (begin % 64), tail = ~std::uint64_t{0} >> (63 - (end - 1) % 64);
  if (first == last) {
    words[first] |= head & tail;
    return;
  }
  words[first] |= head;
  for (std::int64_t w = first + 1; w < last; ++w) words[w] = ~std::uint64_t{0};
  words[last] |= tail;
}

void pack_bits(const bool* keep, std::int64_t count, std::uint64_t* words, std::int64_t at) {
  std::int64_t done = 0;
  for (; done + 8 <= count; done += 8) {
    std::uint64_t bytes;
    std::memcpy(&bytes, keep + done, 8);
    const std::uint64_t bits = bytes * 0x0102040810204080u >> 56;  // the multiplication brings byte j to bit 56 + j
    const std::int64_t word = (at + done) / 64, shift = (at + done) % 64;
    words[word] |= bits << shift;
    if (shift > 56) words[word + 1] |= bits >> (64 - shift);
  }
  for (; done < count; ++done) words[(at + done) / 64] |= std::uint64_t{keep[done]} << ((at + done) % 64);
}

void make_bits(KeySet& set, std::int64_t keys) {
  if (set.irregular) return;
  set.bits.assign(word_count(keys), 0);
  for (const Span span : set.spans) set_bits(set.bits.data(), span.begin, span.end);
  set.spans.clear();
  set.irregular = true;
}

void intersect(KeySet& into, KeySet& other, std::int64_t keys) {
  if (into.irregular || other.irregular) {
    make_bits(into, keys);
    make_bits(other, keys);
    for (std::size_t w = 0; w < into.bits.size(); ++w) into.bits[w] &= other.bits[w];
    return;
  }
  if (into.spans.size() == 1 && other.spans.size() == 1) {
    Span& a = into.spans[0];
    a = {std::max(a.begin, other.spans[0].begin), std::min(a.end, other.spans[0].end)};
    if (a.begin >= a.end) into.spans.clear();
    return;
  }
  std::vector<Span> both;
  for (std::size_t i = 0, j = 0; i < into.spans.size() && j < other.spans.size();) {
    const Span a = into.spans[i], b = other.spans[j];
    const Span common{std::max(a.begin, b.begin), std::min(a.end, b.end)};
    if (common.begin < common.end) both.push_back(common);
    a.end < b.end ? ++i : ++j;
  }
  into.spans.swap(both);
}

void unite(KeySet& into, KeySet& other, std::int64_t keys) {
  if (into.irregular || other.irregular) {
    make_bits(into, keys);
    make_bits(other, keys);
    for (std::size_t w = 0; w < into.bits.size(); ++w) into.bits[w] |= other.bits[w];
    return;
  }
  std::vector<Span> all(into.spans.size() + other.spans.size());
  std::merge(into.spans.begin(), into.spans.end(), other.spans.begin(), other.spans.end(), all.begin(),
             [](Span a, Span b) { return a.begin < b.begin; });
  into.spans.clear();
  for (const Span span : all) {
    if (!into.spans.empty() && span.begin <= into.spans.back().end)
      into.spans.back().end = std::max(into.spans.back().end, span.end);
    else
      into.spans.push_back(span);
  }
}

void complement(KeySet& set, std::int64_t keys) {
  if (set.irregular) {
    for (auto& word : set.bits) word = ~word;
    if (keys % 64) set.bits.back() &= ~std::uint64_t{0} >> (64 - keys % 64);
    return;
  }
  std::vector<Span> gaps;
  std::int32_t at = 0;
  for (const Span span : set.spans) {
    if (at < span.begin) gaps.push_back({at, span.begin});
    at = span.end;
  }
  if (at < keys) gaps.push_back({at, static_cast<std::int32_t>(keys)});
  set.spans.swap(gaps);
}

void normalize(KeySet& set, std::int64_t keys) {
  if (set.irregular) {
    std::size_t runs = 0;
    Span all{};
    for_each_run(set.bits, keys, [&](Span run) {
      if (runs++ == 0) all.begin = run.begin;
      all.end = run.end;
    });
    if (runs > word_count(keys)) {
      set.spans.push_back(all);
      return;
    }
    for_each_run(set.bits, keys, [&](Span run) { set.spans.push_back(run); });
    set.irregular = false;
  } else if (set.spans.size() > word_count(keys)) {  // a span takes as many bytes as a word
    const Span all{set.spans.front().begin, set.spans.back().end};
    make_bits(set, keys);
    set.spans.push_back(all);
  }
}

}  // namespace maskattn
