"""Batch normalisation: one pass that reduces, one that applies; per-channel numbers are doubles."""

cdef enum:
    RUN = 4096  # elements that are summed before their sum is added to the channel's

cdef struct NormJob:
    kernels_t k
    const char *x
    const char *g
    char *y
    const double *shift
    const double *factors  # (shift, a, b, c) of each channel
    double *sums  # two of each channel
    ptrdiff_t n, c, plane, planes_a_task, channels_a_task
    size_t es


cdef void moments_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: channels_a_task channels."""
    cdef NormJob *j = <NormJob *>job_
    cdef ptrdiff_t c, n, planes = max(<ptrdiff_t>1, RUN // max(j.plane, <ptrdiff_t>1))
    cdef size_t at
    for c in range(task * j.channels_a_task, min((task + 1) * j.channels_a_task, j.c)):
        j.sums[2 * c] = j.sums[2 * c + 1] = 0
        n = 0
        while n < j.n:
            at = (n * j.c + c) * j.plane * j.es
            j.k.moments(min(planes, j.n - n), j.c * j.plane, j.plane, NULL if j.g == NULL else j.g + at, j.x + at,
                        j.shift[c], j.sums + 2 * c)
            n += planes


def channel_moments(ndarray g, ndarray x not None, ndarray shift not None, ndarray sums not None, ptrdiff_t n):
    """sums[c] = (sum u, sum u * u) with u = x[:, c] - shift[c], or (sum g, sum g * u), for x of shape (n, c, ...)."""
    cdef NormJob job
    cdef ptrdiff_t size = PyArray_SIZE(x)
    job.es, job.n, job.c = PyArray_ITEMSIZE(x), n, PyArray_SIZE(shift)
    job.plane = size // max(n * job.c, <ptrdiff_t>1)
    job.k = fc_tables(fc_get_isa())[job.es == 8]
    job.g, job.x = read(g, job.es, size), read(x, job.es, size)
    job.shift, job.sums = <const double *>read(shift, 8, job.c), <double *>written(sums, 8, 2 * job.c)
    job.channels_a_task = max(<ptrdiff_t>1, CHUNK // max(job.n * job.plane, <ptrdiff_t>1))
    cdef int threads = threads_for(8.0 * size)
    with nogil:
        run_tasks(moments_task, &job, ceil_div(job.c, job.channels_a_task), threads, NULL, 0)


cdef void affine_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    cdef NormJob *j = <NormJob *>job_
    cdef ptrdiff_t p
    cdef size_t at
    for p in range(task * j.planes_a_task, min((task + 1) * j.planes_a_task, j.n * j.c)):
        at = p * j.plane * j.es
        j.k.affine(j.plane, NULL if j.g == NULL else j.g + at, j.x + at, j.factors + 4 * (p % j.c), j.y + at)


def channel_affine(ndarray g, ndarray x not None, ndarray factors not None, ndarray y not None, ptrdiff_t n):
    """y[:, c] = a * g[:, c] + b * (x[:, c] - shift) + d with factors[c] = (shift, a, b, d); g may be None."""
    cdef NormJob job
    cdef ptrdiff_t size = PyArray_SIZE(x)
    job.es, job.n, job.c = PyArray_ITEMSIZE(x), n, factors.shape[0]
    job.plane = size // max(n * job.c, <ptrdiff_t>1)
    job.planes_a_task = ceil_div(CHUNK, max(job.plane, <ptrdiff_t>1))
    job.k = fc_tables(fc_get_isa())[job.es == 8]
    job.g, job.x, job.y = read(g, job.es, size), read(x, job.es, size), written(y, job.es, size)
    job.factors = <const double *>read(factors, 8, 4 * job.c)
    cdef int threads = threads_for(8.0 * size)
    with nogil:
        run_tasks(affine_task, &job, ceil_div(job.n * job.c, job.planes_a_task), threads, NULL, 0)
