// Expressions as flat programs.
#include "maskattn/mask_program.hpp"

#include "program_writer.hpp"

namespace maskattn {

MaskStep& ProgramWriter::leaf(MaskOp op, StepUse use, std::int64_t spans) {
  if (use.fold == MaskFold::push) deepest_ = std::max(deepest_, ++depth_);
  take(use, use.negated ? spans + 1 : spans);
  program_.steps.push_back({op, use.fold, use.negated, {}});
  return program_.steps.back();
}

void ProgramWriter::fold(MaskFold fold) {
  --depth_;
  const std::int64_t spans = spans_.back();
  spans_.pop_back();
  take({fold, false}, spans);
  program_.steps.push_back({MaskOp::fold, fold, false, {}});
}

void ProgramWriter::take(StepUse use, std::int64_t spans) {
  if (use.fold == MaskFold::push)
    spans_.push_back(spans);
  else  // two sorted lists meet in fewer spans than they have, and join in as many at most
    spans_.back() += use.fold == MaskFold::unite ? spans : spans > 0 && spans_.back() > 0 ? spans - 1 : 0;
}

std::int64_t ProgramWriter::integers(const std::vector<std::int64_t>& values) {
  const auto at = static_cast<std::int64_t>(program_.data.size());
  program_.data.insert(program_.data.end(), values.begin(), values.end());
  return at;
}

std::int64_t ProgramWriter::words(const std::vector<std::uint64_t>& values) {
  const auto at = static_cast<std::int64_t>(program_.data.size());
  for (const std::uint64_t word : values) program_.data.push_back(static_cast<std::int64_t>(word));
  return at;
}

std::int64_t ProgramWriter::table(const std::vector<std::vector<Span>>& lines) {
  const auto at = static_cast<std::int64_t>(program_.data.size());
  std::int64_t count = 0;
  for (const auto& line : lines) {
    program_.data.push_back(count);
    count += static_cast<std::int64_t>(line.size());
  }
  program_.data.push_back(count);
  for (const auto& line : lines)
    for (const Span span : line)
      program_.data.push_back(static_cast<std::int64_t>(span.end) << 32 | static_cast<std::int64_t>(span.begin));
  return at;
}

std::optional<MaskProgram> ProgramWriter::program(const MaskExpr& mask) {
  ProgramWriter writer;
  if (!mask.write(writer, {MaskFold::push, false}) || writer.deepest_ > kMaskDepth) return std::nullopt;
  writer.program_.spans = writer.spans_.back();
  return std::move(writer.program_);
}

std::optional<MaskProgram> mask_program(const MaskRef& mask) { return ProgramWriter::program(*mask); }

}  // namespace maskattn
