/* Direct convolution of few channels: depthwise, small groups, the first layer of a network.
 *
 * With few rows a packed panel is read as often as it is written, so pixels are not packed: input rows are copied
 * once, padded and apart by their phases modulo the step, and the micro-kernel reads lane vectors of the copy through a
 * table of offsets, one for each k = (tap, channel):
 *
 *     C[row][slot] = sum_k A[k][row] * B[slot + offset[k]]       slot: `lanes` neighbouring pixels of the copy
 *
 *     phase of the row, phase of the column (step 2):   | x00 x02 x04 ... | x20 x22 x24 ... | ...    a tap reads one
 *                                                       | x01 x03 x05 ... | x21 x23 x25 ... | ...    phase, contiguously
 *
 * Output rows are `pitch` pixels apart in every phase, so a slot may run on into the next row; lanes that fall on the
 * padding between two rows are dropped when it is stored. */

/* Slots of a tile of `rows` rows: as many accumulators as registers allow beside a broadcast */
#if FC_MR == 8
#define FC_SLOTS(rows) ((rows) <= 3 ? 8 : 24 / (rows))
#else
#define FC_SLOTS(rows) ((rows) <= 2 ? 6 : 12 / (rows) < 2 ? 1 : 12 / (rows))
#endif

#define direct_tile FC_LOCAL(direct_tile)
FC_INLINE void direct_tile(const int rows, const int slots, ptrdiff_t depth, const REAL *a, const REAL *b,
                           const ptrdiff_t *offset, const fc_slot *slot, REAL *c, ptrdiff_t ldc, ptrdiff_t step,
                           const REAL *bias, const fc_finish *finish) {
    vec acc[FC_MR][8];
    const REAL *src[8];
    FC_UNROLL
    for (int s = 0; s < slots; s++) src[s] = b + slot[s].in;
    FC_UNROLL
    for (int i = 0; i < rows; i++) {
        const vec start = bias ? vec_splat(bias[i]) : (vec){0};
        FC_UNROLL
        for (int s = 0; s < slots; s++) acc[i][s] = start;
    }
    for (ptrdiff_t k = 0; k < depth; k++, a += FC_MR) {
        const ptrdiff_t at = offset[k];
        vec held[8]; /* the fewer of the two operands; the other passes through one register */
        FC_UNROLL
        for (int h = 0; h < (rows < slots ? rows : slots); h++)
            held[h] = rows < slots ? vec_splat(a[h]) : vec_load(src[h] + at);
        FC_UNROLL
        for (int o = 0; o < (rows < slots ? slots : rows); o++) {
            vec other = rows < slots ? vec_load(src[o] + at) : vec_splat(a[o]);
            if (rows < slots) FC_OPAQUE(other); /* or each multiply-add loads it again */
            FC_UNROLL
            for (int h = 0; h < (rows < slots ? rows : slots); h++) {
                if (rows < slots)
                    acc[h][o] += held[h] * other;
                else
                    acc[o][h] += other * held[h];
            }
        }
    }
    const fc_finish how = finish_of(finish);
    FC_UNROLL
    for (int i = 0; i < rows; i++) {
        FC_UNROLL
        for (int s = 0; s < slots; s++) {
            REAL *p = c + i * ldc + slot[s].out;
            const uint32_t bits = slot[s].bits;
            if (step == 1 && FC_LIKELY(bits == FC_ALL))
                vec_store(p, finished(acc[i][s], how, i * ldc + slot[s].out, FC_ALL));
            else if (step == 1) {
                const int gaps = (bits & (bits + 1)) != 0;
                const uint32_t first = gaps ? bits_range(0, __builtin_popcount(bits)) : bits;
                const vec v = gaps ? vec_compress(acc[i][s], bits) : acc[i][s];
                vec_store_bits(p, finished(v, how, i * ldc + slot[s].out, first), first);
            } else {
                REAL lane[FC_LANES];
                vec_store(lane, acc[i][s]);
                if (bits == FC_ALL) {
                    FC_UNROLL
                    for (int l = 0; l < FC_LANES; l++) p[l * step] = lane[l];
                } else
                    for (int l = 0; bits >> l; l++) {
                        p[l * step] = lane[l];
                        __asm__ volatile("" : : : "memory"); /* a few elements: not to be vectorised */
                    }
            }
        }
    }
}

/* C[rows][slots]; seven slots of no pixels follow the last, to fill the last tile up */
static void FC_KERNEL(direct)(int rows, ptrdiff_t slots, ptrdiff_t depth, const void *a, const void *b,
                              const ptrdiff_t *offset, const fc_slot *slot, void *c, ptrdiff_t ldc, ptrdiff_t step,
                              const void *bias, const fc_finish *finish) {
    switch (rows) {
#define FC_CASE(r) \
    case r: \
        for (ptrdiff_t s = 0; s < slots; s += FC_SLOTS(r)) \
            direct_tile(r, FC_SLOTS(r), depth, a, b, offset, slot + s, c, ldc, step, bias, finish); \
        break;
        FC_CASE(1)
        FC_CASE(2)
        FC_CASE(3)
        FC_CASE(4)
#if FC_MR >= 6
        FC_CASE(5)
        FC_CASE(6)
#endif
#if FC_MR >= 8
        FC_CASE(7)
        FC_CASE(8)
#endif
#undef FC_CASE
    }
}

