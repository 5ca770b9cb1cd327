#pragma once

namespace maskattn {

// Whether this process may use AMX's tiles of bfloat16: the CPU has them, the system saves them, and it was asked for the
// permission that it wants to be asked for, which holds for all threads.
bool amx_permitted();

}  // namespace maskattn
