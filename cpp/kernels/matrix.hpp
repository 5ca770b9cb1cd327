// Attention of a block of queries over one segment where a matrix unit multiplies: kMatrixRows rows at a time, whose scores and
// weights stay in the first-level cache between the two products. The reduction is canonical as that of the vector kernels is: an
// element of a product depends on its row and its column alone, and keys that a row does not see add zeros.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// Weights in terms, see WeightsLayout. A single term is relative to the row's maximum itself, so that the largest
// weights, on which the most depends, are rounded least; `factor` leads from there to its rounded maximum.
template <int Terms>
struct SplitWeights {
  std::uint16_t* row;
  float* factor;

  SplitWeights of_row(int r) const { return {row + r * WeightsLayout<Terms>::row, factor}; }
  float reference(int r, float top) const {
    const float rounded = round_one(top);
    factor[r] = 1;
    if constexpr (Terms > 1) return rounded;
    const F32 f = splat(top - rounded);
    factor[r] = fma(exp2_slope(f), f, splat(1.f))[0];
    return top;
  }
  static MASKATTN_INLINE F32 of(F32 s, F32 high, F32 low, F32 m) {
    if constexpr (Terms == 1)
      return coarse_weight(s, high, m);
    else
      return weight<float>(s, high, low, m);
  }
  MASKATTN_INLINE void put(int key, F32 p0, F32 p1, F32& sum) const {
    if constexpr (Terms == 1) {
      const I32 pairs = round_to_bfloats(p0, p1);
      std::memcpy(row + key, &pairs, sizeof pairs);
    } else {
      U16 low[Terms], high[Terms];
      split<Terms>(p0, low);
      split<Terms>(p1, high);
      MASKATTN_UNROLLED(i, Terms) {
        std::uint16_t* to = row + i * WeightsLayout<Terms>::term + key;
        std::memcpy(to, &low[i], sizeof low[i]);
        std::memcpy(to + kLanes<float>, &high[i], sizeof high[i]);
      }
    }
    sum += p0;
    sum += p1;
  }
};

// Scratch of `attend`; behind it, for `values_guarded`, values of the keys that one row sees, and its product.
template <int Terms>
struct MatrixScratch {
  alignas(64) float scores[kMatrixRows * kSegment];
  alignas(64) std::uint16_t terms[Terms == 1 ? 1 : Terms * kMatrixRows * kSegment];

  std::uint16_t* weights() { return Terms == 1 ? reinterpret_cast<std::uint16_t*>(scores) : terms; }
  char* values(int panel, int columns) { return reinterpret_cast<char*>(this + 1) + panel * values_bytes<Terms>(columns); }
  float* partial(int columns) { return reinterpret_cast<float*>(values(kPanels, columns)); }
  static std::size_t bytes(int columns) {
    return sizeof(MatrixScratch) + kPanels * values_bytes<Terms>(columns) +
           sizeof(float) * kMatrixRows * static_cast<std::size_t>(columns);
  }
};

template <int Terms>
float joined(const std::uint16_t* element, std::ptrdiff_t term) {
  float sum = 0;
  for (int i = 0; i < Terms; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(element[i * term]) << 16;
    float part;
    std::memcpy(&part, &bits, sizeof part);
    sum += part;
  }
  return sum;
}

// The product of row r once more, where it was not finite: first over the values of the keys that the row itself sees, since
// those of hidden keys were multiplied by zero; then element by element where those are not finite themselves, since the smaller
// terms of a weight are zero where an infinity stands.
template <int Terms>
void values_guarded(const SegmentArgs& a, int r, const MaskWord* mask, MatrixScratch<Terms>& scratch, float* partial) {
  const int columns = a.columns;
  const void* values[kPanels] = {};
  for (int p = 0; p < kPanels; ++p) {
    const MaskWord mine = mask ? mask[p] : ~MaskWord{0};
    if (mine == 0) continue;
    values[p] = std::memcpy(scratch.values(p, columns), a.values[p], values_bytes<Terms>(columns));
    std::uint16_t* element = reinterpret_cast<std::uint16_t*>(scratch.values(p, columns));
    for (int pair = 0; pair < Terms * kPanel / 2; ++pair)
      for (int i = 0; i < 2 * columns; ++i, ++element)
        if (!(mine >> (2 * pair + i % 2) % kPanel & 1)) *element = 0;
  }
  float* product = scratch.partial(columns);
  const std::uint16_t* weights = scratch.weights() + r * WeightsLayout<Terms>::row;
  multiply_values<Terms>(weights, 1, mask, values, columns, product);
  for (int c = 0; c < columns; ++c) {
    if (product[c] - product[c] == 0) continue;
    product[c] = 0;
    for (int key = 0; key < kSegment; ++key) {
      const int p = key / kPanel, slot = key % kPanel;
      if (mask && !(mask[p] >> slot & 1)) continue;
      const auto* value = static_cast<const std::uint16_t*>(values[p]) + (slot / 2 * columns + c) * 2 + slot % 2;
      product[c] += joined<Terms>(weights + key, WeightsLayout<Terms>::term) * joined<Terms>(value, kPanel * columns);
    }
  }
  std::memcpy(partial, product, sizeof(float) * static_cast<std::size_t>(columns));
}

