/* THE contract between the SIMD kernels (this folder) and the drivers (conv_gemm.pxi, pool.pxi, ...).
 *
 * Kernels know vectors and nothing else: no threads, no allocation, no Python, no errors.  Every kernel is written
 * once, over `vec` and `REAL` (vec.h), and compiled for float and double by each isa_*.c; `fc_kernels` is what one of
 * those six compilations exports.  Arrays are passed as `void *` and mean `REAL *`; sizes, strides and offsets count
 * elements.
 *
 * The micro-kernel multiplies a row panel of A by a column panel of B, each stored in the order in which it is read:
 *
 *        A panel  [k][mr]                  B panel  [k][nr]                    C tile  [mr][nr]
 *       +----------------+       +------------------------------+       +------------------------------+
 *   k=0 | a0 a1 ... a7   |   k=0 | b0 ... b15|b16..b31|b32..b47 |       | c00 c01 ...            c0,47 |
 *   k=1 | a0 a1 ... a7   |   k=1 | b0 ...                       |       |  :                           |
 *     : |  broadcast     |     : |  whole vectors               |       | c70 c71 ...            c7,47 |
 *       +----------------+       +------------------------------+       +------------------------------+
 *
 * The tile stays in registers for all k: mr x (nr / lanes) accumulators + nr / lanes vectors of B + 1 broadcast.
 *
 *                 mr  nr(f32)  accumulators  registers used
 *     avx512       8       48            24        28 of 32
 *     avx2         6       16            12        15 of 16
 *     sse2         4        8             8        11 of 16
 *     neon         8       12            24        28 of 32
 *
 * In a convolution M (rows of C) are output channels and N (lanes) are pixels, so that a tile is NCHW as it leaves the
 * registers; in its weight gradient the rows are (channel, tap) pairs and the lanes are output channels.
 */
#ifndef FASTCONV_MICRO_H
#define FASTCONV_MICRO_H

#include <stddef.h>
#include <stdint.h>

/* A run: `len` pixels of one output row that stand side by side in a panel, starting at column `col`. */
typedef struct {
    int32_t col, len;
    ptrdiff_t n, d, h, w; /* image and output position of the first pixel */
} fc_run;

enum { FC_MAX_RUNS = 64 }; /* pixels that are packed together, at least a panel: one pixel a run is the worst case */

/* A slot: `lanes` neighbouring pixels of the copied rows, those of `bits` output pixels that lie side by side. */
typedef struct {
    ptrdiff_t in, out; /* offsets in the copied rows, and of the first real one in the output */
    uint32_t bits;
} fc_slot;

/* A sweep: one stride-`step` pass of a filter over a batch of images, the work that a packed implicit GEMM does.
 * Output pixel (d, h, w) reads input (d, h, w) * step + taps[t], zero outside the image.  A forward convolution is one
 * sweep; the input gradient of a stride-s convolution is one sweep for each of its s^n output residues. */
typedef struct {
    ptrdiff_t n;        /* images */
    ptrdiff_t channels; /* input channels of a group */
    ptrdiff_t rows;     /* output channels of a group */
    ptrdiff_t in[3], out[3];         /* extents d, h, w of the input and of the output grid */
    ptrdiff_t step[3];  /* input pixels between neighbouring output pixels */
    ptrdiff_t in_image; /* elements between images of the input; a channel is in[0] * in[1] * in[2] */
    ptrdiff_t out_image, out_channel, out_pixel[3];   /* elements between images, channels, pixels of the output */
    ptrdiff_t out_base; /* first element of the output grid */
    ptrdiff_t ntaps;
    const int32_t *taps;      /* [ntaps][3] input offset of each tap */
    const ptrdiff_t *weights; /* [ntaps] element offset of each tap within a (row, channel) filter */
    ptrdiff_t packed; /* where this sweep's panels start in the packed weights */
} fc_sweep;

