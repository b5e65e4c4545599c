// Which of the compiled kernels this CPU can run.
#include <cstring>

#include "kernels.h"

namespace plr_kernels {

extern const Kernels kernels_generic;
#ifdef PLR_KERNELS_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;
#endif

const Kernels* find_kernels(const char* name) {
  const bool any = std::strcmp(name, "auto") == 0;
  const auto wanted = [&](const char* candidate) { return any || std::strcmp(name, candidate) == 0; };
#ifdef PLR_KERNELS_X86
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f");
  if (wanted("avx512_bf16") && has_avx512 && __builtin_cpu_supports("avx512bf16")) return &kernels_avx512_bf16;
  if (wanted("avx512") && has_avx512) return &kernels_avx512;
  if (wanted("avx2") && has_avx2) return &kernels_avx2;
#endif
  return wanted("generic") ? &kernels_generic : nullptr;
}

}  // namespace plr_kernels
