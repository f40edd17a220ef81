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

#define wide_load FC_LOCAL(wide_load)
FC_INLINE wide wide_load(const REAL *p) { return __builtin_convertvector(*(const narrow *)p, wide); }

#define moments_of FC_LOCAL(moments_of)
FC_INLINE void moments_of(ptrdiff_t n, const REAL *g, const REAL *x, double shift, double *sums) {
    wide s[4] = {{0}, {0}, {0}, {0}}, q[4] = {{0}, {0}, {0}, {0}};
    double first = 0, second = 0;
    ptrdiff_t i = 0;
    for (; i + 4 * FC_WIDE <= n; i += 4 * FC_WIDE) {
        FC_UNROLL
        for (int v = 0; v < 4; v++) {
            const wide u = wide_load(x + i + v * FC_WIDE) - shift, w = g ? wide_load(g + i + v * FC_WIDE) : u;
            s[v] += w;
            q[v] += w * u;
        }
    }
    for (; i < n; i++) {
        const double u = (double)x[i] - shift, w = g ? (double)g[i] : u;
        first += w;
        second += w * u;
    }
    s[0] = (s[0] + s[1]) + (s[2] + s[3]);
    q[0] = (q[0] + q[1]) + (q[2] + q[3]);
    for (int l = 0; l < FC_WIDE; l++) {
        first += s[0][l];
        second += q[0][l];
    }
    sums[0] += first;
    sums[1] += second;
}

static void FC_KERNEL(moments)(ptrdiff_t n, const void *g, const void *x, double shift, double *sums) {
    if (g)
        moments_of(n, g, x, shift, sums);
    else
        moments_of(n, NULL, x, shift, sums);
}

#define affine_of FC_LOCAL(affine_of)
FC_INLINE void affine_of(ptrdiff_t n, const REAL *g, const REAL *x, REAL shift, REAL a, REAL b, REAL c, REAL *y) {
    ptrdiff_t i = 0;
    for (; i + FC_LANES <= n; i += FC_LANES) {
        const vec u = b * (vec_load(x + i) - shift) + c;
        vec_store(y + i, g ? a * vec_load(g + i) + u : u);
    }
    for (; i < n; i++) {
        const REAL u = b * (x[i] - shift) + c;
        y[i] = g ? a * g[i] + u : u;
    }
}

static void FC_KERNEL(affine)(ptrdiff_t n, const void *g, const void *x, const double *p, void *y) {
    if (g)
        affine_of(n, g, x, (REAL)p[0], (REAL)p[1], (REAL)p[2], (REAL)p[3], y);
    else
        affine_of(n, NULL, x, (REAL)p[0], (REAL)p[1], (REAL)p[2], (REAL)p[3], y);
}
