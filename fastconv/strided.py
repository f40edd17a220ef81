"""What needs no kernel of its own: borders, by NumPy's slices.

Arrays arrive validated and C-contiguous, with any leading dimensions; sizes, kernels and pads have one entry for each
of the last dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "bordered",
    "fold_borders",
]

Sizes = Sequence[int]
Pads = Sequence[tuple[int, int]]


# --- Borders ---------------------------------------------------------------------------------------------------------


def _borders(shape: Sizes, pads: Pads, mode: str) -> Iterator[tuple[tuple, tuple]]:
    """Yield a slice of a padded array for each border, and that of what it repeats, dimension after dimension.

    A later dimension's borders reach over those of earlier ones, which are filled by then.
    """
    for axis, (size, (before, after)) in enumerate(zip(shape, pads, strict=True), -len(pads)):
        end = before + size  # of the image
        stop = end - 2 - after
        front, back = {
            "reflect": (slice(2 * before, before, -1), slice(end - 2, None if stop < 0 else stop, -1)),
            "replicate": (slice(before, before + 1), slice(end - 1, end)),
            "circular": (slice(size, end), slice(before, before + after)),
        }[mode]
        rest = (slice(None),) * (-axis - 1)
        if before:
            yield (..., slice(before), *rest), (..., front, *rest)
        if after:
            yield (..., slice(end, None), *rest), (..., back, *rest)


def _image(shape: Sizes, pads: Pads) -> tuple:
    return (..., *(slice(before, before + size) for size, (before, _) in zip(shape, pads, strict=True)))


def bordered(x: NDArray, pads: Pads, mode: str) -> NDArray:
    """Return the array with borders that repeat it: "reflect", "replicate" or "circular"."""
    ndim = len(pads)
    shape = x.shape[-ndim:]
    sizes = [before + size + after for size, (before, after) in zip(shape, pads, strict=True)]
    padded = np.empty((*x.shape[:-ndim], *sizes), x.dtype)
    padded[_image(shape, pads)] = x
    for border, source in _borders(shape, pads, mode):
        padded[border] = padded[source]
    return padded


@np.errstate(all="ignore")
def fold_borders(padded: NDArray, shape: Sizes, pads: Pads, mode: str) -> NDArray:
    """Add each border to what it repeats, the adjoint of `bordered`; return the image, a view of what this changes."""
    for border, source in reversed([*_borders(shape, pads, mode)]):
        target = padded[source]
        if mode == "replicate":
            target += padded[border].sum(axis=1 - len(border), keepdims=True)
        else:
            target += padded[border]
    return padded[_image(shape, pads)]
