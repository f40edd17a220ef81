"""Depthwise convolution of images whose channels come last, as they lie: all three passes, by micro/depthwise_last.h.

Output and input gradient are the sweeps of conv_gemm.pxi.  A task owns some rows of output pixels of one image, of
every sweep; weights are transposed to [tap][channel] before.  Taps that meet padding are left out: an output, whose
padding is multiplied, is left to the other kernels where a weight is not finite.  In the weight gradient, where the
factor of a zero is dY, taps that meet padding read a pixel of zeros.  A task there sums a fixed share of the output
rows; shares are added pairwise.
"""

cdef enum:
    LAST_ELEMENTS = 1 << 14  # of an output, a task
    LAST_SHARES = 16  # of the rows, in a weight gradient


cdef struct LastJob:
    kernels_t k
    size_t es
    const fc_sweep *sweep
    int sweeps
    ptrdiff_t channels, taps
    ptrdiff_t task_rows, blocks, shares  # rows of pixels a task; tasks an image; of all rows, in a weight gradient
    const char *x
    const char *weight  # [tap][channel]
    const char *bias
    const char *residual
    char *y
    int activation
    double slope
    const char *grad_output
    char *zeros  # a pixel


cdef inline ptrdiff_t taps_size(ptrdiff_t taps) noexcept nogil:
    """Bytes of a thread's scratch: two lists of taps, and where along w they are."""
    return aligned(taps * (2 * sizeof(fc_tap) + sizeof(ptrdiff_t)))


cdef struct LastRow:
    ptrdiff_t taps, missing  # those that meet the image, and behind them those that do not
    ptrdiff_t first, last  # outputs all of whose taps are inside along w, too
    fc_tap *tap
    fc_tap *some  # room for a list of the same length
    ptrdiff_t below  # row of the input under those that the taps meet
    ptrdiff_t *shift  # of a tap along w, in pixels


cdef LastRow row_of(const LastJob *j, const fc_sweep *s, ptrdiff_t row, char *scratch) noexcept nogil:
    """The taps of a row of outputs of a sweep."""
    cdef LastRow r
    cdef ptrdiff_t d0 = row // s.out[1] * s.step[0], h0 = row % s.out[1] * s.step[1], d, h, t, at, step = s.step[2]
    r.tap, r.some = <fc_tap *>scratch, <fc_tap *>scratch + j.taps
    r.shift = <ptrdiff_t *>(scratch + 2 * j.taps * sizeof(fc_tap))
    r.taps, r.missing, r.first, r.last, r.below = 0, 0, 0, s.out[2], 0
    for t in range(s.ntaps):
        d, h = d0 + s.taps[3 * t], h0 + s.taps[3 * t + 1]
        if 0 <= d < s.in_[0] and 0 <= h < s.in_[1]:
            at = r.taps
            r.taps += 1
            r.shift[at] = s.taps[3 * t + 2]
            r.below = max(r.below, d * s.in_[1] + h + 1)
            r.tap[at].x = ((d * s.in_[1] + h) * s.in_[2] + r.shift[at]) * j.channels
            r.first = max(r.first, ceil_div(max(-r.shift[at], <ptrdiff_t>0), step))
            r.last = min(r.last, ceil_div(max(s.in_[2] - r.shift[at], <ptrdiff_t>0), step))
        else:
            r.missing += 1
            at = s.ntaps - r.missing
            r.tap[at].x = 0
        r.tap[at].w = s.weights[t] * j.channels
    if r.first >= r.last:
        r.first = r.last = s.out[2]
    return r


cdef ptrdiff_t taps_of(const fc_sweep *s, const LastRow *r, ptrdiff_t o, bint inside) noexcept nogil:
    """Those of the row's taps that are inside the image, or outside, along w at output o."""
    cdef ptrdiff_t t, count = 0
    for t in range(r.taps):
        if (0 <= o * s.step[2] + r.shift[t] < s.in_[2]) == inside:
            r.some[count] = r.tap[t]
            count += 1
    return count


cdef void find_tap_runs(const LastJob *j, const fc_sweep *s, const LastRow *r, fc_pixels *p) noexcept nogil:
    """The row's taps in runs, where those of a row of the filter are neighbours in the image, or one by one."""
    cdef ptrdiff_t t, length = 1, across
    p.run, p.runs, p.length = r.tap, r.taps, 1
    while length < s.ntaps and s.taps[3 * length] == s.taps[0] and s.taps[3 * length + 1] == s.taps[1]:
        length += 1
    if (r.last - r.first < 8 or length == 1 or length == 6 or length > 7 or s.step[2] > 2
            or s.step[2] == 2 and length % 2 == 0):
        return
    across = s.taps[5] - s.taps[2]
    if across * across != 1:
        return
    p.run, p.runs, p.length = r.some, r.taps // length, length
    p.weight_step = across * (s.weights[1] - s.weights[0]) * j.channels
    for t in range(p.runs):
        r.some[t] = r.tap[t * length + (0 if across > 0 else length - 1)]


