/* Depthwise convolution of one plane with one filter, step 1 or 2, lanes along w, straight from the image:
 *
 *     y[r][o] = bias + sum over i, j of w[i][j] * x[r * step + top + i][o * step + left + j]      zero outside the image
 *
 * A tile is R output rows x V vectors, its accumulators in registers.  For each column j of the filter, its K weights
 * are in registers too, and every vector of an input row is loaded once and serves all output rows that it meets:
 * R + K - 1 loads for R K multiply-adds.  Rows outside the image are a row of zeros, columns outside are masked lanes,
 * the same for all rows.  At step 2 a pair of loads gives filter column j the even pixels and column j + 1 the odd. */

#if FC_MR == 8
#define FC_PLANE_VECTORS 4
#define FC_PLANE_ROWS(vectors) ((vectors) == 1 ? 8 : 4)
#else
#define FC_PLANE_VECTORS 2
#define FC_PLANE_ROWS(vectors) 4
#endif
enum { FC_LOCAL(most_rows) = 2 * (FC_PLANE_ROWS(1) - 1) + 7 }; /* input rows of a tile */

/* acc += column j of the filter, or at step 2 columns j and, if `both`, j + 1 */
#define plane_column FC_LOCAL(plane_column)
FC_INLINE void plane_column(const int K, const int step, const int V, const int both, const REAL *const *row,
                            ptrdiff_t col, const uint32_t *bits, const REAL *w, ptrdiff_t ldw,
                            vec acc[FC_PLANE_ROWS(1)][FC_PLANE_VECTORS]) {
    const int R = FC_PLANE_ROWS(V);
    vec w0[7], w1[7];
    FC_UNROLL
    for (int k = 0; k < K; k++) {
        w0[k] = vec_splat(w[k * ldw]);
        if (both) w1[k] = vec_splat(w[k * ldw + 1]);
    }
    FC_UNROLL
    for (int i = 0; i < step * (R - 1) + K; i++) {
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            const REAL *src = row[i] + col + v * step * FC_LANES;
            vec even = vec_load_bits(src, bits[v * step]), odd = even;
            if (step == 2) {
                const vec next = vec_load_bits(src + FC_LANES, bits[v * step + 1]);
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
FC_INLINE void plane_tile(const int K, const int step, const int V, const fc_plane *p, const REAL *const *row,
                          ptrdiff_t col, const uint32_t *bits, const REAL *w, REAL bias, REAL *y, ptrdiff_t rows,
                          uint32_t last) {
    const int R = FC_PLANE_ROWS(V);
    const ptrdiff_t cols = p->kernel[1];
    vec acc[FC_PLANE_ROWS(1)][FC_PLANE_VECTORS];
    FC_UNROLL
    for (int r = 0; r < R; r++) {
        FC_UNROLL
        for (int v = 0; v < V; v++) acc[r][v] = vec_splat(bias);
    }
    ptrdiff_t j = 0;
    for (; j + step <= cols; j += step, bits += p->masks)
        plane_column(K, step, V, step == 2, row, col + j, bits, w + j, cols, acc);
    if (j < cols) plane_column(K, step, V, 0, row, col + j, bits, w + j, cols, acc);
    FC_UNROLL
    for (int r = 0; r < R; r++) {
        if (r >= rows) break;
        FC_UNROLL
        for (int v = 0; v < V; v++)
            vec_store_bits(y + r * p->out[1] + v * FC_LANES, acc[r][v], v == V - 1 ? last : FC_ALL);
    }
}

/* V vectors wide and all output rows high */
#define plane_strip FC_LOCAL(plane_strip)
FC_INLINE void plane_strip(const int K, const int step, const int V, const fc_plane *p, const REAL *x, const REAL *w,
                           REAL bias, ptrdiff_t o, REAL *y) {
    const int R = FC_PLANE_ROWS(V), inputs = step * (R - 1) + K;
    const ptrdiff_t left = p->out[1] - o;
    const uint32_t last = bits_range(0, left - (V - 1) * FC_LANES);
    const REAL *row[FC_LOCAL(most_rows)];
    for (ptrdiff_t r = p->first; r < p->last; r += R) {
        FC_UNROLL
        for (int i = 0; i < inputs; i++) {
            const ptrdiff_t h = r * step + p->top + i;
            row[i] = h >= 0 && h < p->in[0] ? x + h * p->in[1] : (const REAL *)p->zeros;
        }
        plane_tile(K, step, V, p, row, o * step + p->left, p->bits + o / FC_LANES * step, w, bias, y + r * p->out[1] + o,
                   p->last - r, last);
    }
}

#define plane_strips FC_LOCAL(plane_strips)
FC_INLINE void plane_strips(const int K, const int step, const fc_plane *p, const REAL *x, const REAL *w, REAL bias,
                            REAL *y) {
    enum { WIDEST = FC_PLANE_VECTORS };
    ptrdiff_t vectors = (p->out[1] + FC_LANES - 1) / FC_LANES, o = 0;
    while (vectors > 0) {
        /* strips of the widest tile, the rest in even parts */
        const ptrdiff_t strips = (vectors + WIDEST - 1) / WIDEST, V = (vectors + strips - 1) / strips;
        switch (V) {
        case 1: plane_strip(K, step, 1, p, x, w, bias, o, y); break;
        case 2: plane_strip(K, step, 2, p, x, w, bias, o, y); break;
#if FC_PLANE_VECTORS == 4
        case 3: plane_strip(K, step, 3, p, x, w, bias, o, y); break;
        case 4: plane_strip(K, step, 4, p, x, w, bias, o, y); break;
#endif
        }
        vectors -= V;
        o += V * FC_LANES;
    }
}

/* masks of all vectors of an input row that filter columns j = 0, step, 2 step ... read: bits[j / step * masks + i] */
static void FC_KERNEL(plane_masks)(const fc_plane *p, uint32_t *bits) {
    for (ptrdiff_t j = 0; j < p->kernel[1]; j += p->step)
        for (ptrdiff_t i = 0; i < p->masks; i++) {
            const ptrdiff_t col = p->left + j + i * FC_LANES;
            *bits++ = bits_range(-col, p->in[1] - col);
        }
}

/* Output rows [first, last) of a plane */
static void FC_KERNEL(depthwise)(const fc_plane *p, const void *x, const void *w, const void *bias, void *y) {
    const REAL b = bias ? *(const REAL *)bias : 0;
    switch (p->kernel[0] * 2 + p->step - 1) {
#define FC_CASE(k, s) \
    case k * 2 + s - 1: plane_strips(k, s, p, x, w, b, y); break;
        FC_CASE(1, 1)
        FC_CASE(3, 1)
        FC_CASE(5, 1)
        FC_CASE(7, 1)
        FC_CASE(1, 2)
        FC_CASE(3, 2)
        FC_CASE(5, 2)
        FC_CASE(7, 2)
#undef FC_CASE
    }
}
