// Masked attention over arrays in a CUDA device's memory: the contract of maskattn/attention.hpp, on a stream.
#pragma once

#include "cuda/plan.hpp"
#include "cuda/portable.hpp"
#include "maskattn/attention.hpp"

namespace maskattn::cuda {

// Everything is in the device's memory but this struct, which kernels get by value; strides are in elements.
struct AttentionCall {
  int batch, q_heads, kv_heads, q_len, kv_len, head_dim, v_head_dim;  // head_dim, v_head_dim: up to 256
  Dtype dtype;  // of q and out, and of k and v but int8 ones: float32, float16 or bfloat16
  Rows<const void> q, k, v;
  Rows<void> out;
  float* lse;                      // [batch][q_heads][q_len], or null; packed: [tokens][q_heads]
  const std::int64_t* q_lengths;   // [batch] where sequences are packed (`starts`): queries of each, at most q_len; else null
  const std::int64_t* kv_lengths;  // and keys of each, or null: what a plan shows past them is not read
  int kv_rows;                     // of packed keys: of all sequences together
  PlanView plan;
  const int* page_table;              // [batch][pages_per_sequence], or null: k and v are contiguous along kv_len
  int pages_per_sequence, page_size;  // page_size: a multiple of 16; stride[0] of k and v leads from page to page
  const float *k_scales, *v_scales;   // [pages][kv_heads][page_size] of int8 keys and values: numbers are int8 * scale; or null
  const int* q_offset;                // [batch]: position of the first query of each sequence, for biases by distance
  const void* bias;                   // or null; element (b, h, i, j) at the sum of index * bias_stride
  Dtype bias_dtype;
  std::int64_t bias_stride[4];
  const float* bias_table;  // [q_heads][2 * reach + 1] by clamped distance, or null
  int bias_reach;
  const float* slopes;   // [q_heads], or null: minus slope * |distance|
  const float* sinks;    // [q_heads], or null
  float scale, softcap;  // softcap 0: none
  Precision precision;   // of float32 products
};

// Bytes of device memory that attention() needs beside its arrays: partial results where keys are split.
std::size_t workspace_bytes(const AttentionCall& call);

// Launches on the stream and returns; no synchronisation, no allocation. Picks the kernel by the shape and the device. A row's
// bits depend on its query, the keys that it sees, their positions, and the kernel: splits are at fixed positions.
void attention(const AttentionCall& call, void* workspace, Stream stream);

// The kernels behind it. Each says whether it can do a call; the last one of the list can do all.
bool wgmma_can(const AttentionCall& call, int compute_capability);  // sm_90a: attention_wgmma.cu
void attention_wgmma(const AttentionCall& call, Stream stream);
bool mma_can(const AttentionCall& call, int compute_capability);  // sm_80 on: attention_mma.cu
void attention_mma(const AttentionCall& call, Stream stream);
bool decode_can(const AttentionCall& call);  // few rows, keys split: attention_decode.cu
std::size_t decode_workspace_bytes(const AttentionCall& call);
void attention_decode(const AttentionCall& call, void* workspace, Stream stream);
void attention_plain(const AttentionCall& call, Stream stream);  // anything, without matrix units: attention_plain.cu

}  // namespace maskattn::cuda
