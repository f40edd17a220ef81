"""The cost model: geometry -> algorithm and blocking of the three passes, as pure functions.

Costs are cycles of one core on data in cache, counted in vector operations:

    gemm      Mp * K * N / lanes / 2             multiply-adds, two a cycle; Mp = M rounded up to what the tile computes
              + PACK * K * N / lanes             each packed pixel is loaded and stored once
              + WEIGHT * K * M                   each weight too
              + (FIND * taps + TILE * M / mr) * N / nr    the masks of a panel; a call of the micro-kernel
    direct    M * K * N' / lanes * load(M)       unpacked lanes cross cache lines; N' = whole vectors, of each row or
                                                 running on through the padding between rows
              + LINE_WEIGHT * K * M              weights, a row at a time
              + COPY * input / lanes             rows, padded; times SHARED / tasks where these are too few for threads
    im2col    mp * k * n' / lanes / 2            of each product (m, n, k), its lanes columns; an output's times NARROW
              + OPERAND * k * n                             columns are packed; of few rows (m), instead of both:
              or m * k * n / lanes + READ * k * n           columns are read as they lie
              + UNFOLD * X' + STORE * Y'                    windows and pixels, unless they are the image
              or (m * k / lanes / 2 + TURN * m / lanes + OPERAND * k) * n     of one tap; of narrow panels the products
                                                            times NARROW_PLACE
    winograd  P * tiles * (C * D * M / lanes / 2 + TILE * M / (mr * nr))      products
              + P / 36 * tiles * (IN * C + OUT * M) / lanes        transforms; along a line times LINE or COLUMN
              + P' / 36 * FILTER * C * D * M / lanes               (weight gradient: SUMS); P' = P, but at least 36, or
                                                                   LEAST_COLUMN: most of it is reading

with M rows (output channels of a group), K = taps * C, N pixels, P points of a tile, D planes of a filter.  Blocking
never depends on the number of threads, so that results do not either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache, partial

from . import _kernels
from .geometry import ConvGeometry, Size

__all__ = ["PASSES", "Explanation", "Pass", "conv_passes", "conv_plan"]

PASSES = ("output", "input_gradient", "weight_gradient")

L2_BLOCK = (
    512 << 10
)  # bytes of packed pixels that stay in a second-level cache of 1 MiB, with room for what passes through
L1_PANEL = 24 << 10  # bytes of a panel that leave room for what streams past it
HELD_ROWS = 192 << 10  # bytes of row panels that stay in a second-level cache of 512 KiB
SHALLOW = 129  # K below which the output is most of the traffic: it had better be written row by row
SLICE = 384  # K a slice: a row panel of 8 x 384 is 12 KiB of L1, and C is touched once in 384 multiply-adds
TASKS = 16  # enough for eight threads to share evenly
ROW_TASKS = 32  # blocks of the same pixels cost less: what was packed for one serves the next
PARTIAL_BYTES = 8 << 20  # copies of a weight gradient that are summed at the end
COPIED_BYTES = 8 << 20  # of a weight gradient's input rows under a block
TRANSFORMED_BYTES = 4 << 20  # of transformed tiles of a task, or of a block of the weight gradient
MAX_TRANSFORMED = 8 << 20  # where that is a single patch of many channels
TASK_TILES = 64  # tiles a product task: 36 x 64 x 48 products are 442 KiB
TASK_ELEMENTS = 128 * 16  # tiles times nr of a task that uses filters once: 36 x 128 x 16 products are 295 KiB
TASK_PANELS = 8  # such tasks at least
ABREAST = 128  # residues of a line, at most, that a patch takes side by side
DEEP_TILES = 128  # of a task that sums planes: those around it are transformed once more

PACK, COPY = 3.0, 4.0
FIND, TILE = 150.0, 40.0
TRANSPOSE, WEIGHT_COPY = 5.0, 2.0
IN, OUT, FILTER, SUMS = 200.0, 180.0, 140.0, 250.0
LINE, COLUMN, LEAST_COLUMN = 1.4, 1.9, 14
WEIGHT, LINE_WEIGHT, REDUCE = 2.2, 0.8, 1.0
OPERAND, UNFOLD, STORE, READ = 1.0, 2.0, 2.0, 0.1
NARROW_PLACE, TURN = 1.1, 11.0  # of filters of one tap: products with narrow panels; a vector of results, transposed
NARROW = 1.4  # of an im2col output's products: measured against sweeps that find their weights packed
SERIAL, SHARED = 1e5, 4  # cycles below which one thread works; tasks without which threads would have none


_GEMM, _DIRECT = ("kc", "panels", "rows", "held", "abreast"), ("rows",)
_WINOGRAD = ("r", "m", "axis", "planes", "tiles high", "tiles wide", "patches")
BLOCKING = {  # what the numbers of a blocking are
    ("output", "gemm"): _GEMM,
    ("input_gradient", "gemm"): _GEMM,
    ("weight_gradient", "gemm"): ("input channels", "output channels", "pixels", "shares"),
    **{(name, "im2col"): () for name in PASSES},
    **{(name, "direct"): _DIRECT for name in PASSES},
    **{(name, "winograd"): _WINOGRAD for name in PASSES},
}


@dataclass(frozen=True, slots=True)
class Tile:
    """Register tile of the micro-kernel, and bytes of an element."""

    mr: int
    nr: int
    lanes: int
    item: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """What output and input gradient have in common: a group's C[rows][pixels] = A[rows][taps * channels] * B."""

    n: int
    groups: int
    channels: int
    rows: int
    taps: int  # of one sweep
    sweeps: int  # residues of the stride
    abreast: int  # residues that a task computes together
    height: int  # of the grid of one sweep, depth folded in
    width: int
    step: int
    reach: int  # pixels that a row's taps read beyond its own, over the step
    in_elements: int  # of an image, all channels

    @property
    def pixels(self) -> int:
        """Pixels of one sweep over all images."""
        return self.n * self.height * self.width


