# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=True, binding=True
"""fastconv's compiled core: drivers that own threads and memory, over the SIMD kernels of ``micro/``.

Contents
    this file          types, ISA tables, threads, workspace, the one parallel loop
    conv_gemm.pxi      convolution by packed implicit GEMM: output, input gradient, weight gradient
    conv_direct.pxi    convolution of few channels, pixels unpacked: the same three
    conv_last.pxi      depthwise convolution with the channels last: the same three
    conv_winograd.pxi  convolution by Winograd's minimal filtering: the same three
    conv_im2col.pxi    convolution of few pixels by a product of unfolded windows: the same three
    conv_windows.pxi   windows read where they lie: filters of one tap, output whose channels come last
    conv_block.pxi     1x1, depthwise, 1x1 in one pass, channels last
    conv.pxi           the three passes as Python calls them, each by the algorithm of its plan
    linear.pxi         matrix products for fully connected layers, on the same micro-kernel
    pool.pxi           max and average pooling
    elementwise.pxi    activations, softmax, sums
    norm.pxi           batch normalisation
    rows.pxi           unfolding, borders, adaptive pools of uneven windows

Arrays arrive validated, C-contiguous and of one type (``functional.py`` sees to that), whatever their number of
dimensions, and are taken by NumPy's macros (typed memoryviews of four dimensions cost 0.7 us of a call's 2.5):
a driver turns their memory into a job - a struct of pointers and sizes - and runs its tasks.  Every
element is summed in an order that depends on the geometry alone, so results are bitwise equal for any number of
threads.
"""
from cython.parallel cimport parallel, threadid
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from numpy cimport NPY_DOUBLE, NPY_FLOAT, PyArray_CheckExact, PyArray_DATA, PyArray_EMPTY, PyArray_ISCARRAY
from numpy cimport PyArray_ISCARRAY_RO, PyArray_ISSIGNED, PyArray_IS_C_CONTIGUOUS, PyArray_ITEMSIZE, PyArray_NBYTES
from numpy cimport PyArray_SIZE, PyArray_SimpleNewFromData, PyArray_TYPE, import_array, ndarray, npy_intp
from numpy cimport set_array_base

from itertools import product

