/* Rows of a plane, copied and added: unfolding, borders, windows of uneven size.  One plane (n, c) a call.
 *
 *   unfold         columns[k][p] = x[step * p + dilation * k - pad], 0 outside the plane
 *   fold           x[step * p + dilation * k - pad] += columns[k][p]
 *   *_window       a column of these, for all channels
 *   border         y[i] = x[source(i - pad)]: what an image with a border of itself has at i
 *   fold_border    x[source(i - pad)] += y[i]
 *   uneven_*       means and maxima of windows [floor(p in / out), ceil((p + 1) in / out)), and their gradients
 *
 * The innermost loop goes along a row, by whole vectors where its elements are neighbours.  A mean adds rows to a line,
 * then columns; its gradient adds the shares of all windows to a line, then the line to rows. */

#define move_row FC_LOCAL(move_row)
FC_INLINE void move_row(ptrdiff_t n, const REAL *x, ptrdiff_t x_step, REAL *y, ptrdiff_t y_step, const int add) {
    if (x_step == 1 && y_step == 1) {
        for (ptrdiff_t i = 0; i < n; i += FC_LANES) {
            const uint32_t bits = bits_range(0, n - i);
            const vec v = vec_load_bits(x + i, bits);
            vec_store_bits(y + i, add ? vec_load_bits(y + i, bits) + v : v, bits);
        }
    } else
        for (ptrdiff_t i = 0; i < n; i++) y[i * y_step] = add ? y[i * y_step] + x[i * x_step] : x[i * x_step];
}

#define zero_row FC_LOCAL(zero_row)
FC_INLINE void zero_row(ptrdiff_t n, REAL *y, ptrdiff_t step) {
    for (ptrdiff_t i = 0; i < n; i++) y[i * step] = 0;
}

#define clamp FC_LOCAL(clamp)
FC_INLINE ptrdiff_t clamp(ptrdiff_t i, ptrdiff_t lo, ptrdiff_t hi) { return i < lo ? lo : i > hi ? hi : i; }

/* Every row of the columns: its part inside the image is copied, or added; inlined for each */
#define walk_columns FC_LOCAL(walk_columns)
FC_INLINE void walk_columns(const fc_rows *r, const REAL *x, REAL *columns, REAL *gx) {
    const ptrdiff_t step = r->step[2], outputs = r->out[2];
    for (ptrdiff_t kd = 0; kd < r->kernel[0]; kd++)
        for (ptrdiff_t kh = 0; kh < r->kernel[1]; kh++)
            for (ptrdiff_t kw = 0; kw < r->kernel[2]; kw++, columns += r->tap) {
                const ptrdiff_t left = r->pad[2] - kw * r->dilation[2];
                const ptrdiff_t first = clamp(ceil_div(left, step), 0, outputs);
                const ptrdiff_t last = clamp(ceil_div(r->in[2] + left, step), first, outputs);
                REAL *row = columns;
                for (ptrdiff_t od = 0; od < r->out[0]; od++)
                    for (ptrdiff_t oh = 0; oh < r->out[1]; oh++, row += outputs * r->pixel) {
                        const ptrdiff_t d = od * r->step[0] + kd * r->dilation[0] - r->pad[0];
                        const ptrdiff_t h = oh * r->step[1] + kh * r->dilation[1] - r->pad[1];
                        const int inside = d >= 0 && d < r->in[0] && h >= 0 && h < r->in[1];
                        const ptrdiff_t at = (d * r->in[1] + h) * r->in[2] + first * step - left;
                        const ptrdiff_t lo = inside ? first : outputs, hi = inside ? last : outputs;
                        if (gx)
                            move_row(hi - lo, row + lo * r->pixel, r->pixel, gx + at, step, 1);
                        else {
                            zero_row(lo, row, r->pixel);
                            move_row(hi - lo, x + at, step, row + lo * r->pixel, r->pixel, 0);
                            zero_row(outputs - hi, row + hi * r->pixel, r->pixel);
                        }
                    }
            }
}

static void FC_KERNEL(unfold)(const fc_rows *r, const void *x, void *columns) { walk_columns(r, x, columns, NULL); }

static void FC_KERNEL(fold)(const fc_rows *r, const void *columns, void *gx) {
    zero_row(r->in[0] * r->in[1] * r->in[2], gx, 1);
    walk_columns(r, NULL, (REAL *)columns, gx);
}

