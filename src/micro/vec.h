/* The SIMD vocabulary: `vec`, FC_LANES values of type REAL in one register of FC_VEC_BYTES.
 *
 * Arithmetic is that of the compiler's vector extension (a + b, a * b, a <= b), so there is one source for every ISA;
 * only what C cannot say - masked memory access - is spelled per ISA below.  Included once for float and once for
 * double. */

#define FC_JOIN3_(a, b, c) a##_##b##_##c
#define FC_JOIN3(a, b, c) FC_JOIN3_(a, b, c)
#define FC_LOCAL(name) FC_JOIN3(name, FC_TYPE, FC_ISA)

#define FC_LANES (FC_VEC_BYTES / FC_REAL_BYTES)
#define FC_ALL ((uint32_t)((1ull << FC_LANES) - 1)) /* every lane */
#define FC_INLINE static inline __attribute__((always_inline))
#define FC_NOINLINE __attribute__((noinline))
#define FC_LIKELY(x) __builtin_expect(x, 1)
#define FC_UNROLL _Pragma("GCC unroll 64")

#define vec FC_LOCAL(vec)
#define ivec FC_LOCAL(ivec)
typedef REAL vec __attribute__((vector_size(FC_VEC_BYTES)));
typedef INTEGER ivec __attribute__((vector_size(FC_VEC_BYTES)));
typedef REAL FC_LOCAL(vec_unaligned) __attribute__((vector_size(FC_VEC_BYTES), aligned(FC_REAL_BYTES), may_alias));

#define vec_load FC_LOCAL(vec_load)
FC_INLINE vec vec_load(const REAL *p) { return *(const FC_LOCAL(vec_unaligned) *)p; }

#define vec_store FC_LOCAL(vec_store)
FC_INLINE void vec_store(REAL *p, vec v) { *(FC_LOCAL(vec_unaligned) *)p = v; }

#define vec_splat FC_LOCAL(vec_splat)
FC_INLINE vec vec_splat(REAL x) { return x - (vec){0}; }

/* mask ? a : b, a mask being what a comparison returns: all ones or all zeros a lane */
#define vec_select FC_LOCAL(vec_select)
FC_INLINE vec vec_select(ivec mask, vec a, vec b) {
#if FC_VEC_BYTES == 32 && FC_REAL_BYTES == 4
    return (vec)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
#elif FC_VEC_BYTES == 32
    return (vec)_mm256_blendv_pd((__m256d)b, (__m256d)a, (__m256d)mask);
#else
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
#endif
}

/* The larger, the first of equal ones; NaN where either is, the last */
#define vec_max FC_LOCAL(vec_max)
FC_INLINE vec vec_max(vec first, vec last) {
#if FC_VEC_BYTES == 32 && FC_REAL_BYTES == 4
    return vec_select(last != last, last,
                      (vec)_mm256_max_ps((__m256)last, (__m256)first)); /* first where either is NaN */
#elif FC_VEC_BYTES == 32
    return vec_select(last != last, last, (vec)_mm256_max_pd((__m256d)last, (__m256d)first));
#else
    return vec_select((last > first) | (last != last), last, first);
#endif
}

/* x <= 0 ? 0 : g; NaN passes */
#define relu_select FC_LOCAL(relu_select)
FC_INLINE vec relu_select(vec x, vec g) { return vec_select(x <= (vec){0}, (vec){0}, g); }

/* The larger or the smaller of two, x where they are equal; NaN passes */
#define vec_at_least FC_LOCAL(vec_at_least)
#define vec_at_most FC_LOCAL(vec_at_most)
#if FC_VEC_BYTES == 64 && FC_REAL_BYTES == 4 /* these instructions return the second where either is NaN */
FC_INLINE vec vec_at_least(REAL low, vec x) { return (vec)_mm512_max_ps((__m512)vec_splat(low), (__m512)x); }
FC_INLINE vec vec_at_most(REAL high, vec x) { return (vec)_mm512_min_ps((__m512)vec_splat(high), (__m512)x); }
#elif FC_VEC_BYTES == 64
FC_INLINE vec vec_at_least(REAL low, vec x) { return (vec)_mm512_max_pd((__m512d)vec_splat(low), (__m512d)x); }
FC_INLINE vec vec_at_most(REAL high, vec x) { return (vec)_mm512_min_pd((__m512d)vec_splat(high), (__m512d)x); }
#elif FC_VEC_BYTES == 32 && FC_REAL_BYTES == 4
FC_INLINE vec vec_at_least(REAL low, vec x) { return (vec)_mm256_max_ps((__m256)vec_splat(low), (__m256)x); }
FC_INLINE vec vec_at_most(REAL high, vec x) { return (vec)_mm256_min_ps((__m256)vec_splat(high), (__m256)x); }
#elif FC_VEC_BYTES == 32
FC_INLINE vec vec_at_least(REAL low, vec x) { return (vec)_mm256_max_pd((__m256d)vec_splat(low), (__m256d)x); }
FC_INLINE vec vec_at_most(REAL high, vec x) { return (vec)_mm256_min_pd((__m256d)vec_splat(high), (__m256d)x); }
#else
FC_INLINE vec vec_at_least(REAL low, vec x) { return vec_select(x < vec_splat(low), vec_splat(low), x); }
FC_INLINE vec vec_at_most(REAL high, vec x) { return vec_select(x > vec_splat(high), vec_splat(high), x); }
#endif

