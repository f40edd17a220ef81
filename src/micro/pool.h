/* Pooling: y[o] = max or mean of x over a window, one output row after another, lanes along w.
 *
 * Windows are separable.  A row of columns is reduced first, whole vectors at a time, in registers where windows are of
 * the usual widths, or else into a line with room for the padding; then each output reduces its columns, at
 * (w + lane) * step: contiguous vectors and an even/odd deinterleave.
 *
 *     x rows of the window      x x x x x x x x x x x x x x
 *                               x x x x x x x x x x x x x x
 *     line              . . . . r r r r r r r r r r r r r r . . .       . = -inf or 0
 *     y                      [     ] [     ] [     ]
 *
 *   max    the first maximum wins; a NaN wins over everything, and the last NaN of a window over the others
 *   mean   rows are added in order, then columns, and the sum is divided once: NaN and Inf stay in their windows
 *
 * Backwards, a maximum's gradient is scattered to its index, once this is known to lie in its window.  A mean's is
 * gathered: columns of a line add the shares of their windows, then rows add the line.
 * Planes that one window covers have no rows: they are reduced or filled as the contiguous elements that they are. */

#define line_values FC_LOCAL(line_values)
FC_INLINE REAL *line_values(const fc_pool_row *p) { return (REAL *)p->line + p->before - p->skip; }

/* Where a column's maximum is: the row's offset from the window's first, in elements */
#define line_rows FC_LOCAL(line_rows)
FC_INLINE INTEGER *line_rows(const fc_pool_row *p) {
    return (INTEGER *)((REAL *)p->line + p->line_size) + p->before - p->skip;
}

/* The window's taps along one dimension that fall inside the image: [first, last) */
#define clip_taps FC_LOCAL(clip_taps)
FC_INLINE void clip_taps(const fc_pool_row *p, int dim, ptrdiff_t *first, ptrdiff_t *last) {
    const ptrdiff_t dilation = p->dilation[dim], kernel = p->kernel[dim];
    const ptrdiff_t lo = ceil_div(-p->start[dim], dilation), hi = ceil_div(p->in[dim] - p->start[dim], dilation);
    *first = lo > 0 ? lo : 0;
    *last = hi < kernel ? hi : kernel;
}

/* The window's taps along w that fall inside the image for at least one of outputs [o, o + lanes): [first, last) */
#define clip_taps_w FC_LOCAL(clip_taps_w)
FC_INLINE void clip_taps_w(const fc_pool_row *p, ptrdiff_t o, ptrdiff_t *first, ptrdiff_t *last) {
    const ptrdiff_t dilation = p->dilation[2], w = o * p->step - p->before;
    const ptrdiff_t left = p->out - o < FC_LANES ? p->out - o : FC_LANES;
    *first = 0;
    *last = p->kernel[2];
    if (w >= 0 && w + (left - 1) * p->step + (p->kernel[2] - 1) * dilation < p->in[2]) return;
    const ptrdiff_t lo = ceil_div(-w - (left - 1) * p->step, dilation), hi = ceil_div(p->in[2] - w, dilation);
    if (lo > 0) *first = lo;
    if (hi < p->kernel[2]) *last = hi;
}

#define load_every_row FC_LOCAL(load_every_row)
FC_INLINE ivec load_every_row(const INTEGER *p, ptrdiff_t step, ptrdiff_t left) {
    return (ivec)load_every((const REAL *)p, step, left);
}

#define wins FC_LOCAL(wins)
FC_INLINE ivec wins(vec v, vec best) { return (v > best) | (v != v); }

#define splat_integer FC_LOCAL(splat_integer)
FC_INLINE ivec splat_integer(INTEGER x) { return x - (ivec){0}; }

#define pick FC_LOCAL(pick)
FC_INLINE ivec pick(ivec mask, ivec a, ivec b) { return (ivec)vec_select(mask, (vec)a, (vec)b); }

#define lane_numbers FC_LOCAL(lane_numbers)
FC_INLINE ivec lane_numbers(void) {
    ivec v;
    for (int l = 0; l < FC_LANES; l++) v[l] = l;
    return v;
}

#define FC_NOWHERE (FC_REAL_BYTES == 4 ? (INTEGER)INT32_MAX : (INTEGER)INT64_MAX)

#define combined FC_LOCAL(combined)
FC_INLINE vec combined(const int maximum, vec a, vec b) { return maximum ? vec_max(a, b) : a + b; }