@dataclass(frozen=True, slots=True)
class Pass:
    """How a pass is computed: algorithm, blocking, predicted cost in cycles of one core; and all algorithms' costs."""

    algorithm: str
    blocking: tuple[int, ...]
    cost: float
    costs: dict[str, float] = field(compare=False)


class Explanation(dict[str, Pass]):
    """The passes of a convolution by name; prints as a table."""

    def __str__(self) -> str:
        lines = []
        for name, p in self.items():
            rest = ", ".join(f"{other} {cost:.2e}" for other, cost in sorted(p.costs.items()) if other != p.algorithm)
            blocking = ", ".join(f"{k} {v}" for k, v in zip(BLOCKING[name, p.algorithm], p.blocking, strict=True))
            lines.append(
                f"{name:<16} {p.algorithm:<9} {p.cost:.2e} cycles   {blocking}{'   not ' + rest if rest else ''}"
            )
        return "\n".join(lines)


def _whole(n: int, multiple: int) -> int:
    """Round up to whole vectors or panels."""
    return math.ceil(n / multiple) * multiple


def _split(total: int, most: int, multiple: int) -> int:
    """Size of the even parts, each a multiple, of at most `most`, that `total` falls into."""
    parts = max(1, math.ceil(total / max(most, multiple)))
    return max(multiple, math.ceil(math.ceil(total / parts) / multiple) * multiple)


def narrow(tile: Tile) -> bool:
    """Whether a panel of nr stays in L1."""
    return tile.nr * SLICE * tile.item <= L1_PANEL


# ---- blocking ----