#define vec_clamp FC_LOCAL(vec_clamp)
FC_INLINE vec vec_clamp(vec x, REAL low, REAL high) { return vec_at_most(high, vec_at_least(low, x)); }

/* ceil(a / b) for any a and b > 0; a division takes longer than a row of vectors, and b is nearly always 1 or 2 */
#define ceil_div FC_LOCAL(ceil_div)
FC_INLINE ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) {
    if (b == 1) return a;
    if (b == 2) return (a + 1) >> 1;
    return a > 0 ? (a + b - 1) / b : -(-a / b);
}

#define smaller FC_LOCAL(smaller)
FC_INLINE ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* Bit i of a lane mask says whether lane i takes part; a masked-out lane reads as zero and touches no memory. */
#define bits_range FC_LOCAL(bits_range)
FC_INLINE uint32_t bits_range(ptrdiff_t lo, ptrdiff_t hi) {
    lo = lo < 0 ? 0 : lo > FC_LANES ? FC_LANES : lo;
    hi = hi < lo ? lo : hi > FC_LANES ? FC_LANES : hi;
    return (uint32_t)((1ull << hi) - (1ull << lo));
}

#define vec_load_bits FC_LOCAL(vec_load_bits)
#define vec_load_edge FC_LOCAL(vec_load_edge)
#define vec_store_bits FC_LOCAL(vec_store_bits)
#define vec_stream FC_LOCAL(vec_stream) /* store past the caches; p is aligned to the vector */

/* All ones in the lanes of `bits` */
#define vec_mask FC_LOCAL(vec_mask)
FC_INLINE ivec vec_mask(uint32_t bits) {
    ivec lane;
    FC_UNROLL
    for (int l = 0; l < FC_LANES; l++) lane[l] = (INTEGER)1 << l;
    return (((INTEGER)bits - (ivec){0}) & lane) == lane;
}

#if FC_VEC_BYTES == 64

/* A masked load that crosses a cache line does not train the prefetchers of Zen: whole vectors are loaded plainly.
 * vec_load_edge is for masks that are seldom whole, and for data that were prefetched. */
#if FC_REAL_BYTES == 4
FC_INLINE vec vec_load_bits(const REAL *p, uint32_t bits) {
    return bits == FC_ALL ? vec_load(p) : (vec)_mm512_maskz_loadu_ps((__mmask16)bits, p);
}
FC_INLINE vec vec_load_edge(const REAL *p, uint32_t bits) { return (vec)_mm512_maskz_loadu_ps((__mmask16)bits, p); }
FC_INLINE void vec_store_bits(REAL *p, vec v, uint32_t bits) {
    if (FC_LIKELY(bits == FC_ALL))
        vec_store(p, v);
    else
        _mm512_mask_storeu_ps(p, (__mmask16)bits, (__m512)v);
}
FC_INLINE void vec_stream(REAL *p, vec v) { _mm512_stream_ps(p, (__m512)v); }
#else
FC_INLINE vec vec_load_bits(const REAL *p, uint32_t bits) {
    return bits == FC_ALL ? vec_load(p) : (vec)_mm512_maskz_loadu_pd((__mmask8)bits, p);
}
FC_INLINE vec vec_load_edge(const REAL *p, uint32_t bits) { return (vec)_mm512_maskz_loadu_pd((__mmask8)bits, p); }
FC_INLINE void vec_store_bits(REAL *p, vec v, uint32_t bits) {
    if (FC_LIKELY(bits == FC_ALL))
        vec_store(p, v);
    else
        _mm512_mask_storeu_pd(p, (__mmask8)bits, (__m512d)v);
}
FC_INLINE void vec_stream(REAL *p, vec v) { _mm512_stream_pd(p, (__m512d)v); }
#endif

