"""Fully connected layers: y = x W^T + b, dx = dy W, dW = dy^T x, on the convolution's micro-kernel.

All three are C[m][n] = sum_k A(m, k) * B(k, n) with A read in place through its strides and B packed by each task, from
rows (B[k][n] as it lies) or from columns (B[n][k], transposed while packing).  For few rows of A packing would be most
of the work: where both lie along k, elements of C are dot products, which read B once and pack nothing.

NumPy's BLAS would bring threads of its own, which spin against ours: a 64 x 400 x 120 product goes from 72 us to 3.7 ms
when it alternates with a parallel region.
"""

cdef struct ProductJob:
    kernels_t k
    size_t es
    ptrdiff_t m, n, depth
    const char *a
    ptrdiff_t a_row, a_step  # element (i, k) of A is a[i * a_row + k * a_step]
    const char *b
    ptrdiff_t ldb
    bint b_transposed  # B is stored [n][k]
    char *c
    ptrdiff_t ldc
    ptrdiff_t kc, cols, rows  # length of a K slice, columns and rows a task
    const char *bias  # one a column
    const char *residual  # of the layout of C, for dot products alone
    int activation
    double slope


cdef void product_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a block of rows x a block of columns of C."""
    cdef ProductJob *j = <ProductJob *>job_
    cdef kernels_t k = j.k
    cdef size_t es = j.es
    cdef ptrdiff_t nr = k.nr, col_blocks = ceil_div(j.n, j.cols)
    cdef ptrdiff_t col0 = task % col_blocks * j.cols, col1 = min(col0 + j.cols, j.n)
    cdef ptrdiff_t row0 = task // col_blocks * j.rows, row1 = min(row0 + j.rows, j.m)
    cdef ptrdiff_t slices = max(<ptrdiff_t>1, ceil_div(j.depth, j.kc)), slice_, k0, kc, i, p, zero = 0
    cdef ptrdiff_t[16] row
    cdef int rows, cols
    cdef char *b
    for i in range(16):
        row[i] = i * j.a_row
    for slice_ in range(slices):
        k0 = j.depth * slice_ // slices
        kc = j.depth * (slice_ + 1) // slices - k0
        for p from col0 <= p < col1 by nr:
            cols = <int>min(nr, col1 - p)
            b = scratch + (p - col0) * kc * es
            if j.b_transposed:
                k.pack_transposed(j.b + (p * j.ldb + k0) * es, j.ldb, cols, kc, b, NULL)
            else:
                k.pack_rows(j.b + (k0 * j.ldb + p) * es, j.ldb, cols, kc, b)
        for i from row0 <= i < row1 by k.mr:
            rows = <int>min(<ptrdiff_t>k.mr, row1 - i)
            for p from col0 <= p < col1 by nr:
                cols = <int>min(nr, col1 - p)
                k.gemm_rows(1, &zero, kc, j.a + (i * j.a_row + k0 * j.a_step) * es, row, j.a_step,
                            scratch + (p - col0) * kc * es, j.c + (i * j.ldc + p) * es, j.ldc, rows, cols, slice_ > 0)
                if slice_ == slices - 1 and (j.bias != NULL or j.activation):
                    k.epilogue(j.c + (i * j.ldc + p) * es, j.ldc, rows, cols,
                               NULL if j.bias == NULL else j.bias + p * es, NULL, j.activation, j.slope)


cdef enum:
    DOT_ROWS = 4  # of A, at most, or
    MORE_DOT_ROWS = 8  # where B stays in a cache:
    KEPT_B = 4 << 20  # bytes
    DOTS = 9  # columns that share the loads of a row of A
    DOT_COLS = 36  # a task
    DOT_DEPTH = 512  # of what columns stay in L1 while several rows of A meet them


cdef inline bint takes_dots(ptrdiff_t rows, size_t b_size) noexcept nogil:
    """Whether dot products are the better way for so few rows of A and so many bytes of B."""
    return rows <= (MORE_DOT_ROWS if b_size <= KEPT_B else DOT_ROWS)


cdef void dot_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: DOT_COLS columns of C."""
    cdef ProductJob *j = <ProductJob *>job_
    cdef ptrdiff_t[DOTS] column
    cdef ptrdiff_t col0 = task * DOT_COLS, cols = min(<ptrdiff_t>DOT_COLS, j.n - col0), i, p, k0
    cdef ptrdiff_t depth = j.depth if j.m == 1 else DOT_DEPTH
    for p in range(DOTS):
        column[p] = p * j.ldb
    for i in range(j.m):
        memset(j.c + (i * j.ldc + col0) * j.es, 0, cols * j.es)
    for p from 0 <= p < cols by DOTS:
        for k0 from 0 <= k0 < j.depth by depth:
            for i in range(j.m):
                j.k.direct_dot(<int>min(<ptrdiff_t>DOTS, cols - p), 1, min(depth, j.depth - k0),
                               j.a + (i * j.a_row + k0) * j.es, 0, j.b + ((col0 + p) * j.ldb + k0) * j.es, 0, column,
                               j.c + (i * j.ldc + col0 + p) * j.es)
    if j.bias != NULL or j.residual != NULL or j.activation:
        j.k.epilogue(j.c + col0 * j.es, j.ldc, <int>j.m, <int>cols, NULL if j.bias == NULL else j.bias + col0 * j.es,
                     NULL if j.residual == NULL else j.residual + col0 * j.es, j.activation, j.slope)


