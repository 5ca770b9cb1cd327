// The kernel for mma.sync on emulated threads and tensor cores, against attention by its definition.
#include "attention_case.hpp"
#include "check.hpp"
#include "cuda/emulated/simt.hpp"

using namespace maskattn;
using namespace maskattn::cuda;

namespace {

constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::float16, Dtype::bfloat16};
const Visible kCausal = [](int, int, int i, int key) { return key <= i + 70; };
const Visible kIrregular = [](int b, int h, int i, int key) { return (key * 7 + i * 3 + h + b) % 5 < 2 && i != 2 && key / 64 != 1; };

// Of weights: their rounding to 16 bits, or what numbers lose that are two of 11 bits.
double weight_error(const Case& c) {
  if (c.dtype == Dtype::bfloat16) return 0x1p-8;
  if (c.dtype == Dtype::float16) return 0x1p-10;
  return c.precision == Precision::medium ? 0x1p-6 : 0x1p-18;
}

double error_of_case(const Case& c) {
  Arrays a(c);
  if (!mma_can(a.call, 80)) return INFINITY;
  attention_mma(a.call, nullptr);
  return worst_error(a, weight_error(c));
}

}  // namespace

TEST(every_dtype_and_head_size) {
  for (const Dtype dtype : kDtypes)
    for (const int dim : {1, 20, 64, 100, 128, 256}) {
      Case c{.batch = 2, .q_heads = 4, .kv_heads = 2, .q_len = 70, .kv_len = 150, .head_dim = dim, .v_head_dim = dim == 20 ? 33 : dim};
      c.dtype = dtype;
      c.mask = kCausal;
      if (dtype == Dtype::float32 && dim == 256) continue;
      const double e = error_of_case(c);
      std::printf("dtype %d dim %d: %g\n", (int)dtype, dim, e);
      CHECK(e < 1);
    }
}

int main() { return run_tests(); }
