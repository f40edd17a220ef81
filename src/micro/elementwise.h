/* Element by element: y = f(x) over contiguous arrays and over tiles.
 *
 *   relu           y = x <= 0 ? 0 : x        NaN passes, because no comparison with it holds
 *   relu_backward  y = x <= 0 ? 0 : g
 *   activation     y = f(x), y = g f'(x)     the others, by exp and tanh of whole vectors
 *   softmax        y = exp(x - max x) / sum, or its logarithm, over a row
 *
 * ReLU is bound by memory.  `stream` writes past the caches: a store that misses would otherwise first read its line. */

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

/* A vector of partial sums, of four: the error grows with n / (4 lanes), the drivers add blocks of bounded n. */
#define sums_of FC_LOCAL(sums_of)
FC_INLINE vec sums_of(ptrdiff_t n, const REAL *x) {
    vec s[4] = {{0}, {0}, {0}, {0}};
    ptrdiff_t i = 0;
    for (; i + 4 * FC_LANES <= n; i += 4 * FC_LANES) {
        FC_UNROLL
        for (int v = 0; v < 4; v++) s[v] += vec_load(x + i + v * FC_LANES);
    }
    for (; i + FC_LANES <= n; i += FC_LANES) s[0] += vec_load(x + i);
    s[1] += vec_load_bits(x + i, bits_range(0, n - i));
    return (s[0] + s[1]) + (s[2] + s[3]);
}

#define sum_of FC_LOCAL(sum_of)
FC_INLINE REAL sum_of(ptrdiff_t n, const REAL *x) {
    REAL lane[FC_LANES];
    vec_store(lane, sums_of(n, x));
    FC_UNROLL
    for (int half = FC_LANES / 2; half; half /= 2) {
        FC_UNROLL
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    }
    return lane[0];
}

static void FC_KERNEL(sum)(ptrdiff_t n, const void *x, void *y) { *(REAL *)y = sum_of(n, x); }

/* r q(r) = exp(r) - 1 and n with x = n ln 2 + r, |r| <= ln 2 / 2: Taylor's series, to the last bit or two; ln 2 in two
 * parts, of which n times the first is exact.  Adding 1.5 * 2^(bits of the fraction) rounds to an integer. */
#define exp_fraction FC_LOCAL(exp_fraction)
FC_INLINE vec exp_fraction(vec x, ivec *n) {
    const REAL shift = FC_REAL_BYTES == 4 ? (REAL)0x1.8p23 : (REAL)0x1.8p52;
    const REAL high = FC_REAL_BYTES == 4 ? (REAL)0.693359375 : (REAL)0.693145751953125;
    const REAL low = FC_REAL_BYTES == 4 ? (REAL)-2.12194440e-4 : (REAL)1.42860682030941723212e-6;
    const vec t = x * (REAL)1.44269504088896340736 + shift, k = t - shift, r = (x - k * high) - k * low;
    vec q = vec_splat(1);
    *n = (ivec)t - (ivec)vec_splat(shift);
    FC_UNROLL
    for (int i = FC_REAL_BYTES == 4 ? 7 : 13; i > 1; i--) q = q * (r * (REAL)(1.0 / i)) + 1;
    return r * q;
}

#define vec_power_of_2 FC_LOCAL(vec_power_of_2)
FC_INLINE vec vec_power_of_2(ivec n) {
    return (vec)((n + (INTEGER)(FC_REAL_BYTES == 4 ? 127 : 1023)) << (FC_REAL_BYTES == 4 ? 23 : 52));
}

/* NaN passes */
/* 2^n in two factors, so that results may overflow and become denormal */
#define vec_exp FC_LOCAL(vec_exp)
FC_INLINE vec vec_exp(vec x) {
    ivec n;
    const vec y = 1 + exp_fraction(vec_clamp(x, FC_REAL_BYTES == 4 ? -104 : -746, FC_REAL_BYTES == 4 ? 89 : 710), &n);
    const ivec half = n >> 1;
    return y * vec_power_of_2(half) * vec_power_of_2(n - half);
}

/* (exp(2 x) - 1) / (exp(2 x) + 1), without cancellation near 0 */
#define vec_tanh FC_LOCAL(vec_tanh)
FC_INLINE vec vec_tanh(vec x) {
    ivec n;
    const vec f = exp_fraction(2 * vec_clamp(x, -20, 20), &n), power = vec_power_of_2(n);
    const vec y = f * power + (power - 1);
    return y / (y + 2);
}

#define vec_sigmoid FC_LOCAL(vec_sigmoid)
FC_INLINE vec vec_sigmoid(vec x) { return 1 / (1 + vec_exp(-x)); }

#define activated FC_LOCAL(activated)
FC_INLINE vec activated(vec x, const int activation, REAL slope) {
    const vec zero = {0};
    switch (activation) {
    case FC_RELU: return relu_select(x, x);
    case FC_RELU6: return vec_clamp(x, 0, 6);
    case FC_LEAKY_RELU: return vec_select(x <= zero, slope * x, x);
    case FC_SILU: return x * vec_sigmoid(x);
    case FC_HARDSWISH: return x * vec_clamp(x + 3, 0, 6) / 6;
    case FC_SIGMOID: return vec_sigmoid(x);
    default: return vec_tanh(x);
    }
}

