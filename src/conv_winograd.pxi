"""Convolution by Winograd's minimal filtering, r x r with r = 3 or 5, stride 1, any dilation: all three passes.

    U[p][k][i][c] = (G g G^T)[p]       filters, p the points of a tile: 25, 36 or 49 (micro/winograd.h)
    V[p][t][c]    = (B^T d B)[p]       tiles t of the image, m x m outputs each
    M[p][t][k]    = sum_i sum_c V[p][t + i][c] * U[p][k][i][c]          a matrix product for each point
    Y             = A^T M A

where i are the planes of a filter of three dimensions, t + i the tile i planes below.  The input gradient is the same
with turned filters and r - 1 - pad.  In the weight gradient tiles of dY stand for filters:

    dU[p][i][c][k] += sum_t V[p][t + i][c] * D[p][t][k],  D = G' dY G'^T,      dW = A'^T dU A'

Lanes are channels: V and D are operands of the micro-kernel as they leave the transforms, V [t][c] where the rows of
the product are tiles, [c / lanes][t][lanes] in the weight gradient, whose sum is over them.

Tiles are numbered patch by patch, a patch being a box of planes x tiles_h x tiles_w tiles of one image (tiles beyond
the border are zeros and are not stored); V has the planes that its filters reach, too, each patch its own.  Output
and input gradient have one kind of task:

    some patches x a panel of nr rows       image -> patch, transposed -> V; the products into M, which stays in L2 -> Y

Panels of the same patches follow one another, so that a thread transforms these once: V is its own, as lines that other
cores have read take long to write.  In the weight gradient, which sums over the patches, a block of them goes through
two phases:

    1. a plane of a patch x some channels                    V and D, shared by all threads
    2. a point x a plane of filters x some channels          dU[p] += V[p]^T D[p]

A filter along a line, 1 x k or k x 1, has tiles that follow one another along the lines, of which a patch has some: of
up to five taps tiles of a column, of up to nine those of a 3 x 3 filter (micro/winograd.h), 12 outputs each.

A dilation d splits the planes into d x d images of their residues, each convolved without dilation: a patch then takes
every d-th pixel.  Residues of a row whose filter lies along it are neighbours: their tiles lie side by side in a patch.

Planes [p] lie an odd number of cache lines apart, or 36 streams would fall into the same sets.  A result that is not
finite may come from an overflow or NaN that belongs to other pixels of its tile: the call is then done again by packed
GEMM.
"""

cdef enum:
    CHANNELS = 64  # a task of the transforms, whole vectors
    SUMMED = 128  # products, at most, that are summed in registers; for 5x5 filters, which round more, half as many
    MAX_PACKED = 16 << 20  # bytes of transformed filters that are worth reading, if each is used once
    MAX_PADDED = 8 << 20  # and that may lie beyond the memory rule's six times the weights, where rows are few
    MARK = 64  # bytes that say what a thread's scratch holds, before V or a packed panel
    MIN_FUSED = 8  # tasks, or their transforms are done in memory for the sake of balance


cdef struct WinogradJob:
    kernels_t k
    size_t es
    Winograd w
    ptrdiff_t points, group, groups
    ptrdiff_t n, channels, rows  # of a group: summed over, computed
    ptrdiff_t taps  # planes of a filter
    int filter  # taps of a plane
    bint flat  # tiles are columns
    ptrdiff_t abreast  # residues of a dilated row that lie side by side in a patch, which is a stretch of it
    ptrdiff_t whole  # taps of a filter along a line, with the zeros that make it r or r x r
    ptrdiff_t high, wide, reach_h, reach_w  # outputs of a patch along h and w; how many more inputs
    fc_tiles in_tiles, out_tiles
    ptrdiff_t in_d, in_h, in_w, out_d, out_h, out_w, pad_d, pad_h, pad_w
    ptrdiff_t[2] dilation, residues  # of which there are no more than outputs
    ptrdiff_t tiles, patch_tiles, v_tiles, planes_in  # of a plane of a patch, of a patch, of it in V; planes of V
    ptrdiff_t patches_d, patches_h, patches_w, patches  # of an image, of all
    ptrdiff_t patch0, count  # of the weight gradient's block
    ptrdiff_t chunk  # channels of a task that transforms
    ptrdiff_t line  # rows whose transformed filters share cache lines
    ptrdiff_t width  # rows of a panel: nr, or what cuts the rows into even panels
    const char *x
    const char *weights  # of all groups
    const char *weight
    ptrdiff_t row_stride, channel_stride  # of the weights, in elements
    int flip
    const char *bias
    const char *residual
    char *y
    int activation
    double slope
    bint accumulate
    bint used_once  # each filter, by one task; or kept by none. A chunk of channels is summed at a time, packed or not
    bint fused  # filters (or sums) of a task are transformed in its scratch
    int finite
    char *packed  # U of all groups; NULL: not yet
    char *u
    char *v
    char *d
    ptrdiff_t u_plane, v_plane, v_stride, v_channel, d_plane, m_plane, u_stride  # in elements; V of tiles, channels
    size_t u_size  # of a group, in bytes
    size_t v_size, patch_size, m_size  # parts of a thread's scratch, in bytes


