/* Pooling of images whose channels come last: x[h][w][c], one row of output pixels at a time, lanes along c.
 *
 * A row of pixels is one contiguous run of w * c elements.  Where windows overlap much, the rows of the windows are
 * reduced into a line, whatever the channels are, and each output combines the pixels of its columns:
 *
 *     x rows of the window      | c c c c | c c c c | c c c c |  ...
 *                               | c c c c | c c c c | c c c c |  ...
 *     line                      | r r r r | r r r r | r r r r |  ...
 *     y                              [  pixel 0  ]
 *
 * Elsewhere an output takes all taps at once, as maxima do that keep their places (numbers of pixels; the rules are
 * those of pool.h).  At step 1 the outputs whose windows lie inside the image are one run too.
 *
 * Backwards gradients are gathered: each row of the image is written once, from the outputs whose windows hold it.  A
 * maximum's counts where its place is this pixel; windows that are many times larger than a vector are rather scattered,
 * one element at a time. */

/* The taps of a window along one dimension that fall inside the image: [first, last) */
#define taps_inside FC_LOCAL(taps_inside)
FC_INLINE void taps_inside(const fc_pool_row *p, int dim, ptrdiff_t start, ptrdiff_t *first, ptrdiff_t *last) {
    const ptrdiff_t lo = ceil_div(-start, p->dilation[dim]), hi = ceil_div(p->in[dim] - start, p->dilation[dim]);
    *first = lo > 0 ? lo : 0;
    *last = hi < p->kernel[dim] ? hi : p->kernel[dim];
}

/* How many neighbouring outputs from o on are one contiguous run: those whose windows lie inside, at step 1 */
#define run_of_outputs FC_LOCAL(run_of_outputs)
FC_INLINE ptrdiff_t run_of_outputs(const fc_pool_row *p, ptrdiff_t o) {
    const ptrdiff_t w = o - p->before, inside = p->in[2] - (p->kernel[2] - 1) * p->dilation[2] - w;
    if (p->step != 1 || w < 0 || inside < 2) return 1;
    return inside < p->out - o ? inside : p->out - o;
}

/* y[0..n) = scale * (maximum or sum of x[a * far + b * near + 0..n), a < many, b < few, and of y if `more`), four
 * vectors at a time */
#define reduce_taps FC_LOCAL(reduce_taps)
FC_INLINE void reduce_taps(const int maximum, const int more, ptrdiff_t n, const REAL *x, ptrdiff_t many, ptrdiff_t far,
                           ptrdiff_t few, ptrdiff_t near, REAL scale, REAL *y) {
    const vec empty = maximum ? vec_splat(-FC_INFINITY) : (vec){0};
    ptrdiff_t i = 0;
    for (; i + 4 * FC_LANES <= n; i += 4 * FC_LANES) {
        vec best[4];
        FC_UNROLL
        for (int v = 0; v < 4; v++) best[v] = more ? vec_load(y + i + v * FC_LANES) : empty;
        for (ptrdiff_t a = 0; a < many; a++)
            for (ptrdiff_t b = 0; b < few; b++) {
                const REAL *src = x + a * far + b * near + i;
                FC_UNROLL
                for (int v = 0; v < 4; v++) {
                    const vec value = vec_load(src + v * FC_LANES);
                    best[v] = combined(maximum, best[v], value);
                }
            }
        FC_UNROLL
        for (int v = 0; v < 4; v++) vec_store(y + i + v * FC_LANES, maximum ? best[v] : best[v] * scale);
    }
    for (; i < n; i += FC_LANES) {
        const uint32_t bits = bits_range(0, n - i);
        vec best = more ? vec_load_bits(y + i, bits) : empty;
        for (ptrdiff_t a = 0; a < many; a++)
            for (ptrdiff_t b = 0; b < few; b++) {
                const vec value = vec_load_bits(x + a * far + b * near + i, bits);
                best = combined(maximum, best, value);
            }
        vec_store_bits(y + i, maximum ? best : best * scale, bits);
    }
}

