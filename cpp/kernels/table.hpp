// What the drivers in core/ may ask of an instruction set: a table of leaf functions, one table per set and element type.
// Plain pointers and counts only, so that vector types never cross a file.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskattn {

// A segment is the unit of the canonical reduction: scores of its keys are exponentiated against the segment's own maximum and
// summed in key order from zero; segments are merged in key order. Segment borders are absolute key positions, so no result
// depends on how queries, threads or caches cut the work.
inline constexpr int kSegment = 256;
// Keys are packed in panels of 64, so that one 64-bit word is the mask of one query row in one panel.
inline constexpr int kPanel = 64;
inline constexpr int kPanels = kSegment / kPanel;
// Query rows that share one load of a key: 6 rows x 4 vectors of keys fill 24 of the 32 registers of AVX-512,
// 6 x 2 fill 12 of 16 elsewhere.
inline constexpr int kRowGroup = 6;
// Query rows of a block: the scores of a block (rows x 256) stay in the second-level cache.
inline constexpr int kBlockRows = 192;

// Enough independent multiply-adds to hide their latency (two a cycle, four cycles each), and no more than 16 registers hold.
inline constexpr int kProbeChains = 12;

// The visible keys of a block in one segment: kPanels words per row, bit j of word p = key 64 p + j.
using MaskWord = std::uint64_t;

// The elements that memory may hold, in the order of Dtype (maskattn/attention.hpp): float, double, half, bfloat16, int8.
inline constexpr int kDtypes = 5;

// Up to 64 rows of memory, `stride` elements apart. Rows of int8 have a factor each, `scale_stride` apart.
struct PanelMemory {
  const void* data;
  std::ptrdiff_t stride;
  const float* scales;
  std::ptrdiff_t scale_stride;
};

template <class T>
struct SoftmaxArgs {
  T* scores;             // [rows][kSegment], in: q.k, out: weights 2^(z - round(max z)), 0 where hidden (or left alone
                         // where a whole row group sees nothing of a panel)
  const MaskWord* mask;  // [rows][kPanels], or null when every row sees every key
  const T* bias;         // [rows][kSegment] in units of the scaled score, or null
  int rows;
  T scale_hi, scale_lo;  // with bias: score = q.k * scale + bias; z = score * log2(e)
  T log2_hi, log2_lo;    // factor from score to z; without bias it includes the scale
  T* maximum;            // [rows] out: round(max z), an integer; -inf when the row's weights are all zero
  T* sum;                // [rows] out: sum of the weights
};

template <class T>
struct ValuesArgs {
  const T* weights;      // [rows][kSegment]
  const MaskWord* mask;  // as above; keys that no row sees are not read
  int rows;
  const T* v[kPanels];  // value of each panel's first key; v_stride elements to the next key
  std::ptrdiff_t v_stride;
  int columns;         // a multiple of the lanes; each row of v has that many readable elements
  const T* old_scale;  // [rows] out = out * old_scale + (weights . v) * new_scale, powers of two
  const T* new_scale;  // [rows] 0 leaves the row alone
  T* out;              // [rows][columns]
  T* partial;          // scratch [rows][columns]
};

template <class T>
struct CapArgs {
  T* scores;             // [rows][kSegment], in: q.k, out: cap * tanh(q.k * scale / cap)
  const MaskWord* mask;  // as in SoftmaxArgs; panels that a row does not see are left alone
  int rows;
  T factor_hi, factor_lo;  // 2 log2(e) * scale / cap
  T cap;
};

