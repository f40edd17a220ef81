/* Depthwise convolution of one plane with one filter, step 1 or 2, lanes along w, straight from the image:
 *
 *     y[r][o] = bias + sum over i, j of w[i][j] * x[r * step + top + i][o * step + left + j]      zero outside the image
 *
 * A tile is R output rows x V vectors, its accumulators in registers.  For each column j of the filter, its K weights
 * are in registers too, and every vector of an input row is loaded once and serves all output rows that it meets:
 * R + K - 1 loads for R K multiply-adds.  Rows outside the image are a row of zeros, columns outside are masked lanes,
 * the same for all rows.  At step 2 a pair of loads gives filter column j the even pixels and column j + 1 the odd.
 *
 * The other two passes have the same tiles:
 *
 *     input gradient   dX[r][c] = sum of w[i][j] * dY[(r - top - i) / 2][(c - left - j) / 2] where 2 divides both: rows
 *                      and columns by parity, 4 sets of accumulators, interleaved as they are stored.  (At step 1 it is
 *                      a convolution with the filter turned: weight_step = -1.)
 *     weight gradient  dW[i][j] = sum of dY[r][o] * x[r * step + top + i][o * step + left + j]: R rows of dY stay in
 *                      registers for all K taps of a column; each tap has a vector of sums. */

#if FC_MR == 8
#define FC_PLANE_VECTORS 4
#define FC_PLANE_ROWS(vectors) ((vectors) == 1 ? 8 : 4)
#else
#define FC_PLANE_VECTORS 2
#define FC_PLANE_ROWS(vectors) 4
#endif
enum { FC_LOCAL(most_rows) = 2 * (FC_PLANE_ROWS(1) - 1) + 7 }; /* input rows of a tile */

/* How lanes outside the image become zeros.  Without mask registers a masked load is a branch and many instructions:
 * vectors that lie inside are loaded plainly, and where others may be read beside the plane, so are the rest, and
 * their lanes cleared by masks that are made once a column. */
enum { FC_LOCAL(inside), FC_LOCAL(cleared), FC_LOCAL(masked) };
#define INSIDE FC_LOCAL(inside)
#define CLEARED FC_LOCAL(cleared)
#define MASKED FC_LOCAL(masked)

/* How `n` vectors are loaded */
#define how_to_load FC_LOCAL(how_to_load)
FC_INLINE int how_to_load(const fc_plane *p, const uint32_t *bits, const int n) {
    if (FC_VEC_BYTES == 64) return MASKED;
    uint32_t all = FC_ALL;
    FC_UNROLL
    for (int i = 0; i < n; i++) all &= bits[i];
    return all == FC_ALL ? INSIDE : p->outermost ? MASKED : CLEARED;
}

#define load_lanes_by FC_LOCAL(load_lanes_by)
FC_INLINE vec load_lanes_by(const int how, const REAL *p, uint32_t bits, ivec mask) {
    return how == INSIDE ? vec_load(p) : how == CLEARED ? (vec)((ivec)vec_load(p) & mask) : vec_load_edge(p, bits);
}

/* DO(how), for a constant */
#define FC_EACH_LOAD(how, DO) \
    if (FC_VEC_BYTES == 64 || (how) == MASKED) \
        DO(MASKED); \
    else if ((how) == INSIDE) \
        DO(INSIDE); \
    else \
        DO(CLEARED)

