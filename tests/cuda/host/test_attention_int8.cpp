// The kernels over pages of int8, on emulated threads: against attention by its definition over the numbers that are stored.
#include "attention_case.hpp"
#include "check.hpp"
#include "cuda/emulated/simt.hpp"

using namespace maskattn;
using namespace maskattn::cuda;

namespace {

const Visible kCausal = [](int b, int, int i, int key) { return key <= 520 + i - 40 * b; };
const Visible kIrregular = [](int b, int h, int i, int key) {
  return (key / 3 * 7 + i * 3 + h + b) % 11 < 4 && !(h == 1 && i == 0);
};

// Keys or values of a case as bytes and scales; the case's own become the numbers that these stand for. What was NaN for nobody
// has any bytes, and a scale of NaN.
struct Bytes {
  std::vector<std::int8_t> rows;
  std::vector<float> scales;  // [pages][kv_heads][page_size]

  Bytes(Arrays& a, std::vector<unsigned char>& array, int dim) {
    const auto heads = static_cast<std::size_t>(a.c.kv_heads), size = static_cast<std::size_t>(a.c.page_size);
    const std::size_t width = static_cast<std::size_t>(dim), count = array.size() / size_of(a.c.dtype) / width;
    rows.resize(count * width);
    scales.resize(count);
    for (std::size_t row = 0; row < count; ++row) {  // numbered token by token and head by head
      const auto first = static_cast<std::int64_t>(row * width);
      float largest = 0;
      bool finite = true;
      for (int d = 0; d < dim; ++d) {
        largest = std::max(largest, std::fabs(a.number(array, first + d)));
        finite = finite && std::isfinite(a.number(array, first + d));
      }
      const std::size_t token = row / heads, head = row % heads;
      float& scale = scales[(token / size * heads + head) * size + token % size];
      scale = finite ? largest / 127 : NAN;
      for (int d = 0; d < dim; ++d) {
        std::int8_t& byte = rows[row * width + static_cast<std::size_t>(d)];
        byte = finite ? static_cast<std::int8_t>(std::rint(a.number(array, first + d) / scale)) : std::int8_t{77};
        a.set(array, first + d, static_cast<float>(byte) * scale);
      }
    }
  }
};

struct Case8 : Arrays {
  Bytes keys, values;
  explicit Case8(const Case& c) : Arrays(c), keys(*this, k, c.head_dim), values(*this, v, c.v_head_dim) {
    call.k.data = keys.rows.data(), call.v.data = values.rows.data();
    call.k.dtype = call.v.dtype = Dtype::int8;
    call.k_scales = keys.scales.data(), call.v_scales = values.scales.data();
  }
};

void decode(const AttentionCall& call) {
  CHECK(decode_can(call));
  std::vector<float> workspace(decode_workspace_bytes(call) / sizeof(float) + 1, NAN);
  attention_decode(call, workspace.data(), nullptr);
}
void prefill(const AttentionCall& call) {
  CHECK(mma_can(call, 80));
  CHECK(!wgmma_can(call, 90));
  attention_mma(call, nullptr);
}
void plain(const AttentionCall& call) { attention_plain(call, nullptr); }

using Run = void (*)(const AttentionCall& call);

double error_of_case(const Case& c, Run run) {
  Case8 a(c);
  run(a.call);
  return worst_error(a, c.dtype == Dtype::bfloat16 ? 0x1p-8 : c.dtype == Dtype::float16 ? 0x1p-11 : 0x1p-19);
}

}  // namespace

TEST(few_rows_of_every_number_and_size) {
  for (const int rows : {1, 3, 8, 11})
    for (const int dim : {16, 64, 80, 128, 256}) {
      Case c{.batch = 2, .q_heads = 2 * rows, .kv_heads = 2, .q_len = 1, .kv_len = 600, .head_dim = dim, .v_head_dim = 272 - dim};
      c.mask = kCausal, c.mask_by_batch = true, c.page_size = rows == 3 ? 16 : 64;
      CHECK(error_of_case(c, decode) < 1);
    }
}

TEST(many_rows_of_every_dtype_and_size) {
  for (const Dtype dtype : {Dtype::float32, Dtype::float16, Dtype::bfloat16})
    for (const int dim : {20, 64, 100, 128, 200}) {
      Case c{.batch = 2, .q_heads = 4, .kv_heads = 2, .q_len = 70, .kv_len = 150, .head_dim = dim, .v_head_dim = dim + 8};
      c.dtype = dtype, c.page_size = 32;
      c.mask = [](int, int, int i, int key) { return key <= i + 70; };
      CHECK(error_of_case(c, prefill) < 1);
    }
}

TEST(every_modifier) {
  for (int n = 0; n < 48; ++n) {
    const int kernel = n % 3;
    Case c{
        .batch = 2, .q_heads = 4, .kv_heads = 2, .q_len = kernel ? 67 : 1 + n % 4, .kv_len = kernel ? 200 : 1040, .head_dim = 32};
    c.v_head_dim = 32;
    c.mask = n % 5 ? kIrregular : kCausal;
    c.mask_by_batch = c.mask_by_head = true, c.as_bits = n % 2;
    c.softcap = n & 4 ? 3.f : 0.f;
    c.bias = n & 8, c.table = n & 16, c.slopes = n % 5 == 1, c.sinks = n & 1, c.lse = n % 7 != 0;
    c.page_size = 48;
    c.scale = n % 7 == 0 ? -0.2f : 0.2f;
    CHECK(error_of_case(c, kernel == 0 ? decode : kernel == 1 ? prefill : plain) < 1);
  }
}

TEST(threads_may_take_turns_in_any_order) {
  for (const Run run : {decode, prefill, plain}) {
    Case c{.q_heads = 4, .kv_heads = 2, .q_len = run == decode ? 2 : 70, .kv_len = 600, .head_dim = 64, .v_head_dim = 64};
    c.mask = kIrregular, c.mask_by_head = true, c.page_size = 16;
    Case8 first(c);
    run(first.call);
    for (const auto order : {emulated::Order::reverse, emulated::Order::shuffled}) {
      emulated::settings().order = order;
      Case8 again(c);
      run(again.call);
      CHECK(again.out == first.out && again.lse == first.lse);
    }
    emulated::settings().order = emulated::Order::forward;
  }
}

int main() { return run_tests(); }
