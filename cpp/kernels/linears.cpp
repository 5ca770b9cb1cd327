// The packed products of one instruction set; compiled once for each, with its own flags. One symbol leaves the object file.
#include "linear_table.hpp"
#include "table.hpp"

#include MASKATTN_ISA_HEADER

#include "memory.hpp"
#include "tile_table.hpp"

#include "exponential.hpp"

#include "elementwise.hpp"
#include "linear.hpp"
#include "linear_integers.hpp"

#ifdef MASKATTN_LINEAR_TILES
#include "linear_tiles.hpp"
#endif

namespace maskattn::MASKATTN_ISA {
namespace {

#ifdef MASKATTN_LINEAR_TILES
constexpr auto bfloats = multiply_bfloats_on_tiles;
constexpr auto integers = multiply_integers_on_tiles;
#else
#ifdef MASKATTN_BFLOAT_PAIRS
constexpr auto bfloats = multiply<PairProducts>;
#else
constexpr auto bfloats = multiply<WidenedProducts>;
#endif
constexpr auto integers = multiply_integers;
#endif
#ifdef MASKATTN_BFLOAT_PAIRS
constexpr auto to_bfloats = to_pairs;
#else
constexpr void (*to_bfloats)(const float*, int, int, void*) = nullptr;
#endif

constexpr LinearTable linears{{multiply<FloatProducts>, bfloats, integers, multiply_nibbles<false>, multiply_nibbles<true>},
                              {nullptr, to_bfloats, quantize, quantize_signed, quantize_signed},
                              layer_norm,
                              rms_norm,
                              finish,
                              summarize};

}  // namespace
}  // namespace maskattn::MASKATTN_ISA

MASKATTN_EXPORT(linears, LinearTable, linears)
