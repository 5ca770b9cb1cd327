// Memory of the device that calls work in, and arrays of the host on their way there.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/runtime.hpp"

namespace maskattn::cuda {

// Addresses are multiples of what cuBLASLt supposes them to be.
inline std::size_t aligned(std::size_t bytes) {
  constexpr std::size_t unit = 256;
  return (bytes + unit - 1) / unit * unit;
}

inline std::size_t product(std::int64_t a, std::int64_t b, std::size_t bytes) {
  return static_cast<std::size_t>(a) * static_cast<std::size_t>(b) * bytes;
}

// Arrays of the host, which one copy takes to the device; they live until they are packed.
class Parcel {
 public:
  // Where it will stand.
  template <class T>
  std::size_t add(const T* data, std::size_t count) {
    const std::size_t at = bytes_;
    if (count > 0) pieces_.push_back({data, count * sizeof(T), at});
    bytes_ += aligned(count * sizeof(T));
    return at;
  }
  template <class T>
  std::size_t add(const std::vector<T>& data) {
    return add(data.data(), data.size());
  }
  std::size_t bytes() const { return bytes_; }
  std::unique_ptr<unsigned char[]> packed() const {
    auto made = std::make_unique<unsigned char[]>(bytes_);
    for (const Piece& piece : pieces_) std::memcpy(made.get() + piece.at, piece.data, piece.bytes);
    return made;
  }

 private:
  struct Piece {
    const void* data;
    std::size_t bytes, at;
  };
  std::vector<Piece> pieces_;
  std::size_t bytes_ = 0;
};

// Memory that is kept from call to call and grows.
class Arena {
 public:
  // What was there is gone.
  void grow(std::size_t bytes, Stream stream) {
    const std::size_t size = std::max(bytes, 2 * size_);
    size_ = 0;
    memory_.reset();
    memory_ = std::make_unique<DeviceMemory>(size, stream);
    size_ = size;
  }
  std::size_t size() const { return size_; }
  char* data() const { return memory_ ? memory_->data<char>() : nullptr; }

 private:
  std::unique_ptr<DeviceMemory> memory_;
  std::size_t size_ = 0;
};

// Hands out an arena's memory piece by piece; with none it only counts.
class Pieces {
 public:
  explicit Pieces(char* base) : base_(base) {}
  template <class T = void>
  T* take(std::size_t bytes) {
    char* at = base_ ? base_ + used_ : nullptr;
    used_ += aligned(bytes);
    return reinterpret_cast<T*>(at);
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

}  // namespace maskattn::cuda
