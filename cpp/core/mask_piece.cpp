#include "mask_piece.hpp"

#include <algorithm>
#include <cstring>

namespace maskattn {
namespace {

std::size_t words_of(Span hull) { return (static_cast<std::size_t>(hull.end) + 63) / 64; }

bool agree(const PlanRow& a, const PlanRow& b) {
  if (a.count != b.count || (a.bits == nullptr) != (b.bits == nullptr)) return false;
  return std::equal(a.spans, a.spans + a.count, b.spans) && (!a.bits || std::equal(a.bits, a.bits + words_of(*a.spans), b.bits));
}

// FNV-1a over words of 8 bytes instead of bytes.
template <class Element>
void mix(std::uint64_t& hash, const std::vector<Element>& elements) {
  static_assert(sizeof(Element) % 8 == 0, "whole words are hashed");
  const char* from = reinterpret_cast<const char*>(elements.data());
  for (const char* end = from + elements.size() * sizeof(Element); from < end; from += 8) {
    std::uint64_t word;
    std::memcpy(&word, from, 8);
    hash = (hash ^ word) * 0x100000001b3u;
    hash ^= hash >> 29;  // the product's high bits tell words apart, its low bits choose the bucket
  }
}

}  // namespace

void PlanPiece::push(const PlanRow& row) {
  if (!rows_.empty() && agree(row, this->row(rows() - 1))) return rows_.push_back(rows_.back());
  if (!row.bits) {
    rows_.push_back({static_cast<std::int64_t>(spans_.size()), row.count, -1});
    spans_.insert(spans_.end(), row.spans, row.spans + row.count);
    return;
  }
  rows_.push_back({static_cast<std::int64_t>(bits_.size()), 1, static_cast<std::int32_t>(hulls_.size())});
  hulls_.push_back(*row.spans);
  bits_.insert(bits_.end(), row.bits, row.bits + words_of(*row.spans));
}

void PlanPiece::truncate(std::int64_t rows) {
  if (rows >= this->rows()) return;
  rows_.resize(static_cast<std::size_t>(rows));
  std::size_t spans = 0, hulls = 0, bits = 0;
  for (const Row& row : rows_) {
    const auto offset = static_cast<std::size_t>(row.offset);
    if (row.hull < 0) {
      spans = std::max(spans, offset + static_cast<std::size_t>(row.count));
    } else {
      hulls = std::max(hulls, static_cast<std::size_t>(row.hull) + 1);
      bits = std::max(bits, offset + words_of(hulls_[static_cast<std::size_t>(row.hull)]));
    }
  }
  spans_.resize(spans);
  hulls_.resize(hulls);
  bits_.resize(bits);
}

void PlanPiece::shrink() {
  rows_.shrink_to_fit();
  spans_.shrink_to_fit();
  hulls_.shrink_to_fit();
  bits_.shrink_to_fit();
}

std::size_t PlanPiece::bytes() const {
  return sizeof *this + rows_.capacity() * sizeof(Row) + (spans_.capacity() + hulls_.capacity()) * sizeof(Span) +
         bits_.capacity() * sizeof(std::uint64_t);
}

std::uint64_t PlanPiece::hash() const {
  std::uint64_t hash = 0xcbf29ce484222325u;
  mix(hash, rows_);
  mix(hash, spans_);
  mix(hash, hulls_);
  mix(hash, bits_);
  return hash;
}

}  // namespace maskattn
