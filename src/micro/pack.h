/* Panels: what the micro-kernel reads, written in the order in which it reads it (picture in micro.h).
 *
 * Pixels are flattened over (n, d, h, w) of the output; a panel of nr of them is a list of runs, each inside one
 * output row.  For tap t, lane i of a run reads input column (w + i) * step + taps[t].w, so a run is a few contiguous
 * vectors whose masks say which lanes fall inside the image: padding, stride and dilation are folded in, and im2col
 * never exists in memory.  The masks depend on the tap alone and are reused for every channel. */

/* A chunk: the part of a run that one vector of one panel holds. */
#define chunk_t FC_LOCAL(chunk_t)
typedef struct {
    ptrdiff_t dst;
    int32_t lo, hi;   /* lanes inside the image */
    uint32_t bits[4]; /* their masks in the contiguous vectors that a strided load reads */
    ptrdiff_t src;
} chunk_t;

enum { FC_LOCAL(max_chunks) = 2 * FC_MAX_RUNS + 1 }; /* one pixel a run, or vectors of one run */

#define find_chunks FC_LOCAL(find_chunks)
static int find_chunks(const fc_sweep *s, const fc_run *run, int nruns, const int32_t *tap, ptrdiff_t panel,
                       chunk_t *chunk) {
    const ptrdiff_t step = s->step[2], plane = s->in[0] * s->in[1] * s->in[2];
    const int vectors = step == 1 || step == 2 || step == 4 ? (int)step : 0;
    int nchunks = 0, cols = 0;
    for (int r = 0; r < nruns; r++) {
        const ptrdiff_t d = run[r].d * s->step[0] + tap[0], h = run[r].h * s->step[1] + tap[1];
        const ptrdiff_t w = run[r].w * step + tap[2];
        const int inside = d >= 0 && d < s->in[0] && h >= 0 && h < s->in[1];
        const ptrdiff_t lo = inside ? ceil_div(-w, step) : 0, hi = inside ? ceil_div(s->in[2] - w, step) : 0;
        const ptrdiff_t at = (d * s->in[1] + h) * s->in[2] + w; /* in the plane */
        for (int i = 0, left; i < run[r].len; i += left) {
            chunk_t *c = chunk + nchunks++;
            const int col = run[r].col + i, at_end = FC_NR - col % FC_NR; /* of the panel */
            left = run[r].len - i < FC_LANES ? run[r].len - i : FC_LANES;
            left = left < at_end ? left : at_end;
            c->dst = col / FC_NR * panel + col % FC_NR;
            c->lo = (int32_t)(lo <= i ? 0 : lo - i < left ? lo - i : left);
            c->hi = (int32_t)(hi <= i ? 0 : hi - i < left ? hi - i : left);
            c->src = inside ? run[r].n * s->in_image + at + i * step : 0;
            const int whole = c->lo == 0 && c->hi == left && at + (i + FC_LANES) * step <= plane;
            for (int v = 0; v < vectors; v++)
                c->bits[v] = whole ? FC_ALL
                             : c->hi > c->lo
                                 ? bits_range(c->lo * step - v * FC_LANES, (c->hi - 1) * step + 1 - v * FC_LANES)
                                 : 0;
        }
        cols = run[r].col + run[r].len;
    }
    for (; cols % FC_LANES; cols = (cols / FC_LANES + 1) * FC_LANES) /* zeros up to the end of the last vector */
        chunk[nchunks++] = (chunk_t){.dst = cols / FC_NR * panel + cols % FC_NR};
    return nchunks;
}

/* Whole vectors are loaded where no padding is in the chunk and the plane goes on, and stored in ascending order: what
 * one spills behind its chunk, the next chunk or row overwrites; the last row of the panel spills into the slack that
 * every B block ends with. */