/* line = the maximum or the sum of `taps` rows of `width` elements that lie before `end`; what is read behind a row is
 * overwritten in the line. */
#define FC_MAX_TAPS 16
#define combine_rows FC_LOCAL(combine_rows)
FC_INLINE void combine_rows(const int maximum, const int taps, const REAL *const *row, ptrdiff_t width, const REAL *end,
                            vec empty, REAL *line) {
    ptrdiff_t i = 0;
    for (; i + FC_LANES <= width; i += FC_LANES) {
        vec best = empty;
        for (int t = 0; t < taps; t++) best = combined(maximum, best, vec_load(row[t] + i));
        vec_store(line + i, best);
    }
    if (i < width) {
        const uint32_t bits = bits_range(0, width - i);
        vec best = empty;
        for (int t = 0; t < taps; t++)
            best = combined(maximum, best,
                            row[t] + i + FC_LANES <= end ? vec_load(row[t] + i) : vec_load_bits(row[t] + i, bits));
        vec_store(line + i, best);
    }
}

/* line = the maximum, with its row, or the sum of the rows of the windows */
#define reduce_rows FC_LOCAL(reduce_rows)
FC_INLINE void reduce_rows(const fc_pool_row *p, const int maximum, const int indexed) {
    ptrdiff_t d0, d1, h0, h1;
    clip_taps(p, 0, &d0, &d1);
    clip_taps(p, 1, &h0, &h1);
    REAL *line = line_values(p);
    INTEGER *where = indexed ? line_rows(p) : NULL;
    const REAL *end = (const REAL *)p->x + p->in[0] * p->in[1] * p->in[2];
    const vec empty = maximum ? vec_splat(-FC_INFINITY) : (vec){0};
    for (ptrdiff_t i = p->skip - p->before; i < 0; i++) {
        line[i] = empty[0];
        if (indexed) where[i] = FC_NOWHERE;
    }
    const REAL *from = (const REAL *)p->x + (p->start[0] * p->in[1] + p->start[1]) * p->in[2];
    const REAL *row_of[FC_MAX_TAPS];
    const ptrdiff_t taps = (d1 - d0) * (h1 - h0);
    if (!indexed && d0 < d1 && h0 < h1 && taps <= FC_MAX_TAPS) {
        int t = 0;
        for (ptrdiff_t kd = d0; kd < d1; kd++)
            for (ptrdiff_t kh = h0; kh < h1; kh++)
                row_of[t++] = from + (kd * p->dilation[0] * p->in[1] + kh * p->dilation[1]) * p->in[2];
        combine_rows(maximum, t, row_of, p->in[2], end, empty, line);
    } else
        for (ptrdiff_t i = 0; i < p->in[2]; i += FC_LANES) {
            const uint32_t bits = bits_range(0, p->in[2] - i);
            vec best = empty;
            ivec row = splat_integer(FC_NOWHERE);
            for (ptrdiff_t kd = d0; kd < d1; kd++)
                for (ptrdiff_t kh = h0; kh < h1; kh++) {
                    const ptrdiff_t above = (kd * p->dilation[0] * p->in[1] + kh * p->dilation[1]) * p->in[2];
                    const REAL *src = from + above + i;
                    /* what is read behind the row is overwritten below */
                    const vec v = src + FC_LANES <= end ? vec_load(src) : vec_load_bits(src, bits);
                    if (indexed) { /* a column of -inf has its first row */
                        const ivec here = splat_integer((INTEGER)above), won = wins(v, best) | (row == FC_NOWHERE);
                        row = pick(won, here, row);
                        best = vec_select(won, v, best);
                    } else
                        best = combined(maximum, best, v);
                }
            vec_store(line + i, best);
            if (indexed) vec_store((REAL *)(where + i), (vec)row);
        }
    for (ptrdiff_t i = p->in[2]; i < p->line_end - p->before + p->skip; i++) {
        line[i] = empty[0];
        if (indexed) where[i] = FC_NOWHERE;
    }
}

/* The maximum or the sum of taps [w0, w1) of a vector of outputs */
#define combine_columns FC_LOCAL(combine_columns)
FC_INLINE vec combine_columns(const int maximum, vec best, const REAL *from, const ptrdiff_t step, ptrdiff_t dilation,
                              ptrdiff_t w0, ptrdiff_t w1, ptrdiff_t left) {
    from += w0 * dilation;
    for (ptrdiff_t w = w0; w < w1; w++, from += dilation) best = combined(maximum, best, load_every(from, step, left));
    return best;
}