/* One output row of a pool: the windows whose first elements lie at start + (0, 0, o * step), o < out. */
typedef struct {
    const void *x;   /* plane */
    ptrdiff_t in[3]; /* extents of the plane */
    ptrdiff_t start[2];     /* first input index d, h under the row, may be negative */
    ptrdiff_t before; /* padding in front of column 0 */
    ptrdiff_t kernel[3], dilation[3];
    ptrdiff_t step; /* input pixels between neighbouring outputs along w */
    ptrdiff_t out;  /* outputs in the row */
    ptrdiff_t pad_after[3]; /* extent of the padding behind the image, for the average's divisor */
    int count_include_pad;
    ptrdiff_t divisor; /* 0: the window's */
    void *line; /* scratch: a row with its padding; `line_size` behind, its maxima's rows or a mean's shares */
    ptrdiff_t skip; /* columns of padding that no tap needs, left out of the line */
    ptrdiff_t line_end, line_size; /* columns that taps read; elements with what vectors read beyond */
    ptrdiff_t channels, block;     /* channels last: of a pixel; how many of them are wanted, all unless w is 1 */
    ptrdiff_t rows[2], stride[2], pad[2]; /* extents of the output, strides and paddings along d and h */
} fc_pool_row;

/* Up to `lanes` channels of an image, seen from (row, col) on in steps: what Winograd's tiles are cut from. */
typedef struct {
    ptrdiff_t plane; /* elements between channels */
    int channels;
    ptrdiff_t height, width, row, col, step[2];
} fc_image;

/* Where Winograd's tiles lie in a patch, in pixels: the rows and columns of a tile, tiles below and beside one another. */
typedef struct {
    ptrdiff_t row, col, down, across;
    int tiles_h, tiles_w;
    int overlap; /* the last column of a tile is the first of its next row */
    int flat;    /* tiles are a column */
} fc_tiles;

/* A padded copy of rows of a plane, phases modulo the step apart; see copy_rows. */
typedef struct {
    ptrdiff_t height, width; /* of the plane */
    ptrdiff_t step[2], left; /* along h, w; the column that the first phase starts with */
    ptrdiff_t columns;       /* of a phase */
    ptrdiff_t row, phase;    /* in the copy: between rows of a phase, between phases */
    const void *end;         /* of all planes: vectors may be read up to it */
} fc_copy;

/* A depthwise convolution's plane; see depthwise.h. */
typedef struct {
    ptrdiff_t in[2], out[2]; /* extents h, w */
    ptrdiff_t kernel[2], step; /* kernel[0] is 1, 3, 5 or 7, step 1 or 2 */
    ptrdiff_t weight_step;     /* 1, or -1 for a filter that is read from its end */
    ptrdiff_t top, left;       /* input position of the first tap of output (0, 0) */
    ptrdiff_t first, last;     /* output rows wanted */
    ptrdiff_t band_rows, band_cols; /* outputs (pairs, where a gradient is spread) whose inputs are copied at once */
    ptrdiff_t pitch;                /* of the copy */
    void *band;                     /* the copy */
    const void *end;                /* of all planes: vectors may be read up to it */
} fc_plane;

/* Where the indices of consecutive outputs o may lie: less than extent[o] behind the first element of a row of the
 * window, base + first[o] + kd * pitch[0] + kh * pitch[1], at multiples of the dilation, and inside the plane.
 * Positions are below 2^31, sums are taken modulo 2^32. */
typedef struct {
    uint32_t plane, base; /* elements of the plane; offset of the first output's window */
    const uint32_t *first, *extent;
    ptrdiff_t rows[2], pitch[2]; /* along d and h: how many, and elements between them */
    uint32_t dilation;           /* along w */
} fc_pool_windows;

/* What is fetched into the caches while something else is computed. */
typedef struct {
    const void *a; /* during the last rows: as many contiguous elements as a tile reads of A, into the first level */
    const void *b; /* at each k of each tile of rows the line there, into the second level */
    ptrdiff_t b_step; /* bytes */
} fc_ahead;

/* What becomes of a finished tile before it is stored */
typedef struct {
    const void *residual; /* is added, or NULL; rows as far apart as those of C */
    int activation;       /* FC_NONE, FC_RELU or FC_RELU6 */
} fc_finish;

/* A tap, or the first of a run, of a depthwise filter whose channels come last: elements from an output's pixel, and of
 * its weights */
typedef struct {
    ptrdiff_t x, w;
} fc_tap;

/* How outputs of a row are computed whose channels come last; see depthwise_last.h.  Runs of 2 to 5 or 7 taps take eight
 * outputs or more and a step of one pixel or, if they are 3, 5 or 7, of two. */
