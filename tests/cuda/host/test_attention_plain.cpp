// The kernel for every call, on emulated threads, against attention by its definition.
#include "attention_case.hpp"
#include "check.hpp"

using namespace maskattn;
using namespace maskattn::cuda;

namespace {

constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::float16, Dtype::bfloat16};
const Visible kCausal = [](int, int, int i, int key) { return key <= i + 70; };
const Visible kIrregular = [](int b, int h, int i, int key) { return (key * 7 + i * 3 + h + b) % 5 < 2 && i != 2; };

double error_of_case(const Case& c) {
  Arrays a(c);
  attention_plain(a.call, nullptr);
  return worst_error(a, 0x1p-20);
}

}  // namespace

TEST(every_dtype_and_head_size) {
  for (const Dtype dtype : kDtypes)
    for (const int dim : {1, 20, 64, 100, 256}) {
      Case c{.batch = 2,
             .q_heads = 4,
             .kv_heads = 2,
             .q_len = 5,
             .kv_len = 150,
             .head_dim = dim,
             .v_head_dim = dim == 20 ? 33 : dim};
      c.dtype = dtype;
      c.mask = kCausal;
      CHECK(error_of_case(c) < 1);
    }
}

TEST(every_modifier) {
  const Case base{.batch = 2, .q_heads = 4, .kv_heads = 2, .q_len = 7, .kv_len = 200, .head_dim = 32, .v_head_dim = 32};
  for (int n = 0; n < 64; ++n) {
    Case c = base;
    c.mask = n % 3 ? kIrregular : kCausal;
    c.mask_by_batch = c.mask_by_head = c.as_bits = n % 3;
    c.softcap = n & 1 ? 3.f : 0.f;
    c.bias = n & 2, c.table = n & 4, c.slopes = n & 8, c.sinks = n & 16, c.lse = n % 5 != 0;
    c.page_size = n & 32 ? 16 : 0, c.packed = !c.page_size && n % 2;
    c.scale = n % 7 == 0 ? -0.2f : n % 11 == 0 ? 0.f : 0.2f;
    CHECK(error_of_case(c) < 1);
  }
}

TEST(large_scores) {
  for (const float size : {10.f, 100.f, 1e4f}) {
    Case c{.q_len = 9, .kv_len = 130, .head_dim = 64, .v_head_dim = 16};
    c.size = size;
    CHECK(error_of_case(c) < 1);
  }
}

TEST(a_row_that_sees_nothing_is_zero) {
  Case c{.q_len = 3, .kv_len = 64};
  c.sinks = true;
  c.mask = [](int, int, int i, int) { return i != 1; };
  Arrays a(c);
  attention_plain(a.call, nullptr);
  for (int d = 0; d < c.v_head_dim; ++d) CHECK(a.output(0, 0, 1, d) == 0 && !std::signbit(a.output(0, 0, 1, d)));
  CHECK(a.lse_of(0, 0, 1) == -std::numeric_limits<float>::infinity() && worst_error(a, 0x1p-20) < 1);
}

TEST(a_key_changes_no_row_that_does_not_see_it) {
  Case c{.q_len = 80, .kv_len = 80};
  c.mask = [](int, int, int i, int key) { return key <= i; };
  Arrays clean(c), dirty(c);
  for (int d = 0; d < c.head_dim; ++d) {
    dirty.set(dirty.k, dirty.k_at(0, 0, 40) + d, NAN);
    dirty.set(dirty.v, dirty.v_at(0, 0, 40) + d, INFINITY);
  }
  attention_plain(clean.call, nullptr);
  attention_plain(dirty.call, nullptr);
  for (int i = 0; i < c.q_len; ++i)
    for (int d = 0; d < c.v_head_dim; ++d)
      CHECK(i < 40 ? clean.output(0, 0, i, d) == dirty.output(0, 0, i, d) : std::isnan(dirty.output(0, 0, i, d)));
}

TEST(more_sequences_or_heads_than_an_axis_of_a_grid_holds) {
  for (const bool heads : {false, true}) {
    const int many = 70000;
    Case c{.batch = heads ? 1 : many, .q_heads = heads ? many : 1, .kv_heads = heads ? many : 1, .q_len = 1, .kv_len = 2};
    c.head_dim = c.v_head_dim = 4;
    CHECK(error_of_case(c) < 1);
  }
}

int main() { return run_tests(); }
