/* Winograd's minimal filtering, F(m x m, r x r) on tiles of P x P points, P = m + r - 1: F(4,3) on 6, F(3,3) on 5 where
 * images are small, F(3,5) on 7; weight gradients, with filter and output exchanged, F(3,4) and F(5,2) on 6 (F(5,3) rounds
 * twice as much), F(3,3) on 5.
 *
 *     Y = A^T [ (G g G^T) . (B^T d B) ] A           m x m outputs of an r x r filter g from a P x P tile d
 *
 * The points are pairs +-q, infinity and, where P is even, 0.  With N(q) = prod (q - other points):
 *     row q of G      [1, q, q^2, ...] / N(q);   infinity: the last coefficient
 *     row q of A^T's transpose  [1, q, q^2, ...];  infinity: into the last output
 *     row q of B^T    the coefficients of prod (x - other points); infinity: of the product of all
 * where P is odd the rows of -q are negated in G and B^T, which spares a sign.
 *
 * A filter of six to nine taps along a line is an image filter, too: with rows of three that overlap, X[a][u] = x[3 a + u]
 * and g[i][j] = g[3 i + j], the output y[3 a + b] is that of X and g at (a, b), b < 3.  12 outputs a tile, 36
 * multiplications instead of 108.  Up to five taps have tiles of one column: F(4,3) and F(3,5), 6 multiplications instead
 * of 12, 7 instead of 15.
 *
 * 36 multiplications instead of 144 (3 x 3), 49 instead of 225 (5 x 5).  Lanes are channels, so that a transformed tile
 * is a row of a GEMM operand as it is; images enter and leave through patches [row][column][lanes], 16 channels
 * transposed at a time.
 *
 * Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.  Fractions as points: Barabasz et al., "Error
 * Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2018: rms error 2.9 times
 * direct convolution's on 6 points (0, +-1, +-2: 6.5), 4 times on 7 (0, +-1/2, +-1, 2: 8). */

#define FC_POINTS 7 /* along an axis, at most */
#define FC_OUTPUTS 5

#define square FC_LOCAL(square)
FC_INLINE REAL square(REAL q) { return q * q; }

/* The i-th pair of points */
#define point FC_LOCAL(point)
FC_INLINE REAL point(const int points, const int i) {
    if (points == 5) return i == 0 ? (REAL)0.4375 : (REAL)1.375;
    if (points == 6) return i == 0 ? (REAL)0.625 : (REAL)1.5;
    return i == 0 ? (REAL)0.3125 : i == 1 ? (REAL)0.875 : (REAL)1.625;
}

/* v = B^T d: 10 multiply-adds on 5 points, 12 on 6, 21 on 7 */
#define tile_rows FC_LOCAL(tile_rows)
FC_INLINE void tile_rows(const int points, const vec *d, vec *v) {
    const int first = points % 2 == 0;
    const REAL a = square(point(points, 0)), b = square(point(points, 1)), c = square(point(points, 2));
    if (first) {
        v[0] = (d[4] - (a + b) * d[2]) + (a * b) * d[0];
        v[5] = (d[5] - (a + b) * d[3]) + (a * b) * d[1];
    } else if (points == 5)
        v[4] = (d[4] - (a + b) * d[2]) + (a * b) * d[0];
    else
        v[6] = ((d[6] - (a + b + c) * d[4]) + (a * b + b * c + c * a) * d[2]) - (a * b * c) * d[0];
    FC_UNROLL
    for (int i = 0; i < points / 2 - first; i++) { /* the polynomial of the other pairs, times x and times q */
        const REAL q = point(points, i), p = i == 0 ? b : a, r = i == 2 ? b : c;
        const vec o = points == 7 ? (d[5] - (p + r) * d[3]) + (p * r) * d[1] : d[points - 2] - p * d[points - 4];
        const vec e = points == 7 ? (d[4] - (p + r) * d[2]) + (p * r) * d[0] : d[points - 3] - p * d[points - 5];
        v[first + 2 * i] = o + q * e;
        v[first + 2 * i + 1] = first ? o - q * e : q * e - o;
    }
}

