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

// Enough independent multiply-adds to hide their latency (two a cycle, four cycles each), and no more than 16 registers hold.
inline constexpr int kProbeChains = 12;

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
                         // where a whole row group sees nothing of a vector)
  const MaskWord* mask;  // [rows][kPanels], or null when every row sees every key
  const T* const* bias;  // of each row [kSegment] in units of the scaled score, or null
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

// The biases of one row in a segment, as an array has them.
template <class T>
struct BiasArgs {
  const void* from;
  std::ptrdiff_t stride;  // elements from key to key
  int count;              // keys there are, at most kSegment
  const MaskWord* seen;   // [kPanels]: panels of which no key is seen are passed over
  T* to;                  // [kSegment], or null: what is hidden is all that is asked
  bool add;               // to what stands there, or in its place
  MaskWord* hidden;       // [kPanels] out: the keys whose bias is -inf
};

// to[i], i < count, is the bias at distance first + i: see DistanceBias in maskattn/attention.hpp.
template <class T>
struct DistanceArgs {
  const double* table;  // [2 reach + 1], or null
  std::int64_t reach;
  double slope;
  std::int64_t first;
  int count;
  T* to;
};

template <class T>
struct KernelTable {
  int lanes;
  // Functions that know memory have one version for each Dtype; null for float over arrays of double (but biases are read)
  // and for rows of int8 alone.
  //
  // Transposes up to 64 keys of head_dim elements into panel[head_dim][kPanel]. Keys whose bit in `seen` is clear are not read;
  // their columns stay as they were, or become zero if they share a vector with a key that is seen.
  void (*pack_keys[kDtypes])(const PieceMemory& keys, MaskWord seen, int head_dim, T* panel);
  // Copies the rows whose bit in `seen` is set to to[row * columns], zeros behind their `dim` elements.
  void (*read_values[kDtypes])(const PieceMemory& values, MaskWord seen, int dim, int columns, T* to);
  void (*read_row[kDtypes])(const void* from, int count, T* to);
  bool (*read_bias[kDtypes])(const BiasArgs<T>& args);  // whether any is hidden
  void (*write_row[kDtypes])(const T* from, int count, void* to);
  void (*write_quotients[kDtypes])(const T* from, int count, T factor, T divisor, void* to);  // from[i] * factor / divisor + 0
  // Scores of `rows` queries, each where its pointer says, against one packed panel: one FMA chain per 32 values of head_dim,
  // chains added in order. scores[row * kSegment + key]. `mask` (word of row r: mask[r * kPanels]) or null; vectors of keys that
  // a group of rows does not see are skipped.
  void (*scores)(const T* const* q, int rows, const T* panel, int head_dim, const MaskWord* mask, T* scores);
  // The same for at most kFewRows rows and a panel in memory: of the keys in `seen`, which is what some row sees. `panel` is
  // scratch. For float only.
  void (*direct_scores[kDtypes])(const T* const* q, int rows, const PieceMemory& keys, MaskWord seen, int head_dim, T* panel,
                                 T* scores);
  void (*distance_bias)(const DistanceArgs<T>& args);
  void (*cap)(const CapArgs<T>& args);
  void (*softmax)(const SoftmaxArgs<T>& args);
  // Over values as memory holds them; for double, of double only.
  void (*values[kDtypes])(const ValuesArgs<T>& args);
  // out = out * old_scale + part * new_scale for one row, in the arithmetic of `values`.
  void (*merge)(T* out, const T* part, T old_scale, T new_scale, int columns);
  // Nothing but multiply-adds, to see how many there can be a second: `rounds` of kProbeChains independent vectors.
  void (*multiply_add)(std::int64_t rounds, T* sums);
};

// Matrix units multiply bfloat16 numbers. An element becomes the sum of 1, 2 or 3 of them, the largest first: one is all of a
// bfloat16 and half of a float's digits, three are all of a float. Products of small terms are left out.
inline constexpr int kTerms = 3;
inline constexpr int kDepth = 32;        // what one product of tiles sums over
inline constexpr int kMostDirect = 512;  // largest head_dim of attend_few
// Query rows that go through scores, softmax and values together, so that their scores stay in the first-level cache.
inline constexpr int kMatrixRows = 32;
static_assert(kBlockRows % kMatrixRows == 0);

// A block of queries and a segment of keys, as `split_query`, `pack_keys` and `pack_values` left them.
struct SegmentArgs {
  const void* queries;
  const void* keys[kPanels];  // null where no row sees a key of the panel
  void* values[kPanels];
  int head_dim, columns;
  SoftmaxArgs<float> softmax;  // scores aside
  CapArgs<float> cap;          // likewise; a cap of 0 is none
  float* factor;               // [rows] out: weights and their product with v are to be multiplied by this; the sum was
  float* partial;              // [rows rounded up to kMatrixRows][columns] out: weights . v
  void* scratch;
  // For attend_few.
  PieceMemory key_rows, value_rows;
  const MaskWord* seen;  // [kPanels], by some row
};

// What takes the place of KernelTable's functions where a matrix unit multiplies; sizes in bytes.
struct MatrixTable {
  std::size_t (*query_bytes)(int head_dim);   // of a block
  std::size_t (*keys_bytes)(int head_dim);    // of a panel
  std::size_t (*values_bytes)(int columns);   // of a panel
  std::size_t (*scratch_bytes)(int columns);  // of a call of `attend`
  void (*split_query)(const float* from, int row, int head_dim, void* queries);
  // As in KernelTable; columns of keys that are not seen keep their bits, and so do their values, which must be finite.
  void (*pack_keys[kDtypes])(const PieceMemory& keys, MaskWord seen, int head_dim, void* panel);
  void (*pack_values[kDtypes])(const PieceMemory& values, MaskWord seen, int dim, int columns, void* panel);
  void (*attend)(const SegmentArgs& args);
  // The same bits for at most `few_rows` rows over bfloat16 keys and values where memory holds them, head_dim a multiple of
  // kDepth up to kMostDirect, as many columns as v has: keys and values need not be packed, `args.values` is room for them.
  // Null where there is no such way.
  void (*attend_few)(const SegmentArgs& args);
  int few_rows;
  // Around the calls of `attend`, on the same thread; null where there is nothing to do.
  void (*begin)();
  void (*end)();
};

struct Kernels {
  KernelTable<float> f32;
  KernelTable<double> f64;
};

struct Matrices {
  const MatrixTable* by_terms[kTerms + 1];  // null where the vector kernels are the better ones
};

}  // namespace maskattn
