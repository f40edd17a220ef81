"""Convolution, pooling, ReLU and linear maps, forward and backward: validate, choose, call a kernel.

Every function takes NumPy arrays, or what offers the buffer protocol, ``__array_interface__`` or DLPack in the CPU's
memory, of float32 or float64, and returns NumPy arrays of the same type. An array in another layout than C-contiguous,
aligned and of native byte order is copied once. Convolutions and pools have 1, 2 or 3 spatial dimensions: the ``size``
of ``(n, c, *size)``, or of ``(c, *size)`` for a single image and a result without ``n``. ``n`` may be 0.

``out`` receives the result, whatever its layout; it must have the result's shape and type, be writeable and share no
memory with another argument. All of this is checked before anything is computed: an error leaves ``out`` as it was.

The work of a call beyond its kernel is about a microsecond: arguments that are as the kernels want them are known at a
glance, and what depends on shapes and options alone is looked up (`_conv_call`, `_pool_call`). Kernels take arrays of
any shape with the right number of elements.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _kernels, algorithms, geometry, runtime
from .packing import Box, PackedWeight, live_taps

__all__ = [
    "PackedWeight",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool1d_backward",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool3d",
    "adaptive_avg_pool3d_backward",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_backward",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_backward",
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool3d",
    "avg_pool3d_backward",
    "conv1d",
    "conv1d_backward",
    "conv2d",
    "conv2d_backward",
    "conv3d",
    "conv3d_backward",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "conv_transpose3d",
    "conv_transpose3d_backward",
    "explain",
    "fold",
    "linear",
    "linear_backward",
    "lp_pool1d",
    "lp_pool1d_backward",
    "lp_pool2d",
    "lp_pool2d_backward",
    "lp_pool3d",
    "lp_pool3d_backward",
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool3d",
    "max_pool3d_backward",
    "max_unpool1d",
    "max_unpool1d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "max_unpool3d",
    "max_unpool3d_backward",
    "pack_weight",
    "relu",
    "relu_backward",
    "unfold",
]

Ints = int | Sequence[int]
AdaptiveSize = int | Sequence[int | None] | None
Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]
Activation = str | tuple[str, float] | None
Mask = tuple[bool, bool, bool]
Rank = tuple[str, int]  # the name and the number of spatial dimensions of an operator
Gradients = tuple[NDArray | None, NDArray | None, NDArray | None]

_CACHED_CALLS = 1024
_OVERLAP_EFFORT = 4096  # of deciding whether two strided arrays share an element; beyond it they are taken to

_ALL = (True, True, True)
_NONE = (None, None, None)

_ndarray = np.ndarray
_empty = _kernels.empty
_INT64 = np.dtype(np.int64)
_are_ints = _kernels.are_ints
isa_index = _kernels.get_isa
_type_char = _kernels.type_char  # of a native array of float32 or float64, else None


# --- Arguments -------------------------------------------------------------------------------------------------------


def _input(function: str, name: str, value: Any) -> NDArray:
    """Return `value` as a native array of float32 or float64: itself where it is one."""
    if _type_char(value):
        return value
    array = _array(function, name, value)
    geometry.check_dtype(function, name, array.dtype)
    return _native(array)


def _operand(function: str, name: str, value: Any, dtype: np.dtype, of: str = "x") -> NDArray:
    """Return `value` as a native array of `dtype`, the type of the argument `of`."""
    if _type_char(value) == dtype.char:
        return value
    array = _input(function, name, value)
    geometry.check_same_dtype(function, name, array.dtype, dtype, of)
    return array


def _array(function: str, name: str, value: Any) -> NDArray:
    """Return `value` as an array, without a copy where it exports its memory."""
    if isinstance(value, _ndarray):
        return np.asarray(value)
    if value is None:
        geometry.array_error(function, name, value)
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array_interface__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        geometry.array_error(function, name, value, error)


def _native(array: NDArray) -> NDArray:
    """Return the array C-contiguous, aligned and of native byte order: a copy where it is not."""
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])


def _check_overlap(function: str, name: str, out: Any, others: dict[str, Any]) -> None:
    """Check that a destination is an array that shares no memory with the other arguments."""
    if not isinstance(out, _ndarray):
        geometry.array_error(function, name, out, "it must be a numpy.ndarray")
    if _kernels.all_apart(out, others):
        return
    for other, value in others.items():
        if value is None or _kernels.apart(out, value) or isinstance(value, (list, tuple)):
            continue
        if np.may_share_memory(out, _array(function, other, value), _OVERLAP_EFFORT):
            geometry.overlap_error(function, name, other)


def _target(function: str, name: str, out: NDArray | None, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """Return the native array that the kernel fills: `out` itself if it is one; see `_delivered`."""
    if out is None:
        return _empty(shape, dtype.char)
    if _kernels.fits(out, shape, dtype.char):
        return out
    geometry.check_out(function, name, out, shape, dtype)
    return out if out.flags.carray and out.dtype.isnative else _empty(shape, dtype.char)


def _delivered(out: NDArray | None, target: NDArray) -> NDArray:
    """Return the result where the caller wants it."""
    if out is None or out is target:
        return target
    np.copyto(out, target)
    return out


def _add(y: NDArray, x: NDArray) -> NDArray:
    """Add `x` to `y` in place; return `y`."""
    if y.size and y.ndim > 1 and y.shape == x.shape and _type_char(y) and _type_char(y) == _type_char(x):
        _kernels.epilogue(y, None, x, *y.shape[:2])
        return y
    return np.add(y, x, out=y)


def _outs(function: str, out: Any, output_mask: Mask, others: dict[str, Any]) -> Gradients:
    """Return the destinations of the three gradients, which share memory neither with `others` nor with another."""
    if output_mask is not _ALL:
        geometry.check_mask(function, output_mask)
    if out is None:
        return _NONE
    outs = geometry.check_outs(function, out, output_mask)
    for i, array in enumerate(outs):
        if array is not None:
            _check_overlap(function, f"out[{i}]", array, others)
            others = others | {f"out[{i}]": array}
    return outs


def _targets(function: str, outs: Gradients, output_mask: Mask, shapes: tuple, dtype: np.dtype) -> Gradients:
    """Return the native arrays that the kernels fill with the three gradients, None where masked out."""
    return tuple(
        [
            _target(function, f"out[{i}]", out, shape, dtype) if wanted else None
            for i, (out, wanted, shape) in enumerate(zip(outs, output_mask, shapes, strict=True))
        ]
    )


# --- Operators of 1, 2 and 3 dimensions ------------------------------------------------------------------------------

_P, _R = ParamSpec("_P"), TypeVar("_R")


def _of_rank(ndim: int, core: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return the operator of `ndim` spatial dimensions: `core` with its own name and default of `_of`.

    A function that called `core` with these would take a fifth of a microsecond more.
    """
    family, backward, _ = core.__name__.strip("_").partition("_backward")
    name = f"{family}{ndim}d{backward}"
    operator = FunctionType(core.__code__, core.__globals__, name, core.__defaults__)
    operator.__kwdefaults__ = core.__kwdefaults__ | {"_of": (name, ndim)}
    operator.__qualname__, operator.__doc__, operator.__annotations__ = name, core.__doc__, core.__annotations__
    signature = inspect.signature(core)
    operator.__signature__ = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "_of"])
    return operator


_CONV_OPTIONS = "stride", "padding", "dilation", "groups"


def _plain_options(function: str, names: tuple[str, ...], options: tuple) -> tuple:
    """Return options of which equal ones mean the same: as they come, 1, True and 1.0 are equal, and a list no key."""
    if _are_ints(options):
        return options
    return tuple([geometry.plain(function, *item) for item in zip(names, options, strict=True)])


# --- Convolution -----------------------------------------------------------------------------------------------------


def explain(
    op: str,
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    output_padding: Ints = 0,
    dtype: DTypeLike = np.float32,
    algorithm: str = "auto",
) -> algorithms.Explanation:
    """Tell how a convolution of these shapes is computed: each pass's algorithm, blocking and predicted cost.

    Parameters
    ----------
    op : "conv1d" to "conv3d", "conv_transpose1d" to "conv_transpose3d"
        The operator; its backward passes are explained too.
    x_shape, weight_shape : tuple of int
        ``(n, ic, *in_size)`` and ``(oc, ic // groups, *kernel)``, or ``(ic, oc // groups, *kernel)`` if transposed.
    stride, padding, dilation, groups, output_padding, algorithm
        Options of the operator; `output_padding` only of the transposed one.
    dtype : float32 or float64
        Type of the arrays.

    Returns
    -------
    Explanation
        A mapping from "output", "input_gradient" and "weight_gradient" to `algorithm`, `blocking`, `cost` and the
        `costs` of all algorithms that serve, in cycles of one core. It prints as a table. The output is that by the
        taps that meet the image, which takes finite weights.

    Raises
    ------
    TypeError, ValueError
        As the operator.

    Examples
    --------
    >>> from fastconv import explain
    >>> explain("conv2d", (8, 128, 28, 28), (128, 128, 3, 3), padding=1)["output"].algorithm
    'winograd'
    """
    ndim, transposed = geometry.convolution_rank("explain", op)
    dtype = np.dtype(dtype)
    geometry.check_dtype("explain", "dtype", dtype)
    geometry.check_algorithm("explain", algorithm)
    names = *_CONV_OPTIONS, "output_padding"
    options = _plain_options("explain", names, (stride, padding, dilation, groups, output_padding))
    stride, padding, dilation, groups, output_padding = options
    shapes = tuple(x_shape), tuple(weight_shape)
    if transposed:
        g = geometry.conv_transpose_geometry(
            "explain", ndim, *shapes, stride, padding, output_padding, groups, dilation
        )
    else:
        geometry.check_without("explain", "output_padding", output_padding, op)
        g = geometry.conv_geometry("explain", ndim, *shapes, stride, padding, dilation, groups)
    geometry.check_algorithm_serves("explain", algorithm, g)
    tile = algorithms.register_tile(dtype.char, runtime.current_isa())
    passes = algorithms.conv_passes(g, algorithm, tile)
    if algorithm == "auto" and g.macs and not transposed:
        passes["output"] = algorithms.conv_passes(g.live[1], algorithm, tile)["output"]
    if transposed:  # the convolution from the output back to the input has these two exchanged
        passes["output"], passes["input_gradient"] = passes["input_gradient"], passes["output"]
    return algorithms.Explanation(passes)


