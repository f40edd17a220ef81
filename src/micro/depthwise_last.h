/* Depthwise convolution of images whose channels come last, x[h][w][c], one row of output pixels at a time, lanes along c:
 *
 *     y[o][c] = bias[c] + sum over taps t of w[t][c] * x[at(t) + o * step][c]
 *
 * An input gradient is the same with dY as x and the taps of a residue of the stride.  A tile is P outputs x V vectors of
 * channels, its accumulators in registers.  Taps come in runs of R whose pixels are neighbours: each pixel is loaded once
 * for all the outputs of a tile that a run's taps meet it for.  Of other taps, such as those of a dilation or at the
 * border, each is a run of its own: any filter, stride and dilation is a list of runs.
 *
 *     dw[t][c] += sum over outputs o of g[o][c] * x[at(t) + o * step][c]
 *
 * has the sums of up to nine taps in registers, and loads each vector of g once for all of them. */

/* step is that of S pixels of `channels` elements, or any if R is 1 */
#define pixels_tile FC_LOCAL(pixels_tile)
FC_INLINE void pixels_tile(const int R, const int S, const int P, const int V, const fc_pixels *q, const REAL *x,
                           const REAL *w, const REAL *bias, REAL *y, ptrdiff_t at, uint32_t last) {
    const ptrdiff_t pixel = R > 1 ? q->channels : q->step;
    const int apart = R > 1 ? S : 1;
    vec acc[8][4];
    FC_UNROLL
    for (int v = 0; v < V; v++) {
        const vec start = bias ? vec_load_bits(bias + v * FC_LANES, v == V - 1 ? last : FC_ALL) : (vec){0};
        FC_UNROLL
        for (int p = 0; p < P; p++) acc[p][v] = start;
    }
    FC_UNROLL
    for (int p = 0; p < P; p++) __builtin_prefetch(y + at + (P + p) * q->next, 1);
    for (ptrdiff_t t = 0; t < q->runs; t++) {
        const REAL *src = x + q->run[t].x, *weight = w + q->run[t].w;
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            const uint32_t bits = v == V - 1 ? last : FC_ALL;
            vec wv[7];
            FC_UNROLL
            for (int r = 0; r < R; r++) wv[r] = vec_load_bits(weight + r * q->weight_step + v * FC_LANES, bits);
            const REAL *from = src + v * FC_LANES;
            FC_UNROLL
            for (int i = 0; i < apart * (P - 1) + R; i++, from += pixel) {
                __asm__("" : "+r"(from)); /* or all distances are multiplied beforehand and spilled */
                vec xv = vec_load_bits(from, bits);
                if (R > 1) FC_OPAQUE(xv); /* or each multiply-add loads it again */
                FC_UNROLL
                for (int p = 0; p < P; p++)
                    if (i >= apart * p && i < apart * p + R) acc[p][v] += wv[i - apart * p] * xv;
            }
        }
    }
    const fc_finish how = finish_of(q->finish);
    FC_UNROLL
    for (int p = 0; p < P; p++) {
        FC_UNROLL
        for (int v = 0; v < V; v++) {
            const uint32_t bits = v == V - 1 ? last : FC_ALL;
            const ptrdiff_t to = at + p * q->next + v * FC_LANES;
            vec_store_bits(y + to, finished(acc[p][v], how, to, bits), bits);
        }
    }
}

/* Whole tiles; where outputs are left over, the last tile computes some of those before again.  Some channels of all
 * outputs are computed at a time, so that what neighbouring tiles share stays in L1; meanwhile a row further down is
 * fetched. */