cdef inline ptrdiff_t odd_lines(ptrdiff_t elements, size_t es) noexcept nogil:
    """Elements of a plane of at least `elements`, an odd number of cache lines long."""
    return (ceil_div(elements * es, 64) | 1) * 64 // es


cdef inline ptrdiff_t whole_lanes(const WinogradJob *j, ptrdiff_t n) noexcept nogil:
    """Channels up to the end of a vector: those behind the last are zeros, computed so that none is undefined."""
    return ceil_div(n, j.k.lanes) * j.k.lanes


cdef inline int tile_points(const WinogradJob *j) noexcept nogil:
    """Along an axis."""
    return <int>(j.w.m + j.w.r - 1)


cdef inline const char *filter_plane(const WinogradJob *j, ptrdiff_t row, ptrdiff_t tap, ptrdiff_t c) noexcept nogil:
    """The plane of the filter of a row and channel that meets the tap-th plane of V."""
    cdef ptrdiff_t i = j.taps - 1 - tap if j.flip else tap
    return j.weight + (row * j.row_stride + c * j.channel_stride + i * j.filter) * j.es


cdef inline void transform_chunk(const WinogradJob *j, ptrdiff_t row, ptrdiff_t tap, ptrdiff_t c,
                                 char *u) noexcept nogil:
    """U of a vector of rows, one plane and a chunk of channels from c on."""
    j.k.winograd_filters(tile_points(j), filter_plane(j, row, tap, c), j.row_stride, j.channel_stride, j.filter,
                         <int>min(<ptrdiff_t>j.k.lanes, j.rows - row), min(j.chunk, j.channels - c), j.flip, u,
                         j.u_plane)


cdef void filters_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: U of the rows that share cache lines, one plane and a chunk of channels."""
    cdef WinogradJob *j = <WinogradJob *>job_
    cdef ptrdiff_t chunks = ceil_div(j.channels, j.chunk), c = task % chunks * j.chunk
    cdef ptrdiff_t tap = task // chunks % j.taps, row0 = task // chunks // j.taps * j.line, row
    for row from row0 <= row < min(row0 + j.line, j.rows) by j.k.lanes:
        transform_chunk(j, row, tap, c, j.u + (((row // j.width * j.taps + tap) * j.channels + c) * j.k.nr
                                               + row % j.width) * j.es)


cdef inline void patch_position(const WinogradJob *j, ptrdiff_t patch, fc_image *image, ptrdiff_t *n,
                                ptrdiff_t *d) noexcept nogil:
    """Image, plane and first output pixel of a patch; the residues of a dilation are neighbouring patches."""
    cdef ptrdiff_t w = patch % j.residues[1], rest = patch // j.residues[1], h = rest % j.residues[0]
    rest //= j.residues[0]
    image.row = h + rest // j.patches_w % j.patches_h * j.high * j.dilation[0]
    image.col = w + rest % j.patches_w * j.wide * j.dilation[1]
    image.step[0], image.step[1] = j.dilation[0], j.dilation[1]
    rest //= j.patches_h * j.patches_w
    n[0], d[0] = rest // j.patches_d, rest % j.patches_d * j.w.planes


cdef void transform_image(const WinogradJob *j, ptrdiff_t patch, ptrdiff_t i, ptrdiff_t c0, ptrdiff_t c1, char *v,
                          char *scratch) noexcept nogil:
    """V of the i-th plane of a patch and some channels; the patch's V starts at v."""
    cdef ptrdiff_t plane = j.in_h * j.in_w, n, d, c
    cdef int rows = <int>(j.high + j.reach_h), cols = <int>(j.wide + j.reach_w)
    cdef fc_image image
    patch_position(j, patch, &image, &n, &d)
    d += i - j.pad_d
    image.row -= j.pad_h
    image.col -= j.pad_w
    image.height, image.width, image.plane = j.in_h if 0 <= d < j.in_d else 0, j.in_w, j.in_d * plane
    for c from c0 <= c < c1 by j.k.lanes:
        image.channels = <int>min(<ptrdiff_t>j.k.lanes, j.channels - c)
        j.k.load_patch(&image, j.x + (((n * j.groups + j.group) * j.channels + c) * j.in_d + d) * plane * j.es, rows,
                       cols, scratch)
        j.k.winograd_input(tile_points(j), &j.in_tiles, scratch,
                           v + (i * j.tiles * j.v_stride + c * j.v_channel) * j.es, j.v_plane, j.v_stride)