template <class T>
struct KernelTable {
  int lanes;
  // Functions that know memory have one version for each Dtype; null for float over arrays of double (but a row of
  // them is read, for biases) and for rows of int8 alone.
  //
  // Transposes up to 64 keys of head_dim elements into panel[head_dim][kPanel]. Keys whose bit in `seen` is clear are not read;
  // their columns stay as they were, or become zero if they share a vector with a key that is seen.
  void (*pack_keys[kDtypes])(const PanelMemory& keys, MaskWord seen, int head_dim, T* panel);
  // Copies the rows whose bit in `seen` is set to to[row * columns], zeros behind their `dim` elements.
  void (*read_values[kDtypes])(const PanelMemory& values, MaskWord seen, int dim, int columns, T* to);
  void (*read_row[kDtypes])(const void* from, int count, T* to);
  void (*write_row[kDtypes])(const T* from, int count, void* to);
  // Scores of `rows` queries, each where its pointer says, against one packed panel: one FMA chain per 32 values of head_dim,
  // chains added in order. scores[row * kSegment + key]. `mask` (word of row r: mask[r * kPanels]) or null; vectors of keys that
  // a group of rows does not see are skipped.
  void (*scores)(const T* const* q, int rows, const T* panel, int head_dim, const MaskWord* mask, T* scores);
  void (*cap)(const CapArgs<T>& args);
  void (*softmax)(const SoftmaxArgs<T>& args);
  void (*values)(const ValuesArgs<T>& args);
  // out = out * old_scale + part * new_scale for one row, in the arithmetic of `values`.
  void (*merge)(T* out, const T* part, T old_scale, T new_scale, int columns);
  // Nothing but multiply-adds, to see how many there can be a second: `rounds` of kProbeChains independent vectors.
  void (*multiply_add)(std::int64_t rounds, T* sums);
};

// Matrix units multiply bfloat16 numbers. An element becomes the sum of 1, 2 or 3 of them ("pieces", the largest first): one is
// all of a bfloat16 and half of a float's digits, three are all of a float. Products of small pieces are left out.
inline constexpr int kPieces = 3;
// Query rows that go through scores, softmax and values together, so that their scores stay in the first-level cache.
inline constexpr int kMatrixRows = 32;
static_assert(kBlockRows % kMatrixRows == 0);

// A block of queries and a segment of keys, as `split_query`, `pack_keys` and `pack_values` left them.
struct SegmentArgs {
  const void* queries;
  const void* keys[kPanels];  // null where no row sees a key of the panel
  const void* values[kPanels];
  int rows, head_dim, columns;
  const MaskWord* mask;  // as in SoftmaxArgs, and so are the next
  const float* bias;
  float scale_hi, scale_lo, log2_hi, log2_lo;
  float cap, cap_hi, cap_lo;  // see CapArgs; cap 0: none
  float* maximum;
  float* sum;
  float* factor;   // [rows] out: weights and their product with v are to be multiplied by this, and the sum was
  float* partial;  // [rows rounded up to kMatrixRows][columns] out: weights . v
  void* scratch;
};

// What takes the place of KernelTable's functions where a matrix unit multiplies; sizes in bytes.
struct MatrixTable {
  std::size_t (*query_bytes)(int head_dim);   // of a block
  std::size_t (*keys_bytes)(int head_dim);    // of a panel
  std::size_t (*values_bytes)(int columns);   // of a panel
  std::size_t (*scratch_bytes)(int columns);  // of a call of `attend`
  void (*split_query)(const float* from, int row, int head_dim, void* queries);
  // As in KernelTable; columns of keys that are not seen keep their bits, and so do their values, which must be finite.
  void (*pack_keys[kDtypes])(const PanelMemory& keys, MaskWord seen, int head_dim, void* panel);
  void (*pack_values[kDtypes])(const PanelMemory& values, MaskWord seen, int dim, int columns, void* panel);
  void (*attend)(const SegmentArgs& args);
  // Around the calls of `attend`, on the same thread; null where there is nothing to do.
  void (*begin)();
  void (*end)();
};

struct Kernels {
  KernelTable<float> f32;
  KernelTable<double> f64;
};

struct Matrices {
  const MatrixTable* by_pieces[kPieces + 1];  // null where the vector kernels are the better ones
};

}  // namespace maskattn
