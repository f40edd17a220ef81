"""Convolution whose lanes are output channels: filters of one tap, and images whose channels come last.

    Y[n, p][oc] = sum_k X'[n, p][k] W'[oc][k]^T,    k = (ic, t), or (t, ic) where the channels of the input come last

X' are windows that are read where they lie, in the images or in rows of them that were copied with their padding:

    for each block of pixels, for each block of panels of W', a task:
        copy the rows that the windows of these pixels meet          (where there is padding)
        for each panel, for each slice of K:
            C[pixels][nr] += X' W'^T                                 micro-kernel by micro-kernel
        C, transposed -> Y                                           (where the channels of the output come first)

Elements of a window lie in runs: of neighbouring channels, or of taps along w, or of both.  An input gradient of one
tap and stride 1 is the same with W transposed.
"""

cdef enum:
    TURNED_PIXELS = 64  # a task, at most, whose C is transposed,
    TASK_PIXELS = 96  # or is not,
    COPIED_PIXELS = 256  # or whose windows' rows are copied first
    TASK_FLOPS = 1 << 20  # a task, at least
    MOST_COPIED = 4 << 20  # bytes a task
    LONGEST = 4096  # pixels of a line of the output, which is not cut


cdef struct WindowProduct:
    ProductJob product  # C[n, p][oc] = X'[n, p][k] W'[oc][k]^T; transposed, it takes residual and activation
    const fc_sweep *sweep  # the same as a sweep: which pixels it reads
    char *y
    bint x_last, y_last  # whether channels come last
    ptrdiff_t channels, pixels  # of the input; of an output image
    ptrdiff_t rows, lines, blocks  # pixels of a task at most; rows of the output if they are copied; blocks of pixels
    ptrdiff_t[3] kernel, dilation, pad
    ptrdiff_t[3] pitch  # elements between neighbours along d, h, w, of the image or of what is copied of it
    ptrdiff_t[3] copied  # extents of what is copied, in planes, rows, pixels; or 0
    ptrdiff_t planes, channel  # channels, or 1 where they come last, and elements between them
    ptrdiff_t runs, length, step  # of the elements of a window: runs, theirs, and between neighbours
    ptrdiff_t *run  # where runs start, from the first
    bint pixels_first  # a block of pixels meets all panels before the next one does, or a panel all blocks
    ptrdiff_t panels  # a task
    ptrdiff_t kept  # panels that a thread packs and keeps: all, one or none, where they have been packed before
    size_t at_size, copy_size, c_size, panel_size  # parts of a thread's scratch, in bytes


cdef void find_starts(const WindowProduct *j, ptrdiff_t pixel, ptrdiff_t count, ptrdiff_t *at) noexcept nogil:
    """Where the windows of pixels of the output, flattened over (n, d, h, w), start in the input or in its copy."""
    cdef const fc_sweep *s = j.sweep
    cdef ptrdiff_t h0 = pixel // s.out[2] % s.out[1] if j.lines else 0, some, i, first
    cdef fc_run[TASK_PIXELS] run
    cdef int r
    for some from 0 <= some < count by TASK_PIXELS:
        for r in range(find_runs(s, pixel + some, min(<ptrdiff_t>TASK_PIXELS, count - some), run)):
            first = (run[r].h - h0) * s.step[1] * j.pitch[1]
            if not j.lines:
                first += run[r].n * s.in_image + run[r].d * s.step[0] * j.pitch[0]
            for i in range(run[r].len):
                at[some + run[r].col + i] = first + (run[r].w + i) * s.step[2] * j.pitch[2]


cdef void find_run_starts(WindowProduct *j) noexcept nogil:
    """Where the runs of a window start, in the order of W'."""
    cdef ptrdiff_t c, d, h, w, i = 0, depth = j.pitch[0] if j.lines else j.dilation[0] * j.pitch[0]
    cdef ptrdiff_t across = j.kernel[2] if j.x_last and j.length == j.channels else 1
    for c in range(j.planes if j.runs > 1 else 1):
        for d in range(j.kernel[0]):
            for h in range(j.kernel[1]):
                for w in range(across):
                    j.run[i] = (c * j.channel + d * depth + h * j.dilation[1] * j.pitch[1]
                                + w * j.dilation[2] * j.pitch[2])
                    i += 1


