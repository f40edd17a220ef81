/* Depthwise convolution of one plane with one filter, step 1 or 2, lanes along w:
 *
 *     y[r][o] = bias + sum over i, j of w[i][j] * x[r * step + top + i][o * step + left + j]      zero outside the image
 *
 * The input rows of a band of outputs are copied first, to L1 unless filters are large: padded, and at step 2 the even
 * columns apart from the odd ones, so that all that a tile loads are plain contiguous vectors:
 *
 *     step 1   | . x0 x1 x2 x3 ... . . |              step 2   | . x1 x3 ... . . | x0 x2 x4 ... . . |
 *                pitch                                           pitch             pitch
 *
 * A tile is R output rows x V vectors, its accumulators in registers.  For each column j of the filter, its K weights
 * are in registers too, and every vector of an input row is loaded once and serves all output rows that it meets:
 * step (R - 1) + K loads for R K multiply-adds.
 *
 * The other two passes have the same tiles:
 *
 *     input gradient   dX[r][c] = sum of w[i][j] * dY[(r - top - i) / 2][(c - left - j) / 2] where 2 divides both: rows
 *                      and columns by parity, 4 sets of accumulators, interleaved as they are stored.  (At step 1 it is
 *                      a convolution with the filter turned: weight_step = -1.)
 *     weight gradient  dW[i][j] = sum of dY[r][o] * x[r * step + top + i][o * step + left + j]: R rows of dY stay in
 *                      registers for all K taps of a column; each tap has a vector of sums. */

#define FC_PLANE_VECTORS (FC_MR == 8 ? 4 : 2)
enum { FC_LOCAL(plane_height) = 4, FC_LOCAL(narrow_height) = 8 }; /* rows of a tile; where outputs are a vector wide */

/* Rows [first, first + rows) of a plane, `count` columns of each phase from column `left` on */
#define copy_band FC_LOCAL(copy_band)
FC_INLINE void copy_band(const int step, const fc_plane *p, const REAL *x, ptrdiff_t first, ptrdiff_t rows,
                         ptrdiff_t left, ptrdiff_t count) {
    const fc_copy copy = {p->in[0], p->in[1], {1, step}, left, count, step * p->pitch, p->pitch, p->end};
    copy_plane(step, 0, &copy, x, first, rows, p->band);
}

/* Kept apart, or it would be compiled once for each K, with few registers left */
static FC_NOINLINE void FC_KERNEL(copy_band_1)(const fc_plane *p, const REAL *x, ptrdiff_t first, ptrdiff_t rows,
                                               ptrdiff_t left, ptrdiff_t count) {
    copy_band(1, p, x, first, rows, left, count);
}
static FC_NOINLINE void FC_KERNEL(copy_band_2)(const fc_plane *p, const REAL *x, ptrdiff_t first, ptrdiff_t rows,
                                               ptrdiff_t left, ptrdiff_t count) {
    copy_band(2, p, x, first, rows, left, count);
}

/* What output rows [r, r + rows), columns [o, o + width) read */
#define copy_input FC_LOCAL(copy_input)
FC_INLINE void copy_input(const int K, const int step, const fc_plane *p, const REAL *x, ptrdiff_t r, ptrdiff_t rows,
                          ptrdiff_t o, ptrdiff_t width) {
    const ptrdiff_t top = r * step + p->top, height = step * (rows - 1) + K, left = o * step + p->left;
    if (step == 1)
        FC_KERNEL(copy_band_1)(p, x, top, height, left, width + p->kernel[1] - 1);
    else
        FC_KERNEL(copy_band_2)(p, x, top, height, left, width + (p->kernel[1] - 1) / 2);
}

/* The first input row that is not copied yet, or what follows the plane: it is fetched while a band is computed, a few
 * lines a tile, in the order of memory. */
#define next_input FC_LOCAL(next_input)
FC_INLINE const char *next_input(const fc_plane *p, const REAL *x, ptrdiff_t row) {
    return (const char *)(x + smaller(row, p->in[0]) * p->in[1]);
}

#define fetch FC_LOCAL(fetch)
FC_INLINE const char *fetch(const char *ahead, ptrdiff_t elements) {
    for (ptrdiff_t i = 0; i < elements * FC_REAL_BYTES; i += 64) __builtin_prefetch(ahead + i, 0, 2);
    return ahead + elements * FC_REAL_BYTES;
}

