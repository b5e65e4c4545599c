#include "avx512.h"

#include "kernels_table.h"

namespace plr_kernels {

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = table("avx512");

}  // namespace plr_kernels
