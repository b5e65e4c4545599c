#include "generic.h"

#include "kernels_table.h"

namespace plr_kernels {

extern const Kernels kernels_generic;
const Kernels kernels_generic = table("generic");

}  // namespace plr_kernels