/* Where a band has filter column j of its first output */
#define column_of FC_LOCAL(column_of)
FC_INLINE ptrdiff_t column_of(const int step, ptrdiff_t pitch, ptrdiff_t j) {
    return step == 1 ? j : (j & 1) * pitch + (j >> 1);
}

/* DO(V, o) for strips of V vectors from column o on that cover `count` columns, as even as they can be */
#if FC_MR == 8
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

/* R rows and V vectors of outputs, of which `rows` and in the last vector `last` are stored, `at` elements behind the
 * first of the plane; what they read starts at `from`, rows `row` elements apart */
#define plane_tile FC_LOCAL(plane_tile)
FC_INLINE void plane_tile(const int K, const int step, const int R, const int V, const REAL *from, ptrdiff_t row,
                          ptrdiff_t pitch, const REAL *w, ptrdiff_t weight_step, ptrdiff_t cols, REAL bias,
                          const fc_finish *finish, REAL *y, ptrdiff_t ldy, ptrdiff_t at, ptrdiff_t rows,
                          uint32_t last) {
    vec acc[FC_LOCAL(narrow_height)][FC_PLANE_VECTORS];
    FC_UNROLL
    for (int r = 0; r < R; r++) {
        FC_UNROLL
        for (int v = 0; v < V; v++) acc[r][v] = vec_splat(bias);
    }
    for (ptrdiff_t j = 0; j < cols; j++, w += weight_step) {
        const REAL *src = from + column_of(step, pitch, j);
        vec weight[7];
        FC_UNROLL
        for (int k = 0; k < K; k++) weight[k] = vec_splat(w[k * cols * weight_step]);
        FC_UNROLL
        for (int i = 0; i < step * (R - 1) + K; i++, src += row) {
            if (i % step >= K) continue; /* of a filter of one row */
            FC_UNROLL
            for (int v = 0; v < V; v++) {
                vec xv = vec_load(src + v * FC_LANES);
                FC_OPAQUE(xv); /* or each multiply-add loads it again */
                FC_UNROLL
                for (int r = 0; r < R; r++)
                    if (i >= step * r && i < step * r + K) acc[r][v] += weight[i - step * r] * xv;
            }
        }
    }
    const fc_finish how = finish_of(finish);
    FC_UNROLL
    for (int r = 0; r < R; r++) {
        if (r >= rows) break;
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            const uint32_t stored = v == V - 1 ? last : FC_ALL;
            const ptrdiff_t to = at + r * ldy + v * FC_LANES;
            vec_store_bits(y + to, finished(acc[r][v], how, to, stored), stored);
        }
    }
}

/* All rows of a band, V vectors of outputs wide; what the first reads is at `from`.  The lines that tiles will store to are
 * fetched too: stores one below another do not train the prefetchers. */
#define plane_strip FC_LOCAL(plane_strip)
FC_INLINE const char *plane_strip(const int K, const int step, const int R, const int V, const fc_plane *p,
                                  const REAL *from, const char *ahead, const REAL *w, REAL bias,
                                  const fc_finish *finish, REAL *y, ptrdiff_t at, ptrdiff_t rows, uint32_t last) {
    const ptrdiff_t pitch = p->pitch, cols = p->kernel[1], weight_step = p->weight_step, ldy = p->out[1];
    for (; rows > 0; rows -= R, at += R * ldy, from += R * step * step * pitch) {
        ahead = fetch(ahead, R * V * FC_LANES * step * step);
        FC_UNROLL
        for (int r = 2 * R; r < 3 * R; r++) __builtin_prefetch(y + at + r * ldy, 1);
        plane_tile(K, step, R, V, from, step * pitch, pitch, w, weight_step, cols, bias, finish, y, ldy, at, rows,
                   last);
    }
    return ahead;
}

