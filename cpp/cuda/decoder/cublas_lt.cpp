// cuBLASLt, found when it is first needed: its C interface is declared here as far as it is used (NVIDIA, "cuBLASLt API"; types
// and numbers checked against cublasLt.h 13.10), so that building needs no cuBLAS and the package does not depend on it.
#include <dlfcn.h>

#include <map>
#include <stdexcept>
#include <tuple>

#include "cuda/decoder/matrix_product.hpp"
#include "cuda/runtime.hpp"

namespace maskattn::cuda {
namespace {

using Handle = void*;
using Descriptor = void*;  // of a product, a matrix or preferences
using Status = int;        // 0: success

struct Algorithm {  // cublasLtMatmulAlgo_t
  std::uint64_t data[8];
};
struct Heuristic {  // cublasLtMatmulHeuristicResult_t
  Algorithm algorithm;
  std::size_t workspace;
  Status state;
  float waves;
  int reserved[4];
};

// cudaDataType, cublasComputeType_t, cublasLtMatmulDescAttributes_t, cublasLtEpilogue_t, cublasLtMatmulPreferenceAttributes_t.
constexpr int kFloat32 = 0, kFloat16 = 2, kBfloat16 = 14;
constexpr int kComputeFloat32 = 68;  // CUBLAS_COMPUTE_32F; the ones that may use TF32 are others
constexpr int kTransposeA = 3, kEpilogue = 7, kBiasPointer = 8;
constexpr std::int32_t kTransposed = 1;
constexpr std::uint32_t kEpilogueBias = 4;
constexpr int kMostWorkspace = 1;

constexpr std::uint64_t kWorkspace = 32u << 20;  // what NVIDIA advises for Hopper

constexpr const char* kRemedy =
    "device=\"cuda\" needs cuBLASLt, got no libcublasLt.so.13 or .12; pip install \"maskattn[cuda]\" (nvidia-cublas), or put the "
    "CUDA toolkit's lib64 on LD_LIBRARY_PATH";

void* open_library(const std::vector<std::string>& candidates) {
  const char* const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
  for (const char* name : names)
    if (void* loaded = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) return loaded;
  for (const std::string& path : candidates)
    if (void* found = dlopen(path.c_str(), RTLD_NOW)) return found;
  for (const char* name : names)
    if (void* found = dlopen(name, RTLD_NOW)) return found;
  throw std::runtime_error(kRemedy);
}

int type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::bfloat16: return kBfloat16;
    case Dtype::float16: return kFloat16;
    default: return kFloat32;
  }
}

}  // namespace

class MatrixProducts::Library {
 public:
  Library(const std::vector<std::string>& candidates, Stream stream)
      : module_(open_library(candidates)), stream_(stream), workspace_(kWorkspace, stream) {
    find(create_, "cublasLtCreate");
    find(destroy_, "cublasLtDestroy");
    find(create_product_, "cublasLtMatmulDescCreate");
    find(destroy_product_, "cublasLtMatmulDescDestroy");
    find(set_product_, "cublasLtMatmulDescSetAttribute");
    find(create_layout_, "cublasLtMatrixLayoutCreate");
    find(destroy_layout_, "cublasLtMatrixLayoutDestroy");
    find(create_preference_, "cublasLtMatmulPreferenceCreate");
    find(destroy_preference_, "cublasLtMatmulPreferenceDestroy");
    find(set_preference_, "cublasLtMatmulPreferenceSetAttribute");
    find(choose_, "cublasLtMatmulAlgoGetHeuristic");
    find(multiply_, "cublasLtMatmul");
    check(create_(&handle_), "cublasLtCreate");
  }

  ~Library() {
    for (auto& [shape, plan] : plans_) release(plan);
    destroy_(handle_);  // the module stays: others may use it
  }

  void multiply(const MatrixProduct& p) {
    Plan& plan = planned(p);
    if (p.bias) set(plan.product, kBiasPointer, p.bias);
    const float beta = p.added ? 1.0f : 0.0f;
    check(multiply_(handle_, plan.product, &p.scale, p.weight, plan.weight, p.x, plan.x, &beta, p.out, plan.out, p.out, plan.out,
                    &plan.algorithm, workspace_.data(), kWorkspace, stream_),
          "cublasLtMatmul");
  }

 private:
  struct Plan {
    Descriptor product = nullptr, weight = nullptr, x = nullptr, out = nullptr;
    Algorithm algorithm{};
  };
  using Shape = std::tuple<int, int, int, Dtype, bool, bool>;

