// The leaves of mask expressions, from positions to spans or bits.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "mask_expr.hpp"

namespace maskattn {
namespace {

void push_clipped(KeySet& out, std::int64_t begin, std::int64_t end, std::int64_t keys) {
  begin = std::max<std::int64_t>(begin, 0);
  end = std::min(end, keys);
  if (begin < end) out.spans.push_back({static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)});
}

void push_clipped(KeySet& out, const std::vector<Span>& spans, std::int64_t keys) {
  for (const Span span : spans) push_clipped(out, span.begin, span.end, keys);
}

// The runs of equal values in [0, count), as emit(value, span).
template <class Value, class Emit>
void for_each_equal_run(const Value* values, std::int64_t count, const Emit& emit) {
  for (std::int64_t begin = 0, end; begin < count; begin = end) {
    for (end = begin + 1; end < count && values[end] == values[begin];) ++end;
    emit(values[begin], Span{static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)});
  }
}

void check_covers(const char* what, std::int64_t have, std::int64_t want, const char* unit) {
  if (have < want)
    throw std::invalid_argument(std::string(what) + " must cover the call's " + std::to_string(want) + " " + unit + ", got " +
                                std::to_string(have) + "; build the mask for the longer sequence");
}

class Band final : public MaskExpr {
 public:
  Band(std::optional<std::int64_t> left, std::optional<std::int64_t> right) : left_(left), right_(right) {}
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    push_clipped(out, left_ ? query.position - *left_ : 0, right_ ? query.position + *right_ + 1 : query.keys, query.keys);
  }

 private:
  std::optional<std::int64_t> left_, right_;
};

class KeyRange final : public MaskExpr {
 public:
  KeyRange(std::vector<std::int64_t> begin, std::vector<std::int64_t> end) : begin_(std::move(begin)), end_(std::move(end)) {}
  std::int64_t batch() const override { return static_cast<std::int64_t>(begin_.size()); }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    const std::size_t b = begin_.size() == 1 ? 0 : static_cast<std::size_t>(query.b);
    push_clipped(out, begin_[b], end_[b], query.keys);
  }

 private:
  std::vector<std::int64_t> begin_, end_;
};

class Keys final : public MaskExpr {
 public:
  Keys(const bool* keep, std::int64_t sequences, std::int64_t keys) : spans_(static_cast<std::size_t>(sequences)), keys_(keys) {
    for (auto& spans : spans_) {
      for_each_equal_run(keep, keys, [&](bool kept, Span run) {
        if (kept) spans.push_back(run);
      });
      keep += keys;
    }
  }
  std::int64_t batch() const override { return static_cast<std::int64_t>(spans_.size()); }
  void check(const Geometry& geometry) const override { check_covers("KeyPadding", keys_, geometry.kv_len, "keys"); }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    push_clipped(out, spans_[spans_.size() == 1 ? 0 : static_cast<std::size_t>(query.b)], query.keys);
  }

 private:
  std::vector<std::vector<Span>> spans_;
  std::int64_t keys_;
};

class Documents final : public MaskExpr {
 public:
  Documents(const std::int64_t* q_ids, std::int64_t q_length, const std::int64_t* kv_ids, std::int64_t kv_length,
            std::int64_t sequences)
      : q_ids_(q_ids, q_ids + q_length * sequences), q_length_(q_length), kv_length_(kv_length) {
    for (std::int64_t s = 0; s < sequences; ++s) {
      auto& spans = spans_.emplace_back();
      for_each_equal_run(kv_ids + s * kv_length, kv_length, [&](std::int64_t id, Span run) { spans[id].push_back(run); });
    }
  }
  std::int64_t batch() const override { return static_cast<std::int64_t>(spans_.size()); }
  void check(const Geometry& geometry) const override {
    check_covers("Documents: kv_ids", kv_length_, geometry.kv_len, "keys");
    for (const std::int64_t offset : geometry.q_offset)
      check_covers("Documents: ids", q_length_, offset + geometry.q_len, "query positions");
  }
  void row(RowQuery& query, std::size_t, KeySet& out) const override {
    if (query.position < 0) return;
    const std::size_t s = spans_.size() == 1 ? 0 : static_cast<std::size_t>(query.b);
    const auto found = spans_[s].find(q_ids_[s * static_cast<std::size_t>(q_length_) + static_cast<std::size_t>(query.position)]);
    if (found != spans_[s].end()) push_clipped(out, found->second, query.keys);
  }

