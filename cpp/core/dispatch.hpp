// Which kernels to run: chosen once at load time, by CPUID or by name.
#pragma once

#include "../kernels/table.hpp"

namespace maskattn {

const Kernels& current_kernels();
template <class T>
const KernelTable<T>& kernel_table();

}  // namespace maskattn
