"""A separable block in one pass: 1x1, depthwise, 1x1, for inference, of images whose channels come last.

    E = act(X W1^T + b1),    D = act(depthwise(E) + b2),    Y = act(D W3^T + b3 + residual)

E and D have several times the channels of X and Y.  A task owns some rows of Y of an image and keeps the rows of E and D
that these need in its scratch, in the second-level cache:

    the rows of E that the task's rows of D meet                    (or they are those of X itself)
    for a few rows of D at a time:
        D;  Y += D W3^T

Rows of E that two tasks meet are computed by both.  This is the block of MobileNet and its kin.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
"""

cdef enum:
    BLOCK_ROWS = 512 << 10  # bytes of rows of E a task, at most
    LEAST_BLOCK = 1 << 20  # bytes of E,
    BLOCK_TASKS = 4  # and tasks, that are worth it


cdef struct BlockJob:
    WindowProduct expand, project
    LastJob depthwise
    bint expands
    const char *x
    const char *residual
    ptrdiff_t *expand_at  # of pixels that lie side by side
    ptrdiff_t *project_at
    ptrdiff_t rows, blocks, together  # rows of a task, tasks an image, rows of D at a time
    size_t e_size, d_size


cdef void multiply_beside(const WindowProduct *j, const char *x, const ptrdiff_t *at, ptrdiff_t pixels,
                          const char *residual, char *y) noexcept nogil:
    """Y of pixels that lie side by side."""
    cdef const ProductJob *w = &j.product
    cdef size_t es = w.es
    cdef ptrdiff_t p, col0, count, slice_
    cdef fc_finish finish
    finish.activation = finished_activation(w.activation)
    for p from 0 <= p < pixels by TASK_PIXELS:
        count = min(<ptrdiff_t>TASK_PIXELS, pixels - p)
        for col0 from 0 <= col0 < w.n by w.k.nr:
            finish.residual = NULL if residual == NULL else residual + (p * w.n + col0) * es
            for slice_ in range(w.slices):
                multiply_windows(j, x + p * w.depth * es, at, count, col0, slice_, packed_columns(w, slice_, col0),
                                 y + (p * w.n + col0) * es, w.n, &finish)
        if w.activation != finish.activation:
            w.k.epilogue(y + p * w.n * es, count * w.n, 1, <int>(count * w.n), NULL, NULL, w.activation, w.slope)


