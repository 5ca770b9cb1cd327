// Which kernels to run: chosen once at load time, by CPUID or by name.
#pragma once

#include "../kernels/linear_table.hpp"
#include "../kernels/table.hpp"

namespace maskattn {

struct Set {
  const Kernels& kernels;
  const Matrices& matrices;
};
Set current_set();
const Kernels& current_kernels();
const LinearTable& current_linears();

template <class T>
const KernelTable<T>& table_of(const Kernels& kernels) {
  if constexpr (sizeof(T) == 4)
    return kernels.f32;
  else
    return kernels.f64;
}
template <class T>
const KernelTable<T>& kernel_table() {
  return table_of<T>(current_kernels());
}

}  // namespace maskattn
