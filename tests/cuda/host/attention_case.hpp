// Random calls of the CUDA kernels' contract, and attention by its definition in double: every score and weight of a row at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "cuda/attention.hpp"

namespace maskattn::cuda {

using Visible = std::function<bool(int b, int h, int i, int key)>;

struct Case {
  int batch = 1, q_heads = 1, kv_heads = 1, q_len = 1, kv_len = 64, head_dim = 64, v_head_dim = 64;
  Dtype dtype = Dtype::float32;
  Visible mask = [](int, int, int, int) { return true; };
  bool mask_by_batch = false, mask_by_head = false, as_bits = false;
  float scale = 0.125f, softcap = 0, size = 1;  // size: of queries
  bool bias = false, table = false, slopes = false, sinks = false, lse = true, packed = false;
  int page_size = 0;   // 0: no pages
  bool poison = true;  // NaN in keys and values that no row sees, and no page for them
  Precision precision = Precision::highest;
};

// The arrays of a case, in "device" memory, and the call about them.
class Arrays {
 public:
  explicit Arrays(const Case& c, unsigned seed = 1) : c(c), random_(seed) {
    make_plan();
    make_rows();
    make_terms();
    fill_call();
  }
  Arrays(const Arrays&) = delete;

  const Case c;
  AttentionCall call{};
  std::vector<unsigned char> out;
  std::vector<float> lse;

  std::int64_t q_at(int b, int h, int i) const {
    return (static_cast<std::int64_t>(b) * c.q_len + i) * c.q_heads * c.head_dim + h * c.head_dim;
  }
  // (token, head, column) arrays; pages in an order of their own.
  std::int64_t token(int b, int key) const {
    if (c.page_size == 0) return static_cast<std::int64_t>(b) * c.kv_len + key;
    return static_cast<std::int64_t>(page_of_[static_cast<std::size_t>(b * pages_ + key / c.page_size)]) * c.page_size +
           key % c.page_size;
  }
  std::int64_t k_at(int b, int h, int key) const { return (token(b, key) * c.kv_heads + h) * c.head_dim; }
  std::int64_t v_at(int b, int h, int key) const { return (token(b, key) * c.kv_heads + h) * c.v_head_dim; }
  bool sees(int b, int h, int i, int key) const {
    return c.mask(b, h, i, key) && !(c.bias && bias_value(b, h, i, key) == -std::numeric_limits<float>::infinity());
  }

  float number(const std::vector<unsigned char>& array, std::int64_t at) const {
    const auto n = static_cast<std::size_t>(at);
    if (c.dtype == Dtype::float32) return reinterpret_cast<const float*>(array.data())[n];
    if (c.dtype == Dtype::float16) return __half2float(reinterpret_cast<const __half*>(array.data())[n]);
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(array.data())[n]);
  }
  void set(std::vector<unsigned char>& array, std::int64_t at, float x) const {
    const auto n = static_cast<std::size_t>(at);
    if (c.dtype == Dtype::float32)
      reinterpret_cast<float*>(array.data())[n] = x;
    else if (c.dtype == Dtype::float16)
      reinterpret_cast<__half*>(array.data())[n] = __float2half_rn(x);
    else
      reinterpret_cast<__nv_bfloat16*>(array.data())[n] = __float2bfloat16_rn(x);
  }
  float bias_value(int b, int h, int i, int key) const {
    return bias_[static_cast<std::size_t>(((b * c.q_heads + h) * c.q_len + i) * c.kv_len + key)];
  }
  float output(int b, int h, int i, int column) const {
    return number(out, ((static_cast<std::int64_t>(b) * c.q_heads + h) * c.q_len + i) * c.v_head_dim + column);
  }
  float lse_of(int b, int h, int i) const { return lse[static_cast<std::size_t>((b * c.q_heads + h) * c.q_len + i)]; }

  std::vector<unsigned char> q, k, v;

 private:
  void make_plan();
  void make_rows();
  void make_terms();
  void fill_call();
  float normal() { return std::normal_distribution<float>()(random_); }