cdef extern from "micro.h" nogil:
    ctypedef struct fc_run:
        int32_t col, len
        ptrdiff_t n, d, h, w

    ctypedef struct fc_slot:
        ptrdiff_t in_ "in"
        ptrdiff_t out
        uint32_t bits

    ctypedef struct fc_sweep:
        ptrdiff_t n, channels, rows
        ptrdiff_t *in_ "in"
        ptrdiff_t *out
        ptrdiff_t *step
        ptrdiff_t in_image, out_image, out_channel
        ptrdiff_t *out_pixel
        ptrdiff_t out_base, ntaps
        const int32_t *taps
        const ptrdiff_t *weights
        ptrdiff_t packed

    ctypedef struct fc_pool_row:
        const void *x
        ptrdiff_t *in_ "in"
        ptrdiff_t *start
        ptrdiff_t before
        ptrdiff_t *kernel
        ptrdiff_t *dilation
        ptrdiff_t step, out
        ptrdiff_t *pad_after
        int count_include_pad
        ptrdiff_t divisor
        void *line
        ptrdiff_t skip, line_end, line_size, channels, block
        ptrdiff_t *rows
        ptrdiff_t *stride
        ptrdiff_t *pad

    ctypedef struct fc_image:
        ptrdiff_t plane
        int channels
        ptrdiff_t height, width, row, col
        ptrdiff_t *step

    ctypedef struct fc_tiles:
        ptrdiff_t row, col, down, across
        int tiles_h, tiles_w, overlap, flat

    ctypedef struct fc_copy:
        ptrdiff_t height, width
        ptrdiff_t *step
        ptrdiff_t left, columns, row, phase
        const void *end

    ctypedef struct fc_plane:
        ptrdiff_t *in_ "in"
        ptrdiff_t *out
        ptrdiff_t *kernel
        ptrdiff_t step, weight_step, top, left, first, last, band_rows, band_cols, pitch
        void *band
        const void *end

    ctypedef struct fc_pool_windows:
        uint32_t plane, base
        const uint32_t *first
        const uint32_t *extent
        ptrdiff_t *rows
        ptrdiff_t *pitch
        uint32_t dilation

    ctypedef struct fc_ahead:
        const void *a
        const void *b
        ptrdiff_t b_step

    enum:
        FC_RELU6  # the last activation that the micro-kernel applies

    ctypedef struct fc_finish:
        const void *residual
        int activation

    ctypedef struct fc_tap:
        ptrdiff_t x, w

    ctypedef struct fc_pixels:
        const fc_tap *run
        ptrdiff_t runs, length, weight_step, channels, step, next
        const fc_finish *finish
        const void *ahead
        ptrdiff_t fetched

    ctypedef struct fc_rows:
        ptrdiff_t *in_ "in"
        ptrdiff_t *out
        ptrdiff_t *pad
        ptrdiff_t *kernel
        ptrdiff_t *step
        ptrdiff_t *dilation
        ptrdiff_t tap, pixel
        int mode
        void *line

    ctypedef struct fc_kernels:
        const char *isa
        int mr, nr, lanes
        void (*gemm)(ptrdiff_t, const void *, const void *, void *, ptrdiff_t, int, int, int,
                     const void *, const fc_finish *, const void *) noexcept nogil
        void (*gemm_panels)(ptrdiff_t, const void *, ptrdiff_t, ptrdiff_t, const void *, ptrdiff_t, ptrdiff_t, void *,
                            ptrdiff_t, int, const void *, const fc_finish *) noexcept nogil
        void (*gemm_lines)(ptrdiff_t, const void *, ptrdiff_t, ptrdiff_t, const void *, void *, ptrdiff_t, int, int,
                           const fc_ahead *) noexcept nogil
        void (*gemm_rows)(ptrdiff_t, const ptrdiff_t *, ptrdiff_t, const void *, const ptrdiff_t *, ptrdiff_t,
                          const void *, void *, ptrdiff_t, ptrdiff_t, int, int, const void *,
                          const fc_finish *) noexcept nogil
        void (*gemm_blocks)(ptrdiff_t, const void *, ptrdiff_t, ptrdiff_t, const void *, void *, ptrdiff_t, int,
                            int) noexcept nogil
        void (*gemm_few)(ptrdiff_t, const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, const void *, ptrdiff_t, ptrdiff_t,
                         void *, ptrdiff_t) noexcept nogil
        void (*pack_weights)(const fc_sweep *, const void *, ptrdiff_t, ptrdiff_t, int, int, void *) noexcept nogil
        void (*pack_pixels)(const fc_sweep *, const fc_run *, int, const void *, ptrdiff_t, ptrdiff_t,
                            void *, ptrdiff_t) noexcept nogil
        void (*store_runs)(const fc_sweep *, const fc_run *, int, const void *, const void *, int, void *,
                           int) noexcept nogil
        void (*pack_transposed)(int, const void *, ptrdiff_t, int, ptrdiff_t, void *, void *) noexcept nogil
        void (*pack_rows)(int, const void *, ptrdiff_t, int, ptrdiff_t, void *) noexcept nogil
        void (*transpose)(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *, ptrdiff_t) noexcept nogil
        void (*epilogue)(void *, ptrdiff_t, int, int, const void *, const void *, int, double) noexcept nogil
        void (*add)(ptrdiff_t, const void *, void *) noexcept nogil
        void (*sum)(ptrdiff_t, const void *, void *) noexcept nogil
        void (*relu)(ptrdiff_t, const void *, void *, int) noexcept nogil
        void (*relu_backward)(ptrdiff_t, const void *, const void *, void *, int) noexcept nogil
        void (*activation)(ptrdiff_t, const void *, const void *, void *, int, double) noexcept nogil
        void (*softmax)(ptrdiff_t, const void *, void *, int) noexcept nogil
        void (*softmax_backward)(ptrdiff_t, const void *, const void *, void *, int) noexcept nogil
        void (*moments)(ptrdiff_t, ptrdiff_t, ptrdiff_t, const void *, const void *, double, double *) noexcept nogil
        void (*affine)(ptrdiff_t, const void *, const void *, const double *, void *) noexcept nogil
        void (*max_pool_rows)(const fc_pool_row *, ptrdiff_t, void *, int64_t *) noexcept nogil
        ptrdiff_t (*max_pool_check)(const fc_pool_windows *, ptrdiff_t, const int64_t *) noexcept nogil
        void (*max_pool_scatter)(ptrdiff_t, ptrdiff_t, const void *, const int64_t *, ptrdiff_t, void *) noexcept nogil
        void (*avg_pool_rows)(const fc_pool_row *, ptrdiff_t, void *) noexcept nogil
        void (*avg_pool_spread)(const fc_pool_row *, const void *, void *) noexcept nogil
        void (*max_pool_planes)(const fc_pool_row *, ptrdiff_t, void *, int64_t *) noexcept nogil
        void (*avg_pool_planes)(const fc_pool_row *, ptrdiff_t, void *) noexcept nogil
        void (*avg_pool_fill)(const fc_pool_row *, ptrdiff_t, const void *, void *) noexcept nogil
        void (*unfold)(const fc_rows *, const void *, void *) noexcept nogil
        void (*fold)(const fc_rows *, const void *, void *) noexcept nogil
        void (*gather_window)(ptrdiff_t, ptrdiff_t, ptrdiff_t, const ptrdiff_t *, const void *, void *) noexcept nogil
        void (*scatter_window)(ptrdiff_t, ptrdiff_t, ptrdiff_t, const ptrdiff_t *, const void *, void *) noexcept nogil
        void (*border)(const fc_rows *, const void *, void *) noexcept nogil
        void (*fold_border)(const fc_rows *, const void *, void *) noexcept nogil
        void (*uneven_mean)(const fc_rows *, const void *, void *) noexcept nogil
        void (*uneven_spread)(const fc_rows *, const void *, void *) noexcept nogil
        void (*uneven_max)(const fc_rows *, const void *, void *, int64_t *) noexcept nogil
        ptrdiff_t (*uneven_check)(const fc_rows *, const int64_t *) noexcept nogil
        void (*max_pool_pixels)(const fc_pool_row *, void *, int64_t *) noexcept nogil
        void (*avg_pool_pixels)(const fc_pool_row *, void *) noexcept nogil
        ptrdiff_t (*max_pool_pixels_check)(const fc_pool_row *, const int64_t *) noexcept nogil
        void (*max_pool_pixels_scatter)(const fc_pool_row *, const void *, const int64_t *, void *) noexcept nogil
        void (*max_pool_pixels_gather)(const fc_pool_row *, const void *, const int64_t *, void *) noexcept nogil
        void (*avg_pool_pixels_gather)(const fc_pool_row *, const void *, void *) noexcept nogil
        void (*direct)(int, ptrdiff_t, ptrdiff_t, const void *, const void *, const ptrdiff_t *, const fc_slot *,
                       void *,
                       ptrdiff_t, ptrdiff_t, const void *,
                       const fc_finish *) noexcept nogil
        void (*copy_rows)(const fc_copy *, const void *, ptrdiff_t, ptrdiff_t, void *) noexcept nogil
        void (*direct_dot)(ptrdiff_t, int, ptrdiff_t, ptrdiff_t, const void *, ptrdiff_t, ptrdiff_t, const void *,
                           ptrdiff_t, const ptrdiff_t *, void *, ptrdiff_t) noexcept nogil
        void (*depthwise)(const fc_plane *, const void *, const void *, const void *, const fc_finish *,
                          void *) noexcept nogil
        void (*depthwise_spread)(const fc_plane *, const void *, const void *, void *) noexcept nogil
        void (*depthwise_dot)(const fc_plane *, const void *, const void *, void *) noexcept nogil
        void (*depthwise_pixels)(const fc_pixels *, ptrdiff_t, const void *, const void *, const void *,
                                 void *) noexcept nogil
        void (*depthwise_pixels_dot)(ptrdiff_t, const fc_tap *, ptrdiff_t, ptrdiff_t, const void *, ptrdiff_t,
                                     const void *, void *) noexcept nogil
        void (*load_patch)(const fc_image *, const void *, int, int, void *) noexcept nogil
        void (*store_patch)(const fc_image *, const void *, int, int, void *) noexcept nogil
        void (*winograd_input)(int, const fc_tiles *, const void *, void *, ptrdiff_t, ptrdiff_t) noexcept nogil
        void (*winograd_filters)(int, const void *, ptrdiff_t, ptrdiff_t, int, int, ptrdiff_t, int, void *,
                                 ptrdiff_t) noexcept nogil
        void (*winograd_gradient)(int, const fc_tiles *, const void *, void *, ptrdiff_t, ptrdiff_t) noexcept nogil
        int (*winograd_output)(int, const void *, ptrdiff_t, ptrdiff_t, const fc_tiles *, const void *, int,
                               void *) noexcept nogil
        int (*winograd_weights)(int, int, const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, int, int, void *, ptrdiff_t,
                                ptrdiff_t) noexcept nogil
        double (*fma_peak)(ptrdiff_t, void *) noexcept nogil

    const fc_kernels *const *fc_tables(int isa)

ctypedef const fc_kernels *kernels_t

include "runtime.pxi"
include "conv_gemm.pxi"
include "conv_direct.pxi"
include "conv_winograd.pxi"
include "linear.pxi"
include "conv_windows.pxi"
include "conv_im2col.pxi"
include "pool.pxi"
include "elementwise.pxi"
include "norm.pxi"
include "rows.pxi"
include "conv.pxi"
include "conv_last.pxi"
include "conv_block.pxi"