def gemm_blocking(s: Sweep, tile: Tile) -> tuple[int, int, int, int, int]:
    """Blocking (kc, panels, rows, held rows, residues abreast) of a packed sweep.

    A task packs `panels` panels of nr pixels, kc deep, and multiplies them by `rows` rows.  Packing is shared by all
    rows of a task, so rows are split only where there are too few pixel blocks to go round.  Of a pixel panel and a row
    panel the wider one that fits stays in L1 while panels of the other kind stream past it: a narrow pixel panel meets
    `held` rows, whose slice stays in L2, before the next one does; of wide ones all meet a single row panel.
    """
    depth = s.taps * s.channels
    kc = math.ceil(depth / max(1, math.ceil(depth / SLICE)))
    all_panels = max(1, math.ceil(s.pixels / tile.nr))
    groups = s.groups * math.ceil(s.sweeps / s.abreast)
    panels = _split(all_panels, min(32, max(1, L2_BLOCK // (max(kc, 1) * tile.nr * tile.item * s.abreast))), 1)
    least = 1 if narrow(tile) and s.rows * kc * tile.item <= HELD_ROWS else 2
    panels = min(panels, max(least, all_panels * groups // TASKS))
    tasks = groups * math.ceil(all_panels / panels)
    row_blocks = min(math.ceil(ROW_TASKS / tasks), max(1, s.rows // (2 * tile.mr)))
    held = 1 if depth < SHALLOW or not narrow(tile) else max(1, HELD_ROWS // (max(kc, 1) * tile.mr * tile.item))
    return kc, panels, _split(s.rows, math.ceil(s.rows / row_blocks), tile.mr), held * tile.mr, s.abreast


def gemm_weight_blocking(g: ConvGeometry, tile: Tile) -> tuple[int, int, int, int]:
    """Blocking (input channels, output channels, pixels, shares) of a packed weight gradient.

    A task owns a block of dW; where there are too few blocks, the pixels are cut into shares whose sums are added
    pairwise.
    """
    ic, oc, taps = g.ic // g.groups, g.oc // g.groups, math.prod(g.kernel)
    cols = _split(oc, L2_BLOCK // (SLICE * tile.nr * tile.item) * tile.nr, tile.nr)
    multiple = 1 if taps >= tile.mr else tile.mr
    rows = _split(ic, 128, multiple)
    blocks = g.groups * math.ceil(oc / cols) * math.ceil(ic / rows)
    pixels = g.n * math.prod(g.out_size)
    copies = max(1, PARTIAL_BYTES // (oc * ic * g.groups * taps * tile.item))
    shares = min(math.ceil(TASKS / blocks), max(1, pixels // SLICE), copies)
    rows, depth = _split(rows, math.ceil(rows * blocks * shares / TASKS), multiple), SLICE
    while rows > 1 and _copied_bytes(g, rows, depth, tile) > COPIED_BYTES:
        rows = math.ceil(rows / 2)
    while depth > 1 and _copied_bytes(g, rows, depth, tile) > COPIED_BYTES:
        depth = math.ceil(depth / 2)
    return rows, cols, depth, shares


def _copied_bytes(g: ConvGeometry, rows: int, depth: int, tile: Tile) -> int:
    """Bytes of the input that a block of a packed weight gradient copies: `rows` channels under `depth` pixels."""
    (out_h, out_w), (stride_h, stride_w) = g.out_size[1:], g.stride[1:]
    extent_h, extent_w = ((k - 1) * d + 1 for k, d in zip(g.kernel[1:], g.dilation[1:], strict=True))
    length = math.ceil(out_w / math.ceil(out_w / depth))
    units = max(1, depth // length)
    high = units * stride_h + (2 + units // out_h) * max(extent_h - stride_h, 0)
    return rows * g.kernel[0] * high * ((length - 1) * stride_w + extent_w) * tile.item


def direct_blocking(s: Sweep, tile: Tile) -> tuple[int]:
    """Output rows a task: what keeps its input rows in 32 KiB, and not less than eight."""
    row = s.channels * s.step**2 * (s.width + 4) * tile.item
    return (max(1, min(s.height, max(8, (32 << 10) // row))),)


def winograd_filter(g: ConvGeometry) -> tuple[int, int, bool]:
    """Return r of filters r x r, the axis of those along a line, else 0, and whether these are columns of r."""
    _, high, wide = g.kernel
    if high == wide:
        return high, 0, False
    taps = high * wide
    return 5 if 3 < taps <= 5 else 3, 1 if wide == 1 else 2, taps <= 5


def winograd_tile(name: str, g: ConvGeometry, size: Size) -> tuple[int, int, int, int]:
    """Return the outputs m along an axis of a pass's tile, its points, and the rows and columns of an image's tiles.

    The image is one of `size`, or of the residues that a dilation leaves; of tiles along lines, columns are the number
    of lines. 3 x 3 filters have tiles of 3 x 3 outputs where these need fewer products than those of 4 x 4.
    """
    r, axis, flat = winograd_filter(g)
    lengths = [math.ceil(length / dilation) for length, dilation in zip(size, g.dilation, strict=True)]
    if axis:
        m = 4 if r == 3 else 2 if name == "weight_gradient" else 3
        points = m + r - 1
        along = math.ceil(lengths[axis] / (m if flat else m * r))
        return m, points if flat else points**2, along, size[3 - axis]
    outputs = (4, 3) if r == 3 else (2,) if name == "weight_gradient" else (3,)
    tiles = [(m, (m + r - 1) ** 2, *(math.ceil(length / m) for length in lengths[1:])) for m in outputs]
    return min(tiles, key=lambda tile: math.prod(tile[1:]))


def winograd_blocking(name: str, g: ConvGeometry, tile: Tile) -> tuple[int, int, int, int, int, int, int]:
    """Blocking (r, m, axis, planes, tiles high, tiles wide, patches) of a Winograd pass.

    A plane of a patch has about 32 tiles, up to 16 in a row, or eight times as many columns; where planes are summed a
    patch is a task. A task's products stay in the second-level cache, its transformed tiles in the third-level one, as
    do a block's of the weight gradient. Where one task can take all tiles of several panels of filters, it transforms
    these itself, unless they are packed.
    """
    ic, oc = (_whole(c // g.groups, tile.lanes) for c in (g.ic, g.oc))
    size, channels = (g.in_size, oc) if name == "input_gradient" else (g.out_size, ic)
    if name == "weight_gradient":
        channels = (ic + _whole(oc, tile.nr)) // 2
    deep = g.kernel[0] > 1
    r, axis, flat = winograd_filter(g)
    m, points, tiles_h, tiles_w = winograd_tile(name, g, size)
    patch_tiles, task_tiles = (256, 6 * TASK_TILES) if flat else (32, TASK_TILES)
    widest = {0: 16, 1: 128 if flat else 16, 2: 4}[axis]
    tile_bytes = points * channels * tile.item
    room = MAX_TRANSFORMED
    if name == "weight_gradient":  # the sums, too, have whole vectors
        room = max(room // 4, room - points * g.kernel[0] * ic * (oc - g.oc // g.groups) * tile.item // 2)
    most = max(1, room // tile_bytes)  # tiles of a patch
    patch_w = _split(tiles_w, min(widest, most), 1)
    residues = winograd_residues(g, size)
    if axis == 2 and 1 < g.dilation[2] <= min(ABREAST, most):  # neighbours in memory: side by side in a patch
        axis, residues = 3, 1
        patch_w, tiles_w = g.dilation[2], g.dilation[2] * tiles_w
    patch_h = _split(tiles_h, max(1, min(patch_tiles, max(1, most // g.kernel[0])) // patch_w), 1)
    tiles = patch_h * patch_w
    planes = _split(size[0], min(DEEP_TILES // tiles, most // tiles - g.kernel[0] + 1), 1) if deep else 1
    together = max(1, TRANSFORMED_BYTES // ((planes + g.kernel[0] - 1) * tiles * tile_bytes))
    if name != "weight_gradient":
        together = 1 if deep else max(1, min(together, task_tiles // tiles))
    patches = g.n * size[0] * residues * math.ceil(tiles_h / patch_h) * math.ceil(tiles_w / patch_w)
    once = 0 < patches * tiles <= min(TASK_ELEMENTS // tile.nr, MAX_TRANSFORMED // tile_bytes)
    if once and not deep and (ic if name == "input_gradient" else oc) >= TASK_PANELS * tile.nr:
        together = patches
    return r, m, axis, planes, patch_h, patch_w, together


def winograd_residues(g: ConvGeometry, size: Size) -> int:
    """Return into how many images a dilation splits one."""
    _, axis, _ = winograd_filter(g)
    residues = [min(dilation, length) for dilation, length in zip(g.dilation, size, strict=True)]
    return residues[axis] if axis else math.prod(residues)


# ---- costs ----


def gemm_cost(s: Sweep, tile: Tile) -> float:
    """Cycles of a packed sweep."""
    depth, vectors, panels = s.taps * s.channels, math.ceil(s.pixels / tile.lanes), s.pixels / tile.nr
    rows = max(s.rows, 3)  # fewer rows leave the multiply-add units waiting
    work = depth * vectors * (rows / 2 + PACK) + panels * (FIND * s.taps + TILE * s.rows / tile.mr)
    return s.groups * s.sweeps * (work + WEIGHT * depth * s.rows)


def direct_cost(s: Sweep, tile: Tile) -> float:
    """Cycles of an unpacked sweep."""
    vectors = s.height * math.ceil(s.width / tile.lanes)
    if s.sweeps == 1:
        vectors = min(vectors, math.ceil((s.height * (s.width + s.reach) - s.reach) / tile.lanes))
    vectors *= s.n
    scatter = tile.lanes * vectors * s.rows if s.sweeps > 1 else 0
    load = max(0.65, 1.5 / s.rows)  # few rows share fewer loads
    work = s.taps * s.channels * s.rows * (vectors * load + (WEIGHT if s.sweeps > 1 else LINE_WEIGHT)) + scatter
    cost = s.groups * s.sweeps * work + COPY * s.sweeps * s.n * s.in_elements / tile.lanes
    tasks = s.n * s.groups * math.ceil(s.height / direct_blocking(s, tile)[0])
    return cost * max(1.0, SHARED / tasks) if cost > SERIAL else cost


def im2col_cost(name: str, g: ConvGeometry, tile: Tile) -> float:
    """Cycles of a pass as a product of unfolded windows."""
    pixels, terms = g.n * math.prod(g.out_size), g.ic * math.prod(g.kernel)
    m, n, k = {
        "output": (pixels, g.oc, terms),
        "input_gradient": (pixels, terms, g.oc),
        "weight_gradient": (g.oc, terms, pixels),
    }[name]
    few = _kernels.reads_in_place(m, n, k, tile.item, name == "output")
    if g.reads_in_place(name) and not few and not g.full:
        columns = math.ceil(n / tile.lanes)
        return m * columns * (k / 2 * (NARROW_PLACE if narrow(tile) else 1) + TURN) + OPERAND * k * n
    moved = 0 if g.full else UNFOLD * pixels * terms
    if math.prod(g.out_size) > 1:
        moved += STORE * pixels * g.oc
    if few:
        return (m / tile.lanes + READ) * k * n + moved
    products = _whole(m, tile.mr) * k * math.ceil(n / tile.lanes) / 2
    return products * (NARROW if name == "output" else 1) + OPERAND * k * n + moved


def winograd_cost(name: str, g: ConvGeometry, tile: Tile) -> float:
    """Cycles of a Winograd pass."""
    ic, oc, depth = g.ic // g.groups, g.oc // g.groups, g.kernel[0]
    channels, rows, size = (oc, ic, g.in_size) if name == "input_gradient" else (ic, oc, g.out_size)
    _, _, axis, planes, *_ = winograd_blocking(name, g, tile)
    _, points, tiles_h, tiles_w = winograd_tile(name, g, size)
    tiles = g.n * _whole(size[0], planes) * winograd_residues(g, size) * tiles_h * tiles_w
    c, k = _whole(channels, tile.lanes), _whole(rows, tile.lanes)
    *_, flat = winograd_filter(g)
    strided = {1: 1.0, 2: 1.5, 4: 1.5}.get(g.dilation[2], 4.0)  # pixels of a dilation are gathered and scattered
    if axis in (1, 3):
        strided = 1.0
    if axis:
        strided *= COLUMN if flat else LINE
    transforms = points * tiles * strided * (IN * c * (planes + depth - 1) / planes + OUT * k)
    filters = SUMS if name == "weight_gradient" else FILTER
    transforms += max(points, LEAST_COLUMN if flat else 36) * filters * channels * depth * k
    products = points * tiles * (channels * depth * k / 2 / tile.lanes + TILE * k / (tile.mr * tile.nr))
    return g.groups * (products + transforms / 36 / tile.lanes)


def gemm_weight_cost(g: ConvGeometry, tile: Tile) -> float:
    """Cycles of a packed weight gradient."""
    ic, oc, taps = g.ic // g.groups, g.oc // g.groups, math.prod(g.kernel)
    pixels = g.n * math.prod(g.out_size)
    cols = math.ceil(oc / tile.lanes)
    work = ic * taps * max(cols, 1) / 2 + TRANSPOSE * cols + WEIGHT_COPY * ic * taps / tile.lanes
    return g.groups * (pixels * work + REDUCE * oc * ic * taps)


def direct_weight_cost(g: ConvGeometry, tile: Tile) -> float:
    """Cycles of a weight gradient by dot products."""
    ic, oc, taps = g.ic // g.groups, g.oc // g.groups, math.prod(g.kernel)
    vectors = g.n * g.out_size[1] * math.ceil(g.out_size[2] / tile.lanes)
    share = 2 / 3 if tile.mr == 8 and oc >= 3 else 1  # of the loads, where three filters have registers for their sums
    return g.groups * oc * ic * vectors * (taps + 2) * share + COPY * g.n * g.ic * math.prod(g.in_size) / tile.lanes


# ---- choice ----


def _sweeps(g: ConvGeometry) -> tuple[Sweep, Sweep]:
    """Return the output's sweep and the input gradient's."""
    ic, oc, taps, residues = g.ic // g.groups, g.oc // g.groups, math.prod(g.kernel), math.prod(g.stride)
    d, h, w = g.out_size
    reach = (g.kernel[2] - 1) * g.dilation[2] // g.stride[2]
    output = Sweep(g.n, g.groups, ic, oc, taps, 1, 1, d * h, w, g.stride[2], reach, g.ic * math.prod(g.in_size))
    (d, h, w), (sd, sh, sw) = g.in_size, g.stride
    height, width = math.ceil(d / sd) * math.ceil(h / sh), math.ceil(w / sw)
    gradient = Sweep(
        g.n,
        g.groups,
        oc,
        ic,
        math.ceil(taps / residues),
        min(residues, taps),
        2 if g.stride[2] == 2 and g.kernel[2] > 1 and g.dilation[2] % 2 and g.in_size[2] % 2 == 0 else 1,
        height,
        width,
        1,
        reach,
        g.oc * math.prod(g.out_size),
    )
    return output, gradient


def conv_passes(g: ConvGeometry, algorithm: str, tile: Tile) -> dict[str, Pass]:
    """Return how each pass is computed: by `algorithm`, or for "auto" by the cheapest.

    So are passes that "im2col" would have to unfold, where it reads the pixels of others in place.
    """
    g = g.flattened
    output, gradient = _sweeps(g)
    costs = {
        "output": {"gemm": gemm_cost(output, tile)},
        "input_gradient": {"gemm": gemm_cost(gradient, tile)},
        "weight_gradient": {"gemm": gemm_weight_cost(g, tile)},
    }
    blocking = {
        ("output", "gemm"): lambda: gemm_blocking(output, tile),
        ("input_gradient", "gemm"): lambda: gemm_blocking(gradient, tile),
        ("weight_gradient", "gemm"): lambda: gemm_weight_blocking(g, tile),
        ("output", "direct"): lambda: direct_blocking(output, tile),
        ("input_gradient", "direct"): lambda: direct_blocking(gradient, tile),
        ("weight_gradient", "direct"): lambda: direct_blocking(output, tile),
    }
    if "im2col" in g.algorithms:
        for name in PASSES:
            if g.full or g.few_pixels or g.reads_in_place(name):
                costs[name]["im2col"] = im2col_cost(name, g, tile)
                blocking[name, "im2col"] = tuple
    if "direct" in g.algorithms:
        costs["output"]["direct"] = direct_cost(output, tile)
        costs["input_gradient"]["direct"] = direct_cost(gradient, tile)
        costs["weight_gradient"]["direct"] = direct_weight_cost(g, tile)
    if "winograd" in g.algorithms and (tile.item == 4 or algorithm == "winograd"):  # float64 on request
        for name in PASSES:
            costs[name]["winograd"] = winograd_cost(name, g, tile)
            blocking[name, "winograd"] = partial(winograd_blocking, name, g, tile)
    passes = {}
    for name in PASSES:
        free = algorithm == "auto" or (algorithm == "im2col" and algorithm not in costs[name])
        chosen = min(costs[name], key=costs[name].get) if free else algorithm
        passes[name] = Pass(chosen, blocking[name, chosen](), costs[name][chosen], costs[name])
    return passes


def register_tile(type_char: str, isa: str) -> Tile:
    """Return the micro-kernel's tile for a type ("f", "d") and an ISA."""
    return Tile(*_kernels.register_tile(_kernels.ISAS.index(isa), type_char), 8 if type_char == "d" else 4)


@lru_cache(maxsize=1024)
def conv_plan(g: ConvGeometry, type_char: str, algorithm: str, isa: str) -> _kernels.ConvPlan:
    """Return the compiled plan of a convolution's three passes."""
    g = g.flattened
    tile = register_tile(type_char, isa)
    by_name = conv_passes(g, algorithm, tile)
    passes = [by_name[name] for name in PASSES]
    output, gradient = _sweeps(g)
    in_size, out_size = g.in_size, g.out_size
    if g.pointwise and passes[0].algorithm in ("gemm", "im2col"):
        in_size = out_size = (1, 1, math.prod(in_size))  # 1x1: an image is one row
    return _kernels.ConvPlan(
        type_char,
        _kernels.ISAS.index(isa),
        g.n,
        g.ic,
        g.oc,
        g.groups,
        in_size,
        out_size,
        g.kernel,
        g.stride,
        g.dilation,
        tuple(before for before, _ in g.pad),
        gemm_blocking(output, tile),
        gemm_blocking(gradient, tile),
        gemm_weight_blocking(g, tile),
        tuple(p.blocking if p.algorithm == "winograd" else None for p in passes),
        tuple(p.blocking[0] if p.algorithm == "direct" else 0 for p in passes),
        tuple(p.algorithm == "im2col" for p in passes),
        g.full,
        g.pointwise,
    )