  std::mt19937 random_;
  int pages_ = 0;
  std::vector<int> page_of_, page_table_, q_offset_;
  std::vector<std::int64_t> kv_starts_;
  std::vector<TileEntry> tiles_;
  std::vector<int> counts_;
  std::vector<Span> spans_;
  std::vector<std::uint64_t> bits_;
  std::vector<float> bias_, table_, slopes_, sinks_;
};

inline void Arrays::make_plan() {
  PlanView& p = call.plan;
  p = {c.mask_by_batch ? c.batch : 1,
       c.mask_by_head ? c.q_heads : 1,
       c.q_len,
       c.kv_len,
       (c.q_len + kTile - 1) / kTile,
       (c.kv_len + kTile - 1) / kTile,
       nullptr,
       nullptr,
       nullptr,
       nullptr,
       0};
  std::vector<std::vector<Span>> rows;
  std::size_t most = 1;
  for (int b = 0; b < p.batch; ++b)
    for (int h = 0; h < p.heads; ++h)
      for (int tile = 0; tile < p.q_tiles; ++tile) {
        std::vector<TileEntry> list(static_cast<std::size_t>(p.kv_tiles));
        std::vector<int> seen(list.size()), pairs(list.size());
        for (int i = tile * kTile; i < std::min(c.q_len, (tile + 1) * kTile); ++i) {
          std::vector<Span> row;
          const std::size_t words = bits_.size();
          bits_.resize(words + list.size());
          for (int key = 0; key < c.kv_len; ++key) {
            ++pairs[static_cast<std::size_t>(key / kTile)];
            if (!c.mask(b, h, i, key)) continue;
            ++seen[static_cast<std::size_t>(key / kTile)];
            bits_[words + static_cast<std::size_t>(key / kTile)] |= std::uint64_t{1} << key % kTile;
            if (row.empty() || row.back().end != key) row.push_back({key, key});
            row.back().end = key + 1;
          }
          most = std::max(most, row.size());
          rows.push_back(row);
        }
        int count = 0;
        for (std::size_t t = 0; t < list.size(); ++t)
          if (seen[t]) list[static_cast<std::size_t>(count++)] = {static_cast<std::uint32_t>(2 * t + (seen[t] == pairs[t]))};
        counts_.push_back(count);
        tiles_.insert(tiles_.end(), list.begin(), list.end());
      }
  if (!c.as_bits) p.spans_per_row = static_cast<int>(most);
  for (std::vector<Span>& row : rows) {
    row.resize(most);
    spans_.insert(spans_.end(), row.begin(), row.end());
  }
  p.tiles = tiles_.data();
  p.tile_counts = counts_.data();
  p.spans = c.as_bits ? nullptr : spans_.data();
  p.bits = c.as_bits ? bits_.data() : nullptr;
}

inline void Arrays::make_rows() {
  const auto fill = [&](std::vector<unsigned char>& array, std::int64_t elements, float size) {
    array.resize(static_cast<std::size_t>(elements) * size_of(c.dtype));
    for (std::int64_t i = 0; i < elements; ++i) set(array, i, size * normal());
  };
  std::int64_t tokens = static_cast<std::int64_t>(c.batch) * c.kv_len;
  if (c.page_size) {
    pages_ = (c.kv_len + c.page_size - 1) / c.page_size;
    for (int page = 0; page < c.batch * pages_; ++page) page_of_.push_back(page);
    std::shuffle(page_of_.begin(), page_of_.end(), random_);
    tokens = static_cast<std::int64_t>(c.batch) * pages_ * c.page_size;
  }
  fill(q, static_cast<std::int64_t>(c.batch) * c.q_len * c.q_heads * c.head_dim, c.size);
  fill(k, tokens * c.kv_heads * c.head_dim, 1);
  fill(v, tokens * c.kv_heads * c.v_head_dim, 1);
  out.assign(static_cast<std::size_t>(c.batch * c.q_heads * c.q_len * c.v_head_dim) * size_of(c.dtype), 0xff);
  lse.assign(static_cast<std::size_t>(c.batch * c.q_heads * c.q_len), NAN);
  if (c.bias)
    for (int n = 0; n < c.batch * c.q_heads * c.q_len * c.kv_len; ++n)
      bias_.push_back(random_() % 8 == 0 ? -std::numeric_limits<float>::infinity() : normal());
  page_table_ = page_of_;
  if (!c.poison) return;
  std::vector<bool> page_seen(page_of_.size());
  for (int b = 0; b < c.batch; ++b)
    for (int h = 0; h < c.kv_heads; ++h)
      for (int key = 0; key < c.kv_len; ++key) {
        bool seen = false;
        for (int head = h * (c.q_heads / c.kv_heads); head < (h + 1) * (c.q_heads / c.kv_heads); ++head)
          for (int i = 0; i < c.q_len; ++i) seen = seen || sees(b, head, i, key);
        if (seen && c.page_size) page_seen[static_cast<std::size_t>(b * pages_ + key / c.page_size)] = true;
        if (seen) continue;
        for (int d = 0; d < c.head_dim; ++d) set(k, k_at(b, h, key) + d, d % 2 ? NAN : INFINITY);
        for (int d = 0; d < c.v_head_dim; ++d) set(v, v_at(b, h, key) + d, d % 2 ? INFINITY : NAN);
      }
  for (std::size_t page = 0; page < page_seen.size(); ++page)
    if (!page_seen[page]) page_table_[page] = 0x3fffffff;
}