/* acc += column j of the filter, or at step 2 columns j and, if `both`, j + 1 */
#define plane_column FC_LOCAL(plane_column)
FC_INLINE void plane_column(const int K, const int step, const int R, const int V, const int both, const int how,
                            const REAL *const *row, ptrdiff_t col, const uint32_t *bits, const REAL *w,
                            const fc_plane *p, vec acc[FC_PLANE_ROWS(1)][FC_PLANE_VECTORS]) {
    vec w0[7], w1[7];
    ivec mask[2 * FC_PLANE_VECTORS];
    FC_UNROLL
    for (int v = 0; v < V * step; v++) mask[v] = how == CLEARED ? vec_mask(bits[v]) : (ivec){0};
    FC_UNROLL
    for (int k = 0; k < K; k++) {
        w0[k] = vec_splat(w[k * p->kernel[1] * p->weight_step]);
        if (both) w1[k] = vec_splat(w[(k * p->kernel[1] + 1) * p->weight_step]);
    }
    FC_UNROLL
    for (int i = 0; i < step * (R - 1) + K; i++) {
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            const REAL *src = row[i] + col + v * step * FC_LANES;
            vec even = load_lanes_by(how, src, bits[v * step], mask[v * step]), odd = even;
            if (step == 2) {
                const vec next = load_lanes_by(how, src + FC_LANES, bits[v * step + 1], mask[v * step + 1]);
                if (both) odd = vec_odd(even, next);
                even = vec_even(even, next);
            }
            FC_UNROLL
            for (int r = 0; r < R; r++) {
                const int k = i - step * r;
                if (k < 0 || k >= K) continue;
                acc[r][v] += w0[k] * even;
                if (both) acc[r][v] += w1[k] * odd;
            }
        }
    }
}

#define plane_tile FC_LOCAL(plane_tile)
FC_INLINE void plane_tile(const int K, const int step, const int R, const int V, const fc_plane *p,
                          const REAL *const *row, ptrdiff_t col, const uint32_t *bits, const REAL *w, REAL bias,
                          const fc_finish *finish, REAL *y, ptrdiff_t at, ptrdiff_t rows, uint32_t last) {
    const ptrdiff_t cols = p->kernel[1];
    vec acc[FC_PLANE_ROWS(1)][FC_PLANE_VECTORS];
    FC_UNROLL
    for (int r = 0; r < R; r++) {
        FC_UNROLL
        for (int v = 0; v < V; v++) acc[r][v] = vec_splat(bias);
    }
    ptrdiff_t j = 0;
    for (; j + step <= cols; j += step) {
#define FC_COLUMN(how) \
    plane_column(K, step, R, V, step == 2, how, row, col + j, bits + j * p->masks, w + j * p->weight_step, p, acc)
        FC_EACH_LOAD(how_to_load(p, bits + j * p->masks, V * step), FC_COLUMN);
#undef FC_COLUMN
    }
    if (j < cols) {
#define FC_COLUMN(how) \
    plane_column(K, step, R, V, 0, how, row, col + j, bits + j * p->masks, w + j * p->weight_step, p, acc)
        FC_EACH_LOAD(how_to_load(p, bits + j * p->masks, V * step), FC_COLUMN);
#undef FC_COLUMN
    }
    FC_UNROLL
    for (int r = 0; r < R; r++) {
        if (r >= rows) break;
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            const uint32_t stored = v == V - 1 ? last : FC_ALL;
            if (finish) acc[r][v] = finished(acc[r][v], finish, at + r * p->out[1] + v * FC_LANES, stored);
            vec_store_bits(y + at + r * p->out[1] + v * FC_LANES, acc[r][v], stored);
        }
    }
}

/* DO(V, o) for strips of V vectors from column o on that cover `count` columns, as even as they can be */
#if FC_PLANE_VECTORS == 4
#define FC_WIDE_STRIPS(DO, o) \
    case 3: DO(3, o); break; \
    case 4: DO(4, o); break;
#else
#define FC_WIDE_STRIPS(DO, o)
#endif
#define FC_EACH_STRIP(count, DO) \
    for (ptrdiff_t left_ = ((count) + FC_LANES - 1) / FC_LANES, o_ = 0, v_; left_ > 0; \
         left_ -= v_, o_ += v_ * FC_LANES) { \
        const ptrdiff_t strips_ = (left_ + FC_PLANE_VECTORS - 1) / FC_PLANE_VECTORS; \
        v_ = (left_ + strips_ - 1) / strips_; \
        switch (v_) { \
        case 1: DO(1, o_); break; \
        case 2: \
            DO(2, o_); \
            break; \
            FC_WIDE_STRIPS(DO, o_) \
        } \
    }

