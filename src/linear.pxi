"""Fully connected layers: y = x W^T + b, dx = dy W, dW = dy^T x, on the convolution's micro-kernel.

All three are C[m][n] = sum_k A(m, k) * B(k, n), A and B packed from lines that run along k or across it:

    for some slices of K:
        pack all of B, [slice][panel][kc][nr]            (a single block of rows: each task packs what it needs)
        for each block of rows and columns of C, a task:
            for each slice, for each row panel of the block:
                pack A[kc][mr], which stays in L1        (or read it in place, where few columns would share it)
                C[mr][columns] += A * B                  B streams from L2, C is written line by line

For few rows of A packing B would be most of the work: B is read once, as it lies. Along k elements of C are dot
products; across it lines of B, scaled, are added to rows of C.

NumPy's BLAS would bring threads of its own, which spin against ours: a 64 x 400 x 120 product goes from 72 us to 3.7 ms
when it alternates with a parallel region.
"""

cdef struct ProductJob:
    kernels_t k
    size_t es
    ptrdiff_t m, n, depth
    const char *a
    ptrdiff_t a_row, a_step  # element (i, k) of A is a[i * a_row + k * a_step]; one of the two is 1
    const char *b
    ptrdiff_t b_col, b_step  # element (k, p) of B is b[p * b_col + k * b_step]; likewise
    char *c
    ptrdiff_t ldc
    ptrdiff_t slices, kc, cols, rows  # of K; length of one at most; columns and rows a task
    ptrdiff_t slice0, slice1  # of K that are multiplied together
    bint in_place  # A
    char *packed  # panels of B, [slice][panel][k][nr]; NULL: each task packs what it needs, slice by slice
    size_t b_size  # part of a thread's scratch, in bytes
    const char *bias  # one a column
    const char *residual  # of the layout of C
    int activation
    double slope


cdef enum:
    DEPTH = 512  # of a slice of K
    ONE_BLOCK = 43  # row panels that are not worth packing B by all threads for all
    ROW_PANELS = 8  # of a block, at least: so few hardly wait for B to be packed
    LEAST_COLS = 7  # panels of B for which a row panel of A is packed
    LEAST_DEPTH = 129  # below which C is most of the traffic, and had better be written as A is read, in place
    PRODUCT_TASKS = 16
    PACKED_B = 2 << 20  # bytes of B that are packed before they are multiplied,
    TASK_B = 512 << 10  # and by a task
    PACKED_LINES = 16  # across K: panels side by side share them


cdef void pack_panels(const ProductJob *j, const char *src, ptrdiff_t line, ptrdiff_t step, ptrdiff_t width,
                      ptrdiff_t count, ptrdiff_t kc, char *dst) noexcept nogil:
    """Panels [kc][width] of `count` rows of A or columns of B, `line` apart, from elements k that are `step` apart."""
    cdef size_t es = j.es
    cdef ptrdiff_t p, k0
    if step == 1:
        for p from 0 <= p < count by width:
            j.k.pack_transposed(<int>width, src + p * line * es, line, <int>min(width, count - p), kc,
                                dst + p * kc * es, NULL)
        return
    for k0 from 0 <= k0 < kc by PACKED_LINES:
        for p from 0 <= p < count by width:
            j.k.pack_rows(<int>width, src + (p + k0 * step) * es, step, <int>min(width, count - p),
                          min(<ptrdiff_t>PACKED_LINES, kc - k0), dst + (p * kc + k0 * width) * es)


cdef void pack_columns(const ProductJob *j, ptrdiff_t slice_, ptrdiff_t col0, char *b) noexcept nogil:
    """Panels of B: a slice of K of the block of columns from `col0` on."""
    cdef ptrdiff_t k0 = slice_start(j.depth, slice_, j.slices), kc = slice_start(j.depth, slice_ + 1, j.slices) - k0
    pack_panels(j, j.b + (col0 * j.b_col + k0 * j.b_step) * j.es, j.b_col, j.b_step, j.k.nr, min(j.cols, j.n - col0),
                kc, b)


cdef inline char *packed_columns(const ProductJob *j, ptrdiff_t slice_, ptrdiff_t col0) noexcept nogil:
    cdef ptrdiff_t k0 = slice_start(j.depth, slice_, j.slices), kc = slice_start(j.depth, slice_ + 1, j.slices) - k0
    k0 -= slice_start(j.depth, j.slice0, j.slices)
    return j.packed + (k0 * ceil_div(j.n, j.k.nr) * j.k.nr + col0 * kc) * j.es


