"""Max and average pooling over planes (d, h, w), or over images (d, h, w, c) whose channels come last, and backward.

Forward tasks are stretches of output rows, backward tasks are whole planes: overlapping windows of a plane add into one
another, planes never do, so there are no atomics and the order of every sum is fixed.  The indices of a maximum are all
checked before a gradient that the caller gave is touched; those of a new one, unless channels come last, just before
they are used.

With the channels last, tasks are stretches of pixel rows, of the output or of a mean's gradient; what one window covers
is a single column of pixels, shared out by channels, and so is a maximum's gradient.
"""

cdef enum:
    POOL_OUTPUTS = 4096  # outputs a forward task
    POOL_INPUTS = 8192  # elements of the gradient a backward task, unless a plane has more
    POOL_TABLE = 1024  # outputs at most whose windows are tabulated to check indices, unless a row has more
    POOL_CACHE = 1 << 19  # bytes of the gradient that a scatter may spread over
    POOL_PIXELS = 16384  # elements a task with the channels last
    POOL_SHARES = 8  # tasks at least, of a scatter with the channels last, unless channels are few


cdef class PoolPlan:
    """Geometry of a pool."""

    cdef ptrdiff_t planes, rows, channels  # with the channels last, an image is one plane of pixels
    cdef ptrdiff_t[3] in_, out, kernel, stride, dilation, pad, pad_after
    cdef int count_include_pad
    cdef ptrdiff_t divisor

    def __cinit__(self, ptrdiff_t planes, in_size, out_size, kernel, stride, dilation, pad_before,
                  int count_include_pad=1, ptrdiff_t divisor=0, pad_after=(0, 0, 0), ptrdiff_t channels=0):
        cdef int i
        self.planes, self.channels = planes, channels
        for i in range(3):
            self.in_[i], self.out[i], self.kernel[i] = in_size[i], out_size[i], kernel[i]
            self.stride[i], self.dilation[i] = stride[i], dilation[i]
            self.pad[i], self.pad_after[i] = pad_before[i], pad_after[i]
        self.rows = self.out[0] * self.out[1]
        self.count_include_pad = count_include_pad
        self.divisor = divisor

    cdef ptrdiff_t x_size(self) noexcept:
        return self.planes * self.in_[0] * self.in_[1] * self.in_[2] * max(self.channels, <ptrdiff_t>1)

    cdef ptrdiff_t out_size(self) noexcept:
        return self.planes * self.rows * self.out[2] * max(self.channels, <ptrdiff_t>1)

    cdef double work(self, size_t es):
        """Operations, two a tap, or bytes that are moved."""
        cdef double bytes = 1.0 * es * (self.x_size() + self.out_size())
        return max(bytes, 2.0 * self.out_size() * self.kernel[0] * self.kernel[1] * self.kernel[2])

    cdef bint whole(self):
        """Whether one window covers the plane."""
        cdef int i
        cdef bint whole = self.rows * self.out[2] == 1
        for i in range(3):
            whole = whole and self.dilation[i] == 1 and self.kernel[i] - self.pad[i] >= self.in_[i]
        return whole


cdef struct PoolJob:
    kernels_t k
    size_t es
    fc_pool_row row  # what all rows share
    ptrdiff_t[3] stride, pad
    ptrdiff_t planes, in_plane, out_h, out_w, rows, task_rows  # rows a plane, rows a task
    bint maximum, whole  # whether one window covers the plane
    const char *x
    char *y
    int64_t *index
    ptrdiff_t side, task_planes  # backward: planes that a scatter takes side by side, planes a task
    fc_pool_windows windows  # of table_rows output rows
    ptrdiff_t table_rows
    ptrdiff_t *bad  # indices outside their windows, one count a task
    bint checked  # before any is used
    size_t line_bytes  # a thread's scratch


cdef inline void pool_row(const PoolJob *j, ptrdiff_t r, fc_pool_row *row) noexcept nogil:
    """The windows of output row r, counted over (d, h)."""
    row.start[0] = r // j.out_h * j.stride[0] - j.pad[0]
    row.start[1] = r % j.out_h * j.stride[1] - j.pad[1]