cdef void multiply_tiles(const WinogradJob *j, const char *v, const char *u, ptrdiff_t taps, ptrdiff_t channels,
                         ptrdiff_t chunk, ptrdiff_t tiles, ptrdiff_t cols, bint accumulate,
                         char *products) noexcept nogil:
    """M[p] (+)= V[p] * U[p] for all points, a panel of U over some taps and channels, a chunk of them at a time."""
    cdef kernels_t k = j.k
    cdef ptrdiff_t p, tap, c, here_v, here_u, next_v = 0, next_u = 0
    cdef fc_ahead ahead
    ahead.b_step = k.nr * j.es // ceil_div(tiles, k.mr)
    for p in range(j.points):
        for tap in range(taps):
            for c from 0 <= c < channels by chunk:
                here_v, here_u = next_v, next_u
                if c + chunk < channels:
                    next_v, next_u = here_v + chunk, here_u + chunk * k.nr
                elif tap + 1 < taps:
                    next_v, next_u = here_v - c + j.tiles * j.v_stride, here_u + (channels - c) * k.nr
                elif p + 1 < j.points:
                    next_v, next_u = (p + 1) * j.v_plane, (p + 1) * j.u_plane
                else:
                    next_v = next_u = 0
                ahead.a, ahead.b = v + next_v * j.es, u + next_u * j.es
                k.gemm_lines(min(chunk, channels - c), v + here_v * j.es, j.v_stride, tiles, u + here_u * j.es,
                             products + p * j.m_plane * j.es, k.nr, <int>cols, accumulate or tap > 0 or c > 0, &ahead)