cdef void pack_columns_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a slice of K of a block of columns."""
    cdef ProductJob *j = <ProductJob *>job_
    cdef ptrdiff_t blocks = ceil_div(j.n, j.cols), slice_ = j.slice0 + task // blocks, col0 = task % blocks * j.cols
    pack_columns(j, slice_, col0, packed_columns(j, slice_, col0))


cdef void product_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a block of rows x a block of columns of C."""
    cdef ProductJob *j = <ProductJob *>job_
    cdef kernels_t k = j.k
    cdef size_t es = j.es
    cdef ptrdiff_t blocks = ceil_div(j.n, j.cols), col0 = task % blocks * j.cols, cols = min(j.cols, j.n - col0)
    cdef ptrdiff_t row0 = task // blocks * j.rows, row1 = min(row0 + j.rows, j.m)
    cdef ptrdiff_t slice_, k0, kc, i, p, zero = 0
    cdef ptrdiff_t[16] row
    cdef int rows
    cdef const char *a
    cdef char *panel = scratch + j.b_size
    cdef char *b = scratch
    cdef char *c
    for i in range(16):
        row[i] = i * j.a_row
    for slice_ in range(j.slice0, j.slice1):
        k0 = slice_start(j.depth, slice_, j.slices)
        kc = slice_start(j.depth, slice_ + 1, j.slices) - k0
        if j.packed == NULL:
            pack_columns(j, slice_, col0, b)
        else:
            b = packed_columns(j, slice_, col0)
        for i from row0 <= i < row1 by k.mr:
            rows = <int>min(<ptrdiff_t>k.mr, row1 - i)
            a = j.a + (i * j.a_row + k0 * j.a_step) * es
            c = j.c + (i * j.ldc + col0) * es
            if j.in_place:
                for p from 0 <= p < cols by k.nr:
                    k.gemm_rows(1, &zero, kc, a, row, j.a_step, b + p * kc * es, c + p * es, j.ldc, rows,
                                <int>min(<ptrdiff_t>k.nr, cols - p), slice_ > 0, NULL, NULL)
            else:
                pack_panels(j, a, j.a_row, j.a_step, k.mr, rows, kc, panel)
                k.gemm_panels(kc, panel, 0, rows, b, k.nr * kc, cols, c, j.ldc, slice_ > 0, NULL, NULL)
            if slice_ == j.slices - 1 and (j.bias != NULL or j.residual != NULL or j.activation):
                k.epilogue(c, j.ldc, rows, <int>cols, NULL if j.bias == NULL else j.bias + col0 * es,
                           NULL if j.residual == NULL else j.residual + (i * j.ldc + col0) * es, j.activation, j.slope)


cdef enum:
    FEW_ROWS = 4  # of A, at most, or
    MORE_ROWS = 8  # for dot products where B stays in a cache,
    KEPT_B = 4 << 20  # bytes,
    FAR_B = 12 << 20  # and for lines where it comes from memory
    DOTS = 9  # columns that share the loads of a row of A
    DOT_COLS = 36  # a task
    DOT_DEPTH = 512  # of what columns stay in L1 while several rows of A meet them
    LINE = 8192  # bytes of a line of B a task


cdef bint has_few_rows(const ProductJob *j) noexcept nogil:
    """Whether B is read as it lies: for so few rows of A and so many bytes of B."""
    cdef ptrdiff_t b_size = j.n * j.depth * <ptrdiff_t>j.es
    if j.b_step != 1:
        return j.m <= (MORE_ROWS if b_size >= FAR_B else FEW_ROWS)
    return j.a_step == 1 and j.m <= (MORE_ROWS if b_size <= KEPT_B else FEW_ROWS)


def reads_in_place(ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t depth, ptrdiff_t itemsize, bint along):
    """Whether a product C[rows][cols] reads its second operand as it lies, along K or across it, and packs nothing."""
    cdef ProductJob j
    j.m, j.n, j.depth, j.es, j.a_step, j.b_step = rows, cols, depth, itemsize, 1, 1 if along else cols
    return has_few_rows(&j)


cdef void dot_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: DOT_COLS columns of C."""
    cdef ProductJob *j = <ProductJob *>job_
    cdef ptrdiff_t[DOTS] column
    cdef ptrdiff_t col0 = task * DOT_COLS, cols = min(<ptrdiff_t>DOT_COLS, j.n - col0), i, p, k0
    cdef ptrdiff_t depth = j.depth if j.m == 1 else DOT_DEPTH
    for p in range(DOTS):
        column[p] = p * j.b_col
    for i in range(j.m):
        memset(j.c + (i * j.ldc + col0) * j.es, 0, cols * j.es)
    for p from 0 <= p < cols by DOTS:
        for k0 from 0 <= k0 < j.depth by depth:
            for i in range(j.m):
                j.k.direct_dot(1, <int>min(<ptrdiff_t>DOTS, cols - p), 1, min(depth, j.depth - k0),
                               j.a + (i * j.a_row + k0) * j.es, 0, 0, j.b + ((col0 + p) * j.b_col + k0) * j.es, 0,
                               column, j.c + (i * j.ldc + col0 + p) * j.es, 0)
    finish_columns(j, col0, cols)


cdef void lines_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a block of columns of C."""
    cdef ProductJob *j = <ProductJob *>job_
    cdef ptrdiff_t col0 = task * j.cols, cols = min(j.cols, j.n - col0), i
    cdef ptrdiff_t k0 = 0, stride = j.ldc
    cdef char *sums = j.c + col0 * j.es
    while k0 < j.depth or k0 == 0:
        for i in range(j.m):
            memset(sums + i * stride * j.es, 0, cols * j.es)
        j.k.gemm_few(min(<ptrdiff_t>DEPTH, j.depth - k0), j.a + k0 * j.a_step * j.es, j.a_row, j.a_step, j.m,
                     j.b + (col0 + k0 * j.b_step) * j.es, j.b_step, cols, sums, stride)
        for i in range(j.m if k0 > 0 else 0):
            j.k.add(cols, sums + i * stride * j.es, j.c + (i * j.ldc + col0) * j.es)
        k0 += DEPTH
        sums, stride = scratch, cols
    finish_columns(j, col0, cols)