/* Elements of a window along one dimension: those inside the image, or with the padding that it covers */
#define window_extent FC_LOCAL(window_extent)
FC_INLINE ptrdiff_t window_extent(const fc_pool_row *p, int dim, ptrdiff_t start) {
    const ptrdiff_t padded = p->in[dim] + (p->count_include_pad ? p->pad_after[dim] : 0);
    ptrdiff_t end = start + p->kernel[dim];
    if (end > padded) end = padded;
    if (!p->count_include_pad && start < 0) start = 0;
    return end - start;
}

/* what the sums of outputs [o, o + lanes) are divided by */
#define divisors FC_LOCAL(divisors)
FC_INLINE vec divisors(const fc_pool_row *p, ptrdiff_t o, ptrdiff_t dh) {
    if (p->divisor) return vec_splat((REAL)p->divisor);
    const ptrdiff_t w = o * p->step - p->before;
    const ptrdiff_t left = p->out - o < FC_LANES ? p->out - o : FC_LANES;
    const ptrdiff_t room = p->in[2] + (p->count_include_pad ? p->pad_after[2] : 0) - w;
    if ((w >= 0 || p->count_include_pad) && (left - 1) * p->step + p->kernel[2] <= room)
        return vec_splat((REAL)(dh * p->kernel[2]));
    const ivec along = lane_numbers() * (INTEGER)p->step, none = {0};
    const ivec kernel = splat_integer((INTEGER)p->kernel[2]), lead = splat_integer((INTEGER)-w) - along;
    ivec extent = splat_integer((INTEGER)(room < FC_NOWHERE ? room : FC_NOWHERE)) - along;
    extent = pick(extent < kernel, extent, kernel);
    if (!p->count_include_pad) extent -= pick(lead > none, lead, none);
    return __builtin_convertvector(extent, vec) * (REAL)dh;
}

/* Windows of the usual widths need no line: a row of columns stays in registers, and shifted pairs of vectors are its
 * taps.  Lanes a[m] ... b[m - 1]: */
#if FC_LANES == 16
#define FC_FROM(m) \
    m, m + 1, m + 2, m + 3, m + 4, m + 5, m + 6, m + 7, m + 8, m + 9, m + 10, m + 11, m + 12, m + 13, m + 14, m + 15
#elif FC_LANES == 8
#define FC_FROM(m) m, m + 1, m + 2, m + 3, m + 4, m + 5, m + 6, m + 7
#elif FC_LANES == 4
#define FC_FROM(m) m, m + 1, m + 2, m + 3
#else
#define FC_FROM(m) m, m + 1
#endif
#define shifted FC_LOCAL(shifted)
FC_INLINE vec shifted(vec a, vec b, const int m) {
    switch (m) {
    case 0: return a;
    case 1: return FC_SHUFFLE(a, b, FC_FROM(1));
#if FC_LANES >= 4
    case 2: return FC_SHUFFLE(a, b, FC_FROM(2));
    case 3: return FC_SHUFFLE(a, b, FC_FROM(3));
    case 4: return FC_SHUFFLE(a, b, FC_FROM(4));
#endif
    }
    return b; /* as many as there are lanes */
}
#undef FC_FROM

/* Columns [c, c + lanes): the maximum or the sum of the rows of the windows, `empty` outside the image */
#define window_columns FC_LOCAL(window_columns)
FC_INLINE vec window_columns(const fc_pool_row *p, const int maximum, const ptrdiff_t taps, const REAL *const *row,
                             ptrdiff_t c) {
    const REAL *begin = p->x, *end = begin + p->in[0] * p->in[1] * p->in[2];
    const vec empty = maximum ? vec_splat(-FC_INFINITY) : (vec){0};
    const uint32_t bits = c >= 0 && c + FC_LANES <= p->in[2] ? FC_ALL : bits_range(-c, p->in[2] - c);
    if (!bits || !taps) return empty;
    vec v;
    if (row[0] + c >= begin && row[taps - 1] + c + FC_LANES <= end) { /* others' columns are read and dropped */
        v = vec_load(row[0] + c);
        for (ptrdiff_t t = 1; t < taps; t++) v = combined(maximum, v, vec_load(row[t] + c));
    } else {
        v = vec_load_bits(row[0] + c, bits);
        for (ptrdiff_t t = 1; t < taps; t++) v = combined(maximum, v, vec_load_bits(row[t] + c, bits));
    }
    return bits == FC_ALL ? v : vec_select(vec_mask(bits), v, empty);
}

