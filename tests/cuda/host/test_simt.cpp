// The emulation of CUDA's threads: what kernels count on, and that what is undefined is found.
#include <cmath>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "cuda/portable.hpp"
#include "cuda/runtime.hpp"

using namespace maskattn::cuda;
using emulated::Order;

namespace {

constexpr Order kOrders[] = {Order::forward, Order::reverse, Order::shuffled};

struct InOrder {
  explicit InOrder(Order order) { emulated::settings().order = order; }
  ~InOrder() { emulated::settings().order = Order::forward; }
};

// Sums of neighbours through shared memory, then over the block by shuffles.
__global__ void sums(const float* in, float* out, int count) {
  MASKATTN_SHARED float parts[8];
  float* staged = dynamic_shared<float>();
  const int thread = static_cast<int>(threadIdx.x), at = static_cast<int>(blockIdx.x * blockDim.x) + thread;
  staged[thread] = at < count ? in[at] : 0.f;
  __syncthreads();
  float x = staged[(thread + 1) % static_cast<int>(blockDim.x)];
  for (int with = 16; with; with /= 2) x += __shfl_xor_sync(0xffffffffu, x, with);
  if (thread % 32 == 0) parts[thread / 32] = x;
  __syncthreads();
  if (thread == 0) {
    float all = 0;
    for (int i = 0; i < static_cast<int>(blockDim.x) / 32; ++i) all += parts[i];
    atomicAdd(out, all);
  }
}

}  // namespace

TEST(blocks_sum_in_any_order) {
  std::vector<float> in(1000);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 17);
  float want = 0;
  for (const float x : in) want += x;
  for (const Order order : kOrders) {
    const InOrder scope(order);
    float got = 0;
    launch(&sums, 8, dim3(128), 128 * sizeof(float), nullptr, in.data(), &got, 1000);
    CHECK(got == want);
  }
}

TEST(grids_have_as_many_blocks_as_one_axis_holds) {
  int blocks = 0;
  const auto count = +[](int* to) { *to += threadIdx.x == 0; };
  launch(count, 70000, dim3(1), 0, nullptr, &blocks);
  launch(count, 0, dim3(1), 0, nullptr, &blocks);
  CHECK(blocks == 70000);
  const std::string error = error_of([&] { launch(count, std::int64_t{1} << 31, dim3(1), 0, nullptr, &blocks); });
  CHECK(contains(error, "at most 2147483647 blocks of threads on CUDA, got 2147483648; split its batch") && blocks == 70000);
}

TEST(indices_of_three_axes) {
  std::vector<int> seen(2 * 3 * 2 * 4 * 2 * 3, 0);
  emulated::run_grid(dim3(2, 3, 2), dim3(4, 2, 3), 0, [&] {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    ++seen[block * 24 + thread];
  });
  for (const int times : seen) CHECK(times == 1);
}

TEST(shuffles_and_votes) {
  emulated::run_grid(dim3(1), dim3(64), 0, [] {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    CHECK(__shfl_sync(~0u, lane, 5) == 5);
    CHECK(__shfl_sync(~0u, lane, 5, 8) == (lane & ~7) + 5);
    CHECK(__shfl_up_sync(~0u, lane, 3) == (lane < 3 ? lane : lane - 3));
    CHECK(__shfl_down_sync(~0u, lane, 3, 16) == (lane % 16 > 12 ? lane : lane + 3));
    CHECK(__shfl_xor_sync(~0u, 1.5 * lane, 9) == 1.5 * (lane ^ 9));
    CHECK(__ballot_sync(~0u, lane % 3 == 0) == 0x49249249u);
    CHECK(__any_sync(~0u, lane == 31) && !__all_sync(~0u, lane == 31));
    CHECK(__reduce_max_sync(~0u, lane) == 31 && __reduce_add_sync(~0u, lane) == 496);
    if (lane < 16)
      CHECK(__shfl_sync(0xffffu, lane, 3) == 3);
    else
      CHECK(__shfl_sync(0xffff0000u, lane, 19) == 19);
    CHECK(__syncthreads_or(threadIdx.x == 40) != 0);
    CHECK(__syncthreads_or(0) == 0);
  });
}

TEST(collectives_of_warps_and_warpgroups) {
  for (const Order order : kOrders) {
    const InOrder scope(order);
    emulated::run_grid(dim3(2), dim3(256), 0, [] {
      const int thread = static_cast<int>(threadIdx.x);
      int mine = thread;
      emulated::collective<emulated::kWarpgroup>("turn", mine, [](const auto& lanes) {
        for (int i = 0; i < 64; ++i) std::swap(*lanes[static_cast<std::size_t>(i)], *lanes[static_cast<std::size_t>(127 - i)]);
      });
      CHECK(mine == thread / 128 * 128 + 127 - thread % 128);
    });
  }
}

