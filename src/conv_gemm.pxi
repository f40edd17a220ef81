"""Convolution as a packed implicit GEMM: output, input gradient, weight gradient.

    output           Y[oc, (n, p)]  = sum_{t, ic} W[oc, ic, t]  * X[ic, (n, p * stride + t * dilation - pad)]
    input gradient   dX[ic, (n, q)] = sum_{t, oc} W[oc, ic, t]  * dY[oc, (n, (q + pad - t * dilation) / stride)]
    weight gradient  dW[oc, ic, t]  = sum_{n, p}  dY[oc, (n, p)] * X[ic, (n, p * stride + t * dilation - pad)]

The first two are the same code, a *sweep* (micro.h): the input gradient is one sweep of step 1 for each residue of q
modulo the stride, over the taps that hit it, so nothing is multiplied by the zeros of an upsampled dY.  A task of a
sweep owns a block of pixels and a block of rows:

    for each slice of K = (tap, channel), kc long:
        pack the slice's pixels                         B[panel][kc][nr], half of the L2 cache
        (or find them, where several blocks of rows need the same few and the thread has packed them for another)
        for each block of row panels, for each pixel panel, for each row panel of the block:
            C[mr][nr] += A * B                          the micro-kernel

Blocks of one row panel: A[kc][mr] stays in L1 and B streams from L2.  Where B's panels are narrow enough for L1, blocks
are larger: a B panel stays there, and the narrower A panels stream.

The weight gradient reduces over pixels.  Rows are (ic, t), lanes are oc, so that the transpose of dY serves every tap
and X is read in place from rows that were padded once.  A task owns a block of dW and a fixed share of the pixels;
shares are added pairwise.
"""

cdef extern from *:
    """
    /* Cython cannot declare array members of an extern struct as lvalues; these keep the drivers readable. */
    static void fc_set3(ptrdiff_t *to, ptrdiff_t d, ptrdiff_t h, ptrdiff_t w) { to[0] = d, to[1] = h, to[2] = w; }
    """
    void fc_set3(ptrdiff_t *, ptrdiff_t, ptrdiff_t, ptrdiff_t) noexcept nogil


cdef struct Blocking:
    ptrdiff_t kc, panels, rows  # length of a K slice, pixel panels a block, rows a block
    ptrdiff_t held  # rows whose slice meets a pixel panel before the next one does
    int abreast  # neighbouring sweeps that a task computes together


cdef struct Winograd:
    ptrdiff_t r, m  # filters r x r, tiles m x m; r is 0 where the pass is computed otherwise
    ptrdiff_t axis  # 0, or that of a filter along a line: 1, a column, 2, a row, or 3, a row's residues side by side
    ptrdiff_t planes, tiles_h, tiles_w  # of a patch; along a line, and lines
    ptrdiff_t patches  # a task of output or input gradient, a block of the weight gradient


cdef Blocking sweep_blocking(values):
    cdef Blocking b
    b.kc, b.panels, b.rows, b.held, b.abreast = values
    return b


cdef Winograd winograd_blocking(values):
    cdef Winograd w
    w.r, w.m, w.axis, w.planes, w.tiles_h, w.tiles_w, w.patches = values
    return w