/* A single row by a filter of one: tiles of as many vectors have them beside one another */
#define plane_line FC_LOCAL(plane_line)
FC_INLINE void plane_line(const int step, const fc_plane *p, const REAL *from, const char *ahead, const REAL *w,
                          REAL bias, const fc_finish *finish, REAL *y, ptrdiff_t at, ptrdiff_t width) {
    enum { R = FC_LOCAL(plane_height), WIDE = 2 * FC_LANES };
    const ptrdiff_t pitch = p->pitch, cols = p->kernel[1], weight_step = p->weight_step;
    ptrdiff_t o = 0;
    for (; o + R * WIDE <= width; o += R * WIDE) {
        ahead = fetch(ahead, R * WIDE * step);
        plane_tile(1, step, R, 2, from + o, WIDE / step, pitch, w, weight_step, cols, bias, finish, y, WIDE, at + o, R,
                   FC_ALL);
    }
    for (; o < width; o += FC_LANES)
        plane_tile(1, step, 1, 1, from + o, 0, pitch, w, weight_step, cols, bias, finish, y, 0, at + o, 1,
                   bits_range(0, width - o));
}

/* Output rows [r, r + rows), columns [o0, o0 + width) */
#define plane_band FC_LOCAL(plane_band)
FC_INLINE void plane_band(const int K, const int step, const fc_plane *p, const REAL *x, const REAL *w, REAL bias,
                          const fc_finish *finish, ptrdiff_t r, ptrdiff_t rows, ptrdiff_t o0, ptrdiff_t width,
                          REAL *y) {
    const REAL *from = p->band;
    const ptrdiff_t at = r * p->out[1] + o0;
    const char *ahead = next_input(p, x, (r + rows - 1) * step + p->top + K);
    copy_input(K, step, p, x, r, rows, o0, width);
    if (K == 1 && rows == 1) {
        plane_line(step, p, from, ahead, w, bias, finish, y, at, width);
        return;
    }
    if (width <= FC_LANES) {
        plane_strip(K, step, FC_LOCAL(narrow_height), 1, p, from, ahead, w, bias, finish, y, at, rows,
                    bits_range(0, width));
        return;
    }
#define FC_STRIP(V, o) \
    ahead = plane_strip(K, step, FC_LOCAL(plane_height), V, p, from + o, ahead, w, bias, finish, y, at + o, rows, \
                        bits_range(0, width - o - (V - 1) * FC_LANES))
    FC_EACH_STRIP(width, FC_STRIP)
#undef FC_STRIP
}

#define plane_bands FC_LOCAL(plane_bands)
FC_INLINE void plane_bands(const int K, const int step, const fc_plane *p, const REAL *x, const REAL *w, REAL bias,
                           const fc_finish *finish, REAL *y) {
    for (ptrdiff_t r = p->first; r < p->last; r += p->band_rows)
        for (ptrdiff_t o = 0; o < p->out[1]; o += p->band_cols)
            plane_band(K, step, p, x, w, bias, finish, r, smaller(p->band_rows, p->last - r), o,
                       smaller(p->band_cols, p->out[1] - o), y);
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
#define FC_PLANE(K, step) plane_bands(K, step, p, x, w, b, finish, y)
    FC_EACH_PLANE(p, FC_PLANE)
#undef FC_PLANE
}

/* ---- input gradient, step 2; dY is `in`, dX is `out`; top and left are the first tap's, not above 0 ---- */

/* acc[u][row parity][column parity] += columns j and, if `both`, j + 1 of the filter: the tap 2 i + row parity, j + column
 * parity is met by row u - i of dY, of which `from` is the row (K - 1) / 2 above the tile */