/* u = G g: the polynomial with coefficients g[0 .. n) at the points, over N */
#define evaluate FC_LOCAL(evaluate)
FC_INLINE void evaluate(const int points, const int n, const vec *g, vec *u) {
    const int first = points % 2 == 0, pairs = points / 2 - first;
    if (first) u[0] = g[0] * (1 / square(point(points, 0) * point(points, 1)));
    FC_UNROLL
    for (int i = 0; i < pairs; i++) {
        const REAL q = point(points, i);
        REAL over = 2 * (first ? q * q : q);
        FC_UNROLL
        for (int j = 0; j < pairs; j++)
            if (j != i) over *= square(q) - square(point(points, j));
        REAL factor = 1 / over;
        vec sum[2];
        FC_UNROLL
        for (int k = 0; k < n; k++, factor *= q) sum[k % 2] = k < 2 ? factor * g[k] : sum[k % 2] + factor * g[k];
        u[first + 2 * i] = sum[0] + sum[1];
        u[first + 2 * i + 1] = sum[0] - sum[1];
    }
    u[points - 1] = g[n - 1];
}

/* y = A^T m: n outputs */
#define interpolate FC_LOCAL(interpolate)
FC_INLINE void interpolate(const int points, const int n, const vec *m, vec *y) {
    const int first = points % 2 == 0;
    FC_UNROLL
    for (int i = 0; i < points / 2 - first; i++) {
        const vec *pair = m + first + 2 * i;
        const vec part[2] = {pair[0] + pair[1], pair[0] - pair[1]};
        REAL factor = 1;
        FC_UNROLL
        for (int k = 0; k < n; k++, factor *= point(points, i)) {
            const vec term = k == 0 ? part[0] : factor * part[k % 2];
            y[k] = i > 0 ? y[k] + term : k == 0 && first ? m[0] + term : term;
        }
    }
    y[n - 1] += m[points - 1];
}

/* Some vectors, `step` apart.  The pointer is opaque, or the compiler multiplies all offsets of a tile beforehand and
 * spills them. */
#define load_points FC_LOCAL(load_points)
FC_INLINE void load_points(const int points, const REAL *p, ptrdiff_t step, vec *v) {
    __asm__("" : "+r"(p));
    FC_UNROLL
    for (int i = 0; i < points; i++) v[i] = vec_load(p + i * step);
}

#define store_points FC_LOCAL(store_points)
FC_INLINE void store_points(const int points, const vec *v, REAL *p, ptrdiff_t step) {
    __asm__("" : "+r"(p));
    FC_UNROLL
    for (int i = 0; i < points; i++) vec_store(p + i * step, v[i]);
}

/* Inlined with a constant step */
#define load_rows FC_LOCAL(load_rows)
FC_INLINE void load_rows(const fc_image *x, const REAL *src, int rows, int cols, const ptrdiff_t step, REAL *patch) {
    for (int i = 0; i < rows; i++, patch += (ptrdiff_t)cols * FC_LANES) {
        const ptrdiff_t row = x->row + i * x->step[0];
        const int inside = row >= 0 && row < x->height;
        for (int j = 0; j < cols; j += FC_LANES) {
            const ptrdiff_t col = x->col + j * step, at = row * x->width + col;
            const ptrdiff_t lo = ceil_div(-col, step), hi = ceil_div(x->width - col, step);
            const int first = lo < 0 ? 0 : (int)lo, last = hi < FC_LANES ? (int)hi : FC_LANES;
            const uint32_t bits = inside ? bits_range(lo, hi) : 0;
            vec v[FC_LANES];
            if (bits) {
                if (j * FC_REAL_BYTES % 64 == 0) { /* the next channels: a few lines of each are no stream */
                    FC_UNROLL
                    for (int l = 0; l < FC_LANES; l++) __builtin_prefetch(src + (FC_LANES + l) * x->plane + at, 0, 2);
                }
                FC_UNROLL
                for (int l = 0; l < FC_LANES; l++) {
                    const REAL *from = src + l * x->plane + at;
                    v[l] = l >= x->channels ? (vec){0}
                           : step == 1      ? vec_load_bits(from, bits)
                                            : load_lanes(from, step, first, last);
                }
                vec_transpose(v);
            } else {
                FC_UNROLL
                for (int l = 0; l < FC_LANES; l++) v[l] = (vec){0};
            }
            FC_UNROLL
            for (int l = 0; l < FC_LANES; l++)
                if (j + l < cols) vec_store(patch + (j + l) * FC_LANES, v[l]);
        }
    }
}