#elif FC_VEC_BYTES == 32

#if FC_REAL_BYTES == 4
FC_INLINE vec vec_load_bits(const REAL *p, uint32_t bits) {
    return bits == FC_ALL ? vec_load(p) : (vec)_mm256_maskload_ps(p, (__m256i)vec_mask(bits));
}
/* The first lanes are stored in pieces: a masked store takes a dozen cycles on Zen. */
FC_INLINE void vec_store_bits(REAL *p, vec v, uint32_t bits) {
    if (FC_LIKELY(bits == FC_ALL))
        vec_store(p, v);
    else if (bits & (bits + 1))
        _mm256_maskstore_ps(p, (__m256i)vec_mask(bits), (__m256)v);
    else {
        __m128 part = _mm256_castps256_ps128((__m256)v);
        if (bits & 8) _mm_storeu_ps(p, part), part = _mm256_extractf128_ps((__m256)v, 1), p += 4, bits >>= 4;
        if (bits & 2) _mm_storel_pi((__m64 *)p, part), part = _mm_movehl_ps(part, part), p += 2, bits >>= 2;
        if (bits & 1) _mm_store_ss(p, part);
    }
}
FC_INLINE void vec_stream(REAL *p, vec v) { _mm256_stream_ps(p, (__m256)v); }
#else
FC_INLINE vec vec_load_bits(const REAL *p, uint32_t bits) {
    return bits == FC_ALL ? vec_load(p) : (vec)_mm256_maskload_pd(p, (__m256i)vec_mask(bits));
}
FC_INLINE void vec_store_bits(REAL *p, vec v, uint32_t bits) {
    if (FC_LIKELY(bits == FC_ALL))
        vec_store(p, v);
    else if (bits & (bits + 1))
        _mm256_maskstore_pd(p, (__m256i)vec_mask(bits), (__m256d)v);
    else {
        __m128d part = _mm256_castpd256_pd128((__m256d)v);
        if (bits & 2) _mm_storeu_pd(p, part), part = _mm256_extractf128_pd((__m256d)v, 1), p += 2, bits >>= 2;
        if (bits & 1) _mm_store_sd(p, part);
    }
}
FC_INLINE void vec_stream(REAL *p, vec v) { _mm256_stream_pd(p, (__m256d)v); }
#endif

#else /* 128 bits: no masked access, lane by lane */

FC_INLINE vec vec_load_bits(const REAL *p, uint32_t bits) {
    if (bits == FC_ALL) return vec_load(p);
    vec v = {0};
    FC_UNROLL
    for (int i = 0; i < FC_LANES; i++)
        if (bits >> i & 1) v[i] = p[i];
    return v;
}
FC_INLINE void vec_store_bits(REAL *p, vec v, uint32_t bits) {
    if (FC_LIKELY(bits == FC_ALL)) {
        vec_store(p, v);
        return;
    }
    FC_UNROLL
    for (int i = 0; i < FC_LANES; i++)
        if (bits >> i & 1) p[i] = v[i];
}
FC_INLINE void vec_stream(REAL *p, vec v) { vec_store(p, v); }

#endif

#if FC_VEC_BYTES < 64
FC_INLINE vec vec_load_edge(const REAL *p, uint32_t bits) { return vec_load_bits(p, bits); }
#endif

/* The lanes of `bits`, moved to the front */
#define vec_compress FC_LOCAL(vec_compress)
FC_INLINE vec vec_compress(vec v, uint32_t bits) {
#if FC_VEC_BYTES == 64 && FC_REAL_BYTES == 4
    return (vec)_mm512_maskz_compress_ps((__mmask16)bits, (__m512)v);
#elif FC_VEC_BYTES == 64
    return (vec)_mm512_maskz_compress_pd((__mmask8)bits, (__m512d)v);
#else
    REAL lane[FC_LANES], front[FC_LANES];
    int n = 0;
    vec_store(lane, v);
    for (int i = 0; i < FC_LANES; i++)
        if (bits >> i & 1) front[n++] = lane[i];
    for (; n < FC_LANES; n++) front[n] = 0;
    return vec_load(front);
#endif
}

