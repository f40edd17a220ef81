/* Pooling: y[o] = max or mean of x over a window, one output row at a time, lanes along w.
 *
 * A vector of outputs reads, for every tap of the window, the input at (w + lane) * step: contiguous vectors and an
 * even/odd deinterleave.  Lanes in the padding are masked.
 *
 *   max    the first maximum wins; a NaN wins over everything, and the last NaN of a window over the others
 *   mean   the taps are added in order and divided once, so that NaN and Inf stay in the windows that hold them */

/* The window's taps along one dimension that fall inside the image: [first, last) */
#define clip_taps FC_LOCAL(clip_taps)
FC_INLINE void clip_taps(const fc_pool_row *p, int dim, ptrdiff_t *first, ptrdiff_t *last) {
    const ptrdiff_t dilation = p->dilation[dim], kernel = p->kernel[dim];
    const ptrdiff_t lo = ceil_div(-p->start[dim], dilation), hi = ceil_div(p->in[dim] - p->start[dim], dilation);
    *first = lo > 0 ? lo : 0;
    *last = hi < kernel ? hi : kernel;
}

/* The window's taps along w that fall inside the image for at least one of outputs [o, o + lanes): [first, last) */
#define clip_taps_w FC_LOCAL(clip_taps_w)
FC_INLINE void clip_taps_w(const fc_pool_row *p, ptrdiff_t o, ptrdiff_t *first, ptrdiff_t *last) {
    const ptrdiff_t dilation = p->dilation[2], w = p->start[2] + o * p->step;
    const ptrdiff_t left = p->out - o < FC_LANES ? p->out - o : FC_LANES;
    const ptrdiff_t lo = ceil_div(-w - (left - 1) * p->step, dilation), hi = ceil_div(p->in[2] - w, dilation);
    *first = lo > 0 ? lo : 0;
    *last = hi < p->kernel[2] ? hi : p->kernel[2];
}

/* Lanes p[lane * step] for lanes [lo, hi), zeros elsewhere */
#define load_lanes FC_LOCAL(load_lanes)
FC_INLINE vec load_lanes(const REAL *p, ptrdiff_t step, ptrdiff_t lo, ptrdiff_t hi) {
    vec v = {0};
    if (hi <= lo) return v;
    if (step == 1 || step == 2 || step == 4) {
        uint32_t bits[4];
        FC_UNROLL
        for (int i = 0; i < 4; i++) bits[i] = bits_range(lo * step - i * FC_LANES, (hi - 1) * step + 1 - i * FC_LANES);
        return step == 1   ? vec_load_strided(p, 1, bits)
               : step == 2 ? vec_load_strided(p, 2, bits)
                           : vec_load_strided(p, 4, bits);
    }
    for (ptrdiff_t l = lo; l < hi; l++) v[l] = p[l * step];
    return v;
}

/* The lanes of outputs [o, o + lanes) that lie inside the row at tap kw: [lo, hi) */
#define clip_lanes FC_LOCAL(clip_lanes)
FC_INLINE void clip_lanes(const fc_pool_row *p, ptrdiff_t o, ptrdiff_t iw, ptrdiff_t *lo, ptrdiff_t *hi) {
    const ptrdiff_t left = p->out - o < FC_LANES ? p->out - o : FC_LANES;
    if (iw >= 0 && iw + (left - 1) * p->step < p->in[2]) {
        *lo = 0;
        *hi = left;
        return;
    }
    const ptrdiff_t first = ceil_div(-iw, p->step), last = ceil_div(p->in[2] - iw, p->step);
    *lo = first > 0 ? first : 0;
    *hi = last < left ? last : left;
}

#define max_pool_vectors FC_LOCAL(max_pool_vectors)
FC_INLINE void max_pool_vectors(const fc_pool_row *p, REAL *y, int64_t *index, const int indexed) {
    ptrdiff_t d0, d1, h0, h1, w0, w1;
    clip_taps(p, 0, &d0, &d1);
    clip_taps(p, 1, &h0, &h1);
    for (ptrdiff_t o = 0; o < p->out; o += FC_LANES) {
        const ptrdiff_t w = p->start[2] + o * p->step;
        clip_taps_w(p, o, &w0, &w1);
        vec best = vec_splat(-FC_INFINITY);
        ivec where = {0}, seen = {0}; /* offset of the maximum from the window's first element */
        for (ptrdiff_t kd = d0; kd < d1; kd++)
            for (ptrdiff_t kh = h0; kh < h1; kh++) {
                const ptrdiff_t above = kd * p->dilation[0] * p->in[1] + kh * p->dilation[1];
                const REAL *row = (const REAL *)p->x + (p->start[0] * p->in[1] + p->start[1] + above) * p->in[2] + w;
                for (ptrdiff_t kw = w0; kw < w1; kw++) {
                    const ptrdiff_t iw = kw * p->dilation[2];
                    ptrdiff_t lo, hi;
                    clip_lanes(p, o, w + iw, &lo, &hi);
                    if (hi <= lo) continue;
                    const vec v = load_lanes(row + iw, p->step, lo, hi);
                    const ivec valid = vec_mask(bits_range(lo, hi));
                    ivec wins = ((v > best) | (v != v)) & valid;
                    if (indexed) {
                        wins |= valid & ~seen; /* a window of -inf has its first element's index */
                        seen |= valid;
                        const ivec here = (INTEGER)(above * p->in[2] + iw) - (ivec){0};
                        where = (wins & here) | (~wins & where);
                    }
                    best = vec_select(wins, v, best);
                }
            }
        const ptrdiff_t left = p->out - o < FC_LANES ? p->out - o : FC_LANES;
        vec_store_bits(y + o, best, bits_range(0, left));
        if (indexed) {
            const ptrdiff_t base = (p->start[0] * p->in[1] + p->start[1]) * p->in[2] + w;
            for (ptrdiff_t l = 0; l < left; l++) index[o + l] = base + l * p->step + where[l];
        }
    }
}

