// The decoder's matrix products on a device, by cuBLASLt; emulated, by a loop on the host.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda/portable.hpp"
#include "maskattn/attention.hpp"

namespace maskattn::cuda {

// out = scale * x . weight^T + bias, or that added to out. Sums are float32, of products that lose nothing: float32 inputs are
// never rounded to TF32.
struct MatrixProduct {
  int rows, outputs, inputs;
  Dtype dtype;         // of x and weight: float32, bfloat16 or float16
  const void* x;       // [rows][inputs]
  const void* weight;  // [outputs][inputs]
  const float* bias;   // [outputs], or null
  float* out;          // [rows][outputs]
  float scale = 1;
  bool added = false;
};

// Products on one stream. Which kernel the library takes depends on the shape, so the bits of a row may depend on how many rows
// there are.
class MatrixProducts {
 public:
  // `candidates`: files that may be the library, tried after one that the process has loaded and before the loader's own search.
  // Throws std::runtime_error, which says how to install it, where there is none.
  MatrixProducts(const std::vector<std::string>& candidates, Stream stream);
  ~MatrixProducts();
  MatrixProducts(const MatrixProducts&) = delete;
  MatrixProducts& operator=(const MatrixProducts&) = delete;

  void multiply(const MatrixProduct& product);

 private:
  class Library;
  std::unique_ptr<Library> library_;
};

}  // namespace maskattn::cuda
