/* Element by element: y = f(x) over contiguous arrays and over tiles.
 *
 *   relu           y = x <= 0 ? 0 : x        NaN passes, because no comparison with it holds
 *   relu_backward  y = x <= 0 ? 0 : g
 *
 * Bound by memory.  `stream` writes past the caches: a store that misses would otherwise first read its line. */

#define relu_select FC_LOCAL(relu_select)
FC_INLINE vec relu_select(vec x, vec g) { return vec_select(x <= (vec){0}, (vec){0}, g); }

/* y[i] = x[i] <= 0 ? 0 : g[i]; g may be x, y may be either */
#define relu_loop FC_LOCAL(relu_loop)
FC_INLINE void relu_loop(ptrdiff_t n, const REAL *g, const REAL *x, REAL *y, int stream) {
    ptrdiff_t i = 0;
    if (stream && (uintptr_t)y % sizeof(REAL) == 0) {
        for (; i < n && (uintptr_t)(y + i) % FC_VEC_BYTES; i++) y[i] = x[i] <= 0 ? 0 : g[i];
        for (; i + FC_LANES <= n; i += FC_LANES) vec_stream(y + i, relu_select(vec_load(x + i), vec_load(g + i)));
    } else
        for (; i + FC_LANES <= n; i += FC_LANES) vec_store(y + i, relu_select(vec_load(x + i), vec_load(g + i)));
    for (; i < n; i++) y[i] = x[i] <= 0 ? 0 : g[i];
    if (stream) FC_STREAM_FENCE();
}

static void FC_KERNEL(relu)(ptrdiff_t n, const void *x, void *y, int stream) { relu_loop(n, x, x, y, stream); }

static void FC_KERNEL(relu_backward)(ptrdiff_t n, const void *g, const void *x, void *y, int stream) {
    relu_loop(n, g, x, y, stream);
}

static void FC_KERNEL(add)(ptrdiff_t n, const void *x_, void *y_) {
    const REAL *x = x_;
    REAL *y = y_;
    for (ptrdiff_t i = 0; i < n; i++) y[i] += x[i];
}

/* Four vectors of partial sums: the error grows with n / (4 lanes), the drivers add blocks of bounded n. */
#define sum_of FC_LOCAL(sum_of)
FC_INLINE REAL sum_of(ptrdiff_t n, const REAL *x) {
    vec s[4] = {{0}, {0}, {0}, {0}};
    ptrdiff_t i = 0;
    for (; i + 4 * FC_LANES <= n; i += 4 * FC_LANES) {
        FC_UNROLL
        for (int v = 0; v < 4; v++) s[v] += vec_load(x + i + v * FC_LANES);
    }
    for (; i + FC_LANES <= n; i += FC_LANES) s[0] += vec_load(x + i);
    s[1] += vec_load_bits(x + i, bits_range(0, n - i));
    REAL lane[FC_LANES];
    vec_store(lane, (s[0] + s[1]) + (s[2] + s[3]));
    FC_UNROLL
    for (int half = FC_LANES / 2; half; half /= 2) {
        FC_UNROLL
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    }
    return lane[0];
}

static void FC_KERNEL(sum)(ptrdiff_t n, const void *x, void *y) { *(REAL *)y = sum_of(n, x); }

#define sigmoid_of FC_LOCAL(sigmoid_of)
FC_INLINE REAL sigmoid_of(REAL x) { return 1 / (1 + FC_EXP(-x)); }

/* min and max so that NaN passes */
#define clamp6 FC_LOCAL(clamp6)
FC_INLINE REAL clamp6(REAL x) { return x <= 0 ? 0 : x >= 6 ? 6 : x; }

/* Inlined with a constant activation, so that each becomes a loop of its own. */
#define activate FC_LOCAL(activate)
FC_INLINE void activate(REAL *c, int cols, const int activation, REAL slope) {
    for (int j = 0; j < cols; j++) {
        const REAL x = c[j];
        c[j] = activation == FC_RELU         ? (x <= 0 ? 0 : x)
               : activation == FC_RELU6      ? clamp6(x)
               : activation == FC_LEAKY_RELU ? (x <= 0 ? slope * x : x)
               : activation == FC_SILU       ? x * sigmoid_of(x)
               : activation == FC_HARDSWISH  ? x * clamp6(x + 3) / 6
               : activation == FC_SIGMOID    ? sigmoid_of(x)
                                             : FC_TANH_OF(x);
    }
}

static void FC_KERNEL(epilogue)(void *c_, ptrdiff_t ldc, int rows, int cols, const void *bias_, const void *residual_,
                                int activation, double slope) {
    const REAL *bias = bias_, *residual = residual_;
    for (int i = 0; i < rows; i++) {
        REAL *c = (REAL *)c_ + i * ldc;
        if (bias)
            for (int j = 0; j < cols; j++) c[j] += bias[j];
        if (residual)
            for (int j = 0; j < cols; j++) c[j] += residual[i * ldc + j];
        switch (activation) {
#define FC_CASE(name) \
    case name: activate(c, cols, name, (REAL)slope); break;
            FC_CASE(FC_RELU)
            FC_CASE(FC_RELU6)
            FC_CASE(FC_LEAKY_RELU)
            FC_CASE(FC_SILU)
            FC_CASE(FC_HARDSWISH)
            FC_CASE(FC_SIGMOID)
            FC_CASE(FC_TANH)
#undef FC_CASE
        }
    }
}