static void FC_KERNEL(max_pool_row)(const fc_pool_row *p, void *y, int64_t *index) {
    if (index)
        max_pool_vectors(p, y, index, 1);
    else
        max_pool_vectors(p, y, NULL, 0);
}

static void FC_KERNEL(max_pool_scatter)(ptrdiff_t n, const void *g_, const int64_t *index, void *gx_) {
    const REAL *g = g_;
    REAL *gx = gx_;
    for (ptrdiff_t i = 0; i < n; i++) gx[index[i]] += g[i];
}

/* Elements of a window along one dimension: those inside the image, or with the padding that it covers */
#define window_extent FC_LOCAL(window_extent)
FC_INLINE ptrdiff_t window_extent(const fc_pool_row *p, int dim, ptrdiff_t start) {
    const ptrdiff_t padded = p->in[dim] + (p->count_include_pad ? p->pad_after[dim] : 0);
    ptrdiff_t end = start + p->kernel[dim];
    if (end > padded) end = padded;
    if (!p->count_include_pad && start < 0) start = 0;
    return end - start;
}

/* what the sums of outputs [o, o + lanes) are divided by */
#define divisors FC_LOCAL(divisors)
FC_INLINE vec divisors(const fc_pool_row *p, ptrdiff_t o, ptrdiff_t dh) {
    if (p->divisor) return vec_splat((REAL)p->divisor);
    const ptrdiff_t w = p->start[2] + o * p->step, end = w + (FC_LANES - 1) * p->step + p->kernel[2];
    if (w >= 0 && end <= p->in[2]) return vec_splat((REAL)(dh * p->kernel[2]));
    vec v;
    for (int l = 0; l < FC_LANES; l++) v[l] = (REAL)(dh * window_extent(p, 2, w + l * p->step));
    return v;
}

static void FC_KERNEL(avg_pool_row)(const fc_pool_row *p, void *y_) {
    REAL *y = y_;
    ptrdiff_t d0, d1, h0, h1, w0, w1;
    clip_taps(p, 0, &d0, &d1);
    clip_taps(p, 1, &h0, &h1);
    const ptrdiff_t dh = window_extent(p, 0, p->start[0]) * window_extent(p, 1, p->start[1]);
    for (ptrdiff_t o = 0; o < p->out; o += FC_LANES) {
        const ptrdiff_t w = p->start[2] + o * p->step;
        clip_taps_w(p, o, &w0, &w1);
        vec sum = {0};
        for (ptrdiff_t kd = d0; kd < d1; kd++)
            for (ptrdiff_t kh = h0; kh < h1; kh++) {
                const REAL *row =
                    (const REAL *)p->x + ((p->start[0] + kd) * p->in[1] + p->start[1] + kh) * p->in[2] + w;
                for (ptrdiff_t kw = w0; kw < w1; kw++) {
                    ptrdiff_t lo, hi;
                    clip_lanes(p, o, w + kw, &lo, &hi);
                    sum += load_lanes(row + kw, p->step, lo, hi);
                }
            }
        const ptrdiff_t left = p->out - o < FC_LANES ? p->out - o : FC_LANES;
        vec_store_bits(y + o, sum / divisors(p, o, dh), bits_range(0, left));
    }
}

/* The mean's gradient: every element of a window receives g / divisor. */
static void FC_KERNEL(avg_pool_spread)(const fc_pool_row *p, const void *g_, void *gx) {
    const REAL *g = g_;
    ptrdiff_t d0, d1, h0, h1, w0, w1;
    clip_taps(p, 0, &d0, &d1);
    clip_taps(p, 1, &h0, &h1);
    const ptrdiff_t dh = window_extent(p, 0, p->start[0]) * window_extent(p, 1, p->start[1]);
    for (ptrdiff_t o = 0; o < p->out; o += FC_LANES) {
        const ptrdiff_t left = p->out - o < FC_LANES ? p->out - o : FC_LANES;
        const ptrdiff_t w = p->start[2] + o * p->step;
        clip_taps_w(p, o, &w0, &w1);
        const vec share = vec_load_bits(g + o, bits_range(0, left)) / divisors(p, o, dh);
        for (ptrdiff_t kd = d0; kd < d1; kd++)
            for (ptrdiff_t kh = h0; kh < h1; kh++) {
                REAL *row = (REAL *)gx + ((p->start[0] + kd) * p->in[1] + p->start[1] + kh) * p->in[2] + w;
                for (ptrdiff_t kw = w0; kw < w1; kw++) {
                    ptrdiff_t lo, hi;
                    clip_lanes(p, o, w + kw, &lo, &hi);
                    if (p->step == 1) {
                        const uint32_t bits = bits_range(lo, hi);
                        vec_store_bits(row + kw, vec_load_bits(row + kw, bits) + share, bits);
                    } else
                        for (ptrdiff_t l = lo; l < hi; l++) row[kw + l * p->step] += share[l];
                }
            }
    }
}
