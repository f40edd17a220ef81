/* One type's kernels and their table.  Included by isa.h with FC_TYPE = f32 or f64. */

#define FC_KERNEL_(op, type, mr, nr, isa) fc_##type##_##op##_##mr##x##nr##__##isa
#define FC_KERNEL__(op, type, mr, nr, isa) FC_KERNEL_(op, type, mr, nr, isa)
#define FC_KERNEL(op) FC_KERNEL__(op, FC_TYPE, FC_MR, FC_NR, FC_ISA)

#include "vec.h"

#include "gemm.h"

#include "pack.h"

#include "elementwise.h"

#include "norm.h"

#include "pool.h"

#include "rows.h"

#include "pool_last.h"

#include "direct.h"

#include "depthwise.h"

#include "depthwise_last.h"

#include "winograd.h"

static const fc_kernels FC_LOCAL(table) = {
    .isa = FC_STRING(FC_ISA),
    .mr = FC_MR,
    .nr = FC_NR,
    .lanes = FC_LANES,
    .gemm = FC_KERNEL(gemm),
    .gemm_panels = FC_KERNEL(gemm_panels),
    .gemm_lines = FC_KERNEL(gemm_lines),
    .gemm_rows = FC_KERNEL(gemm_rows),
    .gemm_blocks = FC_KERNEL(gemm_blocks),
    .gemm_few = FC_KERNEL(gemm_few),
    .pack_weights = FC_KERNEL(pack_weights),
    .pack_pixels = FC_KERNEL(pack_pixels),
    .store_runs = FC_KERNEL(store_runs),
    .pack_transposed = FC_KERNEL(pack_transposed),
    .pack_rows = FC_KERNEL(pack_rows),
    .transpose = FC_KERNEL(transpose),
    .epilogue = FC_KERNEL(epilogue),
    .add = FC_KERNEL(add),
    .sum = FC_KERNEL(sum),
    .relu = FC_KERNEL(relu),
    .relu_backward = FC_KERNEL(relu_backward),
    .activation = FC_KERNEL(activation),
    .softmax = FC_KERNEL(softmax),
    .softmax_backward = FC_KERNEL(softmax_backward),
    .moments = FC_KERNEL(moments),
    .affine = FC_KERNEL(affine),
    .max_pool_rows = FC_KERNEL(max_pool_rows),
    .avg_pool_rows = FC_KERNEL(avg_pool_rows),
    .max_pool_check = FC_KERNEL(max_pool_check),
    .max_pool_scatter = FC_KERNEL(max_pool_scatter),
    .avg_pool_spread = FC_KERNEL(avg_pool_spread),
    .max_pool_planes = FC_KERNEL(max_pool_planes),
    .avg_pool_planes = FC_KERNEL(avg_pool_planes),
    .avg_pool_fill = FC_KERNEL(avg_pool_fill),
    .unfold = FC_KERNEL(unfold),
    .fold = FC_KERNEL(fold),
    .gather_window = FC_KERNEL(gather_window),
    .scatter_window = FC_KERNEL(scatter_window),
    .border = FC_KERNEL(border),
    .fold_border = FC_KERNEL(fold_border),
    .uneven_mean = FC_KERNEL(uneven_mean),
    .uneven_spread = FC_KERNEL(uneven_spread),
    .uneven_max = FC_KERNEL(uneven_max),
    .uneven_check = FC_KERNEL(uneven_check),
    .max_pool_pixels = FC_KERNEL(max_pool_pixels),
    .avg_pool_pixels = FC_KERNEL(avg_pool_pixels),
    .max_pool_pixels_check = FC_KERNEL(max_pool_pixels_check),
    .max_pool_pixels_scatter = FC_KERNEL(max_pool_pixels_scatter),
    .max_pool_pixels_gather = FC_KERNEL(max_pool_pixels_gather),
    .avg_pool_pixels_gather = FC_KERNEL(avg_pool_pixels_gather),
    .direct = FC_KERNEL(direct),
    .copy_rows = FC_KERNEL(copy_rows),
    .direct_dot = FC_KERNEL(direct_dot),
    .depthwise = FC_KERNEL(depthwise),
    .depthwise_spread = FC_KERNEL(depthwise_spread),
    .depthwise_dot = FC_KERNEL(depthwise_dot),
    .depthwise_pixels = FC_KERNEL(depthwise_pixels),
    .depthwise_pixels_dot = FC_KERNEL(depthwise_pixels_dot),
    .load_patch = FC_KERNEL(load_patch),
    .store_patch = FC_KERNEL(store_patch),
    .winograd_input = FC_KERNEL(winograd_input),
    .winograd_filters = FC_KERNEL(winograd_filters),
    .winograd_gradient = FC_KERNEL(winograd_gradient),
    .winograd_output = FC_KERNEL(winograd_output),
    .winograd_weights = FC_KERNEL(winograd_weights),
    .fma_peak = FC_KERNEL(fma_peak),
};
