"""Convolution of few pixels: unfolded windows, then a product as in a fully connected layer (linear.pxi).

    X'[n, p][ic, t] = X[ic, (n, p * stride + t * dilation - pad)]        im2col
    output           Y'[n, p][oc]      = X' W^T                          -> Y[n][oc][p]
    input gradient   dX'[n, p][ic, t]  = dY' W                           -> dX, windows added up
    weight gradient  dW[oc][ic, t]     = dY'^T X'

The lanes are channels: a sweep's lanes are pixels, of which there may be less than a vector.  Y' is Y itself where an
image has one output pixel, X' is X where the filter also covers the image.  Filters of one tap, without padding, have
neither X' nor Y': their windows are read where they lie, of any number of pixels,

    for each panel of W, for each block of pixels, a task:
        C[pixels][nr] += X[ic, pixels]^T W[nr, ic]^T, a slice of ic at a time;  C, transposed -> Y

and the input gradient of those of stride 1 is the same with W transposed.

Chellapilla, Puri & Simard, "High Performance Convolutional Neural Networks for Document Processing", IWFHR 2006.
"""

cdef struct MoveJob:
    kernels_t k
    size_t es
    ptrdiff_t channels, pixels  # of an image
    const char *src
    char *dst
    const char *residual
    int activation
    double slope


cdef enum:
    BLOCK_CHANNELS = 64  # of a task that transposes


cdef void to_pixels_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a block of channels of an image [channels][pixels] -> [pixels][channels]."""
    cdef MoveJob *j = <MoveJob *>job_
    cdef ptrdiff_t blocks = ceil_div(j.channels, BLOCK_CHANNELS), c = task % blocks * BLOCK_CHANNELS
    cdef ptrdiff_t image = task // blocks * j.channels * j.pixels
    j.k.transpose(j.src + (image + c * j.pixels) * j.es, j.pixels, min(<ptrdiff_t>BLOCK_CHANNELS, j.channels - c),
                  j.pixels, j.dst + (image + c) * j.es, j.channels)


cdef void to_channels_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a block of channels of an image [pixels][channels] -> [channels][pixels], which is then finished."""
    cdef MoveJob *j = <MoveJob *>job_
    cdef ptrdiff_t blocks = ceil_div(j.channels, BLOCK_CHANNELS), c = task % blocks * BLOCK_CHANNELS
    cdef ptrdiff_t image = task // blocks * j.channels * j.pixels, at = (image + c * j.pixels) * j.es
    cdef ptrdiff_t count = min(<ptrdiff_t>BLOCK_CHANNELS, j.channels - c)
    j.k.transpose(j.src + (image + c) * j.es, j.channels, j.pixels, count, j.dst + at, j.pixels)
    if j.activation or j.residual != NULL:
        j.k.epilogue(j.dst + at, j.pixels, <int>count, <int>j.pixels, NULL,
                     NULL if j.residual == NULL else j.residual + at, j.activation, j.slope)


cdef ptrdiff_t image_pixels(ConvPlan plan) noexcept:
    return plan.out[0] * plan.out[1] * plan.out[2]


cdef void move_pixels(ConvPlan plan, task_t task, ptrdiff_t channels, const char *src, char *dst, const char *residual,
                      int activation, double slope) noexcept:
    """Run a task over the images of the output's size."""
    cdef MoveJob j
    cdef ptrdiff_t tasks = plan.n * ceil_div(channels, BLOCK_CHANNELS)
    j.k, j.es, j.channels, j.pixels = plan.k, plan.es, channels, image_pixels(plan)
    j.src, j.dst, j.residual, j.activation, j.slope = src, dst, residual, activation, slope
    with nogil:
        run_flushed(task, &j, tasks, threads_for(8.0 * plan.n * channels * j.pixels), NULL, 0)


cdef struct WindowsJob:
    kernels_t k
    size_t es
    ptrdiff_t channels, taps, pixels, plane  # of an image; elements between channels
    const ptrdiff_t *at  # [pixel][tap], in a plane; negative where padding is
    const char *x
    char *windows
    char *grad_input


cdef void gather_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a window of X'."""
    cdef WindowsJob *j = <WindowsJob *>job_
    j.k.gather_window(j.channels, j.plane, j.taps, j.at + task % j.pixels * j.taps,
                      j.x + task // j.pixels * j.channels * j.plane * j.es,
                      j.windows + task * j.channels * j.taps * j.es)


