// What a decoder's layers do between products, on emulated threads, against the definitions in double.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "check.hpp"
#include "cuda/decoder/best.hpp"
#include "cuda/decoder/elementwise.hpp"
#include "cuda/plan_build.hpp"

using namespace maskattn;
using namespace maskattn::cuda;

namespace {

std::vector<float> normal(std::size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> draw;
  std::vector<float> made(count);
  for (float& x : made) x = draw(engine);
  return made;
}

double definition(Function function, double x) {
  switch (function) {
    case Function::relu: return std::max(x, 0.0);
    case Function::silu: return x / (1 + std::exp(-x));
    case Function::gelu: return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Function::gelu_tanh: return x * 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Function::quick_gelu: return x / (1 + std::exp(-1.702 * x));
    case Function::tanh: return std::tanh(x);
    default: return x;
  }
}

constexpr Function kFunctions[] = {Function::identity,  Function::relu,       Function::silu, Function::gelu,
                                   Function::gelu_tanh, Function::quick_gelu, Function::tanh};

bool near(double a, double b, double relative) { return std::abs(a - b) <= relative * (1 + std::abs(b)); }

// Candidates in the order in which they should be found.
std::vector<int> ranked(const float* scores, int width) {
  std::vector<int> order(static_cast<std::size_t>(width));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  return order;
}

void check_best(const std::vector<float>& scores, int width, int count) {
  const int rows = static_cast<int>(scores.size()) / width;
  std::vector<Candidate> found(static_cast<std::size_t>(rows * count));
  std::vector<float> sums(static_cast<std::size_t>(rows));
  const BestCall call{rows, width, count, scores.data(), found.data(), sums.data()};
  std::vector<unsigned char> workspace(best_workspace_bytes(call));
  best(call, workspace.data(), nullptr);
  for (int row = 0; row < rows; ++row) {
    const float* of_row = scores.data() + row * width;
    const std::vector<int> order = ranked(of_row, width);
    for (int k = 0; k < count; ++k) {
      const Candidate& candidate = found[static_cast<std::size_t>(row * count + k)];
      CHECK(candidate.index == order[static_cast<std::size_t>(k)]);
      CHECK(candidate.value == of_row[candidate.index]);
    }
    double sum = 0;
    for (int i = 0; i < width; ++i) sum += std::exp(static_cast<double>(of_row[i]));
    CHECK(sum == 0 ? sums[static_cast<std::size_t>(row)] == -INFINITY
                   : near(sums[static_cast<std::size_t>(row)], std::log(sum), 1e-6));
  }
}

}  // namespace

TEST(activations_are_their_definitions) {
  for (const Function function : kFunctions)
    for (float x = -20; x < 20; x += 0.0137f) CHECK(near(cuda::apply(function, x), definition(function, x), 5e-7));
}

TEST(gates_are_multiplied) {
  const int rows = 3, width = 37;
  const std::vector<float> x = normal(rows * 2 * width, 1);
  std::vector<float> out(rows * width);
  activate(Function::silu, true, rows, width, x.data(), out.data(), Dtype::float32, nullptr);
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < width; ++i) {
      const double gate = definition(Function::silu, x[static_cast<std::size_t>(row * 2 * width + i)]);
      CHECK(near(out[static_cast<std::size_t>(row * width + i)], gate * x[static_cast<std::size_t>((row * 2 + 1) * width + i)],
                 1e-6));
    }
}

TEST(norms_of_every_width_also_in_place) {
  for (const int width : {1, 24, 33, 300, 1025})
    for (const bool root : {false, true}) {
      const auto size = static_cast<std::size_t>(width);
      const std::vector<float> weight = normal(size, 2), bias = normal(size, 3), x = normal(2 * size, 4);
      std::vector<float> out = x;
      normalize({weight.data(), root ? nullptr : bias.data(), 1e-5f, root}, 2, width, out.data(), out.data(), Dtype::float32,
                nullptr);
      for (std::size_t row = 0; row < 2; ++row) {
        double mean = 0, squares = 0;
        for (std::size_t i = 0; i < size && !root; ++i) mean += x[row * size + i] / width;
        for (std::size_t i = 0; i < size; ++i) squares += (x[row * size + i] - mean) * (x[row * size + i] - mean) / width;
        for (std::size_t i = 0; i < size; ++i) {
          const double value = (x[row * size + i] - mean) / std::sqrt(squares + 1e-5) * weight[i] + (root ? 0 : bias[i]);
          CHECK(near(out[row * size + i], value, 2e-6));
        }
      }
    }
}