class _ConvCall(NamedTuple):
    """What a convolution of given shapes, type and options does, and its arrays' shapes."""

    out_shape: tuple[int, ...]
    bias_shape: tuple[int]
    n: int
    plan: Any
    output_packing: tuple | None  # see PackedWeight
    gradient_packing: tuple | None
    live: _Live | None = None  # where some taps only ever meet padding


class _Live(NamedTuple):
    """The output by the taps that meet the image."""

    box: Box
    plan: Any
    packing: tuple | None


@lru_cache(_CACHED_CALLS)
def _conv_call(function, ndim, x_shape, weight_shape, options, dtype_char, algorithm, isa) -> _ConvCall:
    unbatched = len(x_shape) == ndim + 1
    g = geometry.conv_geometry(function, ndim, (1, *x_shape) if unbatched else x_shape, weight_shape, *options)
    planned = _planned(function, g, dtype_char, algorithm, isa)
    return _ConvCall(g.out_shape[unbatched:], (g.oc,), g.n, *planned, _find_live(g, dtype_char, algorithm, isa))


def _find_live(g, dtype_char, algorithm, isa) -> _Live | None:
    if algorithm != "auto" or not g.macs:
        return None
    first, live = g.live
    if live.kernel == g.kernel:
        return None
    plan = algorithms.conv_plan(live, dtype_char, algorithm, _kernels.ISAS[isa])
    return _Live(Box(first, live.kernel[-g.ndim :]), plan, _kernels.packing(plan, False))


def _planned(function, g, dtype_char, algorithm, isa) -> tuple[Any, tuple | None, tuple | None]:
    geometry.check_algorithm_serves(function, algorithm, g)
    plan = algorithms.conv_plan(g, dtype_char, algorithm, _kernels.ISAS[isa])
    return plan, _kernels.packing(plan, False), _kernels.packing(plan, True)


def _with_live_taps(call: _ConvCall, weight: NDArray, packed: PackedWeight | None) -> tuple:
    """Return plan, packing, weights and their snapshot, if any, for the output: by the live taps where that serves."""
    if call.live is not None:
        box, plan, packing = call.live
        live = live_taps(weight, box) if packed is None else packed.live(box)
        if live is not None:
            return plan, packing, *((live, None) if packed is None else (live.raw, live))
    return call.plan, call.output_packing, weight, packed


def _find_conv_call(function, ndim, x_shape, weight, options, algorithm) -> _ConvCall:
    if algorithm != "auto":
        geometry.check_algorithm(function, algorithm)
    options = _plain_options(function, _CONV_OPTIONS, options)
    return _conv_call(function, ndim, x_shape, weight.shape, options, weight.dtype.char, algorithm, isa_index())


class _Borders(NamedTuple):
    """Images with borders that repeat them: what the kernel takes, and the shape."""

    sizes: tuple[int, tuple, tuple, tuple]  # planes, in_size, bordered size, pad
    shape: tuple[int, ...]


@lru_cache(_CACHED_CALLS)
def _conv_borders(function, ndim, x_shape, weight_shape, options, mode) -> _Borders:
    batch_shape = (1, *x_shape) if len(x_shape) == ndim + 1 else x_shape
    g = geometry.conv_geometry(function, ndim, batch_shape, weight_shape, *options)
    size = geometry.bordered_size(g, function, mode)
    return _Borders((g.n * g.ic, g.in_size, size, g.pad), (*x_shape[:-ndim], *size[-ndim:]))


def _find_borders(function, ndim, x_shape, weight, options, mode) -> _Borders:
    """Return the borders of a convolution whose padding is no zeros."""
    geometry.check_padding_mode(function, mode)
    options = _plain_options(function, _CONV_OPTIONS, options)
    return _conv_borders(function, ndim, x_shape, weight.shape, options, mode)


def _bordered(x: NDArray, borders: _Borders, mode: str) -> NDArray:
    """Return images with borders."""
    padded = _empty(borders.shape, x.dtype.char)
    if padded.size:
        _kernels.border(x, padded, *borders.sizes, mode, False)
    return padded


def pack_weight(
    weight: ArrayLike,
    input_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    algorithm: str = "auto",
) -> PackedWeight:
    """Take a snapshot of weights that convolutions need not pack, or transform for Winograd, at each call.

    Results are bit by bit those of the weights themselves. It pays where weights are large and images few.

    Parameters
    ----------
    weight : array_like of float32 or float64, (oc, ic // groups, *kernel)
        Filters of :func:`conv1d`, :func:`conv2d` or :func:`conv3d`, according to their number of dimensions.
    input_shape : tuple of int
        ``(n, ic, *in_size)`` or ``(ic, *in_size)``, the input for whose output the weights are packed right away;
        for other inputs, options, instruction sets and the input gradient they are at the first call.
    stride, padding, dilation, groups, algorithm
        Options of the convolution.

    Returns
    -------
    PackedWeight
        To be given to convolutions and their gradients as `weight`.

    Raises
    ------
    TypeError, ValueError
        As the convolution.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv2d, pack_weight
    >>> x, weight = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> packed = pack_weight(weight, x.shape)
    >>> np.array_equal(conv2d(x, packed), conv2d(x, weight))
    True
    """
    function = "pack_weight"
    weight = _input(function, "weight", weight)
    ndim = geometry.weight_rank(function, weight.shape)
    input_shape = geometry.check_input_shape(function, ndim, input_shape, "ic")
    call = _find_conv_call(function, ndim, input_shape, weight, (stride, padding, dilation, groups), algorithm)
    packed = PackedWeight(weight)
    plan, packing, _, used = _with_live_taps(call, packed.raw, packed)
    used.form(plan, packing, False)
    return packed


def _conv(
    x: ArrayLike,
    weight: ArrayLike | PackedWeight,
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
    out: NDArray | None = None,
    algorithm: str = "auto",
    _of: Rank,
) -> NDArray:
    """Convolve (cross-correlate) images with filters, each group of channels with its own.

    ::

        y[n, o, p] = activation(bias[o] + residual[n, o, p] + sum over c, k of weight[o, c, k] * x[n, c0 + c, i])
        i = stride * p + dilation * k - before,  c0 = o // (oc / groups) * (ic / groups)

    ``p``, ``k`` and ``i`` have one component per spatial dimension.

    Parameters
    ----------
    x : array_like of float32 or float64, (n, ic, *in_size) or (ic, *in_size)
        Images, or signals, or volumes.
    weight : array_like or PackedWeight, (oc, ic // groups, *kernel)
        Filters, of the type of `x`.
    bias : array_like, (oc,), optional
        Added to each output channel.
    stride, dilation : int or one int per dimension
        Steps between windows, and between the elements of a window.
    padding : int, one int or one (before, after) pair per dimension, "valid", "same" or "same_lower"
        Zeros around the image. "same" makes ``out = ceil(in / stride)``, whatever the stride, and puts an odd zero
        after the image, "same_lower" before it.
    groups : int
        Divides ``ic`` and ``oc``.
    padding_mode : "zeros", "reflect", "replicate" or "circular"
        What the padding holds. All but "zeros" copy the input once; "reflect" needs padding smaller than the image,
        "circular" not larger.
    activation : None, "relu", "relu6", ("leaky_relu", slope), "silu", "hardswish", "sigmoid" or "tanh"
        Applied to the result as it is stored.
    residual : array_like, the result's shape, optional
        Added before the activation.
    layout : None or "channels_last"
        None has the channels first; "channels_last" takes and gives ``(n, *size, c)`` or ``(*size, c)``. The weights
        are the same in both. Those of one filter a channel, and those without groups that are not computed by
        Winograd, read it in place; others copy it to the channels first and their result back.
    out : ndarray, optional
        Receives the result.
    algorithm : "auto", "gemm", "im2col", "direct" or "winograd"
        "gemm" sums the products themselves, and so do "im2col", for few pixels or one tap, and "direct", for few
        channels; "winograd" needs a kernel of 3x3 or 5x5, or of as many such planes at most, or of 3 to 9 along a
        line, and stride 1, and rounds a little more. "auto" is the cheapest by prediction, never Winograd in float64.

    Returns
    -------
    ndarray, (n, oc, *out_size) or (oc, *out_size)
        ``out_size = (before + in_size + after - (kernel - 1) * dilation - 1) // stride + 1``.

    Raises
    ------
    TypeError
        A type is not float32 or float64, or not that of `x`; an option is of the wrong type.
    ValueError
        A shape or a value breaks a rule; `out` is read-only or shares memory with another argument.

    Notes
    -----
    "gemm" is a packed implicit matrix product: windows are gathered into cache-sized panels, padding, stride and
    dilation included; the matrix of all windows never exists in memory. "im2col" writes that matrix, of 64 windows at
    most, and computes a fully connected layer; outputs of filters of one tap and input gradients of these with stride 1
    read the windows, which are pixels, where they lie; what it would have to unfold beyond, the cheapest computes.
    "direct" reads padded rows in place. "winograd" is F(4x4, 3x3), F(3x3, 3x3) or F(3x3, 5x5), summed over the planes
    of a volume; along a line F(4, 3), F(3, 5), or beyond five taps F(4x4, 3x3) on an image whose rows of three pixels
    overlap. Its rms error is about three or five times that of the sum of products; where a result of it is not finite,
    the call is computed by "gemm", so that NaN and Inf stay in their windows. The result is the same for any number of
    threads, bit by bit.
    Padding is a zero that is multiplied: with an infinite weight it gives NaN. Denormals count as zeros.

    References
    ----------
    Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34 (2008).
    Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document Processing" (2006).
    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015).

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv2d
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> conv2d(x, np.ones((1, 1, 3, 3), np.float32), padding=1, stride=2)
    array([[[[10., 24.],
             [51., 90.]]]], dtype=float32)
    """
    function, ndim = _of
    if layout is not None and geometry.channels_last(function, layout):
        options = stride, padding, dilation, groups
        return _conv_last(x, weight, bias, options, padding_mode, activation, residual, out, algorithm, _of)
    if out is not None:
        _check_overlap(function, "out", out, {"x": x, "weight": weight, "bias": bias, "residual": residual})
    x = _input(function, "x", x)
    dtype = x.dtype
    packed = None
    if type(weight) is PackedWeight:
        packed, weight = weight, weight.raw
    weight = _operand(function, "weight", weight, dtype)
    if padding_mode != "zeros":
        borders = _find_borders(function, ndim, x.shape, weight, (stride, padding, dilation, groups), padding_mode)
        x, padding = _bordered(x, borders, padding_mode), 0
    call = _find_conv_call(function, ndim, x.shape, weight, (stride, padding, dilation, groups), algorithm)
    code, slope = (0, 0.0) if activation is None else geometry.activation_code(function, activation)
    if bias is not None:
        bias = _operand(function, "bias", bias, dtype)
        if bias.shape != call.bias_shape:
            geometry.check_shape(function, "bias", bias.shape, call.bias_shape, "weight.shape[:1]")
    if residual is not None:
        residual = _operand(function, "residual", residual, dtype)
        geometry.check_shape(function, "residual", residual.shape, call.out_shape, "the result's shape")
    target = _target(function, "out", out, call.out_shape, dtype)
    if target.size:
        plan, packing = call.plan, call.output_packing
        if call.live is not None:
            plan, packing, weight, packed = _with_live_taps(call, weight, packed)
        panels = None if packed is None else packed.form(plan, packing, False)
        _kernels.conv_output(plan, x, weight, bias, residual, target, code, slope, panels)
    return _delivered(out, target)


