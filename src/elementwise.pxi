"""Element by element: activations and their gradients; bias, residual and activation; softmax of rows; channel sums."""

cdef enum:
    CHUNK = 1 << 15  # elements a task
    STREAM_BYTES = 16 << 20  # outputs from here on go past the caches
    EPILOGUE_COLS = 256  # elements that share a line of a channel's bias

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


cdef int run_relu(ndarray g, ndarray x, ndarray y) except -1:
    cdef ElementwiseJob job
    job.es, job.n = PyArray_ITEMSIZE(x), PyArray_SIZE(x)
    job.k = fc_tables(fc_get_isa())[job.es == 8]
    job.g, job.x, job.y = read(g, job.es, job.n), read(x, job.es, job.n), written(y, job.es, job.n)
    job.stream = job.n * job.es >= STREAM_BYTES and job.y != job.x and job.y != job.g
    cdef int threads = threads_for(8.0 * job.n)
    with nogil:
        run_tasks(relu_task, &job, ceil_div(job.n, CHUNK), threads, NULL, 0)
    return 0


def relu(ndarray x not None, ndarray y not None):
    """y = x <= 0 ? 0 : x; y may be x."""
    run_relu(None, x, y)


def relu_backward(ndarray g not None, ndarray x not None, ndarray y not None):
    """y = x <= 0 ? 0 : g; y may be g or x."""
    run_relu(g, x, y)


cdef struct EpilogueJob:
    kernels_t k
    const char *bias
    const char *residual
    char *y
    ptrdiff_t c, plane, chunks  # channels, elements a plane, tasks a plane
    size_t es
    int activation
    double slope


cdef void epilogue_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: up to CHUNK elements of a plane, as a matrix of EPILOGUE_COLS columns and what is left over."""
    cdef EpilogueJob *j = <EpilogueJob *>job_
    cdef ptrdiff_t plane = task // j.chunks, start = task % j.chunks * CHUNK, i
    cdef ptrdiff_t n = min(<ptrdiff_t>CHUNK, j.plane - start), cols = min(<ptrdiff_t>EPILOGUE_COLS, n)
    cdef size_t at = (plane * j.plane + start) * j.es, rest = n // cols * cols
    cdef const char *residual = NULL if j.residual == NULL else j.residual + at
    cdef char *bias = NULL
    if j.bias != NULL:
        bias = scratch
        for i in range(cols):
            memcpy(bias + i * j.es, j.bias + plane % j.c * j.es, j.es)
    j.k.epilogue(j.y + at, cols, <int>(n // cols), <int>cols, bias, residual, j.activation, j.slope)
    if n > <ptrdiff_t>rest:
        j.k.epilogue(j.y + at + rest * j.es, cols, 1, <int>(n - rest), bias,
                     NULL if residual == NULL else residual + rest * j.es, j.activation, j.slope)


def epilogue(ndarray y not None, ndarray bias, ndarray residual, ptrdiff_t n, ptrdiff_t c, int activation=0,
             double slope=0):
    """y = activation(y + bias + residual) for y of shape (n, c, ...); bias, of c elements, and residual may be None."""
    cdef EpilogueJob job
    cdef ptrdiff_t size = PyArray_SIZE(y)
    if size == 0:
        return
    job.es, job.c, job.plane = PyArray_ITEMSIZE(y), c, size // (n * c)
    job.k, job.chunks = fc_tables(fc_get_isa())[job.es == 8], ceil_div(job.plane, CHUNK)
    job.bias, job.residual, job.y = read(bias, job.es, c), read(residual, job.es, size), written(y, job.es, size)
    job.activation, job.slope = activation, slope
    cdef int threads = threads_for(8.0 * size)
    cdef size_t scratch = aligned(EPILOGUE_COLS * job.es)
    cdef Arena arena = lease(threads * scratch)
    with nogil:
        run_flushed(epilogue_task, &job, n * c * job.chunks, threads, <char *>arena.memory, scratch)
    release(arena)


cdef struct ActivationJob:
    kernels_t k
    const char *x
    const char *g
    char *y
    ptrdiff_t n
    size_t es
    int activation
    double slope


cdef void activation_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    cdef ActivationJob *j = <ActivationJob *>job_
    cdef ptrdiff_t start = task * CHUNK, n = min(<ptrdiff_t>CHUNK, j.n - start)
    cdef size_t at = start * j.es
    j.k.activation(n, NULL if j.g == NULL else j.g + at, j.x + at, j.y + at, j.activation, j.slope)


def activation(ndarray g, ndarray x not None, ndarray y not None, int activation, double slope=0):
    """y = f(x), or g * f'(x) where g is not None; of sigmoid and tanh, x is then the output.  y may be g or x."""
    cdef ActivationJob job
    job.es, job.n, job.activation, job.slope = PyArray_ITEMSIZE(x), PyArray_SIZE(x), activation, slope
    job.k = fc_tables(fc_get_isa())[job.es == 8]
    job.g, job.x, job.y = read(g, job.es, job.n), read(x, job.es, job.n), written(y, job.es, job.n)
    cdef int threads = threads_for(16.0 * job.n)
    with nogil:
        run_tasks(activation_task, &job, ceil_div(job.n, CHUNK), threads, NULL, 0)


