"""Element by element: ReLU and its gradient; sums over channels."""

cdef enum:
    CHUNK = 1 << 15  # elements a task
    STREAM_BYTES = 16 << 20  # outputs from here on go past the caches

cdef struct ElementwiseJob:
    kernels_t k
    const char *x
    const char *g
    char *y
    ptrdiff_t n
    size_t es
    int stream


cdef void relu_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    cdef ElementwiseJob *j = <ElementwiseJob *>job_
    cdef ptrdiff_t start = task * CHUNK, n = min(<ptrdiff_t>CHUNK, j.n - start)
    cdef size_t at = start * j.es
    if j.g == NULL:
        j.k.relu(n, j.x + at, j.y + at, j.stream)
    else:
        j.k.relu_backward(n, j.g + at, j.x + at, j.y + at, j.stream)


cdef void run_relu(const real[::1] g, const real[::1] x, real[::1] y):
    cdef ElementwiseJob job
    job.k = fc_tables(fc_get_isa())[real is double]
    job.n = x.shape[0]
    job.es = sizeof(real)
    if job.n == 0:
        return
    job.x = <const char *>&x[0]
    job.g = NULL if g is None else <const char *>&g[0]
    job.y = <char *>&y[0]
    job.stream = job.n * job.es >= STREAM_BYTES and job.y != job.x and job.y != job.g
    cdef int threads = threads_for(8.0 * job.n)
    with nogil:
        run_tasks(relu_task, &job, ceil_div(job.n, CHUNK), threads, NULL, 0)


def relu(x, y):
    """y = x <= 0 ? 0 : x over contiguous vectors; y may be x."""
    if x.dtype.char == "f":
        run_relu[float](None, x, y)
    else:
        run_relu[double](None, x, y)


def relu_backward(g, x, y):
    """y = x <= 0 ? 0 : g over contiguous vectors; y may be g or x."""
    if x.dtype.char == "f":
        run_relu[float](g, x, y)
    else:
        run_relu[double](g, x, y)


cdef struct ChannelSumJob:
    kernels_t k
    const char *x
    char *y
    ptrdiff_t n, c, plane
    size_t es


cdef void channel_sum_task(void *job_, ptrdiff_t c, char *scratch) noexcept nogil:
    """y[c] = sum over n and the plane: blocks of bounded length, added in order in float64."""
    cdef ChannelSumJob *j = <ChannelSumJob *>job_
    cdef ptrdiff_t n, i
    cdef double total = 0
    cdef float single
    cdef double value
    for n in range(j.n):
        for i from 0 <= i < j.plane by CHUNK:
            if j.es == 4:
                j.k.sum(min(<ptrdiff_t>CHUNK, j.plane - i), j.x + ((n * j.c + c) * j.plane + i) * 4, &single)
                value = single
            else:
                j.k.sum(min(<ptrdiff_t>CHUNK, j.plane - i), j.x + ((n * j.c + c) * j.plane + i) * 8, &value)
            total += value
    if j.es == 4:
        (<float *>j.y)[c] = <float>total
    else:
        (<double *>j.y)[c] = total


cdef void run_channel_sums(const real[:, :, :, ::1] x, real[::1] y):
    cdef ChannelSumJob job
    job.k = fc_tables(fc_get_isa())[real is double]
    job.n = x.shape[0]
    job.c = x.shape[1]
    job.plane = x.shape[2] * x.shape[3]
    job.es = sizeof(real)
    job.x = <const char *>&x[0, 0, 0, 0]
    job.y = <char *>&y[0]
    cdef int threads = threads_for(1.0 * x.size * job.es)
    with nogil:
        run_tasks(channel_sum_task, &job, job.c, threads, NULL, 0)


def channel_sums(x, y):
    """y[c] = sum of x[:, c] for x of shape (n, c, h, w)."""
    if x.dtype.char == "f":
        run_channel_sums[float](x, y)
    else:
        run_channel_sums[double](x, y)
