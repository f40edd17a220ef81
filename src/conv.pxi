"""The three passes of a convolution: each by the algorithm that its plan names."""


cdef class Panels:
    """Weights as the kernels of one pass read them: in row panels, or transformed for Winograd."""

    cdef char *memory
    cdef readonly size_t nbytes

    def __cinit__(self, size_t nbytes):
        self.nbytes = nbytes
        self.memory = <char *>fc_map(nbytes)
        if self.memory == NULL:
            raise MemoryError(f"fastconv: {nbytes} bytes for packed weights cannot be had")

    def __dealloc__(self):
        free(self.memory)


cdef WinogradJob winograd_filters(ConvPlan plan, bint gradient, const char *weight) noexcept:
    """The job of a pass by Winograd, as far as filters to be packed go."""
    cdef WinogradJob j = winograd_gradient(plan, weight, NULL) if gradient else winograd_output(plan, weight, NULL)
    plan_filters(&j, True)
    return j


cdef Panels packed_product(ProductJob *j):
    """The weights of a product in panels."""
    plan_product(j)
    cdef Panels panels = Panels(packed_depth(j, j.slices))
    j.packed, j.slice1 = panels.memory, j.slices
    with nogil:
        run_tasks(pack_columns_task, j, j.slices * ceil_div(j.n, j.cols), fc_get_threads(), NULL, 0)
    return panels


def packing(ConvPlan plan not None, bint gradient):
    """(pass, algorithm, ISA, what else distinguishes its packed weights from others of the same weights).

    None where weights are read as they are, by products of a few rows and depthwise, and where Winograd uses each of
    many filters once: transformed they would be four times the memory traffic.
    """
    cdef fc_plane plane
    cdef WinogradJob tiles
    cdef ProductJob product
    cdef int i
    name, isa = "input_gradient" if gradient else "output", plan.isa
    if plan.winograd_gradient.r if gradient else plan.winograd_output.r:
        tiles = winograd_filters(plan, gradient, NULL)
        if tiles.used_once and tiles.u_size > MAX_PACKED:
            return None
        return name, "winograd", isa, plan.groups, tiles.w.m
    if plan.im2col[gradient]:
        product = im2col_product(plan, gradient, NULL)
        return None if has_few_rows(&product) else (name, "im2col", isa, plan.groups)
    direct = plan.direct_gradient_rows if gradient else plan.direct_rows
    if direct and depthwise_plane(plan, &plane) and (plan.oc == 1 or not gradient):
        return None
    key = name, "direct" if direct else "gemm", isa, plan.groups
    if gradient:  # which taps a residue of the stride has
        for i in range(3):
            key += plan.kernel[i], plan.stride[i], plan.dilation[i], plan.pad[i], min(plan.in_[i], plan.stride[i])
    return key


def pack_weight(ConvPlan plan not None, bint gradient, ndarray weight not None):
    """The weights as a pass of the plan reads them, where its `packing` is not None."""
    cdef const char *pw = read(weight, plan.es, plan.weight_size)
    cdef int threads = fc_get_threads()
    cdef Panels panels
    cdef SweepJob sweeps
    cdef WinogradJob tiles
    cdef ProductJob product
    if plan.winograd_gradient.r if gradient else plan.winograd_output.r:
        tiles = winograd_filters(plan, gradient, pw)
        panels = Panels(plan.groups * tiles.u_size)
        tiles.packed = panels.memory
        with nogil:
            pack_filters(&tiles, threads)
    elif plan.im2col[gradient]:
        product = im2col_product(plan, gradient, pw)
        panels = packed_product(&product)
    else:
        sweeps = gradient_sweeps(plan, pw, NULL) if gradient else output_sweep(plan, pw, NULL)
        panels = Panels(packed_bytes(&sweeps))
        sweeps.packed = panels.memory
        with nogil:
            pack_weights(&sweeps, threads)
    return panels


cdef struct TapsJob:
    kernels_t k
    size_t es
    ptrdiff_t filters, taps, live  # (oc, ic); of a filter; of those wanted
    ptrdiff_t *at
    const char *weight
    char *out
    char *sums  # of a task's weights


cdef enum:
    TASK_WEIGHTS = 1 << 12