/* A window of all channels, [channel][tap], from where its taps lie in a plane (negative: outside), and back */
static void FC_KERNEL(gather_window)(ptrdiff_t channels, ptrdiff_t plane, ptrdiff_t taps, const ptrdiff_t *at,
                                     const void *x_, void *window_) {
    const REAL *x = x_;
    REAL *window = window_;
    if (taps == 1 && *at >= 0) {
        for (ptrdiff_t c = 0; c < channels; c++) window[c] = x[*at + c * plane];
        return;
    }
    for (ptrdiff_t c = 0; c < channels; c++, x += plane, window += taps)
        for (ptrdiff_t t = 0; t < taps; t++) window[t] = at[t] < 0 ? 0 : x[at[t]];
}

static void FC_KERNEL(scatter_window)(ptrdiff_t channels, ptrdiff_t plane, ptrdiff_t taps, const ptrdiff_t *at,
                                      const void *window_, void *gx_) {
    const REAL *window = window_;
    REAL *gx = gx_;
    for (ptrdiff_t c = 0; c < channels; c++, gx += plane, window += taps)
        for (ptrdiff_t t = 0; t < taps; t++)
            if (at[t] >= 0) gx[at[t]] += window[t];
}

/* Where the image of n elements, continued beyond its ends, has its element i */
#define source_of FC_LOCAL(source_of)
FC_INLINE ptrdiff_t source_of(ptrdiff_t i, ptrdiff_t n, int mode) {
    if (i >= 0 && i < n) return i;
    switch (mode) {
    case FC_REFLECT: return i < 0 ? -i : 2 * (n - 1) - i;
    case FC_REPLICATE: return i < 0 ? 0 : n - 1;
    default: return i < 0 ? i + n : i - n;
    }
}

/* Columns [lo, hi) of a row of the border */
#define move_edge FC_LOCAL(move_edge)
FC_INLINE void move_edge(const fc_rows *r, ptrdiff_t lo, ptrdiff_t hi, const REAL *x, REAL *y, REAL *gx) {
    for (ptrdiff_t w = lo; w < hi; w++) {
        const ptrdiff_t from = source_of(w - r->pad[2], r->in[2], r->mode);
        if (gx)
            gx[from] += y[w];
        else
            y[w] = x[from];
    }
}

#define walk_borders FC_LOCAL(walk_borders)
FC_INLINE void walk_borders(const fc_rows *r, const REAL *x, REAL *y, REAL *gx) {
    const ptrdiff_t before = r->pad[2], width = r->in[2];
    for (ptrdiff_t d = 0; d < r->out[0]; d++)
        for (ptrdiff_t h = 0; h < r->out[1]; h++, y += r->out[2]) {
            const ptrdiff_t from = source_of(d - r->pad[0], r->in[0], r->mode);
            const ptrdiff_t at = (from * r->in[1] + source_of(h - r->pad[1], r->in[1], r->mode)) * width;
            const REAL *row = gx ? NULL : x + at;
            REAL *gx_row = gx ? gx + at : NULL;
            move_edge(r, 0, before, row, y, gx_row);
            if (gx)
                move_row(width, y + before, 1, gx_row, 1, 1);
            else
                move_row(width, row, 1, y + before, 1, 0);
            move_edge(r, before + width, r->out[2], row, y, gx_row);
        }
}

static void FC_KERNEL(border)(const fc_rows *r, const void *x, void *y) { walk_borders(r, x, y, NULL); }

static void FC_KERNEL(fold_border)(const fc_rows *r, const void *y, void *gx) {
    zero_row(r->in[0] * r->in[1] * r->in[2], gx, 1);
    walk_borders(r, NULL, (REAL *)y, gx);
}

#define uneven_start FC_LOCAL(uneven_start)
FC_INLINE ptrdiff_t uneven_start(const fc_rows *r, int dim, ptrdiff_t p) { return p * r->in[dim] / r->out[dim]; }
#define uneven_stop FC_LOCAL(uneven_stop)
FC_INLINE ptrdiff_t uneven_stop(const fc_rows *r, int dim, ptrdiff_t p) {
    return ((p + 1) * r->in[dim] + r->out[dim] - 1) / r->out[dim];
}

/* The rows of one row of windows: y (+)= the sum of rows of x, or each row of gx += line */
#define walk_uneven FC_LOCAL(walk_uneven)
FC_INLINE void walk_uneven(const fc_rows *r, ptrdiff_t od, ptrdiff_t oh, const REAL *x, REAL *line, REAL *gx) {
    for (ptrdiff_t d = uneven_start(r, 0, od); d < uneven_stop(r, 0, od); d++)
        for (ptrdiff_t h = uneven_start(r, 1, oh); h < uneven_stop(r, 1, oh); h++) {
            const ptrdiff_t at = (d * r->in[1] + h) * r->in[2];
            if (gx)
                move_row(r->in[2], line, 1, gx + at, 1, 1);
            else
                move_row(r->in[2], x + at, 1, line, 1, 1);
        }
}

