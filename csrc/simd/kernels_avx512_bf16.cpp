#include "avx512.h"

#include "kernels_table.h"

namespace plr_kernels {

extern const Kernels kernels_avx512_bf16;
const Kernels kernels_avx512_bf16 = table("avx512_bf16");

}  // namespace plr_kernels