/* Some channels of an image, transposed: patch[i][j][lanes] = x[lane][row + i * step][col + j * step], zero outside. */
static void FC_KERNEL(load_patch)(const fc_image *x, const void *src, int rows, int cols, void *patch) {
    if (x->step[1] == 1)
        load_rows(x, src, rows, cols, 1, patch);
    else if (x->step[1] == 2)
        load_rows(x, src, rows, cols, 2, patch);
    else
        load_rows(x, src, rows, cols, x->step[1], patch);
}

/* The way back: y[lane][row + i * step][col + j * step] = patch[i][j][lane] inside the image. */
static void FC_KERNEL(store_patch)(const fc_image *y, const void *patch_, int rows, int cols, void *dst_) {
    const REAL *patch = patch_;
    const ptrdiff_t step = y->step[1], width = ceil_div(y->width - y->col, step);
    for (int i = 0; i < rows && y->row + i * y->step[0] < y->height; i++, patch += (ptrdiff_t)cols * FC_LANES) {
        REAL *dst = (REAL *)dst_ + (y->row + i * y->step[0]) * y->width + y->col;
        for (int j = 0; j < cols && j < width; j += FC_LANES) {
            const ptrdiff_t left = width - j < cols - j ? width - j : cols - j;
            const uint32_t bits = bits_range(0, left);
            vec v[FC_LANES];
            FC_UNROLL
            for (int l = 0; l < FC_LANES; l++) v[l] = l < left ? vec_load(patch + (j + l) * FC_LANES) : (vec){0};
            vec_transpose(v);
            FC_UNROLL
            for (int l = 0; l < FC_LANES; l++) {
                if (l >= y->channels) break;
                REAL *to = dst + l * y->plane + j * step;
                if (step == 1)
                    vec_store_bits(to, v[l], bits);
                else
                    for (int e = 0; e < FC_LANES && e < left; e++) to[e * step] = v[l][e];
            }
        }
    }
}

/* V = B^T d B of a tile, or B^T d of one column */
#define transform_input FC_LOCAL(transform_input)
FC_INLINE void transform_input(const int points, const int flat, const REAL *src, ptrdiff_t row, ptrdiff_t col, REAL *v,
                               ptrdiff_t plane) {
    vec t[FC_POINTS][FC_POINTS], d[FC_POINTS], c[FC_POINTS];
    FC_UNROLL
    for (int j = 0; j < (flat ? 1 : points); j++) {
        load_points(points, src + j * col, row, d);
        tile_rows(points, d, c);
        FC_UNROLL
        for (int i = 0; i < points; i++) t[i][j] = c[i];
    }
    if (flat) {
        store_points(points, c, v, plane);
        return;
    }
    FC_UNROLL
    for (int i = 0; i < points; i++) {
        tile_rows(points, t[i], c);
        store_points(points, c, v + points * i * plane, plane);
    }
}

#define input_tiles FC_LOCAL(input_tiles)
FC_INLINE void input_tiles(const int points, const int flat, const fc_tiles *t, const REAL *patch, REAL *v,
                           ptrdiff_t plane, ptrdiff_t stride) {
    for (int th = 0; th < t->tiles_h; th++)
        for (int tw = 0; tw < t->tiles_w; tw++, v += stride)
            transform_input(points, flat, patch + (th * t->down + tw * t->across) * FC_LANES, t->row * FC_LANES,
                            t->col * FC_LANES, v, plane);
}

/* V of the tiles of a patch: v[point * plane + tile * stride + lane] */
static void FC_KERNEL(winograd_input)(int points, const fc_tiles *t, const void *patch, void *v, ptrdiff_t plane,
                                      ptrdiff_t stride) {
    if (t->flat && points == 6)
        input_tiles(6, 1, t, patch, v, plane, stride);
    else if (t->flat)
        input_tiles(7, 1, t, patch, v, plane, stride);
    else if (points == 5)
        input_tiles(5, 0, t, patch, v, plane, stride);
    else if (points == 6)
        input_tiles(6, 0, t, patch, v, plane, stride);
    else
        input_tiles(7, 0, t, patch, v, plane, stride);
}

