"""A separable block in one pass: 1x1, depthwise, 1x1, for inference, of images whose channels come last.

    E = act(X W1^T + b1),    D = act(depthwise(E) + b2),    Y = act(D W3^T + b3 + residual)

E and D have several times the channels of X and Y.  A task owns some rows of Y of an image and a share of the channels
of E, and keeps what it needs of E and D in its scratch, in the second-level cache:

    for each block of the share's channels:
        the rows of E that the task's rows of D meet                    (or they are those of X itself)
        for a few rows of D at a time:
            D;  Y += D W3^T

Rows of E that two tasks meet are computed by both.  Where there are several shares, each has a Y of its own, and these
are added pairwise.  This is the block of MobileNet and its kin.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
"""

cdef enum:
    BLOCK_ROWS = 512 << 10  # bytes of rows of E a task, at most
    MOST_CHANNELS = 192  # of E at a time
    BLOCK_TASKS = 4  # at least


cdef struct BlockJob:
    WindowProduct expand, project
    LastJob depthwise
    bint expands
    const char *x
    const char *weight  # of the depthwise filters, as they lie
    const char *residual
    char *sums  # Y of the second share and of those behind it
    ptrdiff_t rows, strips, together  # rows of a task, tasks along h, rows of D at a time
    ptrdiff_t shares, channels  # of E; at a time
    ptrdiff_t outputs  # elements of Y
    size_t at_size, weight_size, e_size, d_size


cdef void multiply_beside(const WindowProduct *j, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t col0, ptrdiff_t col1,
                          const char *x, ptrdiff_t *at, ptrdiff_t pixels, char *y, ptrdiff_t ldc, bint first,
                          bint biased, bint finished, const char *residual) noexcept nogil:
    """Y[pixels][col0 ..] (+)= X[pixels][k0 ..] W^T of pixels that lie side by side.

    The first of several calls for a Y starts it, with the bias where `biased`; `finished`, the last, finishes it.
    """
    cdef const ProductJob *w = &j.product
    cdef kernels_t k = w.k
    cdef size_t es = w.es
    cdef ptrdiff_t p, i, col, count, slice_, here, there, end, zero = 0, lda = k1 - k0
    cdef const char *bias
    cdef const char *b
    cdef fc_finish finish
    finish.activation = finished_activation(w.activation) if finished else 0
    for i in range(min(pixels, <ptrdiff_t>TASK_PIXELS)):
        at[i] = i * lda
    for p from 0 <= p < pixels by TASK_PIXELS:
        count = min(<ptrdiff_t>TASK_PIXELS, pixels - p)
        for col from col0 <= col < col1 by k.nr:
            finish.residual = NULL if residual == NULL else residual + (p * ldc + col - col0) * es
            bias = NULL if w.bias == NULL or not biased else w.bias + col * es
            here = k0
            for slice_ in range(w.slices):
                there, end = slice_start(w.depth, slice_, w.slices), slice_start(w.depth, slice_ + 1, w.slices)
                if here >= end or here >= k1:
                    continue
                end = min(end, k1)
                b = packed_columns(w, slice_, col) + (here - there) * k.nr * es
                k.gemm_rows(1, &zero, end - here, x + (p * lda + here - k0) * es, at, 1, b,
                            y + (p * ldc + col - col0) * es, ldc, count, <int>min(<ptrdiff_t>k.nr, col1 - col),
                            here > k0 or not first,
                            bias if here == k0 else NULL, &finish if end == k1 else NULL)
                here = end
        if finished and w.activation != finish.activation:
            k.epilogue(y + p * ldc * es, ldc, <int>count, <int>(col1 - col0), NULL, NULL, w.activation, w.slope)