cdef void copy_window_rows(const WindowProduct *j, ptrdiff_t block, char *copy) noexcept nogil:
    """The rows that the windows of a block meet, [channel][d][h][w] or [d][h][w][channel], padding included."""
    cdef const fc_sweep *s = j.sweep
    cdef ptrdiff_t high = ceil_div(s.out[1], j.lines), plane = block // high, h0 = block % high * j.lines * s.step[1]
    cdef ptrdiff_t d0 = plane % s.out[0] * s.step[0] - j.pad[0], c, d, h, i, k
    cdef size_t pixel = j.pitch[2] * j.product.es
    cdef ptrdiff_t left = min(j.pad[2], j.copied[2]), right = max(left, min(j.copied[2], s.in_[2] + left))
    cdef const char *x = j.product.a + plane // s.out[0] * s.in_image * j.product.es
    for c in range(j.planes):
        for k in range(j.copied[0]):
            d = d0 + k * j.dilation[0]
            for i in range(j.copied[1]):
                h = h0 - j.pad[1] + i
                if 0 <= d < s.in_[0] and 0 <= h < s.in_[1]:
                    memset(copy, 0, left * pixel)
                    memcpy(copy + left * pixel, x + (((c * s.in_[0] + d) * s.in_[1] + h) * s.in_[2]) * pixel,
                           (right - left) * pixel)
                    memset(copy + right * pixel, 0, (j.copied[2] - right) * pixel)
                else:
                    memset(copy, 0, j.copied[2] * pixel)
                copy += j.copied[2] * pixel