cdef class ConvPlan:
    """Geometry and blocking of a convolution, for one ISA and type.  Immutable; built by ``algorithms.conv_plan``."""

    cdef kernels_t k
    cdef size_t es
    cdef readonly double flops
    cdef readonly object blocking
    cdef ptrdiff_t n, groups, ic, oc, taps  # channels of a group
    cdef ptrdiff_t x_size, weight_size, out_size  # elements of the arrays
    cdef ptrdiff_t[3] in_, out, kernel, stride, dilation, pad
    cdef int32_t *tap_offsets
    cdef ptrdiff_t *tap_weights
    cdef fc_sweep output
    cdef fc_sweep *gradient
    cdef int gradients
    cdef bint gradient_holes
    cdef Blocking output_blocking, gradient_blocking
    cdef ptrdiff_t direct_rows, direct_gradient_rows, direct_weight_rows
    cdef bint[3] im2col
    cdef bint full  # windows that are images as they are,
    cdef readonly bint pointwise  # or pixels
    cdef readonly bint depthwise  # channels with a filter each
    cdef Winograd winograd_output, winograd_gradient, winograd_weight
    cdef ptrdiff_t wg_rows, wg_cols, wg_pixels, wg_shares  # weight gradient: ic a block, oc a block, pixels, shares

    def __cinit__(self, str type, int isa, ptrdiff_t n, ptrdiff_t ic, ptrdiff_t oc, ptrdiff_t groups, in_size, out_size,
                  kernel, stride, dilation, pad, output_blocking, gradient_blocking, weight_blocking,
                  winograd=(None, None, None),
                  direct=(0, 0, 0), im2col=(False, False, False), bint full=False, bint pointwise=False):
        cdef int i
        cdef ptrdiff_t volume
        self.k = fc_tables(isa)[type == "d"]
        self.es = 8 if type == "d" else 4
        self.n, self.groups, self.ic, self.oc = n, groups, ic // groups, oc // groups
        for i in range(3):
            self.in_[i], self.out[i], self.kernel[i] = in_size[i], out_size[i], kernel[i]
            self.stride[i], self.dilation[i], self.pad[i] = stride[i], dilation[i], pad[i]
        self.taps = self.kernel[0] * self.kernel[1] * self.kernel[2]
        volume = n * self.out[0] * self.out[1] * self.out[2]
        self.x_size, self.out_size = n * ic * self.in_[0] * self.in_[1] * self.in_[2], volume * oc
        self.weight_size = oc * self.ic * self.taps
        self.flops = 2.0 * volume * oc * self.ic * self.taps
        self.output_blocking = sweep_blocking(output_blocking)
        self.gradient_blocking = sweep_blocking(gradient_blocking)
        self.wg_rows, self.wg_cols, self.wg_pixels, self.wg_shares = weight_blocking
        self.direct_rows, self.direct_gradient_rows, self.direct_weight_rows = direct
        self.im2col[0], self.im2col[1], self.im2col[2] = im2col
        self.full, self.pointwise = full, pointwise
        self.depthwise = groups > 1 and self.ic == 1 and self.oc == 1
        if winograd[0]:
            self.winograd_output = winograd_blocking(winograd[0])
        if winograd[1]:
            self.winograd_gradient = winograd_blocking(winograd[1])
        if winograd[2]:
            self.winograd_weight = winograd_blocking(winograd[2])
        self.blocking = (output_blocking, gradient_blocking, weight_blocking)
        self.tap_offsets = <int32_t *>malloc(2 * 3 * self.taps * sizeof(int32_t))
        self.tap_weights = <ptrdiff_t *>malloc(2 * self.taps * sizeof(ptrdiff_t))
        self.gradient = <fc_sweep *>calloc(self.taps, sizeof(fc_sweep))  # at most one sweep a tap
        if self.tap_offsets == NULL or self.tap_weights == NULL or self.gradient == NULL:
            raise MemoryError("fastconv: no memory for a plan")
        self.plan_output()
        self.plan_gradient()

    @property
    def isa(self):
        return self.k.isa.decode()

    def __dealloc__(self):
        free(self.tap_offsets)
        free(self.tap_weights)
        free(self.gradient)

    cdef void plan_output(self):
        cdef fc_sweep *s = &self.output
        cdef ptrdiff_t d, h, w, t = 0
        s.n, s.channels, s.rows = self.n, self.ic, self.oc
        s.in_image = self.groups * self.ic * self.in_[0] * self.in_[1] * self.in_[2]
        s.out_channel = self.out[0] * self.out[1] * self.out[2]
        s.out_image = self.groups * self.oc * s.out_channel
        fc_set3(s.in_, self.in_[0], self.in_[1], self.in_[2])
        fc_set3(s.out, self.out[0], self.out[1], self.out[2])
        fc_set3(s.step, self.stride[0], self.stride[1], self.stride[2])
        fc_set3(s.out_pixel, self.out[1] * self.out[2], self.out[2], 1)
        s.ntaps, s.taps, s.weights = self.taps, self.tap_offsets, self.tap_weights
        for d in range(self.kernel[0]):
            for h in range(self.kernel[1]):
                for w in range(self.kernel[2]):
                    self.tap_offsets[3 * t] = <int32_t>(d * self.dilation[0] - self.pad[0])
                    self.tap_offsets[3 * t + 1] = <int32_t>(h * self.dilation[1] - self.pad[1])
                    self.tap_offsets[3 * t + 2] = <int32_t>(w * self.dilation[2] - self.pad[2])
                    self.tap_weights[t] = t
                    t += 1

    cdef void plan_gradient(self):
        """One sweep for each residue of the input index modulo the stride that some tap hits; a tap serves exactly one.

        Elements of the other residues are zeros, which the driver writes when `gradient_holes` says that there are any.
        """
        cdef fc_sweep *s
        cdef ptrdiff_t d, h, w, t = self.taps, packed = 0
        cdef ptrdiff_t plane = self.in_[0] * self.in_[1] * self.in_[2]
        cdef ptrdiff_t[3] residue
        cdef int i, dim
        groups = [{}, {}, {}]  # taps of a dimension by residue
        for dim in range(3):
            for d in range(self.kernel[dim]):
                groups[dim].setdefault(self.residue(dim, d), []).append(d)
        chosen = list(product(*[sorted(group) for group in groups]))
        self.gradient_holes = len(chosen) < self.stride[0] * self.stride[1] * self.stride[2]
        for residues in chosen:
            for dim in range(3):
                residue[dim] = residues[dim]
            if residue[0] >= self.in_[0] or residue[1] >= self.in_[1] or residue[2] >= self.in_[2]:
                continue
            s = &self.gradient[self.gradients]
            self.gradients += 1
            s.n, s.channels, s.rows = self.n, self.oc, self.ic
            s.in_image = self.output.out_image
            s.out_channel, s.out_image = plane, self.output.in_image
            fc_set3(s.in_, self.out[0], self.out[1], self.out[2])
            fc_set3(s.out, ceil_div(self.in_[0] - residue[0], self.stride[0]),
                    ceil_div(self.in_[1] - residue[1], self.stride[1]),
                    ceil_div(self.in_[2] - residue[2], self.stride[2]))
            fc_set3(s.step, 1, 1, 1)
            fc_set3(s.out_pixel, self.stride[0] * self.in_[1] * self.in_[2], self.stride[1] * self.in_[2],
                    self.stride[2])
            s.out_base = (residue[0] * self.in_[1] + residue[1]) * self.in_[2] + residue[2]
            s.taps, s.weights, s.packed = self.tap_offsets + 3 * t, self.tap_weights + t, packed
            for d in groups[0][residue[0]]:
                for h in groups[1][residue[1]]:
                    for w in groups[2][residue[2]]:
                        self.tap_offsets[3 * t] = self.gradient_offset(0, residue[0], d)
                        self.tap_offsets[3 * t + 1] = self.gradient_offset(1, residue[1], h)
                        self.tap_offsets[3 * t + 2] = self.gradient_offset(2, residue[2], w)
                        self.tap_weights[t] = (d * self.kernel[1] + h) * self.kernel[2] + w
                        t += 1
                        s.ntaps += 1
            packed += self.groups * packed_size(self.k, s)

    cdef ptrdiff_t residue(self, int dim, ptrdiff_t tap):
        """The input indices i = residue (mod stride) that tap `tap` contributes to."""
        cdef ptrdiff_t r = (tap * self.dilation[dim] - self.pad[dim]) % self.stride[dim]
        return r + self.stride[dim] if r < 0 else r

    cdef int32_t gradient_offset(self, int dim, ptrdiff_t residue, ptrdiff_t tap):
        """Output index that tap `tap` of input index `residue` belongs to."""
        return <int32_t>((residue + self.pad[dim] - tap * self.dilation[dim]) // self.stride[dim])


cdef inline ptrdiff_t packed_size(kernels_t k, const fc_sweep *s) noexcept nogil:
    """Elements of one group's packed weights."""
    return ceil_div(s.rows, k.mr) * k.mr * s.ntaps * s.channels


# ---- sweeps: output and input gradient ----

cdef struct SweepJob:
    kernels_t k
    size_t es
    const fc_sweep *sweep
    int sweeps
    ptrdiff_t groups
    Blocking blocking
    ptrdiff_t direct_rows  # output rows a task of conv_direct.pxi, 0: pack
    const char *x
    const char *weight
    ptrdiff_t group_stride, row_stride, channel_stride  # of the weights, in elements
    const char *bias
    const char *residual
    char *out
    int activation
    double slope
    char *packed  # weights; NULL: not yet
    ptrdiff_t kept  # blocks of pixels that a thread keeps packed for other blocks of rows: all, one or none
    size_t b_size, runs_size, block_size  # parts of a thread's scratch, in bytes


cdef inline ptrdiff_t sweep_pixels(const fc_sweep *s) noexcept nogil:
    return s.n * s.out[0] * s.out[1] * s.out[2]


cdef inline ptrdiff_t sweep_depth(const fc_sweep *s) noexcept nogil:
    return s.ntaps * s.channels


cdef inline ptrdiff_t sweep_blocks(const SweepJob *j, const fc_sweep *s) noexcept nogil:
    """Blocks of pixels."""
    return ceil_div(sweep_pixels(s), j.blocking.panels * j.k.nr)


cdef inline ptrdiff_t sweep_slices(const SweepJob *j, const fc_sweep *s) noexcept nogil:
    """Slices of K, as many for each of the sweeps that a task computes together, of which `s` is the first."""
    cdef ptrdiff_t slices = 1
    cdef int w
    for w in range(j.blocking.abreast):
        slices = max(slices, ceil_div(sweep_depth(&s[w]), j.blocking.kc))
    return slices


cdef inline ptrdiff_t sweep_tasks(const SweepJob *j, const fc_sweep *s) noexcept nogil:
    return j.groups * sweep_blocks(j, s) * ceil_div(s.rows, j.blocking.rows)


cdef void pack_weights_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: one row panel of one group of one sweep."""
    cdef SweepJob *j = <SweepJob *>job_
    cdef const fc_sweep *s = j.sweep
    cdef ptrdiff_t panels = ceil_div(s.rows, j.k.mr), g, i
    while task >= j.groups * panels:  # every sweep has the same rows
        task -= j.groups * panels
        s += 1
    g, i = task // panels, task % panels * j.k.mr
    j.k.pack_weights(s, j.weight + (g * j.group_stride + i * j.row_stride) * j.es, j.row_stride, j.channel_stride,
                     <int>min(<ptrdiff_t>j.k.mr, s.rows - i), j.direct_rows > 0,
                     j.packed + (s.packed + g * packed_size(j.k, s) + i * s.ntaps * s.channels) * j.es)


cdef size_t packed_bytes(const SweepJob *j) noexcept nogil:
    cdef ptrdiff_t elements = 0
    cdef int i
    for i in range(j.sweeps):
        elements += j.groups * packed_size(j.k, &j.sweep[i])
    return aligned(elements * j.es)


cdef void pack_weights(SweepJob *j, int threads) noexcept nogil:
    """Pack the weights of all sweeps."""
    run_tasks(pack_weights_task, j, j.sweeps * j.groups * ceil_div(j.sweep.rows, j.k.mr),
              threads if packed_bytes(j) > 65536 else 1, NULL, 0)


cdef int find_runs(const fc_sweep *s, ptrdiff_t pixel, ptrdiff_t count, fc_run *run) noexcept nogil:
    """Split `count` pixels, flattened over (n, d, h, w), into runs that stay in one output row."""
    cdef ptrdiff_t w = pixel % s.out[2], rest = pixel // s.out[2], length, col = 0
    cdef ptrdiff_t h = rest % s.out[1], d = rest // s.out[1] % s.out[0], n = rest // s.out[1] // s.out[0]
    cdef int i = 0
    while col < count:
        length = min(s.out[2] - w, count - col)
        run[i].col, run[i].len = <int32_t>col, <int32_t>length
        run[i].n, run[i].d, run[i].h, run[i].w = n, d, h, w
        i += 1
        col += length
        w = 0
        h += 1
        if h == s.out[1]:
            h = 0
            d += 1
            if d == s.out[0]:
                d = 0
                n += 1
    return i


cdef int merge_runs(const fc_sweep *s, const fc_run *run, int nruns, fc_run *merged) noexcept nogil:
    """Runs that lie side by side in the output: all of an image where the output grid has no holes."""
    cdef int i, m = -1
    cdef bint dense = s.out_pixel[2] == 1 and s.out_pixel[1] == s.out[2] and s.out_pixel[0] == s.out[1] * s.out[2]
    for i in range(nruns):
        if dense and m >= 0 and run[i].n == merged[m].n:
            merged[m].len += run[i].len
        else:
            m += 1
            merged[m] = run[i]
    return m + 1


cdef inline ptrdiff_t output_offset(const fc_sweep *s, const fc_run *r) noexcept nogil:
    return (s.out_base + r.n * s.out_image + r.d * s.out_pixel[0] + r.h * s.out_pixel[1] + r.w * s.out_pixel[2])


cdef enum:
    TOGETHER = 48  # pixels whose panels are packed together: neighbouring lines of a channel are then read at once
    KEPT_BLOCK = 4 << 20  # bytes of a block of pixels, at most, that a thread keeps for the next block of rows,
    KEPT_BLOCKS = 1 << 20  # or of all blocks
    PANEL_SLACK = 16  # elements behind a panel, which the last vector that is packed may spill into


cdef struct PanelRuns:
    int count
    ptrdiff_t cols, at  # pixels; where the first run starts in the output
    ptrdiff_t beside  # panels from this one on that lie beside one another in the output; 0 if this is scattered
    fc_run[48] run


cdef inline int finished_activation(int activation) noexcept nogil:
    """The activation that the kernels apply to what they store; of others, none."""
    return activation if activation <= FC_RELU6 else 0


cdef struct SweepBlock:
    const fc_sweep *s
    const PanelRuns *panel  # of pixels
    ptrdiff_t[2] depth, kc, b_stride  # of K, of a slice, of a packed panel of pixels; of each sweep abreast
    const char *a[2]  # packed weights of the slice
    char *b[2]  # packed pixels
    bint first, last  # slice
    const char *bias
    const char *residual
    char *out
    char *tiles  # scratch


cdef void sweep_panels(const SweepJob *j, const SweepBlock *v, const PanelRuns *q, ptrdiff_t i0,
                       ptrdiff_t i1) noexcept nogil:
    """Rows [i0, i1) of the panels beside q: what one slice of K adds to them; the first starts, the last finishes."""
    cdef size_t es = j.es
    cdef ptrdiff_t at = i0 * v.s.out_channel + q.at, pixels = (q.beside - 1) * j.k.nr + q[q.beside - 1].cols
    cdef fc_finish finish
    finish.residual = NULL if v.residual == NULL else v.residual + at * es
    finish.activation = finished_activation(j.activation)
    j.k.gemm_panels(v.kc[0], v.a[0] + i0 * v.depth[0] * es, j.k.mr * v.depth[0], i1 - i0,
                    v.b[0] + (q - v.panel) * v.b_stride[0] * es, v.b_stride[0], pixels, v.out + at * es,
                    v.s.out_channel, not v.first, v.bias + i0 * es if v.bias != NULL and v.first else NULL,
                    &finish if v.last and (finish.activation or v.residual != NULL) else NULL)
    if v.last and j.activation != finish.activation:
        j.k.epilogue(v.out + at * es, v.s.out_channel, <int>(i1 - i0), <int>pixels, NULL, NULL, j.activation, j.slope)


cdef void sweep_scattered(const SweepJob *j, const SweepBlock *v, const PanelRuns *q, ptrdiff_t i0,
                          ptrdiff_t i1) noexcept nogil:
    """The same for a panel of several runs, tile by tile."""
    cdef kernels_t k = j.k
    cdef size_t es = j.es
    cdef ptrdiff_t i, at, here
    cdef int rows, r
    cdef const char *first = v.a[0] + i0 * v.depth[0] * es
    cdef const char *a
    for i from i0 <= i < i1 by k.mr:
        rows = <int>min(<ptrdiff_t>k.mr, i1 - i)
        a = first + (i - i0) * v.depth[0] * es
        at = i * v.s.out_channel
        k.gemm(v.kc[0], a, v.b[0] + (q - v.panel) * v.b_stride[0] * es, v.tiles, k.nr, rows, <int>q.cols, 0,
               v.bias + i * es if v.bias != NULL and v.first else NULL, NULL,
               a + k.mr * v.depth[0] * es if i + k.mr < i1 else first)
        k.store_runs(v.s, q.run, q.count, v.tiles, NULL, rows, v.out + at * es, not v.first)
        if v.last and (j.activation or v.residual != NULL):
            for r in range(q.count):
                here = (at + output_offset(v.s, q.run + r)) * es
                k.epilogue(v.out + here, v.s.out_channel, rows, q.run[r].len, NULL,
                           NULL if v.residual == NULL else v.residual + here, j.activation, j.slope)


cdef void sweep_pair(const SweepJob *j, const SweepBlock *v, const PanelRuns *q, ptrdiff_t i0,
                     ptrdiff_t i1) noexcept nogil:
    """The same for two sweeps of neighbouring columns: tiles of the first wait for those of the second, so that whole
    lines of the output are stored."""
    cdef kernels_t k = j.k
    cdef size_t es = j.es, tile_size = k.nr * es
    cdef ptrdiff_t i
    cdef const char *a
    cdef char *tile
    cdef int w, rows
    for w in range(2):
        for i from i0 <= i < i1 by k.mr:
            rows = <int>min(<ptrdiff_t>k.mr, i1 - i)
            a = v.a[w] + i * v.depth[w] * es
            tile = v.tiles + (i - i0 if w == 0 else j.blocking.held) * tile_size
            k.gemm(v.kc[w], a, v.b[w] + (q - v.panel) * v.b_stride[w] * es, tile, k.nr, rows, <int>q.cols, 0,
                   v.bias + i * es if v.bias != NULL and v.first else NULL, NULL,
                   a + k.mr * v.depth[w] * es if i + k.mr < i1 else v.a[1 - w] + i0 * v.depth[1 - w] * es)
            if w == 1:
                k.store_runs(v.s, q.run, q.count, v.tiles + (i - i0) * tile_size, tile, rows,
                             v.out + i * v.s.out_channel * es, not v.first)


cdef void pack_block(const SweepJob *j, const fc_sweep *s, ptrdiff_t g, ptrdiff_t pixel0, ptrdiff_t k0, ptrdiff_t kc,
                     char *b) noexcept nogil:
    """Pack slice [k0, k0 + kc) of a block of pixels."""
    cdef const char *x = j.x + g * s.channels * s.in_[0] * s.in_[1] * s.in_[2] * j.es
    cdef ptrdiff_t nr = j.k.nr, pixels = min(j.blocking.panels * nr, sweep_pixels(s) - pixel0), p, count
    cdef ptrdiff_t together = max(<ptrdiff_t>1, TOGETHER // nr) * nr, stride = kc * nr + PANEL_SLACK
    cdef fc_run[64] run
    for p from 0 <= p < pixels by together:
        count = min(together, pixels - p)
        j.k.pack_pixels(s, run, find_runs(s, pixel0 + p, count, run), x, k0, k0 + kc, b + p // nr * stride * j.es,
                        stride)


cdef inline ptrdiff_t slice_start(ptrdiff_t depth, ptrdiff_t slice_, ptrdiff_t slices) noexcept nogil:
    """Where a slice of K starts; the one behind the last is where K ends."""
    return depth * slice_ // slices


cdef void find_panels(const SweepJob *j, const fc_sweep *s, ptrdiff_t pixel0, ptrdiff_t pixels,
                      PanelRuns *q) noexcept nogil:
    """The panels of a block of pixels."""
    cdef ptrdiff_t nr = j.k.nr, panels = ceil_div(pixels, nr), p
    cdef fc_run[64] run
    for p in reversed(range(panels)):
        q[p].cols = min(nr, pixels - p * nr)
        q[p].count = merge_runs(s, run, find_runs(s, pixel0 + p * nr, q[p].cols, run), q[p].run)
        q[p].at = output_offset(s, q[p].run)
        q[p].beside = q[p].count == 1 and s.out_pixel[2] == 1
        if q[p].beside and p + 1 < panels and q[p + 1].beside and q[p + 1].at == q[p].at + nr:
            q[p].beside += q[p + 1].beside


cdef struct PackedBlock:
    ptrdiff_t number  # of a block of pixels that a thread has packed; -1: none
    PanelRuns[1] panel  # all of its panels


cdef void sweep_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a block of pixels x a block of rows of one group of one sweep, or of two of neighbouring columns.

    Threads share no packed pixels, as a line that another core has read takes long to write: each packs what it needs,
    and keeps it.  Of a few pixels it keeps all, and takes a block of rows after the other, so that it writes the whole
    of their lines; of more, a block for all blocks of rows.
    """
    cdef SweepJob *j = <SweepJob *>job_
    cdef kernels_t k = j.k
    cdef size_t es = j.es
    cdef const fc_sweep *s = j.sweep
    cdef ptrdiff_t nr = k.nr, number = task, p, i0, slice_, abreast = j.blocking.abreast
    while task >= sweep_tasks(j, s):
        task -= sweep_tasks(j, s)
        s += abreast
    cdef ptrdiff_t row_blocks = ceil_div(s.rows, j.blocking.rows), slices = sweep_slices(j, s)
    cdef ptrdiff_t blocks = sweep_blocks(j, s), g = task // (row_blocks * blocks), block, row0, row1
    task -= g * row_blocks * blocks
    block, row0 = task // row_blocks, task % row_blocks * j.blocking.rows
    if j.kept > 1:
        block, row0, scratch = task % blocks, task // blocks * j.blocking.rows, scratch + task % blocks * j.block_size
    row1 = min(row0 + j.blocking.rows, s.rows)
    number += block - task
    cdef ptrdiff_t pixel0 = block * j.blocking.panels * nr
    cdef ptrdiff_t pixels = min(j.blocking.panels * nr, sweep_pixels(s) - pixel0)
    cdef ptrdiff_t panels = ceil_div(pixels, nr), k0
    cdef PackedBlock *known = <PackedBlock *>scratch
    cdef PanelRuns *q = known.panel
    cdef char *b = scratch + j.runs_size
    cdef bint packed = known.number == number
    cdef int w
    cdef SweepBlock v
    v.s, v.panel, v.tiles = s, q, b + abreast * j.b_size
    v.out = j.out + g * s.rows * s.out_channel * es
    v.residual = NULL if j.residual == NULL else j.residual + g * s.rows * s.out_channel * es
    v.bias = NULL if j.bias == NULL else j.bias + g * s.rows * es
    if not packed:
        find_panels(j, s, pixel0, pixels, q)

    for slice_ in range(slices):
        v.first, v.last = slice_ == 0, slice_ == slices - 1
        for w in range(abreast):
            v.depth[w] = sweep_depth(&s[w])
            k0 = slice_start(v.depth[w], slice_, slices)
            v.kc[w] = slice_start(v.depth[w], slice_ + 1, slices) - k0
            v.a[w] = j.packed + (s[w].packed + g * packed_size(k, &s[w]) + k0 * k.mr) * es
            v.b_stride[w] = v.kc[w] * nr + PANEL_SLACK
            v.b[w] = b + w * j.b_size
            if j.kept:
                v.b[w] += j.blocking.panels * (k0 * nr + slice_ * PANEL_SLACK) * es
            if not packed:
                pack_block(j, &s[w], g, pixel0, k0, v.kc[w], v.b[w])
        for i0 from row0 <= i0 < row1 by j.blocking.held:
            p = 0
            while p < panels:
                if abreast == 2:
                    sweep_pair(j, &v, q + p, i0, min(i0 + j.blocking.held, row1))
                elif q[p].beside:
                    sweep_panels(j, &v, q + p, i0, min(i0 + j.blocking.held, row1))
                else:
                    sweep_scattered(j, &v, q + p, i0, min(i0 + j.blocking.held, row1))
                p += max(q[p].beside, <ptrdiff_t>1) if abreast == 1 else 1
    if j.kept:
        known.number = number


cdef int run_sweeps(SweepJob *j, double flops) except -1:
    cdef ptrdiff_t depth = 0, slices = 1, blocks = 1, tasks = 0
    cdef size_t packed = 0 if j.packed != NULL else packed_bytes(j), scratch
    cdef int i, threads = threads_for(flops)
    for i in range(j.sweeps):
        depth, blocks = max(depth, sweep_depth(&j.sweep[i])), max(blocks, sweep_blocks(j, &j.sweep[i]))
    for i from 0 <= i < j.sweeps by j.blocking.abreast:
        slices = max(slices, sweep_slices(j, &j.sweep[i]))
        tasks += sweep_tasks(j, &j.sweep[i])
    j.b_size = aligned((depth * j.k.nr + slices * PANEL_SLACK) * j.blocking.panels * j.es)
    j.kept = j.blocking.rows < j.sweep.rows and j.blocking.abreast * j.b_size <= KEPT_BLOCK
    if j.kept and blocks * j.blocking.abreast * j.b_size <= KEPT_BLOCKS:
        j.kept = blocks
    if not j.kept:
        j.b_size = aligned((min(j.blocking.kc, depth) * j.k.nr + PANEL_SLACK) * j.blocking.panels * j.es)
    j.runs_size = aligned(sizeof(PackedBlock) + j.blocking.panels * sizeof(PanelRuns))
    j.block_size = j.runs_size + j.blocking.abreast * j.b_size
    j.block_size += aligned((j.k.mr + (j.blocking.held if j.blocking.abreast == 2 else 0)) * j.k.nr * j.es)
    scratch = max(<ptrdiff_t>1, j.kept) * j.block_size
    cdef Arena arena = lease(packed + threads * scratch)
    cdef char *memory = <char *>arena.memory
    for i in range(threads * max(<ptrdiff_t>1, j.kept)):
        (<PackedBlock *>(memory + packed + i * j.block_size)).number = -1
    with nogil:
        if packed:
            j.packed = memory
            pack_weights(j, threads)
        run_flushed(sweep_task, j, tasks, threads, memory + packed, scratch)
    release(arena)
    return 0


cdef SweepJob output_sweep(ConvPlan plan, const char *weight, char *packed) noexcept:
    """The job of an output, without its other arrays."""
    cdef SweepJob job
    memset(&job, 0, sizeof(job))
    job.k, job.es, job.groups, job.blocking = plan.k, plan.es, plan.groups, plan.output_blocking
    job.sweep, job.sweeps, job.direct_rows = &plan.output, 1, plan.direct_rows
    job.weight, job.packed = weight, packed
    job.group_stride, job.row_stride, job.channel_stride = plan.oc * plan.ic * plan.taps, plan.ic * plan.taps, plan.taps
    return job


cdef SweepJob gradient_sweeps(ConvPlan plan, const char *weight, char *packed) noexcept:
    """The job of an input gradient, without its other arrays."""
    cdef SweepJob job = output_sweep(plan, weight, packed)
    job.blocking = plan.gradient_blocking
    job.sweep, job.sweeps = plan.gradient, plan.gradients
    job.direct_rows = plan.direct_gradient_rows
    job.row_stride, job.channel_stride = job.channel_stride, job.row_stride
    return job


cdef int conv_gemm_output(ConvPlan plan, const char *x, const char *weight, char *packed, const char *bias,
                          const char *residual, char *out, int activation, double slope) except -1:
    cdef SweepJob job = output_sweep(plan, weight, packed)
    job.x, job.bias, job.residual, job.out = x, bias, residual, out
    job.activation, job.slope = activation, slope
    if job.direct_rows and conv_depthwise_output(plan, &job):
        return 0
    return run_direct(&job, plan.flops) if job.direct_rows else run_sweeps(&job, plan.flops)


cdef int conv_gemm_input_gradient(ConvPlan plan, const char *grad_output, const char *weight, char *packed,
                                  const char *bias, char *grad_input) except -1:
    """Returns whether the bias has been added."""
    cdef SweepJob job = gradient_sweeps(plan, weight, packed)
    job.x, job.out = grad_output, grad_input
    if job.direct_rows and conv_depthwise_input_gradient(plan, &job):
        return 0
    if plan.gradient_holes:
        memset(job.out, 0, plan.x_size * plan.es)
    if job.direct_rows:
        run_direct(&job, plan.flops)
        return 0
    job.bias = NULL if plan.gradient_holes else bias
    run_sweeps(&job, plan.flops)
    return job.bias != NULL


# ---- weight gradient ----
#
# Pixels are dealt out in units: stretches of one output row, `length` long (all of the row unless it is longer than a
# block).  Units that lie below one another in one image form a section; a section's input rows are copied once, padded:
#
#     X'[kd][ic][section rows][pitch]     tap (kh, kw) of unit u is at (row(u) + kh * dilation) * pitch + kw * dilation
#     dY'[oc panel][pixel][nr]            transposed, in the order of the units

cdef struct WeightGradientJob:
    kernels_t k
    size_t es
    ptrdiff_t n, groups, ic, oc, taps  # channels of a group
    ptrdiff_t[3] in_, out, kernel, stride, dilation, pad
    ptrdiff_t ic_block, oc_block, shares
    ptrdiff_t length, chunks, units, block_units  # a unit, units a row, units in all, units a block at most
    bint in_place  # one tap and no padding: X is read where it lies
    ptrdiff_t row_step  # rows of X' between neighbouring units: none that no tap reads
    ptrdiff_t pitch, plane  # of X'
    ptrdiff_t ldc  # row of dW'[share][group][ic, tap][oc]
    const char *x
    const char *grad_output
    char *grad_weight
    char *grad_bias
    char *partial  # dW'
    char *partial_bias  # [share][oc]
    size_t b_size, x_size, offsets_size  # parts of a thread's scratch, in bytes


cdef void weight_gradient_block(const WeightGradientJob *j, ptrdiff_t g, ptrdiff_t ic0, ptrdiff_t ics, ptrdiff_t oc0,
                                ptrdiff_t ocs,
                                ptrdiff_t unit, ptrdiff_t units, ptrdiff_t length, bint accumulate, char *partial,
                                char *sums, char *scratch) noexcept nogil:
    """dW'[ic0 : ic0 + ics][oc0 : oc0 + ocs] (+)= what `units` units from `unit` on, `length` long, contribute."""
    cdef kernels_t k = j.k
    cdef size_t es = j.es
    cdef ptrdiff_t nr = k.nr, oplane = j.out[0] * j.out[1] * j.out[2], iplane = j.in_[0] * j.in_[1] * j.in_[2]
    cdef char *b = scratch
    cdef char *xp = scratch + j.b_size
    cdef ptrdiff_t *row = <ptrdiff_t *>(scratch + j.b_size + j.x_size)
    cdef ptrdiff_t *run = row + ics * j.taps
    cdef ptrdiff_t pixels = units * length, xrow = 0, px = 0, u = 0, v, n, d, h, w, c, i
    cdef ptrdiff_t kd, kh, kw, id_, span, rows, together, cols, panel
    cdef const char *src
    cdef char *dst
    cdef fc_copy copy
    copy.width, copy.columns, copy.row, copy.phase = j.in_[2], j.pitch, j.pitch, 0
    copy.step[0], copy.step[1], copy.end = 1, 1, j.x + j.n * j.groups * j.ic * iplane * es

    while u < units:  # a section at a time
        h = (unit + u) % j.out[1]
        w = (unit + u) // j.out[1] % j.chunks * j.length
        d = (unit + u) // j.out[1] // j.chunks % j.out[0]
        n = (unit + u) // j.out[1] // j.chunks // j.out[0]
        v = min(j.out[1] - h, units - u)
        for panel from 0 <= panel < ocs by nr:
            cols = min(nr, ocs - panel)
            src = j.grad_output + (((n * j.groups + g) * j.oc + oc0 + panel) * oplane
                                   + (d * j.out[1] + h) * j.out[2] + w) * es
            dst = b + (panel * pixels + px * nr) * es
            if j.chunks == 1:  # the section's rows are one stretch of dY
                k.pack_transposed(<int>nr, src, oplane, <int>cols, v * length, dst,
                                  NULL if sums == NULL else sums + panel * es)
            else:
                for i in range(v):
                    k.pack_transposed(<int>nr, src + i * j.out[2] * es, oplane, <int>cols, length,
                                      dst + i * length * nr * es, NULL if sums == NULL else sums + panel * es)
        for i in range(v if j.in_place else 0):
            run[u + i] = (n * j.groups * j.ic * iplane + (d * j.stride[0] * j.in_[1] + (h + i) * j.stride[1]) * j.in_[2]
                          + w * j.stride[2])
        span = (j.kernel[1] - 1) * j.dilation[1] + 1
        rows = (v - 1) * j.row_step + span
        together = v if j.row_step == j.stride[1] else 1  # units whose rows follow one another
        copy.left = w * j.stride[2] - j.pad[2]
        for kd in range(0 if j.in_place else j.kernel[0]):
            id_ = d * j.stride[0] - j.pad[0] + kd * j.dilation[0]
            copy.height = j.in_[1] if 0 <= id_ < j.in_[0] else 0
            for c in range(ics):
                src = j.x + (((n * j.groups + g) * j.ic + ic0 + c) * iplane + id_ * j.in_[1] * j.in_[2]) * es
                dst = xp + ((kd * ics + c) * j.plane + xrow * j.pitch) * es
                for i from 0 <= i < v by together:
                    k.copy_rows(&copy, src, (h + i) * j.stride[1] - j.pad[1], (together - 1) * j.row_step + span,
                                dst + i * j.row_step * j.pitch * es)
        for i in range(0 if j.in_place else v):
            run[u + i] = (xrow + i * j.row_step) * j.pitch
        xrow += rows
        px += v * length
        u += v

    i = 0
    for c in range(ics):
        for kd in range(j.kernel[0]):
            for kh in range(j.kernel[1]):
                for kw in range(j.kernel[2]):
                    row[i] = (kd * ics + c) * j.plane + kh * j.dilation[1] * j.pitch + kw * j.dilation[2]
                    i += 1
    if j.in_place:
        for c in range(ics):
            row[c] = (g * j.ic + ic0 + c) * iplane
    for i from 0 <= i < ics * j.taps by k.mr:
        for panel from 0 <= panel < ocs by nr:
            k.gemm_rows(units, run, length, j.x if j.in_place else xp, row + i, j.stride[2], b + panel * pixels * es,
                        partial + ((ic0 * j.taps + i) * j.ldc + oc0 + panel) * es, j.ldc,
                        <int>min(<ptrdiff_t>k.mr, ics * j.taps - i), <int>min(nr, ocs - panel), accumulate, NULL, NULL)


cdef void weight_gradient_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: a block of input channels x a block of output channels of a group, over one share of the pixels."""
    cdef WeightGradientJob *j = <WeightGradientJob *>job_
    cdef ptrdiff_t ic_blocks = ceil_div(j.ic, j.ic_block), oc_blocks = ceil_div(j.oc, j.oc_block)
    cdef ptrdiff_t ic0 = task % ic_blocks * j.ic_block, oc0 = task // ic_blocks % oc_blocks * j.oc_block
    cdef ptrdiff_t rest = task // ic_blocks // oc_blocks
    cdef ptrdiff_t g = rest % j.groups, share = rest // j.groups
    cdef ptrdiff_t unit = j.units * share // j.shares, end = j.units * (share + 1) // j.shares
    cdef ptrdiff_t ics = min(j.ic_block, j.ic - ic0), ocs = min(j.oc_block, j.oc - oc0), length, stop
    cdef char *partial = j.partial + (share * j.groups + g) * j.ic * j.taps * j.ldc * j.es
    cdef char *sums = NULL
    cdef bint accumulate = False
    if j.grad_bias != NULL and ic0 == 0:
        sums = j.partial_bias + ((share * j.groups + g) * j.oc + oc0) * j.es
        memset(sums, 0, ocs * j.es)
    while unit < end:
        length, stop = j.length, min(unit + j.block_units, end)
        if j.chunks > 1:  # one chunk of one image: its units have one length
            stop = min(stop, (unit // j.out[1] + 1) * j.out[1])
            length = min(length, j.out[2] - unit // j.out[1] % j.chunks * j.length)
        weight_gradient_block(j, g, ic0, ics, oc0, ocs, unit, stop - unit, length, accumulate, partial, sums, scratch)
        accumulate = True
        unit = stop


cdef enum:
    REDUCE_ROWS = 64


cdef void pairwise(kernels_t k, size_t es, char *first, ptrdiff_t stride, ptrdiff_t shares, ptrdiff_t n) noexcept nogil:
    """first[0] = the sum of `shares` vectors, as a binary tree."""
    cdef ptrdiff_t step = 1, i
    while step < shares:
        for i from 0 <= i < shares - step by 2 * step:
            k.add(n, first + (i + step) * stride * es, first + i * stride * es)
        step *= 2


cdef void weight_reduction_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: REDUCE_ROWS rows (ic, tap) of dW', summed over the shares and transposed into dW[oc][ic, tap]."""
    cdef WeightGradientJob *j = <WeightGradientJob *>job_
    cdef ptrdiff_t depth = j.ic * j.taps, blocks = ceil_div(depth, REDUCE_ROWS)
    cdef ptrdiff_t g = task // blocks, k0 = task % blocks * REDUCE_ROWS, rows = min(<ptrdiff_t>REDUCE_ROWS, depth - k0)
    cdef char *partial = j.partial + (g * depth + k0) * j.ldc * j.es
    pairwise(j.k, j.es, partial, j.groups * depth * j.ldc, j.shares, rows * j.ldc)
    j.k.transpose(partial, j.ldc, rows, j.oc, j.grad_weight + (g * j.oc * depth + k0) * j.es, depth)


cdef int conv_gemm_weight_gradient(ConvPlan plan, const char *grad_output, const char *x, char *grad_weight,
                                   char *grad_bias) except -1:
    cdef WeightGradientJob j
    cdef int i, threads = threads_for(plan.flops)
    cdef ptrdiff_t oc = plan.groups * plan.oc, depth = plan.ic * plan.taps, rows, tasks
    j.k, j.es = plan.k, plan.es
    j.n, j.groups, j.ic, j.oc, j.taps = plan.n, plan.groups, plan.ic, plan.oc, plan.taps
    for i in range(3):
        j.in_[i], j.out[i], j.kernel[i] = plan.in_[i], plan.out[i], plan.kernel[i]
        j.stride[i], j.dilation[i], j.pad[i] = plan.stride[i], plan.dilation[i], plan.pad[i]
    j.grad_output, j.x, j.grad_weight, j.grad_bias = grad_output, x, grad_weight, grad_bias
    if plan.n * j.out[0] * j.out[1] * j.out[2] == 0:
        memset(j.grad_weight, 0, oc * depth * j.es)
        if j.grad_bias != NULL:
            memset(j.grad_bias, 0, oc * j.es)
        return 0
    j.ic_block, j.oc_block = plan.wg_rows, plan.wg_cols
    j.chunks = ceil_div(j.out[2], plan.wg_pixels)
    j.length = ceil_div(j.out[2], j.chunks)
    j.chunks = ceil_div(j.out[2], j.length)
    j.units = plan.n * j.out[0] * j.chunks * j.out[1]
    j.block_units = max(<ptrdiff_t>1, plan.wg_pixels // j.length)
    j.shares = min(plan.wg_shares, j.units)
    j.pitch = (j.length - 1) * j.stride[2] + (j.kernel[2] - 1) * j.dilation[2] + 1
    # a section of v units has (v - 1) * row_step + span rows; a block has at most 2 + units / rows sections
    rows = (j.kernel[1] - 1) * j.dilation[1] + 1
    j.row_step = min(j.stride[1], rows)
    rows = j.block_units * j.row_step + (2 + j.block_units // j.out[1]) * (rows - j.row_step)
    j.in_place = j.taps == 1
    for i in range(3):
        j.in_place = j.in_place and j.pad[i] == 0 and (j.out[i] - 1) * j.stride[i] < j.in_[i]
    j.plane = (rows * j.pitch + 15) // 16 * 16 + 16  # no power of two
    j.ldc = ceil_div(j.oc, j.k.lanes) * j.k.lanes
    j.b_size = aligned(ceil_div(min(j.oc_block, j.oc), j.k.nr) * j.k.nr * j.block_units * j.length * j.es)
    j.x_size = 0 if j.in_place else aligned((min(j.ic_block, j.ic) * j.kernel[0] * j.plane + 64) * j.es)
    j.offsets_size = aligned((min(j.ic_block, j.ic) * j.taps + j.block_units) * sizeof(ptrdiff_t))
    tasks = ceil_div(j.ic, j.ic_block) * ceil_div(j.oc, j.oc_block) * j.groups * j.shares

    cdef size_t partial = aligned(j.shares * j.groups * depth * j.ldc * j.es), bias = aligned(j.shares * oc * j.es)
    cdef size_t scratch = j.b_size + j.x_size + j.offsets_size
    cdef Arena arena = lease(partial + bias + threads * scratch)
    j.partial = <char *>arena.memory
    j.partial_bias = j.partial + partial
    with nogil:
        run_flushed(weight_gradient_task, &j, tasks, threads, j.partial + partial + bias, scratch)
        run_tasks(weight_reduction_task, &j, j.groups * ceil_div(depth, REDUCE_ROWS), threads, NULL, 0)
        if j.grad_bias != NULL:
            pairwise(j.k, j.es, j.partial_bias, oc, j.shares, oc)
            memcpy(j.grad_bias, j.partial_bias, oc * j.es)
    release(arena)
    return 0
