// The kernel for wgmma and the copy engine.
#include "prefill_checks.hpp"

using namespace maskattn;
using namespace maskattn::cuda;

namespace {

const Kernel kWgmma{wgmma_can, attention_wgmma, 90};

}  // namespace

TEST(head_sizes) {
  check_head_sizes(kWgmma, Dtype::bfloat16, {8, 40, 64, 96, 128, 200, 256});
  check_head_sizes(kWgmma, Dtype::float16, {40, 128, 256});
}

TEST(modifiers) {
  check_modifiers(kWgmma, Dtype::float16, {0});
  check_modifiers(kWgmma, Dtype::bfloat16, {0});
}

// What the copy engine brings of a next sequence's keys, NaN among them, does not show.
TEST(packed_sequences) {
  for (const Visible& mask : {kCausal, kIrregular}) {
    Case c{.batch = 3, .q_heads = 4, .kv_heads = 2, .q_len = 70, .kv_len = 150, .head_dim = 64, .v_head_dim = 64};
    c.dtype = Dtype::bfloat16;
    c.packed = true;
    c.mask = mask;
    c.mask_by_batch = c.mask_by_head = true;
    CHECK(error_of_case(kWgmma, c) < 1);
  }
}

TEST(shapes) { check_shapes(kWgmma, Dtype::bfloat16); }

TEST(large_scores) { check_large_scores(kWgmma, Dtype::bfloat16); }

TEST(hidden_keys_do_not_show) { check_hidden_keys(kWgmma, Dtype::bfloat16); }

TEST(rows_that_see_nothing) { check_rows_that_see_nothing(kWgmma, Dtype::float16); }

TEST(order_of_threads) { check_order_of_threads(kWgmma, Dtype::bfloat16); }

TEST(calls_of_other_kernels) {
  const auto can = [](const Case& c) { return wgmma_can(Arrays(c).call, 90); };
  Case c{.kv_len = 64, .head_dim = 64, .v_head_dim = 64};
  CHECK(!can(c));
  c.dtype = Dtype::bfloat16;
  CHECK(can(c));
  c.page_size = 16;
  CHECK(!can(c));
  c.page_size = 0, c.head_dim = c.v_head_dim = 20, c.kv_heads = c.q_heads = 3;
  CHECK(!can(c));
}

int main() { return run_tests(); }