inline void Arrays::make_terms() {
  constexpr int reach = 5;
  for (int h = 0; h < c.q_heads; ++h) {
    for (int i = 0; i < 2 * reach + 1; ++i) table_.push_back(normal());
    slopes_.push_back(0.05f * static_cast<float>(h + 1));
    sinks_.push_back(2 * normal());
  }
  for (int b = 0; b < c.batch; ++b) {
    q_offset_.push_back(c.kv_len - c.q_len - b);
    kv_starts_.push_back(static_cast<std::int64_t>(b) * c.kv_len);
  }
  call.bias_table = c.table ? table_.data() : nullptr;
  call.bias_reach = reach;
  call.slopes = c.slopes ? slopes_.data() : nullptr;
  call.sinks = c.sinks ? sinks_.data() : nullptr;
  call.q_offset = q_offset_.data();
}

inline void Arrays::fill_call() {
  call.batch = c.batch, call.q_heads = c.q_heads, call.kv_heads = c.kv_heads, call.q_len = c.q_len, call.kv_len = c.kv_len;
  call.head_dim = c.head_dim, call.v_head_dim = c.v_head_dim, call.dtype = c.dtype;
  const std::ptrdiff_t k_row = c.kv_heads * c.head_dim, v_row = c.kv_heads * c.v_head_dim, q_row = c.q_heads * c.head_dim;
  const std::ptrdiff_t rows = c.page_size ? c.page_size : c.kv_len;
  call.q = {q.data(), c.dtype, {c.q_len * q_row, c.head_dim, q_row}};
  call.k = {k.data(), c.dtype, {rows * k_row, c.head_dim, k_row}};
  call.v = {v.data(), c.dtype, {rows * v_row, c.v_head_dim, v_row}};
  if (c.packed) {
    call.k.starts = call.v.starts = kv_starts_.data();
    call.k.stride[0] = call.v.stride[0] = 0;
    call.kv_rows = c.batch * c.kv_len;
  }
  const std::ptrdiff_t out_head = c.q_len * c.v_head_dim;
  call.out = {out.data(), c.dtype, {c.q_heads * out_head, out_head, c.v_head_dim}};
  call.lse = c.lse ? lse.data() : nullptr;
  call.page_table = c.page_size ? page_table_.data() : nullptr;
  call.pages_per_sequence = pages_;
  call.page_size = c.page_size;
  call.bias = c.bias ? bias_.data() : nullptr;
  call.bias_dtype = Dtype::float32;
  const std::int64_t strides[] = {static_cast<std::int64_t>(c.q_heads) * c.q_len * c.kv_len,
                                  static_cast<std::int64_t>(c.q_len) * c.kv_len, c.kv_len, 1};
  std::copy(strides, strides + 4, call.bias_stride);
  call.scale = c.scale, call.softcap = c.softcap, call.precision = c.precision;
}

// A row by the definition: outputs, the sums of weight * |value| that errors are measured by, and the LSE.
struct WantedRow {
  std::vector<double> out, size;
  double lse, largest_score;
};

