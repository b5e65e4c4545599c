// The kernels of avx512_bf16 but for the products of bfloat16, and in the second table those of float32, where the
// compiler knows how to make those; only Linux permits them.
#include "../kernels.h"

#if defined(__AMX_BF16__) && defined(__linux__)

#include "avx512.h"

#include "float32_parts.h"
#include "gemm_tiles.h"

namespace plr_kernels {

extern const Kernels kernels_avx512_bf16;

const Kernels* kernels_avx512_amx() {
  static const Kernels kernels = [] {
    Kernels same = kernels_avx512_bf16;
    same.name = "avx512_amx";
    same.pairs.gemm = tiled_gemm<PairTiles>;
    same.pairs.gemm_transposed = tiled_gemm_transposed<PairTiles>;
    same.pairs.gemm_unpacked = tiled_gemm_unpacked;
    return same;
  }();
  return &kernels;
}

const Kernels* kernels_avx512_amx_parts() {
  static const Kernels kernels = [] {
    Kernels same = *kernels_avx512_amx();
    same.name = "avx512_amx_parts";
    same.parts = {tiled_gemm<PartTiles>, tiled_gemm_transposed<PartTiles>, largest, split_rows, split_scores};
    return same;
  }();
  return &kernels;
}

}  // namespace plr_kernels

#else

namespace plr_kernels {

const Kernels* kernels_avx512_amx() { return nullptr; }
const Kernels* kernels_avx512_amx_parts() { return nullptr; }

}  // namespace plr_kernels

#endif