cdef void block_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: some rows of one image."""
    cdef BlockJob *j = <BlockJob *>job_
    cdef LastJob d = j.depthwise
    cdef const fc_sweep *s = d.sweep
    cdef size_t es = d.es
    cdef ptrdiff_t n = task // j.blocks, row0 = task % j.blocks * j.rows, row1 = min(row0 + j.rows, s.out[1]), row, count
    cdef ptrdiff_t first = max(<ptrdiff_t>0, row0 * s.step[1] + s.taps[1]), width = s.out[2], i
    cdef ptrdiff_t last = min(s.in_[1], (row1 - 1) * s.step[1] + s.taps[3 * (s.ntaps - 1) + 1] + 1)
    cdef ptrdiff_t c = j.expand.product.depth, out = j.project.product.n, to
    cdef char *e = scratch
    cdef char *rows = scratch + j.e_size
    cdef char *taps = rows + j.d_size
    d.x = j.x + n * s.in_[1] * s.in_[2] * c * es
    if j.expands:
        if last > first:
            multiply_beside(&j.expand, d.x + first * s.in_[2] * c * es, j.expand_at, (last - first) * s.in_[2], NULL, e)
        d.x = e - first * s.in_[2] * d.channels * es
    for row from row0 <= row < row1 by j.together:
        count = min(j.together, row1 - row)
        d.y = rows - row * width * d.channels * es
        for i in range(row, row + count):
            last_row(&d, s, 0, i, taps)
        to = (n * s.out[1] + row) * width * out * es
        multiply_beside(&j.project, rows, j.project_at, count * width, NULL if j.residual == NULL else j.residual + to,
                        j.project.y + to)


cdef void begin_pointwise(WindowProduct *j, ConvPlan plan, const char *bias, Panels panels, int activation,
                          double slope) noexcept:
    """A 1x1 convolution of packed weights."""
    j.product = im2col_product(plan, False, NULL)
    j.sweep = &plan.output
    begin_window_product(j, plan, True, True)
    j.product.bias, j.product.packed, j.product.slice0 = bias, panels.memory, 0
    j.product.activation, j.product.slope = activation, slope


def block_pays(ConvPlan depthwise not None):
    """Whether E is large enough to leave the second-level cache, and there are tasks for several threads."""
    cdef ptrdiff_t rows = block_rows(depthwise), blocks = depthwise.n * ceil_div(depthwise.out[1], rows)
    return (blocks >= BLOCK_TASKS and depthwise.x_size * <ptrdiff_t>depthwise.es >= LEAST_BLOCK
            and depthwise.in_[0] == 1 and depthwise.kernel[0] == 1)


cdef ptrdiff_t block_rows(ConvPlan depthwise) noexcept:
    """Rows of a task."""
    cdef ptrdiff_t row = depthwise.in_[2] * depthwise.groups * <ptrdiff_t>depthwise.es
    cdef ptrdiff_t extent = (depthwise.kernel[1] - 1) * depthwise.dilation[1] + 1
    return split(depthwise.out[1], max(<ptrdiff_t>1, (BLOCK_ROWS // row - extent) // depthwise.stride[1] + 1), 1)


def conv_block_output(ConvPlan expand, ConvPlan depthwise not None, ConvPlan project not None, ndarray x not None,
                      ndarray weight not None, biases, Panels expand_panels, Panels project_panels not None, activations,
                      ndarray residual, ndarray out not None):
    """A block's output (n, h, w, oc) of x (n, h, w, ic); `expand` and its panels may be None, each bias too.

    Returns whether it serves: depthwise weights have to be finite.
    """
    cdef BlockJob j
    cdef LastJob *d = &j.depthwise
    cdef fc_sweep *s = &depthwise.output
    cdef ptrdiff_t row = depthwise.in_[2] * depthwise.groups, extent, i, zero = 0
    cdef size_t es = depthwise.es, weights, tables = aligned(2 * TASK_PIXELS * sizeof(ptrdiff_t)), scratch
    cdef int threads = threads_for(project.flops)
    cdef double total = 0
    cdef bint served
    j.expands = expand is not None
    if j.expands:
        begin_pointwise(&j.expand, expand, read(biases[0], es, expand.oc), expand_panels, activations[0][0],
                        activations[0][1])
        j.expand.run = &zero
    j.expand.product.depth = expand.ic if j.expands else depthwise.groups
    begin_pointwise(&j.project, project, read(biases[2], es, project.oc), project_panels, activations[2][0],
                    activations[2][1])
    j.project.run = &zero
    j.project.y, j.residual = written(out, es, project.out_size), read(residual, es, project.out_size)
    j.x = read(x, es, expand.x_size if j.expands else depthwise.x_size)
    d.k, d.es, d.channels, d.taps, d.sweep, d.sweeps = depthwise.k, es, depthwise.groups, depthwise.taps, s, 1
    d.bias, d.residual = read(biases[1], es, depthwise.groups), NULL
    d.activation, d.slope = activations[1]
    cdef const char *weight_ = read(weight, es, depthwise.weight_size)

    extent = s.taps[3 * (s.ntaps - 1) + 1] - s.taps[1] + 1
    j.rows = block_rows(depthwise)
    j.blocks = ceil_div(s.out[1], j.rows)
    j.together = min(j.rows, max(<ptrdiff_t>1, TASK_PIXELS // s.out[2]))
    j.e_size = aligned(((j.rows - 1) * s.step[1] + extent) * row * es) if j.expands else 0
    j.d_size = aligned(j.together * s.out[2] * d.channels * es)
    weights, scratch = aligned(depthwise.weight_size * es), j.e_size + j.d_size + taps_size(d.taps)
    cdef Arena arena = lease(tables + weights + threads * scratch)
    cdef char *memory = <char *>arena.memory
    j.expand_at = <ptrdiff_t *>memory
    j.project_at = j.expand_at + TASK_PIXELS
    d.weight = memory + tables
    with nogil:
        for i in range(TASK_PIXELS):
            j.expand_at[i], j.project_at[i] = i * j.expand.product.depth, i * d.channels
        d.k.sum(depthwise.weight_size, weight_, &total)
        total = total if es == 8 else (<float *>&total)[0]
        served = total - total == 0
        if served:
            d.k.transpose(weight_, d.taps, d.channels, d.taps, <char *>d.weight, d.channels)
            run_flushed(block_task, &j, depthwise.n * j.blocks, threads, memory + tables + weights, scratch)
    release(arena)
    return served
