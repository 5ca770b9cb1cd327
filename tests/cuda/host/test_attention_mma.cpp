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
  CHECK(error[0] < 1 && error[1] <= error[0] && error[2] > 100);
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
