// The functions that kernels share, on the host: exponentials, softcaps, the state of a row.
#include <cmath>
#include <random>

#include "check.hpp"
#include "cuda/fragment_softmax.hpp"
#include "cuda/scores.hpp"

using namespace maskattn;
using namespace maskattn::cuda;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double relative(double got, double want) { return want == 0 ? std::fabs(got) : std::fabs(got / want - 1); }

AttentionCall call_of(float scale, float softcap, bool biased) {
  static const float slope = 0;
  AttentionCall call{};
  call.scale = scale, call.softcap = softcap, call.slopes = biased ? &slope : nullptr;
  return call;
}

}  // namespace

TEST(weights_are_powers_of_two_to_the_last_digits) {
  std::mt19937 random(1);
  for (const float size : {1.f, 30.f, 1000.f}) {
    const SplitFactor log2 = split_factor(1.4426950408889634074);
    std::uniform_real_distribution<float> scores(-size, size);
    double worst = 0;
    for (int n = 0; n < 100000; ++n) {
      const float s = scores(random);
      const double exact = s * 1.4426950408889634074, m = std::ceil(exact) + n % 40;
      worst = std::max(worst, relative(softmax_weight(s, log2.high, log2.low, static_cast<float>(m)), std::exp2(exact - m)));
    }
    CHECK(worst < 0x1p-22);  // float's spacing at 1 is 2^-23; the score itself is exact
  }
}

TEST(a_maximum_only_moves_exponents) {
  std::mt19937 random(2);
  std::uniform_real_distribution<float> scores(-50, 50);
  for (int n = 0; n < 10000; ++n) {
    const float s = scores(random), m = std::ceil(s * 1.5f) + 1;
    CHECK(softmax_weight(s, 1.5f, 1e-8f, m) == 0x1p10f * softmax_weight(s, 1.5f, 1e-8f, m + 10));
  }
}

TEST(what_is_not_finite_or_underflows) {
  CHECK(softmax_weight(-kInfinity, 1, 0, 0) == 0 && softmax_weight(-200, 1, 0, 0) == 0);
  CHECK(std::isnan(softmax_weight(NAN, 1, 0, 0)) && std::isnan(softmax_weight(kInfinity, 1, 0, kInfinity)));
  for (int k = -124; k <= 0; ++k) CHECK(power_of_two(static_cast<float>(k)) == std::ldexp(1.f, k));
  CHECK(power_of_two(-kInfinity) == 0 && std::isnan(power_of_two(NAN)));
  for (int k = 0; k < 100; ++k) CHECK(exp2_difference(static_cast<float>(-k)) == std::ldexp(1.f, -k));
}

TEST(states_of_parts_are_that_of_the_whole) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 8);
  for (int n = 0; n < 1000; ++n) {
    RowState whole, parts[2], merged;
    double sum = 0;
    for (int i = 0; i < 20; ++i) {
      const float s = normal(random);
      sum += std::exp2(static_cast<double>(s));
      for (RowState* state : {&whole, &parts[i / 10]}) {
        const float factor = state->raise(s, 1.f);
        state->sum = fmaf(state->sum, factor, softmax_weight(s, 1.f, 0.f, state->base()));
      }
    }
    merged.maximum = fmaxf(parts[0].maximum, parts[1].maximum);
    for (const RowState& part : parts) merged.sum = fmaf(part.sum, merge_factor(part.maximum, merged.maximum), merged.sum);
    CHECK(merged.maximum == whole.maximum && whole.maximum == std::rint(whole.maximum));
    CHECK(relative(whole.sum * std::exp2(static_cast<double>(whole.maximum)), sum) < 0x1p-20);
    CHECK(relative(merged.sum * std::exp2(static_cast<double>(merged.maximum)), sum) < 0x1p-20);
  }
}

TEST(a_row_ends_with_its_denominator) {
  const float sinks[] = {0.f, -3.f, 100.f, -1000.f, -kInfinity};
  for (const float sink : sinks) {
    RowState row;
    row.raise(2.f, 1.f);
    row.sum = 1.5f;  // of 2^2
    const double want = 6 + std::exp(static_cast<double>(sink));
    const RowResult result = finish(row, &sink);
    CHECK(std::fabs(static_cast<double>(result.lse) - std::log(want)) < 1e-6 * std::max(1.0, std::fabs(std::log(want))));
    if (want < 1e38) CHECK(relative(result.factor, 4 / want) < 1e-6);
    const RowResult nothing = finish(RowState(), &sink);
    CHECK(nothing.factor == 0 && nothing.lse == -kInfinity);
  }
  RowState odd;
  odd.sum = NAN;
  CHECK(std::isnan(finish(odd, nullptr).factor) && std::isnan(finish(odd, nullptr).lse));
}

TEST(softcaps_keep_their_digits) {
  for (const float scale : {0.125f, -2.f}) {
    const ScoreTerms terms = score_terms(call_of(scale, 30, false));
    for (float s = -0x1p20f; s <= 0x1p20f; s = s < -1e-8f ? s / 3 : s < 1e-8f ? 2e-8f : s * 3) {
      const double want = 30 * std::tanh(static_cast<double>(s) * static_cast<double>(scale) / 30);
      CHECK(relative(capped(terms.sign * s, terms), want) < 0x1p-21);
    }
    CHECK(std::isnan(capped(NAN, terms)) && capped(kInfinity, terms) == 30 && capped(-kInfinity, terms) == -30);
  }
}

TEST(scores_with_biases_stay_finite) {
  const ScoreTerms terms = score_terms(call_of(0.1f, 0, true));
  CHECK(add_bias(20, 0.5f, terms) == 2.5f);
  CHECK(add_bias(1, std::numeric_limits<float>::lowest(), terms) == -kLargestScore && std::isnan(add_bias(NAN, 0, terms)));
  const ScoreTerms plain = score_terms(call_of(0.1f, 0, false));
  CHECK(relative(static_cast<double>(plain.log2.high) + static_cast<double>(plain.log2.low), 0.1f * 1.4426950408889634074) <
        0x1p-45);
}

TEST(fragments_have_the_same_softmax) {
  emulated::run_grid(dim3(1), dim3(32), 0, [] {
    // Scores of 16 rows and 16 keys: row r, key j has (7 r + 3 j) % 11, hidden where r + j is a multiple of 4.
    const int row = static_cast<int>(threadIdx.x) / 4, first = 2 * (static_cast<int>(threadIdx.x) % 4);
    float s[2][4], rescale[2];
    const auto score = [](int r, int key) {
      return (r + key) % 4 == 0 ? kMinusInfinity : static_cast<float>((7 * r + 3 * key) % 11);
    };
    for (int j = 0; j < 2; ++j)
      for (int i = 0; i < 4; ++i) s[j][i] = score(row + 8 * (i / 2), 8 * j + first + i % 2);
    RowStates rows;
    online_softmax<true>(s, {1.f, 0.f}, rows, rescale);
    for (int half = 0; half < 2; ++half) {
      const RowResult result = finish_row(rows.maximum[half], rows.sum[half], nullptr);
      double want = 0;
      for (int key = 0; key < 16; ++key) want += std::exp2(static_cast<double>(score(row + 8 * half, key)));
      CHECK(std::fabs(static_cast<double>(result.lse) - std::log(want)) < 1e-6 * std::log(want));
    }
  });
}

int main() { return run_tests(); }
