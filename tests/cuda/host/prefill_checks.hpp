// What the kernels for many rows must hold, on emulated threads and tensor cores: against attention by its definition.
#pragma once

#include "attention_case.hpp"
#include "check.hpp"
#include "cuda/emulated/simt.hpp"

namespace maskattn::cuda {

inline const Visible kCausal = [](int, int, int i, int key) { return key <= i + 70; };
inline const Visible kWindow = [](int, int, int i, int key) { return key <= i && key > i - 70; };
// Rows that see nothing, tiles that nobody sees, another mask for each sequence and head.
inline const Visible kIrregular = [](int b, int h, int i, int key) {
  return (key * 7 + i * 3 + h + b) % 5 < 2 && i != 2 && key / 64 != 1 + h % 2;
};

struct Kernel {
  bool (*can)(const AttentionCall& call, int compute_capability);
  void (*run)(const AttentionCall& call, Stream stream);
  int compute_capability;
};

// Of weights: their rounding to 16 bits, or what numbers lose that are two of 11 bits, or of 8.
inline double weight_error(const Case& c) {
  if (c.dtype == Dtype::bfloat16) return 0x1p-8;
  if (c.dtype == Dtype::float16) return 0x1p-11;
  return c.precision == Precision::medium ? 0x1p-7 : c.precision == Precision::high ? 0x1p-15 : 0x1p-19;
}

inline double error_of_case(const Kernel& kernel, const Case& c) {
  Arrays a(c);
  if (!kernel.can(a.call, kernel.compute_capability)) return INFINITY;
  kernel.run(a.call, nullptr);
  return worst_error(a, weight_error(c));
}

inline void check_head_sizes(const Kernel& kernel, Dtype dtype, const std::vector<int>& sizes) {
  for (const int dim : sizes) {
    Case c{
        .batch = 2, .q_heads = 4, .kv_heads = 2, .q_len = 70, .kv_len = 150, .head_dim = dim, .v_head_dim = dim == 40 ? 24 : dim};
    c.dtype = dtype;
    c.mask = kCausal;
    CHECK(error_of_case(kernel, c) < 1);
  }
}

// Every modifier with every other; `pages`: 0, or the sizes of pages.
inline void check_modifiers(const Kernel& kernel, Dtype dtype, const std::vector<int>& pages) {
  for (int n = 0; n < 32; ++n) {
    Case c{.batch = 2, .q_heads = 4, .kv_heads = 2, .q_len = 67, .kv_len = 200, .head_dim = 64, .v_head_dim = 64};
    c.dtype = dtype;
    c.mask = n % 3 ? kIrregular : kCausal;
    c.mask_by_batch = c.mask_by_head = c.as_bits = n % 3;
    c.softcap = n & 1 ? 3.f : 0.f;
    c.bias = n & 2, c.table = n & 4, c.slopes = n & 8, c.sinks = n & 16, c.lse = n % 5 != 0;
    c.page_size = pages[static_cast<std::size_t>(n) % pages.size()];
    c.scale = n % 7 == 1 ? -0.2f : 0.2f;
    CHECK(error_of_case(kernel, c) < 1);
  }
}

inline void check_shapes(const Kernel& kernel, Dtype dtype) {
  for (const int q_len : {1, 64, 129, 300})
    for (const int kv_len : {1, 64, 300})
      for (const int q_heads : {1, 3, 4}) {
        Case c{.q_heads = q_heads,
               .kv_heads = q_heads == 4 ? 2 : 1,
               .q_len = q_len,
               .kv_len = kv_len,
               .head_dim = 64,
               .v_head_dim = 64};
        c.dtype = dtype;
        c.mask = q_len == 300 && kv_len == 300 ? kWindow : kCausal;
        c.sinks = q_heads == 3;
        CHECK(error_of_case(kernel, c) < 1);
      }
}

inline void check_large_scores(const Kernel& kernel, Dtype dtype) {
  for (const float size : {10.f, 100.f}) {
    Case c{.q_len = 65, .kv_len = 130, .head_dim = 64, .v_head_dim = 64};
    c.dtype = dtype;
    c.size = size;
    CHECK(error_of_case(kernel, c) < 1);
  }
}

// Rows that do not see a key have the same bits whatever is in it.
inline void check_hidden_keys(const Kernel& kernel, Dtype dtype) {
  for (const bool bias : {false, true}) {
    Case c{.q_len = 80, .kv_len = 80, .head_dim = 64, .v_head_dim = 64};
    c.dtype = dtype;
    c.mask = [](int, int, int i, int key) { return key <= i; };
    c.bias = bias;
    Arrays a(c);
    for (int d = 0; d < c.head_dim; ++d) {
      a.set(a.k, a.k_at(0, 0, 40) + d, NAN);
      a.set(a.v, a.v_at(0, 0, 40) + d, d % 2 ? INFINITY : NAN);
      a.set(a.v, a.v_at(0, 0, 70) + d, -INFINITY);
    }
    kernel.run(a.call, nullptr);
    for (int i = 0; i < c.q_len; ++i) {
      const WantedRow want = wanted_row(a, 0, 0, i);
      for (int d = 0; d < c.v_head_dim; ++d) {
        const double wanted = want.out[static_cast<std::size_t>(d)], got = static_cast<double>(a.output(0, 0, i, d));
        const bool sees_nan = i >= 40 && a.sees(0, 0, i, 40), sees_infinity = i >= 70 && a.sees(0, 0, i, 70);
        if (sees_nan)
          CHECK(std::isnan(got));
        else if (sees_infinity)
          CHECK(got == -INFINITY);
        else
          CHECK(std::fabs(got - wanted) <= 0x1p-6 * want.size[static_cast<std::size_t>(d)]);
      }
    }
  }
}

inline void check_rows_that_see_nothing(const Kernel& kernel, Dtype dtype) {
  Case c{.q_len = 3, .kv_len = 64};
  c.dtype = dtype;
  c.sinks = true;
  c.mask = [](int, int, int i, int) { return i != 1; };
  Arrays a(c);
  kernel.run(a.call, nullptr);
  for (int d = 0; d < c.v_head_dim; ++d) CHECK(a.output(0, 0, 1, d) == 0 && !std::signbit(a.output(0, 0, 1, d)));
  CHECK(a.lse_of(0, 0, 1) == -std::numeric_limits<float>::infinity() && worst_error(a, weight_error(c)) < 1);
}

// The same bits whichever threads run first.
inline void check_order_of_threads(const Kernel& kernel, Dtype dtype) {
  Case c{.q_heads = 2, .kv_heads = 1, .q_len = 130, .kv_len = 260, .head_dim = 64, .v_head_dim = 64};
  c.dtype = dtype;
  c.mask = kIrregular;
  Arrays first(c), second(c);
  kernel.run(first.call, nullptr);
  for (const auto order : {emulated::Order::reverse, emulated::Order::shuffled}) {
    emulated::settings().order = order;
    kernel.run(second.call, nullptr);
    CHECK(first.out == second.out);
  }
  emulated::settings().order = emulated::Order::forward;
}

}  // namespace maskattn::cuda