/* The columns of a vector of outputs' first taps, each of `step` phases in a vector of its own */
#define window_phases FC_LOCAL(window_phases)
FC_INLINE void window_phases(const fc_pool_row *p, const int maximum, const ptrdiff_t taps, const REAL *const *row,
                             const ptrdiff_t step, ptrdiff_t c, vec phase[2]) {
    const vec a = window_columns(p, maximum, taps, row, c);
    phase[0] = a;
    if (step == 2) {
        const vec b = window_columns(p, maximum, taps, row, c + FC_LANES);
        phase[0] = vec_even(a, b);
        phase[1] = vec_odd(a, b);
    }
}

/* Inlined with constants: an output row of windows `width` wide of `taps` rows */
#define pool_window_row FC_LOCAL(pool_window_row)
FC_INLINE void pool_window_row(const fc_pool_row *p, const int maximum, const ptrdiff_t taps, const REAL *const *row,
                               const ptrdiff_t step, const int width, REAL *y) {
    const ptrdiff_t dh = window_extent(p, 0, p->start[0]) * window_extent(p, 1, p->start[1]);
    vec now[2] = {{0}}, next[2] = {{0}};
    window_phases(p, maximum, taps, row, step, -p->before, now);
    for (ptrdiff_t o = 0; o < p->out; o += FC_LANES) {
        const ptrdiff_t left = p->out - o < FC_LANES ? p->out - o : FC_LANES;
        if (width > step || left == FC_LANES)
            window_phases(p, maximum, taps, row, step, (o + FC_LANES) * step - p->before, next);
        vec best = maximum ? now[0] : (vec){0} + now[0]; /* a sum of negative zeros is a positive one */
        FC_UNROLL
        for (int w = 1; w < width; w++)
            best = combined(maximum, best, shifted(now[w % step], next[w % step], w / (int)step));
        if (!maximum) best /= divisors(p, o, dh);
        vec_store_bits(y + o, best, bits_range(0, left));
        now[0] = next[0];
        now[1] = next[1];
    }
}

/* Output rows below one another */
#define pool_windows FC_LOCAL(pool_windows)
FC_INLINE void pool_windows(fc_pool_row p, ptrdiff_t rows, const int maximum, const ptrdiff_t step, const int width,
                            REAL *y) {
    ptrdiff_t d0, d1, h0, h1;
    clip_taps(&p, 0, &d0, &d1);
    for (; rows > 0; rows--, y += p.out, p.start[1] += p.stride[1]) {
        clip_taps(&p, 1, &h0, &h1);
        const REAL *from = (const REAL *)p.x + (p.start[0] * p.in[1] + p.start[1]) * p.in[2], *row[FC_MAX_TAPS];
        int taps = 0;
        for (ptrdiff_t kd = d0; kd < d1; kd++)
            for (ptrdiff_t kh = h0; kh < h1; kh++)
                row[taps++] = from + (kd * p.dilation[0] * p.in[1] + kh * p.dilation[1]) * p.in[2];
        if (taps == width)
            pool_window_row(&p, maximum, width, row, step, width, y);
        else
            pool_window_row(&p, maximum, taps, row, step, width, y);
    }
}

/* Returns whether the windows are such */
#define pool_in_registers FC_LOCAL(pool_in_registers)
FC_INLINE int pool_in_registers(const fc_pool_row *p, ptrdiff_t rows, const int maximum, REAL *y) {
    const ptrdiff_t width = p->kernel[2];
    if (p->dilation[2] != 1 || p->step > 2 || (width - 1) / p->step > FC_LANES) return 0;
    if (p->kernel[0] * p->kernel[1] > FC_MAX_TAPS) return 0;
    switch (width * 2 + p->step) {
#define FC_CASE(w, s) \
    case w * 2 + s: pool_windows(*p, rows, maximum, s, w, y); return 1;
        FC_CASE(2, 1)
        FC_CASE(2, 2)
        FC_CASE(3, 1)
        FC_CASE(3, 2)
        FC_CASE(5, 1)
        FC_CASE(5, 2)
#undef FC_CASE
    }
    return 0;
}

