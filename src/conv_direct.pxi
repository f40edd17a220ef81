"""Direct convolution of few channels, of images: depthwise, small groups, the first layer of a network.

Output and input gradient are sweeps (micro.h) as in conv_gemm.pxi and share its packed weights; what differs is that
pixels are not packed.  A task owns some output rows of one image and group:

    copy the input rows that they read, padded, phases apart      [channel][phase][row][pitch], L1 or L2
    for each row panel of the weights:
        C[mr][slots] = sum_k A[k][mr] * rows[slot + offset[k]]    micro/direct.h

In the weight gradient lanes are pixels and every (oc, ic, tap) is a dot product, taken for up to nine taps at a time; a
task owns a group and a fixed share of the images.

Where a group has one input channel (depthwise), filters of up to seven rows have kernels of their own: see
micro/depthwise.h.
"""

cdef enum:
    TILE_SLOTS = 3  # of a register tile of 8 rows
    SLOTS = 2 * TILE_SLOTS
    SLOT_BYTES = 12 << 10  # of pixels that stay in L1
    COMPRESS = 20  # multiply-adds that a store with a gap takes as long as
    SLACK = 16  # elements behind the rows of a phase, which the last vector, of 16 at most, may read or spill into

cdef struct RowWindow:
    ptrdiff_t h, w  # least tap offsets
    ptrdiff_t rows, span  # greatest minus least tap offset along h, along w
    ptrdiff_t pitch, phase, plane  # of the copied rows: a row, the rows of a phase, a channel


