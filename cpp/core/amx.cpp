#include "amx.hpp"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace maskattn {

#if MASKATTN_EMULATE_AMX
bool amx_permitted() { return true; }
#elif defined(__x86_64__) && defined(__linux__)
bool amx_permitted() {
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // CPUID 7.0 EDX: bfloat16, tiles, int8
  constexpr unsigned kTileStates = 3u << 17;                    // XCR0: configuration and data of tiles
  constexpr long kRequestPermission = 0x1023, kData = 18;       // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kNeeded) != kNeeded) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileStates) == kTileStates && syscall(SYS_arch_prctl, kRequestPermission, kData) == 0;
}
#else
bool amx_permitted() { return false; }
#endif

}  // namespace maskattn
