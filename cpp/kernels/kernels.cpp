// The vector kernels of one instruction set; compiled once for each, with its own flags. One symbol leaves the object file.
#include "table.hpp"

#include MASKATTN_ISA_HEADER

// The order matters: what an ISA header overloads must stand before the kernels that use it.
#include "exponential.hpp"
#include "memory.hpp"
#include "pack.hpp"
#include "panel_mask.hpp"
#include "tile_table.hpp"

#include "bias.hpp"
#include "scores.hpp"
#include "softmax.hpp"
#include "values.hpp"

#include "direct_scores.hpp"
#include "probe.hpp"

namespace maskattn::MASKATTN_ISA {
namespace {

constexpr Kernels kernels{
    {kLanes<float>,
     {pack_keys<float, float>, nullptr, pack_keys<float, Half>, pack_keys<float, Bfloat>, pack_keys<float, std::int8_t>},
     {read_values<float, float>, nullptr, read_values<float, Half>, read_values<float, Bfloat>, read_values<float, std::int8_t>},
     {read_row<float, float>, nullptr, read_row<float, Half>, read_row<float, Bfloat>, nullptr},
     {read_bias<float, float>, read_bias<float, double>, read_bias<float, Half>, read_bias<float, Bfloat>, nullptr},
     {write_row<float, float>, nullptr, write_row<float, Half>, write_row<float, Bfloat>, nullptr},
     {write_quotients<float, float>, nullptr, write_quotients<float, Half>, write_quotients<float, Bfloat>, nullptr},
     scores<float>,
     {direct_scores<float>, nullptr, direct_scores<Half>, direct_scores<Bfloat>, direct_scores<std::int8_t>},
     distance_bias<float>,
     cap<float>,
     softmax<float>,
     {values<float, float>, nullptr, values<float, Half>, values<float, Bfloat>, values<float, std::int8_t>},
     merge<float>,
     multiply_add<float>},
    {kLanes<double>,
     {pack_keys<double, float>, pack_keys<double, double>, pack_keys<double, Half>, pack_keys<double, Bfloat>,
      pack_keys<double, std::int8_t>},
     {read_values<double, float>, read_values<double, double>, read_values<double, Half>, read_values<double, Bfloat>,
      read_values<double, std::int8_t>},
     {read_row<double, float>, read_row<double, double>, read_row<double, Half>, read_row<double, Bfloat>, nullptr},
     {read_bias<double, float>, read_bias<double, double>, read_bias<double, Half>, read_bias<double, Bfloat>, nullptr},
     {write_row<double, float>, write_row<double, double>, write_row<double, Half>, write_row<double, Bfloat>, nullptr},
     {write_quotients<double, float>, write_quotients<double, double>, write_quotients<double, Half>,
      write_quotients<double, Bfloat>, nullptr},
     scores<double>,
     {},
     distance_bias<double>,
     cap<double>,
     softmax<double>,
     {nullptr, values<double, double>, nullptr, nullptr, nullptr},
     merge<double>,
     multiply_add<double>}};

}  // namespace
}  // namespace maskattn::MASKATTN_ISA

MASKATTN_EXPORT(kernels, Kernels, kernels)
