// Which of the compiled kernels this CPU can run.
#include <cstring>

#if defined(PLR_KERNELS_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace plr_kernels {

extern const Kernels kernels_generic;
#ifdef PLR_KERNELS_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;
const Kernels* kernels_avx512_amx();        // null where they are not compiled
const Kernels* kernels_avx512_amx_parts();  // likewise

namespace {

// Whether the CPU has AMX tiles of bfloat16 and the system keeps their state and lets this process use it. When this is
// called for the first time, it asks the system, for all threads that there are and will be.
bool may_use_tiles() {
#ifdef __linux__
  static const bool permitted = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned xsave_is_used = 1u << 27, bfloat16 = 1u << 22, tiles = 1u << 24;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & xsave_is_used) == 0) return false;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & bfloat16) == 0 || (d & tiles) == 0) return false;
    constexpr unsigned tile_states = 3u << 17;  // of XCR0: configuration and data
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    if ((a & tile_states) != tile_states) return false;
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return permitted;
#else
  return false;
#endif
}

}  // namespace
#endif

const Kernels* find_kernels(const char* name) {
  const bool any = std::strcmp(name, "auto") == 0;
  const auto wanted = [&](const char* candidate) { return any || std::strcmp(name, candidate) == 0; };
#ifdef PLR_KERNELS_X86
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f");
  const bool has_avx512_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
  if (wanted("avx512_amx") && has_avx512_bf16 && kernels_avx512_amx() != nullptr && may_use_tiles()) {
    return kernels_avx512_amx();
  }
  // Only by name: on CPUs that slow tiles down, float32 takes longer by them.
  if (!any && wanted("avx512_amx_parts") && has_avx512_bf16 && kernels_avx512_amx() != nullptr && may_use_tiles()) {
    return kernels_avx512_amx_parts();
  }
  // On an Intel CPU with both, products of vectors of bfloat16 took longer than those of float32.
  const bool by_name_only = any && __builtin_cpu_is("intel");
  if (wanted("avx512_bf16") && has_avx512_bf16 && !by_name_only) return &kernels_avx512_bf16;
  if (wanted("avx512") && has_avx512) return &kernels_avx512;
  if (wanted("avx2") && has_avx2) return &kernels_avx2;
#endif
  return wanted("generic") ? &kernels_generic : nullptr;
}

}  // namespace plr_kernels
