"""Every operator of :mod:`fastconv.functional` in plain NumPy: what the kernels compute, and their oracle.

The first part is written to be read. It accumulates in float64 and rounds once, to the type of the first argument or to
``dtype`` (``dtype=np.float64`` gives the unrounded result, for measuring errors). Names, order of arguments, defaults
and meaning are those of ``functional``, less what concerns memory and speed alone (``out``, ``inplace``,
``algorithm``). Arguments are taken to be valid.

One idea carries all of it. An operator with a window visits, for output position ``p`` and kernel tap ``k`` (per
dimension), the element

    i = stride * p + dilation * k - before

of its input, so the elements that ONE tap meets at all positions are a strided view of the padded input. Forward passes
read these views and reduce over the taps; backward passes add to the same views. Leading dimensions are free: a batch
may be there or not.

The second part, "The fastest honest NumPy", computes in the input's type and is what the benchmark compares with.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from itertools import product
from math import prod
from numbers import Integral

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, DTypeLike, NDArray

Ints = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]
Activation = str | tuple[str, float] | None
Gradients = tuple[NDArray | None, NDArray | None, NDArray | None]


def _per_dimension(value: Ints, ndim: int) -> tuple[int, ...]:
    return (value,) * ndim if isinstance(value, Integral) else tuple(value)


def _pads(padding: Padding, size, kernel, stride, dilation) -> tuple[tuple[int, int], ...]:
    """Return (before, after) per dimension. ``"same"`` keeps ``out = ceil(in / stride)``."""
    if padding == "valid":
        return ((0, 0),) * len(size)
    if isinstance(padding, str):
        totals = [
            max((-(-i // s) - 1) * s + (k - 1) * d + 1 - i, 0)
            for i, k, s, d in zip(size, kernel, stride, dilation, strict=True)
        ]
        halves = [(total // 2, total - total // 2) for total in totals]
        return tuple({"same": (lo, hi), "same_lower": (hi, lo)}[padding] for lo, hi in halves)
    return tuple((p, p) if isinstance(p, Integral) else tuple(p) for p in _per_dimension(padding, len(size)))


class _Windows:
    """The windows that slide over the last ``len(size)`` dimensions of an array, and the views that their taps meet."""

    def __init__(
        self,
        size: Sequence[int],
        kernel: Ints,
        stride: Ints | None = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        ceil_mode: bool = False,
    ):
        ndim = len(size)
        self.size = tuple(size)
        self.kernel = _per_dimension(kernel, ndim)
        self.stride = self.kernel if stride is None else _per_dimension(stride, ndim)
        self.dilation = _per_dimension(dilation, ndim)
        self.pads = _pads(padding, self.size, self.kernel, self.stride, self.dilation)
        self.out, self.beyond = (), ()
        for i, k, s, d, (before, after) in zip(
            self.size, self.kernel, self.stride, self.dilation, self.pads, strict=True
        ):
            extent = (k - 1) * d + 1
            free = before + i + after - extent
            out = (-(-free // s) if ceil_mode else free // s) + 1
            if ceil_mode and (out - 1) * s >= before + i:  # the last window would begin beyond the image
                out -= 1
            self.out += (out,)
            self.beyond += (max(after, (out - 1) * s + extent - before - i),)  # ceil_mode reads past the padding

    def padded(self, x: NDArray, value: float = 0, mode: str = "zeros") -> NDArray:
        pads = [(before, beyond) for (before, _), beyond in zip(self.pads, self.beyond, strict=True)]
        if not any(map(any, pads)):
            return x
        pads = [(0, 0)] * (x.ndim - len(pads)) + pads
        if mode != "zeros":
            return np.pad(x, pads, {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode])
        return np.pad(x, pads, constant_values=value)

    def cropped(self, padded: NDArray) -> NDArray:
        return padded[(..., *(slice(before, before + i) for (before, _), i in zip(self.pads, self.size, strict=True)))]

    def taps(self, padded: NDArray) -> Iterator[tuple[tuple[int, ...], NDArray]]:
        """Yield every tap, in row-major order, with the view of what it meets, ``padded[..., s * p + d * tap]``."""
        for tap in product(*map(range, self.kernel)):
            steps = zip(tap, self.out, self.stride, self.dilation, strict=True)
            yield tap, padded[(..., *(slice(k * d, k * d + o * s, s) for k, o, s, d in steps))]


def _sigmoid(z: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-z))


_ACTIVATIONS: dict[str, Callable[..., NDArray]] = {
    "relu": lambda z: np.where(z <= 0, 0, z),
    "relu6": lambda z: np.where(z <= 0, 0, np.minimum(z, 6)),
    "leaky_relu": lambda z, slope: np.where(z <= 0, slope * z, z),
    "silu": lambda z: z * _sigmoid(z),
    "hardswish": lambda z: z * np.clip(z + 3, 0, 6) / 6,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}


def _activate(z: NDArray, activation: Activation) -> NDArray:
    if activation is None:
        return z
    name, *slope = (activation,) if isinstance(activation, str) else activation
    return _ACTIVATIONS[name](z, *slope)


def _doubles(*arrays: ArrayLike | None) -> tuple[NDArray | None, ...]:
    return tuple(None if a is None else np.asarray(a, np.float64) for a in arrays)


def _rounded(result: NDArray, like: ArrayLike, dtype: DTypeLike | None) -> NDArray:
    return np.asarray(result, np.asarray(like).dtype if dtype is None else dtype, order="C")


def _channels_first(array: NDArray, ndim: int, layout: str | None) -> NDArray:
    """View an array in `layout`, None or "channels_last", with the channels before its ``ndim`` dimensions."""
    return array if layout is None else np.moveaxis(array, -1, -1 - ndim)


def _channels_last(array: NDArray, ndim: int, layout: str | None) -> NDArray:
    """Undo `_channels_first`."""
    return array if layout is None else np.moveaxis(array, -1 - ndim, -1)


# --- Convolution -----------------------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def conv(
    ndim: int,
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: Activation = None,
    residual: ArrayLike | None = None,
    layout: str | None = None,
    dtype: DTypeLike | None = None,
) -> NDArray:
    """Convolve (cross-correlate) ``x`` with ``weight`` over its last ``ndim`` dimensions.

    ::

        y[n, o, p] = act(bias[o] + residual[n, o, p] + sum over c, k of weight[o, c, k] * x[n, c0 + c, i])
        i = stride * p + dilation * k - before,  c0 = o // (oc / groups) * (ic / groups)

    ``p``, ``k`` and ``i`` have ``ndim`` components; ``x`` is 0 outside, and this zero is multiplied: 0 * inf = nan.

    Parameters
    ----------
    x : (n, ic, *size) or (ic, *size)
    weight : (oc, ic / groups, *kernel)
    bias : (oc,), optional
    stride, dilation : int or one int per dimension
    padding : int, one int or one (before, after) pair per dimension, ``"valid"``, ``"same"`` or ``"same_lower"``
        ``"same"`` makes ``out = ceil(in / stride)``; an odd total puts the larger half after, ``"same_lower"`` before.
    groups : int
    padding_mode : "zeros", "reflect", "replicate" or "circular"
        What the padding holds, as PyTorch's modules have it.
    activation : None, "relu", "relu6", ("leaky_relu", slope), "silu", "hardswish", "sigmoid" or "tanh"
    residual : array of the output's shape, optional
        Added before the activation.
    layout : None or "channels_last"
        Where the channels of ``x``, of ``residual`` and of the result are.
    dtype : data type of the result; that of ``x`` by default

    Returns
    -------
    (n, oc, *out), with ``out = (before + in + after - dilation * (kernel - 1) - 1) // stride + 1``
    """
    like, (x, weight, bias, residual) = x, _doubles(x, weight, bias, residual)
    x = _channels_first(x, ndim, layout)
    windows = _Windows(x.shape[-ndim:], weight.shape[2:], stride, padding, dilation)
    batch, pixels = x.shape[: -ndim - 1], prod(windows.out)
    oc, icg = weight.shape[:2]
    w = weight.reshape(groups, oc // groups, icg, *windows.kernel)
    padded = windows.padded(x.reshape(*batch, groups, icg, *windows.size), mode=padding_mode)

    y = np.zeros((*batch, groups, oc // groups, pixels))
    for tap, view in windows.taps(padded):
        y += w[(..., *tap)] @ view.reshape(*batch, groups, icg, pixels)

    y = y.reshape(*batch, oc, *windows.out)
    if bias is not None:
        y += bias.reshape(oc, *(1,) * ndim)
    if residual is not None:
        y += _channels_first(residual, ndim, layout)
    return _rounded(_channels_last(_activate(y, activation), ndim, layout), like, dtype)


@np.errstate(all="ignore")
def conv_backward(
    ndim: int,
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str | None = None,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
    dtype: DTypeLike | None = None,
) -> Gradients:
    """Return the gradients of :func:`conv` in ``x``, ``weight`` and ``bias``; None where ``output_mask`` is false.

    ::

        grad_input[n, c0 + c, i] += weight[o, c, k] * grad_output[n, o, p]      for all n, o, c, p, k
        grad_weight[o, c, k]     += grad_output[n, o, p] * x[n, c0 + c, i]
        grad_bias[o]             += grad_output[n, o, p]

    with ``i`` and ``c0`` as in :func:`conv`. ``grad_output``, (n, oc, *out), precedes any fused activation.
    """
    like, (grad_output, x, weight) = x, _doubles(grad_output, x, weight)
    grad_output, x = (_channels_first(array, ndim, layout) for array in (grad_output, x))
    windows = _Windows(x.shape[-ndim:], weight.shape[2:], stride, padding, dilation)
    batch, pixels = x.shape[: -ndim - 1], prod(windows.out)
    oc, icg = weight.shape[:2]
    w = weight.reshape(groups, oc // groups, icg, *windows.kernel)
    g = grad_output.reshape(*batch, groups, oc // groups, pixels)
    padded = windows.padded(x.reshape(*batch, groups, icg, *windows.size), mode=padding_mode)

    grad_input = grad_weight = grad_bias = None
    if output_mask[0]:
        grad_padded = np.zeros_like(padded)
        for tap, view in windows.taps(grad_padded):
            view += (np.swapaxes(w[(..., *tap)], -1, -2) @ g).reshape(view.shape)
        if padding_mode == "zeros":
            grad_input = windows.cropped(grad_padded)
        else:  # to the element that each place of the padded image repeats
            places = windows.padded(np.arange(prod(windows.size)).reshape(windows.size), mode=padding_mode)
            grad_input = np.zeros((*batch, groups, icg, prod(windows.size)))
            np.add.at(grad_input, (..., places.ravel()), grad_padded.reshape(*batch, groups, icg, places.size))
        grad_input = _rounded(_channels_last(grad_input.reshape(x.shape), ndim, layout), like, dtype)
    if output_mask[1]:
        grad_weight = np.zeros_like(w)
        for tap, view in windows.taps(padded):
            images = g @ np.swapaxes(view.reshape(*batch, groups, icg, pixels), -1, -2)
            grad_weight[(..., *tap)] = images.sum(axis=tuple(range(len(batch))))
        grad_weight = _rounded(grad_weight.reshape(weight.shape), like, dtype)
    if output_mask[2]:
        axes = (*range(len(batch)), *range(-ndim, 0))
        grad_bias = _rounded(grad_output.sum(axis=axes), like, dtype)
    return grad_input, grad_weight, grad_bias


@np.errstate(all="ignore")
def conv_transpose(
    ndim: int,
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    activation: Activation = None,
    residual: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> NDArray:
    """Add the filters, times ``x`` at ``p``, to the window at each position ``p``: a convolution's adjoint.

    ::

        y[n, o0 + o, i] += weight[c, o, k] * x[n, c, p]      for all n, o, c, p, k
        i = stride * p + dilation * k - before,  o0 = c // (ic / groups) * (oc / groups)

    ``weight`` has shape (ic, oc / groups, *kernel). What falls outside ``y`` is dropped; then come bias, residual and
    activation as in :func:`conv`. ``output_padding`` makes ``y`` that much longer at its end.

    Returns
    -------
    (n, oc, *out), with
    ``out = (in - 1) * stride - before - after + dilation * (kernel - 1) + output_padding + 1``
    """
    like, (x, weight, bias, residual) = x, _doubles(x, weight, bias, residual)
    windows = _transposed_windows(x.shape[-ndim:], weight.shape[2:], stride, padding, output_padding, dilation)
    batch, pixels = x.shape[: -ndim - 1], prod(windows.out)
    ic, ocg = weight.shape[:2]
    w = weight.reshape(groups, ic // groups, ocg, *windows.kernel)

    padded = windows.padded(np.zeros((*batch, groups, ocg, *windows.size)))
    for tap, view in windows.taps(padded):
        view += (np.swapaxes(w[(..., *tap)], -1, -2) @ x.reshape(*batch, groups, ic // groups, pixels)).reshape(
            view.shape
        )

    y = windows.cropped(padded).reshape(*batch, groups * ocg, *windows.size)
    if bias is not None:
        y = y + bias.reshape(-1, *(1,) * ndim)
    if residual is not None:
        y = y + residual
    return _rounded(_activate(y, activation), like, dtype)


def _transposed_windows(in_size, kernel, stride, padding, output_padding, dilation) -> _Windows:
    """Return the windows of the convolution from the output of a transposed one back to its input."""
    ndim = len(in_size)
    pads = _pads(padding, in_size, kernel, (1,) * ndim, (1,) * ndim)
    size = [
        (i - 1) * s - before - after + d * (k - 1) + extra + 1
        for i, k, s, d, extra, (before, after) in zip(
            in_size,
            kernel,
            *(_per_dimension(value, ndim) for value in (stride, dilation, output_padding)),
            pads,
            strict=True,
        )
    ]
    windows = _Windows(size, kernel, stride, pads, dilation)
    windows.out = tuple(in_size)  # output_padding may leave room for another window
    return windows


@np.errstate(all="ignore")
def conv_transpose_backward(
    ndim: int,
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
    dtype: DTypeLike | None = None,
) -> Gradients:
    """Return the gradients of :func:`conv_transpose` in ``x``, ``weight`` and ``bias``; None where masked out.

    ::

        grad_input[n, c, p]  += weight[c, o, k] * grad_output[n, o0 + o, i]      for all n, o, c, p, k
        grad_weight[c, o, k] += x[n, c, p] * grad_output[n, o0 + o, i]
        grad_bias[o]         += grad_output[n, o, i]
    """
    like, (grad_output, x, weight) = x, _doubles(grad_output, x, weight)
    windows = _transposed_windows(x.shape[-ndim:], weight.shape[2:], stride, padding, output_padding, dilation)
    batch, pixels = x.shape[: -ndim - 1], prod(windows.out)
    ic, ocg = weight.shape[:2]
    w = weight.reshape(groups, ic // groups, ocg, *windows.kernel)
    columns = x.reshape(*batch, groups, ic // groups, pixels)
    padded = windows.padded(grad_output.reshape(*batch, groups, ocg, *windows.size))

    grad_input, grad_weight = np.zeros_like(columns), np.zeros_like(w)
    for tap, view in windows.taps(padded):
        g = view.reshape(*batch, groups, ocg, pixels)
        grad_input += w[(..., *tap)] @ g
        grad_weight[(..., *tap)] = (columns @ np.swapaxes(g, -1, -2)).sum(axis=tuple(range(len(batch))))
    grad_bias = grad_output.sum(axis=(*range(len(batch)), *range(-ndim, 0)))
    gradients = grad_input.reshape(x.shape), grad_weight.reshape(weight.shape), grad_bias
    return tuple(
        _rounded(gradient, like, dtype) if wanted else None
        for gradient, wanted in zip(gradients, output_mask, strict=True)
    )


conv1d, conv2d, conv3d = (partial(conv, ndim) for ndim in (1, 2, 3))
conv1d_backward, conv2d_backward, conv3d_backward = (partial(conv_backward, ndim) for ndim in (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = (partial(conv_transpose, ndim) for ndim in (1, 2, 3))
conv_transpose1d_backward, conv_transpose2d_backward, conv_transpose3d_backward = (
    partial(conv_transpose_backward, ndim) for ndim in (1, 2, 3)
)


# --- Pooling ---------------------------------------------------------------------------------------------------------


def max_pool(
    ndim: int,
    x: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str | None = None,
) -> NDArray | tuple[NDArray, NDArray]:
    """Take the maximum of each window, and on request its index: int64, flat within the plane of ``ndim`` dimensions.

    ``y[n, c, p] = max over k of x[n, c, stride * p + dilation * k - before]``. The first maximum wins. A NaN in the
    window makes the result NaN, with the index of the last NaN. Padding is never chosen, and no window may hold
    nothing else.

    ``stride`` is the kernel size by default. ``ceil_mode`` keeps a last window that hangs over the end, if it begins
    inside the image or the padding before it.
    """
    x = _channels_first(np.asarray(x), ndim, layout)
    windows = _Windows(x.shape[-ndim:], kernel_size, stride, padding, dilation, ceil_mode)
    best = np.full((*x.shape[:-ndim], *windows.out), -np.inf, x.dtype)
    index = np.full(best.shape, -1, np.int64)
    values = windows.taps(windows.padded(x))
    places = windows.taps(windows.padded(np.arange(prod(windows.size)).reshape(windows.size), -1))
    for (_, value), (_, place) in zip(values, places, strict=True):
        chosen = (place >= 0) & ((index < 0) | (value > best) | np.isnan(value))
        best, index = np.where(chosen, value, best), np.where(chosen, place, index)
    best, index = (_channels_last(result, ndim, layout) for result in (best, index))
    return (best, index) if return_indices else best


@np.errstate(all="ignore")
def max_pool_backward(
    ndim: int,
    grad_output: ArrayLike,
    indices: ArrayLike,
    input_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    *,
    layout: str | None = None,
    dtype: DTypeLike | None = None,
) -> NDArray:
    """Return the gradient of :func:`max_pool` in ``x``: ``grad_input[n, c, indices[n, c, p]] += grad_output[n, c, p]``.

    Raises
    ------
    ValueError
        If an index lies outside its window.
    """
    like, (grad_output,), indices = grad_output, _doubles(grad_output), np.asarray(indices)
    grad_output, indices = (_channels_first(array, ndim, layout) for array in (grad_output, indices))
    input_shape = _channels_first(np.empty(input_shape), ndim, layout).shape
    windows = _Windows(input_shape[-ndim:], kernel_size, stride, padding, dilation, ceil_mode)
    grad_padded = windows.padded(np.zeros(input_shape))
    places = windows.taps(windows.padded(np.arange(prod(windows.size)).reshape(windows.size), -1))
    found = np.zeros(indices.shape, bool)
    for (_, view), (_, place) in zip(windows.taps(grad_padded), places, strict=True):
        hit = (place >= 0) & (place == indices)
        view += np.where(hit, grad_output, 0)
        found |= hit
    if not found.all():
        raise ValueError("max_pool_backward: every index must lie in its window")
    return _rounded(_channels_last(windows.cropped(grad_padded), ndim, layout), like, dtype)


def _divisor(windows: _Windows, count_include_pad: bool, divisor_override: int | None) -> NDArray | int:
    """Count the elements of each window: of the padded image, or of the image alone; never what lies beyond."""
    if divisor_override is not None:
        return divisor_override
    counts = []
    for i, k, s, o, (before, after) in zip(
        windows.size, windows.kernel, windows.stride, windows.out, windows.pads, strict=True
    ):
        begin = np.arange(o) * s - before
        low, high = (-before, i + after) if count_include_pad else (0, i)
        counts.append(np.minimum(begin + k, high) - np.maximum(begin, low))
    return reduce(np.multiply.outer, counts)


@np.errstate(all="ignore")
def avg_pool(
    ndim: int,
    x: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str | None = None,
    dtype: DTypeLike | None = None,
) -> NDArray:
    """Take the mean of each window.

    ``y[n, c, p] = sum over k of x[n, c, stride * p + k - before] / divisor[p]``. The divisor is ``divisor_override``,
    or the number of elements that the window shares with the padded image (``count_include_pad``) or with the image
    alone. What ``ceil_mode`` adds beyond the padding is never counted.
    """
    like, x = x, _channels_first(*_doubles(x), ndim, layout)
    windows = _Windows(x.shape[-ndim:], kernel_size, stride, padding, 1, ceil_mode)
    total = sum(view for _, view in windows.taps(windows.padded(x)))
    y = total / _divisor(windows, count_include_pad, divisor_override)
    return _rounded(_channels_last(y, ndim, layout), like, dtype)


@np.errstate(all="ignore")
def avg_pool_backward(
    ndim: int,
    grad_output: ArrayLike,
    input_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str | None = None,
    dtype: DTypeLike | None = None,
) -> NDArray:
    """Return the gradient of :func:`avg_pool` in ``x``: each window spreads ``grad_output / divisor`` evenly."""
    like, grad_output = grad_output, _channels_first(*_doubles(grad_output), ndim, layout)
    input_shape = _channels_first(np.empty(input_shape), ndim, layout).shape
    windows = _Windows(input_shape[-ndim:], kernel_size, stride, padding, 1, ceil_mode)
    share = grad_output / _divisor(windows, count_include_pad, divisor_override)
    grad_padded = windows.padded(np.zeros(input_shape))
    for _, view in windows.taps(grad_padded):
        view += share
    return _rounded(_channels_last(windows.cropped(grad_padded), ndim, layout), like, dtype)


max_pool1d, max_pool2d, max_pool3d = (partial(max_pool, ndim) for ndim in (1, 2, 3))
max_pool1d_backward, max_pool2d_backward, max_pool3d_backward = (partial(max_pool_backward, ndim) for ndim in (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = (partial(avg_pool, ndim) for ndim in (1, 2, 3))
avg_pool1d_backward, avg_pool2d_backward, avg_pool3d_backward = (partial(avg_pool_backward, ndim) for ndim in (1, 2, 3))


# Adaptive windows divide the image as evenly as integers allow, and may overlap by one element.


def _adaptive(x: NDArray, ndim: int, output_size) -> tuple[tuple[int, ...], Iterator[tuple[tuple[int, ...], tuple]]]:
    """Return the output's size, and an iterator over its positions, each with the slices of its window."""
    size = x.shape[-ndim:]
    wanted = (output_size,) * ndim if output_size is None else _per_dimension(output_size, ndim)
    out = tuple(i if o is None else o for i, o in zip(size, wanted, strict=True))

    def windows():
        for position in np.ndindex(out):
            bounds = zip(position, size, out, strict=True)
            yield position, (..., *(slice(p * i // o, -(-(p + 1) * i // o)) for p, i, o in bounds))

    return out, windows()


def adaptive_avg_pool(ndim: int, x: ArrayLike, output_size, *, dtype: DTypeLike | None = None) -> NDArray:
    """Take the means of ``output_size`` windows, from ``floor(p * in / out)`` to ``ceil((p + 1) * in / out)``."""
    like, (x,) = x, _doubles(x)
    out, windows = _adaptive(x, ndim, output_size)
    y = np.empty((*x.shape[:-ndim], *out))
    for position, window in windows:
        y[(..., *position)] = x[window].mean(axis=tuple(range(-ndim, 0)))
    return _rounded(y, like, dtype)


def adaptive_avg_pool_backward(
    ndim: int, grad_output: ArrayLike, input_shape: Sequence[int], output_size, *, dtype: DTypeLike | None = None
) -> NDArray:
    """Return the gradient of :func:`adaptive_avg_pool`: each window spreads its own evenly."""
    like, (grad_output,) = grad_output, _doubles(grad_output)
    grad_input = np.zeros(input_shape)
    for position, window in _adaptive(grad_input, ndim, output_size)[1]:
        view = grad_input[window]
        view += grad_output[(..., *position, *(None,) * ndim)] / max(prod(view.shape[-ndim:]), 1)
    return _rounded(grad_input, like, dtype)


def adaptive_max_pool(
    ndim: int, x: ArrayLike, output_size, return_indices: bool = False
) -> NDArray | tuple[NDArray, NDArray]:
    """Take the maxima of the windows of :func:`adaptive_avg_pool`, with indices as in :func:`max_pool`."""
    x = np.asarray(x)
    size = x.shape[-ndim:]
    out, windows = _adaptive(x, ndim, output_size)
    best, index = np.empty((*x.shape[:-ndim], *out), x.dtype), np.empty((*x.shape[:-ndim], *out), np.int64)
    places = np.arange(prod(size)).reshape(size)
    for position, window in windows:
        kernel = places[window].shape
        y, k = max_pool(ndim, x[window], kernel, return_indices=True)
        best[(..., *position)] = y.reshape(x.shape[:-ndim])
        index[(..., *position)] = places[window].ravel()[k.reshape(x.shape[:-ndim])]
    return (best, index) if return_indices else best


def adaptive_max_pool_backward(
    ndim: int,
    grad_output: ArrayLike,
    indices: ArrayLike,
    input_shape: Sequence[int],
    output_size,
    *,
    dtype: DTypeLike | None = None,
) -> NDArray:
    """Return the gradient of :func:`adaptive_max_pool`: each output's, added at its index."""
    like, (grad_output,), indices = grad_output, _doubles(grad_output), np.asarray(indices)
    grad_input = np.zeros(input_shape)
    lead, size = input_shape[:-ndim], tuple(input_shape[-ndim:])
    flat = grad_input.reshape(prod(lead), prod(size))
    np.add.at(
        flat,
        (np.arange(len(flat))[:, None], indices.reshape(len(flat), prod(indices.shape[-ndim:]))),
        grad_output.reshape(len(flat), prod(indices.shape[-ndim:])),
    )
    return _rounded(grad_input, like, dtype)


@np.errstate(all="ignore")
def lp_pool(
    ndim: int,
    x: ArrayLike,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dtype: DTypeLike | None = None,
) -> NDArray:
    """Take the norm of each window, ``(sum over k of abs(x[i]) ** norm_type) ** (1 / norm_type)``, as ONNX has it."""
    like, (x,) = x, _doubles(x)
    windows = _Windows(x.shape[-ndim:], kernel_size, stride, padding, 1, ceil_mode)
    total = sum(view for _, view in windows.taps(windows.padded(np.abs(x) ** norm_type)))
    return _rounded(total ** (1 / norm_type), like, dtype)


@np.errstate(all="ignore")
def lp_pool_backward(
    ndim: int,
    grad_output: ArrayLike,
    x: ArrayLike,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dtype: DTypeLike | None = None,
) -> NDArray:
    """Return the gradient of :func:`lp_pool`, ``sign(x) * (abs(x) / y) ** (norm_type - 1)`` a window; 0 where x is."""
    like, (grad_output, x) = grad_output, _doubles(grad_output, x)
    y = lp_pool(ndim, x, norm_type, kernel_size, stride, ceil_mode, padding=padding)
    windows = _Windows(x.shape[-ndim:], kernel_size, stride, padding, 1, ceil_mode)
    grad_padded, padded = windows.padded(np.zeros(x.shape)), windows.padded(x)
    for (_, view), (_, value) in zip(windows.taps(grad_padded), windows.taps(padded), strict=True):
        slope = np.sign(value) * np.abs(value) ** (norm_type - 1) * y ** (1 - norm_type)
        view += np.where(value == 0, 0, grad_output * slope)
    return _rounded(windows.cropped(grad_padded), like, dtype)


def _unpooled_size(in_size, kernel_size, stride, padding, output_size) -> tuple[int, ...]:
    ndim = len(in_size)
    if output_size is not None:
        return tuple(output_size)[-ndim:]
    kernel = _per_dimension(kernel_size, ndim)
    stride = kernel if stride is None else _per_dimension(stride, ndim)
    pads = _per_dimension(padding, ndim)
    return tuple((i - 1) * s - 2 * p + k for i, k, s, p in zip(in_size, kernel, stride, pads, strict=True))


def max_unpool(
    ndim: int,
    x: ArrayLike,
    indices: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> NDArray:
    """Put each element of ``x`` at its index in a plane of zeros; of several at one index the last stays."""
    x, indices = np.asarray(x), np.asarray(indices)
    lead = x.shape[:-ndim]
    size = _unpooled_size(x.shape[-ndim:], kernel_size, stride, padding, output_size)
    y = np.zeros((prod(lead), prod(size)), x.dtype)
    for plane in range(prod(lead)):
        for index, value in zip(
            indices.reshape(*y.shape[:1], -1)[plane], x.reshape(*y.shape[:1], -1)[plane], strict=True
        ):
            y[plane, index] = value
    return y.reshape(*lead, *size)


def max_unpool_backward(
    ndim: int,
    grad_output: ArrayLike,
    indices: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> NDArray:
    """Return the gradient of :func:`max_unpool`: what stands at each index."""
    grad_output, indices = np.asarray(grad_output), np.asarray(indices)
    lead, size = indices.shape[:-ndim], prod(indices.shape[-ndim:])
    flat = grad_output.reshape(prod(lead), prod(grad_output.shape[-ndim:]))
    return np.take_along_axis(flat, indices.reshape(prod(lead), size), -1).reshape(indices.shape)


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (partial(adaptive_avg_pool, n) for n in (1, 2, 3))
adaptive_avg_pool1d_backward, adaptive_avg_pool2d_backward, adaptive_avg_pool3d_backward = (
    partial(adaptive_avg_pool_backward, ndim) for ndim in (1, 2, 3)
)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = (partial(adaptive_max_pool, n) for n in (1, 2, 3))
adaptive_max_pool1d_backward, adaptive_max_pool2d_backward, adaptive_max_pool3d_backward = (
    partial(adaptive_max_pool_backward, ndim) for ndim in (1, 2, 3)
)
lp_pool1d, lp_pool2d, lp_pool3d = (partial(lp_pool, ndim) for ndim in (1, 2, 3))
lp_pool1d_backward, lp_pool2d_backward, lp_pool3d_backward = (partial(lp_pool_backward, ndim) for ndim in (1, 2, 3))
max_unpool1d, max_unpool2d, max_unpool3d = (partial(max_unpool, ndim) for ndim in (1, 2, 3))
max_unpool1d_backward, max_unpool2d_backward, max_unpool3d_backward = (
    partial(max_unpool_backward, ndim) for ndim in (1, 2, 3)
)


# --- Unfolding -------------------------------------------------------------------------------------------------------


def _rank(kernel_size: Ints) -> int:
    return 2 if isinstance(kernel_size, Integral) else len(kernel_size)


def _ordered(columns: NDArray, order: str | None) -> NDArray:
    """(n, c * k, positions), or its columns of all images side by side."""
    if order is None:
        return columns
    n, rows, positions = columns.shape
    axes = {"batch_outer": (1, 0, 2), "batch_inner": (1, 2, 0)}[order]
    return columns.transpose(axes).reshape(rows, n * positions)


def unfold(
    x: ArrayLike,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Padding = 0,
    stride: Ints = 1,
    *,
    order: str | None = None,
) -> NDArray:
    """Copy each window to a column: im2col. An integer kernel is square, a tuple tells the number of dimensions.

    ``columns[n, c * taps + k, p] = x[n, c, stride * p + dilation * k - before]``. ``order`` None gives (n, c * taps,
    positions), "batch_outer" (c * taps, n * positions) and "batch_inner" (c * taps, positions * n).
    """
    x, ndim = np.asarray(x), _rank(kernel_size)
    lead, (c, *size) = x.shape[: -ndim - 1], x.shape[-ndim - 1 :]
    windows = _Windows(size, kernel_size, stride, padding, dilation)
    views = [view for _, view in windows.taps(windows.padded(x))]
    columns = np.stack(views, -ndim - 1).reshape(*lead, c * len(views), prod(windows.out))
    return columns if order is None else _ordered(columns.reshape(-1, *columns.shape[-2:]), order)


def fold(
    x: ArrayLike,
    output_size: Ints,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Padding = 0,
    stride: Ints = 1,
    *,
    order: str | None = None,
    dtype: DTypeLike | None = None,
) -> NDArray:
    """Add each column to its window: col2im, the gradient of :func:`unfold`."""
    like, (columns,), ndim = x, _doubles(x), _rank(kernel_size)
    windows = _Windows(_per_dimension(output_size, ndim), kernel_size, stride, padding, dilation)
    if order is not None:
        n = columns.shape[1] // prod(windows.out)
        shape = {"batch_outer": (n, prod(windows.out)), "batch_inner": (prod(windows.out), n)}[order]
        columns = columns.reshape(len(columns), *shape).transpose((1, 0, 2) if order == "batch_outer" else (2, 0, 1))
    lead, c = columns.shape[:-2], columns.shape[-2] // prod(windows.kernel)
    taps = columns.reshape(*lead, c, *windows.kernel, *windows.out)
    padded = windows.padded(np.zeros((*lead, c, *windows.size)))
    for tap, view in windows.taps(padded):
        view += taps[(..., *tap, *(slice(None),) * ndim)]
    return _rounded(windows.cropped(padded), like, dtype)


# --- Elementwise and linear ------------------------------------------------------------------------------------------


def relu(x: ArrayLike) -> NDArray:
    """Return 0 where ``x <= 0`` (so -0.0 gives 0.0) and ``x`` elsewhere; NaN passes."""
    x = np.asarray(x)
    return np.where(x <= 0, x.dtype.type(0), x)


def relu_backward(grad_output: ArrayLike, x_or_y: ArrayLike) -> NDArray:
    """Return 0 where ``x_or_y <= 0`` and ``grad_output`` elsewhere; input and output of :func:`relu` give the same."""
    grad_output = np.asarray(grad_output)
    return np.where(np.asarray(x_or_y) <= 0, grad_output.dtype.type(0), grad_output)


# Derivatives of activations, of the input or, for sigmoid and tanh, of the output.
_SLOPES = {
    "relu6": lambda x: (x > 0) & (x < 6),
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
    "silu": lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))),
    "hardswish": lambda x: np.where(x <= -3, 0, np.where(x >= 3, 1, x / 3 + 0.5)),
}


def _activation(name: str) -> tuple[Callable, Callable]:
    @np.errstate(all="ignore")
    def forward(x: ArrayLike, *, dtype: DTypeLike | None = None) -> NDArray:
        return _rounded(_activate(*_doubles(x), name), x, dtype)

    @np.errstate(all="ignore")
    def backward(grad_output: ArrayLike, x_or_y: ArrayLike, *, dtype: DTypeLike | None = None) -> NDArray:
        g, value = _doubles(grad_output, x_or_y)
        return _rounded(g * _SLOPES[name](value), grad_output, dtype)

    return forward, backward


relu6, relu6_backward = _activation("relu6")
sigmoid, sigmoid_backward = _activation("sigmoid")
tanh, tanh_backward = _activation("tanh")
silu, silu_backward = _activation("silu")
hardswish, hardswish_backward = _activation("hardswish")


def leaky_relu(x: ArrayLike, negative_slope: float = 0.01, *, dtype: DTypeLike | None = None) -> NDArray:
    """Return ``negative_slope * x`` where ``x <= 0`` and ``x`` elsewhere."""
    (z,) = _doubles(x)
    return _rounded(np.where(z <= 0, negative_slope * z, z), x, dtype)


def leaky_relu_backward(
    grad_output: ArrayLike, x: ArrayLike, negative_slope: float = 0.01, *, dtype: DTypeLike | None = None
) -> NDArray:
    """Return ``negative_slope * grad_output`` where ``x <= 0`` and ``grad_output`` elsewhere."""
    (g,) = _doubles(grad_output)
    return _rounded(np.where(np.asarray(x) <= 0, negative_slope * g, g), grad_output, dtype)


@np.errstate(all="ignore")
def log_softmax(x: ArrayLike, axis: int = -1, *, dtype: DTypeLike | None = None) -> NDArray:
    """Return ``x - log(sum of exp(x) along axis)``."""
    (z,) = _doubles(x)
    z = z - z.max(axis, keepdims=True)
    return _rounded(z - np.log(np.exp(z).sum(axis, keepdims=True)), x, dtype)


def softmax(x: ArrayLike, axis: int = -1, *, dtype: DTypeLike | None = None) -> NDArray:
    """Return ``exp(x) / sum of exp(x) along axis``."""
    return _rounded(np.exp(log_softmax(x, axis, dtype=np.float64)), x, dtype)


def softmax_backward(
    grad_output: ArrayLike, y: ArrayLike, axis: int = -1, *, dtype: DTypeLike | None = None
) -> NDArray:
    """Return the gradient of :func:`softmax` from its output."""
    g, p = _doubles(grad_output, y)
    return _rounded(p * (g - (g * p).sum(axis, keepdims=True)), grad_output, dtype)


def log_softmax_backward(
    grad_output: ArrayLike, y: ArrayLike, axis: int = -1, *, dtype: DTypeLike | None = None
) -> NDArray:
    """Return the gradient of :func:`log_softmax` from its output."""
    g, logarithm = _doubles(grad_output, y)
    return _rounded(g - np.exp(logarithm) * g.sum(axis, keepdims=True), grad_output, dtype)


def _by_channel(x: NDArray, value: ArrayLike | None, default: float) -> NDArray:
    """Return one number a channel in the shape that broadcasts over ``(n, c, ...)``."""
    value = np.full(x.shape[1], default) if value is None else np.asarray(value, np.float64)
    return value.reshape(-1, *[1] * (x.ndim - 2))


@np.errstate(all="ignore")
def batch_norm(
    x: ArrayLike,
    running_mean: NDArray | None,
    running_var: NDArray | None,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_statistics: bool = False,
    dtype: DTypeLike | None = None,
) -> NDArray | tuple[NDArray, NDArray, NDArray]:
    """Return ``(x - mean) / sqrt(var + eps) * weight + bias``; in training, update the running statistics."""
    like, (x,) = x, _doubles(x)
    mean, var = running_mean, running_var
    if training:
        axes, count = (0, *range(2, x.ndim)), x.size / x.shape[1]
        mean, var = x.mean(axes), x.var(axes)
        for running, new in (running_mean, mean), (running_var, var * count / (count - 1)):
            if running is not None:
                running[...] = (1 - momentum) * running.astype(np.float64) + momentum * new
    scale = _by_channel(x, weight, 1) / np.sqrt(_by_channel(x, var, 1) + eps)
    y = _rounded((x - _by_channel(x, mean, 0)) * scale + _by_channel(x, bias, 0), like, dtype)
    return (y, mean, var) if return_statistics else y


@np.errstate(all="ignore")
def batch_norm_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    weight: ArrayLike | None = None,
    training: bool = False,
    eps: float = 1e-5,
    *,
    dtype: DTypeLike | None = None,
) -> Gradients:
    """Return the gradients of :func:`batch_norm` in ``x``, ``weight`` and ``bias``."""
    like, (g, x) = grad_output, _doubles(grad_output, x)
    axes, count = (0, *range(2, x.ndim)), x.size // x.shape[1]
    inverse = 1 / np.sqrt(_by_channel(x, var, 1) + eps)
    normal = (x - _by_channel(x, mean, 0)) * inverse
    grad_weight, grad_bias = (g * normal).sum(axes), g.sum(axes)
    if training:
        g = g - (_by_channel(x, grad_bias, 0) + normal * _by_channel(x, grad_weight, 0)) / count
    grad_input = g * inverse * _by_channel(x, weight, 1)
    return tuple(_rounded(gradient, like, dtype) for gradient in (grad_input, grad_weight, grad_bias))


def _channel_windows(x: NDArray, before: int, after: int) -> NDArray:
    """Return the mean of each channel and those around it, zero beyond the first and the last."""
    padded = np.pad(x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
    return sliding_window_view(padded, before + 1 + after, axis=1).mean(-1)


def local_response_norm(
    x: ArrayLike, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *, dtype: DTypeLike | None = None
) -> NDArray:
    """Return ``x / (k + alpha * mean of squares over size channels) ** beta``."""
    (z,) = _doubles(x)
    d = k + alpha * _channel_windows(z * z, size // 2, (size - 1) // 2)
    return _rounded(z / d**beta, x, dtype)


def local_response_norm_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    dtype: DTypeLike | None = None,
) -> NDArray:
    """Return the gradient of :func:`local_response_norm` in ``x``."""
    g, z = _doubles(grad_output, x)
    d = k + alpha * _channel_windows(z * z, size // 2, (size - 1) // 2)
    spread = _channel_windows(g * z * d ** (-beta - 1), (size - 1) // 2, size // 2)
    return _rounded(g * d**-beta - 2 * alpha * beta * z * spread, grad_output, dtype)


@np.errstate(all="ignore")
def linear(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: Activation = None,
    dtype: DTypeLike | None = None,
) -> NDArray:
    """Return ``y[..., o] = act(bias[o] + sum over i of x[..., i] * weight[o, i])``."""
    like, (x, weight, bias) = x, _doubles(x, weight, bias)
    y = x @ weight.T
    return _rounded(_activate(y if bias is None else y + bias, activation), like, dtype)


@np.errstate(all="ignore")
def linear_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
    dtype: DTypeLike | None = None,
) -> Gradients:
    """Return the gradients of :func:`linear` in ``x``, ``weight`` and ``bias``; None where ``output_mask`` is false.

    ::

        grad_input = grad_output @ weight,  grad_weight = grad_output.T @ x,  grad_bias = sum of grad_output's rows
    """
    like, (grad_output, x, weight) = x, _doubles(grad_output, x, weight)
    g, rows = grad_output.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
    gradients = (lambda: grad_output @ weight, lambda: g.T @ rows, lambda: g.sum(axis=0))
    return tuple(
        _rounded(gradient(), like, dtype) if wanted else None
        for gradient, wanted in zip(gradients, output_mask, strict=True)
    )


# --- The fastest honest NumPy ----------------------------------------------------------------------------------------
#
# Two dimensions, batched, in the type of the input; each the fastest of several forms on the shapes of layers.csv.


def _column_blocks(x: NDArray, weight: NDArray, stride, padding, dilation, groups) -> Iterator[tuple[slice, NDArray]]:
    """Yield blocks of images with their columns, (groups, icg * kh * kw, images * oh * ow).

    One image at a time keeps the columns in cache; images too small for an efficient product share a block.
    """
    (n, ic), kernel = x.shape[:2], weight.shape[2:]
    windows = _Windows(x.shape[2:], kernel, stride, padding, dilation)
    (sh, sw), (dh, dw) = windows.stride, windows.dilation
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, windows.dilation, strict=True)]
    views = sliding_window_view(windows.padded(x), extent, (2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]
    views = views.transpose(1, 4, 5, 0, 2, 3)  # ic, kh, kw, n, oh, ow
    block = min(n, max(1, 256 // prod(windows.out)))
    columns = np.empty((*views.shape[:3], block, *windows.out), x.dtype)
    free = prod(kernel) * sh * sw * block == 1  # the columns of a 1x1 kernel are the image
    for begin in range(0, n, block):
        images = slice(begin, begin + block)
        view = views[:, :, :, images]
        if not free:
            copy = columns[:, :, :, : view.shape[3]]
            np.copyto(copy, view)
            view = copy
        yield images, view.reshape(groups, ic // groups * prod(kernel), -1)


def conv2d_im2col(
    x: NDArray, weight: NDArray, bias: NDArray | None = None, stride=1, padding=0, dilation=1, groups=1
) -> NDArray:
    """Copy sliding windows to columns and multiply: ``y[image] = weight @ columns``; 1x1 without columns."""
    oc = weight.shape[0]
    w = weight.reshape(groups, oc // groups, -1)
    y = np.empty((x.shape[0], oc, *_Windows(x.shape[2:], weight.shape[2:], stride, padding, dilation).out), x.dtype)
    for images, columns in _column_blocks(x, weight, stride, padding, dilation, groups):
        if len(y[images]) == 1:
            np.matmul(w, columns, out=y[images].reshape(*w.shape[:2], -1))
        else:
            y[images] = (w @ columns).reshape(oc, -1, *y.shape[2:]).swapaxes(0, 1)
    if bias is not None:
        y += bias[:, None, None]
    return y


def conv2d_im2col_backward(
    grad_output: NDArray, x: NDArray, weight: NDArray, stride=1, padding=0, dilation=1, groups=1
) -> tuple[NDArray, NDArray, NDArray]:
    """Return the gradients of :func:`conv2d_im2col` in ``x``, ``weight`` and ``bias``.

    ``grad_weight = sum over images of grad_output @ columns.T``. ``grad_input`` at stride 1 is a convolution with
    rotated weights; else it is ``weight.T @ grad_output``, added tap by tap.
    """
    oc, icg, *kernel = weight.shape
    w = weight.reshape(groups, oc // groups, -1)
    grad_weight = np.zeros_like(w)
    for images, columns in _column_blocks(x, weight, stride, padding, dilation, groups):
        g = grad_output[images].swapaxes(0, 1).reshape(*w.shape[:2], -1)
        grad_weight += g @ columns.swapaxes(1, 2)

    windows = _Windows(x.shape[2:], kernel, stride, padding, dilation)
    mirrored = [
        (d * (k - 1) - before, d * (k - 1) - after)
        for k, d, (before, after) in zip(kernel, windows.dilation, windows.pads, strict=True)
    ]
    if windows.stride == (1, 1) and min(map(min, mirrored)) >= 0:
        rotated = weight[:, :, ::-1, ::-1].reshape(groups, oc // groups, icg, *kernel).swapaxes(1, 2)
        rotated = rotated.reshape(groups * icg, oc // groups, *kernel)
        grad_input = conv2d_im2col(grad_output, rotated, None, 1, mirrored, dilation, groups)
    else:
        grad_padded = windows.padded(np.zeros_like(x))
        columns = np.empty((groups, w.shape[2], prod(windows.out)), x.dtype)
        taps = columns.reshape(x.shape[1], *kernel, *windows.out)
        for grad_image, g in zip(grad_padded, grad_output, strict=True):
            np.matmul(w.swapaxes(1, 2), g.reshape(*w.shape[:2], -1), out=columns)
            for (kh, kw), view in windows.taps(grad_image):
                view += taps[:, kh, kw]
        grad_input = windows.cropped(grad_padded)
    return grad_input, grad_weight.reshape(weight.shape), grad_output.sum(axis=(0, 2, 3))


def _phases(x: NDArray, windows: _Windows) -> tuple[NDArray, int]:
    """Pad planes and split them by the stride: (..., sh, sw, height * width) and ``width``.

    What one tap meets is then one run of a phase: ``oh`` rows of ``width``, of which ``ow`` count.
    """
    (sh, sw), lead = windows.stride, x.shape[:-2]
    pads = [
        (before, after + -(before + i + after) % s)
        for i, (before, after), s in zip(windows.size, windows.pads, windows.stride, strict=True)
    ]
    padded = np.pad(x, [(0, 0)] * len(lead) + pads)
    height, width = padded.shape[-2] // sh, padded.shape[-1] // sw
    split = np.moveaxis(padded.reshape(*lead, height, sh, width, sw), (-3, -1), (-4, -3))
    return split.reshape(*lead, sh, sw, height * width), width


def _runs(phases: NDArray, width: int, windows: _Windows) -> Iterator[tuple[int, int, NDArray]]:
    """Yield each tap (kh, kw) with its run."""
    (sh, sw), (dh, dw), (oh, ow) = windows.stride, windows.dilation, windows.out
    for kh, kw in product(*map(range, windows.kernel)):
        (row, phase_h), (column, phase_w) = divmod(kh * dh, sh), divmod(kw * dw, sw)
        begin = row * width + column
        yield kh, kw, phases[..., phase_h, phase_w, begin : begin + (oh - 1) * width + ow]


def _plane_blocks(n: int, groups: int, plane: int) -> Iterator[tuple[int, slice]]:
    """Yield blocks of groups, an image at a time, whose planes stay in cache."""
    step = max(1, 2**16 // plane)
    yield from product(range(n), (slice(g, g + step) for g in range(0, groups, step)))


def conv2d_planes(
    x: NDArray, weight: NDArray, bias: NDArray | None = None, stride=1, padding=0, dilation=1, groups=1
) -> NDArray:
    """Add shifted planes, tap by tap: for depthwise and narrow groups."""
    n, (oc, icg, *kernel) = len(x), weight.shape
    windows = _Windows(x.shape[2:], kernel, stride, padding, dilation)
    oh, ow = windows.out
    w = weight.reshape(groups, oc // groups, icg, *kernel, 1)
    phases, width = _phases(x.reshape(n, groups, icg, *windows.size), windows)
    y = np.empty((n, groups, oc // groups, oh, ow), x.dtype)
    for image, block in _plane_blocks(n, groups, oh * width):
        out = y[image, block]
        total = np.zeros((oc // groups, len(out), oh * width), x.dtype)
        for kh, kw, run in _runs(phases[image, block], width, windows):
            term = np.empty((len(out), run.shape[-1]), x.dtype)
            for o, c in product(range(oc // groups), range(icg)):
                total[o, :, : run.shape[-1]] += np.multiply(run[:, c], w[block, o, c, kh, kw], out=term)
        out[...] = total.reshape(oc // groups, len(out), oh, width).swapaxes(0, 1)[..., :ow]
    y = y.reshape(n, oc, oh, ow)
    if bias is not None:
        y += bias[:, None, None]
    return y


def conv2d_planes_backward(
    grad_output: NDArray, x: NDArray, weight: NDArray, stride=1, padding=0, dilation=1, groups=1
) -> tuple[NDArray, NDArray, NDArray]:
    """Return the gradients of :func:`conv2d_planes` in ``x``, ``weight`` and ``bias``, by the same runs."""
    (n, ic), (oc, icg, *kernel) = x.shape[:2], weight.shape
    windows = _Windows(x.shape[2:], kernel, stride, padding, dilation)
    (oh, ow), (sh, sw) = windows.out, windows.stride
    w = weight.reshape(groups, oc // groups, icg, *kernel, 1)
    phases, width = _phases(x.reshape(n, groups, icg, *windows.size), windows)
    grad_phases, grad_weight = np.zeros_like(phases), np.zeros_like(w)
    g = np.zeros((n, groups, oc // groups, oh, width), x.dtype)
    g[..., :ow] = grad_output.reshape(n, groups, oc // groups, oh, ow)
    g = g.reshape(n, groups, oc // groups, oh * width)[..., : (oh - 1) * width + ow]
    for image, block in _plane_blocks(n, groups, oh * width):
        runs = _runs(phases[image, block], width, windows)
        grad_runs = _runs(grad_phases[image, block], width, windows)
        term = np.empty_like(g[image, block, 0])
        for (kh, kw, run), (_, _, grad_run) in zip(runs, grad_runs, strict=True):
            for o, c in product(range(oc // groups), range(icg)):
                grad_run[:, c] += np.multiply(g[image, block, o], w[block, o, c, kh, kw], out=term)
                grad_weight[block, o, c, kh, kw, 0] += np.einsum("gp,gp->g", run[:, c], g[image, block, o])
    merged = np.moveaxis(grad_phases.reshape(n, ic, sh, sw, -1, width), (-4, -3), (-3, -1))
    grad_input = windows.cropped(merged.reshape(n, ic, -1, width * sw))
    return grad_input, grad_weight.reshape(weight.shape), grad_output.sum(axis=(0, 2, 3))


def _combined(combine: np.ufunc, views: Sequence[NDArray]) -> NDArray:
    first, *rest = views
    if not rest:
        return first
    total = combine(first, rest[0])
    for view in rest[1:]:
        combine(total, view, out=total)
    return total


def _pool2d(x: NDArray, windows: _Windows, combine: np.ufunc, value: float) -> NDArray:
    """Combine rows, then columns, an image at a time."""
    y = np.empty((*x.shape[:2], *windows.out), x.dtype)
    (kh, kw), (sh, sw), (oh, ow) = windows.kernel, windows.stride, windows.out
    for image, out in zip(x, y, strict=True):
        padded = windows.padded(image, value)
        rows = _combined(combine, [padded[:, k : k + oh * sh : sh] for k in range(kh)])
        out[...] = _combined(combine, [rows[:, :, k : k + ow * sw : sw] for k in range(kw)])
    return y


def max_pool2d_strided(x: NDArray, kernel_size: Ints, stride: Ints | None = None, padding: Padding = 0) -> NDArray:
    """Take maxima of strided views, of rows and then of columns."""
    return _pool2d(x, _Windows(x.shape[2:], kernel_size, stride, padding), np.maximum, -np.inf)


def max_pool2d_strided_backward(grad_output: NDArray, indices: NDArray, input_shape: Sequence[int]) -> NDArray:
    """Add the gradients at their indices, all planes at once."""
    planes, plane = prod(input_shape[:2]), prod(input_shape[2:])
    grad_input = np.zeros(planes * plane, grad_output.dtype)
    places = indices.reshape(planes, -1) + plane * np.arange(planes)[:, None]
    np.add.at(grad_input, places.ravel(), grad_output.ravel())
    return grad_input.reshape(input_shape)


def avg_pool2d_strided(x: NDArray, kernel_size: Ints, stride: Ints | None = None, padding: Padding = 0) -> NDArray:
    """Add strided views, of rows and then of columns, and divide by the kernel's size."""
    windows = _Windows(x.shape[2:], kernel_size, stride, padding)
    y = _pool2d(x, windows, np.add, 0)
    y *= 1 / prod(windows.kernel)
    return y


def avg_pool2d_strided_backward(
    grad_output: NDArray,
    input_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
) -> NDArray:
    """Spread the gradients over columns and then over rows, an image at a time."""
    windows = _Windows(input_shape[2:], kernel_size, stride, padding)
    (kh, kw), (sh, sw), (oh, ow) = windows.kernel, windows.stride, windows.out
    (top, bottom), (left, right) = windows.pads
    _, c, ih, iw = input_shape
    grad_input = np.empty(input_shape, grad_output.dtype)
    for image, g in zip(grad_input, grad_output, strict=True):
        share = g * g.dtype.type(1 / (kh * kw))
        columns = np.zeros((c, oh, left + iw + right), g.dtype)
        for k in range(kw):
            columns[:, :, k : k + ow * sw : sw] += share
        rows = np.zeros((c, top + ih + bottom, iw), g.dtype)
        for k in range(kh):
            rows[:, k : k + oh * sh : sh] += columns[:, :, left : left + iw]
        image[...] = rows[:, top : top + ih]
    return grad_input


def relu_maximum(x: NDArray) -> NDArray:
    """Return ``maximum(x, 0)``."""
    return np.maximum(x, 0)


def relu_maximum_backward(grad_output: NDArray, x: NDArray) -> NDArray:
    """Return ``grad_output * (x > 0)``, many times faster than ``where``."""
    return grad_output * (x > 0)