def _conv_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | PackedWeight,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str | None = None,
    output_mask: Mask = _ALL,
    out: Gradients | None = None,
    algorithm: str = "auto",
    _of: Rank,
) -> Gradients:
    """Return the gradients of a convolution in its input, weights and bias.

    ::

        grad_input[n, c0 + c, i] = sum over o, k of weight[o, c, k] * grad_output[n, o, p]
        grad_weight[o, c, k]     = sum over n, p of grad_output[n, o, p] * x[n, c0 + c, i]
        grad_bias[o]             = sum over n, p of grad_output[n, o, p]

    with ``i``, ``p`` and ``c0`` as in the forward pass.

    Parameters
    ----------
    grad_output : array_like of float32 or float64, (n, oc, *out_size) or (oc, *out_size)
        Gradient of the output, before any activation.
    x : array_like, (n, ic, *in_size) or (ic, *in_size)
        Input of the forward pass.
    weight : array_like or PackedWeight, (oc, ic // groups, *kernel)
        Filters of the forward pass.
    stride, padding, dilation, groups, padding_mode, algorithm
        Options of the forward pass.
    layout : None or "channels_last"
        Of `x`, `grad_output` and the gradient in `x`.
    output_mask : (bool, bool, bool)
        Which gradients to compute; the others are None.
    out : (ndarray or None, ndarray or None, ndarray or None), optional
        Receive the gradients.

    Returns
    -------
    grad_input : ndarray or None, the shape of `x`
    grad_weight : ndarray or None, the shape of `weight`
    grad_bias : ndarray or None, (oc,)

    Raises
    ------
    TypeError, ValueError
        As the forward pass.

    Notes
    -----
    Sums over images and pixels have a fixed order, so gradients too are the same for any number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv2d, conv2d_backward
    >>> x, weight = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> grad_output = np.ones_like(conv2d(x, weight))
    >>> [g.shape for g in conv2d_backward(grad_output, x, weight)]
    [(2, 3, 8, 8), (4, 3, 3, 3), (4,)]
    """
    function, ndim = _of
    if layout is not None and geometry.channels_last(function, layout):
        options = stride, padding, dilation, groups
        return _conv_last_backward(grad_output, x, weight, options, padding_mode, output_mask, out, algorithm, _of)
    outs = _outs(function, out, output_mask, {"grad_output": grad_output, "x": x, "weight": weight})
    x = _input(function, "x", x)
    dtype = x.dtype
    packed = None
    if type(weight) is PackedWeight:
        packed, weight = weight, weight.raw
    weight = _operand(function, "weight", weight, dtype)
    grad_output = _operand(function, "grad_output", grad_output, dtype)
    in_shape, borders = x.shape, None
    if padding_mode != "zeros":
        borders = _find_borders(function, ndim, x.shape, weight, (stride, padding, dilation, groups), padding_mode)
        x, padding = _bordered(x, borders, padding_mode), 0
    call = _find_conv_call(function, ndim, x.shape, weight, (stride, padding, dilation, groups), algorithm)
    geometry.check_shape(function, "grad_output", grad_output.shape, call.out_shape, "the output's shape")
    targets = _targets(function, outs, output_mask, (in_shape, weight.shape, call.bias_shape), dtype)
    grad_input, grad_weight, grad_bias = targets

    if grad_input is not None and grad_input.size:
        panels = None if packed is None else packed.form(call.plan, call.gradient_packing, True)
        grad_padded = grad_input if borders is None else _empty(x.shape, dtype.char)
        _kernels.conv_input_gradient(call.plan, grad_output, weight, grad_padded, panels)
        if borders is not None:
            _kernels.border(grad_input, grad_padded, *borders.sizes, padding_mode, True)
    if grad_weight is not None and x.size:
        _kernels.conv_weight_gradient(call.plan, grad_output, x, grad_weight, grad_bias)
    else:
        if grad_weight is not None:  # no image, or none but padding
            grad_weight.fill(0)
        if grad_bias is not None:
            _kernels.channel_sums(grad_output, grad_bias, call.n)
    return tuple(map(_delivered, outs, targets))


def _is_pointwise(ndim: int, weight: NDArray, options: tuple, padding_mode: str, algorithm: str) -> bool:
    """Whether a convolution is the matrix product of pixels and weights."""
    stride, padding, _, groups = options
    plain = stride in (1, (1,) * ndim) and padding in (0, (0,) * ndim, "valid") and padding_mode == "zeros"
    return plain and groups == 1 and algorithm in ("auto", "gemm", "im2col") and weight.shape[2:] == (1,) * ndim


def _is_depthwise(weight: NDArray, options: tuple, padding_mode: str, algorithm: str) -> bool:
    """Whether each of several channels has a filter of its own, for which kernels read channels that come last."""
    alone = weight.ndim > 1 and weight.shape[0] == options[3] > 1 and weight.shape[1] == 1
    return alone and padding_mode == "zeros" and algorithm in ("auto", "direct")


def _channels_first(array: np.ndarray, ndim: int) -> np.ndarray:
    """View an array whose channels come last with the channels before its last `ndim` dimensions."""
    return array.transpose(*range(array.ndim - ndim - 1), -1, *range(-1 - ndim, -1)) if array.ndim > ndim else array


def _channels_last(array: np.ndarray, ndim: int) -> np.ndarray:
    """View an array whose channels come before its last `ndim` dimensions with the channels last."""
    return array.transpose(*range(array.ndim - ndim - 1), *range(-ndim, 0), -1 - ndim)


def _last_shape(call: _ConvCall, ndim: int) -> tuple[int, ...]:
    """Shape of the output with the channels last."""
    return *call.out_shape[: -1 - ndim], *call.out_shape[-ndim:], *call.bias_shape


def _convolved_last(call, x, weight, packed, bias, residual, target, code, slope, algorithm) -> bool:
    """Convolve images whose channels come last as they lie; return whether a kernel does."""
    plan = call.plan
    if target.size == 0:
        return True
    if plan.depthwise and algorithm in ("auto", "direct"):
        return _kernels.conv_last_output(plan, x, weight, bias, residual, target, code, slope)
    if algorithm == "direct":
        return False
    if _kernels.reads_windows(plan, True):
        panels = None if packed is None else packed.windows(plan, True)
        _kernels.conv_windows_output(plan, x, weight, bias, residual, target, code, slope, True, panels)
        return True
    if residual is None and plan.pointwise and weight.shape[1] == x.shape[-1]:  # few pixels
        _kernels.linear_output(x, weight.reshape(weight.shape[:2]), bias, target, x.size // x.shape[-1], code, slope)
        return True
    return False


def _conv_last(x, weight, bias, options, padding_mode, activation, residual, out, algorithm, _of) -> NDArray:
    """Convolve with the channels last."""
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"x": x, "weight": weight, "bias": bias, "residual": residual})
    x = _input(function, "x", x)
    first = _channels_first(x, ndim)
    raw = _operand(function, "weight", weight.raw if type(weight) is PackedWeight else weight, x.dtype)
    options = _plain_options(function, _CONV_OPTIONS, options)
    packed = weight if type(weight) is PackedWeight else None
    if x.size and padding_mode == "zeros" and algorithm != "winograd":
        call = _find_conv_call(function, ndim, first.shape, raw, options, algorithm)
        code, slope = geometry.activation_code(function, activation)
        if bias is not None:
            bias = _operand(function, "bias", bias, x.dtype)
            geometry.check_shape(function, "bias", bias.shape, call.bias_shape, "weight.shape[:1]")
        shape = _last_shape(call, ndim)
        if residual is not None:
            residual = _operand(function, "residual", residual, x.dtype)
            geometry.check_shape(function, "residual", residual.shape, shape, "the result's shape")
        target = _target(function, "out", out, shape, x.dtype)
        if _convolved_last(call, x, raw, packed, bias, residual, target, code, slope, algorithm):
            return _delivered(out, target)
    if residual is not None:
        residual = _channels_first(_operand(function, "residual", residual, x.dtype), ndim)
    fused = {"padding_mode": padding_mode, "activation": activation, "residual": residual}
    y = _channels_last(_conv(first, weight, bias, *options, **fused, algorithm=algorithm, _of=_of), ndim)
    target = _target(function, "out", out, y.shape, y.dtype)
    np.copyto(target, y)
    return _delivered(out, target)


class _ToLast(NamedTuple):
    """How a 2-D convolution is computed whose result has its channels last in memory."""

    plan: Any
    shape: tuple[int, int, int, int]  # of the result in memory
    bias_shape: tuple[int]
    windows: bool  # by `conv_windows_output`
    depthwise: bool  # or `conv_last_output`


@lru_cache(_CACHED_CALLS)
def _to_last(x_shape, weight_shape, options, dtype_char, x_last, isa) -> _ToLast:
    call = _conv_call("conv2d", 2, x_shape, weight_shape, options, dtype_char, "auto", isa)
    some = math.prod(x_shape) > 0 and math.prod(call.out_shape) > 0
    windows, depthwise = some and _kernels.reads_windows(call.plan, x_last), some and x_last and call.plan.depthwise
    return _ToLast(call.plan, _last_shape(call, 2), call.bias_shape, windows, depthwise)


def _lying_last(x: Any) -> NDArray | None:
    """View images (n, c, h, w) with the channels last, None what they are not."""
    return x.transpose(0, 2, 3, 1) if isinstance(x, _ndarray) and x.ndim == 4 else None


