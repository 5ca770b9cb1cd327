// The matrix kernels of an instruction set that has a unit for them; its vector kernels are another set's. One symbol leaves the
// object file.
#include "table.hpp"

#include MASKATTN_ISA_HEADER

#include "exponential.hpp"
#include "memory.hpp"
#include "pack.hpp"
#include "panel_mask.hpp"
#include "tile_table.hpp"

#include "softmax.hpp"
#include "values.hpp"

#include "terms.hpp"

#include MASKATTN_TILES
#include "matrix.hpp"

namespace maskattn::MASKATTN_ISA {
namespace {

constexpr Matrices matrices{{MASKATTN_MATRICES}};

}  // namespace
}  // namespace maskattn::MASKATTN_ISA

MASKATTN_EXPORT(matrices, Matrices, matrices)