#define pack_channels FC_LOCAL(pack_channels)
FC_INLINE REAL *pack_channels(const int step, const chunk_t *chunk, int nchunks, const REAL *x, ptrdiff_t plane,
                              ptrdiff_t channels, REAL *b) {
    enum { AHEAD = 8 }; /* channels: a few lines of a plane are no stream that the prefetchers see */
    for (ptrdiff_t c = 0; c < channels; c++, x += plane, b += FC_NR)
        for (int i = 0; i < nchunks; i++) {
            FC_UNROLL
            for (int v = 0; v < step; v++) __builtin_prefetch(x + AHEAD * plane + chunk[i].src + v * FC_LANES);
            vec_store(b + chunk[i].dst, vec_load_strided(x + chunk[i].src, step, chunk[i].bits));
        }
    return b;
}

static void FC_KERNEL(pack_pixels)(const fc_sweep *s, const fc_run *run, int nruns, const void *x, ptrdiff_t k0,
                                   ptrdiff_t k1, void *b_, ptrdiff_t panel) {
    const ptrdiff_t plane = s->in[0] * s->in[1] * s->in[2], step = s->step[2];
    chunk_t chunk[FC_LOCAL(max_chunks)];
    REAL *b = b_;
    while (k0 < k1) {
        const ptrdiff_t tap = k0 / s->channels, c0 = k0 % s->channels;
        const ptrdiff_t channels = s->channels - c0 < k1 - k0 ? s->channels - c0 : k1 - k0;
        const REAL *src = (const REAL *)x + c0 * plane;
        const int nchunks = find_chunks(s, run, nruns, s->taps + 3 * tap, panel, chunk);
        if (step == 1)
            b = pack_channels(1, chunk, nchunks, src, plane, channels, b);
        else if (step == 2)
            b = pack_channels(2, chunk, nchunks, src, plane, channels, b);
        else if (step == 4)
            b = pack_channels(4, chunk, nchunks, src, plane, channels, b);
        else
            for (ptrdiff_t c = 0; c < channels; c++, src += plane, b += FC_NR)
                for (int i = 0; i < nchunks; i++) {
                    vec_store(b + chunk[i].dst, (vec){0});
                    for (int l = chunk[i].lo; l < chunk[i].hi; l++) b[chunk[i].dst + l] = src[chunk[i].src + l * step];
                }
        k0 += channels;
    }
}

/* dst (+)= a0 b0 a1 b1 ... */
#define store_pairs FC_LOCAL(store_pairs)
FC_INLINE void store_pairs(const REAL *a, const REAL *b, ptrdiff_t len, REAL *dst, int accumulate) {
    for (ptrdiff_t j = 0; j < len; j += FC_LANES) {
        const uint32_t bits = bits_range(0, len - j);
        const vec va = vec_load_bits(a + j, bits), vb = vec_load_bits(b + j, bits);
        const vec pairs[2] = {vec_zip_lo(va, vb), vec_zip_hi(va, vb)};
        FC_UNROLL
        for (int i = 0; i < 2; i++) {
            const ptrdiff_t at = 2 * j + i * FC_LANES;
            const uint32_t some = bits_range(0, 2 * len - at);
            if (!some) break;
            vec_store_bits(dst + at, accumulate ? pairs[i] + vec_load_bits(dst + at, some) : pairs[i], some);
        }
    }
}

static void FC_KERNEL(store_runs)(const fc_sweep *s, const fc_run *run, int nruns, const void *tile_, const void *odd,
                                  int rows, void *out, int accumulate) {
    const REAL *tile = tile_;
    const ptrdiff_t step = s->out_pixel[2];
    for (int r = 0; r < nruns; r++) {
        REAL *dst = (REAL *)out + s->out_base + run[r].n * s->out_image + run[r].d * s->out_pixel[0] +
                    run[r].h * s->out_pixel[1] + run[r].w * step;
        for (int i = 0; i < rows; i++, dst += s->out_channel) {
            const REAL *src = tile + i * FC_NR + run[r].col;
            if (odd)
                store_pairs(src, (const REAL *)odd + i * FC_NR + run[r].col, run[r].len, dst, accumulate);
            else if (step == 1)
                for (int j = 0; j < run[r].len; j += FC_LANES) {
                    const uint32_t bits = bits_range(0, run[r].len - j);
                    vec v = vec_load_bits(src + j, bits);
                    if (accumulate) v += vec_load_bits(dst + j, bits);
                    vec_store_bits(dst + j, v, bits);
                }
            else
                for (int j = 0; j < run[r].len; j++) dst[j * step] = accumulate ? dst[j * step] + src[j] : src[j];
        }
    }
}