TEST(the_best_of_one_part_or_many) {
  for (const int width : {1, 255, 4096, 4097, 9000})
    for (const int count : {1, 2, 7}) {
      if (count > width) continue;
      std::vector<float> scores = normal(static_cast<std::size_t>(2 * width), 5);
      for (float& score : scores) score = std::round(score * 8) / 8;  // many are equal
      check_best(scores, width, count);
    }
}

TEST(scores_that_are_infinite) {
  const int width = 5000;
  check_best(std::vector<float>(width, -INFINITY), width, 3);
  std::vector<float> scores(width, -INFINITY);
  scores[4999] = 1.5f;
  scores[17] = -80.f;
  check_best(scores, width, 6);
}

TEST(tiles_are_those_that_rows_see) {
  const int batch = 2, q_len = 130, kv_len = 2500;
  std::mt19937 engine(7);
  std::vector<Span> spans;
  for (int row = 0; row < batch * q_len; ++row) {
    const int begin = row % 5 == 0 ? 0 : static_cast<int>(engine() % kv_len),
              end = std::min(begin + static_cast<int>(engine() % 400), kv_len);
    spans.push_back(row % 7 == 0 ? Span{0, 0} : Span{begin, end});
    spans.push_back(row % 3 == 0 ? Span{0, 0} : Span{std::min(end + 70, kv_len), kv_len});
  }
  PlanView plan{};
  plan.batch = batch, plan.heads = 1, plan.q_len = q_len, plan.kv_len = kv_len;
  plan.q_tiles = (q_len + kTile - 1) / kTile, plan.kv_tiles = (kv_len + kTile - 1) / kTile;
  plan.spans = spans.data(), plan.spans_per_row = 2;
  std::vector<TileEntry> tiles(static_cast<std::size_t>(batch * plan.q_tiles * plan.kv_tiles));
  std::vector<int> counts(static_cast<std::size_t>(batch * plan.q_tiles), -1);
  plan.tiles = tiles.data(), plan.tile_counts = counts.data();
  list_tiles(plan, tiles.data(), counts.data(), nullptr);
  for (int b = 0; b < batch; ++b)
    for (int q_tile = 0; q_tile < plan.q_tiles; ++q_tile) {
      int at = 0;
      for (int tile = 0; tile < plan.kv_tiles; ++tile) {
        std::uint64_t some = 0, every = ~std::uint64_t{0};
        for (int row = q_tile * kTile; row < std::min(q_len, (q_tile + 1) * kTile); ++row) {
          some |= plan.visible(b, 0, row, tile);
          every &= plan.visible(b, 0, row, tile);
        }
        if (!some) continue;
        CHECK(at < plan.tile_count(b, 0, q_tile));
        CHECK(plan.tiles_of(b, 0, q_tile)[at].kv_tile() == tile);
        CHECK(plan.tiles_of(b, 0, q_tile)[at].full() == (every == ~std::uint64_t{0}));
        ++at;
      }
      CHECK(at == plan.tile_count(b, 0, q_tile));
    }
}

TEST(rows_are_gathered_and_missing_ones_are_zeros) {
  const std::vector<float> from{1, 2, 3, 4, 5, 6};
  const std::vector<int> rows{2, -1, 0, 2};
  std::vector<float> out(8, NAN);
  gather(4, 2, 4, from.data(), rows.data(), out.data(), nullptr);
  CHECK((out == std::vector<float>{5, 6, 0, 0, 1, 2, 5, 6}));
}

int main() { return run_tests(); }