def conv2d_to_last(x, weight, bias, stride, padding, dilation, groups, padding_mode, activation, residual) -> NDArray:
    """Convolve ``(n, ic, h, w)`` by packed weights to a result of that order whose channels lie last in memory.

    PyTorch calls that the memory format `channels_last`. `x` and `residual` may be such arrays, too. Where no kernel
    gives it, the result is one of :func:`conv2d`.
    """
    raw = weight.raw
    char = raw.dtype.char
    lying, rest = _lying_last(x), None if residual is None else _lying_last(residual)
    x_last = _type_char(lying) == char
    if (x_last or _type_char(x) == char) and lying is not None and padding_mode == "zeros":
        how = _to_last(x.shape, raw.shape, (stride, padding, dilation, groups), char, x_last, isa_index())
        fits = bias is None or (_type_char(bias) == char and bias.shape == how.bias_shape)
        fits = fits and (residual is None or (_type_char(rest) == char and rest.shape == how.shape))
        if fits and (how.windows or how.depthwise):
            code, slope = (0, 0.0) if activation is None else geometry.activation_code("conv2d", activation)
            y = _empty(how.shape, char)
            if how.windows:
                images, panels = lying if x_last else x, weight.windows(how.plan, x_last)
                _kernels.conv_windows_output(how.plan, images, raw, bias, rest, y, code, slope, x_last, panels)
                return y.transpose(0, 3, 1, 2)
            if _kernels.conv_last_output(how.plan, lying, raw, bias, rest, y, code, slope):
                return y.transpose(0, 3, 1, 2)
    options = {"padding_mode": padding_mode, "activation": activation, "residual": residual}
    return conv2d(x, weight, bias, stride, padding, dilation, groups, **options)


class BlockPlan(NamedTuple):
    """A separable block for images of a given shape: what `conv_block_output` takes, and the result's shape."""

    plans: tuple[Any, Any, Any]  # the first may be None
    weights: tuple[Any, NDArray, Any]  # packed, those of the filters of one channel as they are, packed
    biases: list[NDArray | None]
    activations: list[tuple[int, float]]
    shape: tuple[int, int, int, int]  # in memory
    dtype_char: str


def plan_block(x_shape: tuple[int, ...], layers: list[tuple]) -> BlockPlan | None:
    """Plan a separable block of (weight, bias, options, activation): 1x1 or none, a filter a channel, 1x1.

    Weights are packed. None where no kernel computes it, or each layer had better be computed by itself.
    """
    char, isa, shape, plans = layers[0][0].raw.dtype.char, isa_index(), x_shape, []
    if len(x_shape) != 4 or 0 in x_shape or any(weight.raw.dtype.char != char for weight, *_ in layers):
        return None
    for weight, bias, options, _ in layers:
        call = _conv_call("conv2d", 2, shape, weight.raw.shape, options, char, "auto", isa)
        if bias is not None and (_type_char(bias) != char or bias.shape != call.bias_shape):
            return None
        plans.append(call.plan)
        shape = call.out_shape
    *first, depthwise, last = plans
    pointwise = all(plan.pointwise and _kernels.reads_windows(plan, True) for plan in (*first, last))
    if not (pointwise and depthwise.depthwise and _kernels.block_pays(depthwise, bool(first))):
        return None
    missing = [None] * (3 - len(layers))
    expand, (taps, *_), project = (*missing, *layers)[0], layers[-2], layers[-1]
    packed = None if expand is None else expand[0].windows(first[0], True), taps.raw, project[0].windows(last, True)
    biases = [*missing, *[bias for _, bias, _, _ in layers]]
    codes = [geometry.activation_code("conv2d", None if layer is None else layer[3]) for layer in (*missing, *layers)]
    return BlockPlan((*missing, *plans), packed, biases, codes, (shape[0], *shape[2:], shape[1]), char)


def conv2d_block(x: NDArray, block: BlockPlan, residual: NDArray | None) -> NDArray | None:
    """Compute a separable block, whose rows then never leave the caches.

    `x`, `residual` and the result lie as those of `conv2d_to_last`. None where they do not, or weights are not finite.
    """
    lying, rest = _lying_last(x), None
    if residual is not None:
        rest = _lying_last(residual)
        if _type_char(rest) != block.dtype_char or rest.shape != block.shape:
            return None
    if _type_char(lying) != block.dtype_char:
        return None
    y = _empty(block.shape, block.dtype_char)
    if _kernels.conv_block_output(*block.plans, lying, *block.weights, block.biases, block.activations, rest, y):
        return y.transpose(0, 3, 1, 2)
    return None


