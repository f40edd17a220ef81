"""The fast layers of Stanford's CS231n, under its names: ``from fastconv.integrations.cs231n import *``.

It replaces ``from .fast_layers import *`` and ``from .im2col_cython import *``. Arrays are of float32 or float64; where
types are mixed, as in the course's notebooks, all become the largest. A cache is what the course says of it: whatever
the backward function reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import functional

__all__ = [
    "col2im_6d_cython",
    "col2im_cython",
    "conv_backward_fast",
    "conv_backward_im2col",
    "conv_backward_strides",
    "conv_forward_fast",
    "conv_forward_im2col",
    "conv_forward_strides",
    "im2col_cython",
    "max_pool_backward_fast",
    "max_pool_backward_im2col",
    "max_pool_backward_reshape",
    "max_pool_forward_fast",
    "max_pool_forward_im2col",
    "max_pool_forward_reshape",
]

Cache = tuple[Any, ...]


def _same_type(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    dtype = np.result_type(*arrays, np.float32)
    return tuple(np.asarray(array, dtype) for array in arrays)


# --- Convolution -----------------------------------------------------------------------------------------------------


def conv_forward_fast(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, conv_param: Mapping[str, int]
) -> tuple[np.ndarray, Cache]:
    """Convolve images with filters.

    Parameters
    ----------
    x : ndarray, (N, C, H, W)
        Images.
    w : ndarray, (F, C, HH, WW)
        Filters.
    b : ndarray, (F,)
        Biases.
    conv_param : mapping
        "stride" and "pad".

    Returns
    -------
    out : ndarray, (N, F, H', W')
    cache : tuple
        For :func:`conv_backward_fast`.

    Raises
    ------
    AssertionError
        Windows do not fit the padded image evenly, as in the course.
    """
    stride, pad = conv_param["stride"], conv_param["pad"]
    assert (x.shape[2] + 2 * pad - w.shape[2]) % stride == 0, "height does not work"
    assert (x.shape[3] + 2 * pad - w.shape[3]) % stride == 0, "width does not work"
    x, w, b = _same_type(x, w, b)
    return functional.conv2d(x, w, b, stride, pad), (x, w, b, conv_param)


def conv_backward_fast(dout: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of :func:`conv_forward_fast` in `x`, `w` and `b`."""
    x, w, _, conv_param = cache
    dout, x, w = _same_type(dout, x, w)
    return functional.conv2d_backward(dout, x, w, conv_param["stride"], conv_param["pad"])


conv_forward_im2col = conv_forward_strides = conv_forward_fast
conv_backward_im2col = conv_backward_strides = conv_backward_fast


# --- Max pooling -----------------------------------------------------------------------------------------------------


def _pool_sizes(pool_param: Mapping[str, int]) -> tuple[tuple[int, int], int]:
    return (pool_param["pool_height"], pool_param["pool_width"]), pool_param["stride"]


def _tiles(x: np.ndarray, pool_param: Mapping[str, int]) -> bool:
    """Whether the windows are squares that cover the image without overlap: the course's condition to reshape."""
    (height, width), stride = _pool_sizes(pool_param)
    return height == width == stride and x.shape[2] % height == 0 and x.shape[3] % width == 0


def max_pool_forward_fast(x: np.ndarray, pool_param: Mapping[str, int]) -> tuple[np.ndarray, Cache]:
    """Take the maximum of each window.

    As in the course, equal maxima share the gradient where windows are squares that cover the image without overlap
    (:func:`max_pool_forward_reshape`), and elsewhere the first takes it (:func:`max_pool_forward_im2col`).

    Parameters
    ----------
    x : ndarray, (N, C, H, W)
        Images.
    pool_param : mapping
        "pool_height", "pool_width" and "stride".

    Returns
    -------
    out : ndarray, (N, C, H', W')
    cache : tuple
        For :func:`max_pool_backward_fast`.
    """
    forward = max_pool_forward_reshape if _tiles(x, pool_param) else max_pool_forward_im2col
    out, cache = forward(x, pool_param)
    return out, (forward is max_pool_forward_reshape, cache)


def max_pool_backward_fast(dout: np.ndarray, cache: Cache) -> np.ndarray:
    """Return the gradient of :func:`max_pool_forward_fast` in `x`."""
    is_reshape, cache = cache
    return (max_pool_backward_reshape if is_reshape else max_pool_backward_im2col)(dout, cache)