/* Inlined with a constant step, so that loads are chosen once */
#define max_columns FC_LOCAL(max_columns)
FC_INLINE void max_columns(const fc_pool_row *p, const ptrdiff_t step, REAL *y) {
    const REAL *line = line_values(p) - p->before;
    for (ptrdiff_t o = 0; o < p->out; o += FC_LANES) {
        const ptrdiff_t left = p->out - o < FC_LANES ? p->out - o : FC_LANES;
        ptrdiff_t w0, w1;
        clip_taps_w(p, o, &w0, &w1);
        const vec best =
            combine_columns(1, vec_splat(-FC_INFINITY), line + o * step, step, p->dilation[2], w0, w1, left);
        vec_store_bits(y + o, best, bits_range(0, left));
    }
}

/* Of equal columns the one whose row comes first, of columns of one row the first; of NaNs the last */
#define max_columns_indexed FC_LOCAL(max_columns_indexed)
FC_INLINE void max_columns_indexed(const fc_pool_row *p, const ptrdiff_t step, REAL *y, int64_t *index) {
    const REAL *line = line_values(p) - p->before;
    const INTEGER *rows = line_rows(p) - p->before;
    const int64_t first = (p->start[0] * p->in[1] + p->start[1]) * p->in[2] - p->before;
    for (ptrdiff_t o = 0; o < p->out; o += FC_LANES) {
        const ptrdiff_t left = p->out - o < FC_LANES ? p->out - o : FC_LANES;
        ptrdiff_t w0, w1;
        clip_taps_w(p, o, &w0, &w1);
        vec best = vec_splat(-FC_INFINITY);
        ivec where = splat_integer(FC_NOWHERE), column = {0};
        for (ptrdiff_t kw = w0; kw < w1; kw++) {
            const ptrdiff_t at = o * step + kw * p->dilation[2];
            const vec v = load_every(line + at, step, left);
            const ivec row = load_every_row(rows + at, step, left);
            const ivec won =
                (v > best) | ((v == best) & (row < where)) | ((v != v) & ((best == best) | (row >= where)));
            best = vec_select(won, v, best);
            where = pick(won, row, where);
            column = pick(won, splat_integer((INTEGER)(kw * p->dilation[2])), column);
        }
        vec_store_bits(y + o, best, bits_range(0, left));
        INTEGER lane[FC_LANES];
        vec_store((REAL *)lane, (vec)(where + column));
        for (ptrdiff_t l = 0; l < left; l++) index[o + l] = first + (o + l) * step + lane[l];
    }
}

static void FC_KERNEL(max_pool_rows)(const fc_pool_row *rows, ptrdiff_t count, void *y_, int64_t *index) {
    fc_pool_row p = *rows;
    REAL *y = y_;
    if (!index && pool_in_registers(&p, count, 1, y)) return;
    for (; count > 0; count--, y += p.out, p.start[1] += p.stride[1]) {
        if (index) {
            reduce_rows(&p, 1, 1);
            if (p.step == 1)
                max_columns_indexed(&p, 1, y, index);
            else if (p.step == 2)
                max_columns_indexed(&p, 2, y, index);
            else
                max_columns_indexed(&p, p.step, y, index);
            index += p.out;
        } else {
            reduce_rows(&p, 1, 0);
            if (p.step == 1)
                max_columns(&p, 1, y);
            else if (p.step == 2)
                max_columns(&p, 2, y);
            else
                max_columns(&p, p.step, y);
        }
    }
}

/* Indices are checked as 32-bit words, whatever REAL is. */
#define FC_WORDS (FC_VEC_BYTES / 4)
#define words FC_LOCAL(words)
#define indices FC_LOCAL(indices)
typedef uint32_t words __attribute__((vector_size(FC_VEC_BYTES)));
typedef uint32_t FC_LOCAL(words_unaligned) __attribute__((vector_size(FC_VEC_BYTES), aligned(4)));
typedef uint64_t indices __attribute__((vector_size(2 * FC_VEC_BYTES), aligned(8), may_alias));

#define words_min FC_LOCAL(words_min)
FC_INLINE words words_min(words a, words b) {
#if FC_VEC_BYTES == 64
    return (words)_mm512_min_epu32((__m512i)a, (__m512i)b);
#elif FC_VEC_BYTES == 32
    return (words)_mm256_min_epu32((__m256i)a, (__m256i)b);
#else
    const words less = (words)(a < b);
    return (a & less) | (b & ~less);
#endif
}

