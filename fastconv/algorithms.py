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
    )