  // Row-major matrices are column-major ones transposed: out^T (outputs x rows) = weight (as transposed inputs x outputs) . x^T.
  Plan& planned(const MatrixProduct& p) {
    const Shape shape{p.rows, p.outputs, p.inputs, p.dtype, p.bias != nullptr, p.added};
    const auto known = plans_.find(shape);
    if (known != plans_.end()) return known->second;
    const auto rows = static_cast<std::uint64_t>(p.rows), outputs = static_cast<std::uint64_t>(p.outputs),
               inputs = static_cast<std::uint64_t>(p.inputs);
    Plan plan;
    try {
      check(create_product_(&plan.product, kComputeFloat32, kFloat32), "cublasLtMatmulDescCreate");
      set(plan.product, kTransposeA, kTransposed);
      if (p.bias) {
        set(plan.product, kEpilogue, kEpilogueBias);
        set(plan.product, kBiasPointer, p.bias);
      }
      check(create_layout_(&plan.weight, type_of(p.dtype), inputs, outputs, p.inputs), "cublasLtMatrixLayoutCreate");
      check(create_layout_(&plan.x, type_of(p.dtype), inputs, rows, p.inputs), "cublasLtMatrixLayoutCreate");
      check(create_layout_(&plan.out, kFloat32, outputs, rows, p.outputs), "cublasLtMatrixLayoutCreate");
      choose(p, plan);
    } catch (...) {
      release(plan);
      throw;
    }
    return plans_.emplace(shape, plan).first->second;
  }

  void choose(const MatrixProduct& p, Plan& plan) {
    Descriptor preference = nullptr;
    check(create_preference_(&preference), "cublasLtMatmulPreferenceCreate");
    Heuristic found{};
    int count = 0;
    Status status = set_preference_(preference, kMostWorkspace, &kWorkspace, sizeof kWorkspace);
    if (status == 0)
      status = choose_(handle_, plan.product, plan.weight, plan.x, plan.out, plan.out, preference, 1, &found, &count);
    destroy_preference_(preference);
    if (status != 0 || count == 0)
      throw std::runtime_error("cuBLASLt has no algorithm for a product of " + std::to_string(p.rows) + " rows, " +
                               std::to_string(p.inputs) + " inputs and " + std::to_string(p.outputs) + " outputs (status " +
                               std::to_string(status) + ")");
    plan.algorithm = found.algorithm;
  }

  void release(Plan& plan) {
    for (Descriptor layout : {plan.weight, plan.x, plan.out})
      if (layout) destroy_layout_(layout);
    if (plan.product) destroy_product_(plan.product);
  }

  template <class T>
  void set(Descriptor product, int attribute, const T& value) {
    check(set_product_(product, attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  }

  template <class Function>
  void find(Function*& function, const char* name) {
    function = reinterpret_cast<Function*>(dlsym(module_, name));
    if (!function)
      throw std::runtime_error(std::string("libcublasLt must have ") + name + ", got none; install CUDA 12 or newer");
  }

  static void check(Status status, const char* what) {
    if (status != 0) throw std::runtime_error(std::string(what) + " failed, status " + std::to_string(status));
  }

  void* module_;
  Stream stream_;
  Handle handle_ = nullptr;
  DeviceMemory workspace_;
  std::map<Shape, Plan> plans_;

  Status (*create_)(Handle*);
  Status (*destroy_)(Handle);
  Status (*create_product_)(Descriptor*, int compute, int scale);
  Status (*destroy_product_)(Descriptor);
  Status (*set_product_)(Descriptor, int attribute, const void* value, std::size_t bytes);
  Status (*create_layout_)(Descriptor*, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t leading);
  Status (*destroy_layout_)(Descriptor);
  Status (*create_preference_)(Descriptor*);
  Status (*destroy_preference_)(Descriptor);
  Status (*set_preference_)(Descriptor, int attribute, const void* value, std::size_t bytes);
  Status (*choose_)(Handle, Descriptor product, Descriptor a, Descriptor b, Descriptor c, Descriptor d, Descriptor preference,
                    int wanted, Heuristic* found, int* count);
  Status (*multiply_)(Handle, Descriptor product, const void* alpha, const void* a, Descriptor a_layout, const void* b,
                      Descriptor b_layout, const void* beta, const void* c, Descriptor c_layout, void* d, Descriptor d_layout,
                      const Algorithm*, void* workspace, std::size_t workspace_bytes, Stream);
};

MatrixProducts::MatrixProducts(const std::vector<std::string>& candidates, Stream stream)
    : library_(std::make_unique<Library>(candidates, stream)) {}
MatrixProducts::~MatrixProducts() = default;

void MatrixProducts::multiply(const MatrixProduct& product) {
  if (product.rows > 0) library_->multiply(product);
}

}  // namespace maskattn::cuda