typedef struct {
    const fc_tap *run;
    ptrdiff_t runs, length;         /* taps of a run, neighbours in x */
    ptrdiff_t weight_step;          /* between the weights of a run's taps */
    ptrdiff_t channels, step, next; /* between outputs in x, in y */
    const fc_finish *finish;        /* or NULL */
    const void *ahead;              /* is fetched meanwhile, */
    ptrdiff_t fetched;              /* so many pixels for an output */
} fc_pixels;

/* The rows of a plane and of what it is unfolded, bordered or pooled to; see rows.h. */
typedef struct {
    ptrdiff_t in[3], out[3]; /* extents; of the columns: positions */
    ptrdiff_t pad[3];        /* in front of the plane */
    ptrdiff_t kernel[3], step[3], dilation[3], tap, pixel; /* columns: windows; elements between taps, positions */
    int mode;                /* border */
    void *line;              /* uneven windows: scratch of a row */
} fc_rows;

typedef struct {
    const char *isa;
    int mr, nr, lanes;

    /* C[rows][cols] (+)= sum_k A[k][i] * B[k][j]; A a packed panel.  bias (one a row, or NULL) starts the sum.  `next`
     * is the panel of A that comes next: where B stays in L1 it is fetched meanwhile.  `finish` may be NULL. */
    void (*gemm)(ptrdiff_t k, const void *a, const void *b, void *c, ptrdiff_t ldc, int rows, int cols, int accumulate,
                 const void *bias, const fc_finish *finish, const void *next);
    /* The same with any number of rows and columns, in panels of A and of B so many elements apart */
    void (*gemm_panels)(ptrdiff_t k, const void *a, ptrdiff_t a_panel, ptrdiff_t rows, const void *b, ptrdiff_t b_panel,
                        ptrdiff_t cols, void *c, ptrdiff_t ldc, int accumulate, const void *bias,
                        const fc_finish *finish);
    /* The same with any number of rows of A, as they lie, lda apart; fetches what `ahead` says. */
    void (*gemm_lines)(ptrdiff_t k, const void *a, ptrdiff_t lda, ptrdiff_t rows, const void *b, void *c, ptrdiff_t ldc,
                       int cols, int accumulate, const fc_ahead *ahead);
    /* The same with A anywhere: its element (i, r, k) is a[row[i] + run[r] + k * step], k < len; B is [runs *
     * len][nr].  The line behind the first row's is fetched.  bias is one a column. */
    void (*gemm_rows)(ptrdiff_t runs, const ptrdiff_t *run, ptrdiff_t len, const void *a, const ptrdiff_t *row,
                      ptrdiff_t step, const void *b, void *c, ptrdiff_t ldc, ptrdiff_t rows, int cols, int accumulate,
                      const void *bias, const fc_finish *finish);
    /* The same with any number of rows of A in blocks of vectors: (i, k) is a[i / lanes * block + k * lanes + i % lanes] */
    void (*gemm_blocks)(ptrdiff_t k, const void *a, ptrdiff_t block, ptrdiff_t rows, const void *b, void *c,
                        ptrdiff_t ldc, int cols, int accumulate);
    /* C[rows][cols] += sum_k a[i * lda + k * step] * b[k][cols], for a few rows */
    void (*gemm_few)(ptrdiff_t k, const void *a, ptrdiff_t lda, ptrdiff_t step, ptrdiff_t rows, const void *b,
                     ptrdiff_t ldb, ptrdiff_t cols, void *c, ptrdiff_t ldc);

    /* weights of rows [0, rows) -> A panel [k = (tap, channel)][mr], zero rows behind the last */
    void (*pack_weights)(const fc_sweep *s, const void *w, ptrdiff_t row_stride, ptrdiff_t channel_stride, int rows,
                         int channels_first, void *a);
    /* pixels of some panels, at most FC_MAX_RUNS, k = (tap, channel) in [k0, k1) -> B panels [k1 - k0][nr], `panel`
     * elements apart, a vector's slack included; padding and stride folded in */
    void (*pack_pixels)(const fc_sweep *s, const fc_run *run, int nruns, const void *x, ptrdiff_t k0, ptrdiff_t k1,
                        void *b, ptrdiff_t panel);
    /* C tile [rows][nr] -> output, run by run: out (+)= tile; `odd`, if not NULL, is that of the pixels between */
    void (*store_runs)(const fc_sweep *s, const fc_run *run, int nruns, const void *tile, const void *odd, int rows,
                       void *out, int accumulate);
    /* src[rows][len] -> dst[len][width], width mr or nr; of the vectors that the rows fill, the lanes behind them become
     * zeros; sums (or NULL) += the sum of each row */
    void (*pack_transposed)(int width, const void *src, ptrdiff_t row_stride, int rows, ptrdiff_t len, void *dst,
                            void *sums);
    /* src[len][cols] -> dst[len][width], likewise */
    void (*pack_rows)(int width, const void *src, ptrdiff_t row_stride, int cols, ptrdiff_t len, void *dst);
    /* src[rows][cols] -> dst[cols][rows] */
    void (*transpose)(const void *src, ptrdiff_t src_stride, ptrdiff_t rows, ptrdiff_t cols, void *dst,
                      ptrdiff_t dst_stride);

    /* c = activation(c + column bias + residual) over a tile; bias and residual may be NULL */
    void (*epilogue)(void *c, ptrdiff_t ldc, int rows, int cols, const void *bias, const void *residual, int activation,
                     double slope);

    void (*add)(ptrdiff_t n, const void *x, void *y); /* y += x */
    void (*sum)(ptrdiff_t n, const void *x, void *y); /* *y = sum x */
    void (*relu)(ptrdiff_t n, const void *x, void *y, int stream); /* y = x <= 0 ? 0 : x */
    void (*relu_backward)(ptrdiff_t n, const void *g, const void *x, void *y, int stream); /* y = x <= 0 ? 0 : g */
    /* y = f(x), or g f'(x) where g is not NULL; see elementwise.h */
    void (*activation)(ptrdiff_t n, const void *g, const void *x, void *y, int activation, double slope);
    void (*softmax)(ptrdiff_t n, const void *x, void *y, int logarithm); /* one row */
    void (*softmax_backward)(ptrdiff_t n, const void *g, const void *y, void *gx, int logarithm);

    /* Batch normalisation; see norm.h.  p is (shift, a, b, c) */
    void (*moments)(ptrdiff_t planes, ptrdiff_t stride, ptrdiff_t n, const void *g, const void *x, double shift,
                    double *sums);
    void (*affine)(ptrdiff_t n, const void *g, const void *x, const double *p, void *y);

    /* Output rows of a pool below one another, `p` being the first; see pool.h. */
    void (*max_pool_rows)(const fc_pool_row *p, ptrdiff_t count, void *y, int64_t *index);
    void (*avg_pool_rows)(const fc_pool_row *p, ptrdiff_t count, void *y);
    /* How many of n indices lie outside their windows; gx[index] += g, n outputs a plane */
    ptrdiff_t (*max_pool_check)(const fc_pool_windows *p, ptrdiff_t n, const int64_t *index);
    void (*max_pool_scatter)(ptrdiff_t planes, ptrdiff_t n, const void *g, const int64_t *index, ptrdiff_t plane,
                             void *gx);
    void (*avg_pool_spread)(const fc_pool_row *p, const void *g, void *gx);
    /* The same for planes that one window covers */
    void (*max_pool_planes)(const fc_pool_row *p, ptrdiff_t planes, void *y, int64_t *index);
    void (*avg_pool_planes)(const fc_pool_row *p, ptrdiff_t planes, void *y);
    void (*avg_pool_fill)(const fc_pool_row *p, ptrdiff_t planes, const void *g, void *gx);

    /* Unfolding, borders, uneven windows; see rows.h */
    void (*unfold)(const fc_rows *r, const void *x, void *columns);
    void (*fold)(const fc_rows *r, const void *columns, void *gx);
    void (*gather_window)(ptrdiff_t channels, ptrdiff_t plane, ptrdiff_t taps, const ptrdiff_t *at, const void *x,
                          void *window);
    void (*scatter_window)(ptrdiff_t channels, ptrdiff_t plane, ptrdiff_t taps, const ptrdiff_t *at, const void *window,
                           void *gx);
    void (*border)(const fc_rows *r, const void *x, void *y);
    void (*fold_border)(const fc_rows *r, const void *y, void *gx);
    void (*uneven_mean)(const fc_rows *r, const void *x, void *y);
    void (*uneven_spread)(const fc_rows *r, const void *g, void *gx);
    void (*uneven_max)(const fc_rows *r, const void *x, void *y, int64_t *index);
    ptrdiff_t (*uneven_check)(const fc_rows *r, const int64_t *index);
    /* One row of pixels whose channels come last; see pool_last.h */
    void (*max_pool_pixels)(const fc_pool_row *p, void *y, int64_t *index);
    void (*avg_pool_pixels)(const fc_pool_row *p, void *y);
    ptrdiff_t (*max_pool_pixels_check)(const fc_pool_row *p, const int64_t *index);
    void (*max_pool_pixels_scatter)(const fc_pool_row *p, const void *g, const int64_t *index, void *gx);
    void (*max_pool_pixels_gather)(const fc_pool_row *p, const void *g, const int64_t *index, void *gx);
    void (*avg_pool_pixels_gather)(const fc_pool_row *p, const void *g, void *gx);

    /* Direct convolution of few channels; see direct.h */
    void (*direct)(int rows, ptrdiff_t slots, ptrdiff_t depth, const void *a, const void *b, const ptrdiff_t *offset,
                   const fc_slot *slot, void *c, ptrdiff_t ldc, ptrdiff_t step, const void *bias,
                   const fc_finish *finish);
    void (*copy_rows)(const fc_copy *copy, const void *plane, ptrdiff_t first, ptrdiff_t rows, void *dst);
    void (*direct_dot)(ptrdiff_t filters, int taps, ptrdiff_t rows, ptrdiff_t cols, const void *g, ptrdiff_t g_filter,
                       ptrdiff_t g_row, const void *x, ptrdiff_t x_row, const ptrdiff_t *offset, void *sum,
                       ptrdiff_t sum_filter);

    /* Depthwise convolution; see depthwise.h */
    void (*depthwise)(const fc_plane *p, const void *x, const void *w, const void *bias, const fc_finish *finish,
                      void *y);
    void (*depthwise_spread)(const fc_plane *p, const void *g, const void *w, void *y);
    void (*depthwise_dot)(const fc_plane *p, const void *x, const void *g, void *sums);
    /* Channels last: `count` outputs of a row; see depthwise_last.h */
    void (*depthwise_pixels)(const fc_pixels *p, ptrdiff_t count, const void *x, const void *w, const void *bias,
                             void *y);
    void (*depthwise_pixels_dot)(ptrdiff_t taps, const fc_tap *tap, ptrdiff_t channels, ptrdiff_t count, const void *x,
                                 ptrdiff_t step, const void *g, void *sums);

    /* Winograd's transforms; see winograd.h */
    void (*load_patch)(const fc_image *x, const void *src, int rows, int cols, void *patch);
    void (*store_patch)(const fc_image *y, const void *patch, int rows, int cols, void *dst);
    void (*winograd_input)(int points, const fc_tiles *t, const void *patch, void *v, ptrdiff_t plane,
                           ptrdiff_t stride);
    void (*winograd_filters)(int points, const void *w, ptrdiff_t row_stride, ptrdiff_t channel_stride, int taps,
                             int lanes, ptrdiff_t count, int flip, void *u, ptrdiff_t plane);
    void (*winograd_gradient)(int m, const fc_tiles *t, const void *patch, void *u, ptrdiff_t plane, ptrdiff_t stride);
    int (*winograd_output)(int points, const void *products, ptrdiff_t plane, ptrdiff_t stride, const fc_tiles *t,
                           const void *bias, int lanes, void *patch);
    int (*winograd_weights)(int points, int r, const void *sums, ptrdiff_t plane, ptrdiff_t stride, ptrdiff_t count,
                            int taps, int lanes, void *w, ptrdiff_t row_stride, ptrdiff_t channel_stride);

    /* fused multiply-adds in registers: returns the number of floating-point operations done */
    double (*fma_peak)(ptrdiff_t repeats, void *sink);
} fc_kernels;

enum { FC_NONE, FC_RELU, FC_RELU6, FC_LEAKY_RELU, FC_SILU, FC_HARDSWISH, FC_SIGMOID, FC_TANH };

enum { FC_REFLECT, FC_REPLICATE, FC_CIRCULAR };

enum { FC_GENERIC, FC_AVX2, FC_AVX512, FC_ISAS };

/* The tables [float, double] of one ISA, or NULL where this machine lacks it. */
const fc_kernels *const *fc_tables(int isa);

#endif