cdef void last_pixels(const LastJob *j, const fc_sweep *s, fc_pixels *p, ptrdiff_t n, ptrdiff_t row, ptrdiff_t o,
                      ptrdiff_t count) noexcept nogil:
    """`count` outputs of a row from o on."""
    cdef ptrdiff_t pixel = row // s.out[1] * s.out_pixel[0] + row % s.out[1] * s.out_pixel[1] + o * s.out_pixel[2]
    cdef ptrdiff_t at = n * s.out_image + (s.out_base + pixel) * j.channels
    cdef fc_finish finish
    finish.activation = finished_activation(j.activation)
    finish.residual = NULL if j.residual == NULL else j.residual + at * j.es
    p.channels, p.step, p.next = j.channels, s.step[2] * j.channels, s.out_pixel[2] * j.channels
    p.finish = &finish if finish.activation or j.residual != NULL else NULL
    j.k.depthwise_pixels(p, count, j.x + (n * s.in_image + o * p.step) * j.es, j.weight, j.bias, j.y + at * j.es)
    if j.activation != finish.activation:
        count *= j.channels
        j.k.epilogue(j.y + at * j.es, count, 1, <int>count, NULL, NULL, j.activation, j.slope)


cdef void last_row(const LastJob *j, const fc_sweep *s, ptrdiff_t n, ptrdiff_t row, char *scratch) noexcept nogil:
    """A row of outputs of a sweep."""
    cdef LastRow r = row_of(j, s, row, scratch)
    cdef ptrdiff_t o = 0, count = r.last - r.first
    cdef fc_pixels p
    while o < s.out[2]:
        p.ahead, p.fetched = NULL, 0
        if o == r.first and count > 0:
            find_tap_runs(j, s, &r, &p)
            p.ahead = j.x + (n * s.in_image + (r.below * s.in_[2] + o * s.step[2]) * j.channels) * j.es
            p.fetched = s.step[1] * s.step[2]
            last_pixels(j, s, &p, n, row, o, count)
            o = r.last
        else:
            p.run, p.runs, p.length = r.some, taps_of(s, &r, o, True), 1
            last_pixels(j, s, &p, n, row, o, 1)
            o += 1


