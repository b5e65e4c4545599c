#include "avx2.h"

#include "kernels_table.h"

namespace plr_kernels {

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = table("avx2");

}  // namespace plr_kernels