/* V vectors wide, from column o on */
#define plane_strip FC_LOCAL(plane_strip)
FC_INLINE void plane_strip(const int K, const int step, const int R, const int V, const fc_plane *p, const REAL *x,
                           const REAL *const *row, const REAL *w, REAL bias, const fc_finish *finish, ptrdiff_t r,
                           ptrdiff_t o, REAL *y) {
    enum { AHEAD = 8 }; /* rows: masked loads do not train the prefetchers */
    const uint32_t last = bits_range(0, p->out[1] - o - (V - 1) * FC_LANES);
    FC_UNROLL
    for (int i = 0; i < R * step; i++) {
        const REAL *next = x + (r * step + p->top + step * (R - 1) + K + i + AHEAD) * p->in[1] + o * step;
        FC_UNROLL
        for (int v = 0; v < V * step; v++) __builtin_prefetch(next + v * FC_LANES);
    }
    plane_tile(K, step, R, V, p, row, o * step + p->left, p->bits + o / FC_LANES * step, w, bias, finish, y,
               r * p->out[1] + o, p->last - r, last);
}

/* R output rows from r on, in strips: rows follow one another in memory, which the prefetchers like */
#define plane_rows FC_LOCAL(plane_rows)
FC_INLINE void plane_rows(const int K, const int step, const int R, const fc_plane *p, const REAL *x, const REAL *w,
                          REAL bias, const fc_finish *finish, ptrdiff_t r, REAL *y) {
    const int inputs = step * (R - 1) + K;
    const REAL *row[FC_LOCAL(most_rows)];
    FC_UNROLL
    for (int i = 0; i < inputs; i++) {
        const ptrdiff_t h = r * step + p->top + i;
        row[i] = h >= 0 && h < p->in[0] ? x + h * p->in[1] : (const REAL *)p->zeros;
    }
#define FC_STRIP(V, o) plane_strip(K, step, R, V, p, x, row, w, bias, finish, r, o, y)
    FC_EACH_STRIP(p->out[1], FC_STRIP)
#undef FC_STRIP
}

#define plane_strips FC_LOCAL(plane_strips)
FC_INLINE void plane_strips(const int K, const int step, const fc_plane *p, const REAL *x, const REAL *w, REAL bias,
                            const fc_finish *finish, REAL *y) {
    if (FC_PLANE_ROWS(1) > FC_PLANE_ROWS(2) && p->out[1] <= FC_LANES)
        for (ptrdiff_t r = p->first; r < p->last; r += FC_PLANE_ROWS(1))
            plane_rows(K, step, FC_PLANE_ROWS(1), p, x, w, bias, finish, r, y);
    else
        for (ptrdiff_t r = p->first; r < p->last; r += FC_PLANE_ROWS(2))
            plane_rows(K, step, FC_PLANE_ROWS(2), p, x, w, bias, finish, r, y);
}

/* bits[j * masks + i]: the lanes inside the image of the i-th vector that filter column j reads of a row */
static void FC_KERNEL(plane_masks)(const fc_plane *p, uint32_t *bits) {
    for (ptrdiff_t j = 0; j < p->kernel[1]; j++)
        for (ptrdiff_t i = 0; i < p->masks; i++) {
            const ptrdiff_t col = p->left + j + i * FC_LANES, left = p->out[1] * p->step - i * FC_LANES;
            *bits++ = bits_range(-col, left < p->in[1] - col ? left : p->in[1] - col);
        }
}

/* DO(K, step) for the filter's rows and the step */
#define FC_EACH_PLANE(p, DO) \
    switch ((p)->kernel[0] * 2 + (p)->step - 1) { \
    case 2: DO(1, 1); break; \
    case 3: DO(1, 2); break; \
    case 6: DO(3, 1); break; \
    case 7: DO(3, 2); break; \
    case 10: DO(5, 1); break; \
    case 11: DO(5, 2); break; \
    case 14: DO(7, 1); break; \
    case 15: DO(7, 2); break; \
    }

/* Output rows [first, last) of a plane */
static void FC_KERNEL(depthwise)(const fc_plane *p, const void *x, const void *w, const void *bias,
                                 const fc_finish *finish, void *y) {
    const REAL b = bias ? *(const REAL *)bias : 0;
#define FC_PLANE(K, step) plane_strips(K, step, p, x, w, b, finish, y)
    FC_EACH_PLANE(p, FC_PLANE)
#undef FC_PLANE
}