/* Two-vector shuffles with constant indices: vec_even(a, b) = a0 a2 a4 ... b0 b2 ..., vec_odd
 * a1 a3 a5 ...; vec_zip_* interleave a and b. */
#if FC_LANES == 16
#define FC_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define FC_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define FC_ZIP_LO 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define FC_ZIP_HI 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif FC_LANES == 8
#define FC_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define FC_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define FC_ZIP_LO 0, 8, 1, 9, 2, 10, 3, 11
#define FC_ZIP_HI 4, 12, 5, 13, 6, 14, 7, 15
#elif FC_LANES == 4
#define FC_EVEN 0, 2, 4, 6
#define FC_ODD 1, 3, 5, 7
#define FC_ZIP_LO 0, 4, 1, 5
#define FC_ZIP_HI 2, 6, 3, 7
#else
#define FC_EVEN 0, 2
#define FC_ODD 1, 3
#define FC_ZIP_LO 0, 2
#define FC_ZIP_HI 1, 3
#endif
#ifdef __clang__
#define FC_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FC_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

#define vec_even FC_LOCAL(vec_even)
#define vec_odd FC_LOCAL(vec_odd)
#define vec_zip_lo FC_LOCAL(vec_zip_lo)
#define vec_zip_hi FC_LOCAL(vec_zip_hi)
#if FC_VEC_BYTES == 32
/* In two steps: a shuffle across the halves of a vector that is not a whole half's move takes two instructions and twice
 * as long as one inside them. */
#if FC_LANES == 8
#define FC_HALF_LO 0, 1, 2, 3, 8, 9, 10, 11
#define FC_HALF_HI 4, 5, 6, 7, 12, 13, 14, 15
#define FC_HALVES_EVEN 0, 2, 8, 10, 4, 6, 12, 14
#define FC_HALVES_ODD 1, 3, 9, 11, 5, 7, 13, 15
#define FC_PAIR_LO 0, 8, 1, 9, 4, 12, 5, 13
#define FC_PAIR_HI 2, 10, 3, 11, 6, 14, 7, 15
#else
#define FC_HALF_LO 0, 1, 4, 5
#define FC_HALF_HI 2, 3, 6, 7
#define FC_HALVES_EVEN 0, 4, 2, 6
#define FC_HALVES_ODD 1, 5, 3, 7
#define FC_PAIR_LO 0, 4, 2, 6
#define FC_PAIR_HI 1, 5, 3, 7
#endif
#define FC_IN_TWO(a, b, lo, hi, last) FC_SHUFFLE(FC_SHUFFLE(a, b, lo), FC_SHUFFLE(a, b, hi), last)
FC_INLINE vec vec_even(vec a, vec b) { return FC_IN_TWO(a, b, FC_HALF_LO, FC_HALF_HI, FC_HALVES_EVEN); }
FC_INLINE vec vec_odd(vec a, vec b) { return FC_IN_TWO(a, b, FC_HALF_LO, FC_HALF_HI, FC_HALVES_ODD); }
FC_INLINE vec vec_zip_lo(vec a, vec b) { return FC_IN_TWO(a, b, FC_PAIR_LO, FC_PAIR_HI, FC_HALF_LO); }
FC_INLINE vec vec_zip_hi(vec a, vec b) { return FC_IN_TWO(a, b, FC_PAIR_LO, FC_PAIR_HI, FC_HALF_HI); }
#undef FC_IN_TWO
#undef FC_HALVES_EVEN
#undef FC_HALVES_ODD
#else
FC_INLINE vec vec_even(vec a, vec b) { return FC_SHUFFLE(a, b, FC_EVEN); }
FC_INLINE vec vec_odd(vec a, vec b) { return FC_SHUFFLE(a, b, FC_ODD); }
FC_INLINE vec vec_zip_lo(vec a, vec b) { return FC_SHUFFLE(a, b, FC_ZIP_LO); }
FC_INLINE vec vec_zip_hi(vec a, vec b) { return FC_SHUFFLE(a, b, FC_ZIP_HI); }
#endif

#define vec_transpose FC_LOCAL(vec_transpose)
#if FC_VEC_BYTES == 32
/* Transpose FC_LANES vectors: pairs, and with 32-bit lanes pairs of pairs, inside the halves of a vector, where shuffles
 * cost one cycle and no second instruction; then the halves. */