cdef void block_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: some rows of one image, and a share of the channels between."""
    cdef BlockJob *j = <BlockJob *>job_
    cdef LastJob d = j.depthwise
    cdef const fc_sweep *s = d.sweep
    cdef size_t es = d.es
    cdef ptrdiff_t all_channels = j.project.product.depth, nr = d.k.nr, panels = ceil_div(all_channels, nr)
    cdef ptrdiff_t share = task % j.shares, n = task // j.shares // j.strips
    cdef ptrdiff_t row0 = task // j.shares % j.strips * j.rows
    cdef ptrdiff_t row1 = min(row0 + j.rows, s.out[1]), row, count, width = s.out[2], i, c0, c1, to
    cdef ptrdiff_t c_first = panels * share // j.shares * nr
    cdef ptrdiff_t c_last = min(all_channels, panels * (share + 1) // j.shares * nr)
    cdef ptrdiff_t first = max(<ptrdiff_t>0, row0 * s.step[1] + s.taps[1]), out = j.project.product.n
    cdef ptrdiff_t last = min(s.in_[1], (row1 - 1) * s.step[1] + s.taps[3 * (s.ntaps - 1) + 1] + 1)
    cdef ptrdiff_t *at = <ptrdiff_t *>scratch
    cdef char *weights = scratch + j.at_size
    cdef char *e = weights + j.weight_size
    cdef char *rows = e + j.e_size
    cdef char *taps = rows + j.d_size
    cdef const char *x = j.x
    cdef char *y = j.project.y if share == 0 else j.sums + (share - 1) * j.outputs * es
    cdef bint ends
    d.weight = weights
    c0 = c_first
    while c0 < c_last:
        c1 = min(c_last, c0 + j.channels)
        d.channels = c1 - c0
        d.bias = NULL if j.depthwise.bias == NULL else j.depthwise.bias + c0 * es
        d.k.transpose(j.weight + c0 * d.taps * es, d.taps, d.channels, d.taps, weights, d.channels)
        if j.expands:
            x = j.x + (n * s.in_[1] + first) * s.in_[2] * j.expand.product.depth * es
            if last > first:
                multiply_beside(&j.expand, 0, j.expand.product.depth, c0, c1, x, at, (last - first) * s.in_[2], e,
                                d.channels, True, True, True, NULL)
            d.x = e - first * s.in_[2] * d.channels * es
        else:
            d.x = j.x + n * s.in_[1] * s.in_[2] * d.channels * es
        ends = c1 == c_last and j.shares == 1
        for row from row0 <= row < row1 by j.together:
            count = min(j.together, row1 - row)
            d.y = rows - row * width * d.channels * es
            for i in range(row, row + count):
                last_row(&d, s, 0, i, taps)
            to = (n * s.out[1] + row) * width * out * es
            multiply_beside(&j.project, c0, c1, 0, out, rows, at, count * width, y + to, out, c0 == c_first, c0 == 0,
                            ends, NULL if j.residual == NULL or not ends else j.residual + to)
        c0 = c1


cdef enum:
    SUMMED_OUTPUTS = 1 << 12  # elements a task


cdef void block_sums_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: some elements of Y, of all shares."""
    cdef BlockJob *j = <BlockJob *>job_
    cdef const ProductJob *w = &j.project.product
    cdef size_t es = w.es
    cdef ptrdiff_t at = task * SUMMED_OUTPUTS, count = min(<ptrdiff_t>SUMMED_OUTPUTS, j.outputs - at), apart = 1, i
    cdef char *y = j.project.y + at * es
    cdef char *sums = j.sums + at * es
    while apart < j.shares:
        for i from 0 <= i < j.shares - apart by 2 * apart:
            w.k.add(count, sums + (i + apart - 1) * j.outputs * es, y if i == 0 else sums + (i - 1) * j.outputs * es)
        apart *= 2
    if j.residual != NULL or w.activation:
        w.k.epilogue(y, count, 1, <int>count, NULL, NULL if j.residual == NULL else j.residual + at * es, w.activation,
                     w.slope)


cdef void begin_pointwise(WindowProduct *j, ConvPlan plan, const char *bias, Panels panels, int activation,
                          double slope) noexcept:
    """A 1x1 convolution of packed weights."""
    j.product = im2col_product(plan, False, NULL)
    j.sweep = &plan.output
    begin_window_product(j, plan, True, True)
    j.product.bias, j.product.packed, j.product.slice0 = bias, panels.memory, 0
    j.product.activation, j.product.slope = activation, slope


def block_pays(ConvPlan depthwise not None, bint expands):
    """Whether there are tasks for several threads, which do not compute most of E twice."""
    cdef BlockJob j
    plan_block(&j, depthwise, expands)
    if j.shares * j.strips * depthwise.n < BLOCK_TASKS:
        return False
    return not expands or j.strips == 1 or 5 * block_extent(depthwise, j.rows) <= 8 * j.rows * depthwise.stride[1]