TEST(producers_and_consumers_meet_at_named_barriers) {
  for (const Order order : kOrders) {
    const InOrder scope(order);
    emulated::run_grid(dim3(1), dim3(96), 64, [] {
      int* box = dynamic_shared<int>();
      for (int round = 0; round < 5; ++round) {
        if (threadIdx.x < 32) {
          named_barrier_sync(2, 96);  // the box is free
          if (threadIdx.x == 0) *box = round;
          named_barrier_arrive(1, 96);
        } else {
          named_barrier_arrive(2, 96);
          named_barrier_sync(1, 96);  // the box is full
          CHECK(*box == round);
        }
      }
    });
  }
}

TEST(threads_wait_for_what_others_do) {
  int ready = 0, order = 0;
  emulated::run_grid(dim3(1), dim3(64), 0, [&] {
    if (threadIdx.x == 0) emulated::wait_until("a flag", [&] { return ready == 63; });
    if (threadIdx.x == 0)
      order = ready;
    else
      ++ready;
  });
  CHECK(order == 63);
}

TEST(what_is_undefined_is_found) {
  const auto error = [](unsigned threads, auto body) {
    return error_of([&] { emulated::run_grid(dim3(1), dim3(threads), 64, body); });
  };
  CHECK(contains(error(64,
                       [] {
                         if (threadIdx.x < 32) named_barrier_sync(3, 64);
                       }),
                 "threads 0 to 31 wait in barrier 3; threads 32"));
  CHECK(contains(error(32,
                       [] {
                         if (threadIdx.x != 7) __shfl_sync(~0u, 1, 0);
                       }),
                 "threads 7 to 7 have returned"));
  CHECK(contains(error(32, [] { threadIdx.x < 4 ? (void)__ballot_sync(~0u, 1) : __syncwarp(); }), "different operations"));
  CHECK(contains(error(32, [] { __shfl_sync(0xffffu << 16 * (threadIdx.x / 16), 1, 20); }), "does not name"));
  CHECK(contains(error(32, [] { dynamic_shared<char>()[64] = 1; }), "wrote to byte 64 of 64"));
  CHECK(contains(error(32, [] { dynamic_shared<char>()[-1] = 1; }), "wrote to byte -1 of 64"));
  CHECK(contains(error(32, [] { shared_address(dynamic_shared<char>() + 65); }), "outside"));
  CHECK(contains(error(2048, [] {}), "no device can do"));
  CHECK(std::isnan(*DeviceMemory(4, nullptr).data<float>()));
  // The emulation is as good as new after that.
  CHECK(error(64, [] {
          __syncthreads();
          CHECK(std::isnan(*dynamic_shared<float>()));
        }).empty());
}

TEST(a_thread_that_throws_unwinds_the_others) {
  static int alive = 0;
  struct Counted {
    Counted() { ++alive; }
    ~Counted() { --alive; }
  };
  const std::string error = error_of([] {
    emulated::run_grid(dim3(1), dim3(64), 0, [] {
      const Counted counted;
      if (threadIdx.x == 40) throw std::runtime_error("stop");
      __syncthreads();
    });
  });
  CHECK(error == "stop" && alive == 0);
}

TEST(sixteen_bit_floats_round_to_nearest_even) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const auto word = static_cast<std::uint16_t>(bits);
    const float half = __half2float({word}), bfloat = __bfloat162float({word});
    if (half == half) CHECK(__float2half_rn(half).bits == word);
    if (bfloat == bfloat) CHECK(__float2bfloat16_rn(bfloat).bits == word);
    // Halfway to the next number, and the floats on either side of that.
    const float next = __half2float({static_cast<std::uint16_t>(bits + 1)});
    if (std::isfinite(half) && std::isfinite(next) && (bits & 0x7fff) != 0x7fff) {
      const float middle = half + (next - half) / 2;
      CHECK(__float2half_rn(middle).bits == (bits & 1 ? bits + 1 : bits));
      CHECK(__float2half_rn(std::nextafter(middle, half)).bits == bits);
      CHECK(__float2half_rn(std::nextafter(middle, next)).bits == bits + 1);
    }
  }
  CHECK(std::isinf(__half2float(__float2half_rn(65520.f))) && __half2float(__float2half_rn(65519.f)) == 65504.f);
  CHECK(__float2bfloat16_rn(1.00390625f).bits == 0x3f80 && __float2bfloat16_rn(1.01171875f).bits == 0x3f82);
  CHECK(std::isnan(__bfloat162float(__float2bfloat16_rn(NAN))) && std::isnan(__half2float(__float2half_rn(NAN))));
}

int main() { return run_tests(); }