FC_INLINE void vec_transpose(vec v[FC_LANES]) {
    vec t[FC_LANES];
    FC_UNROLL
    for (int i = 0; i < FC_LANES; i += 2) {
        t[i] = FC_SHUFFLE(v[i], v[i + 1], FC_PAIR_LO);
        t[i + 1] = FC_SHUFFLE(v[i], v[i + 1], FC_PAIR_HI);
    }
#if FC_LANES == 8
    FC_UNROLL
    for (int i = 0; i < FC_LANES; i += 4) {
        const vec even = t[i + 1], odd = t[i + 2];
        t[i + 1] = FC_SHUFFLE(t[i], odd, 2, 3, 10, 11, 6, 7, 14, 15);
        t[i] = FC_SHUFFLE(t[i], odd, 0, 1, 8, 9, 4, 5, 12, 13);
        t[i + 2] = FC_SHUFFLE(even, t[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        t[i + 3] = FC_SHUFFLE(even, t[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
#endif
    FC_UNROLL
    for (int i = 0; i < FC_LANES / 2; i++) {
        v[i] = FC_SHUFFLE(t[i], t[i + FC_LANES / 2], FC_HALF_LO);
        v[i + FC_LANES / 2] = FC_SHUFFLE(t[i], t[i + FC_LANES / 2], FC_HALF_HI);
    }
}
#undef FC_PAIR_LO
#undef FC_PAIR_HI
#undef FC_HALF_LO
#undef FC_HALF_HI
#else
/* Transpose FC_LANES vectors: a perfect shuffle of rows i and i + lanes/2, log2(lanes) times. */
FC_INLINE void vec_transpose(vec v[FC_LANES]) {
    FC_UNROLL
    for (int stage = 1; stage < FC_LANES; stage *= 2) {
        vec t[FC_LANES];
        FC_UNROLL
        for (int i = 0; i < FC_LANES / 2; i++) {
            t[2 * i] = vec_zip_lo(v[i], v[i + FC_LANES / 2]);
            t[2 * i + 1] = vec_zip_hi(v[i], v[i + FC_LANES / 2]);
        }
        FC_UNROLL
        for (int i = 0; i < FC_LANES; i++) v[i] = t[i];
    }
}
#endif

/* Lanes p[0], p[step], p[2 step] ...; bits[j] masks the j-th of `step` contiguous vectors (step 1, 2 or 4). */
#define vec_load_strided FC_LOCAL(vec_load_strided)
FC_INLINE vec vec_load_strided(const REAL *p, int step, const uint32_t *bits) {
    vec a = vec_load_bits(p, bits[0]);
    if (step == 1) return a;
    vec b = vec_even(a, vec_load_bits(p + FC_LANES, bits[1]));
    if (step == 2) return b;
    vec c = vec_load_bits(p + 2 * FC_LANES, bits[2]), d = vec_load_bits(p + 3 * FC_LANES, bits[3]);
    return vec_even(b, vec_even(c, d));
}

/* Lanes p[lane * step] for lanes [lo, hi), zeros elsewhere */
#define load_lanes FC_LOCAL(load_lanes)
FC_INLINE vec load_lanes(const REAL *p, ptrdiff_t step, ptrdiff_t lo, ptrdiff_t hi) {
    vec v = {0};
    if (hi <= lo) return v;
    if (step == 1 || step == 2 || step == 4) {
        uint32_t bits[4];
        for (int i = 0; i < step; i++)
            bits[i] = bits_range(lo * step - i * FC_LANES, (hi - 1) * step + 1 - i * FC_LANES);
        return step == 1   ? vec_load_strided(p, 1, bits)
               : step == 2 ? vec_load_strided(p, 2, bits)
                           : vec_load_strided(p, 4, bits);
    }
    for (ptrdiff_t l = lo; l < hi; l++) v[l] = p[l * step];
    return v;
}

/* Lanes p[lane * step], at least the first `left` of them */
#define load_every FC_LOCAL(load_every)
FC_INLINE vec load_every(const REAL *p, ptrdiff_t step, ptrdiff_t left) {
    static const uint32_t all[4] = {FC_ALL, FC_ALL, FC_ALL, FC_ALL};
    if (step == 1) return vec_load(p);
    if (step == 2) return vec_even(vec_load(p), vec_load(p + FC_LANES));
    if (step == 4) return vec_load_strided(p, 4, all);
    vec v = {0};
    for (int l = 0; l < left; l++) v[l] = p[l * step];
    return v;
}
