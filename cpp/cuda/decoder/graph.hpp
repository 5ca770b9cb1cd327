// A stream of one's own, and launches on it that are recorded once and then replayed as one.
#pragma once

#include <functional>

#include "cuda/portable.hpp"

namespace maskattn::cuda {

class OwnStream {
 public:
  OwnStream();
  ~OwnStream();
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;

  Stream get() const { return stream_; }

 private:
  Stream stream_;
};

// What `work` launches on the stream, with the arguments that it has now; emulated, the work itself. Work neither allocates nor
// synchronises, and its kernels have run before (what is loaded when it is first used cannot be loaded while recording).
class Graph {
 public:
  Graph(Stream stream, std::function<void()> work);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void replay() const;

 private:
  Stream stream_;
  std::function<void()> work_;
  void* executable_ = nullptr;
};

}  // namespace maskattn::cuda
