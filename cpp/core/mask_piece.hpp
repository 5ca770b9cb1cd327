// A run of rows of a plan: the unit that plans, sequences and heads share.
#pragma once

#include <cstdint>
#include <vector>

#include "maskattn/mask.hpp"

namespace maskattn {

// Every piece of a strip but the last holds this many rows; a slice may begin inside its first.
inline constexpr std::int64_t kPieceRows = 512;

class PlanPiece {
 public:
  std::int64_t rows() const { return static_cast<std::int64_t>(rows_.size()); }
  PlanRow row(std::int64_t r) const {
    const Row& row = rows_[static_cast<std::size_t>(r)];
    if (row.hull < 0) return {spans_.data() + row.offset, row.count, nullptr};
    return {hulls_.data() + row.hull, 1, bits_.data() + row.offset};
  }
  void reserve(std::int64_t rows) { rows_.reserve(static_cast<std::size_t>(rows)); }
  // Appends a row; one that agrees with the row before it shares its storage.
  void push(const PlanRow& row);
  // Drops the rows at and past `rows`.
  void truncate(std::int64_t rows);
  // Gives back memory that pushing took ahead.
  void shrink();

  std::size_t bytes() const;
  std::uint64_t hash() const;
  bool operator==(const PlanPiece&) const = default;

 private:
  struct Row {
    std::int64_t offset;       // into spans_, or bits_ where there is a hull
    std::int32_t count, hull;  // spans; or the index of the one span that the bits thin out, else -1
    bool operator==(const Row&) const = default;
  };
  std::vector<Row> rows_;
  std::vector<Span> spans_, hulls_;
  std::vector<std::uint64_t> bits_;  // of an irregular row: the words from key 0 to the end of its hull
};

}  // namespace maskattn
