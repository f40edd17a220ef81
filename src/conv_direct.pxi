"""Direct convolution of few channels, 1-D and 2-D: depthwise, small groups, the first layer of a network.

Output and input gradient are sweeps (micro.h) as in conv_gemm.pxi and share its packed weights; what differs is that
pixels are not packed.  A task owns some output rows of one image and group:

    copy the input rows that they read, padded, phases apart      [channel][row][phase][pitch], L1 or L2
    for each row panel of the weights:
        C[mr][slots] = sum_k A[k][mr] * rows[slot + offset[k]]    micro/direct.h

In the weight gradient lanes are pixels and every (oc, ic, tap) is a dot product, taken for up to nine taps at a time; a
task owns a group and a fixed share of the images.
"""

cdef struct RowWindow:
    ptrdiff_t h, w  # least tap offsets
    ptrdiff_t rows, span  # greatest minus least tap offset along h, along w
    ptrdiff_t pitch, row, plane  # of the copied rows: a phase, a row, a channel


cdef RowWindow row_window(const fc_sweep *s, ptrdiff_t out_rows) noexcept nogil:
    """Layout of the input rows under `out_rows` output rows."""
    cdef RowWindow v
    cdef ptrdiff_t t
    v.h, v.w, v.rows, v.span = 0, 0, 0, 0
    for t in range(s.ntaps):
        v.h = s.taps[1] if t == 0 else min(v.h, <ptrdiff_t>s.taps[3 * t + 1])
        v.w = s.taps[2] if t == 0 else min(v.w, <ptrdiff_t>s.taps[3 * t + 2])
    for t in range(s.ntaps):
        v.rows = max(v.rows, s.taps[3 * t + 1] - v.h)
        v.span = max(v.span, s.taps[3 * t + 2] - v.w)
    v.pitch = s.out[2] + v.span // s.step[2] + 1
    v.row = v.pitch * s.step[2]
    v.plane = ((out_rows - 1) * s.step[1] + v.rows + 1) * v.row
    return v


cdef void copy_rows(kernels_t k, size_t es, const fc_sweep *s, const RowWindow *v, const char *x, ptrdiff_t h0,
                    ptrdiff_t out_rows,
                    char *rows) noexcept nogil:
    """Input rows under output rows h0 .. h0 + out_rows of one image, channels of a group."""
    cdef ptrdiff_t c, i, h, first = h0 * s.step[1] + v.h
    for c in range(s.channels):
        for i in range((out_rows - 1) * s.step[1] + v.rows + 1):
            h = first + i
            if 0 <= h < s.in_[1]:
                k.copy_phases(x + (c * s.in_[1] + h) * s.in_[2] * es, s.in_[2],
                              (s.in_[1] - h) * s.in_[2], -v.w, s.step[2], v.pitch,
                              rows + (c * v.plane + i * v.row) * es)
            else:
                memset(rows + (c * v.plane + i * v.row) * es, 0, v.row * es)


cdef inline ptrdiff_t row_offset(const fc_sweep *s, const RowWindow *v, ptrdiff_t tap, ptrdiff_t c) noexcept nogil:
    """Where tap `tap` of channel c starts in the copied rows, relative to its output pixel."""
    cdef ptrdiff_t w = s.taps[3 * tap + 2] - v.w
    return c * v.plane + (s.taps[3 * tap + 1] - v.h) * v.row + w % s.step[2] * v.pitch + w // s.step[2]


cdef inline ptrdiff_t direct_tasks(const SweepJob *j, const fc_sweep *s) noexcept nogil:
    return j.groups * s.n * ceil_div(s.out[1], j.direct_rows)