def _conv_last_backward(grad_output, x, weight, options, padding_mode, output_mask, out, algorithm, _of) -> Gradients:
    """Return the gradients of a convolution with the channels last."""
    function, ndim = _of
    outs = _outs(function, out, output_mask, {"grad_output": grad_output, "x": x, "weight": weight})
    x = _input(function, "x", x)
    first = _channels_first(x, ndim)
    raw = _operand(function, "weight", weight.raw if type(weight) is PackedWeight else weight, x.dtype)
    grad_output = _operand(function, "grad_output", grad_output, x.dtype)
    options = _plain_options(function, _CONV_OPTIONS, options)
    shapes = x.shape, raw.shape, raw.shape[:1]
    pointwise = _is_pointwise(ndim, raw, options, padding_mode, algorithm)
    if pointwise or (x.size and grad_output.size and _is_depthwise(raw, options, padding_mode, algorithm)):
        call = _find_conv_call(function, ndim, first.shape, raw, options, algorithm)
        shape = _last_shape(call, ndim)
        geometry.check_shape(function, "grad_output", grad_output.shape, shape, "the output's shape")
        targets = grad_input, grad_weight, grad_bias = _targets(function, outs, output_mask, shapes, x.dtype)
        if pointwise:
            matrix = raw.reshape(raw.shape[:2])
            into = grad_input, None if grad_weight is None else grad_weight.reshape(matrix.shape), grad_bias
            linear_backward(grad_output, x, matrix, output_mask=output_mask, out=into)
        else:
            if grad_input is not None:
                _kernels.conv_last_input_gradient(call.plan, grad_output, raw, grad_input)
            if grad_weight is not None:
                _kernels.conv_last_weight_gradient(call.plan, grad_output, x, grad_weight)
            if grad_bias is not None:
                _kernels.channel_sums(grad_output, grad_bias, grad_output.size // grad_bias.size)
        return tuple(map(_delivered, outs, targets))
    grads = _conv_backward(
        _channels_first(grad_output, ndim),
        first,
        weight,
        *options,
        padding_mode=padding_mode,
        output_mask=output_mask,
        algorithm=algorithm,
        _of=_of,
    )
    grads = (None if grads[0] is None else _channels_last(grads[0], ndim), *grads[1:])
    targets = _targets(function, outs, output_mask, shapes, x.dtype)
    for target, grad in zip(targets, grads, strict=True):
        if target is not None:
            np.copyto(target, grad)
    return tuple(map(_delivered, outs, targets))


conv1d, conv2d, conv3d = (_of_rank(ndim, _conv) for ndim in (1, 2, 3))
conv1d_backward, conv2d_backward, conv3d_backward = (_of_rank(ndim, _conv_backward) for ndim in (1, 2, 3))


@lru_cache(_CACHED_CALLS)
def _conv_transpose_call(function, ndim, x_shape, weight_shape, options, dtype_char, algorithm, isa) -> _ConvCall:
    """Plan the convolution from the output back to the input: this operator is its input gradient."""
    unbatched = len(x_shape) == ndim + 1
    batch_shape = (1, *x_shape) if unbatched else x_shape
    g = geometry.conv_transpose_geometry(function, ndim, batch_shape, weight_shape, *options)
    return _ConvCall(g.x_shape[unbatched:], (g.ic,), g.n, *_planned(function, g, dtype_char, algorithm, isa))


def _find_conv_transpose_call(function, ndim, x_shape, weight, options, algorithm) -> _ConvCall:
    if algorithm != "auto":
        geometry.check_algorithm(function, algorithm)
    names = "stride", "padding", "output_padding", "groups", "dilation"
    options = _plain_options(function, names, options)
    isa = isa_index()
    return _conv_transpose_call(function, ndim, x_shape, weight.shape, options, weight.dtype.char, algorithm, isa)


def _conv_transpose(
    x: ArrayLike,
    weight: ArrayLike | PackedWeight,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    activation: Activation = None,
    residual: ArrayLike | None = None,
    out: NDArray | None = None,
    algorithm: str = "auto",
    _of: Rank,
) -> NDArray:
    """Add up filters, each placed by its stride and multiplied by an element of the input: a convolution's adjoint.

    ::

        y[n, o0 + o, i] = activation(bias[o0 + o] + residual[n, o0 + o, i]
                                     + sum over c, k, p of weight[c, o, k] * x[n, c, p])
        i = stride * p + dilation * k - before,  o0 = c // (ic / groups) * (oc / groups)

    It is the input gradient of the convolution from ``y`` to `x` with the same weights and options.

    Parameters
    ----------
    x : array_like of float32 or float64, (n, ic, *in_size) or (ic, *in_size)
        Images, or signals, or volumes.
    weight : array_like or PackedWeight, (ic, oc // groups, *kernel)
        Filters, of the type of `x`. :func:`pack_weight` takes the shape of the output as its `input_shape`.
    bias : array_like, (oc,), optional
        Added to each output channel.
    stride, dilation : int or one int per dimension
        Steps between the filters, and between the elements of one.
    padding : int, one int or one (before, after) pair per dimension
        Elements that the output lacks at its ends.
    output_padding : int or one int per dimension
        Elements that it has more at its end, fewer than `stride` or `dilation`.
    groups, activation, residual, out, algorithm
        As in a convolution.

    Returns
    -------
    ndarray, (n, oc, *out_size) or (oc, *out_size)
        ``out_size = (in_size - 1) * stride - before - after + dilation * (kernel - 1) + output_padding + 1``.

    Raises
    ------
    TypeError, ValueError
        As a convolution; ValueError too if the output would be empty.

    Notes
    -----
    No image with zeros between its pixels is ever made: each residue of the stride is a convolution of its own, with
    the taps that hit it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv_transpose2d
    >>> x = np.array([[[[1, 2], [3, 4]]]], np.float32)
    >>> conv_transpose2d(x, np.ones((1, 1, 2, 2), np.float32), stride=2)
    array([[[[1., 1., 2., 2.],
             [1., 1., 2., 2.],
             [3., 3., 4., 4.],
             [3., 3., 4., 4.]]]], dtype=float32)
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"x": x, "weight": weight, "bias": bias, "residual": residual})
    x = _input(function, "x", x)
    dtype = x.dtype
    packed = None
    if type(weight) is PackedWeight:
        packed, weight = weight, weight.raw
    weight = _operand(function, "weight", weight, dtype)
    options = stride, padding, output_padding, groups, dilation
    call = _find_conv_transpose_call(function, ndim, x.shape, weight, options, algorithm)
    code, slope = (0, 0.0) if activation is None else geometry.activation_code(function, activation)
    if bias is not None:
        bias = _operand(function, "bias", bias, dtype)
        geometry.check_shape(function, "bias", bias.shape, call.bias_shape, "(oc,)")
    if residual is not None:
        residual = _operand(function, "residual", residual, dtype)
        geometry.check_shape(function, "residual", residual.shape, call.out_shape, "the result's shape")
    target = _target(function, "out", out, call.out_shape, dtype)
    if target.size:
        panels = None if packed is None else packed.form(call.plan, call.gradient_packing, True)
        if _kernels.conv_input_gradient(call.plan, x, weight, target, panels, bias):
            bias = None
        if bias is not None or residual is not None or code:
            _kernels.epilogue(target, bias, residual, call.n, *call.bias_shape, code, slope)
    return _delivered(out, target)


def _conv_transpose_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | PackedWeight,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    output_mask: Mask = _ALL,
    out: Gradients | None = None,
    algorithm: str = "auto",
    _of: Rank,
) -> Gradients:
    """Return the gradients of a transposed convolution in its input, weights and bias.

    That in the input is the convolution itself of which the operator is the input gradient; that in the weights is this
    convolution's, with `x` and `grad_output` exchanged.

    Parameters
    ----------
    grad_output : array_like of float32 or float64, (n, oc, *out_size) or (oc, *out_size)
        Gradient of the output, before any activation.
    x : array_like, (n, ic, *in_size) or (ic, *in_size)
        Input of the forward pass.
    weight : array_like or PackedWeight, (ic, oc // groups, *kernel)
        Filters of the forward pass.
    stride, padding, output_padding, groups, dilation, algorithm
        Options of the forward pass.
    output_mask, out
        As in the gradient of a convolution.

    Returns
    -------
    grad_input : ndarray or None, the shape of `x`
    grad_weight : ndarray or None, the shape of `weight`
    grad_bias : ndarray or None, (oc,)

    Raises
    ------
    TypeError, ValueError
        As the forward pass.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv_transpose2d, conv_transpose2d_backward
    >>> x, weight = np.ones((2, 3, 8, 8), np.float32), np.ones((3, 4, 2, 2), np.float32)
    >>> grad_output = np.ones_like(conv_transpose2d(x, weight, stride=2))
    >>> [g.shape for g in conv_transpose2d_backward(grad_output, x, weight, stride=2)]
    [(2, 3, 8, 8), (3, 4, 2, 2), (4,)]
    """
    function, ndim = _of
    outs = _outs(function, out, output_mask, {"grad_output": grad_output, "x": x, "weight": weight})
    x = _input(function, "x", x)
    dtype = x.dtype
    packed = None
    if type(weight) is PackedWeight:
        packed, weight = weight, weight.raw
    weight = _operand(function, "weight", weight, dtype)
    grad_output = _operand(function, "grad_output", grad_output, dtype)
    options = stride, padding, output_padding, groups, dilation
    call = _find_conv_transpose_call(function, ndim, x.shape, weight, options, algorithm)
    geometry.check_shape(function, "grad_output", grad_output.shape, call.out_shape, "the output's shape")
    targets = _targets(function, outs, output_mask, (x.shape, weight.shape, call.bias_shape), dtype)
    grad_input, grad_weight, grad_bias = targets

    if grad_input is not None and grad_input.size:
        panels = None if packed is None else packed.form(call.plan, call.output_packing, False)
        _kernels.conv_output(call.plan, grad_output, weight, None, None, grad_input, panels=panels)
    if grad_weight is not None and x.size:
        _kernels.conv_weight_gradient(call.plan, x, grad_output, grad_weight, None)
    elif grad_weight is not None:  # no image
        grad_weight.fill(0)
    if grad_bias is not None:
        _kernels.channel_sums(grad_output, grad_bias, call.n)
    return tuple(map(_delivered, outs, targets))


conv_transpose1d, conv_transpose2d, conv_transpose3d = (_of_rank(ndim, _conv_transpose) for ndim in (1, 2, 3))
conv_transpose1d_backward, conv_transpose2d_backward, conv_transpose3d_backward = (
    _of_rank(ndim, _conv_transpose_backward) for ndim in (1, 2, 3)
)


# --- Pooling ---------------------------------------------------------------------------------------------------------


class _PoolCall(NamedTuple):
    """What a pool of given shapes and options does, and its arrays' shapes."""

    plan: Any
    out_shape: tuple[int, ...]


@lru_cache(_CACHED_CALLS)
def _pool_call(function, ndim, x_shape, options, ceil_mode, count_include_pad, divisor, last=False) -> _PoolCall:
    unbatched = len(x_shape) == ndim + 1
    x_shape = (1, *x_shape) if unbatched else x_shape
    g = geometry.pool_geometry(function, ndim, x_shape, *options, ceil_mode, last)
    before, after = zip(*g.pad, strict=True)
    windows = g.n if last else g.planes, g.in_size, g.out_size, g.kernel, g.stride, g.dilation, before
    plan = _kernels.PoolPlan(*windows, count_include_pad, divisor, after, g.c if last else 0)
    n, c, *out_size = g.out_shape
    return _PoolCall(plan, ((n, *out_size, c) if last else g.out_shape)[unbatched:])


def _find_pool_call(
    function,
    ndim,
    x_shape,
    kernel_size,
    stride,
    padding,
    dilation,
    ceil_mode,
    count_include_pad=True,
    divisor=None,
    layout=None,
) -> _PoolCall:
    geometry.check_flag(function, "ceil_mode", ceil_mode)
    geometry.check_flag(function, "count_include_pad", count_include_pad)
    options = kernel_size, kernel_size if stride is None else stride, padding, dilation
    options = _plain_options(function, ("kernel_size", "stride", "padding", "dilation"), options)
    divisor = 0 if divisor is None else geometry.check_divisor(function, divisor)
    last = layout is not None and geometry.channels_last(function, layout)
    return _pool_call(function, ndim, x_shape, options, ceil_mode, count_include_pad, divisor, last)


def _max_pool(
    x: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str | None = None,
    out: NDArray | None = None,
    _of: Rank,
) -> NDArray | tuple[NDArray, NDArray]:
    """Take the maximum of each window, and on request its index.

    ``y[n, c, p] = max over k of x[n, c, stride * p + dilation * k - before]``. Padding is never chosen. The first
    maximum wins; a NaN in the window makes the result NaN, with the index of the last NaN.

    Parameters
    ----------
    x : array_like of float32 or float64, (n, c, *in_size) or (c, *in_size)
        Images, or signals, or volumes.
    kernel_size, dilation : int or one int per dimension
        Elements of a window, and steps between them.
    stride : int or one int per dimension, optional
        Steps between windows; `kernel_size` by default.
    padding : int, one int or one (before, after) pair per dimension, "valid", "same" or "same_lower"
        As in a convolution; each side smaller than the window, and no window all padding.
    ceil_mode : bool
        Keep a last window that hangs over the end, if it starts inside the image or the padding before it.
    return_indices : bool
        Return the indices too, which the backward pass takes.
    layout : None or "channels_last"
        None has the channels first; "channels_last" takes and gives ``(n, *size, c)`` or ``(*size, c)``.
    out : ndarray, optional
        Receives the maxima.

    Returns
    -------
    ndarray, (n, c, *out_size) or (c, *out_size)
        ``out_size = (before + in_size + after - (kernel - 1) * dilation - 1) / stride + 1``, rounded down, or up in
        `ceil_mode`.
    indices : ndarray of int64, the same shape, if `return_indices`
        Of each maximum in its flattened plane: ``ih * width + iw`` in two dimensions.

    Raises
    ------
    TypeError
        A type is not float32 or float64; an option is of the wrong type.
    ValueError
        A shape or a value breaks a rule; `out` is read-only or shares memory with `x`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import max_pool2d
    >>> max_pool2d(np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4), 2)
    array([[[[ 5.,  7.],
             [13., 15.]]]], dtype=float32)
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"x": x})
    x = _input(function, "x", x)
    windows = kernel_size, stride, padding, dilation, ceil_mode
    call = _find_pool_call(function, ndim, x.shape, *windows, layout=layout)
    geometry.check_flag(function, "return_indices", return_indices)
    target = _target(function, "out", out, call.out_shape, x.dtype)
    indices = np.empty(call.out_shape, _INT64) if return_indices else None
    if target.size:
        _kernels.max_pool(call.plan, x, target, indices)
    result = _delivered(out, target)
    return result if indices is None else (result, indices)


def _max_pool_backward(
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
    out: NDArray | None = None,
    _of: Rank,
) -> NDArray:
    """Return the gradient of a max pool in its input: each output's gradient, added at its index.

    Parameters
    ----------
    grad_output : array_like of float32 or float64, (n, c, *out_size) or (c, *out_size)
        Gradient of the output.
    indices : array_like of int64, the shape of `grad_output`
        From the forward pass.
    input_shape : tuple of int
        Shape of the input of the forward pass.
    kernel_size, stride, padding, dilation, ceil_mode
        Options of the forward pass.
    layout : None or "channels_last"
        Of all arrays and of `input_shape`.
    out : ndarray, optional
        Receives the gradient.

    Returns
    -------
    ndarray, `input_shape`

    Raises
    ------
    TypeError, ValueError
        As the forward pass; ValueError too if an index lies outside its window.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import max_pool2d, max_pool2d_backward
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> y, indices = max_pool2d(x, 2, return_indices=True)
    >>> max_pool2d_backward(np.ones_like(y), indices, x.shape, 2)[0, 0]
    array([[0., 0., 0., 0.],
           [0., 1., 0., 1.],
           [0., 0., 0., 0.],
           [0., 1., 0., 1.]], dtype=float32)
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"grad_output": grad_output, "indices": indices})
    grad_output = _input(function, "grad_output", grad_output)
    input_shape = geometry.check_input_shape(function, ndim, input_shape, layout=layout)
    windows = kernel_size, stride, padding, dilation, ceil_mode
    call = _find_pool_call(function, ndim, input_shape, *windows, layout=layout)
    geometry.check_shape(function, "grad_output", grad_output.shape, call.out_shape, "the output's shape")
    indices = _array(function, "indices", indices)
    geometry.check_indices_dtype(function, indices.dtype)
    geometry.check_shape(function, "indices", indices.shape, call.out_shape, "the output's shape")
    target = _target(function, "out", out, input_shape, grad_output.dtype)
    if target.size:
        outside = _kernels.max_pool_backward(call.plan, grad_output, _native(indices), target, target is out)
        if outside:
            geometry.indices_error(function, outside)
    return _delivered(out, target)


