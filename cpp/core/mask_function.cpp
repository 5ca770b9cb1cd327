// Masks that a function decides, evaluated into bits once, when a plan is made.
#include "mask_expr.hpp"

namespace maskattn {
namespace {

class Function final : public MaskExpr {
 public:
  Function(MaskRowFunction fill, bool per_sequence, bool per_head)
      : fill_(std::move(fill)), per_sequence_(per_sequence), per_head_(per_head) {}
  bool varies_by_batch() const override { return per_sequence_; }
  bool varies_by_head() const override { return per_head_; }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    out.irregular = true;
    out.bits.assign(static_cast<std::size_t>((query.keys + 63) / 64), 0);
    if (query.keys > 0) fill_(query.b, query.h, query.position, query.keys, out.bits.data());
  }

 private:
  MaskRowFunction fill_;
  bool per_sequence_, per_head_;
};

}  // namespace

MaskRef mask_rows(MaskRowFunction fill, bool per_sequence, bool per_head) {
  return std::make_shared<Function>(std::move(fill), per_sequence, per_head);
}

MaskRef mask_function(MaskFunction function, void* data, bool per_sequence, bool per_head) {
  const auto fill = [function, data](std::int64_t b, std::int64_t h, std::int64_t q, std::int64_t keys, std::uint64_t* words) {
    for (std::int64_t k = 0; k < keys; ++k) words[k / 64] |= std::uint64_t{function(b, h, q, k, data) != 0} << (k % 64);
  };
  return mask_rows(fill, per_sequence, per_head);
}

}  // namespace maskattn
