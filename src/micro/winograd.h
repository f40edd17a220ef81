/* Winograd's minimal filtering on 6 x 6 tiles: F(m x m, r x r) with m + r = 7.
 *
 *     Y = A^T [ (G g G^T) . (B^T d B) ] A           m x m outputs of an r x r filter g from a 6 x 6 tile d
 *
 * The points are 0, +-a, +-b and infinity, a = 5/8, b = 3/2.  With N(q) = prod (q - other points):
 *     row q of G      [1, q, q^2, ...] / N(q);   infinity: the last coefficient
 *     row q of A^T's transpose  [1, q, q^2, ...];  infinity: into the last output
 *     row q of B^T    the coefficients of x (x^2 - a^2) (x^2 - b^2) / (x - q); infinity: of the product itself
 *
 * One set of points serves F(4,3) and F(2,5) and, with filter and output exchanged, the weight gradients F(3,4) and
 * F(5,2): 36 multiplications instead of 144 (3 x 3) or 100 (5 x 5).  Lanes are channels, so that a transformed tile
 * is a row of a GEMM operand as it is; images enter and leave through patches [row][column][lanes], 16 channels
 * transposed at a time.
 *
 * Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.  The points: Barabasz et al., "Error
 * Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2018: rms error 2.9 times
 * direct convolution's (integer points 0, +-1, +-2: 6.5 times). */

#define FC_A ((REAL)0.625)
#define FC_B ((REAL)1.5)
#define FC_A2 (FC_A * FC_A)
#define FC_B2 (FC_B * FC_B)

/* v = B^T d: 12 multiply-adds */
#define tile_rows FC_LOCAL(tile_rows)
FC_INLINE void tile_rows(const vec d[6], vec v[6]) {
    const vec e1 = d[4] - FC_B2 * d[2], o1 = d[3] - FC_B2 * d[1];
    const vec e2 = d[4] - FC_A2 * d[2], o2 = d[3] - FC_A2 * d[1];
    v[0] = (d[4] - (FC_A2 + FC_B2) * d[2]) + (FC_A2 * FC_B2) * d[0];
    v[1] = e1 + FC_A * o1;
    v[2] = e1 - FC_A * o1;
    v[3] = e2 + FC_B * o2;
    v[4] = e2 - FC_B * o2;
    v[5] = (d[5] - (FC_A2 + FC_B2) * d[3]) + (FC_A2 * FC_B2) * d[1];
}

/* u = G g: the polynomial with coefficients g[0 .. n) at the six points, over N */
#define evaluate FC_LOCAL(evaluate)
FC_INLINE void evaluate(const int n, const vec *g, vec u[6]) {
    const REAL na = 1 / (2 * FC_A2 * (FC_A2 - FC_B2)), nb = 1 / (2 * FC_B2 * (FC_B2 - FC_A2));
    vec ea = na * g[0], oa = (na * FC_A) * g[1], eb = nb * g[0], ob = (nb * FC_B) * g[1];
    if (n > 2) ea += (na * FC_A2) * g[2], eb += (nb * FC_B2) * g[2];
    if (n > 3) oa += (na * FC_A2 * FC_A) * g[3], ob += (nb * FC_B2 * FC_B) * g[3];
    if (n > 4) ea += (na * FC_A2 * FC_A2) * g[4], eb += (nb * FC_B2 * FC_B2) * g[4];
    u[0] = (1 / (FC_A2 * FC_B2)) * g[0];
    u[1] = ea + oa;
    u[2] = ea - oa;
    u[3] = eb + ob;
    u[4] = eb - ob;
    u[5] = g[n - 1];
}

/* y = A^T m: n outputs */
#define interpolate FC_LOCAL(interpolate)
FC_INLINE void interpolate(const int n, const vec m[6], vec *y) {
    const vec sa = m[1] + m[2], da = m[1] - m[2], sb = m[3] + m[4], db = m[3] - m[4];
    y[0] = m[0] + sa + sb;
    y[1] = FC_A * da + FC_B * db;
    if (n > 2) y[2] = FC_A2 * sa + FC_B2 * sb;
    if (n > 3) y[3] = (FC_A2 * FC_A) * da + (FC_B2 * FC_B) * db;
    if (n > 4) y[4] = (FC_A2 * FC_A2) * sa + (FC_B2 * FC_B2) * sb;
    y[n - 1] += m[5];
}

/* Six vectors, `step` apart.  The pointer is opaque, or the compiler multiplies all 36 offsets of a tile beforehand and
 * spills them. */
#define load_six FC_LOCAL(load_six)
FC_INLINE void load_six(const REAL *p, ptrdiff_t step, vec v[6]) {
    __asm__("" : "+r"(p));
    FC_UNROLL
    for (int i = 0; i < 6; i++) v[i] = vec_load(p + i * step);
}

