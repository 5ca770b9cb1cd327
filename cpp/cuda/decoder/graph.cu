#include "cuda/decoder/graph.hpp"

#include <utility>

namespace maskattn::cuda {

#if defined(__CUDACC__)

OwnStream::OwnStream() {
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  stream_ = stream;
}
OwnStream::~OwnStream() { cudaStreamDestroy(static_cast<cudaStream_t>(stream_)); }

Graph::Graph(Stream stream, std::function<void()> work) : stream_(stream), work_(std::move(work)) {
  const auto own = static_cast<cudaStream_t>(stream_);
  cudaGraph_t graph = nullptr;
  // Of this thread: others may allocate meanwhile.
  check(cudaStreamBeginCapture(own, cudaStreamCaptureModeThreadLocal), "recording a graph");
  try {
    work_();
  } catch (...) {
    if (cudaStreamEndCapture(own, &graph) == cudaSuccess && graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(own, &graph), "recording a graph");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(made, "making a graph executable");
  executable_ = executable;
}
Graph::~Graph() {
  cudaStreamSynchronize(static_cast<cudaStream_t>(stream_));  // it may be running still
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
}

void Graph::replay() const {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), static_cast<cudaStream_t>(stream_)), "launch of a graph");
}

#else

OwnStream::OwnStream() : stream_(nullptr) {}
OwnStream::~OwnStream() = default;
Graph::Graph(Stream stream, std::function<void()> work) : stream_(stream), work_(std::move(work)) {}
Graph::~Graph() = default;
void Graph::replay() const { work_(); }

#endif

}  // namespace maskattn::cuda