/* All ones where an index lies outside its window, whose `extent` of elements a row begins at `first` */
#define outside FC_LOCAL(outside)
FC_INLINE words outside(const fc_pool_windows *p, const ptrdiff_t depth, const ptrdiff_t height,
                        const uint32_t dilation, words first, words extent, const int64_t *index) {
    const indices v = *(const indices *)index;
    const words low = __builtin_convertvector(v, words), high = __builtin_convertvector(v >> 32, words);
    const words at = low - first;
    words column = ~(words){0}; /* the least is that of the row which the index lies in, or behind */
    for (ptrdiff_t kd = 0; kd < depth; kd++)
        for (ptrdiff_t kh = 0; kh < height; kh++) {
            const words here = at - (uint32_t)(kd * p->pitch[0] + kh * p->pitch[1]);
            column = words_min(here, column);
        }
    words bad = (words)(column >= extent) | (words)(low >= p->plane) | (words)(high != 0);
    if (dilation != 1) bad |= (words)(column % dilation != 0);
    return bad;
}

/* The same for outputs from o on */
#define outside_table FC_LOCAL(outside_table)
FC_INLINE words outside_table(const fc_pool_windows *p, const ptrdiff_t depth, const ptrdiff_t height,
                              const uint32_t dilation, ptrdiff_t o, const int64_t *index) {
    const words first = p->base + *(const FC_LOCAL(words_unaligned) *)(p->first + o);
    return outside(p, depth, height, dilation, first, *(const FC_LOCAL(words_unaligned) *)(p->extent + o), index);
}

/* Inlined with constant numbers of rows and dilation; tables are readable a vector beyond n. */
#define count_outside FC_LOCAL(count_outside)
FC_INLINE ptrdiff_t count_outside(const fc_pool_windows *p, const ptrdiff_t depth, const ptrdiff_t height,
                                  const uint32_t dilation, ptrdiff_t n, const int64_t *index) {
    words count = {0};
    ptrdiff_t bad = 0, i = 0;
    for (; i + FC_WORDS <= n; i += FC_WORDS) count -= outside_table(p, depth, height, dilation, i, index + i);
    for (int l = 0; l < FC_WORDS; l++) bad += count[l];
    if (i < n) {
        int64_t rest[FC_WORDS] = {0};
        for (ptrdiff_t l = 0; l < n - i; l++) rest[l] = index[i + l];
        count = outside_table(p, depth, height, dilation, i, rest);
        for (ptrdiff_t l = 0; l < n - i; l++) bad += count[l] != 0;
    }
    return bad;
}

/* How many of n consecutive outputs' indices lie outside their windows */
static ptrdiff_t FC_KERNEL(max_pool_check)(const fc_pool_windows *p, ptrdiff_t n, const int64_t *index) {
    if (p->dilation == 1 && p->rows[0] == 1) {
        if (p->rows[1] == 2) return count_outside(p, 1, 2, 1, n, index);
        if (p->rows[1] == 3) return count_outside(p, 1, 3, 1, n, index);
        if (p->rows[1] == 5) return count_outside(p, 1, 5, 1, n, index);
    }
    return count_outside(p, p->rows[0], p->rows[1], p->dilation, n, index);
}

/* gx[index] += g, for n outputs of each plane.  An addition waits for the one before to the same element, and
 * neighbouring windows share theirs; planes do not, so that four of them go side by side. */
static void FC_KERNEL(max_pool_scatter)(ptrdiff_t planes, ptrdiff_t n, const void *g_, const int64_t *index,
                                        ptrdiff_t plane, void *gx_) {
    const REAL *g = g_;
    REAL *gx = gx_;
    for (; planes >= 4; planes -= 4, g += 4 * n, index += 4 * n, gx += 4 * plane)
        for (ptrdiff_t i = 0; i < n; i++) {
            FC_UNROLL
            for (int j = 0; j < 4; j++) gx[j * plane + index[j * n + i]] += g[j * n + i];
        }
    for (; planes > 0; planes--, g += n, index += n, gx += plane)
        for (ptrdiff_t i = 0; i < n; i++) gx[index[i]] += g[i];
}

#define mean_columns FC_LOCAL(mean_columns)
FC_INLINE void mean_columns(const fc_pool_row *p, const ptrdiff_t step, REAL *y) {
    const REAL *line = line_values(p) - p->before;
    const ptrdiff_t dh = window_extent(p, 0, p->start[0]) * window_extent(p, 1, p->start[1]);
    for (ptrdiff_t o = 0; o < p->out; o += FC_LANES) {
        const ptrdiff_t left = p->out - o < FC_LANES ? p->out - o : FC_LANES;
        ptrdiff_t w0, w1;
        clip_taps_w(p, o, &w0, &w1);
        const vec sum = combine_columns(0, (vec){0}, line + o * step, step, 1, w0, w1, left);
        vec_store_bits(y + o, sum / divisors(p, o, dh), bits_range(0, left));
    }
}