/* ---- input gradient, step 2; dY is `in`, dX is `out`; top and left are the first tap's, not above 0 ---- */

/* acc[u][row parity][column parity] += columns j and, if `both`, j + 1 of the filter */
#define spread_column FC_LOCAL(spread_column)
FC_INLINE void spread_column(const int K, const int U, const int V, const int both, const int how, const fc_plane *p,
                             const REAL *g, const REAL *w, ptrdiff_t u0, ptrdiff_t col, vec acc[2][2][2][2]) {
    const int back = (K - 1) / 2; /* rows of dY above u that reach it */
    vec w0[7], w1[7];
    uint32_t bits[2];
    ivec mask[2];
    FC_UNROLL
    for (int v = 0; v < V; v++) {
        bits[v] = bits_range(-col - v * FC_LANES, p->in[1] - col - v * FC_LANES);
        mask[v] = how == CLEARED ? vec_mask(bits[v]) : (ivec){0};
    }
    FC_UNROLL
    for (int k = 0; k < K; k++) {
        w0[k] = vec_splat(w[k * p->kernel[1]]);
        if (both) w1[k] = vec_splat(w[k * p->kernel[1] + 1]);
    }
    FC_UNROLL
    for (int i = -back; i < U; i++) {
        const ptrdiff_t q = u0 + i;
        const REAL *row = q >= 0 && q < p->in[0] ? g + q * p->in[1] : (const REAL *)p->zeros;
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            const vec gv = load_lanes_by(how, row + col + v * FC_LANES, bits[v], mask[v]);
            FC_UNROLL
            for (int k = 0; k < K; k++) {
                const int u = i + k / 2;
                if (u < 0 || u >= U) continue;
                acc[u][k % 2][0][v] += w0[k] * gv;
                if (both) acc[u][k % 2][1][v] += w1[k] * gv;
            }
        }
    }
}

/* Rows 2 u + top and 2 u + top + 1 of dX for u0 <= u < u0 + U, columns 2 t + left and 2 t + left + 1 for V vectors of t */
#define spread_tile FC_LOCAL(spread_tile)
FC_INLINE void spread_tile(const int K, const int U, const int V, const fc_plane *p, const REAL *g, const REAL *w,
                           ptrdiff_t u0, ptrdiff_t t0, REAL *y) {
    vec acc[2][2][2][2];
    FC_UNROLL
    for (int u = 0; u < U; u++) {
        FC_UNROLL
        for (int v = 0; v < V; v++) acc[u][0][0][v] = acc[u][0][1][v] = acc[u][1][0][v] = acc[u][1][1][v] = (vec){0};
    }
    ptrdiff_t j = 0;
#define FC_SPREAD(how) spread_column(K, U, V, both, how, p, g, w + j, u0, t0 - j / 2, acc)
#define FC_COLUMNS() (t0 >= j / 2 && t0 - j / 2 + V * FC_LANES <= p->in[1] ? INSIDE : p->outermost ? MASKED : CLEARED)
    for (; j + 2 <= p->kernel[1]; j += 2) {
        enum { both = 1 };
        FC_EACH_LOAD(FC_COLUMNS(), FC_SPREAD);
    }
    if (j < p->kernel[1]) {
        enum { both = 0 };
        FC_EACH_LOAD(FC_COLUMNS(), FC_SPREAD);
    }
#undef FC_COLUMNS
#undef FC_SPREAD
    const ptrdiff_t c = 2 * t0 + p->left;
    FC_UNROLL
    for (int u = 0; u < 2 * U; u++) {
        const ptrdiff_t r = 2 * u0 + u + p->top;
        if (r < 0 || r >= p->out[0]) continue;
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            const vec even = acc[u / 2][u % 2][0][v], odd = acc[u / 2][u % 2][1][v];
            const ptrdiff_t at = c + 2 * v * FC_LANES;
            REAL *dst = y + r * p->out[1] + at;
            vec_store_bits(dst, vec_zip_lo(even, odd), bits_range(-at, p->out[1] - at));
            vec_store_bits(dst + FC_LANES, vec_zip_hi(even, odd),
                           bits_range(-at - FC_LANES, p->out[1] - at - FC_LANES));
        }
    }
}

