// The kernels of one instruction set; compiled once for each, with its own flags. One symbol leaves the object file.
#include "table.hpp"

#include MASKATTN_ISA_HEADER

// The order matters: what an ISA header overloads must stand before the kernels that use it.
#include "pack.hpp"
#include "panel_mask.hpp"
#include "tile_table.hpp"

#include "scores.hpp"
#include "softmax.hpp"
#include "values.hpp"

namespace maskattn::MASKATTN_ISA {
namespace {

template <class T>
constexpr KernelTable<T> table() {
  return {kLanes<T>, pack_keys<T>, scores<T>, softmax<T>, values<T>, merge<T>};
}
constexpr Kernels kernels{table<float>(), table<double>()};

}  // namespace
}  // namespace maskattn::MASKATTN_ISA

#define MASKATTN_JOIN2(a, b) a##b
#define MASKATTN_JOIN(a, b) MASKATTN_JOIN2(a, b)
extern "C" __attribute__((visibility("hidden"))) const maskattn::Kernels* MASKATTN_JOIN(maskattn_kernels_, MASKATTN_ISA)() {
  return &maskattn::MASKATTN_ISA::kernels;
}