/* U = G g G^T of an n x n array of vectors, or G g of a column of n, `step` apart (-1: turned by 180 degrees):
 * u[point * plane + lane] */
#define transform_kernel FC_LOCAL(transform_kernel)
FC_INLINE void transform_kernel(const int points, const int n, const int flat, const vec *g, const int step, REAL *u,
                                ptrdiff_t plane) {
    const int cols = flat ? 1 : n;
    vec t[FC_POINTS][FC_OUTPUTS], c[FC_POINTS];
    FC_UNROLL
    for (int j = 0; j < cols; j++) {
        vec column[FC_OUTPUTS];
        FC_UNROLL
        for (int i = 0; i < n; i++) column[i] = g[(i * cols + j) * step];
        evaluate(points, n, column, c);
        FC_UNROLL
        for (int i = 0; i < points; i++) t[i][j] = c[i];
    }
    if (flat) {
        store_points(points, c, u, plane);
        return;
    }
    FC_UNROLL
    for (int i = 0; i < points; i++) {
        evaluate(points, n, t[i], c);
        store_points(points, c, u + points * i * plane, plane);
    }
}

/* g[e] = element e of the filters of `lanes` rows, `count` elements each, of which the first `taps` are there */
#define load_filters FC_LOCAL(load_filters)
FC_INLINE void load_filters(const int count, const int taps, const REAL *w, ptrdiff_t row_stride, int lanes, vec *g) {
    FC_UNROLL
    for (int e = 0; e < count; e += FC_LANES) {
        if (e == count - 1 && taps == count) { /* no transpose for the sake of one */
            REAL lane[FC_LANES];
            FC_UNROLL
            for (int l = 0; l < FC_LANES; l++) lane[l] = l < lanes ? w[l * row_stride + e] : 0;
            g[e] = vec_load(lane);
            break;
        }
        const uint32_t bits = bits_range(0, taps - e);
        vec v[FC_LANES];
        FC_UNROLL
        for (int l = 0; l < FC_LANES; l++) v[l] = l < lanes ? vec_load_bits(w + l * row_stride + e, bits) : (vec){0};
        vec_transpose(v);
        FC_UNROLL
        for (int l = 0; l < FC_LANES; l++)
            if (e + l < count) g[e + l] = v[l];
    }
}

/* Filters r x r, or columns of r, of `lanes` rows (`row_stride` apart) and `count` channels (`channel_stride` apart),
 * turned by 180 degrees if `flip`: u[point * plane + channel * nr + lane].  Channels that lie side by side are transposed
 * together. */
#define filters FC_LOCAL(filters)
FC_INLINE void filters(const int points, const int r, const int flat, const int taps, const REAL *w,
                       ptrdiff_t row_stride, ptrdiff_t channel_stride, int lanes, ptrdiff_t count, const int flip,
                       REAL *u, ptrdiff_t plane) {
    const int elements = flat ? r : r * r, first = flip ? elements - 1 : 0, step = flip ? -1 : 1;
    vec g[FC_OUTPUTS * FC_OUTPUTS * FC_LANES];
    ptrdiff_t k = 0;
    if (channel_stride == elements && taps == elements)
        for (; k + FC_LANES <= count; k += FC_LANES, w += elements * FC_LANES) {
            for (int e = 0; e < elements; e++)
                load_filters(FC_LANES, FC_LANES, w + e * FC_LANES, row_stride, lanes, g + e * FC_LANES);
            for (int c = 0; c < FC_LANES; c++, u += FC_NR)
                transform_kernel(points, r, flat, g + c * elements + first, step, u, plane);
        }
    for (; k < count; k++, w += channel_stride, u += FC_NR) {
        load_filters(elements, taps, w, row_stride, lanes, g);
        transform_kernel(points, r, flat, g + first, step, u, plane);
    }
}