#define pool_pixels FC_LOCAL(pool_pixels)
FC_INLINE void pool_pixels(const fc_pool_row *p, const int maximum, REAL *y) {
    const ptrdiff_t row = p->in[2] * p->channels, block = p->block;
    ptrdiff_t d0, d1, h0, h1, w0, w1;
    taps_inside(p, 0, p->start[0], &d0, &d1);
    taps_inside(p, 1, p->start[1], &h0, &h1);
    const REAL *x = (const REAL *)p->x;
    x += ((p->start[0] + d0 * p->dilation[0]) * p->in[1] + p->start[1] + h0 * p->dilation[1]) * row;
    const ptrdiff_t dh = window_extent(p, 0, p->start[0]) * window_extent(p, 1, p->start[1]);
    const ptrdiff_t far = p->dilation[0] * p->in[1] * row, near = p->dilation[1] * row;
    const ptrdiff_t high = h1 - h0, wide = p->kernel[2], few_rows = 8;
    if (p->in[2] == 1 && p->out == 1 && d1 - d0 == 1) { /* a column: a few rows at a time stay in cache */
        const REAL scale = 1 / (REAL)(p->divisor ? p->divisor : dh * window_extent(p, 2, -p->before));
        ptrdiff_t h = high < few_rows ? high : few_rows;
        reduce_taps(maximum, 0, block, x, 1, 0, h, near, h < high ? 1 : scale, y);
        for (ptrdiff_t next; h < high; h = next) {
            next = high - h < few_rows ? high : h + few_rows;
            reduce_taps(maximum, 1, block, x + h * near, 1, 0, next - h, near, next < high ? 1 : scale, y);
        }
        return;
    }
    const int direct = d1 - d0 == 1 && high * wide <= p->step * (high + 1) + wide + 1; /* loads and stores */
    const REAL *line = direct ? x : p->line;
    if (!direct) reduce_taps(maximum, 0, p->in[2] * block, x, d1 - d0, far, high, near, 1, p->line);
    for (ptrdiff_t o = 0, run; o < p->out; o += run) {
        const ptrdiff_t w = o * p->step - p->before;
        const ptrdiff_t divisor = p->divisor ? p->divisor : dh * window_extent(p, 2, w);
        run = run_of_outputs(p, o);
        taps_inside(p, 2, w, &w0, &w1);
        reduce_taps(maximum, 0, run * block, line + (w + w0 * p->dilation[2]) * block, direct ? high : 1, near, w1 - w0,
                    p->dilation[2] * block, 1 / (REAL)divisor, y + o * p->channels);
    }
}

/* best and where over the taps of one window, `many` vectors of channels */
#define max_taps FC_LOCAL(max_taps)
FC_INLINE void max_taps(const int many, const REAL *x, ptrdiff_t pixel, const ptrdiff_t taps[3],
                        const ptrdiff_t step[3], ptrdiff_t channels, uint32_t bits, vec *best, ivec *where) {
    FC_UNROLL
    for (int v = 0; v < many; v++) best[v] = vec_splat(-FC_INFINITY), where[v] = splat_integer((INTEGER)pixel);
    for (ptrdiff_t kd = 0; kd < taps[0]; kd++)
        for (ptrdiff_t kh = 0; kh < taps[1]; kh++)
            for (ptrdiff_t kw = 0; kw < taps[2]; kw++) {
                const ptrdiff_t at = pixel + kd * step[0] + kh * step[1] + kw * step[2];
                FC_UNROLL
                for (int v = 0; v < many; v++) {
                    const vec value = vec_load_bits(x + at * channels + v * FC_LANES, bits);
                    const ivec won = wins(value, best[v]);
                    best[v] = vec_select(won, value, best[v]);
                    where[v] = pick(won, splat_integer((INTEGER)at), where[v]);
                }
            }
}