cdef void direct_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: direct_rows output rows of one image and group, of every sweep: they share cache lines."""
    cdef SweepJob *j = <SweepJob *>job_
    cdef int i
    for i in range(j.sweeps):
        if task < direct_tasks(j, &j.sweep[i]):
            direct_sweep(j, &j.sweep[i], task, scratch)


cdef void direct_sweep(const SweepJob *j, const fc_sweep *s, ptrdiff_t task, char *scratch) noexcept nogil:
    cdef kernels_t k = j.k
    cdef size_t es = j.es
    cdef ptrdiff_t blocks = ceil_div(s.out[1], j.direct_rows), h0 = task % blocks * j.direct_rows
    cdef ptrdiff_t g = task // blocks % j.groups, n = task // blocks // j.groups
    cdef ptrdiff_t out_rows = min(j.direct_rows, s.out[1] - h0), depth = s.ntaps * s.channels
    cdef RowWindow v = row_window(s, j.direct_rows)
    cdef const char *x = j.x + (n * s.in_image + g * s.channels * s.in_[1] * s.in_[2]) * es
    cdef ptrdiff_t base = s.out_base + n * s.out_image + g * s.rows * s.out_channel + h0 * s.out_pixel[1], at
    cdef const char *a = j.packed + (s.packed + g * packed_size(k, s)) * es
    cdef char *rows = scratch
    cdef ptrdiff_t *offset = <ptrdiff_t *>(scratch + j.b_size)
    cdef fc_slot *slot = <fc_slot *>(scratch + j.b_size + j.runs_size)
    cdef ptrdiff_t i, h, w, slots = 0, t, c, most = 8
    cdef int count
    copy_rows(k, es, s, &v, x, h0, out_rows, rows)
    for c in range(s.channels):  # k = (channel, tap): a channel's rows stay in L1 for all taps
        for t in range(s.ntaps):
            offset[c * s.ntaps + t] = row_offset(s, &v, t, c)
    for h in range(out_rows):
        for w from 0 <= w < s.out[2] by k.lanes:
            slot[slots].in_ = h * s.step[1] * v.row + w
            slot[slots].out = h * s.out_pixel[1] + w * s.out_pixel[2]
            slot[slots].len = <int>min(<ptrdiff_t>k.lanes, s.out[2] - w)
            slots += 1
    for i in range(most):  # what fills the last tile up reads the first slot and stores nothing
        slot[slots + i] = slot[0]
        slot[slots + i].len = 0
    for i from 0 <= i < s.rows by k.mr:
        count = <int>min(<ptrdiff_t>k.mr, s.rows - i)
        k.direct(count, slots, depth, a + i * depth * es, rows, offset, slot, j.out + (base + i * s.out_channel) * es,
                 s.out_channel, s.out_pixel[2], NULL if j.bias == NULL else j.bias + (g * s.rows + i) * es)
        if j.activation or j.residual != NULL:
            for h in range(out_rows):
                at = base + i * s.out_channel + h * s.out_pixel[1]
                k.epilogue(j.out + at * es, s.out_channel, count, <int>s.out[2], NULL,
                           NULL if j.residual == NULL else j.residual + at * es, j.activation, j.slope)


cdef int run_direct(SweepJob *j, double flops) except -1:
    cdef ptrdiff_t depth = 0, tasks = 0, slots = 0
    cdef size_t packed = 0 if j.packed != NULL else packed_bytes(j), scratch
    cdef int i, threads = threads_for(flops)
    cdef RowWindow v
    j.b_size = 0
    for i in range(j.sweeps):
        v = row_window(&j.sweep[i], j.direct_rows)
        depth = max(depth, j.sweep[i].ntaps * j.sweep[i].channels)
        slots = max(slots, j.direct_rows * ceil_div(j.sweep[i].out[2], j.k.lanes))
        # + slack for the last vector
        j.b_size = max(j.b_size, aligned((j.sweep[i].channels * v.plane + j.k.lanes) * j.es))
        tasks = max(tasks, direct_tasks(j, &j.sweep[i]))
    j.runs_size = aligned(depth * sizeof(ptrdiff_t))
    scratch = j.b_size + j.runs_size + aligned((slots + 8) * sizeof(fc_slot))
    cdef Arena arena = lease(packed + threads * scratch)
    cdef char *memory = <char *>arena.memory
    with nogil:
        if packed:
            j.packed = memory
            pack_weights(j, threads)
        run_flushed(direct_task, j, tasks, threads, memory + packed, scratch)
    release(arena)
    return 0


# ---- weight gradient ----

cdef enum:
    MAX_PARTIAL = 8 << 20  # bytes of the shares' sums, where there is more than one


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
    cdef ptrdiff_t g = task % j.groups, share = task // j.groups, n, h0, out_rows, oc, c, t
    cdef RowWindow v = row_window(s, j.direct_rows)
    cdef ptrdiff_t *offset = <ptrdiff_t *>(scratch + j.x_size)
    cdef char *sums = j.partial + ((share * j.groups + g) * s.rows * s.channels * s.ntaps) * es
    memset(sums, 0, s.rows * s.channels * s.ntaps * es)
    for t in range(s.ntaps):
        offset[t] = row_offset(s, &v, t, 0)
    for n in range(s.n * share // j.shares, s.n * (share + 1) // j.shares):
        for h0 from 0 <= h0 < s.out[1] by j.direct_rows:
            out_rows = min(j.direct_rows, s.out[1] - h0)
            copy_rows(j.k, es, s, &v, j.x + (n * s.in_image + g * s.channels * s.in_[1] * s.in_[2]) * es, h0, out_rows,
                      scratch)
            for oc in range(s.rows):
                for c in range(s.channels):
                    j.k.direct_dot(<int>s.ntaps, out_rows, s.out[2],
                                   j.grad_output + (n * s.out_image + (g * s.rows + oc) * s.out_channel
                                                    + h0 * s.out[2]) * es,
                                   s.out[2], scratch + c * v.plane * es, s.step[1] * v.row, offset,
                                   sums + (oc * s.channels + c) * s.ntaps * es)


cdef int conv_direct_weight_gradient(ConvPlan plan, const char *grad_output, const char *x,
                                     char *grad_weight) except -1:
    cdef DirectGradientJob j
    cdef int threads = threads_for(plan.flops)
    cdef ptrdiff_t weights = plan.groups * plan.oc * plan.ic * plan.taps
    cdef RowWindow v
    j.k, j.es, j.s, j.groups = plan.k, plan.es, &plan.output, plan.groups
    j.x, j.grad_output = x, grad_output
    j.direct_rows = plan.direct_weight_rows
    j.shares = max(<ptrdiff_t>1, min(plan.n, ceil_div(16, plan.groups), MAX_PARTIAL // (weights * j.es)))
    v = row_window(j.s, j.direct_rows)
    j.x_size = aligned((plan.ic * v.plane + j.k.lanes) * j.es)
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
