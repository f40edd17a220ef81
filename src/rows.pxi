"""Unfolding, borders, adaptive pools of uneven windows: plane after plane, by the kernels of ``micro/rows.h``."""

MODES = ("reflect", "replicate", "circular")

ctypedef void (*rows_kernel)(const fc_rows *, const void *, void *) noexcept nogil

cdef struct RowsJob:
    kernels_t k
    size_t es
    fc_rows rows
    rows_kernel kernel
    const char *x
    char *y
    int64_t *index
    ptrdiff_t inputs, outputs, planes, c, task_planes
    ptrdiff_t[2] x_step, y_step  # elements between images, between channels
    ptrdiff_t *bad  # indices outside their windows, one count a task


cdef void rows_job(RowsJob *j, ndarray of, ptrdiff_t planes, in_size, out_size):
    """What all have in common: planes in_size of x and out_size of y, side by side."""
    j.es = PyArray_ITEMSIZE(of)
    j.k = fc_tables(fc_get_isa())[j.es == 8]
    fc_set3(j.rows.in_, in_size[0], in_size[1], in_size[2])
    fc_set3(j.rows.out, out_size[0], out_size[1], out_size[2])
    j.inputs = j.rows.in_[0] * j.rows.in_[1] * j.rows.in_[2]
    j.outputs = j.rows.out[0] * j.rows.out[1] * j.rows.out[2]
    j.planes, j.c = planes, planes
    j.x_step[0], j.x_step[1], j.y_step[0], j.y_step[1] = 0, j.inputs, 0, j.outputs
    j.index = NULL


cdef void exchange(RowsJob *j) noexcept:
    """Read planes of y and write planes of x."""
    cdef int i
    for i in range(2):
        j.x_step[i], j.y_step[i] = j.y_step[i], j.x_step[i]