#define store_places FC_LOCAL(store_places)
FC_INLINE void store_places(int64_t *index, ivec where, ptrdiff_t n) {
    INTEGER lane[FC_LANES];
    vec_store((REAL *)lane, (vec)where);
    if (n >= FC_LANES)
        for (int l = 0; l < FC_LANES; l++) index[l] = lane[l];
    else
        for (ptrdiff_t l = 0; l < n; l++) index[l] = lane[l];
}

/* The window of output pixel o: its first pixel inside the image, its taps there, and pixels between them */
#define window_of_pixel FC_LOCAL(window_of_pixel)
FC_INLINE ptrdiff_t window_of_pixel(const fc_pool_row *p, ptrdiff_t o, ptrdiff_t taps[3], ptrdiff_t step[3]) {
    const ptrdiff_t start[3] = {p->start[0], p->start[1], o * p->step - p->before};
    ptrdiff_t pixel = 0;
    FC_UNROLL
    for (int i = 0; i < 3; i++) {
        ptrdiff_t first, last;
        taps_inside(p, i, start[i], &first, &last);
        taps[i] = last - first;
        pixel = pixel * p->in[i] + start[i] + first * p->dilation[i];
    }
    step[0] = p->dilation[0] * p->in[1] * p->in[2];
    step[1] = p->dilation[1] * p->in[2];
    step[2] = p->dilation[2];
    return pixel;
}

#define max_pixels_indexed FC_LOCAL(max_pixels_indexed)
FC_INLINE void max_pixels_indexed(const fc_pool_row *p, REAL *y, int64_t *index) {
    const REAL *x = p->x;
    for (ptrdiff_t o = 0; o < p->out; o++, y += p->channels, index += p->channels) {
        ptrdiff_t taps[3], step[3], c = 0;
        const ptrdiff_t pixel = window_of_pixel(p, o, taps, step);
        vec best[2];
        ivec where[2];
        for (; c + 2 * FC_LANES <= p->block; c += 2 * FC_LANES) {
            max_taps(2, x + c, pixel, taps, step, p->channels, FC_ALL, best, where);
            FC_UNROLL
            for (int v = 0; v < 2; v++) {
                vec_store(y + c + v * FC_LANES, best[v]);
                store_places(index + c + v * FC_LANES, where[v], FC_LANES);
            }
        }
        for (; c < p->block; c += FC_LANES) {
            const uint32_t bits = bits_range(0, p->block - c);
            max_taps(1, x + c, pixel, taps, step, p->channels, bits, best, where);
            vec_store_bits(y + c, best[0], bits);
            store_places(index + c, where[0], p->block - c);
        }
    }
}

static void FC_KERNEL(max_pool_pixels)(const fc_pool_row *p, void *y, int64_t *index) {
    if (index)
        max_pixels_indexed(p, y, index);
    else
        pool_pixels(p, 1, y);
}

static void FC_KERNEL(avg_pool_pixels)(const fc_pool_row *p, void *y) { pool_pixels(p, 0, y); }

/* How many indices of a row of output pixels lie outside their windows */
static ptrdiff_t FC_KERNEL(max_pool_pixels_check)(const fc_pool_row *p, const int64_t *index) {
    words count = {0};
    ptrdiff_t bad = 0;
    for (ptrdiff_t o = 0; o < p->out; o++, index += p->channels) {
        ptrdiff_t taps[3], step[3];
        const words first = (uint32_t)window_of_pixel(p, o, taps, step) - (words){0};
        const words extent = (uint32_t)((taps[2] - 1) * step[2] + 1) - (words){0};
        const fc_pool_windows windows = {.plane = (uint32_t)(p->in[0] * p->in[1] * p->in[2]),
                                         .rows = {taps[0], taps[1]},
                                         .pitch = {step[0], step[1]}};
        for (ptrdiff_t c = 0; c < p->channels; c += FC_WORDS) {
            const ptrdiff_t left = p->channels - c;
            int64_t rest[FC_WORDS] = {0};
            for (ptrdiff_t l = 0; left < FC_WORDS && l < FC_WORDS; l++) rest[l] = index[c + (l < left ? l : 0)];
            const words out = outside(&windows, taps[0], taps[1], (uint32_t)step[2], first, extent,
                                      left < FC_WORDS ? rest : index + c);
            if (left >= FC_WORDS)
                count -= out;
            else
                for (ptrdiff_t l = 0; l < left; l++) bad += out[l] != 0;
        }
    }
    for (int l = 0; l < FC_WORDS; l++) bad += count[l];
    return bad;
}

