#include "cuda/decoder/matrix_product.hpp"

#include "cuda/numbers.hpp"

namespace maskattn::cuda {

class MatrixProducts::Library {};

MatrixProducts::MatrixProducts(const std::vector<std::string>&, Stream) {}
MatrixProducts::~MatrixProducts() = default;

void MatrixProducts::multiply(const MatrixProduct& p) {
  with_type(p.dtype, [&]<class T>(T) {
    for (int row = 0; row < p.rows; ++row)
      for (int output = 0; output < p.outputs; ++output) {
        const T *x = static_cast<const T*>(p.x) + std::int64_t{row} * p.inputs,
                *weight = static_cast<const T*>(p.weight) + std::int64_t{output} * p.inputs;
        float sum = 0;
        for (int i = 0; i < p.inputs; ++i) sum += to_float(x[i]) * to_float(weight[i]);
        float& out = p.out[std::int64_t{row} * p.outputs + output];
        out = p.scale * sum + (p.bias ? p.bias[output] : 0) + (p.added ? out : 0);
      }
  });
}

}  // namespace maskattn::cuda