inline WantedRow wanted_row(const Arrays& a, int b, int h, int i) {
  const Case& c = a.c;
  const int kv_head = h / (c.q_heads / c.kv_heads);
  constexpr double hidden = -std::numeric_limits<double>::infinity();
  std::vector<double> scores(static_cast<std::size_t>(c.kv_len), hidden);
  double top = hidden, sum = 0, largest = 0;
  for (int key = 0; key < c.kv_len; ++key) {
    if (!a.sees(b, h, i, key)) continue;
    double s = 0;
    for (int d = 0; d < c.head_dim; ++d)
      s += static_cast<double>(a.number(a.q, a.q_at(b, h, i) + d)) *
           static_cast<double>(a.number(a.k, a.k_at(b, kv_head, key) + d));
    s *= static_cast<double>(c.scale);
    if (c.softcap != 0) s = c.softcap * std::tanh(s / c.softcap);
    if (c.bias) s += static_cast<double>(a.bias_value(b, h, i, key));
    const int distance = key - (a.call.q_offset[b] + i), reach = a.call.bias_reach;
    if (c.table) s += static_cast<double>(a.call.bias_table[h * (2 * reach + 1) + std::clamp(distance, -reach, reach) + reach]);
    if (c.slopes) s -= static_cast<double>(a.call.slopes[h]) * std::abs(distance);
    scores[static_cast<std::size_t>(key)] = s;
    top = std::max(top, s);
    largest = std::max(largest, std::fabs(s));
  }
  WantedRow row{std::vector<double>(static_cast<std::size_t>(c.v_head_dim)),
                std::vector<double>(static_cast<std::size_t>(c.v_head_dim)), hidden, largest};
  if (top == hidden) return row;
  if (c.sinks) top = std::max(top, static_cast<double>(a.call.sinks[h]));
  for (const double s : scores) sum += std::exp(s - top);
  if (c.sinks) sum += std::exp(static_cast<double>(a.call.sinks[h]) - top);
  row.lse = top + std::log(sum);
  for (int key = 0; key < c.kv_len; ++key) {
    if (!a.sees(b, h, i, key)) continue;
    const double weight = std::exp(scores[static_cast<std::size_t>(key)] - row.lse);
    for (int d = 0; d < c.v_head_dim; ++d) {
      const double x = static_cast<double>(a.number(a.v, a.v_at(b, kv_head, key) + d));
      row.out[static_cast<std::size_t>(d)] += weight * x;
      row.size[static_cast<std::size_t>(d)] += weight * std::fabs(x);
    }
  }
  return row;
}

// The largest error of an output or LSE, as a multiple of what is allowed: the output's rounding; and of the sum of weight *
// |value| `weight_error` and what scores of that size lose in float32, 2^-22 of them.
inline double worst_error(const Arrays& a, double weight_error) {
  const double rounding = a.c.dtype == Dtype::float32 ? 0x1p-23 : a.c.dtype == Dtype::float16 ? 0x1p-11 : 0x1p-8;
  // A weight below float's normal numbers is zero; float16 has subnormal outputs.
  const double smallest = a.c.dtype == Dtype::float16 ? 0x1p-25 : 0x1p-120;
  double worst = 0;
  const auto take = [&](double error) { worst = error == error ? std::max(worst, error) : INFINITY; };
  for (int b = 0; b < a.c.batch; ++b)
    for (int h = 0; h < a.c.q_heads; ++h)
      for (int i = 0; i < a.c.q_len; ++i) {
        const WantedRow want = wanted_row(a, b, h, i);
        const double weights = weight_error + 0x1p-22 * (1 + want.largest_score);
        for (int d = 0; d < a.c.v_head_dim; ++d) {
          const auto n = static_cast<std::size_t>(d);
          const double error = std::fabs(static_cast<double>(a.output(b, h, i, d)) - want.out[n]);
          take(error == 0 ? 0 : error / (rounding * std::fabs(want.out[n]) + weights * want.size[n] + smallest));
        }
        if (!a.c.lse) continue;
        const double got = static_cast<double>(a.lse_of(b, h, i));
        take(got == want.lse ? 0 : std::fabs(got - want.lse) / (weights + 0x1p-22 * std::fabs(want.lse)));
      }
  return worst;
}

}  // namespace maskattn::cuda
