"""Max and average pooling over planes (d, h, w), forward and backward.

Forward tasks are stretches of output rows, backward tasks are whole planes: overlapping windows of a plane add into one
another, planes never do, so there are no atomics and the order of every sum is fixed.
"""

cdef enum:
    POOL_OUTPUTS = 4096  # outputs a forward task


cdef class PoolPlan:
    """Geometry of a pool."""

    cdef ptrdiff_t planes, rows
    cdef ptrdiff_t[3] in_, out, kernel, stride, dilation, pad, pad_after
    cdef int count_include_pad
    cdef ptrdiff_t divisor

    def __cinit__(self, ptrdiff_t planes, in_size, out_size, kernel, stride, dilation, pad_before,
                  int count_include_pad=1, ptrdiff_t divisor=0, pad_after=(0, 0, 0)):
        cdef int i
        self.planes = planes
        for i in range(3):
            self.in_[i], self.out[i], self.kernel[i] = in_size[i], out_size[i], kernel[i]
            self.stride[i], self.dilation[i] = stride[i], dilation[i]
            self.pad[i], self.pad_after[i] = pad_before[i], pad_after[i]
        self.rows = self.out[0] * self.out[1]
        self.count_include_pad = count_include_pad
        self.divisor = divisor

    cdef ptrdiff_t x_size(self) noexcept:
        return self.planes * self.in_[0] * self.in_[1] * self.in_[2]

    cdef ptrdiff_t out_size(self) noexcept:
        return self.planes * self.rows * self.out[2]

    cdef double work(self):
        return 1.0 * self.planes * self.rows * self.out[2] * self.kernel[0] * self.kernel[1] * self.kernel[2]


cdef struct PoolJob:
    kernels_t k
    size_t es
    fc_pool_row row  # what all rows share
    ptrdiff_t[3] stride, pad
    ptrdiff_t planes, in_plane, out_h, out_w, rows, task_rows  # rows a plane, rows a task
    bint maximum
    const char *x
    char *y
    int64_t *index
    ptrdiff_t *bad  # indices outside their windows, one count a plane
    size_t line_bytes  # a thread's scratch