static void FC_KERNEL(avg_pool_rows)(const fc_pool_row *rows, ptrdiff_t count, void *y_) {
    fc_pool_row p = *rows;
    REAL *y = y_;
    if (pool_in_registers(&p, count, 0, y)) return;
    for (; count > 0; count--, y += p.out, p.start[1] += p.stride[1]) {
        reduce_rows(&p, 0, 0);
        if (p.step == 1)
            mean_columns(&p, 1, y);
        else if (p.step == 2)
            mean_columns(&p, 2, y);
        else
            mean_columns(&p, p.step, y);
    }
}

/* line[t * step + phase] = the sum of the shares of outputs t - m, whose windows have that column at tap m * step + phase;
 * inlined with a constant step, so that phases are interleaved by shuffles */
#define spread_columns FC_LOCAL(spread_columns)
FC_INLINE void spread_columns(const fc_pool_row *p, const ptrdiff_t step, const REAL *share, REAL *line) {
    const ptrdiff_t end = p->skip + p->line_end;
    for (ptrdiff_t t = p->skip / step; t * step < end; t += FC_LANES) {
        const ptrdiff_t first = t < p->out ? 0 : t - p->out + 1;
        vec v[2];
        for (ptrdiff_t phase = 0; phase < step; phase++) {
            ptrdiff_t taps = ceil_div(p->kernel[2] - phase, step);
            if (taps > t + FC_LANES) taps = t + FC_LANES;
            vec sum = {0};
            for (ptrdiff_t m = first; m < taps; m++) sum += vec_load(share + t - m);
            if (step <= 2)
                v[phase] = sum;
            else
                for (int l = 0; l < FC_LANES && (t + l) * step + phase < end; l++)
                    line[(t + l) * step + phase] = sum[l];
        }
        if (step == 1)
            vec_store(line + t, v[0]);
        else if (step == 2) {
            vec_store(line + 2 * t, vec_zip_lo(v[0], v[1]));
            vec_store(line + 2 * t + FC_LANES, vec_zip_hi(v[0], v[1]));
        }
    }
}

/* The mean's gradient: every element of a window receives g / divisor.  A line collects the columns, every row of the
 * windows adds it. */
static void FC_KERNEL(avg_pool_spread)(const fc_pool_row *p, const void *g_, void *gx) {
    const REAL *g = g_;
    REAL *line = line_values(p) - p->before, *share = (REAL *)p->line + p->line_size + FC_LANES;
    ptrdiff_t d0, d1, h0, h1;
    clip_taps(p, 0, &d0, &d1);
    clip_taps(p, 1, &h0, &h1);
    const ptrdiff_t dh = window_extent(p, 0, p->start[0]) * window_extent(p, 1, p->start[1]);
    vec_store(share - FC_LANES, (vec){0});
    for (ptrdiff_t o = 0; o < p->out; o += FC_LANES)
        vec_store(share + o, vec_load_bits(g + o, bits_range(0, p->out - o)) / divisors(p, o, dh));
    vec_store(share + p->out, (vec){0});
    if (p->step == 1)
        spread_columns(p, 1, share, line);
    else if (p->step == 2)
        spread_columns(p, 2, share, line);
    else
        spread_columns(p, p->step, share, line);
    for (ptrdiff_t kd = d0; kd < d1; kd++)
        for (ptrdiff_t kh = h0; kh < h1; kh++) {
            REAL *row = (REAL *)gx + ((p->start[0] + kd) * p->in[1] + p->start[1] + kh) * p->in[2];
            for (ptrdiff_t i = 0; i < p->in[2]; i += FC_LANES) {
                const uint32_t bits = bits_range(0, p->in[2] - i);
                vec_store_bits(row + i, vec_load_bits(row + i, bits) + vec_load(line + p->before + i), bits);
            }
        }
}

/* Planes that one window covers: y = the mean or the maximum of n contiguous elements, and the mean's gradient. */

#define plane_divisor FC_LOCAL(plane_divisor)
FC_INLINE REAL plane_divisor(const fc_pool_row *p) {
    if (p->divisor) return (REAL)p->divisor;
    return (REAL)(window_extent(p, 0, p->start[0]) * window_extent(p, 1, p->start[1]) *
                  window_extent(p, 2, -p->before));
}

/* As many planes as a vector has lanes are summed side by side: zipping the halves of two vectors and adding them leaves
 * the sums of both in one, so that log2(lanes) rounds leave one vector of all, in order. */