cdef void scatter_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a block of channels of dX, which adds up what windows have of it."""
    cdef WindowsJob *j = <WindowsJob *>job_
    cdef ptrdiff_t blocks = ceil_div(j.channels, BLOCK_CHANNELS), c = task % blocks * BLOCK_CHANNELS
    cdef ptrdiff_t n = task // blocks, count = min(<ptrdiff_t>BLOCK_CHANNELS, j.channels - c), p
    cdef char *gx = j.grad_input + (n * j.channels + c) * j.plane * j.es
    memset(gx, 0, count * j.plane * j.es)
    for p in range(j.pixels):
        j.k.scatter_window(count, j.plane, j.taps, j.at + p * j.taps,
                           j.windows + ((n * j.pixels + p) * j.channels + c) * j.taps * j.es, gx)


cdef void find_taps(ConvPlan plan, ptrdiff_t *at) noexcept nogil:
    """Where the taps of each pixel's window lie."""
    cdef const int32_t *tap
    cdef ptrdiff_t od, oh, ow, t, d, h, w
    for od in range(plan.out[0]):
        for oh in range(plan.out[1]):
            for ow in range(plan.out[2]):
                for t in range(plan.taps):
                    tap = plan.tap_offsets + 3 * t
                    d, h, w = od * plan.stride[0] + tap[0], oh * plan.stride[1] + tap[1], ow * plan.stride[2] + tap[2]
                    at[t] = -1
                    if 0 <= d < plan.in_[0] and 0 <= h < plan.in_[1] and 0 <= w < plan.in_[2]:
                        at[t] = (d * plan.in_[1] + h) * plan.in_[2] + w
                at += plan.taps


cdef int move_windows(ConvPlan plan, const char *x, char *windows, char *grad_input) except -1:
    """Unfold x into windows [n, p][ic, t]; or, where grad_input is not NULL, add them up there."""
    cdef WindowsJob j
    cdef int threads = threads_for(8.0 * plan.n * image_pixels(plan) * plan.ic * plan.taps)
    j.k, j.es, j.channels, j.taps, j.pixels = plan.k, plan.es, plan.ic, plan.taps, image_pixels(plan)
    j.plane, j.x, j.windows = plan.in_[0] * plan.in_[1] * plan.in_[2], x, windows
    j.grad_input = grad_input
    cdef Arena arena = lease(aligned(j.pixels * j.taps * sizeof(ptrdiff_t)))
    j.at = <ptrdiff_t *>arena.memory
    with nogil:
        find_taps(plan, <ptrdiff_t *>arena.memory)
        if grad_input == NULL:
            run_tasks(gather_task, &j, plan.n * j.pixels, threads, NULL, 0)
        else:
            run_flushed(scatter_task, &j, plan.n * ceil_div(j.channels, BLOCK_CHANNELS), threads, NULL, 0)
    release(arena)
    return 0


cdef ProductJob im2col_product(ConvPlan plan, bint gradient, const char *weight) noexcept:
    """The product of a pass, as far as its weights go."""
    cdef ProductJob j
    cdef ptrdiff_t depth = plan.ic * plan.taps
    memset(&j, 0, sizeof(j))
    j.k, j.es, j.b, j.m, j.n, j.depth = plan.k, plan.es, weight, plan.n * image_pixels(plan), plan.oc, depth
    j.b_col, j.b_step = depth, 1
    if gradient:
        j.n, j.depth, j.b_col, j.b_step = depth, plan.oc, 1, depth
    j.a_row, j.a_step, j.ldc = j.depth, 1, j.n
    return j


cdef size_t windows_size(ConvPlan plan) noexcept:
    """Bytes of X' where it is no array as it lies."""
    return 0 if plan.full else aligned(plan.n * image_pixels(plan) * plan.ic * plan.taps * plan.es)


cdef size_t pixels_size(ConvPlan plan) noexcept:
    """Bytes of Y'; likewise."""
    return 0 if image_pixels(plan) == 1 else aligned(plan.out_size * plan.es)


cdef const char *find_windows(ConvPlan plan, const char *x, char *memory) except NULL:
    """X': x itself, or in memory."""
    if plan.full:
        return x
    if plan.pointwise:
        move_pixels(plan, to_pixels_task, plan.ic, x, memory, NULL, 0, 0)
    else:
        move_windows(plan, x, memory, NULL)
    return memory


cdef const char *to_pixels(ConvPlan plan, const char *grad_output, char *memory) noexcept:
    """dY': dY itself, or in memory."""
    if image_pixels(plan) == 1:
        return grad_output
    move_pixels(plan, to_pixels_task, plan.oc, grad_output, memory, NULL, 0, 0)
    return memory


# ---- filters of one tap ----

cdef enum:
    TASK_PIXELS = 64


