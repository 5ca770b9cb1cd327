// The C ABI of DLPack, from its specification (https://dmlc.github.io/dlpack/latest/c_api.html): 1.x, and 0.x without a version.
// The specification's names without their DL and kDL.
#pragma once

#include <cstdint>

namespace maskattn::dlpack {

enum DeviceType : std::int32_t { CPU = 1, CUDA = 2, CUDAHost = 3, Metal = 8, ROCM = 10, ROCMHost = 11, CUDAManaged = 13 };

struct Device {
  std::int32_t type, id;
};

enum TypeCode : std::uint8_t { Int = 0, UInt = 1, Float = 2, Bfloat = 4, Complex = 5, Bool = 6 };

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: C order (0.x and 1.0, 1.1)
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);

  static constexpr const char *name = "dltensor", *used_name = "used_dltensor";
};

struct Version {
  std::uint32_t major, minor;
};

constexpr std::uint64_t read_only_flag = 1, copied_flag = 2;

struct ManagedTensorVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedTensorVersioned*);
  std::uint64_t flags;
  Tensor tensor;

  static constexpr const char *name = "dltensor_versioned", *used_name = "used_dltensor_versioned";
};

static_assert(sizeof(void*) != 8 || (sizeof(Tensor) == 48 && sizeof(ManagedTensor) == 64 && sizeof(ManagedTensorVersioned) == 80),
              "the layout is an agreement with other libraries");

}  // namespace maskattn::dlpack