/* dst[j * dst_stride + i] = src[i * src_stride + j], vectors of `rows` (<= lanes) x `cols` (<= lanes); a lane behind
 * `rows` becomes zero.  Returns the sum over j of the vectors written. */
#define transpose_block FC_LOCAL(transpose_block)
FC_INLINE vec transpose_block(const REAL *src, ptrdiff_t src_stride, int rows, int cols, REAL *dst,
                              ptrdiff_t dst_stride, uint32_t store) {
    const uint32_t bits = bits_range(0, cols);
    vec v[FC_LANES], total = {0};
    FC_UNROLL
    for (int i = 0; i < FC_LANES; i++) v[i] = i < rows ? vec_load_bits(src + i * src_stride, bits) : (vec){0};
    vec_transpose(v);
    FC_UNROLL
    for (int j = 0; j < FC_LANES; j++)
        if (j < cols) {
            vec_store_bits(dst + j * dst_stride, v[j], store);
            total += v[j];
        }
    return total;
}

#define transpose_panel FC_LOCAL(transpose_panel)
FC_INLINE void transpose_panel(const int width, const REAL *x, ptrdiff_t row_stride, int rows, ptrdiff_t len, REAL *dst,
                               REAL *sums) {
    enum { AHEAD = 128 };
    for (int i = 0; i < rows; i += FC_LANES) {
        const REAL *src = x + i * row_stride;
        const int lanes = rows - i < FC_LANES ? rows - i : FC_LANES;
        vec total = {0};
        for (ptrdiff_t j = 0; j < len; j += FC_LANES) {
            const int cols = len - j < FC_LANES ? (int)(len - j) : FC_LANES;
            FC_UNROLL
            for (int l = 0; l < FC_LANES; l++) __builtin_prefetch(src + l * row_stride + j + AHEAD);
            total +=
                transpose_block(src + j, row_stride, lanes, cols, dst + j * width + i, width, bits_range(0, width - i));
        }
        if (sums) {
            const uint32_t bits = bits_range(0, lanes);
            vec_store_bits(sums + i, vec_load_bits(sums + i, bits) + total, bits);
        }
    }
}

static void FC_KERNEL(pack_transposed)(int width, const void *src, ptrdiff_t row_stride, int rows, ptrdiff_t len,
                                       void *dst, void *sums) {
    if (width == FC_NR)
        transpose_panel(FC_NR, src, row_stride, rows, len, dst, sums);
    else
        transpose_panel(FC_MR, src, row_stride, rows, len, dst, sums);
}

static void FC_KERNEL(transpose)(const void *src, ptrdiff_t src_stride, ptrdiff_t rows, ptrdiff_t cols, void *dst,
                                 ptrdiff_t dst_stride) {
    for (ptrdiff_t i = 0; i < rows; i += FC_LANES)
        for (ptrdiff_t j = 0; j < cols; j += FC_LANES) {
            const int r = rows - i < FC_LANES ? (int)(rows - i) : FC_LANES;
            const int c = cols - j < FC_LANES ? (int)(cols - j) : FC_LANES;
            transpose_block((const REAL *)src + i * src_stride + j, src_stride, r, c, (REAL *)dst + j * dst_stride + i,
                            dst_stride, bits_range(0, r));
        }
}

