// What Python holds of masks on a device.
#pragma once

#include <memory>
#include <vector>

#include "cuda/bindings/array.hpp"
#include "cuda/plan_build.hpp"
#include "cuda/runtime.hpp"

namespace maskattn::cuda {

// A mask's steps and data in the device's memory, ordered on one stream.
struct Program {
  std::shared_ptr<DeviceMemory> memory;
  ProgramView view{};
  std::int64_t spans = 0;  // a row has no more
  std::int64_t bytes = 0;
};

// A mask lowered for one geometry. Work on it is ordered on `stream`.
struct Plan {
  int batch, heads;  // of the geometry; the view's may be 1 where sequences (heads) agree
  PlanExtents extents;
  std::shared_ptr<DeviceMemory> memory;
  PlanView view{};
  std::int64_t bytes = 0;
  int sequences = 1;  // entries of the positions
  const std::int64_t *kv_lengths = nullptr, *q_offset = nullptr;
  int device = 0;
  Stream stream = nullptr;
};

}  // namespace maskattn::cuda