cdef void last_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: some rows of pixels of one image, of every sweep."""
    cdef LastJob *j = <LastJob *>job_
    cdef ptrdiff_t n = task // j.blocks, row0 = task % j.blocks * j.task_rows, row
    cdef int i
    for row in range(row0, row0 + j.task_rows):
        for i in range(j.sweeps):
            if row < j.sweep[i].out[0] * j.sweep[i].out[1]:
                last_row(j, j.sweep + i, n, row, scratch)


cdef bint are_finite(kernels_t k, size_t es, ptrdiff_t n, const char *x) noexcept nogil:
    """Whether numbers are finite, as far as their sum tells: where it is not, they may be."""
    cdef double total = 0
    k.sum(n, x, &total)
    total = total if es == 8 else (<float *>&total)[0]
    return total - total == 0


cdef int run_last(LastJob *j, ConvPlan plan, const char *weight, bint finite) except -1:
    """Output or input gradient; returns 0, and does nothing, where weights that have to be finite are not."""
    cdef int threads = threads_for(DEPTHWISE_WORK * plan.flops), i
    cdef ptrdiff_t rows = 0, row = 0
    cdef bint served
    cdef size_t weights = aligned(plan.weight_size * plan.es), scratch = taps_size(plan.taps)
    j.k, j.es, j.channels, j.taps = plan.k, plan.es, plan.groups, plan.taps
    for i in range(j.sweeps):
        rows, row = max(rows, j.sweep[i].out[0] * j.sweep[i].out[1]), max(row, j.sweep[i].out[2] * j.channels)
    if rows == 0:
        return 1
    j.task_rows = max(<ptrdiff_t>1, LAST_ELEMENTS // row)
    j.blocks = ceil_div(rows, j.task_rows)
    cdef Arena arena = lease(weights + threads * scratch)
    j.weight = <char *>arena.memory
    with nogil:
        served = not finite or are_finite(j.k, j.es, plan.weight_size, weight)
        if served:
            j.k.transpose(weight, plan.taps, plan.groups, plan.taps, <char *>j.weight, plan.groups)
            run_flushed(last_task, j, plan.n * j.blocks, threads, <char *>j.weight + weights, scratch)
    release(arena)
    return served


def conv_last_output(ConvPlan plan not None, ndarray x not None, ndarray weight not None, ndarray bias,
                     ndarray residual, ndarray out not None, int activation=0, double slope=0):
    """`conv_output` of arrays (n, ..., c), a filter a channel; returns whether it serves: weights have to be finite."""
    cdef LastJob j
    j.sweep, j.sweeps = &plan.output, 1
    j.x, j.bias = read(x, plan.es, plan.x_size), read(bias, plan.es, plan.groups)
    j.residual, j.y = read(residual, plan.es, plan.out_size), written(out, plan.es, plan.out_size)
    j.activation, j.slope = activation, slope
    return run_last(&j, plan, read(weight, plan.es, plan.weight_size), True) == 1


def conv_last_input_gradient(ConvPlan plan not None, ndarray grad_output not None, ndarray weight not None,
                             ndarray grad_input not None):
    """`conv_input_gradient` of arrays (n, ..., c), a filter a channel."""
    cdef LastJob j
    j.sweep, j.sweeps = plan.gradient, plan.gradients
    j.x, j.y = read(grad_output, plan.es, plan.out_size), written(grad_input, plan.es, plan.x_size)
    j.bias, j.residual, j.activation, j.slope = NULL, NULL, 0, 0
    if plan.gradient_holes:
        memset(j.y, 0, plan.x_size * plan.es)
    run_last(&j, plan, read(weight, plan.es, plan.weight_size), False)


cdef void last_weights_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: the weight gradient over a share of the rows of outputs of all images."""
    cdef LastJob *j = <LastJob *>job_
    cdef const fc_sweep *s = j.sweep
    cdef kernels_t k = j.k
    cdef size_t es = j.es
    cdef ptrdiff_t rows = s.out[0] * s.out[1], total = s.n * rows, c = j.channels, step = s.step[2] * c
    cdef ptrdiff_t i, n, o, t, missing
    cdef char *sums = j.y + task * j.taps * c * es
    cdef const char *x
    cdef const char *g
    cdef LastRow r
    memset(sums, 0, j.taps * c * es)
    for i in range(total * task // j.shares, total * (task + 1) // j.shares):
        n = i // rows
        r = row_of(j, s, i % rows, scratch)
        x, g = j.x + n * s.in_image * es, j.grad_output + i * s.out[2] * c * es
        k.depthwise_pixels_dot(r.missing, r.tap + r.taps, c, s.out[2], j.zeros, 0, g, sums)
        if r.last > r.first:
            k.depthwise_pixels_dot(r.taps, r.tap, c, r.last - r.first, x + r.first * step * es, step,
                                   g + r.first * c * es, sums)
        for o in range(s.out[2]):
            if r.first <= o < r.last:
                continue
            k.depthwise_pixels_dot(taps_of(s, &r, o, True), r.some, c, 1, x + o * step * es, 0, g + o * c * es, sums)
            missing = taps_of(s, &r, o, False)
            for t in range(missing):
                r.some[t].x = 0
            k.depthwise_pixels_dot(missing, r.some, c, 1, j.zeros, 0, g + o * c * es, sums)


def conv_last_weight_gradient(ConvPlan plan not None, ndarray grad_output not None, ndarray x not None,
                              ndarray grad_weight not None):
    """`conv_weight_gradient` of arrays (n, ..., c), a filter a channel."""
    cdef LastJob j
    cdef int threads = threads_for(DEPTHWISE_WORK * plan.flops)
    cdef ptrdiff_t weights = plan.weight_size, rows = plan.n * plan.out[0] * plan.out[1]
    j.k, j.es, j.channels, j.taps, j.sweep = plan.k, plan.es, plan.groups, plan.taps, &plan.output
    j.shares = partial_shares(plan, min(rows, <ptrdiff_t>LAST_SHARES))
    j.x, j.grad_output = read(x, j.es, plan.x_size), read(grad_output, j.es, plan.out_size)
    cdef char *out = written(grad_weight, j.es, weights)
    cdef size_t partial = aligned(j.shares * weights * j.es), zeros = aligned(j.channels * j.es)
    cdef size_t scratch = taps_size(plan.taps)
    cdef Arena arena = lease(partial + zeros + threads * scratch)
    j.y = <char *>arena.memory
    j.zeros = j.y + partial
    with nogil:
        memset(j.zeros, 0, zeros)
        run_flushed(last_weights_task, &j, j.shares, threads, j.zeros + zeros, scratch)
        pairwise(j.k, j.es, j.y, weights, j.shares, weights)
        j.k.transpose(j.y, j.channels, j.taps, j.channels, out, j.taps)
    release(arena)