/* Elements of the windows of a row of windows, along d and h */
#define uneven_rows FC_LOCAL(uneven_rows)
FC_INLINE ptrdiff_t uneven_rows(const fc_rows *r, ptrdiff_t od, ptrdiff_t oh) {
    return (uneven_stop(r, 0, od) - uneven_start(r, 0, od)) * (uneven_stop(r, 1, oh) - uneven_start(r, 1, oh));
}

static void FC_KERNEL(uneven_mean)(const fc_rows *r, const void *x, void *y_) {
    REAL *y = y_, *line = r->line;
    for (ptrdiff_t od = 0; od < r->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < r->out[1]; oh++) {
            const ptrdiff_t rows = uneven_rows(r, od, oh);
            zero_row(r->in[2], line, 1);
            walk_uneven(r, od, oh, x, line, NULL);
            for (ptrdiff_t ow = 0; ow < r->out[2]; ow++) {
                const ptrdiff_t start = uneven_start(r, 2, ow), stop = uneven_stop(r, 2, ow);
                REAL sum = 0;
                for (ptrdiff_t w = start; w < stop; w++) sum += line[w];
                *y++ = sum / (REAL)(rows * (stop - start));
            }
        }
}

static void FC_KERNEL(uneven_spread)(const fc_rows *r, const void *g_, void *gx) {
    const REAL *g = g_;
    REAL *line = r->line;
    zero_row(r->in[0] * r->in[1] * r->in[2], gx, 1);
    for (ptrdiff_t od = 0; od < r->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < r->out[1]; oh++) {
            const ptrdiff_t rows = uneven_rows(r, od, oh);
            zero_row(r->in[2], line, 1);
            for (ptrdiff_t ow = 0; ow < r->out[2]; ow++) {
                const ptrdiff_t start = uneven_start(r, 2, ow), stop = uneven_stop(r, 2, ow);
                const REAL share = *g++ / (REAL)(rows * (stop - start));
                for (ptrdiff_t w = start; w < stop; w++) line[w] += share;
            }
            walk_uneven(r, od, oh, NULL, line, gx);
        }
}

/* The first maximum of each window, or its last NaN */
static void FC_KERNEL(uneven_max)(const fc_rows *r, const void *x_, void *y_, int64_t *index) {
    const REAL *x = x_;
    REAL *y = y_;
    for (ptrdiff_t od = 0; od < r->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < r->out[1]; oh++)
            for (ptrdiff_t ow = 0; ow < r->out[2]; ow++) {
                const ptrdiff_t start = uneven_start(r, 2, ow), stop = uneven_stop(r, 2, ow);
                REAL best = -FC_INFINITY;
                ptrdiff_t where = -1;
                for (ptrdiff_t d = uneven_start(r, 0, od); d < uneven_stop(r, 0, od); d++)
                    for (ptrdiff_t h = uneven_start(r, 1, oh); h < uneven_stop(r, 1, oh); h++) {
                        const ptrdiff_t row = (d * r->in[1] + h) * r->in[2];
                        for (ptrdiff_t i = row + start; i < row + stop; i++)
                            if (x[i] > best || x[i] != x[i] || where < 0) {
                                best = x[i];
                                where = i;
                            }
                    }
                *y++ = best;
                if (index) *index++ = where;
            }
}

/* How many of a plane's indices lie outside their windows */
static ptrdiff_t FC_KERNEL(uneven_check)(const fc_rows *r, const int64_t *index) {
    ptrdiff_t bad = 0;
    for (ptrdiff_t od = 0; od < r->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < r->out[1]; oh++)
            for (ptrdiff_t ow = 0; ow < r->out[2]; ow++) {
                const int64_t i = *index++, row = i / r->in[2];
                const int64_t at[3] = {row / r->in[1], row % r->in[1], i % r->in[2]};
                const ptrdiff_t o[3] = {od, oh, ow};
                int good = i >= 0;
                for (int dim = 0; dim < 3; dim++)
                    good = good && at[dim] >= uneven_start(r, dim, o[dim]) && at[dim] < uneven_stop(r, dim, o[dim]);
                bad += !good;
            }
    return bad;
}
