// The highest scores of rows, on a device.
#pragma once

#include <cstdint>

#include "cuda/decoder/functions.hpp"
#include "cuda/portable.hpp"

namespace maskattn::cuda {

struct BestCall {
  int rows, width, count;  // count: how many of each row, up to width
  const float* scores;     // [rows][width]
  Candidate* found;        // [rows][count], best first
  float* logsumexp;        // [rows], or null
};

// Bytes of device memory that best() needs beside its arrays.
std::size_t best_workspace_bytes(const BestCall& call);
void best(const BestCall& call, void* workspace, Stream stream);

}  // namespace maskattn::cuda