cdef RowWindow row_window(const fc_sweep *sweep, int sweeps, ptrdiff_t out_rows) noexcept nogil:
    """Layout of the input rows under `out_rows` output rows of all sweeps."""
    cdef RowWindow v
    cdef const fc_sweep *s
    cdef ptrdiff_t t, width = 0
    cdef int i
    v.h, v.w, v.rows, v.span = sweep.taps[1], sweep.taps[2], 0, 0
    for i in range(sweeps):
        s = sweep + i
        width = max(width, s.out[2])
        for t in range(s.ntaps):
            v.h, v.w = min(v.h, <ptrdiff_t>s.taps[3 * t + 1]), min(v.w, <ptrdiff_t>s.taps[3 * t + 2])
    for i in range(sweeps):
        s = sweep + i
        for t in range(s.ntaps):
            v.rows, v.span = max(v.rows, s.taps[3 * t + 1] - v.h), max(v.span, s.taps[3 * t + 2] - v.w)
    v.pitch = width + v.span // sweep.step[2]
    v.phase = (out_rows + v.rows // sweep.step[1]) * v.pitch + SLACK
    v.plane = sweep.step[1] * sweep.step[2] * v.phase
    return v


cdef void copy_rows(kernels_t k, size_t es, const fc_sweep *s, const RowWindow *v, const char *x, ptrdiff_t n,
                    ptrdiff_t g, ptrdiff_t h0, ptrdiff_t out_rows, char *rows) noexcept nogil:
    """Input rows under output rows h0 .. h0 + out_rows of an image, channels of a group."""
    cdef fc_copy copy
    cdef ptrdiff_t c, first = h0 * s.step[1] + v.h, count = (out_rows - 1) * s.step[1] + v.rows + 1
    cdef size_t plane = s.in_[1] * s.in_[2] * es
    copy.height, copy.width, copy.left, copy.columns = s.in_[1], s.in_[2], v.w, v.pitch
    copy.step[0], copy.step[1], copy.row, copy.phase = s.step[1], s.step[2], v.pitch, v.phase
    copy.end = x + s.n * s.in_image * es
    x += n * s.in_image * es + g * s.channels * plane
    for c in range(s.channels):
        k.copy_rows(&copy, x + c * plane, first, count, rows + c * v.plane * es)


cdef inline ptrdiff_t row_offset(const fc_sweep *s, const RowWindow *v, ptrdiff_t tap) noexcept nogil:
    """Where tap `tap` of a channel starts in the copied rows, relative to its output pixel."""
    cdef ptrdiff_t h = s.taps[3 * tap + 1] - v.h, w = s.taps[3 * tap + 2] - v.w
    return (h % s.step[1] * s.step[2] + w % s.step[2]) * v.phase + h // s.step[1] * v.pitch + w // s.step[2]


cdef inline uint32_t lane_bits(ptrdiff_t first, ptrdiff_t last) noexcept nogil:
    return (<uint32_t>1 << last) - (<uint32_t>1 << first)


cdef ptrdiff_t find_slots(kernels_t k, const fc_sweep *s, const RowWindow *v, ptrdiff_t out_rows,
                          fc_slot *slot) noexcept nogil:
    """Slots of some output rows: of each by itself, or running on from row to row if that takes fewer."""
    cdef ptrdiff_t lanes = k.lanes, width = s.out[2], slots = 0, at, h, w
    cdef ptrdiff_t flat = ceil_div(ceil_div((out_rows - 1) * v.pitch + width, lanes), TILE_SLOTS) * TILE_SLOTS
    cdef ptrdiff_t saved = ceil_div(out_rows * ceil_div(width, lanes), TILE_SLOTS) * TILE_SLOTS - flat
    if (s.out_pixel[2] == 1 and s.out_pixel[1] == width
            and saved * s.ntaps * s.channels > COMPRESS * flat):
        for at from 0 <= at < (out_rows - 1) * v.pitch + width by lanes:
            slot[slots].in_, slot[slots].bits = at, 0
            slot[slots].out = at // v.pitch * width + min(at % v.pitch, width)
            for h in range(at // v.pitch, min((at + lanes - 1) // v.pitch + 1, out_rows)):
                w = h * v.pitch - at  # lane of the row's first pixel
                if w + width > 0:
                    slot[slots].bits |= lane_bits(max(w, <ptrdiff_t>0), min(w + width, lanes))
            if slot[slots].bits:
                slots += 1
        return slots
    for h in range(out_rows):
        for w from 0 <= w < width by lanes:
            slot[slots].in_ = h * v.pitch + w
            slot[slots].out = h * s.out_pixel[1] + w * s.out_pixel[2]
            slot[slots].bits = lane_bits(0, min(lanes, width - w))
            slots += 1
    return slots


cdef ptrdiff_t direct_blocks(const SweepJob *j) noexcept nogil:
    """Blocks of rows of an image: those of the highest sweep."""
    cdef ptrdiff_t blocks = 0
    cdef int i
    for i in range(j.sweeps):
        blocks = max(blocks, ceil_div(j.sweep[i].out[1], j.direct_rows))
    return blocks


cdef void direct_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: direct_rows output rows of one image and group, of every sweep: they read the same rows."""
    cdef SweepJob *j = <SweepJob *>job_
    cdef const fc_sweep *s = j.sweep
    cdef ptrdiff_t blocks = direct_blocks(j), h0 = task % blocks * j.direct_rows, height = 0
    cdef ptrdiff_t g = task // blocks % j.groups, n = task // blocks // j.groups
    cdef RowWindow v = row_window(s, j.sweeps, j.direct_rows)
    cdef int i
    for i in range(j.sweeps):
        height = max(height, s[i].out[1])
    copy_rows(j.k, j.es, s, &v, j.x, n, g, h0, min(j.direct_rows, height - h0), scratch)
    for i in range(j.sweeps):
        if h0 < s[i].out[1]:
            direct_sweep(j, s + i, &v, g, n, h0, scratch)


cdef void direct_sweep(const SweepJob *j, const fc_sweep *s, const RowWindow *v, ptrdiff_t g, ptrdiff_t n, ptrdiff_t h0,
                       char *scratch) noexcept nogil:
    """Output rows of one sweep from the copied rows in `scratch`."""
    cdef kernels_t k = j.k
    cdef size_t es = j.es
    cdef ptrdiff_t out_rows = min(j.direct_rows, s.out[1] - h0), depth = s.ntaps * s.channels
    cdef ptrdiff_t base = s.out_base + n * s.out_image + g * s.rows * s.out_channel + h0 * s.out_pixel[1], at
    cdef const char *a = j.packed + (s.packed + g * packed_size(k, s)) * es
    cdef char *rows = scratch
    cdef ptrdiff_t *offset = <ptrdiff_t *>(scratch + j.b_size)
    cdef fc_slot *slot = <fc_slot *>(scratch + j.b_size + j.runs_size)
    cdef ptrdiff_t i, slots, t, c, most = 8
    cdef fc_finish finish
    cdef bint finishes = j.activation or j.residual != NULL  # an output, whose rows follow one another
    finish.activation = finished_activation(j.activation)
    for c in range(s.channels):  # k = (channel, tap): a channel's rows stay in L1 for all taps
        for t in range(s.ntaps):
            offset[c * s.ntaps + t] = c * v.plane + (offset[t] if c > 0 else row_offset(s, v, t))
    slots = find_slots(k, s, v, out_rows, slot)
    for i in range(most):  # what fills the last tile up reads the first slot and stores nothing
        slot[slots + i] = slot[0]
        slot[slots + i].bits = 0
    # Where rows take several panels, some slots see all of them before the next: their pixels stay in L1, and the
    # weights stream from L2.
    cdef ptrdiff_t some = max(<ptrdiff_t>SLOTS, SLOT_BYTES // (s.channels * k.lanes * es) // SLOTS * SLOTS)
    if s.rows <= k.mr:
        some = slots
    for at from 0 <= at < slots by some:
        for i from 0 <= i < s.rows by k.mr:
            if finishes:
                finish.residual = (NULL if j.residual == NULL else j.residual + (base + i * s.out_channel) * es)
            k.direct(<int>min(<ptrdiff_t>k.mr, s.rows - i), min(some, slots - at), depth, a + i * depth * es, rows,
                     offset, slot + at, j.out + (base + i * s.out_channel) * es, s.out_channel, s.out_pixel[2],
                     NULL if j.bias == NULL else j.bias + (g * s.rows + i) * es, &finish if finishes else NULL)
    if j.activation != finish.activation:
        k.epilogue(j.out + base * es, s.out_channel, <int>s.rows, <int>(out_rows * s.out[2]), NULL, NULL, j.activation,
                   j.slope)


cdef enum:
    MAX_PARTIAL = 8 << 20  # bytes of the shares' sums, where there is more than one


cdef ptrdiff_t partial_shares(ConvPlan plan, ptrdiff_t most):
    """Shares, at most, that a weight gradient is summed over."""
    return max(<ptrdiff_t>1, min(most, <ptrdiff_t>(MAX_PARTIAL // (plan.weight_size * plan.es))))


cdef ptrdiff_t image_shares(ConvPlan plan):
    """Shares of the images that a weight gradient by groups is summed over."""
    return partial_shares(plan, min(plan.n, ceil_div(16, plan.groups)))


# ---- depthwise ----

cdef enum:
    DEPTHWISE_WORK = 4  # a multiply-add of these takes as long as so many of a matrix product
    BAND_WIDTH = 512  # outputs of a row, at most, whose input is copied at once
    BAND_BYTES = 4 << 10  # of the copy, which stays in L1
    BAND_ROWS = 8  # that all tiles divide


cdef struct DepthwiseJob:
    kernels_t k
    size_t es
    fc_plane plane
    ptrdiff_t groups, rows, taps  # rows: filters of a channel
    ptrdiff_t planes, task_planes, blocks, block_rows  # planes of x, those of a task; blocks of rows of a plane
    const char *x
    const char *weight
    const char *bias
    const char *residual
    char *y
    int activation
    double slope
    bint spread
    size_t band_size  # bytes of a thread's copy
    ptrdiff_t shares  # of the images, in a weight gradient
    size_t sums_size  # a thread's scratch there


cdef bint depthwise_plane(ConvPlan plan, fc_plane *p):
    """Whether depthwise.h serves: one channel a group, 1, 3, 5 or 7 rows of taps, step 1 or 2, no dilation."""
    cdef ptrdiff_t rows = plan.kernel[1]
    cdef int i
    if (plan.ic != 1 or plan.in_[0] != 1 or plan.kernel[0] != 1 or plan.pad[0] != 0 or rows > 7 or rows % 2 == 0
            or plan.dilation[1] != 1 or plan.dilation[2] != 1 or plan.stride[2] > 2
            or plan.stride[1] != plan.stride[2]
            and (plan.in_[1] != 1 or plan.out[1] != 1 or rows != 1 or plan.pad[1] != 0)):
        return False
    for i in range(2):
        p.in_[i], p.out[i], p.kernel[i] = plan.in_[i + 1], plan.out[i + 1], plan.kernel[i + 1]
    p.step, p.weight_step, p.top, p.left = plan.stride[2], 1, -plan.pad[1], -plan.pad[2]
    return True


cdef void depthwise_job(ConvPlan plan, const char *x, ptrdiff_t rows, bint spread, DepthwiseJob *j):
    """What all passes have in common, and the band: as many output rows, or pairs, as let the copy stay in L1, but
    no less than the tiles have."""
    cdef fc_plane *p = &j.plane
    cdef ptrdiff_t lanes = plan.k.lanes, step = 1 if spread else p.step, per = 2 if spread else 1, in_rows
    j.k, j.es, j.groups, j.rows, j.taps, j.spread = plan.k, plan.es, plan.groups, rows, plan.taps, spread
    j.planes, j.x = plan.n * plan.groups, x
    p.end = x + j.planes * p.in_[0] * p.in_[1] * j.es
    p.band_cols = p.out[1] // per + per - 1
    p.band_cols = ceil_div(ceil_div(p.band_cols, ceil_div(p.band_cols, BAND_WIDTH)), lanes) * lanes
    p.pitch = (ceil_div(p.band_cols + (p.kernel[1] - 1) // p.step, lanes) + 1) * lanes  # with what vectors spill
    in_rows = BAND_BYTES // (step * p.pitch * j.es)
    p.band_rows = max(<ptrdiff_t>1, min((in_rows - p.kernel[0]) // step // BAND_ROWS,
                                        ceil_div(p.out[0] // per + per - 1, BAND_ROWS))) * BAND_ROWS
    j.band_size = aligned((((p.band_rows - 1) * step + p.kernel[0]) * step * p.pitch + lanes) * j.es)


cdef void depthwise_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: some rows of some planes, or all rows."""
    cdef DepthwiseJob *j = <DepthwiseJob *>job_
    cdef size_t es = j.es
    cdef fc_plane p = j.plane
    cdef ptrdiff_t plane0 = task // j.blocks * j.task_planes, plane, i, at, row, count, size = p.out[0] * p.out[1]
    cdef const char *x
    cdef const char *w
    cdef fc_finish finish
    finish.activation = finished_activation(j.activation)
    p.band = scratch
    p.first = task % j.blocks * j.block_rows
    p.last = min(p.first + j.block_rows, p.out[0])
    count = (p.last - p.first) * p.out[1]
    for plane in range(plane0, min(plane0 + j.task_planes, j.planes)):
        x = j.x + plane * p.in_[0] * p.in_[1] * es
        for i in range(j.rows):
            row = plane % j.groups * j.rows + i
            w = j.weight + (row * j.taps + (0 if p.weight_step > 0 else j.taps - 1)) * es
            at = (plane * j.rows + i) * size
            if j.spread:
                j.k.depthwise_spread(&p, x, w, j.y + at * es)
                continue
            finish.residual = NULL if j.residual == NULL else j.residual + at * es
            j.k.depthwise(&p, x, w, NULL if j.bias == NULL else j.bias + row * es,
                          &finish if finish.activation or j.residual != NULL else NULL, j.y + at * es)
            if j.activation != finish.activation:
                at += p.first * p.out[1]
                j.k.epilogue(j.y + at * es, count, 1, <int>count, NULL, NULL, j.activation, j.slope)


cdef int run_depthwise(DepthwiseJob *j, double flops) except -1:
    cdef fc_plane *p = &j.plane
    cdef int threads = threads_for(DEPTHWISE_WORK * flops)
    j.blocks = 1 if j.spread else max(<ptrdiff_t>1, min(16 // j.planes, p.out[0] // BAND_ROWS))
    j.block_rows = ceil_div(ceil_div(p.out[0], j.blocks), BAND_ROWS) * BAND_ROWS
    j.blocks = ceil_div(p.out[0], j.block_rows)
    j.task_planes = max(<ptrdiff_t>1, min(8192 // (p.out[0] * p.out[1]), j.planes // 16))
    cdef Arena arena = lease(threads * j.band_size)
    with nogil:
        run_flushed(depthwise_task, j, ceil_div(j.planes, j.task_planes) * j.blocks, threads, <char *>arena.memory,
                    j.band_size)
    release(arena)
    return 0


cdef int conv_depthwise_output(ConvPlan plan, const SweepJob *sweep) except -1:
    """The output by depthwise.h; returns whether it serves."""
    cdef DepthwiseJob j
    if not depthwise_plane(plan, &j.plane):
        return 0
    depthwise_job(plan, sweep.x, plan.oc, False, &j)
    j.weight, j.bias, j.residual, j.y = sweep.weight, sweep.bias, sweep.residual, sweep.out
    j.activation, j.slope = sweep.activation, sweep.slope
    run_depthwise(&j, plan.flops)
    return 1


cdef int conv_depthwise_input_gradient(ConvPlan plan, const SweepJob *sweep) except -1:
    """The input gradient by depthwise.h; returns whether it serves."""
    cdef DepthwiseJob j
    cdef fc_plane *p = &j.plane
    cdef int i
    if plan.oc != 1 or not depthwise_plane(plan, p):
        return 0
    for i in range(2):
        p.in_[i], p.out[i] = plan.out[i + 1], plan.in_[i + 1]
    depthwise_job(plan, sweep.x, 1, p.step == 2, &j)
    j.weight, j.bias, j.residual, j.y = sweep.weight, NULL, NULL, sweep.out
    j.activation, j.slope = 0, 0
    if p.step == 1:
        p.weight_step, p.top, p.left = -1, 1 - p.kernel[0] - p.top, 1 - p.kernel[1] - p.left
    run_depthwise(&j, plan.flops)
    return 1


cdef void depthwise_weights_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: the weight gradient of one channel over one share of the images."""
    cdef DepthwiseJob *j = <DepthwiseJob *>job_
    cdef size_t es = j.es
    cdef fc_plane p = j.plane
    cdef ptrdiff_t g = task % j.groups, share = task // j.groups, images = j.planes // j.groups, n, i, tap
    p.band = scratch + j.sums_size
    for i in range(j.rows):
        memset(scratch, 0, j.sums_size)
        for n in range(images * share // j.shares, images * (share + 1) // j.shares):
            j.k.depthwise_dot(&p, j.x + (n * j.groups + g) * p.in_[0] * p.in_[1] * es,
                              j.weight + ((n * j.groups + g) * j.rows + i) * p.out[0] * p.out[1] * es, scratch)
        for tap in range(j.taps):
            j.k.sum(j.k.lanes, scratch + tap * j.k.lanes * es,
                    j.y + (((share * j.groups + g) * j.rows + i) * j.taps + tap) * es)


cdef int conv_depthwise_weight_gradient(ConvPlan plan, const char *grad_output, const char *x,
                                        char *grad_weight) except -1:
    """The weight gradient by depthwise.h; returns whether it serves.  Images are cut into shares, summed pairwise."""
    cdef DepthwiseJob j
    cdef int threads = threads_for(DEPTHWISE_WORK * plan.flops)
    cdef ptrdiff_t weights = plan.groups * plan.oc * plan.taps
    if not depthwise_plane(plan, &j.plane):
        return 0
    depthwise_job(plan, x, plan.oc, False, &j)
    j.weight = grad_output
    j.plane.first, j.plane.last = 0, j.plane.out[0]
    j.shares = image_shares(plan)
    j.sums_size = aligned(plan.taps * j.k.lanes * j.es)
    cdef size_t partial = aligned(j.shares * weights * j.es), scratch = j.sums_size + j.band_size
    cdef Arena arena = lease(partial + threads * scratch)
    j.y = <char *>arena.memory
    with nogil:
        run_flushed(depthwise_weights_task, &j, j.groups * j.shares, threads, j.y + partial, scratch)
        pairwise(j.k, j.es, j.y, weights, j.shares, weights)
        memcpy(grad_weight, j.y, weights * j.es)
    release(arena)
    return 1


cdef int run_direct(SweepJob *j, double flops) except -1:
    cdef ptrdiff_t depth = 0, slots = 0
    cdef size_t packed = 0 if j.packed != NULL else packed_bytes(j), scratch
    cdef int i, threads = threads_for(flops)
    cdef RowWindow v
    if j.sweeps == 0:
        return 0
    v = row_window(j.sweep, j.sweeps, j.direct_rows)
    for i in range(j.sweeps):
        depth = max(depth, j.sweep[i].ntaps * j.sweep[i].channels)
        slots = max(slots, j.direct_rows * ceil_div(j.sweep[i].out[2], j.k.lanes))
    j.b_size = aligned(j.sweep.channels * v.plane * j.es)
    j.runs_size = aligned(depth * sizeof(ptrdiff_t))
    scratch = j.b_size + j.runs_size + aligned((slots + 8) * sizeof(fc_slot))
    cdef Arena arena = lease(packed + threads * scratch)
    cdef char *memory = <char *>arena.memory
    with nogil:
        if packed:
            j.packed = memory
            pack_weights(j, threads)
        run_flushed(direct_task, j, j.groups * j.sweep.n * direct_blocks(j), threads, memory + packed, scratch)
    release(arena)
    return 0


# ---- weight gradient ----

cdef struct DirectGradientJob:
    kernels_t k
    size_t es
    const fc_sweep *s  # of the output
    ptrdiff_t groups, shares, direct_rows
    const char *x
    const char *grad_output
    char *partial  # [share][oc][ic][tap]
    size_t x_size


cdef void direct_gradient_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: the weight gradient of one group over one share of the images."""
    cdef DirectGradientJob *j = <DirectGradientJob *>job_
    cdef const fc_sweep *s = j.s
    cdef size_t es = j.es
    cdef ptrdiff_t g = task % j.groups, share = task // j.groups, n, h0, out_rows, c, t
    cdef RowWindow v = row_window(s, 1, j.direct_rows)
    cdef ptrdiff_t *offset = <ptrdiff_t *>(scratch + j.x_size)
    cdef char *sums = j.partial + ((share * j.groups + g) * s.rows * s.channels * s.ntaps) * es
    memset(sums, 0, s.rows * s.channels * s.ntaps * es)
    for t in range(s.ntaps):
        offset[t] = row_offset(s, &v, t)
    for n in range(s.n * share // j.shares, s.n * (share + 1) // j.shares):
        for h0 from 0 <= h0 < s.out[1] by j.direct_rows:
            out_rows = min(j.direct_rows, s.out[1] - h0)
            copy_rows(j.k, es, s, &v, j.x, n, g, h0, out_rows, scratch)
            for c in range(s.channels):
                j.k.direct_dot(s.rows, <int>s.ntaps, out_rows, s.out[2],
                               j.grad_output + (n * s.out_image + g * s.rows * s.out_channel + h0 * s.out[2]) * es,
                               s.out_channel, s.out[2], scratch + c * v.plane * es, v.pitch, offset,
                               sums + c * s.ntaps * es, s.channels * s.ntaps)


cdef int conv_direct_weight_gradient(ConvPlan plan, const char *grad_output, const char *x,
                                     char *grad_weight) except -1:
    cdef DirectGradientJob j
    cdef int threads = threads_for(plan.flops)
    cdef ptrdiff_t weights = plan.groups * plan.oc * plan.ic * plan.taps
    cdef RowWindow v
    if conv_depthwise_weight_gradient(plan, grad_output, x, grad_weight):
        return 0
    j.k, j.es, j.s, j.groups = plan.k, plan.es, &plan.output, plan.groups
    j.x, j.grad_output = x, grad_output
    j.direct_rows = plan.direct_weight_rows
    j.shares = image_shares(plan)
    v = row_window(j.s, 1, j.direct_rows)
    j.x_size = aligned(plan.ic * v.plane * j.es)
    cdef size_t partial = aligned(j.shares * weights * j.es)
    cdef size_t scratch = j.x_size + aligned(plan.taps * sizeof(ptrdiff_t))
    cdef Arena arena = lease(partial + threads * scratch)
    j.partial = <char *>arena.memory
    with nogil:
        run_flushed(direct_gradient_task, &j, j.groups * j.shares, threads, j.partial + partial, scratch)
        pairwise(j.k, j.es, j.partial, weights, j.shares, weights)
        memcpy(grad_weight, j.partial, weights * j.es)
    release(arena)
    return 0
