// The vector kernels of one instruction set; compiled once for each, with its own flags. One symbol leaves the object file.
#include "table.hpp"

#include MASKATTN_ISA_HEADER

// The order matters: what an ISA header overloads must stand before the kernels that use it.
#include "memory.hpp"
#include "pack.hpp"
#include "panel_mask.hpp"
#include "tile_table.hpp"

#include "scores.hpp"
#include "softmax.hpp"
#include "values.hpp"

#include "probe.hpp"

namespace maskattn::MASKATTN_ISA {
namespace {

constexpr Kernels kernels{
    {kLanes<float>,
     {pack_keys<float, float>, nullptr, pack_keys<float, Half>, pack_keys<float, Bfloat>, pack_keys<float, std::int8_t>},
     {read_values<float, float>, nullptr, read_values<float, Half>, read_values<float, Bfloat>, read_values<float, std::int8_t>},
     {read_row<float, float>, read_row<float, double>, read_row<float, Half>, read_row<float, Bfloat>, nullptr},
     {write_row<float, float>, nullptr, write_row<float, Half>, write_row<float, Bfloat>, nullptr},
     scores<float>,
     cap<float>,
     softmax<float>,
     values<float>,
     merge<float>,
     multiply_add<float>},
    {kLanes<double>,
     {pack_keys<double, float>, pack_keys<double, double>, pack_keys<double, Half>, pack_keys<double, Bfloat>,
      pack_keys<double, std::int8_t>},
     {read_values<double, float>, read_values<double, double>, read_values<double, Half>, read_values<double, Bfloat>,
      read_values<double, std::int8_t>},
     {read_row<double, float>, read_row<double, double>, read_row<double, Half>, read_row<double, Bfloat>, nullptr},
     {write_row<double, float>, write_row<double, double>, write_row<double, Half>, write_row<double, Bfloat>, nullptr},
     scores<double>,
     cap<double>,
     softmax<double>,
     values<double>,
     merge<double>,
     multiply_add<double>}};

}  // namespace
}  // namespace maskattn::MASKATTN_ISA

MASKATTN_EXPORT(kernels, Kernels, kernels)