#define store_six FC_LOCAL(store_six)
FC_INLINE void store_six(const vec v[6], REAL *p, ptrdiff_t step) {
    __asm__("" : "+r"(p));
    FC_UNROLL
    for (int i = 0; i < 6; i++) vec_store(p + i * step, v[i]);
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

/* V = B^T d B of the tiles_h x tiles_w tiles of a patch, `m` apart: v[point * plane + tile * stride + lane] */
static void FC_KERNEL(winograd_input)(const void *patch, int cols, int tiles_h, int tiles_w, int m, void *v_,
                                      ptrdiff_t plane, ptrdiff_t stride) {
    REAL *dst = v_;
    for (int th = 0; th < tiles_h; th++)
        for (int tw = 0; tw < tiles_w; tw++, dst += stride) {
            const REAL *src = (const REAL *)patch + ((ptrdiff_t)th * m * cols + tw * m) * FC_LANES;
            vec t[6][6], d[6], v[6];
            FC_UNROLL
            for (int j = 0; j < 6; j++) {
                load_six(src + j * FC_LANES, (ptrdiff_t)cols * FC_LANES, d);
                tile_rows(d, v);
                FC_UNROLL
                for (int i = 0; i < 6; i++) t[i][j] = v[i];
            }
            FC_UNROLL
            for (int i = 0; i < 6; i++) {
                tile_rows(t[i], v);
                store_six(v, dst + 6 * i * plane, plane);
            }
        }
}

/* U = G g G^T of an n x n array of vectors, `step` apart (-1: turned by 180 degrees): u[point * plane + lane] */
#define transform_kernel FC_LOCAL(transform_kernel)
FC_INLINE void transform_kernel(const int n, const vec *g, const int step, REAL *u, ptrdiff_t plane) {
    vec t[6][5], c[6];
    FC_UNROLL
    for (int j = 0; j < n; j++) {
        vec column[5];
        FC_UNROLL
        for (int i = 0; i < n; i++) column[i] = g[(i * n + j) * step];
        evaluate(n, column, c);
        FC_UNROLL
        for (int i = 0; i < 6; i++) t[i][j] = c[i];
    }
    FC_UNROLL
    for (int i = 0; i < 6; i++) {
        evaluate(n, t[i], c);
        store_six(c, u + 6 * i * plane, plane);
    }
}

/* g[e] = element e of the filters of `lanes` rows, `count` elements each */
#define load_filters FC_LOCAL(load_filters)
FC_INLINE void load_filters(const int count, const REAL *w, ptrdiff_t row_stride, int lanes, vec *g) {
    FC_UNROLL
    for (int e = 0; e < count; e += FC_LANES) {
        if (e == count - 1) { /* no transpose for the sake of one */
            REAL lane[FC_LANES];
            FC_UNROLL
            for (int l = 0; l < FC_LANES; l++) lane[l] = l < lanes ? w[l * row_stride + e] : 0;
            g[e] = vec_load(lane);
            break;
        }
        const uint32_t bits = bits_range(0, count - e);
        vec v[FC_LANES];
        FC_UNROLL
        for (int l = 0; l < FC_LANES; l++) v[l] = l < lanes ? vec_load_bits(w + l * row_stride + e, bits) : (vec){0};
        vec_transpose(v);
        FC_UNROLL
        for (int l = 0; l < FC_LANES; l++)
            if (e + l < count) g[e + l] = v[l];
    }
}

/* Filters r x r of `lanes` rows (`row_stride` apart) and `count` channels (`channel_stride` apart), turned by 180
 * degrees if `flip`: u[point * plane + channel * nr + lane].  Channels that lie side by side are transposed together. */
#define filters FC_LOCAL(filters)
FC_INLINE void filters(const int r, const REAL *w, ptrdiff_t row_stride, ptrdiff_t channel_stride, int lanes,
                       ptrdiff_t count, const int flip, REAL *u, ptrdiff_t plane) {
    const int first = flip ? r * r - 1 : 0, step = flip ? -1 : 1;
    vec g[25 * FC_LANES];
    ptrdiff_t k = 0;
    if (channel_stride == r * r)
        for (; k + FC_LANES <= count; k += FC_LANES, w += r * r * FC_LANES) {
            for (int e = 0; e < r * r; e++)
                load_filters(FC_LANES, w + e * FC_LANES, row_stride, lanes, g + e * FC_LANES);
            for (int c = 0; c < FC_LANES; c++, u += FC_NR) transform_kernel(r, g + c * r * r + first, step, u, plane);
        }
    for (; k < count; k++, w += channel_stride, u += FC_NR) {
        load_filters(r * r, w, row_stride, lanes, g);
        transform_kernel(r, g + first, step, u, plane);
    }
}

static void FC_KERNEL(winograd_filters)(int r, const void *w, ptrdiff_t row_stride, ptrdiff_t channel_stride, int lanes,
                                        ptrdiff_t count, int flip, void *u, ptrdiff_t plane) {
    if (r == 3 && flip)
        filters(3, w, row_stride, channel_stride, lanes, count, 1, u, plane);
    else if (r == 3)
        filters(3, w, row_stride, channel_stride, lanes, count, 0, u, plane);
    else if (flip)
        filters(5, w, row_stride, channel_stride, lanes, count, 1, u, plane);
    else
        filters(5, w, row_stride, channel_stride, lanes, count, 0, u, plane);
}

/* The output gradient in the place of a filter: U of the m x m tiles of a patch, u[point * plane + tile * stride +
 * lane] */
#define gradient_tiles FC_LOCAL(gradient_tiles)
FC_INLINE void gradient_tiles(const int m, const REAL *patch, int cols, int tiles_h, int tiles_w, REAL *u,
                              ptrdiff_t plane, ptrdiff_t stride) {
    for (int th = 0; th < tiles_h; th++)
        for (int tw = 0; tw < tiles_w; tw++, u += stride) {
            vec g[16];
            FC_UNROLL
            for (int i = 0; i < m; i++) {
                FC_UNROLL
                for (int j = 0; j < m; j++)
                    g[i * m + j] = vec_load(patch + ((ptrdiff_t)(th * m + i) * cols + tw * m + j) * FC_LANES);
            }
            transform_kernel(m, g, 1, u, plane);
        }
}

static void FC_KERNEL(winograd_gradient)(const void *patch, int cols, int tiles_h, int tiles_w, int m, void *u,
                                         ptrdiff_t plane, ptrdiff_t stride) {
    if (m == 4)
        gradient_tiles(4, patch, cols, tiles_h, tiles_w, u, plane, stride);
    else
        gradient_tiles(2, patch, cols, tiles_h, tiles_w, u, plane, stride);
}

/* y = A^T M A, n x n vectors; returns 0 * their sum, which is not zero where one is not finite */
#define transform_output FC_LOCAL(transform_output)
FC_INLINE vec transform_output(const int n, const REAL *m, ptrdiff_t plane, vec *y) {
    vec t[5][6], c[5], check = {0};
    FC_UNROLL
    for (int j = 0; j < 6; j++) {
        vec column[6];
        load_six(m + j * plane, 6 * plane, column);
        interpolate(n, column, c);
        FC_UNROLL
        for (int i = 0; i < n; i++) t[i][j] = c[i];
    }
    FC_UNROLL
    for (int i = 0; i < n; i++) {
        interpolate(n, t[i], y + i * n);
        FC_UNROLL
        for (int j = 0; j < n; j++) check += y[i * n + j] * 0;
    }
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
FC_INLINE int output_tiles(const int m, const REAL *p, ptrdiff_t plane, ptrdiff_t stride, int tiles_h, int tiles_w,
                           vec bias, REAL *patch) {
    const ptrdiff_t cols = (ptrdiff_t)tiles_w * m;
    vec check = {0};
    for (int th = 0; th < tiles_h; th++)
        for (int tw = 0; tw < tiles_w; tw++, p += stride) {
            vec y[16];
            check += transform_output(m, p, plane, y);
            FC_UNROLL
            for (int i = 0; i < m; i++) {
                FC_UNROLL
                for (int j = 0; j < m; j++)
                    vec_store(patch + ((th * m + i) * cols + tw * m + j) * FC_LANES, y[i * m + j] + bias);
            }
        }
    return all_finite(check);
}

/* The tiles of a patch from their 36 products, with the bias of `lanes` channels (or NULL): patch [tiles_h *
 * m][tiles_w * m] [lanes].  Returns whether all are finite. */
static int FC_KERNEL(winograd_output)(int m, const void *products, ptrdiff_t plane, ptrdiff_t stride, int tiles_h,
                                      int tiles_w, const void *bias, int lanes, void *patch) {
    const vec b = bias ? vec_load_bits(bias, bits_range(0, lanes)) : (vec){0};
    return m == 4 ? output_tiles(4, products, plane, stride, tiles_h, tiles_w, b, patch)
                  : output_tiles(2, products, plane, stride, tiles_h, tiles_w, b, patch);
}

#define gradient_filters FC_LOCAL(gradient_filters)
FC_INLINE int gradient_filters(const int r, const REAL *p, ptrdiff_t plane, ptrdiff_t stride, ptrdiff_t count,
                               int lanes, REAL *w, ptrdiff_t row_stride) {
    vec check = {0}, y[25 * FC_LANES];
    for (ptrdiff_t k = 0; k < count; k += FC_LANES, w += r * r * FC_LANES) { /* channels lie side by side in W */
        const int some = count - k < FC_LANES ? (int)(count - k) : FC_LANES;
        for (int c = 0; c < some; c++, p += stride) check += transform_output(r, p, plane, y + c * r * r);
        for (int e = 0; e < some * r * r; e += FC_LANES) {
            const uint32_t bits = bits_range(0, some * r * r - e);
            vec_transpose(y + e);
            for (int l = 0; l < lanes; l++) vec_store_bits(w + l * row_stride + e, y[e + l], bits);
        }
    }
    return all_finite(check);
}

/* Weight gradients r x r of `lanes` output channels and `count` input channels from their 36 sums.  Returns whether
 * all are finite. */
static int FC_KERNEL(winograd_weights)(int r, const void *sums, ptrdiff_t plane, ptrdiff_t stride, ptrdiff_t count,
                                       int lanes, void *w, ptrdiff_t row_stride) {
    return r == 3 ? gradient_filters(3, sums, plane, stride, count, lanes, w, row_stride)
                  : gradient_filters(5, sums, plane, stride, count, lanes, w, row_stride);
}