cdef struct OneTapJob:
    ProductJob product  # C[n, p][oc] = X[n, p][ic] W[oc][ic]^T; transposed, it takes residual and activation
    const fc_sweep *sweep  # the same as a sweep: which pixels it reads
    ptrdiff_t pixels, plane, rows  # pixels of an output image; elements between input channels; pixels a task
    bint pixels_first  # a block of pixels meets all panels before the next one does, or a panel all blocks
    ptrdiff_t kept  # panels that a thread packs and keeps: all, one or none, where they have been packed before
    char *y
    size_t c_size, panel_size  # parts of a thread's scratch, in bytes


cdef void find_pixels(const fc_sweep *s, ptrdiff_t pixel, ptrdiff_t count, ptrdiff_t *at) noexcept nogil:
    """Where pixels of the output, flattened over (n, d, h, w), lie in the input."""
    cdef fc_run[TASK_PIXELS] run
    cdef ptrdiff_t first, i
    cdef int r
    for r in range(find_runs(s, pixel, count, run)):
        first = run[r].n * s.in_image + (run[r].d * s.step[0] * s.in_[1] + run[r].h * s.step[1]) * s.in_[2]
        for i in range(run[r].len):
            at[run[r].col + i] = first + (run[r].w + i) * s.step[2]


cdef void one_tap_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a block of pixels x a panel of output channels."""
    cdef OneTapJob *j = <OneTapJob *>job_
    cdef const ProductJob *w = &j.product
    cdef kernels_t k = w.k
    cdef size_t es = w.es
    cdef ptrdiff_t nr = k.nr, blocks = ceil_div(w.m, j.rows), panels = ceil_div(w.n, nr)
    cdef ptrdiff_t panel = task % panels if j.pixels_first else task // blocks, col0 = panel * nr
    cdef ptrdiff_t row0 = (task // panels if j.pixels_first else task % blocks) * j.rows
    cdef ptrdiff_t count = min(j.rows, w.m - row0), tiles = ceil_div(count, k.mr)
    cdef ptrdiff_t slice_, k0, kc, t, i, end, to, zero = 0
    cdef int cols = <int>min(nr, w.n - col0)
    cdef ptrdiff_t[TASK_PIXELS] at
    cdef char *c = scratch
    cdef char *b
    cdef char *memory = scratch + j.c_size + (panel if j.kept > 1 else 0) * j.panel_size
    cdef ptrdiff_t *known = <ptrdiff_t *>memory  # the panel that the thread has packed here; -1: none
    find_pixels(j.sweep, row0, count, at)
    for slice_ in range(w.slices):
        k0 = slice_start(w.depth, slice_, w.slices)
        kc = slice_start(w.depth, slice_ + 1, w.slices) - k0
        if j.kept:
            b = memory + MARK + k0 * nr * es
            if known[0] != panel:
                pack_columns(w, slice_, col0, b)
        else:
            b = packed_columns(w, slice_, col0)
        for t in range(tiles):
            i, end = count * t // tiles, count * (t + 1) // tiles
            k.gemm_rows(1, &zero, kc, w.a + k0 * j.plane * es, at + i, j.plane, b, c + i * nr * es, nr,
                        <int>(end - i), cols, slice_ > 0)
    if j.kept:
        known[0] = panel
    if w.bias != NULL or (w.activation and w.residual == NULL):
        k.epilogue(c, nr, <int>count, cols, NULL if w.bias == NULL else w.bias + col0 * es, NULL,
                   0 if w.residual != NULL else w.activation, w.slope)
    i = 0
    while i < count:  # an image at a time
        end = min(count, i + j.pixels - (row0 + i) % j.pixels)
        to = (((row0 + i) // j.pixels * w.n + col0) * j.pixels + (row0 + i) % j.pixels) * es
        k.transpose(c + i * nr * es, nr, end - i, cols, j.y + to, j.pixels)
        if w.residual != NULL:
            k.epilogue(j.y + to, j.pixels, cols, <int>(end - i), NULL, w.residual + to, w.activation, w.slope)
        i = end


cdef bint has_one_tap(ConvPlan plan, const ProductJob *j, bint gradient) noexcept:
    """Whether a pass has one tap, meets no padding and packs weights, of hardly more bytes than they have."""
    cdef ptrdiff_t nr = plan.k.nr
    cdef bint inside = plan.taps == 1 and not plan.full and (plan.pointwise or not gradient)
    cdef int i
    for i in range(3):
        inside = inside and plan.pad[i] == 0 and (plan.out[i] - 1) * plan.stride[i] < plan.in_[i]
    return inside and (6 * j.n >= nr or j.depth * nr * <ptrdiff_t>j.es <= KEPT_BLOCK) and not has_few_rows(j)


cdef int conv_one_tap(ConvPlan plan, const fc_sweep *sweep, ProductJob *product, char *packed, char *out) except -1:
    """Output or input gradient."""
    cdef OneTapJob j
    cdef int threads = threads_for(plan.flops), i
    cdef ptrdiff_t nr = plan.k.nr, panels = ceil_div(product.n, nr), p, room
    cdef size_t shared = 0, scratch
    plan_product(product)
    j.y, j.sweep, j.pixels, j.plane = out, sweep, image_pixels(plan), sweep.in_[0] * sweep.in_[1] * sweep.in_[2]
    j.rows = max(3 * <ptrdiff_t>plan.k.mr, ceil_div(product.m, ceil_div(PRODUCT_TASKS, panels)))
    j.rows = split(product.m, min(<ptrdiff_t>TASK_PIXELS, j.rows), 1)
    j.pixels_first = product.m > product.n
    j.panel_size = aligned(MARK + product.depth * nr * plan.es)
    room = KEPT_BLOCKS if j.pixels_first else KEPT_BLOCK
    j.kept = panels if j.pixels_first else 1
    if packed != NULL or j.kept * <ptrdiff_t>j.panel_size > room:
        j.kept = 0
        shared = packed_depth(product, product.slices) if packed == NULL else 0
    j.c_size = aligned(j.rows * nr * plan.es)
    scratch = j.c_size + j.kept * j.panel_size
    cdef Arena arena = lease(shared + threads * scratch)
    cdef char *memory = <char *>arena.memory
    product.packed = memory if shared else packed
    if shared:
        product.slice1 = product.slices
        with nogil:
            run_tasks(pack_columns_task, product, product.slices * ceil_div(product.n, product.cols), threads, NULL, 0)
    product.cols = nr
    j.product = product[0]
    with nogil:
        for i in range(threads):
            for p in range(j.kept):
                (<ptrdiff_t *>(memory + shared + i * scratch + j.c_size + p * j.panel_size))[0] = -1
        run_flushed(one_tap_task, &j, panels * ceil_div(product.m, j.rows), threads, memory + shared, scratch)
    release(arena)
    return 0


cdef int conv_im2col_output(ConvPlan plan, const char *x, const char *weight, char *packed, const char *bias,
                            const char *residual, char *out, int activation, double slope) except -1:
    cdef ProductJob j = im2col_product(plan, False, weight)
    cdef size_t windows = windows_size(plan), pixels = pixels_size(plan)
    if has_one_tap(plan, &j, False):
        j.a, j.bias, j.residual, j.activation, j.slope = x, bias, residual, activation, slope
        return conv_one_tap(plan, &plan.output, &j, packed, out)
    cdef Arena arena = lease(windows + pixels)
    cdef char *memory = <char *>arena.memory
    try:
        j.a, j.c, j.bias = find_windows(plan, x, memory), memory + windows, bias
        if not pixels:
            j.c, j.residual, j.activation, j.slope = out, residual, activation, slope
        run_product(&j, packed)
        if pixels:
            move_pixels(plan, to_channels_task, plan.oc, j.c, out, residual, activation, slope)
    finally:
        release(arena)
    return 0


cdef int conv_im2col_input_gradient(ConvPlan plan, const char *grad_output, const char *weight, char *packed,
                                    char *grad_input) except -1:
    cdef ProductJob j = im2col_product(plan, True, weight)
    cdef size_t windows = windows_size(plan), pixels = pixels_size(plan)
    if has_one_tap(plan, &j, True):
        j.a = grad_output
        return conv_one_tap(plan, plan.gradient, &j, packed, grad_input)
    cdef Arena arena = lease(windows + pixels)
    cdef char *memory = <char *>arena.memory
    try:
        j.a, j.c = to_pixels(plan, grad_output, memory + windows), memory if windows else grad_input
        run_product(&j, packed)
        if windows and plan.pointwise:
            move_pixels(plan, to_channels_task, plan.ic, memory, grad_input, NULL, 0, 0)
        elif windows:
            move_windows(plan, NULL, memory, grad_input)
    finally:
        release(arena)
    return 0


cdef int conv_im2col_weight_gradient(ConvPlan plan, const char *grad_output, const char *x,
                                     char *grad_weight) except -1:
    cdef ProductJob j = im2col_product(plan, True, NULL)
    cdef size_t windows = windows_size(plan), pixels = pixels_size(plan)
    cdef Arena arena = lease(windows + pixels)
    cdef char *memory = <char *>arena.memory
    try:
        j.depth, j.m, j.a_row, j.a_step = j.m, plan.oc, 1, plan.oc
        j.a, j.b = to_pixels(plan, grad_output, memory + windows), find_windows(plan, x, memory)
        j.c = grad_weight
        run_product(&j, NULL)
    finally:
        release(arena)
    return 0
