// What Python holds of masks on a device.
#pragma once

#include <pybind11/numpy.h>

#include <initializer_list>
#include <memory>
#include <variant>
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

// Sequences packed one behind the other, in the device's memory. Work on it is ordered on `stream`.
struct Packing {
  int count, q_len, kv_len, q_tokens, kv_tokens;  // q_len, kv_len: no sequence has more
  std::shared_ptr<DeviceMemory> memory;
  std::int64_t *q_starts, *q_lengths, *kv_starts, *kv_lengths;  // [count]
  Stream stream = nullptr;
};

// [batch] integers of the host, an array of the device, or none.
using Integers = py::array_t<std::int64_t, py::array::c_style>;
using Given = std::variant<std::monostate, Integers, Array>;
using Staged = std::vector<std::shared_ptr<DeviceMemory>>;

// As the device's array; what the host has goes into `staged`, which must live until what reads it has been launched.
GivenIntegers take(const Given& given, const char* name, Stream stream, Staged& staged);
// Arrays of ours may be of other streams: what comes there next, as the end of their memory, waits for `stream`.
void let_go(std::initializer_list<const Given*> given, Stream stream);
// Such integers as an array of ours.
Array integers_of(const std::int64_t* data, int count, std::shared_ptr<DeviceMemory> memory, Stream stream);

}  // namespace maskattn::cuda