#define spread FC_LOCAL(spread)
FC_INLINE void spread(const int K, const fc_plane *p, const REAL *g, const REAL *w, REAL *y) {
    const ptrdiff_t t0 = -p->left / 2, t1 = (p->out[1] - 1 - p->left) / 2 + 1;
    const ptrdiff_t u0 = -p->top / 2, u1 = (p->out[0] - 1 - p->top) / 2 + 1;
    for (ptrdiff_t u = u0; u < u1; u += 2) {
        ptrdiff_t t = t0;
#if FC_PLANE_VECTORS == 4 /* 16 accumulators and a column's weights */
        for (; t + FC_LANES < t1; t += 2 * FC_LANES) spread_tile(K, 2, 2, p, g, w, u, t, y);
#endif
        for (; t < t1; t += FC_LANES) spread_tile(K, 2, 1, p, g, w, u, t, y);
    }
}

static void FC_KERNEL(depthwise_spread)(const fc_plane *p, const void *g, const void *w, void *y) {
    switch (p->kernel[0]) {
    case 1: spread(1, p, g, w, y); break;
    case 3: spread(3, p, g, w, y); break;
    case 5: spread(5, p, g, w, y); break;
    case 7: spread(7, p, g, w, y); break;
    }
}

/* ---- weight gradient ---- */

enum { FC_LOCAL(band) = 16 };
#define FC_DOT_ROWS(K, V) (FC_MR < 8 ? 2 : (V) == 1 ? 8 : (K) <= 3 || (V) == 2 ? 4 : 2)
#define FC_DOT_CHAINS(K) (FC_MR == 8 && (K) <= 3 ? 4 : 2)

/* acc[k] += dY * x[k ...] over R rows and V vectors, for one column of the filter */
#define dot_tile FC_LOCAL(dot_tile)
FC_INLINE void dot_tile(const int K, const int step, const int R, const int V, const int how, const REAL *const *row,
                        ptrdiff_t col, const uint32_t *bits, const ivec *mask, const REAL *g, ptrdiff_t ldg,
                        uint32_t last, vec acc[7][4]) {
    vec gv[8][FC_PLANE_VECTORS];
    FC_UNROLL
    for (int r = 0; r < R; r++) {
        FC_UNROLL
        for (int v = 0; v < V; v++)
            gv[r][v] = v == V - 1 && how != INSIDE ? vec_load_edge(g + r * ldg + v * FC_LANES, last)
                                                   : vec_load(g + r * ldg + v * FC_LANES);
    }
    FC_UNROLL
    for (int i = 0; i < step * (R - 1) + K; i++) {
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            const REAL *src = row[i] + col + v * step * FC_LANES;
            vec xv = load_lanes_by(how, src, bits[v * step], mask[v * step]);
            if (step == 2)
                xv = vec_even(xv, load_lanes_by(how, src + FC_LANES, bits[v * step + 1], mask[v * step + 1]));
            FC_UNROLL
            for (int r = 0; r < R; r++) {
                const int k = i - step * r;
                if (k >= 0 && k < K) acc[k][(r * V + v) % FC_DOT_CHAINS(K)] += gv[r][v] * xv;
            }
        }
    }
}

/* Lines [from, to) of `size` elements, cut in `of` parts */
#define fetch_share FC_LOCAL(fetch_share)
FC_INLINE void fetch_share(const REAL *p, ptrdiff_t size, ptrdiff_t from, ptrdiff_t to, ptrdiff_t of) {
    const char *end = (const char *)(p + size * to / of);
    for (const char *line = (const char *)(p + size * from / of); line < end; line += 64)
        __builtin_prefetch(line, 0, 2);
}

/* A band of at most BAND rows, V vectors wide, for all columns of the filter; it stays in L1 for them.  Meanwhile a share
 * of the next band is fetched in the order of memory, which strips do not have. */
