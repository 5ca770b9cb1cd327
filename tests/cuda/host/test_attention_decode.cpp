// The kernels for few rows and many keys, on emulated threads: against attention by its definition, and their bits in batches.
#include "attention_case.hpp"
#include "check.hpp"

using namespace maskattn;
using namespace maskattn::cuda;

namespace {

constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::float16, Dtype::bfloat16};
// Every row of sequence b sees the keys before its own position; one of them, nothing.
const Visible kCausal = [](int b, int, int i, int key) { return key <= 600 + i - 40 * b; };
const Visible kIrregular = [](int b, int h, int i, int key) {
  return (key / 3 * 7 + i * 3 + h + b) % 11 < 4 && !(h == 1 && i == 0);
};
const Visible kWindow = [](int b, int, int i, int key) { return key > 900 + i - 100 && key <= 900 + i - 3 * b; };

void run(Arrays& a) {
  CHECK(decode_can(a.call));
  std::vector<float> workspace(decode_workspace_bytes(a.call) / sizeof(float) + 1, NAN);
  attention_decode(a.call, workspace.data(), nullptr);
}

double error_of_case(const Case& c) {
  Arrays a(c);
  run(a);
  return worst_error(a, c.dtype == Dtype::float32 ? 0x1p-20 : c.dtype == Dtype::float16 ? 0x1p-10 : 0x1p-8);
}

}  // namespace

TEST(every_dtype_and_number_of_rows) {
  for (const Dtype dtype : kDtypes)
    for (const int rows : {1, 2, 3, 8, 11}) {
      Case c{.batch = 2, .q_heads = 2 * rows, .kv_heads = 2, .q_len = 1, .kv_len = 700, .head_dim = 128, .v_head_dim = 128};
      c.dtype = dtype;
      c.mask = kCausal, c.mask_by_batch = true;
      CHECK(error_of_case(c) < 1);
    }
}

TEST(more_sequences_than_an_axis_of_a_grid_holds) {
  Case c{.batch = 66000, .q_len = 1, .kv_len = 2, .head_dim = 4, .v_head_dim = 4};
  CHECK(error_of_case(c) < 1);
}

TEST(every_head_size) {
  for (const Dtype dtype : kDtypes)
    for (const int dim : {8, 64, 80, 128, 192, 256})
      for (const int v_dim : {16, 64, 96, 256}) {
        Case c{.q_heads = 2, .kv_heads = 1, .q_len = 2, .kv_len = 100, .head_dim = dim, .v_head_dim = v_dim};
        c.dtype = dtype;
        c.scale = 0.1f;
        CHECK(error_of_case(c) < 1);
      }
}

TEST(every_modifier) {
  for (int n = 0; n < 64; ++n) {
    Case c{.batch = 2, .q_heads = 4, .kv_heads = 2, .q_len = 1 + n % 4, .kv_len = 1040, .head_dim = 32, .v_head_dim = 32};
    c.dtype = kDtypes[n % 3];
    c.mask = n % 5 == 0 ? kCausal : n % 5 == 1 ? kWindow : kIrregular;
    c.mask_by_batch = c.mask_by_head = true, c.as_bits = n % 2;
    c.softcap = n & 1 ? 3.f : 0.f;
    c.bias = n & 2, c.table = n & 4, c.slopes = n & 8, c.sinks = n & 16, c.lse = n % 7 != 0;
    c.page_size = n & 32 ? 48 : 0, c.packed = !c.page_size && n % 2;
    c.scale = n % 7 == 0 ? -0.2f : 0.2f;
    CHECK(error_of_case(c) < 1);
  }
}

TEST(a_row_has_the_same_bits_in_any_batch_and_cache) {
  Case c{.batch = 3, .q_heads = 4, .kv_heads = 2, .q_len = 2, .kv_len = 1500, .head_dim = 64, .v_head_dim = 64};
  c.mask = [](int b, int, int i, int key) { return key < 1200 - 300 * b + i; };
  c.mask_by_batch = true;
  Arrays together(c);
  run(together);
  for (int b = 0; b < 3; ++b) {
    Case alone = c;
    alone.batch = 1, alone.mask_by_batch = false, alone.page_size = 16;
    alone.kv_len = 1202 - 300 * b;
    alone.mask = [&](int, int h, int i, int key) { return c.mask(b, h, i, key); };
    Arrays one(alone);
    for (int h = 0; h < 4; ++h)
      for (int i = 0; i < 2; ++i)
        for (int d = 0; d < 64; ++d)
          one.set(one.q, one.q_at(0, h, i) + d, together.number(together.q, together.q_at(b, h, i) + d));
    for (int h = 0; h < 2; ++h)
      for (int key = 0; key < alone.kv_len; ++key)
        for (int d = 0; d < 64; ++d) {
          one.set(one.k, one.k_at(0, h, key) + d, together.number(together.k, together.k_at(b, h, key) + d));
          one.set(one.v, one.v_at(0, h, key) + d, together.number(together.v, together.v_at(b, h, key) + d));
        }
    run(one);
    for (int h = 0; h < 4; ++h)
      for (int i = 0; i < 2; ++i) {
        CHECK(one.lse_of(0, h, i) == together.lse_of(b, h, i));
        for (int d = 0; d < 64; ++d) CHECK(one.output(0, h, i, d) == together.output(b, h, i, d));
      }
  }
}

TEST(a_key_changes_no_row_that_does_not_see_it) {
  for (const Dtype dtype : kDtypes)
    for (const int heads : {1, 8}) {
      Case c{.q_heads = heads, .q_len = 4, .kv_len = 600, .head_dim = 64, .v_head_dim = 64};
      c.dtype = dtype;
      c.mask = [](int, int, int i, int key) { return key <= 560 + i; };
      Arrays clean(c), dirty(c);
      for (int d = 0; d < 64; ++d) {
        dirty.set(dirty.k, dirty.k_at(0, 0, 562) + d, NAN);
        dirty.set(dirty.v, dirty.v_at(0, 0, 562) + d, INFINITY);
      }
      run(clean);
      run(dirty);
      for (int h = 0; h < heads; ++h)
        for (int i = 0; i < 4; ++i)
          for (int d = 0; d < 64; ++d)
            CHECK(i < 2 ? clean.output(0, h, i, d) == dirty.output(0, h, i, d) : std::isnan(dirty.output(0, h, i, d)));
    }
}

TEST(threads_may_take_turns_in_any_order) {
  Case c{.q_heads = 4, .kv_heads = 2, .q_len = 2, .kv_len = 1100, .head_dim = 64, .v_head_dim = 64};
  c.dtype = Dtype::bfloat16;
  c.mask = kIrregular, c.mask_by_head = true;
  Arrays first(c);
  run(first);
  for (const auto order : {emulated::Order::reverse, emulated::Order::shuffled}) {
    emulated::settings().order = order;
    Arrays again(c);
    run(again);
    CHECK(again.out == first.out && again.lse == first.lse);
  }
  emulated::settings().order = emulated::Order::forward;
}

int main() { return run_tests(); }
