#include "cuda/runtime.hpp"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

namespace maskattn::cuda {

OnDevice::~OnDevice() {
  try {
    if (id_ != before_) set_device(before_);
  } catch (...) {
    // An earlier error of the device, which the next call reports.
  }
}

DeviceMemory::~DeviceMemory() {
  if (!data_) return;
  try {
    const OnDevice current(device_);
    device_free(data_, stream_);
  } catch (...) {
    // As above.
  }
}

#if defined(__CUDACC__)

namespace {

cudaStream_t of(Stream stream) { return static_cast<cudaStream_t>(stream); }

Device properties_of(int id) {
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, id), "properties of the device");
    return value;
  };
  return {id, ask(cudaDevAttrMultiProcessorCount),
          10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor),
          static_cast<std::size_t>(ask(cudaDevAttrMaxSharedMemoryPerBlockOptin)), ask(cudaDevAttrPageableMemoryAccess) != 0};
}

// Of each device a pool of ours, which is never destroyed. The device's own gives all memory back whenever somebody waits for the
// stream, and then an allocation takes as long as a kernel.
cudaMemPool_t pool_of(int id) {
  static std::mutex lock;
  static std::vector<cudaMemPool_t> pools;
  const std::lock_guard<std::mutex> hold(lock);
  if (pools.size() <= static_cast<std::size_t>(id)) pools.resize(static_cast<std::size_t>(id) + 1);
  cudaMemPool_t& pool = pools[static_cast<std::size_t>(id)];
  if (pool) return pool;
  cudaMemPoolProps wanted{};
  wanted.allocType = cudaMemAllocationTypePinned;
  wanted.location.type = cudaMemLocationTypeDevice;
  wanted.location.id = id;
  check(cudaMemPoolCreate(&pool, &wanted), "a pool of the device's memory");
  std::uint64_t kept = std::uint64_t{256} << 20;
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept), "a pool of the device's memory");
  return pool;
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // or the next launch would report it
  return 0;
}

int current_device() {
  int id = 0;
  check(cudaGetDevice(&id), "the current device");
  return id;
}

void set_device(int id) { check(cudaSetDevice(id), "choosing a device"); }

int device_of(const void* memory) {
  cudaPointerAttributes found{};
  if (cudaPointerGetAttributes(&found, memory) == cudaSuccess && found.type == cudaMemoryTypeDevice) return found.device;
  cudaGetLastError();  // or the next launch would report it
  return current_device();
}

const Device& device() {
  static std::mutex lock;
  static std::vector<Device*> known;  // never freed: kernels may be launched while the process ends
  const int id = current_device();
  const std::lock_guard<std::mutex> hold(lock);
  if (known.size() <= static_cast<std::size_t>(id)) known.resize(static_cast<std::size_t>(id) + 1);
  Device*& entry = known[static_cast<std::size_t>(id)];
  if (!entry) entry = new Device(properties_of(id));
  return *entry;
}

void* device_alloc(std::size_t bytes, Stream stream) {
  void* memory = nullptr;
  check(cudaMallocFromPoolAsync(&memory, bytes, pool_of(current_device()), of(stream)), "memory of the device");
  return memory;
}
void device_free(void* memory, Stream stream) { check(cudaFreeAsync(memory, of(stream)), "freeing memory of the device"); }
void copy(void* to, const void* from, std::size_t bytes, Stream stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, of(stream)), "a copy");
}
void send(void* to, const void* from, std::size_t bytes, Stream stream) {
  copy(to, from, bytes, stream);
  // Else it has been copied to pinned memory by now.
  if (device().reads_host) synchronize(stream);
}
void set_bytes(void* to, int value, std::size_t bytes, Stream stream) {
  check(cudaMemsetAsync(to, value, bytes, of(stream)), "filling memory");
}
bool capturing(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(of(stream), &status), "the state of a stream");
  return status != cudaStreamCaptureStatusNone;
}
void synchronize(Stream stream) { check(cudaStreamSynchronize(of(stream)), "work on a stream"); }

void wait_for(Stream later, Stream earlier) {
  if (later == earlier) return;
  if (capturing(later) && !capturing(earlier)) {
    // No edge leads from outside into a graph: the host waits, which only a relaxed thread may while others are captured.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode), "waiting for another stream");
    const cudaError_t done = cudaStreamSynchronize(of(earlier));
    cudaThreadExchangeStreamCaptureMode(&mode);
    return check(done, "waiting for another stream");
  }
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  const cudaError_t recorded = cudaEventRecord(event, of(earlier));
  const cudaError_t waited = recorded == cudaSuccess ? cudaStreamWaitEvent(of(later), event, 0) : recorded;
  cudaEventDestroy(event);  // takes effect when it has happened
  check(waited, "waiting for another stream");
}

#else

int device_count() { return 1; }
int current_device() { return 0; }
void set_device(int) {}
int device_of(const void*) { return 0; }
const Device& device() {
  static Device properties{0, 4, 90, emulated::kMostShared, false};
  properties.compute_capability = emulated::settings().compute_capability;
  return properties;
}
void* device_alloc(std::size_t bytes, Stream) {
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!memory) throw std::bad_alloc();
  return std::memset(memory, 0xff, bytes);  // NaN: nothing may count on zeros
}
void device_free(void* memory, Stream) { std::free(memory); }
void copy(void* to, const void* from, std::size_t bytes, Stream) {
  if (bytes) std::memcpy(to, from, bytes);  // or both may be null
}
void send(void* to, const void* from, std::size_t bytes, Stream stream) { copy(to, from, bytes, stream); }
void set_bytes(void* to, int value, std::size_t bytes, Stream) {
  if (bytes) std::memset(to, value, bytes);
}
bool capturing(Stream) { return false; }
void synchronize(Stream) {}
void wait_for(Stream, Stream) {}

#endif

}  // namespace maskattn::cuda