#define dot_band FC_LOCAL(dot_band)
FC_INLINE void dot_band(const int K, const int step, const int V, const fc_plane *p, const REAL *x, const REAL *g,
                        ptrdiff_t o, ptrdiff_t r0, ptrdiff_t rows, REAL *sums) {
    const int R = FC_DOT_ROWS(K, V), chains = FC_DOT_CHAINS(K);
    const uint32_t last = bits_range(0, p->out[1] - o - (V - 1) * FC_LANES);
    const REAL *row[2 * FC_LOCAL(band) + 7];
    for (ptrdiff_t i = 0; i < step * (rows - 1) + K; i++) {
        const ptrdiff_t h = r0 * step + p->top + i;
        row[i] = h >= 0 && h < p->in[0] ? x + h * p->in[1] : (const REAL *)p->zeros;
    }
    const ptrdiff_t next = r0 + FC_LOCAL(band), to = o + V * FC_LANES < p->out[1] ? o + V * FC_LANES : p->out[1];
    if (next < p->last) {
        fetch_share(x + (next * step + p->top) * p->in[1], FC_LOCAL(band) * step * p->in[1], o, to, p->out[1]);
        fetch_share(g + next * p->out[1], FC_LOCAL(band) * p->out[1], o, to, p->out[1]);
    }
    for (ptrdiff_t j = 0; j < p->kernel[1]; j++) {
        const ptrdiff_t col = o * step + p->left + j, ldg = p->out[1];
        const uint32_t *bits = p->bits + j * p->masks + o / FC_LANES * step;
        const REAL *from = g + r0 * ldg + o;
        vec acc[7][4];
        FC_UNROLL
        for (int k = 0; k < K; k++) {
            acc[k][0] = vec_load(sums + (k * p->kernel[1] + j) * FC_LANES);
            FC_UNROLL
            for (int c = 1; c < chains; c++) acc[k][c] = (vec){0};
        }
        ptrdiff_t r = 0;
        ivec mask[2 * FC_PLANE_VECTORS];
        int how = how_to_load(p, bits, V * step);
        if (how == INSIDE && last != FC_ALL) how = p->outermost ? MASKED : CLEARED; /* or dY is masked for nothing */
        FC_UNROLL
        for (int v = 0; v < V * step; v++) mask[v] = FC_VEC_BYTES < 64 ? vec_mask(bits[v]) : (ivec){0};
#define FC_ROWS(how) \
    for (; r + R <= rows; r += R) \
    dot_tile(K, step, R, V, how, row + step * r, col, bits, mask, from + r * ldg, ldg, last, acc)
        FC_EACH_LOAD(how, FC_ROWS);
#undef FC_ROWS
        for (; r < rows; r++)
            dot_tile(K, step, 1, V, MASKED, row + step * r, col, bits, mask, from + r * ldg, ldg, last, acc);
        FC_UNROLL
        for (int k = 0; k < K; k++) {
            FC_UNROLL
            for (int c = 1; c < chains; c++) acc[k][0] += acc[k][c];
            vec_store(sums + (k * p->kernel[1] + j) * FC_LANES, acc[k][0]);
        }
    }
}

#define dot_strips FC_LOCAL(dot_strips)
FC_INLINE void dot_strips(const int K, const int step, const fc_plane *p, const REAL *x, const REAL *g, REAL *sums) {
    for (ptrdiff_t r = p->first; r < p->last; r += FC_LOCAL(band)) {
        const ptrdiff_t rows = p->last - r < FC_LOCAL(band) ? p->last - r : FC_LOCAL(band);
#define FC_STRIP(V, o) dot_band(K, step, V, p, x, g, o, r, rows, sums)
        FC_EACH_STRIP(p->out[1], FC_STRIP)
#undef FC_STRIP
    }
}

/* sums[tap][lanes] += dY * x over output rows [first, last) of a plane */
static void FC_KERNEL(depthwise_dot)(const fc_plane *p, const void *x, const void *g, void *sums) {
#define FC_PLANE(K, step) dot_strips(K, step, p, x, g, sums)
    FC_EACH_PLANE(p, FC_PLANE)
#undef FC_PLANE
}

#undef FC_EACH_LOAD
#undef FC_EACH_STRIP
#undef FC_WIDE_STRIPS
#undef FC_EACH_PLANE
#undef FC_PLANE_VECTORS
#undef FC_PLANE_ROWS
#undef FC_DOT_ROWS
#undef FC_DOT_CHAINS