#define spread_column FC_LOCAL(spread_column)
FC_INLINE void spread_column(const int K, const int U, const int V, const int both, ptrdiff_t pitch, const REAL *from,
                             const REAL *w, ptrdiff_t cols, vec acc[2][2][2][2]) {
    const int back = (K - 1) / 2;
    vec w0[7], w1[7];
    FC_UNROLL
    for (int k = 0; k < K; k++) {
        w0[k] = vec_splat(w[k * cols]);
        if (both) w1[k] = vec_splat(w[k * cols + 1]);
    }
    FC_UNROLL
    for (int i = -back; i < U; i++, from += pitch) {
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            const vec gv = vec_load(from + v * FC_LANES);
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

/* Rows 2 u + top and 2 u + top + 1 of dX for u0 <= u < u0 + U, columns 2 t + left and 2 t + left + 1 for V vectors of t,
 * those up to `last`; the copied band has row u0 - (K - 1) / 2, column t0 - (cols - 1) / 2 of dY at `from` */
#define spread_tile FC_LOCAL(spread_tile)
FC_INLINE void spread_tile(const int K, const int U, const int V, const fc_plane *p, const REAL *from, const REAL *w,
                           ptrdiff_t u0, ptrdiff_t t0, ptrdiff_t last, REAL *y) {
    const ptrdiff_t cols = p->kernel[1], pitch = p->pitch;
    vec acc[2][2][2][2];
    FC_UNROLL
    for (int u = 0; u < U; u++) {
        FC_UNROLL
        for (int v = 0; v < V; v++) acc[u][0][0][v] = acc[u][0][1][v] = acc[u][1][0][v] = acc[u][1][1][v] = (vec){0};
    }
    ptrdiff_t j = 0;
    for (; j + 2 <= cols; j += 2) spread_column(K, U, V, 1, pitch, from + (cols - 1) / 2 - j / 2, w + j, cols, acc);
    if (j < cols) spread_column(K, U, V, 0, pitch, from + (cols - 1) / 2 - j / 2, w + j, cols, acc);
    const ptrdiff_t c = 2 * t0 + p->left, end = smaller(p->out[1], 2 * last + p->left);
    FC_UNROLL
    for (int u = 0; u < 2 * U; u++) {
        const ptrdiff_t r = 2 * u0 + u + p->top;
        if (r < 0 || r >= p->out[0]) continue;
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            const vec even = acc[u / 2][u % 2][0][v], odd = acc[u / 2][u % 2][1][v];
            const ptrdiff_t at = c + 2 * v * FC_LANES;
            REAL *dst = y + r * p->out[1] + at;
            vec_store_bits(dst, vec_zip_lo(even, odd), bits_range(-at, end - at));
            vec_store_bits(dst + FC_LANES, vec_zip_hi(even, odd), bits_range(-at - FC_LANES, end - at - FC_LANES));
        }
    }
}

#define spread FC_LOCAL(spread)
FC_INLINE void spread(const int K, const fc_plane *p, const REAL *g, const REAL *w, REAL *y) {
    const int back = (K - 1) / 2;
    const ptrdiff_t left = (p->kernel[1] - 1) / 2;
    const ptrdiff_t t1 = (p->out[1] - 1 - p->left) / 2 + 1, u1 = (p->out[0] - 1 - p->top) / 2 + 1;
    for (ptrdiff_t u0 = -p->top / 2; u0 < u1; u0 += p->band_rows)
        for (ptrdiff_t t0 = -p->left / 2; t0 < t1; t0 += p->band_cols) {
            const ptrdiff_t u_end = smaller(u0 + p->band_rows, u1), t_end = smaller(t0 + p->band_cols, t1);
            const char *ahead = next_input(p, g, u_end);
            FC_KERNEL(copy_band_1)(p, g, u0 - back, u_end - u0 + back, t0 - left, t_end - t0 + left);
            for (ptrdiff_t u = u0; u < u_end; u += 2) {
                const REAL *from = (const REAL *)p->band + (u - u0) * p->pitch - t0;
                ptrdiff_t t = t0;
                ahead = fetch(ahead, 2 * p->in[1]);
#if FC_MR == 8 /* 16 accumulators and a column's weights */
                for (; t + FC_LANES < t_end; t += 2 * FC_LANES) spread_tile(K, 2, 2, p, from + t, w, u, t, t_end, y);
#endif
                for (; t < t_end; t += FC_LANES) spread_tile(K, 2, 1, p, from + t, w, u, t, t_end, y);
            }
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

#define FC_DOT_ROWS(K, V) (FC_MR < 8 ? 2 : (V) == 1 ? 8 : (K) <= 3 || (V) == 2 ? 4 : 2)
#define FC_DOT_CHAINS(K) (FC_MR == 8 && (K) <= 3 ? 4 : 2)

/* acc[k] += dY * x[k ...] over R rows and V vectors, for one column of the filter; at an edge, where dY has only the
 * lanes `last` of the last vector, x has zeros in the others, whatever lies there */
#define dot_tile FC_LOCAL(dot_tile)
FC_INLINE void dot_tile(const int K, const int step, const int R, const int V, const int edge, const REAL *from,
                        ptrdiff_t pitch, const REAL *g, ptrdiff_t ldg, uint32_t last, vec acc[7][4]) {
    const ivec mask = edge ? vec_mask(last) : (ivec){0};
    vec gv[8][FC_PLANE_VECTORS];
    FC_UNROLL
    for (int r = 0; r < R; r++) {
        FC_UNROLL
        for (int v = 0; v < V; v++)
            gv[r][v] = edge && v == V - 1 ? vec_load_edge(g + r * ldg + v * FC_LANES, last)
                                          : vec_load(g + r * ldg + v * FC_LANES);
    }
    FC_UNROLL
    for (int i = 0; i < step * (R - 1) + K; i++, from += step * pitch) {
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            vec xv = vec_load(from + v * FC_LANES);
            if (edge && v == V - 1) xv = (vec)((ivec)xv & mask);
            FC_UNROLL
            for (int r = 0; r < R; r++) {
                const int k = i - step * r;
                if (k >= 0 && k < K) acc[k][(r * V + v) % FC_DOT_CHAINS(K)] += gv[r][v] * xv;
            }
        }
    }
}

/* All rows of a band, V vectors wide, for all columns of the filter; `x` is what their first output reads */
#define dot_strip FC_LOCAL(dot_strip)
FC_INLINE void dot_strip(const int K, const int step, const int V, const fc_plane *p, const REAL *x, const REAL *g,
                         ptrdiff_t rows, uint32_t last, REAL *sums) {
    const int R = FC_DOT_ROWS(K, V), chains = FC_DOT_CHAINS(K);
    const ptrdiff_t pitch = p->pitch, ldg = p->out[1], cols = p->kernel[1], down = step * step * pitch;
    for (ptrdiff_t j = 0; j < cols; j++) {
        const REAL *from = x + column_of(step, pitch, j);
        vec acc[7][4];
        FC_UNROLL
        for (int k = 0; k < K; k++) {
            acc[k][0] = vec_load(sums + (k * cols + j) * FC_LANES);
            FC_UNROLL
            for (int c = 1; c < chains; c++) acc[k][c] = (vec){0};
        }
        ptrdiff_t r = 0;
        if (last == FC_ALL)
            for (; r + R <= rows; r += R)
                dot_tile(K, step, R, V, 0, from + r * down, pitch, g + r * ldg, ldg, last, acc);
        else
            for (; r + R <= rows; r += R)
                dot_tile(K, step, R, V, 1, from + r * down, pitch, g + r * ldg, ldg, last, acc);
        for (; r < rows; r++) dot_tile(K, step, 1, V, 1, from + r * down, pitch, g + r * ldg, ldg, last, acc);
        FC_UNROLL
        for (int k = 0; k < K; k++) {
            FC_UNROLL
            for (int c = 1; c < chains; c++) acc[k][0] += acc[k][c];
            vec_store(sums + (k * cols + j) * FC_LANES, acc[k][0]);
        }
    }
}

#define dot_bands FC_LOCAL(dot_bands)
FC_INLINE void dot_bands(const int K, const int step, const fc_plane *p, const REAL *x, const REAL *g, REAL *sums) {
    const ptrdiff_t ldg = p->out[1];
    for (ptrdiff_t r = p->first; r < p->last; r += p->band_rows)
        for (ptrdiff_t o0 = 0; o0 < ldg; o0 += p->band_cols) {
            const ptrdiff_t rows = smaller(p->band_rows, p->last - r), width = smaller(p->band_cols, ldg - o0);
            const REAL *from = p->band;
            const char *next_x = next_input(p, x, (r + rows - 1) * step + p->top + K);
            const char *next_g = (const char *)(g + (r + rows) * ldg);
            copy_input(K, step, p, x, r, rows, o0, width);
#define FC_STRIP(V, o) \
    next_x = fetch(next_x, rows * V * FC_LANES * step * step), next_g = fetch(next_g, rows * V * FC_LANES); \
    dot_strip(K, step, V, p, from + o, g + r * ldg + o0 + o, rows, bits_range(0, width - o - (V - 1) * FC_LANES), sums)
            FC_EACH_STRIP(width, FC_STRIP)
#undef FC_STRIP
        }
}

/* sums[tap][lanes] += dY * x over output rows [first, last) of a plane */
static void FC_KERNEL(depthwise_dot)(const fc_plane *p, const void *x, const void *g, void *sums) {
#define FC_PLANE(K, step) dot_bands(K, step, p, x, g, sums)
    FC_EACH_PLANE(p, FC_PLANE)
#undef FC_PLANE
}

#undef FC_EACH_STRIP
#undef FC_WIDE_STRIPS
#undef FC_EACH_PLANE
#undef FC_PLANE_VECTORS
#undef FC_DOT_ROWS
#undef FC_DOT_CHAINS
