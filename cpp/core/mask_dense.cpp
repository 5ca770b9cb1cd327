// A mask given element by element, as bits.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "mask_expr.hpp"
#include "program_writer.hpp"

namespace maskattn {
namespace {

class Dense final : public MaskExpr {
 public:
  Dense(const bool* keep, const std::int64_t (&shape)[4], const std::int64_t (&strides)[4]) {
    std::copy(shape, shape + 4, shape_);
    words_ = (shape[3] + 63) / 64;
    bits_.assign(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * words_), 0);
    const char* base = reinterpret_cast<const char*>(keep);
    std::uint64_t* to = bits_.data();
    for (std::int64_t b = 0; b < shape[0]; ++b)
      for (std::int64_t h = 0; h < shape[1]; ++h)
        for (std::int64_t i = 0; i < shape[2]; ++i, to += words_)
          pack(base + b * strides[0] + h * strides[1] + i * strides[2], strides[3], to);
  }
  std::int64_t batch() const override { return shape_[0]; }
  std::int64_t heads() const override { return shape_[1]; }
  void check(const Geometry& geometry) const override {
    check_extent("q_len", shape_[2], geometry.q_len);
    check_extent("kv_len", shape_[3], geometry.kv_len);
  }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    const auto pick = [](std::int64_t index, std::int64_t extent) { return extent == 1 ? 0 : index; };
    const std::int64_t r =
        (pick(query.b, shape_[0]) * shape_[1] + pick(query.h, shape_[1])) * shape_[2] + pick(query.i, shape_[2]);
    const std::uint64_t* from = bits_.data() + r * words_;
    if (shape_[3] == 1) {  // one answer for every key
      if (*from & 1) push_clipped(out, 0, query.keys, query.keys);
      return;
    }
    out.irregular = true;
    out.bits.assign(from, from + (query.keys + 63) / 64);
    if (query.keys % 64) out.bits.back() &= ~std::uint64_t{0} >> (64 - query.keys % 64);
  }
  bool write(ProgramWriter& program, StepUse use) const override {
    const std::int64_t at = program.words(bits_);
    auto& a = program.leaf(MaskOp::dense, use, shape_[3] == 1 ? 1 : (shape_[3] + 1) / 2).a;
    a[0] = at;
    std::copy(shape_, shape_ + 4, a + 1);
    return true;
  }

 private:
  void pack(const char* row, std::int64_t stride, std::uint64_t* to) const {
    if (stride == 1) return pack_bits(reinterpret_cast<const bool*>(row), shape_[3], to, 0);
    for (std::int64_t key = 0; key < shape_[3]; ++key) to[key / 64] |= std::uint64_t{row[key * stride] != 0} << (key % 64);
  }
  static void check_extent(const char* name, std::int64_t have, std::int64_t want) {
    if (have != 1 && have != want)
      throw std::invalid_argument(std::string("Dense must have a ") + name + " of " + std::to_string(want) + " or 1, got " +
                                  std::to_string(have) + "; a dense mask speaks of the call's own rows and keys");
  }
  std::int64_t shape_[4], words_;
  std::vector<std::uint64_t> bits_;
};

}  // namespace

MaskRef mask_dense(const bool* keep, const std::int64_t (&shape)[4], const std::int64_t (&strides)[4]) {
  return std::make_shared<Dense>(keep, shape, strides);
}

}  // namespace maskattn