/* Rows that lie without a gap are transposed, a vector of each at a time.  Of others a few lines a channel are read: the
 * gradient's, whose rows are neighbours and whose channels are far apart. */
static void FC_KERNEL(pack_weights)(const fc_sweep *s, const void *w_, ptrdiff_t row_stride, ptrdiff_t channel_stride,
                                    int rows, int channels_first, void *a_) {
    enum { AHEAD = 128 }; /* elements: so many rows are more streams than the prefetchers follow */
    const ptrdiff_t tap_step = channels_first ? FC_MR : s->channels * FC_MR;
    const ptrdiff_t channel_step = channels_first ? s->ntaps * FC_MR : FC_MR;
    const ptrdiff_t n = s->ntaps;
    const REAL *w = w_;
    REAL *a = a_;
    if (channel_stride == n && n > 0 && s->weights[n - 1] == n - 1) { /* rows (channel, tap) without a gap */
        ptrdiff_t at = 0, tap = 0;
        for (ptrdiff_t k = 0; k < n * s->channels; k += FC_LANES) {
            const int len = n * s->channels - k < FC_LANES ? (int)(n * s->channels - k) : FC_LANES;
            ptrdiff_t where[FC_LANES];
            for (int l = 0; l < len; l++) {
                where[l] = at;
                at += tap_step;
                if (++tap == n) at += channel_step - n * tap_step, tap = 0;
            }
            for (int i = 0; i < FC_MR; i += FC_LANES) {
                vec v[FC_LANES];
                FC_UNROLL
                for (int r = 0; r < FC_LANES && i + r < FC_MR; r++)
                    __builtin_prefetch(w + (i + r) * row_stride + k + AHEAD, 0, 0);
                FC_UNROLL
                for (int r = 0; r < FC_LANES; r++)
                    v[r] = i + r < rows ? vec_load_bits(w + (i + r) * row_stride + k, bits_range(0, len)) : (vec){0};
                vec_transpose(v);
                FC_UNROLL
                for (int l = 0; l < FC_LANES; l++)
                    if (l < len) vec_store_bits(a + where[l] + i, v[l], bits_range(0, FC_MR - i));
            }
        }
        return;
    }
    const ptrdiff_t ahead = 16 * channel_stride, share = n > 0 ? FC_MR * row_stride / n : 0;
    for (ptrdiff_t c = 0; c < s->channels; c++)
        for (ptrdiff_t t = 0; t < n; t++) {
            const REAL *src = w + c * channel_stride + s->weights[t];
            REAL *to = a + t * tap_step + c * channel_step;
            __builtin_prefetch(w + c * channel_stride + ahead + t * share);
            if (rows == FC_MR) {
                FC_UNROLL
                for (int i = 0; i < FC_MR; i++) to[i] = src[i * row_stride];
            } else
                for (int i = 0; i < FC_MR; i++) to[i] = i < rows ? src[i * row_stride] : 0;
        }
}

#define copy_panel FC_LOCAL(copy_panel)
FC_INLINE void copy_panel(const int width, const REAL *src, ptrdiff_t row_stride, int cols, ptrdiff_t len, REAL *dst) {
    if (cols == width)
        for (ptrdiff_t k = 0; k < len; k++)
            __builtin_memcpy(dst + k * width, src + k * row_stride, width * sizeof(REAL));
    else
        for (ptrdiff_t k = 0; k < len; k++)
            for (int j = 0; j < cols; j += FC_LANES)
                vec_store_bits(dst + k * width + j, vec_load_bits(src + k * row_stride + j, bits_range(0, cols - j)),
                               bits_range(0, width - j));
}

static void FC_KERNEL(pack_rows)(int width, const void *src, ptrdiff_t row_stride, int cols, ptrdiff_t len, void *dst) {
    if (width == FC_NR)
        copy_panel(FC_NR, src, row_stride, cols, len, dst);
    else
        copy_panel(FC_MR, src, row_stride, cols, len, dst);
}