def _avg_pool(
    x: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str | None = None,
    out: NDArray | None = None,
    _of: Rank,
) -> NDArray:
    """Take the mean of each window.

    ``y[n, c, p] = sum over k of x[n, c, stride * p + k - before] / divisor[p]``. The divisor is `divisor_override`, or
    the number of elements that the window shares with the padded image (`count_include_pad`) or with the image alone.
    What `ceil_mode` adds beyond the padding is never counted.

    Parameters
    ----------
    x : array_like of float32 or float64, (n, c, *in_size) or (c, *in_size)
        Images, or signals, or volumes.
    kernel_size, stride, padding, ceil_mode
        As in a max pool.
    count_include_pad : bool
        Whether padding counts as elements of a window.
    divisor_override : int, optional
        What to divide by instead.
    layout : None or "channels_last"
        As in a max pool.
    out : ndarray, optional
        Receives the means.

    Returns
    -------
    ndarray, (n, c, *out_size) or (c, *out_size)

    Raises
    ------
    TypeError, ValueError
        As a max pool.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import avg_pool2d
    >>> avg_pool2d(np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4), 2)
    array([[[[ 2.5,  4.5],
             [10.5, 12.5]]]], dtype=float32)
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"x": x})
    x = _input(function, "x", x)
    windows = kernel_size, stride, padding, 1, ceil_mode, count_include_pad, divisor_override, layout
    call = _find_pool_call(function, ndim, x.shape, *windows)
    target = _target(function, "out", out, call.out_shape, x.dtype)
    if target.size:
        _kernels.avg_pool(call.plan, x, target)
    return _delivered(out, target)


def _avg_pool_backward(
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
    out: NDArray | None = None,
    _of: Rank,
) -> NDArray:
    """Return the gradient of an average pool in its input: each window spreads its gradient evenly.

    Parameters
    ----------
    grad_output : array_like of float32 or float64, (n, c, *out_size) or (c, *out_size)
        Gradient of the output.
    input_shape : tuple of int
        Shape of the input of the forward pass.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        Options of the forward pass.
    layout : None or "channels_last"
        Of all arrays and of `input_shape`.
    out : ndarray, optional
        Receives the gradient.

    Returns
    -------
    ndarray, `input_shape`

    Raises
    ------
    TypeError, ValueError
        As the forward pass.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import avg_pool2d_backward
    >>> avg_pool2d_backward(np.ones((1, 1, 1, 2), np.float32), (1, 1, 2, 4), 2)[0, 0]
    array([[0.25, 0.25, 0.25, 0.25],
           [0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"grad_output": grad_output})
    grad_output = _input(function, "grad_output", grad_output)
    input_shape = geometry.check_input_shape(function, ndim, input_shape, layout=layout)
    windows = kernel_size, stride, padding, 1, ceil_mode, count_include_pad, divisor_override, layout
    call = _find_pool_call(function, ndim, input_shape, *windows)
    geometry.check_shape(function, "grad_output", grad_output.shape, call.out_shape, "the output's shape")
    target = _target(function, "out", out, input_shape, grad_output.dtype)
    if target.size:
        _kernels.avg_pool_backward(call.plan, grad_output, target)
    return _delivered(out, target)


max_pool1d, max_pool2d, max_pool3d = (_of_rank(ndim, _max_pool) for ndim in (1, 2, 3))
max_pool1d_backward, max_pool2d_backward, max_pool3d_backward = (_of_rank(n, _max_pool_backward) for n in (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = (_of_rank(ndim, _avg_pool) for ndim in (1, 2, 3))
avg_pool1d_backward, avg_pool2d_backward, avg_pool3d_backward = (_of_rank(n, _avg_pool_backward) for n in (1, 2, 3))


# Adaptive pools: windows of equal size are those of the pools above, others have kernels of their own.


class _AdaptiveCall(NamedTuple):
    """What an adaptive pool of given shapes does."""

    even: _PoolCall | None  # where all windows have the same size
    sizes: tuple[int, tuple, tuple]  # planes, in_size, out_size
    out_shape: tuple[int, ...]


@lru_cache(_CACHED_CALLS)
def _adaptive_call(function, ndim, x_shape, output_size) -> _AdaptiveCall:
    size, out = x_shape[-ndim:], geometry.adaptive_size(function, ndim, x_shape, output_size)
    even = None
    if not any(i % o for i, o in zip(size, out, strict=True)):
        kernel = tuple([i // o for i, o in zip(size, out, strict=True)])
        even = _pool_call(function, ndim, x_shape, (kernel, kernel, 0, 1), False, True, 0)
    ones = (1,) * (3 - ndim)
    sizes = math.prod(x_shape[:-ndim]), (*ones, *size), (*ones, *out)
    return _AdaptiveCall(even, sizes, (*x_shape[:-ndim], *out))


def _find_adaptive_call(function, ndim, x_shape, output_size) -> _AdaptiveCall:
    if isinstance(output_size, (tuple, list)):
        sizes = [o if o is None else geometry.plain(function, "output_size", o) for o in output_size]
        output_size = tuple(sizes)
    elif output_size is not None:
        output_size = geometry.plain(function, "output_size", output_size)
    return _adaptive_call(function, ndim, x_shape, output_size)


def _adaptive_avg_pool(x: ArrayLike, output_size: AdaptiveSize, *, out: NDArray | None = None, _of: Rank) -> NDArray:
    """Take the means of as many windows as the output has elements.

    Window ``p`` of a dimension has the elements from ``floor(p * in_size / out_size)`` to below
    ``ceil((p + 1) * in_size / out_size)``.

    Parameters
    ----------
    x : array_like of float32 or float64, (n, c, *in_size) or (c, *in_size)
        Images, or signals, or volumes.
    output_size : int, None or one of these per dimension
        Size of the output; None keeps that of the input, 1 pools over all of it.
    out : ndarray, optional
        Receives the means.

    Returns
    -------
    ndarray, (n, c, *output_size) or (c, *output_size)

    Raises
    ------
    TypeError, ValueError
        As a max pool.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import adaptive_avg_pool2d
    >>> adaptive_avg_pool2d(np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4), (1, 2))
    array([[[[6.5, 8.5]]]], dtype=float32)
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"x": x})
    x = _input(function, "x", x)
    call = _find_adaptive_call(function, ndim, x.shape, output_size)
    target = _target(function, "out", out, call.out_shape, x.dtype)
    if target.size:
        if call.even is not None:
            _kernels.avg_pool(call.even.plan, x, target)
        else:
            _kernels.uneven_pool(x, target, None, *call.sizes, False)
    return _delivered(out, target)


def global_avg_pool2d(x: NDArray) -> NDArray:
    """Return the means of images (n, c, h, w), read in place where their channels lie last in memory."""
    lying = _lying_last(x)
    if not _type_char(lying):
        return adaptive_avg_pool2d(x, 1)
    y = avg_pool2d(lying, x.shape[2:], layout="channels_last")
    return y.reshape(*x.shape[:2], 1, 1)


def _adaptive_avg_pool_backward(
    grad_output: ArrayLike,
    input_shape: Sequence[int],
    output_size: AdaptiveSize,
    *,
    out: NDArray | None = None,
    _of: Rank,
) -> NDArray:
    """Return the gradient of an adaptive average pool in its input: each window spreads its gradient evenly.

    Parameters
    ----------
    grad_output : array_like of float32 or float64, (n, c, *output_size) or (c, *output_size)
        Gradient of the output.
    input_shape : tuple of int
        Shape of the input of the forward pass.
    output_size
        As in the forward pass.
    out : ndarray, optional
        Receives the gradient.

    Returns
    -------
    ndarray, `input_shape`

    Raises
    ------
    TypeError, ValueError
        As the forward pass.
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"grad_output": grad_output})
    grad_output = _input(function, "grad_output", grad_output)
    input_shape = geometry.check_input_shape(function, ndim, input_shape)
    call = _find_adaptive_call(function, ndim, input_shape, output_size)
    geometry.check_shape(function, "grad_output", grad_output.shape, call.out_shape, "the output's shape")
    target = _target(function, "out", out, input_shape, grad_output.dtype)
    if target.size:
        if call.even is not None:
            _kernels.avg_pool_backward(call.even.plan, grad_output, target)
        else:
            _kernels.uneven_pool_backward(grad_output, None, target, *call.sizes)
    return _delivered(out, target)


def _adaptive_max_pool(
    x: ArrayLike,
    output_size: AdaptiveSize,
    return_indices: bool = False,
    *,
    out: NDArray | None = None,
    _of: Rank,
) -> NDArray | tuple[NDArray, NDArray]:
    """Take the maxima, and on request their indices, of the windows of an adaptive average pool.

    Parameters
    ----------
    x, output_size
        As in an adaptive average pool.
    return_indices, out
        As in a max pool.

    Returns
    -------
    ndarray, (n, c, *output_size) or (c, *output_size)
    indices : ndarray of int64, the same shape, if `return_indices`
        As those of a max pool.

    Raises
    ------
    TypeError, ValueError
        As a max pool.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import adaptive_max_pool1d
    >>> adaptive_max_pool1d(np.array([[[3.0, 1.0, 2.0]]]), 2, return_indices=True)
    (array([[[3., 2.]]]), array([[[0, 2]]]))
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"x": x})
    x = _input(function, "x", x)
    call = _find_adaptive_call(function, ndim, x.shape, output_size)
    geometry.check_flag(function, "return_indices", return_indices)
    target = _target(function, "out", out, call.out_shape, x.dtype)
    indices = np.empty(call.out_shape, _INT64) if return_indices else None
    if target.size:
        if call.even is not None:
            _kernels.max_pool(call.even.plan, x, target, indices)
        else:
            _kernels.uneven_pool(x, target, indices, *call.sizes, True)
    result = _delivered(out, target)
    return result if indices is None else (result, indices)


def _adaptive_max_pool_backward(
    grad_output: ArrayLike,
    indices: ArrayLike,
    input_shape: Sequence[int],
    output_size: AdaptiveSize,
    *,
    out: NDArray | None = None,
    _of: Rank,
) -> NDArray:
    """Return the gradient of an adaptive max pool in its input: each output's gradient, added at its index.

    Parameters
    ----------
    grad_output : array_like of float32 or float64, (n, c, *output_size) or (c, *output_size)
        Gradient of the output.
    indices : array_like of int64, the shape of `grad_output`
        From the forward pass.
    input_shape, output_size, out
        As in the gradient of an adaptive average pool.

    Returns
    -------
    ndarray, `input_shape`

    Raises
    ------
    TypeError, ValueError
        As the forward pass; ValueError too if an index lies outside its window.
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"grad_output": grad_output, "indices": indices})
    grad_output = _input(function, "grad_output", grad_output)
    input_shape = geometry.check_input_shape(function, ndim, input_shape)
    call = _find_adaptive_call(function, ndim, input_shape, output_size)
    geometry.check_shape(function, "grad_output", grad_output.shape, call.out_shape, "the output's shape")
    indices = _array(function, "indices", indices)
    geometry.check_indices_dtype(function, indices.dtype)
    geometry.check_shape(function, "indices", indices.shape, call.out_shape, "the output's shape")
    target = _target(function, "out", out, input_shape, grad_output.dtype)
    if target.size:
        if call.even is not None:
            outside = _kernels.max_pool_backward(call.even.plan, grad_output, _native(indices), target, target is out)
        else:
            outside = _kernels.uneven_pool_backward(grad_output, _native(indices), target, *call.sizes)
        if outside:
            geometry.indices_error(function, outside)
    return _delivered(out, target)


def _lp_pool(
    x: ArrayLike,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    out: NDArray | None = None,
    _of: Rank,
) -> NDArray:
    """Take the norm of each window, ``(sum over k of abs(x[i]) ** norm_type) ** (1 / norm_type)``.

    Parameters
    ----------
    x : array_like of float32 or float64, (n, c, *in_size) or (c, *in_size)
        Images, or signals, or volumes.
    norm_type : float
        The norm's exponent, above 0.
    kernel_size, stride, padding, ceil_mode
        As in a max pool.
    out : ndarray, optional
        Receives the norms.

    Returns
    -------
    ndarray, (n, c, *out_size) or (c, *out_size)

    Raises
    ------
    TypeError, ValueError
        As a max pool.

    Notes
    -----
    As ONNX defines it. PyTorch takes no absolute values, which differs for an odd `norm_type`, and in `ceil_mode`
    scales up a window that hangs over the end.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import lp_pool1d
    >>> lp_pool1d(np.array([[3.0, -4.0, 6.0, 8.0]]), 2, 2)
    array([[ 5., 10.]])
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"x": x})
    x = _input(function, "x", x)
    p = geometry.check_norm(function, norm_type)
    call = _find_pool_call(function, ndim, x.shape, kernel_size, stride, padding, 1, ceil_mode, divisor=1)
    target = _target(function, "out", out, call.out_shape, x.dtype)
    if target.size:
        with np.errstate(all="ignore"):
            _kernels.avg_pool(call.plan, np.abs(x) ** p, target)
            target **= 1 / p
    return _delivered(out, target)


def _lp_pool_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    out: NDArray | None = None,
    _of: Rank,
) -> NDArray:
    """Return the gradient of an Lp pool in its input; it is 0 where the input is.

    Parameters
    ----------
    grad_output : array_like of float32 or float64, (n, c, *out_size) or (c, *out_size)
        Gradient of the output.
    x : array_like, (n, c, *in_size) or (c, *in_size)
        Input of the forward pass.
    norm_type, kernel_size, stride, ceil_mode, padding
        Options of the forward pass.
    out : ndarray, optional
        Receives the gradient.

    Returns
    -------
    ndarray, the shape of `x`

    Raises
    ------
    TypeError, ValueError
        As the forward pass.
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"grad_output": grad_output, "x": x})
    x = _input(function, "x", x)
    grad_output = _operand(function, "grad_output", grad_output, x.dtype)
    p = geometry.check_norm(function, norm_type)
    call = _find_pool_call(function, ndim, x.shape, kernel_size, stride, padding, 1, ceil_mode, divisor=1)
    geometry.check_shape(function, "grad_output", grad_output.shape, call.out_shape, "the output's shape")
    target = _target(function, "out", out, x.shape, x.dtype)
    if target.size:
        with np.errstate(all="ignore"):
            magnitude, norm = np.abs(x), _empty(call.out_shape, x.dtype.char)
            _kernels.avg_pool(call.plan, magnitude**p, norm)
            share = grad_output * norm ** (1 / p - 1)  # the norm without its root: y ** (1 - p)
            _kernels.avg_pool_backward(call.plan, share, target)
            target *= np.sign(x) * magnitude ** (p - 1)
            target[x == 0] = 0
    return _delivered(out, target)