cdef void multiply_windows(const WindowProduct *j, const char *x, const ptrdiff_t *at, ptrdiff_t count, ptrdiff_t col0,
                           ptrdiff_t slice_, const char *b, char *c, ptrdiff_t ldc,
                           const fc_finish *finish) noexcept nogil:
    """C[count][nr] (+)= a slice of K of the product, `finish` (or NULL) with the last one."""
    cdef const ProductJob *w = &j.product
    cdef kernels_t k = w.k
    cdef size_t es = w.es
    cdef ptrdiff_t k0 = slice_start(w.depth, slice_, w.slices), k1 = slice_start(w.depth, slice_ + 1, w.slices)
    cdef ptrdiff_t r = k0 // j.length, skip = k0 - r * j.length, runs, length
    cdef int cols = <int>min(<ptrdiff_t>k.nr, w.n - col0)
    cdef bint first = slice_ == 0
    cdef const char *bias = NULL if w.bias == NULL else w.bias + col0 * es
    while k0 < k1:
        runs, length = 1, min(j.length - skip, k1 - k0)
        if length == j.length:
            runs = (k1 - k0) // length
        k.gemm_rows(runs, j.run + r, length, x + skip * j.step * es, at, j.step, b, c, ldc, count, cols, not first,
                    bias if first else NULL, finish if k0 + runs * length == w.depth else NULL)
        k0 += runs * length
        b += runs * length * k.nr * es
        r, skip, first = (k0 // j.length), k0 % j.length, False


cdef void window_product_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a block of pixels x a block of panels of output channels."""
    cdef WindowProduct *j = <WindowProduct *>job_
    cdef const ProductJob *w = &j.product
    cdef kernels_t k = w.k
    cdef size_t es = w.es
    cdef ptrdiff_t nr = k.nr, panels = ceil_div(w.n, nr), groups = ceil_div(panels, j.panels), panel, slice_
    cdef ptrdiff_t group = task % groups if j.pixels_first else task // j.blocks, col0, high, h0
    cdef ptrdiff_t block = task // groups if j.pixels_first else task % j.blocks, row0 = block * j.rows, count
    cdef ptrdiff_t *at = <ptrdiff_t *>scratch
    cdef char *copy = scratch + j.at_size
    cdef char *c
    cdef char *packed
    cdef char *memory
    cdef const char *x = w.a
    cdef fc_finish finish
    if j.lines:
        high = ceil_div(j.sweep.out[1], j.lines)
        h0 = block % high * j.lines
        row0 = (block // high * j.sweep.out[1] + h0) * j.sweep.out[2]
        count = min(j.lines, j.sweep.out[1] - h0) * j.sweep.out[2]
        x = copy + MARK
        if (<ptrdiff_t *>copy)[0] != block:
            copy_window_rows(j, block, copy + MARK)
            (<ptrdiff_t *>copy)[0] = block
    else:
        count = min(j.rows, w.m - row0)
    find_starts(j, row0, count, at)
    for panel in range(group * j.panels, min(panels, (group + 1) * j.panels)):
        col0 = panel * nr
        c = scratch + j.at_size + j.copy_size
        memory = c + j.c_size + (panel if j.kept > 1 else 0) * j.panel_size
        finish.activation, finish.residual = finished_activation(w.activation), NULL
        if j.y_last:
            c = j.y + (row0 * w.n + col0) * es
            if w.residual != NULL:
                finish.residual = w.residual + (row0 * w.n + col0) * es
        elif w.residual != NULL:
            finish.activation = 0
        for slice_ in range(w.slices):
            if j.kept:
                packed = memory + MARK + slice_start(w.depth, slice_, w.slices) * nr * es
                if (<ptrdiff_t *>memory)[0] != panel:
                    pack_columns(w, slice_, col0, packed)
            else:
                packed = packed_columns(w, slice_, col0)
            multiply_windows(j, x, at, count, col0, slice_, packed, c, w.n if j.y_last else nr,
                             &finish if finish.activation or finish.residual != NULL else NULL)
        if j.kept:
            (<ptrdiff_t *>memory)[0] = panel
        finish_windows(j, row0, count, col0, c)


cdef void finish_windows(const WindowProduct *j, ptrdiff_t row0, ptrdiff_t count, ptrdiff_t col0,
                         char *c) noexcept nogil:
    """What the micro-kernel has left to do: other activations; and to transpose C, an image at a time."""
    cdef const ProductJob *w = &j.product
    cdef size_t es = w.es
    cdef ptrdiff_t nr = w.k.nr, ldc = w.n if j.y_last else nr, i = 0, end, to
    cdef int cols = <int>min(nr, w.n - col0)
    if (j.y_last or w.residual == NULL) and w.activation != finished_activation(w.activation):
        w.k.epilogue(c, ldc, <int>count, cols, NULL, NULL, w.activation, w.slope)
    while i < count and not j.y_last:
        end = min(count, i + j.pixels - (row0 + i) % j.pixels)
        to = (((row0 + i) // j.pixels * w.n + col0) * j.pixels + (row0 + i) % j.pixels) * es
        w.k.transpose(c + i * nr * es, nr, end - i, cols, j.y + to, j.pixels)
        if w.residual != NULL:
            w.k.epilogue(j.y + to, j.pixels, cols, <int>(end - i), NULL, w.residual + to, w.activation, w.slope)
        i = end


cdef void plan_window_product(WindowProduct *j) noexcept:
    """Pixels and panels of a task: enough tasks for threads to share evenly, and hardly one that is not worth it."""
    cdef const fc_sweep *s = j.sweep
    cdef const ProductJob *w = &j.product
    cdef ptrdiff_t mr = w.k.mr, panels = ceil_div(w.n, w.k.nr), blocks = ceil_div(PRODUCT_TASKS, panels), least
    j.pixels_first = w.m > w.n
    if j.lines:
        least = ceil_div(3 * mr, s.out[2])
        j.lines = max(least, min(COPIED_PIXELS // s.out[2], s.n * s.out[0] * s.out[1] // PRODUCT_TASKS))
        j.lines = split(s.out[1], max(j.lines, <ptrdiff_t>1), 1)
        j.rows = j.lines * s.out[2]
        j.blocks = s.n * s.out[0] * ceil_div(s.out[1], j.lines)
        j.panels = max(<ptrdiff_t>1, panels * j.blocks // PRODUCT_TASKS)
    else:
        j.rows = min(<ptrdiff_t>TASK_PIXELS if j.y_last else TURNED_PIXELS, max(3 * mr, ceil_div(w.m, blocks)))
        j.rows = split(w.m, j.rows, mr)
        j.blocks = ceil_div(w.m, j.rows)
        j.panels = TASK_FLOPS // (2 * j.rows * w.depth * w.k.nr) + 1
        j.panels = max(<ptrdiff_t>1, min(j.panels, panels * j.blocks // PRODUCT_TASKS))
    j.panels = ceil_div(panels, ceil_div(panels, min(panels, j.panels)))


cdef bint meets_no_padding(ConvPlan plan) noexcept:
    """Whether all windows lie inside the image."""
    cdef int i
    for i in range(3):
        if plan.pad[i] or (plan.out[i] - 1) * plan.stride[i] + (plan.kernel[i] - 1) * plan.dilation[i] >= plan.in_[i]:
            return False
    return True


cdef void find_extents(WindowProduct *j, ConvPlan plan) noexcept:
    """How elements of the input lie, and whether, and how much of it, a task copies."""
    cdef const fc_sweep *s = j.sweep
    cdef ptrdiff_t unit = j.channels if j.x_last else 1, width = s.in_[2], height = s.in_[1], depth = s.in_[0]
    j.lines = 0 if meets_no_padding(plan) else 1
    plan_window_product(j)
    j.copied[0] = j.copied[1] = j.copied[2] = 0
    if j.lines:
        depth = j.copied[0] = j.kernel[0]
        height = j.copied[1] = (j.lines - 1) * s.step[1] + (j.kernel[1] - 1) * j.dilation[1] + 1
        width = j.copied[2] = (s.out[2] - 1) * s.step[2] + (j.kernel[2] - 1) * j.dilation[2] + 1
    j.pitch[2], j.pitch[1], j.pitch[0] = unit, width * unit, height * width * unit
    j.planes, j.channel = 1 if j.x_last else j.channels, depth * j.pitch[0]
    if plan.taps == 1:
        j.runs, j.length, j.step = 1, j.channels, 1 if j.x_last else j.channel
    elif not j.x_last:
        j.runs, j.length, j.step = j.channels * j.kernel[0] * j.kernel[1], j.kernel[2], j.dilation[2]
    elif j.dilation[2] == 1:
        j.runs, j.length, j.step = j.kernel[0] * j.kernel[1], j.kernel[2] * j.channels, 1
    else:
        j.runs, j.length, j.step = plan.taps, j.channels, 1


cdef void begin_window_product(WindowProduct *j, ConvPlan plan, bint x_last, bint y_last) noexcept:
    """All but the arrays of a job whose product and sweep are set."""
    cdef int i
    j.channels, j.x_last, j.y_last, j.pixels = j.product.depth // plan.taps, x_last, y_last, image_pixels(plan)
    for i in range(3):
        j.kernel[i], j.dilation[i], j.pad[i] = plan.kernel[i], plan.dilation[i], plan.pad[i]
    plan_product(&j.product)
    find_extents(j, plan)
    j.copy_size = aligned(MARK + j.planes * j.copied[0] * j.pitch[0] * plan.es) if j.lines else 0


cdef size_t turned_size(ConvPlan plan, bint x_last) noexcept:
    """Bytes of W' where it is not W as it lies."""
    return aligned(plan.weight_size * plan.es) if x_last and plan.taps > 1 else 0


cdef int run_window_product(WindowProduct *j, ConvPlan plan, char *packed) except -1:
    """The job, begun, with its arrays; `packed` may be NULL."""
    cdef ProductJob *w = &j.product
    cdef int threads = threads_for(plan.flops), i
    cdef ptrdiff_t nr = plan.k.nr, panels = ceil_div(w.n, nr), p, room
    cdef size_t shared = 0, scratch, table, turned
    cdef ptrdiff_t *mark
    j.panel_size = aligned(MARK + w.depth * nr * plan.es)
    room = KEPT_BLOCKS if j.pixels_first else KEPT_BLOCK
    j.kept = panels if j.pixels_first else 1
    if packed != NULL or j.kept * <ptrdiff_t>j.panel_size > room:
        j.kept = 0
        shared = packed_depth(w, w.slices) if packed == NULL else 0
    j.at_size = aligned(j.rows * sizeof(ptrdiff_t))
    j.c_size = 0 if j.y_last else aligned(j.rows * nr * plan.es)
    scratch = j.at_size + j.copy_size + j.c_size + j.kept * j.panel_size
    table = aligned(j.runs * sizeof(ptrdiff_t))
    turned = turned_size(plan, j.x_last) if packed == NULL else 0
    cdef Arena arena = lease(table + turned + shared + threads * scratch)
    cdef char *memory = <char *>arena.memory
    j.run = <ptrdiff_t *>memory
    memory += table
    if turned:
        w.b = turn_weights(plan, w.b, memory)
        memory += turned
    w.packed = memory if shared else packed
    if shared:
        w.slice1 = w.slices
        with nogil:
            run_tasks(pack_columns_task, w, w.slices * ceil_div(w.n, w.cols), threads, NULL, 0)
    memory += shared
    w.cols = nr
    with nogil:
        find_run_starts(j)
        for i in range(threads):
            if j.lines:
                (<ptrdiff_t *>(memory + i * scratch + j.at_size))[0] = -1
            for p in range(j.kept):
                mark = <ptrdiff_t *>(memory + (i + 1) * scratch - (p + 1) * j.panel_size)
                mark[0] = -1
        run_flushed(window_product_task, j, j.blocks * ceil_div(panels, j.panels), threads, memory, scratch)
    release(arena)
    return 0


# ---- images whose channels come last ----

def reads_windows(ConvPlan plan not None, bint x_last):
    """Whether `conv_windows_output` computes a plan's output: not what Winograd does, nor few pixels or long lines."""
    cdef WindowProduct j
    if plan.groups > 1 or plan.winograd_output.r:
        return False
    j.product = im2col_product(plan, False, NULL)
    if has_few_rows(&j.product):
        return False
    j.sweep = &plan.output
    begin_window_product(&j, plan, x_last, True)
    return not j.lines or (plan.out[2] <= LONGEST and j.copy_size <= MOST_COPIED)


def pack_windows_weight(ConvPlan plan not None, ndarray weight not None, bint x_last):
    """The weights as `conv_windows_output` reads them."""
    cdef const char *pw = read(weight, plan.es, plan.weight_size)
    cdef size_t turned = turned_size(plan, x_last)
    cdef ProductJob j = im2col_product(plan, False, pw)
    cdef Arena arena
    if not turned:
        return packed_product(&j)
    arena = lease(turned)
    try:
        j.b = turn_weights(plan, pw, <char *>arena.memory)
        return packed_product(&j)
    finally:
        release(arena)


def conv_windows_output(ConvPlan plan not None, ndarray x not None, ndarray weight not None, ndarray bias,
                        ndarray residual, ndarray out not None, int activation, double slope, bint x_last,
                        Panels panels=None):
    """`conv_output` to an array (n, ..., oc), of one (n, ..., ic) or (n, ic, ...)."""
    cdef WindowProduct j
    j.product = im2col_product(plan, False, read(weight, plan.es, plan.weight_size))
    j.sweep = &plan.output
    begin_window_product(&j, plan, x_last, True)
    j.product.a, j.product.bias = read(x, plan.es, plan.x_size), read(bias, plan.es, plan.oc)
    j.product.residual, j.y = read(residual, plan.es, plan.out_size), written(out, plan.es, plan.out_size)
    j.product.activation, j.product.slope = activation, slope
    run_window_product(&j, plan, panels_memory(panels))