cdef void run_dots(ProductJob *j, int threads) noexcept nogil:
    run_flushed(dot_task, j, ceil_div(j.n, DOT_COLS), threads, NULL, 0)


cdef int run_product(ProductJob *j) except -1:
    """Blocks of columns such that packing B is shared by as many rows as possible and there is work for 16 threads."""
    cdef ptrdiff_t nr = j.k.nr, tasks
    cdef double flops = 2.0 * j.m * j.n * j.depth
    cdef int threads = threads_for(flops)
    if j.m == 0 or j.n == 0:
        return 0
    if takes_dots(j.m, j.n * j.depth * j.es) and j.a_step == 1 and j.b_transposed:
        with nogil:
            run_dots(j, threads)
        return 0
    j.kc = 384
    j.cols = max(<ptrdiff_t>1, min(<ptrdiff_t>6, ceil_div(j.n, 16 * nr))) * nr
    tasks = ceil_div(j.n, j.cols)
    j.rows = max(ceil_div(ceil_div(j.m, ceil_div(16, tasks)), j.k.mr), min(<ptrdiff_t>16, ceil_div(j.m, j.k.mr)))
    j.rows *= j.k.mr
    cdef size_t scratch = aligned((min(j.kc, j.depth) * j.cols + 2 * nr) * j.es)
    cdef Arena arena = lease(threads * scratch)
    with nogil:
        run_flushed(product_task, j, tasks * ceil_div(j.m, j.rows), threads, <char *>arena.memory, scratch)
    release(arena)
    return 0


cdef int matrix_product(ndarray a, bint a_transposed, ndarray b, bint b_transposed, ndarray bias, ndarray c,
                        ptrdiff_t m, ptrdiff_t n, ptrdiff_t depth, int activation, double slope) except -1:
    cdef ProductJob j
    j.es = PyArray_ITEMSIZE(c)
    j.k = fc_tables(fc_get_isa())[j.es == 8]
    j.m, j.n, j.depth = m, n, depth
    j.a, j.b = read(a, j.es, m * depth), read(b, j.es, depth * n)
    j.bias, j.residual, j.c = read(bias, j.es, n), NULL, written(c, j.es, m * n)
    j.a_row, j.a_step = depth, 1
    if a_transposed:
        j.a_row, j.a_step = 1, m
    j.b_transposed, j.ldb, j.ldc = b_transposed, depth if b_transposed else n, n
    j.activation, j.slope = activation, slope
    return run_product(&j)


def linear_output(ndarray x not None, ndarray weight not None, ndarray bias, ndarray out not None, ptrdiff_t rows,
                  int activation=0, double slope=0):
    """out[n][o] = activation(sum_i x[n][i] * weight[o][i] + bias[o]); bias may be None."""
    matrix_product(x, False, weight, True, bias, out, rows, weight.shape[0], weight.shape[1], activation, slope)


def linear_input_gradient(ndarray grad_output not None, ndarray weight not None, ndarray grad_input not None,
                          ptrdiff_t rows):
    """grad_input[n][i] = sum_o grad_output[n][o] * weight[o][i]."""
    matrix_product(grad_output, False, weight, False, None, grad_input, rows, weight.shape[1], weight.shape[0], 0, 0)


def linear_weight_gradient(ndarray grad_output not None, ndarray x not None, ndarray grad_weight not None,
                           ndarray grad_bias, ptrdiff_t rows):
    """grad_weight[o][i] = sum_n grad_output[n][o] * x[n][i]; grad_bias[o] (or None) = sum_n grad_output[n][o]."""
    cdef ptrdiff_t outputs = grad_weight.shape[0], inputs = grad_weight.shape[1]
    matrix_product(grad_output, True, x, False, None, grad_weight, outputs, inputs, rows, 0, 0)
    if grad_bias is not None:
        channel_sums(grad_output, grad_bias, rows)