/* The first `taps` of r x r, or of a column of r where that is enough, are there; zeros follow. */
static void FC_KERNEL(winograd_filters)(int points, const void *w, ptrdiff_t row_stride, ptrdiff_t channel_stride,
                                        int taps, int lanes, ptrdiff_t count, int flip, void *u, ptrdiff_t plane) {
#define FC_FILTERS(points, r, flat, taps) \
    flip ? filters(points, r, flat, taps, w, row_stride, channel_stride, lanes, count, 1, u, plane) \
         : filters(points, r, flat, taps, w, row_stride, channel_stride, lanes, count, 0, u, plane)
    if (points == 6 && taps <= 3)
        FC_FILTERS(6, 3, 1, taps);
    else if (points == 7 && taps <= 5)
        FC_FILTERS(7, 5, 1, taps);
    else if (taps < 9)
        FC_FILTERS(6, 3, 0, taps);
    else if (points == 5)
        FC_FILTERS(5, 3, 0, 9);
    else if (points == 6)
        FC_FILTERS(6, 3, 0, 9);
    else
        FC_FILTERS(7, 5, 0, 25);
#undef FC_FILTERS
}

#define gradient_tiles FC_LOCAL(gradient_tiles)
FC_INLINE void gradient_tiles(const int points, const int m, const int flat, const fc_tiles *t, const REAL *patch,
                              REAL *u, ptrdiff_t plane, ptrdiff_t stride) {
    const int cols = flat ? 1 : m;
    for (int th = 0; th < t->tiles_h; th++)
        for (int tw = 0; tw < t->tiles_w; tw++, u += stride) {
            const REAL *src = patch + (th * t->down + tw * t->across) * FC_LANES;
            vec g[FC_OUTPUTS * FC_OUTPUTS];
            FC_UNROLL
            for (int i = 0; i < m; i++) {
                FC_UNROLL
                for (int j = 0; j < cols; j++)
                    g[i * cols + j] = !flat && j + 1 == m && t->overlap
                                          ? (vec){0}
                                          : vec_load(src + (i * t->row + j * t->col) * FC_LANES);
            }
            transform_kernel(points, m, flat, g, 1, u, plane);
        }
}

/* The output gradient in the place of a filter: U of the m x m tiles of a patch, or columns of m:
 * u[point * plane + tile * stride + lane] */
static void FC_KERNEL(winograd_gradient)(int m, const fc_tiles *t, const void *patch, void *u, ptrdiff_t plane,
                                         ptrdiff_t stride) {
    if (t->flat && m == 4)
        gradient_tiles(6, 4, 1, t, patch, u, plane, stride);
    else if (t->flat)
        gradient_tiles(6, 2, 1, t, patch, u, plane, stride);
    else if (m == 3)
        gradient_tiles(5, 3, 0, t, patch, u, plane, stride);
    else if (m == 4)
        gradient_tiles(6, 4, 0, t, patch, u, plane, stride);
    else
        gradient_tiles(6, 2, 0, t, patch, u, plane, stride);
}

/* y = A^T M A, n x n vectors, or A^T m, n of them; returns 0 * their sum, which is not zero where one is not finite */
#define transform_output FC_LOCAL(transform_output)
FC_INLINE vec transform_output(const int points, const int n, const int flat, const REAL *m, ptrdiff_t plane, vec *y) {
    const int cols = flat ? 1 : points, outputs = flat ? n : n * n;
    vec t[FC_OUTPUTS][FC_POINTS], c[FC_OUTPUTS], check = {0};
    FC_UNROLL
    for (int j = 0; j < cols; j++) {
        vec column[FC_POINTS];
        load_points(points, m + j * plane, cols * plane, column);
        interpolate(points, n, column, c);
        FC_UNROLL
        for (int i = 0; i < n; i++) t[i][j] = c[i];
    }
    FC_UNROLL
    for (int i = 0; i < n; i++) {
        if (flat)
            y[i] = t[i][0];
        else
            interpolate(points, n, t[i], y + i * n);
    }
    FC_UNROLL
    for (int i = 0; i < outputs; i++) check += y[i] * 0;
    return check;
}

#define all_finite FC_LOCAL(all_finite)
FC_INLINE int all_finite(vec check) {
    int finite = 1;
    FC_UNROLL
    for (int l = 0; l < FC_LANES; l++) finite &= check[l] == 0;
    return finite;
}

