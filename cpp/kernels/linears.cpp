// The packed products of one instruction set; compiled once for each, with its own flags. One symbol leaves the object file.
#include "linear_table.hpp"
#include "table.hpp"

#include MASKATTN_ISA_HEADER

#include "memory.hpp"
#include "tile_table.hpp"

#include "exponential.hpp"

#include "elementwise.hpp"
#include "linear.hpp"

namespace maskattn::MASKATTN_ISA {
namespace {

constexpr LinearTable linears{
    {multiply_floats<FloatWeights>, multiply_floats<BfloatWeights>, multiply_integers}, quantize, layer_norm, rms_norm, activate};

}  // namespace
}  // namespace maskattn::MASKATTN_ISA

MASKATTN_EXPORT(linears, LinearTable, linears)