def _max_unpool(
    x: ArrayLike,
    indices: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
    *,
    out: NDArray | None = None,
    _of: Rank,
) -> NDArray:
    """Put maxima back to where a max pool has found them, among zeros.

    Parameters
    ----------
    x : array_like of float32 or float64, (n, c, *in_size) or (c, *in_size)
        What to put there; of several elements at one index the last stays.
    indices : array_like of int64, the shape of `x`
        From the max pool.
    kernel_size, stride, padding : int or one int per dimension
        Options of the max pool, of which the size of the output follows.
    output_size : tuple of int, optional
        The shape of the result, or its last dimensions, where several sizes give pools of this size.
    out : ndarray, optional
        Receives the result.

    Returns
    -------
    ndarray, (n, c, *out_size) or (c, *out_size)
        ``out_size = (in_size - 1) * stride - 2 * padding + kernel_size`` by default.

    Raises
    ------
    TypeError, ValueError
        As a max pool; ValueError too if an index lies outside the output.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import max_pool1d, max_unpool1d
    >>> max_unpool1d(*max_pool1d(np.array([[1.0, 3.0, 4.0, 2.0]]), 2, return_indices=True), 2)
    array([[0., 3., 4., 0.]])
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"x": x, "indices": indices})
    x = _input(function, "x", x)
    indices = _array(function, "indices", indices)
    shape = _unpooled_shape(function, ndim, indices, kernel_size, stride, padding, output_size)
    geometry.check_shape(function, "x", x.shape, indices.shape, "indices.shape")
    target = _target(function, "out", out, shape, x.dtype)
    target.fill(0)
    if x.size:
        planes = math.prod(shape[:-ndim])
        places, values = indices.reshape(planes, -1), x.reshape(planes, -1)
        np.put_along_axis(target.reshape(planes, -1), places, values, -1)
    return _delivered(out, target)


def _unpooled_shape(function, ndim, indices, kernel_size, stride, padding, output_size) -> tuple[int, ...]:
    """Check the indices, and return the shape of the image that they point into."""
    geometry.check_indices_dtype(function, indices.dtype)
    size = geometry.unpooled_size(function, ndim, indices.shape, kernel_size, stride, padding, output_size)
    outside = np.count_nonzero((indices < 0) | (indices >= math.prod(size)))
    if outside:
        geometry.indices_error(function, outside, "the output")
    return *indices.shape[:-ndim], *size


def _max_unpool_backward(
    grad_output: ArrayLike,
    indices: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
    *,
    out: NDArray | None = None,
    _of: Rank,
) -> NDArray:
    """Return the gradient of :func:`max_unpool2d` in its input: what stands at each index.

    Parameters
    ----------
    grad_output : array_like of float32 or float64, (n, c, *out_size) or (c, *out_size)
        Gradient of the output.
    indices : array_like of int64
        Indices of the forward pass.
    kernel_size, stride, padding, output_size
        Options of the forward pass.
    out : ndarray, optional
        Receives the gradient.

    Returns
    -------
    ndarray, the shape of `indices`

    Raises
    ------
    TypeError, ValueError
        As the forward pass.
    """
    function, ndim = _of
    if out is not None:
        _check_overlap(function, "out", out, {"grad_output": grad_output, "indices": indices})
    grad_output = _input(function, "grad_output", grad_output)
    indices = _array(function, "indices", indices)
    shape = _unpooled_shape(function, ndim, indices, kernel_size, stride, padding, output_size)
    geometry.check_shape(function, "grad_output", grad_output.shape, shape, "the output's shape")
    target = _target(function, "out", out, indices.shape, grad_output.dtype)
    if target.size:
        planes = math.prod(shape[:-ndim])
        found = np.take_along_axis(grad_output.reshape(planes, -1), indices.reshape(planes, -1), -1)
        target[...] = found.reshape(target.shape)
    return _delivered(out, target)


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (
    _of_rank(ndim, _adaptive_avg_pool) for ndim in (1, 2, 3)
)
adaptive_avg_pool1d_backward, adaptive_avg_pool2d_backward, adaptive_avg_pool3d_backward = (
    _of_rank(ndim, _adaptive_avg_pool_backward) for ndim in (1, 2, 3)
)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = (
    _of_rank(ndim, _adaptive_max_pool) for ndim in (1, 2, 3)
)
adaptive_max_pool1d_backward, adaptive_max_pool2d_backward, adaptive_max_pool3d_backward = (
    _of_rank(ndim, _adaptive_max_pool_backward) for ndim in (1, 2, 3)
)
lp_pool1d, lp_pool2d, lp_pool3d = (_of_rank(ndim, _lp_pool) for ndim in (1, 2, 3))
lp_pool1d_backward, lp_pool2d_backward, lp_pool3d_backward = (_of_rank(ndim, _lp_pool_backward) for ndim in (1, 2, 3))
max_unpool1d, max_unpool2d, max_unpool3d = (_of_rank(ndim, _max_unpool) for ndim in (1, 2, 3))
max_unpool1d_backward, max_unpool2d_backward, max_unpool3d_backward = (
    _of_rank(ndim, _max_unpool_backward) for ndim in (1, 2, 3)
)


# --- Unfolding -------------------------------------------------------------------------------------------------------


def _unfold_options(function, kernel_size, stride, padding, dilation) -> tuple:
    options = kernel_size, stride, padding, dilation
    return _plain_options(function, ("kernel_size", "stride", "padding", "dilation"), options)


def unfold(
    x: ArrayLike,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Padding = 0,
    stride: Ints = 1,
    *,
    order: str | None = None,
    out: NDArray | None = None,
) -> NDArray:
    """Copy each window to a column: im2col. Its gradient is :func:`fold`.

    ``columns[n, c * taps + k, p] = x[n, c, stride * p + dilation * k - before]``, with the taps ``k`` and the positions
    ``p`` counted over all dimensions.

    Parameters
    ----------
    x : array_like of float32 or float64, (n, c, *in_size) or (c, *in_size)
        Images; signals or volumes if `kernel_size` has 1 or 3 elements.
    kernel_size, dilation, padding, stride
        As in a convolution.
    order : None, "batch_outer" or "batch_inner"
        None keeps the images apart; else their columns stand side by side in a matrix, image after image, or position
        after position.
    out : ndarray, optional
        Receives the columns.

    Returns
    -------
    ndarray, (n, c * taps, positions) or (c * taps, positions)
        (c * taps, n * positions) in an `order`.

    Raises
    ------
    TypeError, ValueError
        As a convolution.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import unfold
    >>> unfold(np.arange(6.0).reshape(1, 1, 2, 3), (2, 2))
    array([[[0., 1.],
            [1., 2.],
            [3., 4.],
            [4., 5.]]])
    """
    if out is not None:
        _check_overlap("unfold", "out", out, {"x": x})
    x = _input("unfold", "x", x)
    geometry.check_order("unfold", order)
    options = _unfold_options("unfold", kernel_size, stride, padding, dilation)
    ndim = len(options[0]) if type(options[0]) is tuple else 2
    unbatched = x.ndim == ndim + 1
    g = geometry.unfold_geometry("unfold", (1, *x.shape) if unbatched else x.shape, *options)
    rows, positions = g.c * math.prod(g.kernel), math.prod(g.out_size)
    shape = (g.n, rows, positions)[unbatched:] if order is None else (rows, g.n * positions)
    target = _target("unfold", "out", out, shape, x.dtype)
    if target.size:
        sizes = g.n, g.c, g.in_size, g.out_size, g.kernel, g.stride, g.dilation, g.pad
        _kernels.unfold(x, target, *sizes, order, False)
    return _delivered(out, target)


def fold(
    x: ArrayLike,
    output_size: Ints,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Padding = 0,
    stride: Ints = 1,
    *,
    order: str | None = None,
    out: NDArray | None = None,
) -> NDArray:
    """Add each column to its window: col2im. Its gradient is :func:`unfold`.

    Parameters
    ----------
    x : array_like of float32 or float64, (n, c * taps, positions) or (c * taps, positions)
        Columns as :func:`unfold` gives them; (c * taps, n * positions) in an `order`.
    output_size : int or one int per dimension
        Size of the images.
    kernel_size, dilation, padding, stride, order
        As in :func:`unfold`.
    out : ndarray, optional
        Receives the sums.

    Returns
    -------
    ndarray, (n, c, *output_size) or (c, *output_size)

    Raises
    ------
    TypeError, ValueError
        As a convolution.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import fold, unfold
    >>> fold(unfold(np.ones((1, 1, 3, 3)), (2, 2)), (3, 3), (2, 2))
    array([[[[1., 2., 1.],
             [2., 4., 2.],
             [1., 2., 1.]]]])
    """
    if out is not None:
        _check_overlap("fold", "out", out, {"x": x})
    x = _input("fold", "x", x)
    geometry.check_order("fold", order)
    options = _unfold_options("fold", kernel_size, stride, padding, dilation)
    g = geometry.fold_geometry("fold", x.shape, geometry.plain("fold", "output_size", output_size), *options, order)
    target = _target("fold", "out", out, g.x_shape[order is None and x.ndim == 2 :], x.dtype)
    if target.size:
        sizes = g.n, g.c, g.in_size, g.out_size, g.kernel, g.stride, g.dilation, g.pad
        _kernels.unfold(target, x, *sizes, order, True)
    return _delivered(out, target)


# --- Elementwise and linear ------------------------------------------------------------------------------------------


def _same_elements(a: NDArray, b: Any) -> bool:
    """Whether two arrays are the same elements in the same places, so that one may be written as the other is read."""
    return a is b or (
        isinstance(b, _ndarray)
        and (a.shape, a.strides, a.dtype) == (b.shape, b.strides, b.dtype)
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def _check_elementwise_overlap(function: str, out: Any, others: dict[str, Any]) -> None:
    """Check as `_check_overlap`, but let `out` be one of the other arguments."""
    if not _kernels.all_apart(out, others):
        _check_overlap(function, "out", out, {k: v for k, v in others.items() if not _same_elements(out, v)})


def relu(x: ArrayLike, inplace: bool = False, *, out: NDArray | None = None) -> NDArray:
    """Return 0 where ``x <= 0`` and `x` elsewhere; NaN passes.

    Parameters
    ----------
    x : array_like of float32 or float64, any shape
        Input.
    inplace : bool
        Write the result to `x`, an ndarray.
    out : ndarray, optional
        Receives the result; may be `x`.

    Returns
    -------
    ndarray, the shape of `x`

    Raises
    ------
    TypeError
        The type is not float32 or float64.
    ValueError
        `out` has another shape, is read-only or shares memory with `x` without being it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import relu
    >>> relu(np.array([-1.0, 0.0, 2.0, np.nan]))
    array([ 0.,  0.,  2., nan])
    """
    if inplace is not False:
        geometry.check_flag("relu", "inplace", inplace)
        geometry.check_inplace("relu", x, out, _ndarray)
        out = x
    elif out is not None:
        _check_elementwise_overlap("relu", out, {"x": x})
    array = _input("relu", "x", x)
    target = _target("relu", "x" if inplace else "out", out, array.shape, array.dtype)
    if target.size:
        _kernels.relu(array, target)
    return _delivered(out, target)


def relu_backward(grad_output: ArrayLike, x_or_y: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    """Return 0 where ``x_or_y <= 0`` and `grad_output` elsewhere.

    Parameters
    ----------
    grad_output : array_like of float32 or float64, any shape
        Gradient of the output.
    x_or_y : array_like, the shape and type of `grad_output`
        Input or output of :func:`relu`: both give the same.
    out : ndarray, optional
        Receives the result; may be `grad_output` or `x_or_y`.

    Returns
    -------
    ndarray, the shape of `grad_output`

    Raises
    ------
    TypeError, ValueError
        As :func:`relu`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import relu_backward
    >>> relu_backward(np.array([1.0, 2.0, 3.0]), np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 3.])
    """
    if out is not None:
        _check_elementwise_overlap("relu_backward", out, {"grad_output": grad_output, "x_or_y": x_or_y})
    grad_output = _input("relu_backward", "grad_output", grad_output)
    dtype = grad_output.dtype
    x_or_y = _operand("relu_backward", "x_or_y", x_or_y, dtype, of="grad_output")
    geometry.check_shape("relu_backward", "x_or_y", x_or_y.shape, grad_output.shape, "grad_output.shape")
    target = _target("relu_backward", "out", out, grad_output.shape, dtype)
    if target.size:
        _kernels.relu_backward(grad_output, x_or_y, target)
    return _delivered(out, target)


_linear_sizes = lru_cache(_CACHED_CALLS)(geometry.linear_sizes)


def linear(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: Activation = None,
    out: NDArray | None = None,
) -> NDArray:
    """Return ``activation(x @ weight.T + bias)``, on the kernels of the convolutions.

    Parameters
    ----------
    x : array_like of float32 or float64, (..., in_features)
        Input.
    weight : array_like, (out_features, in_features)
        Weights, of the type of `x`.
    bias : array_like, (out_features,), optional
        Added to each row.
    activation, out
        As in :func:`conv2d`.

    Returns
    -------
    ndarray, (..., out_features)

    Raises
    ------
    TypeError, ValueError
        As :func:`conv2d`.

    Notes
    -----
    NumPy's BLAS keeps threads of its own, which would compete with those of the convolutions around it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import linear
    >>> linear(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [1.0, 1.0], [0.0, -1.0]]), activation="relu")
    array([[1., 3., 0.]])
    """
    if out is not None:
        _check_overlap("linear", "out", out, {"x": x, "weight": weight, "bias": bias})
    x = _input("linear", "x", x)
    dtype = x.dtype
    weight = _operand("linear", "weight", weight, dtype)
    rows, _, out_features = _linear_sizes("linear", x.shape, weight.shape)
    code, slope = (0, 0.0) if activation is None else geometry.activation_code("linear", activation)
    if bias is not None:
        bias = _operand("linear", "bias", bias, dtype)
        if bias.shape != (out_features,):
            geometry.check_shape("linear", "bias", bias.shape, (out_features,), "weight.shape[:1]")
    target = _target("linear", "out", out, (*x.shape[:-1], out_features), dtype)
    if rows:
        _kernels.linear_output(x, weight, bias, target, rows, code, slope)
    return _delivered(out, target)


def linear_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    output_mask: Mask = _ALL,
    out: Gradients | None = None,
) -> Gradients:
    """Return the gradients of :func:`linear` in its input, weights and bias.

    Parameters
    ----------
    grad_output : array_like of float32 or float64, (..., out_features)
        Gradient of the output, before any activation.
    x : array_like, (..., in_features)
        Input of the forward pass.
    weight : array_like, (out_features, in_features)
        Weights of the forward pass.
    output_mask, out
        As in :func:`conv2d_backward`.

    Returns
    -------
    grad_input : ndarray or None, the shape of `x`
    grad_weight : ndarray or None, the shape of `weight`
    grad_bias : ndarray or None, (out_features,)

    Raises
    ------
    TypeError, ValueError
        As :func:`conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import linear_backward
    >>> linear_backward(np.array([[1.0, 2.0]]), np.array([[3.0]]), np.array([[1.0], [1.0]]))
    (array([[3.]]), array([[3.],
           [6.]]), array([1., 2.]))
    """
    function = "linear_backward"
    outs = _outs(function, out, output_mask, {"grad_output": grad_output, "x": x, "weight": weight})
    x = _input(function, "x", x)
    dtype = x.dtype
    weight = _operand(function, "weight", weight, dtype)
    grad_output = _operand(function, "grad_output", grad_output, dtype)
    rows, _, out_features = _linear_sizes(function, x.shape, weight.shape)
    shape = (*x.shape[:-1], out_features)
    geometry.check_shape(function, "grad_output", grad_output.shape, shape, "the output's shape")
    targets = _targets(function, outs, output_mask, (x.shape, weight.shape, (out_features,)), dtype)
    grad_input, grad_weight, grad_bias = targets

    if grad_input is not None and rows:
        _kernels.linear_input_gradient(grad_output, weight, grad_input, rows)
    if grad_weight is not None and rows:
        _kernels.linear_weight_gradient(grad_output, x, grad_weight, grad_bias, rows)
    else:
        if grad_weight is not None:
            grad_weight.fill(0)
        if grad_bias is not None:
            _kernels.channel_sums(grad_output, grad_bias, rows)
    return tuple(map(_delivered, outs, targets))
