// Scores of few queries straight from memory. A panel would be written and read again for one group of rows; and while its scores
// are computed nothing would be asked of memory, which is what a decode waits for.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

template <class S>
struct DirectScores {
  static constexpr int kVectors = MASKATTN_KEY_VECTORS / 2, kKeys = kVectors * kLanes<float>;
  static constexpr int kParts = 4 / sizeof(S);  // elements of a word, which is 4 bytes
  static constexpr int kStep = 4 * kParts;      // coordinates that are transposed at once

  // Rows queries x kKeys keys from `key` of the panel on, all of which are seen. The chains of scores.hpp. `copy`: memory for the
  // keys, or null.
  template <int Rows>
  __attribute__((noinline)) static void run(const float* const* q, const PieceMemory& m, int key, int head_dim, bool fetch,
                                            S* copy, float* scores) {
    F32 scale[kVectors] = {};
    const S* keys[kVectors];
    Prefetcher later[kVectors];
    MASKATTN_UNROLLED(v, kVectors) {
      keys[v] = row_at<S>(m, key + v * kLanes<float>);
      later[v] = prefetch_later<S>(m, key + v * kLanes<float>, head_dim);
      if constexpr (kScaled<S>) scale[v] = load_scales(m, key + v * kLanes<float>);
    }
    const std::ptrdiff_t row_bytes = (copy ? head_dim : m.stride) * static_cast<std::ptrdiff_t>(sizeof(S));
    if (copy)
      MASKATTN_UNROLLED(v, kVectors) {
        S* to = copy + v * kLanes<float> * head_dim;
        for (int i = 0; i < kLanes<float>; ++i)
          std::memcpy(to + i * head_dim, keys[v] + i * m.stride, static_cast<std::size_t>(row_bytes));
        keys[v] = to;
      }
    for (int begin = 0; begin < head_dim; begin += kChain) {
      const int end = head_dim - begin < kChain ? head_dim : begin + kChain;
      F32 acc[Rows][kVectors];
      MASKATTN_UNROLLED(r, Rows)
        MASKATTN_UNROLLED(v, kVectors) acc[r][v] = F32{};
      for (std::ptrdiff_t d = begin; d < end; d += kStep) {
        F32 words[kVectors][4];
        MASKATTN_UNROLLED(v, kVectors) {
          load_words(reinterpret_cast<const char*>(keys[v] + d), row_bytes, words[v]);
          if (fetch) later[v].lines(kLanes<float> / 4);  // a step reads 16 bytes of each key
        }
        MASKATTN_UNROLLED(i, 4)
          MASKATTN_UNROLLED(j, kParts) {
            F32 k[kVectors];
            MASKATTN_UNROLLED(v, kVectors) {
              k[v] = part(keys[v], bits_as<I32>(words[v][i]), j);
              if constexpr (kScaled<S>) k[v] *= scale[v];
            }
            MASKATTN_UNROLLED(r, Rows) {
              const F32 x = splat<float>(q[r][d + i * kParts + j]);
              MASKATTN_UNROLLED(v, kVectors) acc[r][v] = fma(x, k[v], acc[r][v]);
            }
          }
      }
      MASKATTN_UNROLLED(r, Rows)
        MASKATTN_UNROLLED(v, kVectors) {
          float* to = scores + r * kSegment + key + v * kLanes<float>;
          store<float>(to, begin == 0 ? acc[r][v] : load<float>(to) + acc[r][v]);
        }
    }
  }
};

template <class S>
void direct_scores(const float* const* q, int rows, const PieceMemory& m, MaskWord seen, int head_dim, float* panel,
                   float* scores) {
  using Direct = DirectScores<S>;
  static_assert(Direct::kKeys <= kPiece || Direct::kKeys % kPiece == 0);
  constexpr decltype(&Direct::template run<1>) tiles[] = {
      Direct::template run<1>, Direct::template run<2>, Direct::template run<3>, Direct::template run<4>,
      Direct::template run<5>, Direct::template run<6>, Direct::template run<7>, Direct::template run<8>};
  constexpr int most = sizeof tiles / sizeof tiles[0];  // 8 x 2 accumulators, 2 x 4 words and 3 more: 27 of 32 registers
  constexpr MaskWord all = ~MaskWord{0} >> (64 - Direct::kKeys);
  const int groups = (rows + most - 1) / most, group = (rows + groups - 1) / groups;
  // Each line of a key is read in four steps. Keys 4 KB apart, as in arrays of all heads of a token side by side, evict each
  // other from the first-level cache in between, and are copied first.
  S* const copy = m.stride * static_cast<std::ptrdiff_t>(sizeof(S)) % 4096 == 0 ? reinterpret_cast<S*>(panel) : nullptr;
  MaskWord rest = seen;
  if (head_dim % Direct::kStep == 0)
    for (int key = 0; key < kPanel; key += Direct::kKeys) {
      if ((seen >> key & all) != all) continue;
      for (int row = 0; row < rows; row += group)
        tiles[(rows - row < group ? rows - row : group) - 1](q + row, m, key, head_dim, row == 0, copy, scores + row * kSegment);
      rest &= ~(all << key);
    }
  if (rest == 0) return;
  pack_keys<float, S>(m, rest, head_dim, panel);
  constexpr int n = kLanes<float>;
  for (int key = 0; key < kPanel; key += n)
    if (rest >> key & (~MaskWord{0} >> (64 - n)))
      for (int row = 0; row < rows; row += kRowGroup)
        for (int d = 0; d < head_dim; d += kChain) {
          const auto tile = TileTable<ScoresTile<float>>::of(rows - row < kRowGroup ? rows - row : kRowGroup, 1);
          tile(q + row, panel + key, d, head_dim - d < kChain ? head_dim : d + kChain, scores + row * kSegment + key);
        }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