#define zeros FC_LOCAL(zeros)
FC_INLINE void zeros(REAL *dst, ptrdiff_t from, ptrdiff_t to) {
    vec zero = {0};
    FC_OPAQUE(zero); /* or compilers call memset for one or two stores */
    for (ptrdiff_t i = from; i < to; i += FC_LANES) vec_store(dst + i, zero);
}

#define clipped FC_LOCAL(clipped)
FC_INLINE ptrdiff_t clipped(ptrdiff_t x, ptrdiff_t lo, ptrdiff_t hi) { return x < lo ? lo : x > hi ? hi : x; }

/* One input row, padded and split into phases: dst[p * phase + i] = src[i * step + p - before], i < pitch, zero outside
 * [0, size).  `readable` elements from src on may be read.  Inlined with a constant step; whole vectors where they may be
 * read, ascending: up to a vector is spilled behind the row, which the next row overwrites and the slack behind a phase
 * or a row takes.  Stores to one row after another distract the prefetchers: `fetched` asks for what lies a page ahead. */
#define copy_row FC_LOCAL(copy_row)
FC_INLINE void copy_row(const REAL *src, ptrdiff_t size, ptrdiff_t readable, ptrdiff_t before, const ptrdiff_t step,
                        ptrdiff_t pitch, REAL *dst, ptrdiff_t phase, const int fetched) {
    enum { AHEAD = 4096 / FC_REAL_BYTES };
    const ptrdiff_t skip = before < 0 ? -before : 0, lead = clipped(before, 0, step * pitch);
    const ptrdiff_t n = clipped(size - skip, 0, step * pitch - lead);
    src += skip;
    readable -= skip;
    for (ptrdiff_t p = 0; p < step; p++) zeros(dst + p * phase, 0, ceil_div(lead - p, step));
    if (step <= 2) { /* all phases together */
        REAL *even = dst + (step == 2 ? lead % 2 * phase : 0) + lead / step; /* where src[0], src[2] ... go */
        REAL *odd = dst + (1 - lead % 2) * phase + (lead + 1) / 2;
        const ptrdiff_t whole = smaller(n, readable - step * FC_LANES + 1);
        ptrdiff_t i = 0;
        for (; i < whole; i += step * FC_LANES) {
            const vec v = vec_load(src + i);
            if (fetched) __builtin_prefetch(src + i + AHEAD);
            if (step == 1)
                vec_store(even + i, v);
            else {
                const vec next = vec_load(src + i + FC_LANES);
                vec_store(even + i / 2, vec_even(v, next));
                vec_store(odd + i / 2, vec_odd(v, next));
            }
        }
        for (; i < n; i++) (step == 1 || i % 2 == 0 ? even : odd)[i / step] = src[i];
    } else
        for (ptrdiff_t p = 0; p < step; p++) {
            const ptrdiff_t lo = ceil_div(lead - p, step), hi = ceil_div(lead + n - p, step);
            const REAL *from = src + p - lead;
            const ptrdiff_t whole = (readable - p + lead) / step - FC_LANES; /* last i of a vector that may be read */
            ptrdiff_t i = lo;
            for (; i < hi && i <= whole; i += FC_LANES) {
                if (fetched) __builtin_prefetch(from + i * step + AHEAD);
                vec_store(dst + p * phase + i, load_every(from + i * step, step, FC_LANES));
            }
            for (; i < hi; i++) dst[p * phase + i] = from[i * step];
        }
    for (ptrdiff_t p = 0; p < step; p++) zeros(dst + p * phase, ceil_div(lead + n - p, step), pitch);
}

/* Rows [first, first + rows) of a plane, zeros outside it:
 *
 *     dst[i % step][p][i / step] = phase p of row first + i        [phase along h][phase along w][row][column] */
#define copy_plane FC_LOCAL(copy_plane)
FC_INLINE void copy_plane(const ptrdiff_t step, const int fetched, const fc_copy *copy, const REAL *plane,
                          ptrdiff_t first, ptrdiff_t rows, REAL *dst) {
    const REAL *end = copy->end, *src = plane + first * copy->width;
    REAL *to = dst;
    ptrdiff_t phase = 0;
    for (ptrdiff_t h = first; h < first + rows; h++, src += copy->width) {
        if (h >= 0 && h < copy->height)
            copy_row(src, copy->width, end - src, -copy->left, step, copy->columns, to, copy->phase, fetched);
        else
            for (ptrdiff_t p = 0; p < step; p++) zeros(to + p * copy->phase, 0, copy->columns);
        to += step * copy->phase;
        if (++phase == copy->step[0]) {
            phase = 0;
            to = dst += copy->row;
        }
    }
}