static void FC_KERNEL(avg_pool_planes)(const fc_pool_row *p, ptrdiff_t planes, void *y_) {
    REAL *y = y_;
    const REAL *x = p->x, divisor = plane_divisor(p);
    const ptrdiff_t n = p->in[0] * p->in[1] * p->in[2];
    enum { BLOCK = 4096 }; /* sums of sums: the error does not grow with n */
    for (ptrdiff_t i = 0; i < planes; i += FC_LANES) {
        vec v[FC_LANES] = {{0}};
        for (ptrdiff_t l = 0; l < FC_LANES && i + l < planes; l++, x += n)
            for (ptrdiff_t j = 0; j < n; j += BLOCK) v[l] += sums_of(n - j < BLOCK ? n - j : BLOCK, x + j);
        FC_UNROLL
        for (int half = FC_LANES / 2; half; half /= 2) {
            FC_UNROLL
            for (int l = 0; l < half; l++) v[l] = vec_zip_lo(v[l], v[l + half]) + vec_zip_hi(v[l], v[l + half]);
        }
        vec_store_bits(y + i, v[0] / divisor, bits_range(0, planes - i));
    }
}

static void FC_KERNEL(avg_pool_fill)(const fc_pool_row *p, ptrdiff_t planes, const void *g_, void *gx_) {
    const REAL *g = g_, divisor = plane_divisor(p);
    REAL *gx = gx_;
    const ptrdiff_t n = p->in[0] * p->in[1] * p->in[2], rest = n % FC_LANES;
    for (; planes > 0; planes--, g++, gx += n) {
        const vec share = vec_splat(*g / divisor);
        for (ptrdiff_t i = 0; i + FC_LANES <= n; i += FC_LANES) vec_store(gx + i, share);
        if (rest) vec_store_bits(gx + n - rest, share, bits_range(0, rest));
    }
}

/* Every lane becomes the maximum of all, a NaN if there is one, or the least integer: halves are zipped log2(lanes)
 * times. */
#define best_of_lanes FC_LOCAL(best_of_lanes)
FC_INLINE vec best_of_lanes(vec v) {
    FC_UNROLL
    for (int lanes = 1; lanes < FC_LANES; lanes *= 2) {
        const vec a = vec_zip_lo(v, v), b = vec_zip_hi(v, v);
        v = vec_select(wins(a, b), a, b);
    }
    return v;
}

#define least_of_lanes FC_LOCAL(least_of_lanes)
FC_INLINE ivec least_of_lanes(ivec v) {
    FC_UNROLL
    for (int lanes = 1; lanes < FC_LANES; lanes *= 2) {
        const ivec a = (ivec)vec_zip_lo((vec)v, (vec)v), b = (ivec)vec_zip_hi((vec)v, (vec)v);
        v = pick(a < b, a, b);
    }
    return v;
}

/* Lanes go down the plane and are compared at the end.  The last vector overlaps the one before: seen twice, an element
 * wins no more than once.  Of NaNs the last is the one whose complement is least. */
static void FC_KERNEL(max_pool_planes)(const fc_pool_row *p, ptrdiff_t planes, void *y_, int64_t *index) {
    REAL *y = y_;
    const REAL *x = p->x;
    const ptrdiff_t n = p->in[0] * p->in[1] * p->in[2];
    const ivec lane = lane_numbers();
    const ivec real = lane < splat_integer((INTEGER)(n < FC_LANES ? n : FC_LANES)), nowhere = splat_integer(FC_NOWHERE);
    for (ptrdiff_t k = 0; k < planes; k++, x += n) {
        vec best = vec_select(real, vec_load_bits(x, bits_range(0, n)), vec_splat(-FC_INFINITY));
        ivec where = pick(real, lane, nowhere);
        for (ptrdiff_t i = FC_LANES; i < n; i += FC_LANES) {
            const ptrdiff_t at = i + FC_LANES <= n ? i : n - FC_LANES;
            const vec v = vec_load(x + at);
            const ivec won = wins(v, best);
            best = vec_select(won, v, best);
            where = pick(won, lane + (INTEGER)at, where);
        }
        const vec top = best_of_lanes(best);
        y[k] = top[0];
        if (index) {
            const ivec flip = top != top;
            const ivec found = least_of_lanes(pick((best == top) | (best != best), where ^ flip, nowhere)) ^ flip;
            index[k] = found[0];
        }
    }
}