cdef struct SoftmaxJob:
    kernels_t k
    const char *x
    const char *g
    char *y
    ptrdiff_t rows, n, rows_a_task
    size_t es
    bint logarithm


cdef void softmax_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    cdef SoftmaxJob *j = <SoftmaxJob *>job_
    cdef ptrdiff_t row
    cdef size_t at
    for row in range(task * j.rows_a_task, min((task + 1) * j.rows_a_task, j.rows)):
        at = row * j.n * j.es
        if j.g == NULL:
            j.k.softmax(j.n, j.x + at, j.y + at, j.logarithm)
        else:
            j.k.softmax_backward(j.n, j.g + at, j.x + at, j.y + at, j.logarithm)


def softmax(ndarray g, ndarray x not None, ndarray y not None, ptrdiff_t n, bint logarithm):
    """Softmax of rows of n elements, or its logarithm; where g is not None, the gradient, and x is the output."""
    cdef SoftmaxJob job
    cdef ptrdiff_t size = PyArray_SIZE(x)
    job.es, job.n, job.rows, job.logarithm = PyArray_ITEMSIZE(x), n, size // n, logarithm
    job.rows_a_task = ceil_div(CHUNK, n)
    job.k = fc_tables(fc_get_isa())[job.es == 8]
    job.g, job.x, job.y = read(g, job.es, size), read(x, job.es, size), written(y, job.es, size)
    cdef int threads = threads_for(16.0 * size)
    with nogil:
        run_tasks(softmax_task, &job, ceil_div(job.rows, job.rows_a_task), threads, NULL, 0)


cdef struct ChannelSumJob:
    kernels_t k
    const char *x
    char *y
    ptrdiff_t n, c, plane, rows  # rows a task, where planes are pixels
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


cdef enum:
    SUMMED_ROWS = 64  # a task, or
    SUMMED_BLOCKS = 4096  # tasks at most


cdef void row_sums_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: the sum of some rows [c]."""
    cdef ChannelSumJob *j = <ChannelSumJob *>job_
    cdef char *sums = j.y + task * j.c * j.es
    cdef ptrdiff_t i
    memset(sums, 0, j.c * j.es)
    for i in range(task * j.rows, min((task + 1) * j.rows, j.n)):
        j.k.add(j.c, j.x + i * j.c * j.es, sums)


cdef int run_channel_sums(kernels_t k, size_t es, const char *x, ptrdiff_t n, ptrdiff_t c, ptrdiff_t size,
                          char *y) except -1:
    """Planes are summed one by one; where they are single pixels, rows of all channels, and their sums pairwise."""
    cdef ChannelSumJob job
    cdef ptrdiff_t blocks
    cdef int threads = threads_for(1.0 * size * es)
    cdef Arena arena
    job.k, job.es, job.x, job.y = k, es, x, y
    job.n, job.c, job.plane = n, c, size // max(n * c, <ptrdiff_t>1)
    if job.plane != 1:
        with nogil:
            run_tasks(channel_sum_task, &job, c, threads, NULL, 0)
        return 0
    job.rows = max(<ptrdiff_t>SUMMED_ROWS, ceil_div(n, <ptrdiff_t>SUMMED_BLOCKS))
    blocks = ceil_div(n, job.rows)
    arena = lease(blocks * c * es)
    job.y = <char *>arena.memory
    with nogil:
        run_tasks(row_sums_task, &job, blocks, threads, NULL, 0)
        pairwise(k, es, job.y, c, blocks, c)
        memcpy(y, job.y, c * es)
    release(arena)
    return 0


def channel_sums(ndarray x not None, ndarray y not None, ptrdiff_t n):
    """y[c] = sum of x[:, c] for x of shape (n, c, ...)."""
    cdef size_t es = PyArray_ITEMSIZE(x)
    cdef ptrdiff_t size = PyArray_SIZE(x), c = PyArray_SIZE(y)
    run_channel_sums(fc_tables(fc_get_isa())[es == 8], es, read(x, es, size), n, c, size, written(y, es, c))
