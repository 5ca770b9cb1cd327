// What the nodes of an expression write themselves into.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "mask_expr.hpp"
#include "maskattn/mask_program.hpp"

namespace maskattn {

class ProgramWriter {
 public:
  static std::optional<MaskProgram> program(const MaskExpr& mask);

  // A step whose set has up to so many spans; the caller fills in its parameters.
  MaskStep& leaf(MaskOp op, StepUse use, std::int64_t spans);
  // Joins the two sets on top of the stack.
  void fold(MaskFold fold);

  // Each appends to the data and returns where that begins.
  std::int64_t integers(const std::vector<std::int64_t>& values);
  std::int64_t words(const std::vector<std::uint64_t>& values);
  std::int64_t table(const std::vector<std::vector<Span>>& lines);

  static std::int64_t longest(const std::vector<std::vector<Span>>& lines) {
    std::size_t most = 0;
    for (const auto& line : lines) most = std::max(most, line.size());
    return static_cast<std::int64_t>(most);
  }

 private:
  void take(StepUse use, std::int64_t spans);

  MaskProgram program_;
  std::vector<std::int64_t> spans_;  // of the sets on the stack
  int depth_ = 0, deepest_ = 0;
};

}  // namespace maskattn