cdef void live_taps_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: TASK_WEIGHTS of the weights."""
    cdef TapsJob *j = <TapsJob *>job_
    cdef ptrdiff_t filters = max(<ptrdiff_t>1, TASK_WEIGHTS // j.taps), first = task * filters
    cdef const char *weight = j.weight + first * j.taps * j.es
    filters = min(filters, j.filters - first)
    j.k.sum(filters * j.taps, weight, j.sums + task * j.es)
    j.k.gather_window(filters, j.taps, j.live, j.at, weight, j.out + first * j.live * j.es)


def live_taps(ndarray weight not None, start, ndarray out not None):
    """out[oc][ic] = the taps of weight[oc][ic] from `start` on; returns whether all weights are finite.

    As far as their sum tells: where that of finite weights is not, no more is lost than time.
    """
    cdef TapsJob j
    cdef ptrdiff_t i = 0, tasks, d, h, w
    cdef ptrdiff_t[3] size, first, count
    cdef double total = 0
    for d in range(3):
        first[d], size[d], count[d] = start[d], 1, 1
        if weight.ndim > 4 - d:
            size[d], count[d] = weight.shape[weight.ndim - 3 + d], out.shape[weight.ndim - 3 + d]
    j.es = PyArray_ITEMSIZE(weight)
    j.k = fc_tables(fc_get_isa())[j.es == 8]
    j.filters, j.live = weight.shape[0] * weight.shape[1], count[0] * count[1] * count[2]
    j.taps = size[0] * size[1] * size[2]
    j.weight, j.out = read(weight, j.es, j.filters * j.taps), written(out, j.es, j.filters * j.live)
    tasks = ceil_div(j.filters, max(<ptrdiff_t>1, TASK_WEIGHTS // j.taps))
    cdef int threads = threads_for(8.0 * j.filters * j.taps)
    cdef size_t table = aligned(j.live * sizeof(ptrdiff_t))
    cdef Arena arena = lease(table + aligned(tasks * j.es))
    j.at, j.sums = <ptrdiff_t *>arena.memory, <char *>arena.memory + table
    with nogil:
        for d in range(first[0], first[0] + count[0]):
            for h in range(first[1], first[1] + count[1]):
                for w in range(first[2], first[2] + count[2]):
                    j.at[i] = (d * size[1] + h) * size[2] + w
                    i += 1
        run_tasks(live_taps_task, &j, tasks, threads, NULL, 0)
        for i in range(tasks):
            total += (<double *>j.sums)[i] if j.es == 8 else (<float *>j.sums)[i]
    release(arena)
    return total - total == 0


cdef inline char *panels_memory(Panels panels) noexcept:
    return NULL if panels is None else panels.memory


def conv_output(ConvPlan plan not None, ndarray x not None, ndarray weight not None, ndarray bias, ndarray residual,
                ndarray out not None, int activation=0, double slope=0, Panels panels=None):
    """out = activation(conv(x, weight) + bias + residual); bias and residual may be None, panels the packed weights."""
    cdef size_t es = plan.es
    cdef const char *px = read(x, es, plan.x_size)
    cdef const char *pw = read(weight, es, plan.weight_size)
    cdef const char *pb = read(bias, es, plan.groups * plan.oc)
    cdef const char *pr = read(residual, es, plan.out_size)
    cdef char *py = written(out, es, plan.out_size)
    cdef char *packed = panels_memory(panels)
    if plan.winograd_output.r:
        if conv_winograd_output(plan, px, pw, packed, pb, pr, py, activation, slope):
            return
        packed = NULL  # Winograd's
    if plan.im2col[0]:
        conv_im2col_output(plan, px, pw, packed, pb, pr, py, activation, slope)
    else:
        conv_gemm_output(plan, px, pw, packed, pb, pr, py, activation, slope)


def conv_input_gradient(ConvPlan plan not None, ndarray grad_output not None, ndarray weight not None,
                        ndarray grad_input not None, Panels panels=None, ndarray bias=None):
    """grad_input = d<grad_output, conv(x, weight)> / dx; panels may be the packed weights.

    Returns whether a bias, which a transposed convolution may have, has been added.
    """
    cdef size_t es = plan.es
    cdef const char *pg = read(grad_output, es, plan.out_size)
    cdef const char *pw = read(weight, es, plan.weight_size)
    cdef const char *pb = read(bias, es, plan.groups * plan.ic)
    cdef char *px = written(grad_input, es, plan.x_size)
    cdef char *packed = panels_memory(panels)
    if plan.winograd_gradient.r:
        if conv_winograd_input_gradient(plan, pg, pw, packed, pb, px):
            return pb != NULL
        packed = NULL  # Winograd's
    if plan.im2col[1]:
        conv_im2col_input_gradient(plan, pg, pw, packed, px)
        return False
    return conv_gemm_input_gradient(plan, pg, pw, packed, pb, px) == 1


def conv_weight_gradient(ConvPlan plan not None, ndarray grad_output not None, ndarray x not None,
                         ndarray grad_weight not None, ndarray grad_bias):
    """grad_weight = d<grad_output, conv(x, weight)> / dweight; grad_bias (or None) = sum of grad_output."""
    cdef size_t es = plan.es
    cdef const char *pg = read(grad_output, es, plan.out_size)
    cdef const char *px = read(x, es, plan.x_size)
    cdef char *pw = written(grad_weight, es, plan.weight_size)
    cdef char *pb = written(grad_bias, es, plan.groups * plan.oc)
    if (plan.direct_weight_rows and conv_direct_weight_gradient(plan, pg, px, pw) == 0
            or plan.winograd_weight.r and conv_winograd_weight_gradient(plan, pg, px, pw)
            or plan.im2col[2] and conv_im2col_weight_gradient(plan, pg, px, pw) == 0):
        if pb != NULL:
            run_channel_sums(plan.k, es, pg, plan.n, plan.groups * plan.oc, plan.out_size, pb)
        return
    conv_gemm_weight_gradient(plan, pg, px, pw, pb)