/* gx[index] += g for a row of output pixels */
static void FC_KERNEL(max_pool_pixels_scatter)(const fc_pool_row *p, const void *g_, const int64_t *index, void *gx_) {
    const REAL *g = g_;
    REAL *gx = gx_;
    for (ptrdiff_t o = 0; o < p->out; o++, g += p->channels, index += p->channels)
        for (ptrdiff_t c = 0; c < p->block; c++) gx[index[c] * p->channels + c] += g[c];
}

/* The outputs along one dimension whose windows hold element i: [first, last) */
#define outputs_of FC_LOCAL(outputs_of)
FC_INLINE void outputs_of(ptrdiff_t i, ptrdiff_t kernel, ptrdiff_t stride, ptrdiff_t pad, ptrdiff_t out,
                          ptrdiff_t *first, ptrdiff_t *last) {
    const ptrdiff_t lo = ceil_div(i + pad - kernel + 1, stride), hi = ceil_div(i + pad + 1, stride);
    *first = lo > 0 ? lo : 0;
    *last = hi < out ? hi : out;
}

/* gx of one pixel: the sum of g over the outputs [w0, w1) of some rows, where their places are this pixel */
#define gather_places FC_LOCAL(gather_places)
FC_INLINE void gather_places(const int many, ptrdiff_t rows, const REAL *const *g, const INTEGER *const *places,
                             ptrdiff_t at, ptrdiff_t outputs, ptrdiff_t channels, ptrdiff_t pixel, uint32_t bits,
                             REAL *gx) {
    vec sum[4];
    FC_UNROLL
    for (int v = 0; v < many; v++) sum[v] = (vec){0};
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t o = 0; o < outputs; o++) {
            const REAL *value = g[r] + at + o * channels, *place = (const REAL *)places[r] + at + o * channels;
            FC_UNROLL
            for (int v = 0; v < many; v++) {
                const ivec here = (ivec)vec_load_bits(place + v * FC_LANES, bits) == splat_integer((INTEGER)pixel);
                sum[v] += (vec)(here & (ivec)vec_load_bits(value + v * FC_LANES, bits));
            }
        }
    FC_UNROLL
    for (int v = 0; v < many; v++) vec_store_bits(gx + v * FC_LANES, sum[v], bits);
}

/* One row of the maximum's gradient, (d, h) = start.  The places of the rows of outputs that hold it are kept as INTEGER
 * in p->line, behind what says whose they are; a window spans at most two vectors' worth of elements. */
