/* Batch normalisation of planes of one channel, contiguous:
 *
 *   moments   sums += (sum u, sum u^2),  u = x - shift         or, with g,  sums += (sum g, sum g u)
 *   affine    y = b u + c                                      or, with g,  y = a g + b u + c
 *
 * Sums are of doubles whatever the type: a shift far from the mean then costs no digit of the variance.  Bound by
 * memory: 4 + 4 accumulators and two vectors of input. */

#define FC_WIDE (FC_VEC_BYTES / 8)
#define wide FC_LOCAL(wide)
#define narrow FC_LOCAL(narrow)
typedef double wide __attribute__((vector_size(FC_VEC_BYTES)));
typedef REAL narrow __attribute__((vector_size(FC_WIDE * FC_REAL_BYTES), aligned(FC_REAL_BYTES), may_alias));

typedef int64_t FC_LOCAL(wide_lanes) __attribute__((vector_size(FC_VEC_BYTES)));

/* The first `left` elements, zeros behind */
#define wide_load FC_LOCAL(wide_load)
FC_INLINE wide wide_load(const REAL *p, ptrdiff_t left) {
    if (left >= FC_WIDE) return __builtin_convertvector(*(const narrow *)p, wide);
    const vec v = vec_load_bits(p, bits_range(0, left));
    return __builtin_convertvector(*(const narrow *)&v, wide);
}

/* Planes of one channel, `stride` elements apart, in order.  Lanes go on from plane to plane. */
#define moments_of FC_LOCAL(moments_of)
FC_INLINE void moments_of(ptrdiff_t planes, ptrdiff_t stride, ptrdiff_t n, const REAL *g, const REAL *x, double shift,
                          double *sums) {
    wide s[4] = {{0}, {0}, {0}, {0}}, q[4] = {{0}, {0}, {0}, {0}};
    FC_LOCAL(wide_lanes) lane;
    for (int l = 0; l < FC_WIDE; l++) lane[l] = l;
    for (; planes > 0; planes--, x += stride, g = g ? g + stride : NULL) {
        ptrdiff_t i = 0;
        for (; i + 4 * FC_WIDE <= n; i += 4 * FC_WIDE) {
            FC_UNROLL
            for (int v = 0; v < 4; v++) {
                const ptrdiff_t at = i + v * FC_WIDE;
                const wide u = wide_load(x + at, FC_WIDE) - shift, w = g ? wide_load(g + at, FC_WIDE) : u;
                s[v] += w;
                q[v] += w * u;
            }
        }
        for (; i < n; i += FC_WIDE) {
            const wide all = wide_load(x + i, n - i) - shift;
            const wide u = (wide)((FC_LOCAL(wide_lanes))all & (lane < n - i)), w = g ? wide_load(g + i, n - i) : u;
            s[0] += w;
            q[0] += w * u;
        }
    }
    s[0] = (s[0] + s[1]) + (s[2] + s[3]);
    q[0] = (q[0] + q[1]) + (q[2] + q[3]);
    for (int l = 0; l < FC_WIDE; l++) {
        sums[0] += s[0][l];
        sums[1] += q[0][l];
    }
}

static void FC_KERNEL(moments)(ptrdiff_t planes, ptrdiff_t stride, ptrdiff_t n, const void *g, const void *x,
                               double shift, double *sums) {
    if (g)
        moments_of(planes, stride, n, g, x, shift, sums);
    else
        moments_of(planes, stride, n, NULL, x, shift, sums);
}

#define affine_of FC_LOCAL(affine_of)
FC_INLINE void affine_of(ptrdiff_t n, const REAL *g, const REAL *x, REAL shift, REAL a, REAL b, REAL c, REAL *y) {
    ptrdiff_t i = 0;
    for (; i + FC_LANES <= n; i += FC_LANES) {
        const vec u = b * (vec_load(x + i) - shift) + c;
        vec_store(y + i, g ? a * vec_load(g + i) + u : u);
    }
    if (i < n) {
        const uint32_t bits = bits_range(0, n - i);
        const vec u = b * (vec_load_bits(x + i, bits) - shift) + c;
        vec_store_bits(y + i, g ? a * vec_load_bits(g + i, bits) + u : u, bits);
    }
}

static void FC_KERNEL(affine)(ptrdiff_t n, const void *g, const void *x, const double *p, void *y) {
    if (g)
        affine_of(n, g, x, (REAL)p[0], (REAL)p[1], (REAL)p[2], (REAL)p[3], y);
    else
        affine_of(n, NULL, x, (REAL)p[0], (REAL)p[1], (REAL)p[2], (REAL)p[3], y);
}