cdef void pool_job(PoolPlan plan, PoolJob *j):
    cdef fc_pool_row *row = &j.row
    fc_set3(row.in_, plan.in_[0], plan.in_[1], plan.in_[2])
    fc_set3(row.kernel, plan.kernel[0], plan.kernel[1], plan.kernel[2])
    fc_set3(row.dilation, plan.dilation[0], plan.dilation[1], plan.dilation[2])
    fc_set3(row.pad_after, plan.pad_after[0], plan.pad_after[1], plan.pad_after[2])
    fc_set3(j.stride, plan.stride[0], plan.stride[1], plan.stride[2])
    fc_set3(j.pad, plan.pad[0], plan.pad[1], plan.pad[2])
    row.step, row.out, row.stride[1] = plan.stride[2], plan.out[2], plan.stride[1]
    row.count_include_pad, row.divisor = plan.count_include_pad, plan.divisor
    # The line of a row: taps that no output finds inside the image are skipped, and so is their padding.
    cdef ptrdiff_t lanes = j.k.lanes, before = plan.pad[2], dilation = plan.dilation[2]
    row.before = before
    row.skip = max(<ptrdiff_t>0, before - (plan.out[2] - 1) * plan.stride[2])
    row.skip -= row.skip % (dilation * row.step)
    row.line_end = min(before + plan.in_[2] + lanes * row.step,
                       (plan.out[2] - 1) * row.step + (plan.kernel[2] - 1) * dilation + 1)
    row.line_end = max(row.line_end, before + plan.in_[2]) - row.skip
    row.line_size = row.line_end + lanes * (2 * row.step if row.step <= 4 else 1)
    j.line_bytes = aligned((row.line_size + max(row.line_size, row.out + 2 * lanes)) * j.es)
    j.planes, j.in_plane = plan.planes, plan.in_[0] * plan.in_[1] * plan.in_[2]
    j.out_h, j.out_w, j.rows = plan.out[1], plan.out[2], plan.rows
    j.task_rows = max(<ptrdiff_t>1, POOL_OUTPUTS // max(plan.out[2], <ptrdiff_t>1))
    j.whole = plan.whole()
    if j.whole:
        j.task_rows = max(<ptrdiff_t>1, POOL_INPUTS // j.in_plane)
    pool_row(j, 0, row)
    j.side = 4 if j.planes >= 16 and 4 * j.in_plane * j.es <= POOL_CACHE else 1
    j.task_planes = j.side * max(<ptrdiff_t>1, POOL_INPUTS // (j.side * j.in_plane))
    j.index = NULL


cdef void pool_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: task_rows output rows, counted over all planes; a whole plane is one."""
    cdef PoolJob *j = <PoolJob *>job_
    cdef fc_pool_row row = j.row
    cdef ptrdiff_t r = task * j.task_rows, plane = r // j.rows, at = r % j.rows, count
    cdef ptrdiff_t end = min(r + j.task_rows, j.planes * j.rows)
    row.line = scratch
    row.x = j.x + plane * j.in_plane * j.es
    if j.whole:
        at = min(j.task_rows, j.planes - r)
        if j.maximum:
            j.k.max_pool_planes(&row, at, j.y + r * j.es, NULL if j.index == NULL else j.index + r)
        else:
            j.k.avg_pool_planes(&row, at, j.y + r * j.es)
        return
    while r < end:  # the rows of one slice of a plane
        count = min(end - r, j.out_h - at % j.out_h)
        pool_row(j, at, &row)
        if j.maximum:
            j.k.max_pool_rows(&row, count, j.y + r * j.out_w * j.es, NULL if j.index == NULL else j.index + r * j.out_w)
        else:
            j.k.avg_pool_rows(&row, count, j.y + r * j.out_w * j.es)
        r += count
        at += count
        if at == j.rows:
            at = 0
            row.x = <const char *>row.x + j.in_plane * j.es


cdef int run_pool(PoolPlan plan, bint maximum, ndarray x, ndarray y, ndarray index) except -1:
    cdef PoolJob j
    j.es, j.maximum = PyArray_ITEMSIZE(x), maximum
    j.k = fc_tables(fc_get_isa())[j.es == 8]
    pool_job(plan, &j)
    j.x, j.y = read(x, j.es, plan.x_size()), written(y, j.es, plan.out_size())
    if index is not None:
        j.index = indices(index, plan.out_size())
    cdef int threads = threads_for(plan.work(j.es))
    cdef Arena arena = lease(threads * j.line_bytes)
    with nogil:
        run_tasks(pool_task, &j, ceil_div(j.planes * j.rows, j.task_rows), threads, <char *>arena.memory, j.line_bytes)
    release(arena)
    return 0


cdef ptrdiff_t tabulated_rows(const PoolJob *j) noexcept nogil:
    """How many output rows, of one plane or of several whole ones, share a table of their windows.

    In two dimensions a row of a window above or below the image lies outside the plane, and no index does; in three it
    is a row of another slice, so that each output row has taps of its own.
    """
    cdef const fc_pool_row *row = &j.row
    cdef ptrdiff_t outputs = j.rows * j.out_w, extent = (row.kernel[1] - 1) * row.dilation[1] + 1
    if row.in_[0] > 1 or j.rows != j.out_h or extent * row.in_[2] >= <ptrdiff_t>1 << 30:
        return 1
    cdef ptrdiff_t size = min(<ptrdiff_t>POOL_TABLE, j.planes * outputs // 8)  # a table must pay
    if 2 * outputs <= size:
        return j.rows * min(size // outputs, j.task_planes)
    return min(j.rows, max(<ptrdiff_t>1, size // j.out_w))


cdef inline ptrdiff_t first_tap(const fc_pool_row *row, int dim, ptrdiff_t start) noexcept nogil:
    """The first tap inside the image of a window that begins at `start`."""
    return ceil_div(max(<ptrdiff_t>0, -start), row.dilation[dim])


cdef inline ptrdiff_t last_tap(const fc_pool_row *row, int dim, ptrdiff_t start) noexcept nogil:
    """The last tap inside the image, plus one."""
    return min(row.kernel[dim], ceil_div(row.in_[dim] - start, row.dilation[dim]))


cdef void tabulate_windows(PoolJob *j, uint32_t *first, uint32_t *extent) noexcept nogil:
    """The columns of the windows of `table_rows` output rows, from the first row's windows on."""
    cdef const fc_pool_row *row = &j.row
    cdef ptrdiff_t o, r, start, lo
    cdef uint32_t down
    for o in range(j.out_w):
        start = o * row.step - row.before
        lo = first_tap(row, 2, start)
        first[o] = <uint32_t>(start + lo * row.dilation[2])
        extent[o] = <uint32_t>((last_tap(row, 2, start) - 1 - lo) * row.dilation[2] + 1)
    for r in range(1, j.table_rows):
        down = <uint32_t>(r % j.rows * j.stride[1] * row.in_[2])
        for o in range(j.out_w):
            first[r * j.out_w + o] = first[o] + down
            extent[r * j.out_w + o] = extent[o]
    j.windows.first, j.windows.extent = first, extent
    j.windows.plane, j.windows.dilation = <uint32_t>j.in_plane, <uint32_t>row.dilation[2]
    j.windows.pitch[0] = row.dilation[0] * row.in_[1] * row.in_[2]
    j.windows.pitch[1] = row.dilation[1] * row.in_[2]


cdef void check_indices_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: the indices of task_planes planes."""
    cdef PoolJob *j = <PoolJob *>job_
    cdef fc_pool_row row = j.row
    cdef fc_pool_windows windows = j.windows
    cdef ptrdiff_t r = task * j.task_planes * j.rows, end = min(r + j.task_planes * j.rows, j.planes * j.rows)
    cdef ptrdiff_t n, bad = 0, d, h = 0
    while r < end:
        n = min(j.table_rows, end - r if j.table_rows >= j.rows else j.rows - r % j.rows)
        pool_row(j, r % j.rows, &row)
        d = first_tap(&row, 0, row.start[0])
        windows.rows[0], windows.rows[1] = last_tap(&row, 0, row.start[0]) - d, row.kernel[1]
        if j.table_rows == 1:
            h = first_tap(&row, 1, row.start[1])
            windows.rows[1] = last_tap(&row, 1, row.start[1]) - h
        windows.base = <uint32_t>((row.start[0] * row.in_[1] + row.start[1]) * row.in_[2] + d * windows.pitch[0]
                                  + h * windows.pitch[1])
        bad += j.k.max_pool_check(&windows, n * j.out_w, j.index + r * j.out_w)
        r += n
    j.bad[task] = bad


cdef void pool_backward_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: the gradient of task_planes planes."""
    cdef PoolJob *j = <PoolJob *>job_
    cdef fc_pool_row row = j.row
    cdef ptrdiff_t outputs = j.rows * j.out_w, plane = task * j.task_planes
    cdef ptrdiff_t end = min(plane + j.task_planes, j.planes), planes, r
    cdef char *gx
    cdef const char *g
    row.line = scratch
    if j.maximum and not j.checked:
        check_indices_task(j, task, scratch)
        if j.bad[task]:
            return
    if j.whole and not j.maximum:
        j.k.avg_pool_fill(&row, end - plane, j.x + plane * j.es, j.y + plane * j.in_plane * j.es)
        return
    while plane < end:
        planes = min(j.side, end - plane)
        gx, g = j.y + plane * j.in_plane * j.es, j.x + plane * outputs * j.es
        memset(gx, 0, planes * j.in_plane * j.es)
        if j.maximum:
            j.k.max_pool_scatter(planes, outputs, g, j.index + plane * outputs, j.in_plane, gx)
        else:
            for r in range(planes * j.rows):
                pool_row(j, r % j.rows, &row)
                j.k.avg_pool_spread(&row, g + r * j.out_w * j.es, gx + r // j.rows * j.in_plane * j.es)
        plane += planes


cdef ptrdiff_t run_pool_backward(PoolPlan plan, bint maximum, ndarray g, ndarray index, ndarray gx,
                                 bint keep) except -1:
    cdef PoolJob j
    cdef ptrdiff_t bad = 0, table = 0, i, tasks
    cdef int threads = threads_for(plan.work(PyArray_ITEMSIZE(gx)))
    cdef Arena arena
    cdef uint32_t *first
    j.es, j.maximum = PyArray_ITEMSIZE(gx), maximum
    j.k = fc_tables(fc_get_isa())[j.es == 8]
    pool_job(plan, &j)
    j.x, j.y = read(g, j.es, plan.out_size()), written(gx, j.es, plan.x_size())
    tasks = ceil_div(j.planes, j.task_planes)
    if maximum:
        j.index = indices(index, plan.out_size())
        j.table_rows = tabulated_rows(&j)
        table = j.table_rows * j.out_w + 2 * j.k.lanes
    arena = lease(tasks * sizeof(ptrdiff_t) + 2 * table * sizeof(uint32_t) + 64 + threads * j.line_bytes)
    cdef char *lines = <char *>arena.memory
    j.bad = <ptrdiff_t *>(lines + threads * j.line_bytes)
    j.checked = keep
    with nogil:
        if maximum:
            first = <uint32_t *>(j.bad + tasks)
            tabulate_windows(&j, first, first + table)
            if keep:
                run_tasks(check_indices_task, &j, tasks, threads, NULL, 0)
                for i in range(tasks):
                    bad += j.bad[i]
        if not bad:
            run_tasks(pool_backward_task, &j, tasks, threads, lines, j.line_bytes)
        if maximum and not keep:
            for i in range(tasks):
                bad += j.bad[i]
    release(arena)
    return bad


# ---- channels last ----

cdef struct PixelsJob:
    kernels_t k
    size_t es, scratch_bytes
    fc_pool_row row
    ptrdiff_t images, blocks, task_rows  # blocks of row.block channels
    bint maximum
    const char *x
    char *y
    int64_t *index
    ptrdiff_t *bad  # indices outside their windows, one count a task


cdef inline ptrdiff_t counted(PoolPlan plan, int i, ptrdiff_t start) noexcept:
    """Elements of a window along one dimension that a mean counts."""
    cdef ptrdiff_t end = plan.in_[i] + (plan.pad_after[i] if plan.count_include_pad else 0)
    return min(start + plan.kernel[i], end) - (start if plan.count_include_pad else max(<ptrdiff_t>0, start))


cdef ptrdiff_t common_divisor(PoolPlan plan) noexcept:
    """What every window's sum is divided by, or 0 where windows differ."""
    cdef int i
    cdef ptrdiff_t first, divisor = 1
    if plan.divisor:
        return plan.divisor
    for i in range(3):
        first = counted(plan, i, -plan.pad[i])
        if plan.out[i] > 1 and (first != plan.kernel[i] or first != counted(
                plan, i, (plan.out[i] - 1) * plan.stride[i] - plan.pad[i])):
            return 0
        divisor *= first
    return divisor


cdef void pixels_job(PoolPlan plan, PixelsJob *j, ptrdiff_t task_size):
    """Tasks of some `task_size` elements of the output, or of the input of what one window covers."""
    cdef fc_pool_row *row = &j.row
    cdef ptrdiff_t line = 64 // j.es  # channels of a cache line
    fc_set3(row.in_, plan.in_[0], plan.in_[1], plan.in_[2])
    fc_set3(row.kernel, plan.kernel[0], plan.kernel[1], plan.kernel[2])
    fc_set3(row.dilation, plan.dilation[0], plan.dilation[1], plan.dilation[2])
    fc_set3(row.pad_after, plan.pad_after[0], plan.pad_after[1], plan.pad_after[2])
    row.stride[0], row.stride[1], row.step = plan.stride[0], plan.stride[1], plan.stride[2]
    row.pad[0], row.pad[1], row.before = plan.pad[0], plan.pad[1], plan.pad[2]
    row.rows[0], row.rows[1], row.out = plan.out[0], plan.out[1], plan.out[2]
    row.count_include_pad, row.divisor = plan.count_include_pad, common_divisor(plan)
    row.channels, row.block = plan.channels, plan.channels
    j.images, j.index, j.blocks = plan.planes, NULL, 1
    if plan.whole():  # a single column of pixels
        fc_set3(row.in_, 1, plan.in_[0] * plan.in_[1] * plan.in_[2], 1)
        fc_set3(row.kernel, 1, row.in_[1], 1)
        row.pad[0], row.pad[1], row.before = 0, 0, 0
        row.block = min(row.block, ceil_div(ceil_div(task_size, row.in_[1]), 8 * line) * 8 * line)
        j.blocks = ceil_div(row.channels, row.block)
    j.task_rows = max(<ptrdiff_t>1, task_size // (row.out * row.channels))
    j.scratch_bytes = aligned((max(row.in_[2], 2 * row.out) * row.block + 4 * j.k.lanes) * j.es)


cdef inline void first_channel(PixelsJob *j, ptrdiff_t task, fc_pool_row *row, ptrdiff_t *c) noexcept nogil:
    c[0] = task % j.blocks * row.block
    row.block = min(row.block, row.channels - c[0])


cdef void pixels_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: task_rows rows of output pixels, counted over all images; or a block of one's channels."""
    cdef PixelsJob *j = <PixelsJob *>job_
    cdef fc_pool_row row = j.row
    cdef ptrdiff_t r, c, at, rows = row.rows[0] * row.rows[1], image = row.in_[0] * row.in_[1] * row.in_[2]
    cdef ptrdiff_t first = task // j.blocks * j.task_rows
    first_channel(j, task, &row, &c)
    row.line = scratch
    for r in range(first, min(first + j.task_rows, j.images * rows)):
        row.x = j.x + (r // rows * image * row.channels + c) * j.es
        row.start[0] = r % rows // row.rows[1] * row.stride[0] - row.pad[0]
        row.start[1] = r % row.rows[1] * row.stride[1] - row.pad[1]
        at = r * row.out * row.channels + c
        if j.maximum:
            j.k.max_pool_pixels(&row, j.y + at * j.es, NULL if j.index == NULL else j.index + at)
        else:
            j.k.avg_pool_pixels(&row, j.y + at * j.es)


cdef int run_pixels(PoolPlan plan, bint maximum, ndarray x, ndarray y, ndarray index) except -1:
    cdef PixelsJob j
    j.es, j.maximum = PyArray_ITEMSIZE(x), maximum
    j.k = fc_tables(fc_get_isa())[j.es == 8]
    pixels_job(plan, &j, POOL_PIXELS)
    j.x, j.y = read(x, j.es, plan.x_size()), written(y, j.es, plan.out_size())
    if index is not None:
        j.index = indices(index, plan.out_size())
    cdef int threads = threads_for(plan.work(j.es))
    cdef ptrdiff_t tasks = ceil_div(j.images * j.row.rows[0] * j.row.rows[1], j.task_rows) * j.blocks
    cdef Arena arena = lease(threads * j.scratch_bytes)
    with nogil:
        run_tasks(pixels_task, &j, tasks, threads, <char *>arena.memory, j.scratch_bytes)
    release(arena)
    return 0


cdef void check_pixels_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: the indices of task_rows rows of output pixels."""
    cdef PixelsJob *j = <PixelsJob *>job_
    cdef fc_pool_row row = j.row
    cdef ptrdiff_t r, rows = row.rows[0] * row.rows[1], first = task * j.task_rows
    j.bad[task] = 0
    for r in range(first, min(first + j.task_rows, j.images * rows)):
        row.start[0] = r % rows // row.rows[1] * row.stride[0] - row.pad[0]
        row.start[1] = r % row.rows[1] * row.stride[1] - row.pad[1]
        j.bad[task] += j.k.max_pool_pixels_check(&row, j.index + r * row.out * row.channels)


cdef void scatter_pixels_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a block of an image's channels.  Rows of the gradient are zeroed when the first window reaches them."""
    cdef PixelsJob *j = <PixelsJob *>job_
    cdef fc_pool_row row = j.row
    cdef ptrdiff_t r, c, end, at, zeroed = 0, rows = row.rows[0] * row.rows[1], all_rows = row.in_[0] * row.in_[1]
    cdef ptrdiff_t image = task // j.blocks
    cdef char *gx
    first_channel(j, task, &row, &c)
    gx = j.y + (image * all_rows * row.in_[2] * row.channels + c) * j.es
    for r in range(rows + 1):
        row.start[0] = r // row.rows[1] * row.stride[0] - row.pad[0]
        row.start[1] = r % row.rows[1] * row.stride[1] - row.pad[1]
        end = row.start[1] + (row.kernel[1] - 1) * row.dilation[1] + 1
        if row.in_[0] > 1:
            end = (row.start[0] + (row.kernel[0] - 1) * row.dilation[0] + 1) * row.in_[1]
        if r == rows or end > all_rows:
            end = all_rows
        zero_rows(&row, j.es, zeroed, end, gx)
        zeroed = max(zeroed, end)
        if r < rows:
            at = (image * rows + r) * row.out * row.channels + c
            j.k.max_pool_pixels_scatter(&row, j.x + at * j.es, j.index + at, gx)


cdef inline void zero_rows(const fc_pool_row *row, size_t es, ptrdiff_t first, ptrdiff_t last, char *gx) noexcept nogil:
    cdef ptrdiff_t pixel
    if row.block == row.channels and last > first:
        memset(gx + first * row.in_[2] * row.channels * es, 0, (last - first) * row.in_[2] * row.channels * es)
    else:
        for pixel in range(first * row.in_[2], last * row.in_[2]):
            memset(gx + pixel * row.channels * es, 0, row.block * es)


cdef void gather_pixels_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: task_rows rows of the gradient's pixels, counted over all images."""
    cdef PixelsJob *j = <PixelsJob *>job_
    cdef fc_pool_row row = j.row
    cdef ptrdiff_t r, rows = row.in_[0] * row.in_[1], first = task * j.task_rows
    cdef ptrdiff_t image = row.rows[0] * row.rows[1] * row.out * row.channels, at
    cdef char *gx
    row.line = scratch
    memset(scratch, 0, 2 * j.k.lanes * sizeof(int64_t *))  # of no row of outputs are the places known
    for r in range(first, min(first + j.task_rows, j.images * rows)):
        row.start[0], row.start[1] = r % rows // row.in_[1], r % row.in_[1]
        at, gx = r // rows * image, j.y + r * row.in_[2] * row.channels * j.es
        if j.maximum:
            j.k.max_pool_pixels_gather(&row, j.x + at * j.es, j.index + at, gx)
        else:
            j.k.avg_pool_pixels_gather(&row, j.x + at * j.es, gx)


cdef inline ptrdiff_t windows_over(const fc_pool_row *row, int dim, ptrdiff_t stride) noexcept:
    """How many windows reach over one element at most, along one dimension."""
    return ceil_div((row.kernel[dim] - 1) * row.dilation[dim] + 1, stride)


cdef ptrdiff_t run_pixels_backward(PoolPlan plan, bint maximum, ndarray g, ndarray index, ndarray gx) except -1:
    cdef PixelsJob j
    cdef ptrdiff_t bad = 0, i, tasks, line, slots
    cdef int threads = threads_for(plan.work(PyArray_ITEMSIZE(gx)))
    cdef Arena arena
    j.es, j.maximum = PyArray_ITEMSIZE(gx), maximum
    j.k = fc_tables(fc_get_isa())[j.es == 8]
    pixels_job(plan, &j, POOL_PIXELS)
    j.x, j.y = read(g, j.es, plan.out_size()), written(gx, j.es, plan.x_size())
    j.row.block, line = j.row.channels, 64 // j.es
    if maximum:
        j.index = indices(index, plan.out_size())
        tasks = ceil_div(j.images * j.row.rows[0] * j.row.rows[1], j.task_rows)
        arena = lease(tasks * sizeof(ptrdiff_t))
        j.bad = <ptrdiff_t *>arena.memory
        with nogil:
            run_tasks(check_pixels_task, &j, tasks, threads, NULL, 0)
        for i in range(tasks):
            bad += j.bad[i]
        release(arena)
        if bad:
            return bad
    slots = windows_over(&j.row, 0, j.row.stride[0]) * windows_over(&j.row, 1, j.row.stride[1])
    if maximum and slots * windows_over(&j.row, 2, j.row.step) > 2 * j.k.lanes:
        i = ceil_div(<ptrdiff_t>POOL_SHARES, j.images)  # blocks of whole cache lines
        j.row.block = min(j.row.channels, ceil_div(ceil_div(j.row.channels, i), line) * line)
        j.blocks = ceil_div(j.row.channels, j.row.block)
        with nogil:
            run_tasks(scatter_pixels_task, &j, j.images * j.blocks, threads, NULL, 0)
        return 0
    j.task_rows = max(<ptrdiff_t>1, POOL_PIXELS // (j.row.in_[2] * j.row.channels))
    if not maximum:
        slots = 2
    j.scratch_bytes = aligned(slots * j.row.out * j.row.channels * j.es + 2 * j.k.lanes * sizeof(int64_t *))
    arena = lease(threads * j.scratch_bytes)
    with nogil:
        run_tasks(gather_pixels_task, &j, ceil_div(j.images * j.row.in_[0] * j.row.in_[1], j.task_rows), threads,
                  <char *>arena.memory, j.scratch_bytes)
    release(arena)
    return 0


# ---- as Python calls them ----

def max_pool(PoolPlan plan not None, ndarray x not None, ndarray y not None, ndarray index):
    """y = max over windows of x; index (or None) = where, flat in the plane: the first maximum, or the last NaN."""
    if plan.channels:
        run_pixels(plan, True, x, y, index)
    else:
        run_pool(plan, True, x, y, index)


def avg_pool(PoolPlan plan not None, ndarray x not None, ndarray y not None):
    """y = mean over windows of x."""
    if plan.channels:
        run_pixels(plan, False, x, y, None)
    else:
        run_pool(plan, False, x, y, None)


def max_pool_backward(PoolPlan plan not None, ndarray g not None, ndarray index not None, ndarray gx not None,
                      bint keep=True):
    """gx = the gradient of max pooling.  Returns how many indices lie outside their windows; then `keep` leaves gx."""
    if plan.channels:
        return run_pixels_backward(plan, True, g, index, gx)
    return run_pool_backward(plan, True, g, index, gx, keep)


def avg_pool_backward(PoolPlan plan not None, ndarray g not None, ndarray gx not None):
    """gx = the gradient of average pooling."""
    if plan.channels:
        run_pixels_backward(plan, False, g, None, gx)
    else:
        run_pool_backward(plan, False, g, None, gx, False)