cdef void finish_columns(const ProductJob *j, ptrdiff_t col0, ptrdiff_t cols) noexcept nogil:
    if j.bias != NULL or j.residual != NULL or j.activation:
        j.k.epilogue(j.c + col0 * j.es, j.ldc, <int>j.m, <int>cols, NULL if j.bias == NULL else j.bias + col0 * j.es,
                     NULL if j.residual == NULL else j.residual + col0 * j.es, j.activation, j.slope)


cdef inline ptrdiff_t split(ptrdiff_t n, ptrdiff_t most, ptrdiff_t multiple) noexcept nogil:
    """The most even part of n that is a multiple and hardly above `most`."""
    return ceil_div(ceil_div(n, max(<ptrdiff_t>1, ceil_div(n, most))), multiple) * multiple


cdef void plan_product(ProductJob *j) noexcept nogil:
    """Blocks of rows first, which share what is packed, then of columns, until there is work for all threads."""
    cdef ptrdiff_t nr = j.k.nr, mr = j.k.mr, blocks, cols
    j.slices = max(<ptrdiff_t>1, ceil_div(j.depth, DEPTH))
    j.kc = max(<ptrdiff_t>1, ceil_div(j.depth, j.slices))
    j.rows = max(<ptrdiff_t>1, j.m)
    if j.m > ONE_BLOCK * mr:
        j.rows = split(j.m, max(ceil_div(j.m, PRODUCT_TASKS), ROW_PANELS * mr), mr)
    blocks = ceil_div(j.m, j.rows)
    cols = (PACKED_B if blocks > 1 else TASK_B) // (j.kc * <ptrdiff_t>j.es)
    j.cols = split(j.n, min(cols, ceil_div(j.n, ceil_div(PRODUCT_TASKS, blocks))), nr)
    j.in_place = j.m < ROW_PANELS * mr or j.cols < LEAST_COLS * nr or j.depth < LEAST_DEPTH


cdef inline size_t packed_depth(const ProductJob *j, ptrdiff_t slices) noexcept nogil:
    """Bytes of so many slices of B, packed."""
    return aligned(slices * j.kc * ceil_div(j.n, j.k.nr) * j.k.nr * j.es)


cdef int run_product(ProductJob *j, char *panels) except -1:
    """panels: all of B, packed before, or NULL."""
    cdef ptrdiff_t tasks, together, first
    cdef size_t shared = 0, scratch
    cdef int threads = threads_for(2.0 * j.m * j.n * j.depth)
    if j.m == 0 or j.n == 0:
        return 0
    cdef Arena arena
    cdef bint few = has_few_rows(j)
    if few and j.b_step == 1:
        with nogil:
            run_flushed(dot_task, j, ceil_div(j.n, DOT_COLS), threads, NULL, 0)
        return 0
    if few:
        j.cols = split(j.n, min(LINE // <ptrdiff_t>j.es, ceil_div(j.n, threads)), j.k.lanes)
        scratch = aligned(j.m * j.cols * j.es)
        arena = lease(threads * scratch)
        with nogil:
            run_flushed(lines_task, j, ceil_div(j.n, j.cols), threads, <char *>arena.memory, scratch)
        release(arena)
        return 0
    plan_product(j)
    together, tasks = j.slices, ceil_div(j.m, j.rows)
    if tasks > 1 and panels == NULL:
        together = max(<ptrdiff_t>1, min(together, PACKED_B // <ptrdiff_t>packed_depth(j, 1)))
        shared = packed_depth(j, together)
    tasks *= ceil_div(j.n, j.cols)
    j.b_size = 0 if shared or panels != NULL else aligned(j.kc * j.cols * j.es)
    scratch = j.b_size + aligned(j.kc * j.k.mr * j.es)
    arena = lease(shared + threads * scratch)
    cdef char *memory = <char *>arena.memory
    j.packed = memory if shared else panels
    with nogil:
        for first from 0 <= first < j.slices by together:
            j.slice0, j.slice1 = first, min(first + together, j.slices)
            if shared:
                run_tasks(pack_columns_task, j, (j.slice1 - j.slice0) * ceil_div(j.n, j.cols), threads, NULL, 0)
            run_flushed(product_task, j, tasks, threads, memory + shared, scratch)
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
    j.b_col, j.b_step = 1, n
    if b_transposed:
        j.b_col, j.b_step = depth, 1
    j.ldc = n
    j.activation, j.slope = activation, slope
    return run_product(&j, NULL)


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
