"""Convolution of few pixels: unfolded windows, then a product as in a fully connected layer (linear.pxi).

    X'[n, p][ic, t] = X[ic, (n, p * stride + t * dilation - pad)]        im2col
    output           Y'[n, p][oc]      = X' W^T                          -> Y[n][oc][p]
    input gradient   dX'[n, p][ic, t]  = dY' W                           -> dX, windows added up
    weight gradient  dW[oc][ic, t]     = dY'^T X'

The lanes are channels: a sweep's lanes are pixels, of which there may be less than a vector.  Y' is Y itself where an
image has one output pixel, X' is X where the filter also covers the image.  Filters of one tap, without padding, have
neither X' nor Y', of any number of pixels: see conv_windows.pxi.

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


cdef const char *turn_weights(ConvPlan plan, const char *weight, char *out) noexcept:
    """Filters [ic][t] -> [t][ic]: each is an image of as many pixels as it has taps."""
    cdef MoveJob j
    j.k, j.es, j.channels, j.pixels, j.src, j.dst = plan.k, plan.es, plan.ic, plan.taps, weight, out
    with nogil:
        run_tasks(to_pixels_task, &j, plan.oc * ceil_div(plan.ic, BLOCK_CHANNELS), threads_for(8.0 * plan.weight_size),
                  NULL, 0)
    return out


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

cdef bint has_one_tap(ConvPlan plan, const ProductJob *j, bint gradient) noexcept:
    """Whether a pass has one tap, meets no padding and packs weights, of hardly more bytes than they have."""
    cdef ptrdiff_t nr = plan.k.nr
    cdef bint inside = plan.taps == 1 and not plan.full and (plan.pointwise or not gradient) and meets_no_padding(plan)
    return inside and (6 * j.n >= nr or j.depth * nr * <ptrdiff_t>j.es <= KEPT_BLOCK) and not has_few_rows(j)


cdef int conv_one_tap(ConvPlan plan, const fc_sweep *sweep, ProductJob *product, char *packed, char *out) except -1:
    """Output or input gradient."""
    cdef WindowProduct j
    j.product, j.sweep, j.y = product[0], sweep, out
    begin_window_product(&j, plan, False, False)
    return run_window_product(&j, plan, packed)


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