cdef void rows_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: task_planes planes."""
    cdef RowsJob *j = <RowsJob *>job_
    cdef fc_rows rows = j.rows
    cdef ptrdiff_t p
    cdef const char *x
    cdef char *y
    rows.line = scratch
    for p in range(task * j.task_planes, min((task + 1) * j.task_planes, j.planes)):
        x = j.x + (p // j.c * j.x_step[0] + p % j.c * j.x_step[1]) * j.es
        y = j.y + (p // j.c * j.y_step[0] + p % j.c * j.y_step[1]) * j.es
        if j.kernel != NULL:
            j.kernel(&rows, x, y)
        else:
            j.k.uneven_max(&rows, x, y, NULL if j.index == NULL else j.index + p * j.outputs)


cdef int run_rows(RowsJob *j, task_t task, ptrdiff_t work) except -1:
    """Run a task over all planes, of `work` elements each."""
    j.task_planes = max(<ptrdiff_t>1, CHUNK // work)
    cdef size_t line = aligned(j.rows.in_[2] * j.es)
    cdef int threads = threads_for(8.0 * work * j.planes)
    cdef Arena arena = lease(threads * line)
    with nogil:
        run_tasks(task, j, ceil_div(j.planes, j.task_planes), threads, <char *>arena.memory, line)
    release(arena)
    return 0


def unfold(ndarray x not None, ndarray columns not None, ptrdiff_t n, ptrdiff_t c, in_size, out_size, kernel, stride,
           dilation, pad, order, bint back):
    """columns[n, c, k, p] = x[n, c, stride * p + dilation * k - pad]; or back: x adds up the columns, the adjoint."""
    cdef RowsJob j
    rows_job(&j, x, n * c, in_size, out_size)
    fc_set3(j.rows.kernel, kernel[0], kernel[1], kernel[2])
    fc_set3(j.rows.step, stride[0], stride[1], stride[2])
    fc_set3(j.rows.dilation, dilation[0], dilation[1], dilation[2])
    fc_set3(j.rows.pad, pad[0][0], pad[1][0], pad[2][0])
    cdef ptrdiff_t taps = j.rows.kernel[0] * j.rows.kernel[1] * j.rows.kernel[2]
    j.c, j.x_step[0] = c, c * j.inputs
    j.rows.tap = j.outputs if order is None else n * j.outputs
    j.rows.pixel = n if order == "batch_inner" else 1
    j.y_step[0] = c * taps * j.outputs if order is None else j.outputs if order == "batch_outer" else 1
    j.y_step[1] = taps * j.rows.tap
    cdef ptrdiff_t size = n * c * taps * j.outputs
    if back:
        j.kernel, j.x, j.y = j.k.fold, read(columns, j.es, size), written(x, j.es, n * c * j.inputs)
        exchange(&j)
    else:
        j.kernel, j.x, j.y = j.k.unfold, read(x, j.es, n * c * j.inputs), written(columns, j.es, size)
    run_rows(&j, rows_task, taps * j.outputs)


def border(ndarray x not None, ndarray y not None, ptrdiff_t planes, in_size, out_size, pad, mode, bint back):
    """y = x with borders that repeat it, `pad` in front; or back: x adds up what y has of each element, the adjoint."""
    cdef RowsJob j
    rows_job(&j, x, planes, in_size, out_size)
    fc_set3(j.rows.pad, pad[0][0], pad[1][0], pad[2][0])
    j.rows.mode = MODES.index(mode)
    if back:
        j.kernel, j.x, j.y = j.k.fold_border, read(y, j.es, planes * j.outputs), written(x, j.es, planes * j.inputs)
        exchange(&j)
    else:
        j.kernel, j.x, j.y = j.k.border, read(x, j.es, planes * j.inputs), written(y, j.es, planes * j.outputs)
    run_rows(&j, rows_task, j.outputs)


def uneven_pool(ndarray x not None, ndarray y not None, ndarray index, ptrdiff_t planes, in_size, out_size,
                bint maximum):
    """y = the maximum, index (or None) = where, or the mean of each window of an adaptive pool."""
    cdef RowsJob j
    rows_job(&j, x, planes, in_size, out_size)
    j.kernel = NULL if maximum else j.k.uneven_mean
    j.x, j.y = read(x, j.es, planes * j.inputs), written(y, j.es, planes * j.outputs)
    if index is not None:
        j.index = indices(index, planes * j.outputs)
    run_rows(&j, rows_task, max(j.inputs, j.outputs))


cdef void uneven_check_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    cdef RowsJob *j = <RowsJob *>job_
    cdef ptrdiff_t p
    j.bad[task] = 0
    for p in range(task * j.task_planes, min((task + 1) * j.task_planes, j.planes)):
        j.bad[task] += j.k.uneven_check(&j.rows, j.index + p * j.outputs)


cdef void uneven_scatter_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    cdef RowsJob *j = <RowsJob *>job_
    cdef ptrdiff_t p = task * j.task_planes
    cdef ptrdiff_t planes = min(j.task_planes, j.planes - p)
    memset(j.y + p * j.inputs * j.es, 0, planes * j.inputs * j.es)
    j.k.max_pool_scatter(planes, j.outputs, j.x + p * j.outputs * j.es, j.index + p * j.outputs, j.inputs,
                         j.y + p * j.inputs * j.es)


def uneven_pool_backward(ndarray g not None, ndarray index, ndarray gx not None, ptrdiff_t planes, in_size, out_size):
    """gx = the gradient: of the mean where index is None.  Returns how many indices lie outside their windows; if any,
    gx stays."""
    cdef RowsJob j
    cdef ptrdiff_t i, bad = 0
    cdef Arena arena
    rows_job(&j, gx, planes, in_size, out_size)
    j.x, j.y = read(g, j.es, planes * j.outputs), written(gx, j.es, planes * j.inputs)
    if index is None:
        j.kernel = j.k.uneven_spread
        exchange(&j)
        run_rows(&j, rows_task, max(j.inputs, j.outputs))
        return 0
    j.index = indices(index, planes * j.outputs)
    arena = lease(planes * sizeof(ptrdiff_t))
    j.bad = <ptrdiff_t *>arena.memory
    run_rows(&j, uneven_check_task, max(j.inputs, j.outputs))
    for i in range(ceil_div(planes, j.task_planes)):
        bad += j.bad[i]
    release(arena)
    if not bad:
        run_rows(&j, uneven_scatter_task, max(j.inputs, j.outputs))
    return bad