static void FC_KERNEL(copy_rows)(const fc_copy *copy, const void *plane, ptrdiff_t first, ptrdiff_t rows, void *dst) {
    if (copy->step[1] == 1)
        copy_plane(1, 1, copy, plane, first, rows, dst);
    else if (copy->step[1] == 2)
        copy_plane(2, 1, copy, plane, first, rows, dst);
    else
        copy_plane(copy->step[1], 1, copy, plane, first, rows, dst);
}

/* Filters whose weight gradients share the loads of pixels: as many as their sums leave registers */
#define FC_DOT_FILTERS (FC_MR == 8 ? 3 : 1)

/* Sum of the lanes, in halves */
#define vec_total FC_LOCAL(vec_total)
FC_INLINE REAL vec_total(vec v) {
    REAL lane[FC_LANES];
    vec_store(lane, v);
    FC_UNROLL
    for (int half = FC_LANES / 2; half > 0; half /= 2) {
        FC_UNROLL
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    }
    return lane[0];
}

/* sum[f][t] += sum over rows and pixels of g[f][row][pixel] * x[row][pixel + offset[t]]: taps of a weight gradient, lanes
 * along w; filters are g_filter elements apart in g, sum_filter in the sums */
#define dot_taps FC_LOCAL(dot_taps)
FC_INLINE void dot_taps(const int filters, const int taps, ptrdiff_t rows, ptrdiff_t cols, const REAL *g,
                        ptrdiff_t g_filter, ptrdiff_t g_row, const REAL *x, ptrdiff_t x_row, const ptrdiff_t *offset,
                        REAL *sum, ptrdiff_t sum_filter) {
    vec acc[FC_DOT_FILTERS][9];
    const REAL *src[9];
    const ptrdiff_t whole = cols / FC_LANES * FC_LANES;
    const uint32_t tail = bits_range(0, cols - whole);
    FC_UNROLL
    for (int t = 0; t < taps; t++) {
        src[t] = x + offset[t];
        FC_UNROLL
        for (int f = 0; f < filters; f++) acc[f][t] = (vec){0};
    }
    for (ptrdiff_t r = 0; r < rows; r++, g += g_row) {
        ptrdiff_t i = 0;
        vec gv[FC_DOT_FILTERS];
        for (; i < whole; i += FC_LANES) {
            FC_UNROLL
            for (int f = 0; f < filters; f++) gv[f] = vec_load(g + f * g_filter + i);
            FC_UNROLL
            for (int t = 0; t < taps; t++) {
                vec xv = vec_load(src[t] + r * x_row + i);
                if (filters > 1) FC_OPAQUE(xv); /* or each multiply-add loads it again */
                FC_UNROLL
                for (int f = 0; f < filters; f++) acc[f][t] += gv[f] * xv;
            }
        }
        if (tail) {
            FC_UNROLL
            for (int f = 0; f < filters; f++) gv[f] = vec_load_bits(g + f * g_filter + whole, tail);
            FC_UNROLL
            for (int t = 0; t < taps; t++) {
                const vec xv = vec_load_bits(src[t] + r * x_row + whole, tail);
                FC_UNROLL
                for (int f = 0; f < filters; f++) acc[f][t] += gv[f] * xv;
            }
        }
    }
    FC_UNROLL
    for (int f = 0; f < filters; f++) {
        FC_UNROLL
        for (int t = 0; t < taps; t++) sum[f * sum_filter + t] += vec_total(acc[f][t]);
    }
}

static void FC_KERNEL(direct_dot)(ptrdiff_t filters, int taps, ptrdiff_t rows, ptrdiff_t cols, const void *g,
                                  ptrdiff_t g_filter, ptrdiff_t g_row, const void *x, ptrdiff_t x_row,
                                  const ptrdiff_t *offset, void *sum_, ptrdiff_t sum_filter) {
    REAL *sum = sum_;
    while (taps > 0) {
        const int n = taps <= 9 ? taps : taps / ((taps + 8) / 9);
        ptrdiff_t f = 0;
#define FC_DOTS(count, t) \
    dot_taps(count, t, rows, cols, (const REAL *)g + f * g_filter, g_filter, g_row, x, x_row, offset, \
             sum + f * sum_filter, sum_filter)
        switch (n) {
#define FC_CASE(t) \
    case t: \
        for (; FC_DOT_FILTERS > 1 && f + FC_DOT_FILTERS <= filters; f += FC_DOT_FILTERS) FC_DOTS(FC_DOT_FILTERS, t); \
        for (; f < filters; f++) FC_DOTS(1, t); \
        break;
            FC_CASE(1)
            FC_CASE(2)
            FC_CASE(3)
            FC_CASE(4)
            FC_CASE(5)
            FC_CASE(6)
            FC_CASE(7)
            FC_CASE(8)
            FC_CASE(9)
#undef FC_CASE
        }
#undef FC_DOTS
        taps -= n;
        offset += n;
        sum += n;
    }
}