/* g f'(x); x is the OUTPUT of sigmoid and tanh */
#define gradient_of FC_LOCAL(gradient_of)
FC_INLINE vec gradient_of(vec g, vec x, const int activation, REAL slope) {
    const vec zero = {0}, s = activation == FC_SILU ? vec_sigmoid(x) : zero;
    switch (activation) {
    case FC_RELU: return relu_select(x, g);
    case FC_RELU6: return vec_select((x <= zero) | (x >= vec_splat(6)), zero, g);
    case FC_LEAKY_RELU: return vec_select(x <= zero, slope * g, g);
    case FC_SILU: return g * (s * (1 + x * (1 - s)));
    case FC_HARDSWISH:
        return vec_select(x <= vec_splat(-3), zero, vec_select(x >= vec_splat(3), g, g * (x / 3 + (REAL)0.5)));
    case FC_SIGMOID: return g * (x * (1 - x));
    default: return g * (1 - x * x);
    }
}

/* Inlined with a constant activation, so that each becomes a loop of its own.  g, or NULL, may be y, and so may x. */
#define activate FC_LOCAL(activate)
FC_INLINE void activate(ptrdiff_t n, const REAL *g, const REAL *x, REAL *y, const int activation, REAL slope) {
    ptrdiff_t i = 0;
    for (; i + FC_LANES <= n; i += FC_LANES) {
        const vec v = vec_load(x + i);
        vec_store(y + i, g ? gradient_of(vec_load(g + i), v, activation, slope) : activated(v, activation, slope));
    }
    if (i < n) {
        const uint32_t bits = bits_range(0, n - i);
        const vec v = vec_load_bits(x + i, bits);
        vec_store_bits(
            y + i, g ? gradient_of(vec_load_bits(g + i, bits), v, activation, slope) : activated(v, activation, slope),
            bits);
    }
}

static void FC_KERNEL(activation)(ptrdiff_t n, const void *g, const void *x, void *y, int activation, double slope) {
    switch (activation) {
#define FC_CASE(name) \
    case name: \
        if (g) \
            activate(n, g, x, y, name, (REAL)slope); \
        else \
            activate(n, NULL, x, y, name, (REAL)slope); \
        break;
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

static void FC_KERNEL(epilogue)(void *c_, ptrdiff_t ldc, int rows, int cols, const void *bias_, const void *residual_,
                                int activation, double slope) {
    const REAL *bias = bias_, *residual = residual_;
    for (int i = 0; i < rows; i++) {
        REAL *c = (REAL *)c_ + i * ldc;
        if (bias)
            for (int j = 0; j < cols; j++) c[j] += bias[j];
        if (residual)
            for (int j = 0; j < cols; j++) c[j] += residual[i * ldc + j];
        if (activation) FC_KERNEL(activation)(cols, NULL, c, c, activation, slope);
    }
}

/* y = exp(x - top) / sum of these, or x - top - log(sum); NaN spreads over the row through the sum */
static void FC_KERNEL(softmax)(ptrdiff_t n, const void *x_, void *y_, int logarithm) {
    const REAL *x = x_;
    REAL *y = y_, top = x[0];
    vec tops = vec_splat(top);
    ptrdiff_t i = 0;
    for (; i + FC_LANES <= n; i += FC_LANES) tops = vec_select(vec_load(x + i) > tops, vec_load(x + i), tops);
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int l = 0; l < FC_LANES; l++) top = tops[l] > top ? tops[l] : top;
    for (i = 0; i < n; i += FC_LANES) {
        const uint32_t bits = bits_range(0, n - i);
        vec_store_bits(y + i, vec_exp(vec_load_bits(x + i, bits) - top), bits);
    }
    const REAL sum = sum_of(n, y);
    if (logarithm) {
        const REAL log_sum = (REAL)log((double)sum);
        for (i = 0; i < n; i++) y[i] = (x[i] - top) - log_sum;
    } else
        for (i = 0; i < n; i++) y[i] /= sum;
}

/* Of softmax, y (g - sum g y); of its logarithm, g - exp(y) sum g.  gx may be g or y. */
static void FC_KERNEL(softmax_backward)(ptrdiff_t n, const void *g_, const void *y_, void *gx_, int logarithm) {
    const REAL *g = g_, *y = y_;
    REAL *gx = gx_;
    vec sums = {0};
    REAL sum = 0;
    for (ptrdiff_t i = 0; i < n; i += FC_LANES) {
        const uint32_t bits = bits_range(0, n - i);
        const vec v = vec_load_bits(g + i, bits);
        sums += logarithm ? v : v * vec_load_bits(y + i, bits);
    }
    for (int l = 0; l < FC_LANES; l++) sum += sums[l];
    for (ptrdiff_t i = 0; i < n; i += FC_LANES) {
        const uint32_t bits = bits_range(0, n - i);
        const vec a = vec_load_bits(g + i, bits), b = vec_load_bits(y + i, bits);
        vec_store_bits(gx + i, logarithm ? a - vec_exp(b) * sum : b * (a - sum), bits);
    }
}
