// Devices, memory and order on streams: the few calls of the CUDA runtime that host code makes. Emulated, memory is the host's.
// All throw std::runtime_error with CUDA's words where CUDA refuses.
#pragma once

#include <cstddef>

#include "cuda/portable.hpp"

namespace maskattn::cuda {

struct Device {
  int id, multiprocessors;
  int compute_capability;        // 10 * major + minor
  std::size_t shared_per_block;  // bytes that a block may ask for
  bool reads_host;               // pageable memory of the host, without a copy of it
};

int device_count();  // 0 where there is no driver
int current_device();
void set_device(int id);
int device_of(const void* memory);  // the current one for what is no device's own
const Device& device();             // the current one's properties, asked once

// Makes a device the thread's current one for a while: the default streams' handles mean those of the current device.
class OnDevice {
 public:
  explicit OnDevice(int id) : before_(current_device()), id_(id) {
    if (id_ != before_) set_device(id_);
  }
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_, id_;
};

// Ordered on the stream: memory may be used by what is launched after device_alloc, and until what was launched before
// device_free.
void* device_alloc(std::size_t bytes, Stream stream);
void device_free(void* memory, Stream stream);
void copy(void* to, const void* from, std::size_t bytes, Stream stream);  // in any direction; both are there until it is done
void send(void* to, const void* from, std::size_t bytes, Stream stream);  // from the host's pageable memory, then free to go
void set_bytes(void* to, int value, std::size_t bytes, Stream stream);

// Whether the stream's work is being captured into a graph: what is allocated then is the graph's.
bool capturing(Stream stream);
void synchronize(Stream stream);
// What is launched on `later` from now on waits for what was launched on `earlier` until now; the host does, where `later` is
// captured into a graph.
void wait_for(Stream later, Stream earlier);

// device_alloc and device_free as a scope.
class DeviceMemory {
 public:
  DeviceMemory(std::size_t bytes, Stream stream)
      : device_(current_device()), data_(bytes ? device_alloc(bytes, stream) : nullptr), stream_(stream) {}
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  template <class T = void>
  T* data() const {
    return static_cast<T*>(data_);
  }

 private:
  int device_;
  void* data_;
  Stream stream_;
};

}  // namespace maskattn::cuda
