// The kernel for mma.sync.
#include "prefill_checks.hpp"

using namespace maskattn;
using namespace maskattn::cuda;

namespace {

constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::float16, Dtype::bfloat16};
const Kernel kMma{mma_can, attention_mma, 80};

}  // namespace

TEST(head_sizes_of_every_dtype) {
  check_head_sizes(kMma, Dtype::float32, {1, 40, 64, 100, 200});
  check_head_sizes(kMma, Dtype::float16, {40, 128, 256});
  check_head_sizes(kMma, Dtype::bfloat16, {1, 40, 64, 100, 200});
}

TEST(modifiers) {
  check_modifiers(kMma, Dtype::float32, {0, 16});
  check_modifiers(kMma, Dtype::bfloat16, {0, 48});
}

TEST(shapes) { check_shapes(kMma, Dtype::bfloat16); }

TEST(packed_sequences) {
  Case c{.batch = 2, .q_heads = 2, .kv_heads = 1, .q_len = 67, .kv_len = 100, .head_dim = 64, .v_head_dim = 64};
  c.dtype = Dtype::bfloat16;
  c.packed = true;
  CHECK(error_of_case(kMma, c) < 1);
}

TEST(precisions_of_float32) {
  Case c{.q_len = 67, .kv_len = 130, .head_dim = 128, .v_head_dim = 128};
  double error[3];
  for (const Precision precision : {Precision::highest, Precision::high, Precision::medium}) {
    Arrays a(c);
    a.call.precision = precision;
    attention_mma(a.call, nullptr);
    error[static_cast<int>(precision)] = worst_error(a, 0x1p-20);
  }
  // In units of 2^-20, the error of weights; bfloat16 pairs have 16 bits.
  CHECK(error[0] < 1 && error[1] > 2 && error[1] < 16 && error[2] > 100);
}

TEST(every_nan_of_float32_shows) {
  for (const Precision precision : {Precision::highest, Precision::high, Precision::medium})
    for (const std::uint32_t bits : {0x7fffffffu, 0xffffffffu, 0x7f800001u}) {
      Case c{.q_len = 20, .kv_len = 70, .head_dim = 64, .v_head_dim = 64};
      c.precision = precision;
      Arrays keys(c), values(c);
      keys.set(keys.k, keys.k_at(0, 0, 3) + 7, std::bit_cast<float>(bits));
      values.set(values.v, values.v_at(0, 0, 69) + 9, std::bit_cast<float>(bits));
      for (Arrays* a : {&keys, &values}) attention_mma(a->call, nullptr);
      for (int i = 0; i < c.q_len; ++i) CHECK(std::isnan(keys.output(0, 0, i, 0)) && std::isnan(values.output(0, 0, i, 9)));
    }
}

TEST(large_scores) {
  for (const Dtype dtype : kDtypes) check_large_scores(kMma, dtype);
}

TEST(hidden_keys_do_not_show) {
  for (const Dtype dtype : kDtypes) check_hidden_keys(kMma, dtype);
}

TEST(rows_that_see_nothing) {
  for (const Dtype dtype : kDtypes) check_rows_that_see_nothing(kMma, dtype);
}

TEST(order_of_threads) { check_order_of_threads(kMma, Dtype::float16); }

int main() { return run_tests(); }