 private:
  std::vector<std::int64_t> q_ids_;
  std::int64_t q_length_, kv_length_;
  std::vector<std::unordered_map<std::int64_t, std::vector<Span>>> spans_;
};

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

 private:
  void pack(const char* row, std::int64_t stride, std::uint64_t* to) const {
    std::int64_t key = 0;
    if (stride == 1)  // eight bytes of 0 or 1 to eight bits: the multiplication brings byte j to bit 56 + j
      for (; key + 8 <= shape_[3]; key += 8) {
        std::uint64_t bytes;
        std::memcpy(&bytes, row + key, 8);
        to[key / 64] |= (bytes * 0x0102040810204080u >> 56) << (key % 64);
      }
    for (; key < shape_[3]; ++key) to[key / 64] |= std::uint64_t{row[key * stride] != 0} << (key % 64);
  }
  static void check_extent(const char* name, std::int64_t have, std::int64_t want) {
    if (have != 1 && have != want)
      throw std::invalid_argument(std::string("Dense must have a ") + name + " of " + std::to_string(want) + " or 1, got " +
                                  std::to_string(have) + "; a dense mask speaks of the call's own rows and keys");
  }
  std::int64_t shape_[4], words_;
  std::vector<std::uint64_t> bits_;
};

// `&` and `|`: terms are evaluated one by one into scratch and folded into the result.
template <void (*fold)(KeySet&, KeySet&, std::int64_t)>
class Combined final : public MaskExpr {
 public:
  explicit Combined(std::vector<MaskRef> terms) : terms_(std::move(terms)) {
    if (terms_.empty()) throw std::invalid_argument("terms must hold at least one mask, got none");
    for (const auto& term : terms_) {
      batch_ = agree("batch", batch_, term->batch());
      heads_ = agree("head count", heads_, term->heads());
    }
  }
  std::int64_t batch() const override { return batch_; }
  std::int64_t heads() const override { return heads_; }
  void check(const Geometry& geometry) const override {
    for (const auto& term : terms_) term->check(geometry);
  }
  void row(RowQuery& query, std::size_t depth, KeySet& out) const override {
    terms_[0]->row(query, depth, out);
    for (std::size_t t = 1; t < terms_.size(); ++t) {
      KeySet& other = query.scratch(depth);
      other.spans.clear();
      other.irregular = false;
      terms_[t]->row(query, depth + 1, other);
      fold(out, other, query.keys);
    }
  }

 private:
  static std::int64_t agree(const char* what, std::int64_t a, std::int64_t b) {
    if (a != 1 && b != 1 && a != b)
      throw std::invalid_argument(std::string("masks that are combined must agree in ") + what + ", got " + std::to_string(a) +
                                  " and " + std::to_string(b));
    return std::max(a, b);
  }
  std::vector<MaskRef> terms_;
  std::int64_t batch_ = 1, heads_ = 1;
};

class Not final : public MaskExpr {
 public:
  explicit Not(MaskRef term) : term_(std::move(term)) {}
  std::int64_t batch() const override { return term_->batch(); }
  std::int64_t heads() const override { return term_->heads(); }
  void check(const Geometry& geometry) const override { term_->check(geometry); }
  void row(RowQuery& query, std::size_t depth, KeySet& out) const override {
    term_->row(query, depth, out);
    complement(out, query.keys);
  }

 private:
  MaskRef term_;
};

}  // namespace

MaskRef mask_band(std::optional<std::int64_t> left, std::optional<std::int64_t> right) {
  return std::make_shared<Band>(left, right);
}
MaskRef mask_key_range(std::vector<std::int64_t> begin, std::vector<std::int64_t> end) {
  if (begin.size() != end.size() || begin.empty()) throw std::invalid_argument("begin and end must have the same size, not 0");
  return std::make_shared<KeyRange>(std::move(begin), std::move(end));
}
MaskRef mask_keys(const bool* keep, std::int64_t sequences, std::int64_t keys) {
  return std::make_shared<Keys>(keep, sequences, keys);
}
MaskRef mask_documents(const std::int64_t* q_ids, std::int64_t q_length, const std::int64_t* kv_ids, std::int64_t kv_length,
                       std::int64_t sequences) {
  return std::make_shared<Documents>(q_ids, q_length, kv_ids, kv_length, sequences);
}
MaskRef mask_dense(const bool* keep, const std::int64_t (&shape)[4], const std::int64_t (&strides)[4]) {
  return std::make_shared<Dense>(keep, shape, strides);
}
MaskRef mask_and(std::vector<MaskRef> terms) { return std::make_shared<Combined<intersect>>(std::move(terms)); }
MaskRef mask_or(std::vector<MaskRef> terms) { return std::make_shared<Combined<unite>>(std::move(terms)); }
MaskRef mask_not(MaskRef term) { return std::make_shared<Not>(std::move(term)); }
std::int64_t mask_batch(const MaskRef& mask) { return mask->batch(); }
std::int64_t mask_heads(const MaskRef& mask) { return mask->heads(); }

}  // namespace maskattn
