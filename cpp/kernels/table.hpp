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
// Up to so many rows a block is a decode: keys and values are read where they are, as fast as they come from memory.
inline constexpr int kFewRows = 6 * kRowGroup;
// Query rows of a block: the scores of a block (rows x 256) stay in the second-level cache.
inline constexpr int kBlockRows = 192;

// The visible keys of a block in one segment: kPanels words per row, bit j of word p = key 64 p + j.
using MaskWord = std::uint64_t;

// The elements that memory may hold, in the order of Dtype (maskattn/attention.hpp): float, double, half, bfloat16, int8.
inline constexpr int kDtypes = 5;

// Rows of memory come in pieces of 16, because pages hold whole pieces: within one, rows are `stride` elements apart.
inline constexpr int kPiece = 16;
// Pieces after a panel, or a segment, that are known as well: they will be read next, and are prefetched.
inline constexpr int kPiecesAhead = 4;

// The rows of a panel, or of a segment. Rows of int8 have a factor each.
struct PieceMemory {
  const void* const* piece;  // [pieces of it + kPiecesAhead]: the first row of each
  std::ptrdiff_t stride;
  const float* const* scales;  // likewise; unused where rows have no factors
  std::ptrdiff_t scale_stride;

  PieceMemory panel(int p) const { return {piece + p * (kPanel / kPiece), stride, scales + p * (kPanel / kPiece), scale_stride}; }
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
  PieceMemory v;       // of the segment
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
  void (*pack_keys[kDtypes])(const PieceMemory& keys, MaskWord seen, int head_dim, T* panel);
  // Copies the rows whose bit in `seen` is set to to[row * columns], zeros behind their `dim` elements.
  void (*read_values[kDtypes])(const PieceMemory& values, MaskWord seen, int dim, int columns, T* to);
  void (*read_row[kDtypes])(const void* from, int count, T* to);
  void (*write_row[kDtypes])(const T* from, int count, void* to);
  // Scores of `rows` queries, each where its pointer says, against one packed panel: one FMA chain per 32 values of head_dim,
  // chains added in order. scores[row * kSegment + key]. `mask` (word of row r: mask[r * kPanels]) or null; vectors of keys that
  // a group of rows does not see are skipped.
  void (*scores)(const T* const* q, int rows, const T* panel, int head_dim, const MaskWord* mask, T* scores);
  // The same for at most kFewRows rows and a panel in memory: of the keys in `seen`, which is what some row sees. `panel` is
  // scratch. For float only.
  void (*direct_scores[kDtypes])(const T* const* q, int rows, const PieceMemory& keys, MaskWord seen, int head_dim, T* panel,
                                 T* scores);
  void (*cap)(const CapArgs<T>& args);
  void (*softmax)(const SoftmaxArgs<T>& args);
  // Over values as memory holds them; for double, of double only.
  void (*values[kDtypes])(const ValuesArgs<T>& args);
  // out = out * old_scale + part * new_scale for one row, in the arithmetic of `values`.
  void (*merge)(T* out, const T* part, T old_scale, T new_scale, int columns);
};

struct Kernels {
  KernelTable<float> f32;
  KernelTable<double> f64;
};

}  // namespace maskattn