cdef void pool_job(PoolPlan plan, PoolJob *j):
    cdef fc_pool_row *row = &j.row
    fc_set3(row.in_, plan.in_[0], plan.in_[1], plan.in_[2])
    fc_set3(row.kernel, plan.kernel[0], plan.kernel[1], plan.kernel[2])
    fc_set3(row.dilation, plan.dilation[0], plan.dilation[1], plan.dilation[2])
    fc_set3(row.pad_after, plan.pad_after[0], plan.pad_after[1], plan.pad_after[2])
    fc_set3(j.stride, plan.stride[0], plan.stride[1], plan.stride[2])
    fc_set3(j.pad, plan.pad[0], plan.pad[1], plan.pad[2])
    row.step, row.out = plan.stride[2], plan.out[2]
    row.count_include_pad, row.divisor = plan.count_include_pad, plan.divisor
    # The line of a row: taps that no output finds inside the image are skipped, and so is their padding.
    cdef ptrdiff_t lanes = j.k.lanes, before = plan.pad[2], dilation = plan.dilation[2]
    row.before = before
    row.skip = max(<ptrdiff_t>0, before - (plan.out[2] - 1) * plan.stride[2]) // dilation * dilation
    row.line_end = min(before + plan.in_[2] + lanes * row.step,
                       (plan.out[2] - 1) * row.step + (plan.kernel[2] - 1) * dilation + 1)
    row.line_end = max(row.line_end, before + plan.in_[2]) - row.skip
    row.line_size = row.line_end + lanes * (2 * row.step if row.step <= 4 else 1)
    j.line_bytes = aligned(2 * row.line_size * j.es)
    j.planes, j.in_plane = plan.planes, plan.in_[0] * plan.in_[1] * plan.in_[2]
    j.out_h, j.out_w, j.rows = plan.out[1], plan.out[2], plan.rows
    j.task_rows = max(<ptrdiff_t>1, POOL_OUTPUTS // max(plan.out[2], <ptrdiff_t>1))
    j.index = NULL


cdef inline void pool_row(const PoolJob *j, ptrdiff_t r, fc_pool_row *row) noexcept nogil:
    """The windows of output row r, counted over (d, h)."""
    row.start[0] = r // j.out_h * j.stride[0] - j.pad[0]
    row.start[1] = r % j.out_h * j.stride[1] - j.pad[1]


cdef void pool_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: task_rows output rows, counted over all planes."""
    cdef PoolJob *j = <PoolJob *>job_
    cdef fc_pool_row row = j.row
    cdef ptrdiff_t r = task * j.task_rows, plane = r // j.rows, at = r % j.rows
    row.line = scratch
    row.x = j.x + plane * j.in_plane * j.es
    pool_row(j, at, &row)
    for r in range(r, min(r + j.task_rows, j.planes * j.rows)):
        if j.maximum:
            j.k.max_pool_row(&row, j.y + r * j.out_w * j.es, NULL if j.index == NULL else j.index + r * j.out_w)
        else:
            j.k.avg_pool_row(&row, j.y + r * j.out_w * j.es)
        at += 1
        row.start[1] += j.stride[1]
        if j.rows != j.out_h and at % j.out_h == 0:
            row.start[0] += j.stride[0]
            row.start[1] = -j.pad[1]
        if at == j.rows:
            at = 0
            row.x = <const char *>row.x + j.in_plane * j.es
            pool_row(j, 0, &row)


cdef int run_pool(PoolPlan plan, bint maximum, ndarray x, ndarray y, ndarray index) except -1:
    cdef PoolJob j
    j.es, j.maximum = PyArray_ITEMSIZE(x), maximum
    j.k = fc_tables(fc_get_isa())[j.es == 8]
    pool_job(plan, &j)
    j.x, j.y = read(x, j.es, plan.x_size()), written(y, j.es, plan.out_size())
    if index is not None:
        j.index = indices(index, plan.out_size())
    cdef int threads = threads_for(2 * plan.work())
    cdef Arena arena = lease(threads * j.line_bytes)
    with nogil:
        run_tasks(pool_task, &j, ceil_div(j.planes * j.rows, j.task_rows), threads, <char *>arena.memory, j.line_bytes)
    release(arena)
    return 0


def max_pool(PoolPlan plan not None, ndarray x not None, ndarray y not None, ndarray index):
    """y = max over windows of x; index (or None) = where, flat in the plane: the first maximum, or the last NaN."""
    run_pool(plan, True, x, y, index)


def avg_pool(PoolPlan plan not None, ndarray x not None, ndarray y not None):
    """y = mean over windows of x."""
    run_pool(plan, False, x, y, None)


cdef void check_indices_task(void *job_, ptrdiff_t plane, char *scratch) noexcept nogil:
    cdef PoolJob *j = <PoolJob *>job_
    cdef fc_pool_row row = j.row
    cdef const int64_t *index = j.index + plane * j.rows * j.out_w
    cdef ptrdiff_t r, bad = 0
    for r in range(j.rows):
        pool_row(j, r, &row)
        bad += j.k.max_pool_check(&row, index + r * j.out_w)
    j.bad[plane] = bad


cdef void pool_backward_task(void *job_, ptrdiff_t plane, char *scratch) noexcept nogil:
    """Task: the gradient of one plane."""
    cdef PoolJob *j = <PoolJob *>job_
    cdef fc_pool_row row = j.row
    cdef ptrdiff_t outputs = j.rows * j.out_w, r
    cdef char *gx = j.y + plane * j.in_plane * j.es
    cdef const char *g = j.x + plane * outputs * j.es
    row.line = scratch
    memset(gx, 0, j.in_plane * j.es)
    if j.maximum:
        j.k.max_pool_scatter(outputs, g, j.index + plane * outputs, gx)
    else:
        for r in range(j.rows):
            pool_row(j, r, &row)
            j.k.avg_pool_spread(&row, g + r * j.out_w * j.es, gx)


cdef ptrdiff_t run_pool_backward(PoolPlan plan, bint maximum, ndarray g, ndarray index, ndarray gx) except -1:
    cdef PoolJob j
    cdef ptrdiff_t bad = 0, i
    cdef int threads = threads_for(2 * plan.work())
    cdef Arena arena
    j.es, j.maximum = PyArray_ITEMSIZE(gx), maximum
    j.k = fc_tables(fc_get_isa())[j.es == 8]
    pool_job(plan, &j)
    j.x, j.y = read(g, j.es, plan.out_size()), written(gx, j.es, plan.x_size())
    if maximum:
        j.index = indices(index, plan.out_size())
        arena = lease(j.planes * sizeof(ptrdiff_t))
        j.bad = <ptrdiff_t *>arena.memory
        with nogil:
            run_tasks(check_indices_task, &j, j.planes, threads, NULL, 0)
        for i in range(j.planes):
            bad += j.bad[i]
        release(arena)
        if bad:
            return bad
    arena = lease(threads * j.line_bytes)
    with nogil:
        run_tasks(pool_backward_task, &j, j.planes, threads, <char *>arena.memory, j.line_bytes)
    release(arena)
    return 0


def max_pool_backward(PoolPlan plan not None, ndarray g not None, ndarray index not None, ndarray gx not None):
    """gx = the gradient of max pooling.  Returns how many indices lie outside their windows; if any, gx stays."""
    return run_pool_backward(plan, True, g, index, gx)


def avg_pool_backward(PoolPlan plan not None, ndarray g not None, ndarray gx not None):
    """gx = the gradient of average pooling."""
    run_pool_backward(plan, False, g, None, gx)
