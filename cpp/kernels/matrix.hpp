// Attention of a block of queries over one segment where a matrix unit multiplies: kMatrixRows rows at a time, whose scores and
// weights stay in the first-level cache between the two products. The reduction is canonical as that of the vector kernels is: an
// element of a product depends on its row and its column alone, and keys that a row does not see add zeros.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// Weights in pieces, [piece][kMatrixRows][kSegment]. A single piece is relative to the row's maximum itself, so that the largest
// weights, on which the most depends, are rounded least; `factor` leads from there to its rounded maximum.
template <int Pieces>
struct SplitWeights {
  std::uint16_t* row;
  float* factor;

  SplitWeights of_row(int r) const { return {row + r * kSegment, factor}; }
  float reference(int r, float top) const {
    const float rounded = round_one(top);
    factor[r] = 1;
    if constexpr (Pieces > 1) return rounded;
    const F32 f = splat(top - rounded);
    factor[r] = fma(exp2_slope(f), f, splat(1.f))[0];
    return top;
  }
  static MASKATTN_INLINE F32 of(F32 s, F32 high, F32 low, F32 m) {
    if constexpr (Pieces == 1)
      return coarse_weight(s, high, m);
    else
      return weight<float>(s, high, low, m);
  }
  MASKATTN_INLINE void put(int key, F32 p0, F32 p1, F32& sum) const {
    if constexpr (Pieces == 1) {
      const I32 pairs = round_to_bfloats(p0, p1);
      std::memcpy(row + key, &pairs, sizeof pairs);
    } else {
      U16 low[Pieces], high[Pieces];
      split<Pieces>(p0, low);
      split<Pieces>(p1, high);
      MASKATTN_UNROLLED(i, Pieces) {
        std::uint16_t* to = row + i * kMatrixRows * kSegment + key;
        std::memcpy(to, &low[i], sizeof low[i]);
        std::memcpy(to + kLanes<float>, &high[i], sizeof high[i]);
      }
    }
    sum += p0;
    sum += p1;
  }
};

// Scratch of `attend`; behind it, for `values_guarded`, values of the keys that one row sees, and its product.
template <int Pieces>
struct MatrixScratch {
  alignas(64) float scores[kMatrixRows * kSegment];
  alignas(64) std::uint16_t weights[Pieces * kMatrixRows * kSegment];

  char* values(int panel, int columns) { return reinterpret_cast<char*>(this + 1) + panel * values_bytes<Pieces>(columns); }
  float* partial(int columns) { return reinterpret_cast<float*>(values(kPanels, columns)); }
  static std::size_t bytes(int columns) {
    return sizeof(MatrixScratch) + kPanels * values_bytes<Pieces>(columns) +
           sizeof(float) * kMatrixRows * static_cast<std::size_t>(columns);
  }
};

// The product of row r once more, over the values of the keys that the row itself sees: a hidden key's was not finite.
template <int Pieces>
void values_guarded(const SegmentArgs& a, int r, const MaskWord* mask, MatrixScratch<Pieces>& scratch, float* partial) {
  const void* values[kPanels] = {};
  for (int p = 0; p < kPanels; ++p) {
    if (mask[p] == 0) continue;
    values[p] = std::memcpy(scratch.values(p, a.columns), a.values[p], values_bytes<Pieces>(a.columns));
    std::uint16_t* element = reinterpret_cast<std::uint16_t*>(scratch.values(p, a.columns));
    for (int pair = 0; pair < Pieces * kPanel / 2; ++pair)
      for (int i = 0; i < 2 * a.columns; ++i, ++element)
        if (!(mask[p] >> (2 * pair + i % 2) % kPanel & 1)) *element = 0;
  }
  multiply_values<Pieces>(scratch.weights + r * kSegment, 1, mask, values, a.columns, scratch.partial(a.columns));
  std::memcpy(partial, scratch.partial(a.columns), sizeof(float) * static_cast<std::size_t>(a.columns));
}

template <int Pieces>
void attend(const SegmentArgs& a) {
  auto& scratch = *static_cast<MatrixScratch<Pieces>*>(a.scratch);
  const int depth = padded(a.head_dim);
  for (int first = 0; first < a.rows; first += kMatrixRows) {
    const int rows = a.rows - first < kMatrixRows ? a.rows - first : kMatrixRows;
    const MaskWord* mask = a.mask ? a.mask + first * kPanels : nullptr;
    MaskWord group[kPanels];
    for (int p = 0; p < kPanels; ++p) group[p] = mask ? any_row(mask + p, rows) : ~MaskWord{0};
    multiply_keys<Pieces>(static_cast<const std::uint16_t*>(a.queries) + first * depth, rows, depth, a.keys, mask, group,
                          scratch.scores);
    if (a.cap != 0) cap<float>({scratch.scores, mask, rows, a.cap_hi, a.cap_lo, a.cap});
    const SoftmaxArgs<float> args{scratch.scores,
                                  mask,
                                  a.bias ? a.bias + first * kSegment : nullptr,
                                  rows,
                                  a.scale_hi,
                                  a.scale_lo,
                                  a.log2_hi,
                                  a.log2_lo,
                                  a.maximum + first,
                                  a.sum + first};
    softmax_group(args, 0, rows, group, SplitWeights<Pieces>{scratch.weights, a.factor + first});
    for (int r = first; r < first + rows; ++r) a.sum[r] *= a.factor[r];
    float* partial = a.partial + first * a.columns;
    multiply_values<Pieces>(scratch.weights, rows, mask, a.values, a.columns, partial);
    for (int r = 0; mask && r < rows; ++r)
      if (a.sum[first + r] != 0 && !all_finite<float>(partial + r * a.columns, a.columns))
        values_guarded<Pieces>(a, r, mask + r * kPanels, scratch, partial + r * a.columns);
  }
}

template <int Pieces>
inline constexpr MatrixTable matrix_table{
    query_bytes<Pieces>,
    keys_bytes<Pieces>,
    values_bytes<Pieces>,
    MatrixScratch<Pieces>::bytes,
    split_query<Pieces>,
    {pack_pairs_of_keys<Pieces, float>, nullptr, pack_pairs_of_keys<Pieces, Half>, pack_pairs_of_keys<Pieces, Bfloat>,
     pack_pairs_of_keys<Pieces, std::int8_t>},
    {pack_pairs_of_values<Pieces, float>, nullptr, pack_pairs_of_values<Pieces, Half>, pack_pairs_of_values<Pieces, Bfloat>,
     pack_pairs_of_values<Pieces, std::int8_t>},
    attend<Pieces>,
    begin_tiles,
    end_tiles};

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
