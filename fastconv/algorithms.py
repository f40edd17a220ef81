"""The cost model: geometry -> algorithm and blocking.  Pure functions of the geometry, the type and the register tile.

Partition and blocking never depend on the number of threads, so that results do not either.
"""

from __future__ import annotations

import math
from functools import lru_cache

from . import _kernels
from .geometry import ConvGeometry

__all__ = ["conv_plan", "sweep_blocking", "weight_gradient_blocking"]

L2_BLOCK = 512 << 10  # bytes of packed pixels that stay in a second-level cache of 1 MiB, with room for what passes through
SLICE = 384  # K a slice: a row panel of 8 x 384 is 12 KiB of L1, and C is touched once in 384 multiply-adds
TASKS = 16  # enough for eight threads to share evenly
PARTIAL_BYTES = 8 << 20  # copies of a weight gradient that are summed at the end


def _split(total: int, most: int, multiple: int) -> int:
    """Size of the even parts, each a multiple, of at most `most`, that `total` falls into."""
    parts = max(1, math.ceil(total / max(most, multiple)))
    return math.ceil(math.ceil(total / parts) / multiple) * multiple


def sweep_blocking(
    pixels: int, rows: int, depth: int, groups: int, tile: tuple[int, int, int], item: int
) -> tuple[int, int, int]:
    """Blocking (kc, panels, rows) of a sweep of C[rows][pixels] += A[rows][depth] * B[depth][pixels], a group.

    A task packs `panels` panels of nr pixels, kc deep, and multiplies them by `rows` rows.  Packing is shared by all rows of
    a task, so rows are split only where there are too few pixel blocks to go round.
    """
    mr, nr, _ = tile
    kc = math.ceil(depth / max(1, math.ceil(depth / SLICE)))
    all_panels = max(1, math.ceil(pixels / nr))
    panels = _split(all_panels, min(32, max(1, L2_BLOCK // (max(kc, 1) * nr * item))), 1)
    panels = min(panels, max(2, math.ceil(all_panels * groups / TASKS)))
    tasks = groups * math.ceil(all_panels / panels)
    row_blocks = min(math.ceil(TASKS / tasks), max(1, rows // (4 * mr)))
    return kc, panels, _split(rows, math.ceil(rows / row_blocks), mr)


def weight_gradient_blocking(
    geometry: ConvGeometry, tile: tuple[int, int, int], item: int
) -> tuple[int, int, int, int]:
    """Blocking (input channels, output channels, pixels, shares) of a weight gradient.

    A task owns a block of dW; where there are too few blocks, the pixels are cut into shares whose sums are added pairwise.
    """
    mr, nr, _ = tile
    g = geometry
    ic, oc, taps = g.ic // g.groups, g.oc // g.groups, math.prod(g.kernel)
    cols = _split(oc, L2_BLOCK // (SLICE * nr * item) * nr, nr)
    blocks = g.groups * math.ceil(oc / cols)
    rows = _split(ic, min(128, max(mr, math.ceil(ic * blocks / TASKS))), 1 if taps >= mr else mr)
    blocks *= math.ceil(ic / rows)
    work = g.n * math.prod(g.out_size)
    shares = min(math.ceil(TASKS / blocks), max(1, work // SLICE), max(1, PARTIAL_BYTES // (oc * ic * g.groups * taps * item)))
    return rows, cols, SLICE, shares


BLOCK_BYTES = 4 << 20  # of transformed tiles that pass from one phase to the next
TASK_TILES = 64


def winograd_blocking(n, height, width, channels, rows, r, tile, item):
    mr, nr, lanes = tile
    m = 7 - r
    tiles_h, tiles_w = math.ceil(height / m), math.ceil(width / m)
    patch_w = math.ceil(tiles_w / math.ceil(tiles_w / 16))
    patch_h = math.ceil(tiles_h / math.ceil(tiles_h / max(1, 32 // patch_w)))
    tiles = patch_h * patch_w
    block = max(1, BLOCK_BYTES // (36 * tiles * channels * item))
    task = max(1, min(block, TASK_TILES // tiles))
    block = max(block // task, 1) * task
    return r, patch_h, patch_w, block, task


def winograd_passes(g, tile, item, algorithm):
    r = g.kernel[2]
    if g.kernel not in ((1, 3, 3), (1, 5, 5)) or g.stride != (1, 1, 1) or g.dilation != (1, 1, 1) or algorithm == "gemm":
        return None, None, None
    ic, oc = g.ic // g.groups, g.oc // g.groups
    if algorithm != "winograd" and (item == 8 or ic < 16 or oc < 16):
        return None, None, None
    _, ih, iw = g.in_size
    _, oh, ow = g.out_size
    return (
        winograd_blocking(g.n, oh, ow, ic, oc, r, tile, item),
        winograd_blocking(g.n, ih, iw, oc, ic, r, tile, item),
        winograd_blocking(g.n, oh, ow, ic + oc, 0, r, tile, item),
    )


def direct_rows(width, height, channels, step, item):
    """Output rows a task: what keeps its input rows in 32 KiB, and never less than eight."""
    return min(height, max(8, (32 << 10) // (channels * max(step, 1) ** 2 * (width + 4) * item)))


def direct_passes(g, tile, item, algorithm):
    if g.ndim == 3 or algorithm in ("gemm", "winograd"):
        return 0, 0, 0
    ic, oc = g.ic // g.groups, g.oc // g.groups
    if algorithm != "direct" and not ((ic < 8 and oc < 8)):
        return 0, 0, 0
    return (
        direct_rows(g.out_size[2], g.out_size[1], ic, g.stride[2], item),
        direct_rows(g.in_size[2] // g.stride[2] + 1, g.in_size[1], oc, 1, item),
        1,
    )


@lru_cache(maxsize=1024)
def conv_plan(geometry: ConvGeometry, type_char: str, algorithm: str, isa: str) -> _kernels.ConvPlan:
    """Return the plan of a convolution: algorithm, partition and blocking of its three passes."""
    g = geometry
    isa_index = _kernels.ISAS.index(isa)
    tile = _kernels.register_tile(isa_index, type_char)
    item = 8 if type_char == "d" else 4
    ic, oc, taps = g.ic // g.groups, g.oc // g.groups, math.prod(g.kernel)
    in_size, out_size = g.in_size, g.out_size
    if in_size == out_size and taps == 1 and g.stride == (1, 1, 1):  # 1x1: an image is one row
        in_size = out_size = (1, 1, math.prod(in_size))
    pixels = g.n * math.prod(out_size)
    residues = math.prod(g.stride)
    return _kernels.ConvPlan(
        type_char,
        isa_index,
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
        sweep_blocking(pixels, oc, ic * taps, g.groups, tile, item),
        sweep_blocking(
            math.ceil(g.n * math.prod(in_size) / residues), ic, oc * math.ceil(taps / residues), g.groups * residues, tile, item
        ),
        weight_gradient_blocking(g, tile, item),
        winograd_passes(g, tile, item, algorithm),
        direct_passes(g, tile, item, algorithm),
    )
