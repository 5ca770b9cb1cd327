// What kernels compute element by element, for the host too.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/portable.hpp"
#include "maskattn/elementwise.hpp"

namespace maskattn::cuda {

// A feed-forward activation of maskattn/elementwise.hpp, or the identity.
enum class Function : int { identity = -1, relu, silu, gelu, gelu_tanh, quick_gelu, tanh };

MASKATTN_HD inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

MASKATTN_HD inline float apply(Function function, float x) {
  switch (function) {
    case Function::relu: return x > 0 ? x : 0;
    case Function::silu: return x * sigmoid(x);
    case Function::gelu: return x * (0.5f + 0.5f * erff(x * 0.70710678f));
    case Function::gelu_tanh: return x * (0.5f + 0.5f * tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case Function::quick_gelu: return x * sigmoid(1.702f * x);
    case Function::tanh: return tanhf(x);
    default: return x;
  }
}

// A score and whose it is. The better of two is the higher, the first of equals.
struct Candidate {
  float value;
  int index;
};
MASKATTN_HD inline bool better(Candidate a, Candidate b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}
// Worse than all others.
MASKATTN_HD inline Candidate no_candidate() { return {-INFINITY, INT32_MAX}; }

}  // namespace maskattn::cuda