cdef ptrdiff_t block_extent(ConvPlan depthwise, ptrdiff_t rows) noexcept:
    """Rows of E that so many rows of D meet, at most."""
    return min(depthwise.in_[1],
               (rows - 1) * depthwise.stride[1] + (depthwise.kernel[1] - 1) * depthwise.dilation[1] + 1)


cdef void plan_block(BlockJob *j, ConvPlan depthwise, bint expands) noexcept:
    """Rows and channels of a task: fewer channels rather than rows of E that are computed again and again."""
    cdef ptrdiff_t nr = depthwise.k.nr, panels = ceil_div(depthwise.groups, nr), es = depthwise.es, row
    cdef ptrdiff_t extent = block_extent(depthwise, 1), step = depthwise.stride[1]
    j.channels = split(depthwise.groups, MOST_CHANNELS, nr) if expands else depthwise.groups
    while True:
        row = depthwise.in_[2] * j.channels * es
        j.rows = split(depthwise.out[1], max(<ptrdiff_t>1, (BLOCK_ROWS // row - extent) // step + 1), 1)
        if not expands or j.channels <= nr or 4 * block_extent(depthwise, j.rows) <= 5 * j.rows * step:
            break
        j.channels = ceil_div(j.channels, 2 * nr) * nr
    j.strips, j.shares = ceil_div(depthwise.out[1], j.rows), 1
    while expands and depthwise.n * j.strips * j.shares < BLOCK_TASKS and 2 * j.shares <= panels:
        j.shares *= 2
    if j.shares > 1:
        j.channels = min(j.channels, ceil_div(panels, j.shares) * nr)
    j.together = min(j.rows, max(<ptrdiff_t>1, TASK_PIXELS // depthwise.out[2]))


def conv_block_output(ConvPlan expand, ConvPlan depthwise not None, ConvPlan project not None, ndarray x not None,
                      Panels expand_panels, ndarray weight not None, Panels project_panels not None, list biases,
                      list activations, ndarray residual, ndarray out not None):
    """A block's output (n, h, w, oc) of x (n, h, w, ic); `expand` and its panels may be None, each bias too.

    Returns whether it serves: depthwise weights have to be finite.
    """
    cdef BlockJob j
    cdef LastJob *d = &j.depthwise
    cdef fc_sweep *s = &depthwise.output
    cdef size_t es = depthwise.es, sums, scratch
    cdef int threads = threads_for(project.flops)
    cdef bint served
    memset(&j, 0, sizeof(j))
    j.expands = expand is not None
    plan_block(&j, depthwise, j.expands)
    if j.expands:
        begin_pointwise(&j.expand, expand, read(biases[0], es, expand.oc), expand_panels, activations[0][0],
                        activations[0][1])
    begin_pointwise(&j.project, project, read(biases[2], es, project.oc), project_panels, activations[2][0],
                    activations[2][1])
    j.outputs = project.out_size
    j.project.y, j.residual = written(out, es, j.outputs), read(residual, es, j.outputs)
    j.x = read(x, es, expand.x_size if j.expands else depthwise.x_size)
    j.weight = read(weight, es, depthwise.weight_size)
    d.k, d.es, d.taps, d.sweep, d.sweeps = depthwise.k, es, depthwise.taps, s, 1
    d.bias, d.residual = read(biases[1], es, depthwise.groups), NULL
    d.activation, d.slope = activations[1]
    j.at_size, j.weight_size = aligned(TASK_PIXELS * sizeof(ptrdiff_t)), aligned(d.taps * j.channels * es)
    j.e_size = aligned(block_extent(depthwise, j.rows) * s.in_[2] * j.channels * es) if j.expands else 0
    j.d_size = aligned(j.together * s.out[2] * j.channels * es)
    sums = aligned((j.shares - 1) * j.outputs * es)
    scratch = j.at_size + j.weight_size + j.e_size + j.d_size + taps_size(d.taps)
    cdef Arena arena = lease(sums + threads * scratch)
    j.sums = <char *>arena.memory
    with nogil:
        served = are_finite(d.k, es, depthwise.weight_size, j.weight)
        if served:
            run_flushed(block_task, &j, depthwise.n * j.strips * j.shares, threads, j.sums + sums, scratch)
            if j.shares > 1:
                run_flushed(block_sums_task, &j, ceil_div(j.outputs, SUMMED_OUTPUTS), threads, NULL, 0)
    release(arena)
    return served
