"""What needs no kernel of its own: borders, unfolding, windows of uneven size, by NumPy's slices.

Arrays arrive validated and C-contiguous, with any leading dimensions; sizes, kernels and pads have one entry for each
of the last dimensions. What one tap of a window meets at all positions is a strided view of the padded input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

__all__ = [
    "adaptive_max",
    "adaptive_mean",
    "adaptive_spread",
    "bordered",
    "channels_first",
    "channels_last",
    "fold",
    "fold_borders",
    "outside_windows",
    "scatter",
    "unfold",
]

Sizes = Sequence[int]
Pads = Sequence[tuple[int, int]]
Bounds = Sequence[Sequence[tuple[int, int]]]  # (start, stop) of each window, by dimension


# --- Layouts ---------------------------------------------------------------------------------------------------------


def channels_first(array: NDArray, ndim: int) -> NDArray:
    """View an array whose channels come last with the channels before its last `ndim` dimensions."""
    return array.transpose(*range(array.ndim - ndim - 1), -1, *range(-1 - ndim, -1)) if array.ndim > ndim else array


def channels_last(array: NDArray, ndim: int) -> NDArray:
    """View an array whose channels come before its last `ndim` dimensions with the channels last."""
    return array.transpose(*range(array.ndim - ndim - 1), *range(-ndim, 0), -1 - ndim)


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


# --- Unfolding -------------------------------------------------------------------------------------------------------


def _windows(padded: NDArray, out: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> NDArray:
    """Return the view (..., *kernel, *out) of what each tap meets."""
    ndim = len(kernel)
    steps = padded.strides[-ndim:]
    strides = [s * d for s, d in zip(steps, dilation, strict=True)], [s * d for s, d in zip(steps, stride, strict=True)]
    shape = (*padded.shape[:-ndim], *kernel, *out)
    return as_strided(padded, shape, (*padded.strides[:-ndim], *strides[0], *strides[1]))


def unfold(x: NDArray, target: NDArray, out: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes, pads: Pads) -> None:
    """Copy to target[..., *kernel, *out] the elements that each tap meets, and zeros for the padding."""
    if any(map(any, pads)):
        sizes = [b + size + a for size, (b, a) in zip(x.shape[-len(pads) :], pads, strict=True)]
        padded = np.zeros((*x.shape[: -len(pads)], *sizes), x.dtype)
        padded[_image(x.shape[-len(pads) :], pads)] = x
        x = padded
    target[...] = _windows(x, out, kernel, stride, dilation)


@np.errstate(all="ignore")
def fold(
    columns: NDArray, target: NDArray, out: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes, pads: Pads
) -> None:
    """Add up columns[..., *kernel, *out] where the taps have met them, the adjoint of `unfold`."""
    shape = target.shape[-len(pads) :]
    sizes = [before + size + after for size, (before, after) in zip(shape, pads, strict=True)]
    padded = np.zeros((*target.shape[: -len(pads)], *sizes), target.dtype)
    windows, rest = _windows(padded, out, kernel, stride, dilation), (slice(None),) * len(kernel)
    for tap in product(*map(range, kernel)):
        view = windows[(..., *tap, *rest)]
        view += columns[(..., *tap, *rest)]
    target[...] = padded[_image(shape, pads)]


# --- Windows of uneven size ------------------------------------------------------------------------------------------


def _divisors(bounds: Bounds, dtype: np.dtype) -> NDArray:
    lengths = [np.array([stop - start for start, stop in windows], dtype) for windows in bounds]
    return reduce(np.multiply.outer, lengths)


@np.errstate(all="ignore")
def adaptive_mean(x: NDArray, bounds: Bounds, target: NDArray) -> None:
    """Means of the windows: sums of rows, then of columns."""
    for axis, windows in enumerate(bounds, -len(bounds)):
        rest = (slice(None),) * (-axis - 1)
        x = np.stack([x[(..., slice(*window), *rest)].sum(axis) for window in windows], axis)
    np.divide(x, _divisors(bounds, x.dtype), out=target)


@np.errstate(all="ignore")
def adaptive_spread(grad: NDArray, bounds: Bounds, target: NDArray) -> None:
    """Spread each mean's gradient evenly over its window."""
    grad, ndim = grad / _divisors(bounds, grad.dtype), len(bounds)
    for axis, windows in enumerate(bounds, -ndim):
        rest, shape = (slice(None),) * (-axis - 1), [*grad.shape]
        shape[axis] = target.shape[axis]
        spread = np.zeros(shape, grad.dtype)
        for o, window in enumerate(windows):
            spread[(..., slice(*window), *rest)] += grad[(..., slice(o, o + 1), *rest)]
        grad = spread
    target[...] = grad


def adaptive_max(x: NDArray, bounds: Bounds, target: NDArray, indices: NDArray | None) -> None:
    """Maxima of the windows and, on request, where they are: the first maximum, or the last NaN."""
    size = x.shape[-len(bounds) :]
    for position in product(*(range(len(windows)) for windows in bounds)):
        slices = tuple([slice(*windows[o]) for windows, o in zip(bounds, position, strict=True)])
        window = x[(..., *slices)]
        values = window.reshape(*window.shape[: -len(bounds)], -1)
        if indices is None:
            target[(..., *position)] = values.max(-1)
            continue
        best = values.argmax(-1)
        maxima = np.take_along_axis(values, best[..., None], -1)[..., 0]
        nan = np.isnan(maxima)
        if nan.any():
            best[nan] = values.shape[-1] - 1 - np.isnan(values[nan])[:, ::-1].argmax(-1)
        target[(..., *position)] = maxima
        places = np.unravel_index(best, window.shape[-len(bounds) :])
        places = [place + s.start for place, s in zip(places, slices, strict=True)]
        indices[(..., *position)] = np.ravel_multi_index(places, size)


def outside_windows(indices: NDArray, bounds: Bounds, size: Sizes) -> int:
    """Count the indices that lie outside their windows."""
    inside = (indices >= 0) & (indices < math.prod(size))
    places = np.unravel_index(np.where(inside, indices, 0), size)
    for axis, (place, windows) in enumerate(zip(places, bounds, strict=True), -len(bounds)):
        start, stop = np.array(windows).T.reshape(2, -1, *(1,) * (-axis - 1))
        inside &= (place >= start) & (place < stop)
    return int(inside.size - np.count_nonzero(inside))


@np.errstate(all="ignore")
def scatter(grad: NDArray, indices: NDArray, target: NDArray, ndim: int) -> None:
    """Add each element of `grad` to its plane of `target`, at its index."""
    planes, plane = math.prod(grad.shape[:-ndim]), math.prod(target.shape[-ndim:])
    target.fill(0)
    places = indices.reshape(planes, -1) + plane * np.arange(planes)[:, None]
    np.add.at(target.reshape(-1), places.ravel(), grad.ravel())