// Of rows [first, first + rows): from their scores, which are in scratch, to weights.
template <int Terms>
void weigh(const SegmentArgs& a, int first, int rows, const MaskWord* group, MatrixScratch<Terms>& scratch) {
  SoftmaxArgs<float> softmax = a.softmax;
  softmax.scores = scratch.scores;
  softmax.rows = rows;
  softmax.maximum += first;
  softmax.sum += first;
  if (softmax.mask) softmax.mask += first * kPanels;
  if (softmax.bias) softmax.bias += first;
  if (a.cap.cap != 0) cap<float>({scratch.scores, softmax.mask, rows, a.cap.factor_hi, a.cap.factor_lo, a.cap.cap});
  float* factor = a.factor + first;
  softmax_group(softmax, 0, rows, group, SplitWeights<Terms>{scratch.weights(), factor});
  for (int r = 0; r < rows; ++r) softmax.sum[r] *= factor[r];
}

template <int Terms>
void attend(const SegmentArgs& a) {
  auto& scratch = *static_cast<MatrixScratch<Terms>*>(a.scratch);
  const int depth = padded(a.head_dim);
  for (int first = 0; first < a.softmax.rows; first += kMatrixRows) {
    const int rows = a.softmax.rows - first < kMatrixRows ? a.softmax.rows - first : kMatrixRows;
    const MaskWord* mask = a.softmax.mask ? a.softmax.mask + first * kPanels : nullptr;
    MaskWord group[kPanels];
    for (int p = 0; p < kPanels; ++p) group[p] = !mask || any_row(mask + p, rows) ? ~MaskWord{0} : 0;  // whole panels
    multiply_keys<Terms>(static_cast<const std::uint16_t*>(a.queries) + first * depth, rows, depth, a.keys, mask, group,
                         scratch.scores);
    weigh<Terms>(a, first, rows, group, scratch);
    float* partial = a.partial + first * a.columns;
    multiply_values<Terms>(scratch.weights(), rows, mask, a.values, a.columns, partial);
    for (int r = 0; r < rows; ++r)
      if (a.softmax.sum[first + r] != 0 && !all_finite<float>(partial + r * a.columns, a.columns))
        values_guarded<Terms>(a, r, mask ? mask + r * kPanels : nullptr, scratch, partial + r * a.columns);
  }
}

void attend_few(const SegmentArgs& a) {
  auto& scratch = *static_cast<MatrixScratch<1>*>(a.scratch);
  MaskWord group[kPanels];
  for (int p = 0; p < kPanels; ++p) group[p] = a.seen[p] ? ~MaskWord{0} : 0;
  multiply_keys_directly(static_cast<const std::uint16_t*>(a.queries), a.softmax.rows, a.head_dim, a.key_rows, a.seen,
                         scratch.scores);
  weigh<1>(a, 0, a.softmax.rows, group, scratch);
  multiply_values_of_few(a, scratch.weights());
  bool packed = false;
  for (int r = 0; r < a.softmax.rows; ++r) {
    if (a.softmax.sum[r] == 0 || all_finite<float>(a.partial + r * a.columns, a.columns)) continue;
    if (!packed) pack_all_values(a);
    packed = true;
    values_guarded<1>(a, r, a.softmax.mask ? a.softmax.mask + r * kPanels : nullptr, scratch, a.partial + r * a.columns);
  }
}

template <int Terms>
inline constexpr MatrixTable matrix_table{query_bytes<Terms>,
                                          keys_bytes<Terms>,
                                          values_bytes<Terms>,
                                          MatrixScratch<Terms>::bytes,
                                          split_query<Terms>,
                                          {pack_pairs_of_keys<Terms, float>, nullptr, pack_pairs_of_keys<Terms, Half>,
                                           pack_pairs_of_keys<Terms, Bfloat>, pack_pairs_of_keys<Terms, std::int8_t>},
                                          {pack_pairs_of_values<Terms, float>, nullptr, pack_pairs_of_values<Terms, Half>,
                                           pack_pairs_of_values<Terms, Bfloat>, pack_pairs_of_values<Terms, std::int8_t>},
                                          attend<Terms>,
                                          Terms == 1 ? attend_few : nullptr,
                                          kFewDirect,
                                          begin_tiles,
                                          end_tiles};

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