def max_pool_forward_im2col(x: np.ndarray, pool_param: Mapping[str, int]) -> tuple[np.ndarray, Cache]:
    """Take the maximum of each window, the first of which takes the gradient; see :func:`max_pool_forward_fast`."""
    kernel, stride = _pool_sizes(pool_param)
    assert (x.shape[2] - kernel[0]) % stride == 0, "Invalid height"
    assert (x.shape[3] - kernel[1]) % stride == 0, "Invalid width"
    (x,) = _same_type(x)
    out, indices = functional.max_pool2d(x, kernel, stride, return_indices=True)
    return out, (x, indices, pool_param)


def max_pool_backward_im2col(dout: np.ndarray, cache: Cache) -> np.ndarray:
    """Return the gradient of :func:`max_pool_forward_im2col` in `x`."""
    x, indices, pool_param = cache
    return functional.max_pool2d_backward(np.asarray(dout, x.dtype), indices, x.shape, *_pool_sizes(pool_param))


def max_pool_forward_reshape(x: np.ndarray, pool_param: Mapping[str, int]) -> tuple[np.ndarray, Cache]:
    """Take the maximum of square tiles, all of which share the gradient; see :func:`max_pool_forward_fast`."""
    assert _tiles(x, pool_param), "Invalid pool params"
    (x,) = _same_type(x)
    out = functional.max_pool2d(x, *_pool_sizes(pool_param))
    return out, (x, out, pool_param)


def max_pool_backward_reshape(dout: np.ndarray, cache: Cache) -> np.ndarray:
    """Return the gradient of :func:`max_pool_forward_reshape` in `x`: equal maxima share that of their window."""
    x, out, pool_param = cache
    size = pool_param["stride"]
    n, c, h, w = x.shape
    tiles = x.reshape(n, c, h // size, size, w // size, size)
    is_max = tiles == out[:, :, :, None, :, None]
    shares = np.asarray(dout, x.dtype) / is_max.sum(axis=(3, 5))
    return np.where(is_max, shares[:, :, :, None, :, None], x.dtype.type(0)).reshape(x.shape)


# --- Columns ---------------------------------------------------------------------------------------------------------


def _windows(padded: np.ndarray, height: int, width: int, stride: int) -> np.ndarray:
    """Return a view (N, C, height, width, H', W') of the elements that each tap meets."""
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3), writeable=True)
    return windows[:, :, ::stride, ::stride].transpose(0, 1, 4, 5, 2, 3)


def im2col_cython(
    x: np.ndarray, field_height: int, field_width: int, padding: int, stride: int, *, batch_first: bool = False
) -> np.ndarray:
    """Return the windows of images as columns, ``(C * field_height * field_width, H' * W' * N)``.

    Parameters
    ----------
    x : ndarray, (N, C, H, W)
        Images.
    field_height, field_width, padding, stride : int
        Of the windows.
    batch_first : bool
        Columns in order (N, H', W'), which one of the course's versions has, in place of (H', W', N).

    Returns
    -------
    ndarray
    """
    padded = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    windows = _windows(padded, field_height, field_width, stride)
    order = (1, 2, 3, 0, 4, 5) if batch_first else (1, 2, 3, 4, 5, 0)
    return windows.transpose(order).reshape(x.shape[1] * field_height * field_width, -1)


def col2im_cython(
    cols: np.ndarray,
    N: int,
    C: int,
    H: int,
    W: int,
    field_height: int,
    field_width: int,
    padding: int,
    stride: int,
    *,
    batch_first: bool = False,
) -> np.ndarray:
    """Add columns up where :func:`im2col_cython` took them from: its adjoint, ``(N, C, H, W)``."""
    out_h, out_w = ((size + 2 * padding - field) // stride + 1 for size, field in ((H, field_height), (W, field_width)))
    shape = (N, out_h, out_w) if batch_first else (out_h, out_w, N)
    six = cols.reshape(C, field_height, field_width, *shape)
    six = six if batch_first else six.transpose(0, 1, 2, 5, 3, 4)
    return col2im_6d_cython(six, N, C, H, W, field_height, field_width, padding, stride)


def col2im_6d_cython(
    cols: np.ndarray, N: int, C: int, H: int, W: int, HH: int, WW: int, pad: int, stride: int
) -> np.ndarray:
    """Add columns ``(C, HH, WW, N, H', W')`` up where they were taken from, ``(N, C, H, W)``."""
    padded = np.zeros((N, C, H + 2 * pad, W + 2 * pad), cols.dtype)
    windows = _windows(padded, HH, WW, stride)
    for h in range(HH):
        for w in range(WW):
            windows[:, :, h, w] += cols[:, h, w].swapaxes(0, 1)
    return padded[:, :, pad : pad + H, pad : pad + W]