#define pixels_row FC_LOCAL(pixels_row)
FC_INLINE void pixels_row(const int R, const int S, const int P, const int V, const fc_pixels *q, ptrdiff_t count,
                          const REAL *x, const REAL *w, const REAL *bias, REAL *y) {
    const ptrdiff_t lines = q->runs * (P * S + 2 * R) + P, most = (24 << 10) / (lines * FC_VEC_BYTES * V);
    const ptrdiff_t block = (most > 1 ? most : 1) * V * FC_LANES;
    const char *ahead = q->ahead;
    for (ptrdiff_t c0 = 0; c0 < q->channels; c0 += block) {
        const ptrdiff_t c1 = smaller(c0 + block, q->channels);
        for (ptrdiff_t first = 0; first < count; first += P) {
            const ptrdiff_t o = smaller(first, count - P), from = o * q->step, to = o * q->next;
            ptrdiff_t c = c0;
#define FC_TILE(vectors, last) \
    pixels_tile(R, S, P, vectors, q, x + from + c, w + c, bias ? bias + c : NULL, y, to + c, last)
            for (; c + V * FC_LANES <= c1; c += V * FC_LANES) {
                for (ptrdiff_t i = 0; i < q->fetched * P * V * FC_VEC_BYTES; i += 64, ahead += 64)
                    __builtin_prefetch(ahead, 0, 2);
                FC_TILE(V, FC_ALL);
            }
            for (; V > 1 && c + FC_LANES <= c1; c += FC_LANES) FC_TILE(1, FC_ALL);
            if (c < c1) FC_TILE(1, bits_range(0, c1 - c));
#undef FC_TILE
        }
    }
}

/* `count` outputs of a row, all of whose taps are inside the image */
static void FC_KERNEL(depthwise_pixels)(const fc_pixels *q, ptrdiff_t count, const void *x, const void *w,
                                        const void *bias, void *y) {
    if (count < 4)
        pixels_row(1, 1, 1, 4, q, count, x, w, bias, y);
    else if (count < 8)
        pixels_row(1, 1, 4, 2, q, count, x, w, bias, y);
    else
        switch (q->length * 2 + (q->step != q->channels)) {
        case 4: pixels_row(2, 1, 8, 1, q, count, x, w, bias, y); break;
        case 6: pixels_row(3, 1, 8, 1, q, count, x, w, bias, y); break;
        case 7: pixels_row(3, 2, 8, 1, q, count, x, w, bias, y); break;
        case 8: pixels_row(4, 1, 8, 1, q, count, x, w, bias, y); break;
        case 10: pixels_row(5, 1, 8, 1, q, count, x, w, bias, y); break;
        case 11: pixels_row(5, 2, 8, 1, q, count, x, w, bias, y); break;
        case 14: pixels_row(7, 1, 8, 1, q, count, x, w, bias, y); break;
        case 15: pixels_row(7, 2, 8, 1, q, count, x, w, bias, y); break;
        default: pixels_row(1, 1, 8, 1, q, count, x, w, bias, y);
        }
}

#define pixels_sums FC_LOCAL(pixels_sums)
FC_INLINE void pixels_sums(const int T, const fc_tap *tap, ptrdiff_t channels, ptrdiff_t count, const REAL *x,
                           ptrdiff_t step, const REAL *g, REAL *sums) {
    for (ptrdiff_t c = 0; c < channels; c += FC_LANES) {
        const uint32_t bits = bits_range(0, channels - c);
        const REAL *src[9];
        vec acc[9];
        FC_UNROLL
        for (int t = 0; t < T; t++) {
            src[t] = x + tap[t].x + c;
            acc[t] = vec_load_bits(sums + tap[t].w + c, bits);
        }
        for (ptrdiff_t o = 0; o < count; o++) {
            const vec gv = vec_load_bits(g + o * channels + c, bits);
            FC_UNROLL
            for (int t = 0; t < T; t++) acc[t] += gv * vec_load_bits(src[t] + o * step, bits);
        }
        FC_UNROLL
        for (int t = 0; t < T; t++) vec_store_bits(sums + tap[t].w + c, acc[t], bits);
    }
}

/* `count` outputs of a row, one behind another in g */
static void FC_KERNEL(depthwise_pixels_dot)(ptrdiff_t taps, const fc_tap *tap, ptrdiff_t channels, ptrdiff_t count,
                                            const void *x, ptrdiff_t step, const void *g, void *sums) {
    for (; taps >= 9; taps -= 9, tap += 9) pixels_sums(9, tap, channels, count, x, step, g, sums);
    switch (taps) {
#define FC_CASE(T) \
    case T: pixels_sums(T, tap, channels, count, x, step, g, sums); break;
        FC_CASE(1) FC_CASE(2) FC_CASE(3) FC_CASE(4) FC_CASE(5) FC_CASE(6) FC_CASE(7) FC_CASE(8)
#undef FC_CASE
    }
}