#define output_tiles FC_LOCAL(output_tiles)
FC_INLINE int output_tiles(const int points, const int m, const int flat, const REAL *p, ptrdiff_t plane,
                           ptrdiff_t stride, const fc_tiles *t, vec bias, REAL *patch) {
    const int cols = flat ? 1 : m;
    vec check = {0};
    for (int th = 0; th < t->tiles_h; th++)
        for (int tw = 0; tw < t->tiles_w; tw++, p += stride) {
            REAL *dst = patch + (th * t->down + tw * t->across) * FC_LANES;
            vec y[FC_OUTPUTS * FC_OUTPUTS];
            check += transform_output(points, m, flat, p, plane, y);
            FC_UNROLL
            for (int i = 0; i < m; i++) {
                FC_UNROLL
                for (int j = 0; j < cols; j++)
                    if (flat || j + 1 < m || !t->overlap)
                        vec_store(dst + (i * t->row + j * t->col) * FC_LANES, y[i * cols + j] + bias);
            }
        }
    return all_finite(check);
}

/* The tiles of a patch from their products, with the bias of `lanes` channels (or NULL): patch [pixel][lanes].  Returns
 * whether all are finite. */
static int FC_KERNEL(winograd_output)(int points, const void *products, ptrdiff_t plane, ptrdiff_t stride,
                                      const fc_tiles *t, const void *bias, int lanes, void *patch) {
    const vec b = bias ? vec_load_bits(bias, bits_range(0, lanes)) : (vec){0};
    if (t->flat)
        return points == 6 ? output_tiles(6, 4, 1, products, plane, stride, t, b, patch)
                           : output_tiles(7, 3, 1, products, plane, stride, t, b, patch);
    return points == 5   ? output_tiles(5, 3, 0, products, plane, stride, t, b, patch)
           : points == 6 ? output_tiles(6, 4, 0, products, plane, stride, t, b, patch)
                         : output_tiles(7, 3, 0, products, plane, stride, t, b, patch);
}

/* Channels that lie side by side in W are transposed together. */
#define gradient_filters FC_LOCAL(gradient_filters)
FC_INLINE int gradient_filters(const int points, const int r, const int flat, const REAL *p, ptrdiff_t plane,
                               ptrdiff_t stride, ptrdiff_t count, int taps, int lanes, REAL *w, ptrdiff_t row_stride,
                               ptrdiff_t channel_stride) {
    const int each = flat ? r : r * r, together = taps == each && channel_stride == each ? FC_LANES : 1;
    vec check = {0}, y[(FC_OUTPUTS * FC_OUTPUTS + 1) * FC_LANES];
    for (ptrdiff_t k = 0; k < count; k += together, w += together * channel_stride) {
        const int some = count - k < together ? (int)(count - k) : together;
        for (int c = 0; c < some; c++, p += stride) check += transform_output(points, r, flat, p, plane, y + c * each);
        const int elements = together > 1 ? some * each : taps;
        for (int e = 0; e < elements; e += FC_LANES) {
            const uint32_t bits = bits_range(0, elements - e);
            vec_transpose(y + e);
            for (int l = 0; l < lanes; l++) vec_store_bits(w + l * row_stride + e, y[e + l], bits);
        }
    }
    return all_finite(check);
}

/* Weight gradients r x r, or the first `taps` of them or of a column of r, of `lanes` output channels and `count` input
 * channels from their sums.  Returns whether all are finite. */
static int FC_KERNEL(winograd_weights)(int points, int r, const void *sums, ptrdiff_t plane, ptrdiff_t stride,
                                       ptrdiff_t count, int taps, int lanes, void *w, ptrdiff_t row_stride,
                                       ptrdiff_t channel_stride) {
#define FC_WEIGHTS(points, r, flat, taps) \
    gradient_filters(points, r, flat, sums, plane, stride, count, taps, lanes, w, row_stride, channel_stride)
    if (taps <= r) return r == 3 ? FC_WEIGHTS(6, 3, 1, taps) : FC_WEIGHTS(6, 5, 1, taps);
    if (r == 5) return FC_WEIGHTS(6, 5, 0, 25);
    return points == 5 ? FC_WEIGHTS(5, 3, 0, 9) : FC_WEIGHTS(6, 3, 0, taps);
#undef FC_WEIGHTS
}