static void FC_KERNEL(max_pool_pixels_gather)(const fc_pool_row *p, const void *g_, const int64_t *index, void *gx_) {
    const ptrdiff_t n = p->out * p->channels, wide = (p->kernel[2] - 1) * p->dilation[2] + 1;
    const REAL *g = g_, *g_row[2 * FC_LANES];
    const INTEGER *places[2 * FC_LANES];
    const int64_t **kept = p->line;
    ptrdiff_t rows = 0, d0, d1, h0, h1, w0, w1, span[2];
    FC_UNROLL
    for (int i = 0; i < 2; i++) span[i] = (p->kernel[i] - 1) * p->dilation[i] + 1;
    const ptrdiff_t slots[2] = {ceil_div(span[0], p->stride[0]), ceil_div(span[1], p->stride[1])};
    INTEGER *slot = (INTEGER *)(kept + 2 * FC_LANES);
    outputs_of(p->start[0], span[0], p->stride[0], p->pad[0], p->rows[0], &d0, &d1);
    outputs_of(p->start[1], span[1], p->stride[1], p->pad[1], p->rows[1], &h0, &h1);
    for (ptrdiff_t d = d0; d < d1; d++)
        for (ptrdiff_t h = h0; h < h1; h++, rows++) {
            const ptrdiff_t at = (d * p->rows[1] + h) * n, s = d % slots[0] * slots[1] + h % slots[1];
            if (kept[s] != index + at) {
                kept[s] = index + at;
                for (ptrdiff_t i = 0; i < n; i++) slot[s * n + i] = (INTEGER)index[at + i];
            }
            g_row[rows] = g + at;
            places[rows] = slot + s * n;
        }
    const ptrdiff_t first = (p->start[0] * p->in[1] + p->start[1]) * p->in[2]; /* pixel */
    for (ptrdiff_t c = 0, many; c < p->channels; c += many * FC_LANES) {         /* few channels stay in cache */
        many = p->channels - c >= 4 * FC_LANES ? 4 : 1;
        for (ptrdiff_t w = 0; w < p->in[2]; w++) {
            REAL *gx = (REAL *)gx_ + w * p->channels + c;
            outputs_of(w, wide, p->step, p->before, p->out, &w0, &w1);
            const ptrdiff_t at = w0 * p->channels + c;
            if (many == 4)
                gather_places(4, rows, g_row, places, at, w1 - w0, p->channels, first + w, FC_ALL, gx);
            else
                gather_places(1, rows, g_row, places, at, w1 - w0, p->channels, first + w,
                              bits_range(0, p->channels - c), gx);
        }
    }
}

/* One row of the mean's gradient, (d, h) = start: the sum of the shares of the windows that hold each pixel.  Where
 * windows differ (p->divisor is 0), rows and then columns of outputs are divided by what theirs count. */
static void FC_KERNEL(avg_pool_pixels_gather)(const fc_pool_row *p, const void *g_, void *gx_) {
    const ptrdiff_t block = p->block, n = p->out * block, row = p->out * p->channels;
    const REAL *g = g_;
    REAL *gx = gx_, *line = p->line, *sum = line + n;
    ptrdiff_t d0, d1, h0, h1, w0, w1;
    outputs_of(p->start[0], p->kernel[0], p->stride[0], p->pad[0], p->rows[0], &d0, &d1);
    outputs_of(p->start[1], p->kernel[1], p->stride[1], p->pad[1], p->rows[1], &h0, &h1);
    if (p->divisor)
        reduce_taps(0, 0, n, g + (d0 * p->rows[1] + h0) * row, d1 - d0, p->rows[1] * row, h1 - h0, row,
                    1 / (REAL)p->divisor, line);
    else {
        for (ptrdiff_t i = 0; i < n; i++) sum[i] = 0;
        for (ptrdiff_t d = d0; d < d1; d++)
            for (ptrdiff_t h = h0; h < h1; h++) {
                const ptrdiff_t extent = window_extent(p, 0, d * p->stride[0] - p->pad[0]) *
                                         window_extent(p, 1, h * p->stride[1] - p->pad[1]);
                const REAL *src = g + (d * p->rows[1] + h) * row, scale = 1 / (REAL)extent;
                for (ptrdiff_t i = 0; i < n; i++) sum[i] += src[i] * scale;
            }
        for (ptrdiff_t o = 0; o < p->out; o++)
            reduce_taps(0, 0, block, sum + o * block, 1, 0, 1, 0,
                        1 / (REAL)window_extent(p, 2, o * p->step - p->before), line + o * block);
    }
    for (ptrdiff_t w = 0, run; w < p->in[2]; w += run) {
        outputs_of(w, p->kernel[2], p->step, p->before, p->out, &w0, &w1);
        run = 1;
        if (p->step == 1 && w1 - w0 == p->kernel[2]) /* pixels that as many windows hold */
            run = p->out - w1 < p->in[2] - w - 1 ? p->out - w1 + 1 : p->in[2] - w;
        reduce_taps(0, 0, run * block, line + w0 * block, 1, 0, w1 - w0, block, 1, gx + w * p->channels);
    }
}