cdef inline ptrdiff_t summed_together(const WinogradJob *j, ptrdiff_t n) noexcept nogil:
    """How many of n products the micro-kernel sums before the sum is added to others, as even as whole vectors allow.

    Of n numbers, summed b at a time, the rounding error grows as sqrt(b) and sqrt(n / b) instead of sqrt(n).
    """
    return whole_lanes(j, ceil_div(n, ceil_div(n, SUMMED if j.w.r == 3 else SUMMED // 2)))


cdef void product_tiles_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: the outputs of some patches and a panel of nr rows."""
    cdef WinogradJob *j = <WinogradJob *>job_
    cdef kernels_t k = j.k
    cdef size_t es = j.es
    cdef ptrdiff_t panels = ceil_div(j.rows, j.width), nr = k.nr, plane = j.out_h * j.out_w
    cdef ptrdiff_t patch0 = task // panels * j.w.patches, patch1 = min(patch0 + j.w.patches, j.patches)
    cdef ptrdiff_t row0 = task % panels * j.width, cols = min(j.width, whole_lanes(j, j.rows - row0))
    cdef ptrdiff_t tiles = (patch1 - patch0) * j.patch_tiles, number = j.group * j.patches + patch0
    cdef ptrdiff_t c, i, col, n, d, at, patch
    cdef int height = <int>j.high, width = <int>j.wide
    cdef fc_image image
    cdef ptrdiff_t *known = <ptrdiff_t *>scratch  # the patches whose V the thread has; -1: none
    cdef char *v = scratch + MARK
    cdef char *y = v + j.v_size
    cdef char *residual = y + j.patch_size
    cdef char *products = residual + (0 if j.residual == NULL else j.patch_size)
    cdef char *u = products + j.m_size
    if not j.finite:
        return
    if known[0] != number:
        for patch in range(patch0, patch1):
            for i in range(j.planes_in):
                transform_image(j, patch, i, 0, j.channels, v + (patch - patch0) * j.v_tiles * j.v_stride * es, y)
        known[0] = number
    if j.fused:
        for i in range(j.taps):
            for c from 0 <= c < j.channels by j.chunk:
                for col from 0 <= col < cols by k.lanes:
                    transform_chunk(j, row0 + col, i, c, u + col * es)
                multiply_tiles(j, v + (i * j.tiles * j.v_stride + c) * es, u, 1, min(j.chunk, j.channels - c), j.chunk,
                               tiles, cols, i > 0 or c > 0, products)
    else:
        multiply_tiles(j, v, j.u + task % panels * nr * j.taps * j.channels * es, j.taps, j.channels,
                       j.chunk if j.used_once else summed_together(j, j.channels), tiles, cols, False, products)
    image.height, image.width, image.plane = j.out_h, j.out_w, j.out_d * plane
    for patch in range(patch0, patch1):
        patch_position(j, patch, &image, &n, &d)
        for i in range(min(j.w.planes, j.out_d - d)):
            for col from 0 <= col < cols by k.lanes:
                image.channels = <int>min(<ptrdiff_t>k.lanes, j.rows - row0 - col)
                at = (((n * j.groups + j.group) * j.rows + row0 + col) * j.out_d + d + i) * plane * es
                if not k.winograd_output(tile_points(j),
                                         products + (((patch - patch0) * j.w.planes + i) * j.tiles * nr + col) * es,
                                         j.m_plane, nr, &j.out_tiles,
                                         NULL if j.bias == NULL else j.bias + (row0 + col) * es, image.channels,
                                         y):
                    j.finite = 0
                if j.residual != NULL:
                    k.load_patch(&image, j.residual + at, height, width, residual)
                if j.activation or j.residual != NULL:
                    k.epilogue(y, 0, 1, height * width * k.lanes, NULL,
                               NULL if j.residual == NULL else residual, j.activation, j.slope)
                k.store_patch(&image, y, height, width, j.y + at)


cdef inline ptrdiff_t tile_length(const WinogradJob *j) noexcept nogil:
    """Outputs of a tile along a line."""
    return j.w.m if j.flat or not j.w.axis else j.w.m * j.w.r


cdef fc_tiles tiles_of(const WinogradJob *j, ptrdiff_t width) noexcept nogil:
    """Where tiles lie in a patch so wide."""
    cdef fc_tiles t
    t.tiles_h, t.tiles_w, t.flat, t.overlap = <int>j.w.tiles_h, <int>j.w.tiles_w, j.flat, j.w.axis and not j.flat
    t.row, t.col, t.down, t.across = width, 1, j.w.m * width, j.w.m
    if j.w.axis:
        t.col, t.across = width, 1
        if j.w.axis == 2:
            t.col, t.across = j.abreast, 1 if j.abreast > 1 else width
        t.row, t.down = t.col if j.flat else j.w.r * t.col, tile_length(j) * t.col
    return t


cdef void plan_patches(WinogradJob *j) noexcept nogil:
    cdef ptrdiff_t length = j.w.tiles_h * tile_length(j), reach = j.w.r - 1 if j.flat or not j.w.axis else j.whole
    j.high, j.wide, j.reach_h, j.reach_w = length, j.w.tiles_w * j.w.m, reach, reach
    if j.w.axis == 1:
        j.wide, j.reach_w = j.w.tiles_w, 0
    if j.w.axis == 2:
        j.high, j.wide = 1 if j.abreast > 1 else j.w.tiles_w, length * j.abreast
        j.reach_h, j.reach_w = 0, reach * j.abreast
    j.in_tiles, j.out_tiles = tiles_of(j, j.wide + j.reach_w), tiles_of(j, j.wide)
    j.points = tile_points(j) * (1 if j.flat else tile_points(j))
    j.tiles, j.planes_in = j.w.tiles_h * j.w.tiles_w, j.w.planes + j.taps - 1
    j.patch_tiles, j.v_tiles = j.w.planes * j.tiles, j.planes_in * j.tiles
    j.patches_d = ceil_div(j.out_d, j.w.planes)
    j.patches_h = ceil_div(ceil_div(j.out_h, j.dilation[0]), j.high)
    j.patches_w = ceil_div(ceil_div(j.out_w, j.dilation[1]), j.wide)
    j.residues[0], j.residues[1] = min(j.dilation[0], j.out_h), min(j.dilation[1], j.out_w)
    j.patches = j.n * j.patches_d * j.residues[0] * j.residues[1] * j.patches_h * j.patches_w
    j.w.patches = max(<ptrdiff_t>1, min(j.w.patches, j.patches))
    j.v_stride, j.v_channel = whole_lanes(j, j.channels), 1
    j.v_plane = odd_lines(j.w.patches * j.v_tiles * j.v_stride, j.es)
    j.chunk = CHANNELS
    j.line = max(<ptrdiff_t>j.k.lanes, <ptrdiff_t>(64 // j.es))
    j.width = whole_lanes(j, ceil_div(j.rows, ceil_div(j.rows, j.k.nr)))
    j.patch_size = aligned((j.high + j.reach_h) * (j.wide + j.reach_w) * j.k.lanes * j.es)
    j.finite = 1


cdef ptrdiff_t even_panels(const WinogradJob *j) noexcept nogil:
    """Width of panels that are all the tasks there are: of three vectors or two, an even number that fills fewer."""
    cdef ptrdiff_t nr = j.k.nr, narrow = nr - j.k.lanes
    if nr > 2 * j.k.lanes and ceil_div(ceil_div(j.rows, narrow), 2) * narrow < ceil_div(ceil_div(j.rows, nr), 2) * nr:
        return narrow
    return j.width


cdef void plan_filters(WinogradJob *j, bint packed) noexcept nogil:
    """Whether filters are transformed by the task that uses them, and where they lie."""
    plan_patches(j)
    cdef ptrdiff_t u = j.points * ceil_div(j.rows, j.k.nr) * j.k.nr * j.taps * j.channels * j.es
    cdef ptrdiff_t weights = j.groups * j.rows * j.taps * j.filter * j.channels * j.es
    j.used_once = j.patches <= j.w.patches or u > MAX_PADDED + 6 * weights
    j.fused = j.used_once and not packed
    if j.fused:
        j.width = even_panels(j)
    j.u_plane = odd_lines((min(j.chunk, j.channels) if j.fused
                           else ceil_div(j.rows, j.k.nr) * j.taps * j.channels) * j.k.nr, j.es)
    j.u_size = aligned(j.points * j.u_plane * j.es)


cdef void transform_filters(WinogradJob *j, int threads) noexcept nogil:
    """U of one group."""
    run_flushed(filters_task, j, ceil_div(j.rows, j.line) * j.taps * ceil_div(j.channels, j.chunk), threads, NULL, 0)


cdef void pack_filters(WinogradJob *j, int threads) noexcept nogil:
    """U of all groups."""
    cdef ptrdiff_t g
    for g in range(j.groups):
        j.weight = j.weights + g * j.rows * j.channels * j.taps * j.filter * j.es
        j.u = j.packed + g * j.u_size
        transform_filters(j, threads)


cdef int run_winograd(WinogradJob *j, double flops) except -1:
    """Y of all groups; returns whether all of it is finite."""
    cdef ptrdiff_t tasks
    cdef int threads = threads_for(flops), g
    plan_filters(j, j.packed != NULL)
    tasks = ceil_div(j.patches, j.w.patches) * ceil_div(j.rows, j.width)
    j.m_plane = odd_lines(j.w.patches * j.patch_tiles * j.k.nr, j.es)
    j.m_size, j.v_size = aligned(j.points * j.m_plane * j.es), aligned(j.points * j.v_plane * j.es)
    cdef size_t u = 0 if j.fused or j.packed != NULL else j.u_size, scratch = MARK + j.v_size + j.m_size
    scratch += j.patch_size * (1 if j.residual == NULL else 2) + (j.u_size if j.fused else 0)
    cdef Arena arena = lease(u + threads * scratch)
    cdef const char *bias = j.bias
    cdef char *memory = <char *>arena.memory
    for g in range(threads):
        (<ptrdiff_t *>(memory + u + g * scratch))[0] = -1
    with nogil:
        for g in range(j.groups):
            j.group = g
            j.bias = NULL if bias == NULL else bias + g * j.rows * j.es
            j.weight = j.weights + g * j.rows * j.channels * j.taps * j.filter * j.es
            if j.packed != NULL:
                j.u = j.packed + g * j.u_size
            elif not j.fused:
                j.u = memory
                transform_filters(j, threads)
            run_flushed(product_tiles_task, j, tasks, threads, memory + u, scratch)
    release(arena)
    return j.finite


cdef void set_extents(WinogradJob *j, ConvPlan plan, const ptrdiff_t *in_, const ptrdiff_t *out) noexcept:
    """Extents of what is read and of what is computed."""
    j.in_d, j.in_h, j.in_w = in_[0], in_[1], in_[2]
    j.out_d, j.out_h, j.out_w = out[0], out[1], out[2]
    j.taps, j.filter = plan.kernel[0], <int>(plan.kernel[1] * plan.kernel[2])
    j.flat = j.filter <= j.w.r
    j.whole = j.w.r if j.flat else j.w.r * j.w.r
    j.dilation[0] = 1 if j.w.axis > 1 else plan.dilation[1]
    j.dilation[1] = 1 if j.w.axis == 1 else plan.dilation[2]
    j.abreast = 1
    if j.w.axis == 3:
        j.w.axis, j.abreast, j.dilation[1] = 2, plan.dilation[2], 1


cdef WinogradJob winograd_output(ConvPlan plan, const char *weight, char *packed) noexcept:
    """The job of an output, without its other arrays."""
    cdef WinogradJob j
    memset(&j, 0, sizeof(j))
    j.k, j.es, j.w = plan.k, plan.es, plan.winograd_output
    j.n, j.groups, j.channels, j.rows = plan.n, plan.groups, plan.ic, plan.oc
    set_extents(&j, plan, plan.in_, plan.out)
    j.pad_d, j.pad_h, j.pad_w = plan.pad[0], plan.pad[1], plan.pad[2]
    j.weights, j.packed = weight, packed
    j.row_stride, j.channel_stride, j.flip = plan.ic * plan.taps, plan.taps, 0
    return j


cdef WinogradJob winograd_gradient(ConvPlan plan, const char *weight, char *packed) noexcept:
    """The job of an input gradient, without its other arrays."""
    cdef WinogradJob j
    memset(&j, 0, sizeof(j))
    j.k, j.es, j.w = plan.k, plan.es, plan.winograd_gradient
    j.n, j.groups, j.channels, j.rows = plan.n, plan.groups, plan.oc, plan.ic
    set_extents(&j, plan, plan.out, plan.in_)
    j.pad_d = plan.kernel[0] - 1 - plan.pad[0]
    j.pad_h = (j.whole - 1 if j.w.axis == 1 else plan.kernel[1] - 1) * plan.dilation[1] - plan.pad[1]
    j.pad_w = (j.whole - 1 if j.w.axis == 2 else plan.kernel[2] - 1) * plan.dilation[2] - plan.pad[2]
    j.weights, j.packed = weight, packed
    j.row_stride, j.channel_stride, j.flip = plan.taps, plan.ic * plan.taps, 1
    return j


cdef int conv_winograd_output(ConvPlan plan, const char *x, const char *weight, char *packed, const char *bias,
                              const char *residual, char *out, int activation, double slope) except -1:
    cdef WinogradJob j = winograd_output(plan, weight, packed)
    j.x, j.bias, j.residual, j.y = x, bias, residual, out
    j.activation, j.slope = activation, slope
    return run_winograd(&j, plan.flops)


cdef int conv_winograd_input_gradient(ConvPlan plan, const char *grad_output, const char *weight, char *packed,
                                      const char *bias, char *grad_input) except -1:
    cdef WinogradJob j = winograd_gradient(plan, weight, packed)
    j.x, j.bias, j.y = grad_output, bias, grad_input
    return run_winograd(&j, plan.flops)


# ---- weight gradient ----

cdef void gradient_tiles_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: V of a plane of a patch and a chunk of input channels, or D and a chunk of output channels."""
    cdef WinogradJob *j = <WinogradJob *>job_
    cdef ptrdiff_t chunks = ceil_div(j.channels, j.chunk), images = j.count * j.planes_in * chunks
    cdef ptrdiff_t c0, patch, n, d, c, i
    if task < images:
        c0, patch = task % chunks * j.chunk, task // chunks // j.planes_in
        transform_image(j, j.patch0 + patch, task // chunks % j.planes_in, c0, min(c0 + j.chunk, j.channels),
                        j.v + patch * j.v_tiles * j.v_stride * j.es, scratch)
        return
    task -= images
    chunks = ceil_div(j.rows, j.chunk)
    patch, i = task // chunks // j.w.planes, task // chunks % j.w.planes
    cdef ptrdiff_t tile = patch * j.patch_tiles + i * j.tiles
    cdef ptrdiff_t plane = j.out_h * j.out_w
    cdef fc_image image
    patch_position(j, j.patch0 + patch, &image, &n, &d)
    d += i
    image.height, image.width, image.plane = j.out_h if d < j.out_d else 0, j.out_w, j.out_d * plane
    for c from task % chunks * j.chunk <= c < min((task % chunks + 1) * j.chunk, j.rows) by j.k.lanes:
        image.channels = <int>min(<ptrdiff_t>j.k.lanes, j.rows - c)
        j.k.load_patch(&image, j.y + (((n * j.groups + j.group) * j.rows + c) * j.out_d + d) * plane * j.es,
                       <int>j.high, <int>j.wide, scratch)
        j.k.winograd_gradient(<int>j.w.m, &j.out_tiles, scratch,
                              j.d + ((c // j.width * j.w.patches * j.patch_tiles + tile) * j.k.nr + c % j.width)
                              * j.es,
                              j.d_plane, j.k.nr)


cdef void multiply_weights(const WinogradJob *j, ptrdiff_t p, ptrdiff_t tap, ptrdiff_t c0, ptrdiff_t c1,
                           ptrdiff_t panel, char *sums, ptrdiff_t stride) noexcept nogil:
    """dU[p][tap][c0 : c1][panel] (+)= V[p]^T D[p] over the tiles of the block, which in D lie as close as in V if the
    filter has one plane."""
    cdef ptrdiff_t runs = 1 if j.taps == 1 else j.count, run = j.count // runs * j.patch_tiles, i, t
    cdef ptrdiff_t together = summed_together(j, run)
    cdef const char *v = j.v + (p * j.v_plane + tap * j.tiles * j.k.lanes + c0 * j.v_channel) * j.es
    cdef const char *d = j.d + (p * j.d_plane + panel // j.width * j.k.nr * j.w.patches * j.patch_tiles) * j.es
    for i in range(runs):
        for t from 0 <= t < run by together:
            j.k.gemm_blocks(min(together, run - t), v + (i * j.v_tiles + t) * j.k.lanes * j.es,
                            j.k.lanes * j.v_channel, c1 - c0, d + (i * run + t) * j.k.nr * j.es, sums, stride,
                            <int>min(j.width, whole_lanes(j, j.rows - panel)), j.accumulate or i > 0 or t > 0)


cdef void product_weights_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: dU of one point, a plane of filters and a chunk of input channels."""
    cdef WinogradJob *j = <WinogradJob *>job_
    cdef ptrdiff_t chunks = ceil_div(j.channels, j.chunk), tap = task // chunks % j.taps, p = task // chunks // j.taps
    cdef ptrdiff_t c0 = task % chunks * j.chunk, panel
    for panel from 0 <= panel < j.rows by j.width:
        multiply_weights(j, p, tap, c0, min(c0 + j.chunk, j.channels), panel,
                         j.u + (p * j.u_plane + (tap * j.channels + c0) * j.u_stride + panel) * j.es, j.u_stride)


cdef void finish_weights(WinogradJob *j, const char *sums, ptrdiff_t row, ptrdiff_t tap, ptrdiff_t c0,
                         ptrdiff_t count) noexcept nogil:
    """dW of one vector of output channels, a plane of filters and some input channels."""
    if not j.k.winograd_weights(tile_points(j), <int>j.w.r, sums, j.u_plane, j.u_stride, count, j.filter,
                                <int>min(<ptrdiff_t>j.k.lanes, j.rows - row), <char *>filter_plane(j, row, tap, c0),
                                j.row_stride, j.channel_stride):
        j.finite = 0


cdef void weights_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: dW of one vector of output channels, a plane of filters and a chunk of input channels."""
    cdef WinogradJob *j = <WinogradJob *>job_
    cdef ptrdiff_t chunks = ceil_div(j.channels, j.chunk), c = task % chunks * j.chunk
    cdef ptrdiff_t tap = task // chunks % j.taps, row = task // chunks // j.taps * j.k.lanes
    finish_weights(j, j.u + ((tap * j.channels + c) * j.u_stride + row) * j.es, row, tap, c,
                   min(j.chunk, j.channels - c))


cdef void fused_weights_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    """Task: dU, then dW, of a panel of output channels, a plane of filters and a chunk of input channels; dU stays in
    L2."""
    cdef WinogradJob *j = <WinogradJob *>job_
    cdef ptrdiff_t chunks = ceil_div(j.channels, j.chunk), c = task % chunks * j.chunk
    cdef ptrdiff_t tap = task // chunks % j.taps, panel = task // chunks // j.taps * j.width
    cdef ptrdiff_t count = min(j.chunk, j.channels - c), p, col
    for p in range(j.points):
        multiply_weights(j, p, tap, c, c + count, panel, scratch + p * j.u_plane * j.es, j.u_stride)
    for col from 0 <= col < min(j.width, j.rows - panel) by j.k.lanes:
        finish_weights(j, scratch + col * j.es, panel + col, tap, c, count)


cdef int conv_winograd_weight_gradient(ConvPlan plan, const char *grad_output, const char *x,
                                       char *grad_weight) except -1:
    cdef WinogradJob j
    cdef int threads = threads_for(plan.flops), g
    cdef ptrdiff_t chunks, panels
    memset(&j, 0, sizeof(j))
    j.k, j.es, j.w = plan.k, plan.es, plan.winograd_weight
    j.n, j.groups, j.channels, j.rows = plan.n, plan.groups, plan.ic, plan.oc
    set_extents(&j, plan, plan.in_, plan.out)
    j.pad_d, j.pad_h, j.pad_w = plan.pad[0], plan.pad[1], plan.pad[2]
    j.x, j.y = x, <char *>grad_output
    j.row_stride, j.channel_stride = plan.ic * plan.taps, plan.taps
    plan_patches(&j)
    j.v_stride, j.v_channel = j.k.lanes, j.w.patches * j.v_tiles
    chunks, panels = ceil_div(j.channels, j.chunk), ceil_div(j.rows, j.k.nr)
    j.fused = j.patches <= j.w.patches and chunks * j.taps * panels >= MIN_FUSED
    j.u_stride = j.k.nr if j.fused else whole_lanes(&j, j.rows)
    j.u_plane = odd_lines(min(j.chunk, j.channels) * j.k.nr if j.fused else j.taps * j.channels * j.u_stride, j.es)
    j.d_plane = odd_lines(panels * j.k.nr * j.w.patches * j.patch_tiles, j.es)
    cdef size_t u = aligned(j.points * j.u_plane * j.es), v = aligned(j.points * j.v_plane * j.es)
    cdef size_t d = aligned(j.points * j.d_plane * j.es), scratch = max(j.patch_size, u if j.fused else 0)
    cdef Arena arena = lease(u + v + d + threads * scratch)
    j.u = <char *>arena.memory
    j.v = j.u + u
    j.d = j.v + v
    with nogil:
        for g in range(j.groups):
            j.group = g
            j.weight = grad_weight + g * j.rows * j.row_stride * j.es
            j.patch0 = 0
            while j.patch0 < j.patches:
                j.count = min(j.w.patches, j.patches - j.patch0)
                j.accumulate = j.patch0 > 0
                run_flushed(gradient_tiles_task, &j,
                            j.count * (j.planes_in * chunks + j.w.planes * ceil_div(j.rows, j.chunk)), threads,
                            j.d + d, scratch)
                if j.fused:
                    run_flushed(fused_weights_task, &j, chunks * j.taps * panels, threads, j.d + d, scratch)
                else:
                    run_flushed(product_weights_task, &j, j.points * j.taps * chunks, threads, NULL, 0)
                j.patch0 += j.count
            if not j.fused:
                run_flushed(weights_task, &j, ceil_div(j.rows, j.k.lanes) * j.taps * chunks, threads, NULL, 0)
    release(arena)
    return j.finite
