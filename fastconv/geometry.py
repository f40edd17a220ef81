"""Sizes of convolutions and pools, and every check of the library's arguments.

Along one dimension, output position ``o`` reads the taps ``k`` of its window from

    i = o * stride + k * dilation - before,      extent = (kernel - 1) * dilation + 1

    before          in            after
    |.....|########################|...|
    [window 0]                                   of ``extent`` elements
        [window 1]                               ``stride`` further
    out = (before + in + after - extent) // stride + 1

Geometries store sizes as (d, h, w) whatever the rank: the dimensions that a 1-D or 2-D operator lacks have size 1,
kernel 1, stride 1, dilation 1 and no padding, so that kernels know one form. A step that is never taken is 1 too: the
stride of a single window, the dilation of a single tap. So every step is at most the size of the padded input.

Messages read ``function: argument rule, got value``. Types that are wrong are a TypeError, shapes and values a
ValueError. This module knows arrays by their attributes only.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NoReturn

__all__ = [
    "ConvGeometry",
    "PoolGeometry",
    "bordered_size",
    "conv_geometry",
    "conv_transpose_geometry",
    "plain",
    "pool_geometry",
]

Size = tuple[int, int, int]
Pad = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

MAX_INT = 2**31 - 1  # of strides, paddings, dilations and windows: sums and products of two stay within 64 bits
MAX_BYTES = 2**63 - 1
MAX_ITEMSIZE = 8
MAX_COPIED = 16 << 20  # bytes of input rows that a task of "direct" copies, or of windows that "im2col" unfolds
LINES = range(3, 10)  # taps of filters along a line that "winograd" takes
MAX_PIXELS = 64  # that "im2col" unfolds
LEAST_PANEL, MOST_DEPTH = 8, 10_000  # channels of a panel that it packs, where these are not few

ALGORITHMS = ("auto", "gemm", "im2col", "direct", "winograd")
ACTIVATIONS = {"relu": 1, "relu6": 2, "leaky_relu": 3, "silu": 4, "hardswish": 5, "sigmoid": 6, "tanh": 7}

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

_AXES = {1: "iw", 2: "ih, iw", 3: "id, ih, iw"}


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """A convolution: ``(n, ic, *in_size)`` by ``(oc, ic // groups, *kernel)`` gives ``(n, oc, *out_size)``."""

    ndim: int
    n: int
    ic: int
    oc: int
    groups: int
    in_size: Size
    kernel: Size
    stride: Size
    dilation: Size
    pad: Pad
    out_size: Size

    @property
    def flattened(self) -> ConvGeometry:
        """The same on images whose rows are planes, where the filters of volumes are lines across these."""
        none = (0, 0)
        pixels = self.kernel[1:] == self.stride[1:] == (1, 1) and self.pad[1:] == (none, none)
        if self.kernel[0] == 1 or not pixels or self.in_size[1:] != self.out_size[1:]:
            return self
        (d, h, w), (out_d, _, _) = self.in_size, self.out_size
        return replace(
            self,
            ndim=2,
            in_size=(1, d, h * w),
            out_size=(1, out_d, h * w),
            kernel=(1, self.kernel[0], 1),
            stride=(1, self.stride[0], 1),
            dilation=(1, self.dilation[0], 1),
            pad=(none, self.pad[0], none),
        )

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Algorithms that can compute it."""
        if self.flattened is not self:
            return self.flattened.algorithms
        (_, stride, _), (_, kernel, _), (_, dilation, _) = self.stride, self.kernel, self.dilation
        rows = (min(self.out_size[1], 8) - 1) * stride + (kernel - 1) * dilation + 1  # under eight of the output
        row = max(self.ic * self.in_size[2], self.oc * self.out_size[2]) // self.groups * MAX_ITEMSIZE
        direct = ("direct",) if self.ndim < 3 and rows * row <= MAX_COPIED else ()
        square = self.kernel[1:] in ((3, 3), (5, 5))
        line = self.kernel[0] == 1 and 1 in self.kernel[1:] and math.prod(self.kernel) in LINES
        near = self.kernel[0] <= self.kernel[1] and self.dilation[0] == 1  # planes that are summed
        im2col = ("im2col",) if self.full or self.few_pixels or self.one_tap else ()
        winograd = ((square and near) or line) and self.stride == (1, 1, 1)
        return ("gemm", *im2col, *direct, *(("winograd",) if winograd else ()))

    @property
    def full(self) -> bool:
        """Whether a filter covers the image and has one place there: a fully connected layer."""
        whole = self.kernel == self.in_size and math.prod(self.out_size) == 1 and self.dilation == (1, 1, 1)
        return whole and self.groups == 1 and self.pad == ((0, 0),) * 3

    @property
    def pointwise(self) -> bool:
        """Whether a window is a pixel."""
        return self.in_size == self.out_size and math.prod(self.kernel) == 1 and self.stride == (1, 1, 1)

    @property
    def one_tap(self) -> bool:
        """Whether a window is a pixel of the image, so that "im2col" unfolds nothing."""
        one = math.prod(self.kernel) == 1 and self.pad == ((0, 0),) * 3
        few, many = sorted((self.ic, self.oc))  # where a panel of few channels would be most of what it takes: no
        return one and self.groups == 1 and few > 0 and (few >= LEAST_PANEL or many <= MOST_DEPTH)

    def reads_in_place(self, name: str) -> bool:
        """Whether a pass by "im2col" takes pixels where they lie."""
        return self.one_tap and (name == "output" or (name == "input_gradient" and self.pointwise))

    @property
    def few_pixels(self) -> bool:
        """Whether all windows, unfolded, are few and small, and so are the pixels and where the taps of each lie."""
        taps, places = math.prod(self.kernel), math.prod(self.out_size)
        elements = self.n * places * (self.ic * taps + self.oc) + places * taps
        few = self.groups == 1 and 0 < self.n * places <= MAX_PIXELS and self.ic > 0 and self.oc > 0
        return few and elements * MAX_ITEMSIZE <= MAX_COPIED

    @property
    def live(self) -> tuple[Size, ConvGeometry]:
        """The first of the taps that meet the image for some output, and the convolution by these alone.

        The others only ever meet padding: eight of nine on an image of one pixel, or where the dilation is its size.
        """
        of = self.in_size, self.out_size, self.kernel, self.stride, self.dilation, self.pad
        first, kernel, dilation, pad = zip(*map(_live, *of), strict=True)
        return first, replace(self, kernel=kernel, dilation=dilation, pad=pad)

    @property
    def macs(self) -> int:
        """Multiply-adds of direct convolution."""
        return self.n * self.oc * math.prod(self.out_size) * (self.ic // self.groups) * math.prod(self.kernel)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the input, with `ndim` spatial dimensions."""
        return (self.n, self.ic, *self.in_size[-self.ndim :])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weights, with `ndim` spatial dimensions."""
        return (self.oc, self.ic // self.groups, *self.kernel[-self.ndim :])

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output, with `ndim` spatial dimensions."""
        return (self.n, self.oc, *self.out_size[-self.ndim :])


def _live(
    size: int, out: int, kernel: int, stride: int, dilation: int, pad: tuple[int, int]
) -> tuple[int, int, int, tuple[int, int]]:
    """Return the first live tap of a dimension, how many there are up to the last, their dilation and padding.

    Tap k meets size elements from ``k * dilation - before`` on, a stride apart; with a stride past the size more count
    as live than are.
    """
    before, after = pad
    first = max(0, -(((out - 1) * stride - before) // dilation))
    last = min(kernel - 1, (size - 1 + before) // dilation)
    if first > last:
        first, last = 0, kernel - 1
    first, last = min(first, before // dilation), max(last, kernel - 1 - after // dilation)
    rest = before - first * dilation, after - (kernel - 1 - last) * dilation
    return first, last + 1 - first, dilation if last > first else 1, rest


@dataclass(frozen=True, slots=True)
class PoolGeometry:
    """A pool: windows over each of the ``n * c`` planes of ``(n, c, *in_size)`` give ``(n, c, *out_size)``."""

    ndim: int
    n: int
    c: int
    in_size: Size
    kernel: Size
    stride: Size
    dilation: Size
    pad: Pad
    out_size: Size

    @property
    def planes(self) -> int:
        """Number of planes."""
        return self.n * self.c

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the input, with `ndim` spatial dimensions."""
        return (self.n, self.c, *self.in_size[-self.ndim :])

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output, with `ndim` spatial dimensions."""
        return (self.n, self.c, *self.out_size[-self.ndim :])


def conv_geometry(
    function: str,
    ndim: int,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> ConvGeometry:
    """Check a convolution and work out its sizes.

    Parameters
    ----------
    function : str
        The name that messages begin with.
    ndim : int
        Number of spatial dimensions: 1, 2 or 3.
    x_shape : tuple of int
        ``(n, ic, *in_size)``.
    weight_shape : tuple of int
        ``(oc, ic // groups, *kernel)``.
    stride, dilation : int or tuple of `ndim` ints
        At least 1.
    padding : int, tuple of `ndim` ints or of `ndim` (before, after) pairs, "valid", "same" or "same_lower"
        "same" makes ``out = ceil(in / stride)`` and puts the odd element after, "same_lower" before.
    groups : int
        Divides ``ic`` and ``oc``.

    Returns
    -------
    ConvGeometry

    Raises
    ------
    TypeError
        An argument is no integer, or no tuple of integers.
    ValueError
        A shape or a value breaks a rule.
    """
    if len(x_shape) != ndim + 2:
        axes = _AXES[ndim]
        _value_error(function, f"x must have shape (n, ic, {axes}), or (ic, {axes}) unbatched", x_shape)
    if len(weight_shape) != ndim + 2:
        rule = f"weight must have shape (oc, ic // groups, {_AXES[ndim].replace('i', 'k')})"
        _value_error(function, rule, weight_shape)
    n, ic, *size = x_shape
    oc, icg, *kernel = weight_shape
    shape = "input_shape" if function == "pack_weight" else "x.shape"
    groups = _integer(function, "groups", groups, 1)
    if ic < 1:
        _value_error(function, f"{shape}[1] must be at least 1", ic)
    if min(weight_shape) < 1:
        _value_error(function, "weight must have no dimension of size 0", weight_shape)
    if ic % groups:
        _value_error(function, f"groups must divide {shape}[1] = {ic}", groups)
    if icg != ic // groups:
        _value_error(function, f"weight.shape[1] must equal {shape}[1] // groups = {ic // groups}", icg)
    if oc % groups:
        _value_error(function, f"groups must divide weight.shape[0] = {oc}", groups)

    stride = _per_dimension(function, "stride", stride, ndim)
    dilation = _per_dimension(function, "dilation", dilation, ndim)
    pad = _pads(function, padding, size, kernel, stride, dilation)
    out = _whole_windows(function, size, kernel, stride, dilation, pad, "weight.shape[{}]", shape)
    _check_bytes(function, "the padded input", n, ic, size, pad)
    _check_bytes(function, "the output", n, oc, out)
    return ConvGeometry(ndim, n, ic, oc, groups, *_three_dimensional(size, kernel, stride, dilation, pad, out))


def bordered_size(g: ConvGeometry, function: str, mode: str) -> tuple[int, int, int]:
    """Return the size of the padded images, whose borders they can fill in this mode."""
    for axis, (size, pad) in enumerate(zip(g.in_size[-g.ndim :], g.pad[-g.ndim :], strict=True), -g.ndim):
        most = {"reflect": size - 1, "replicate": max(pad) if size else 0, "circular": size}[mode]
        if max(pad) > most:
            _value_error(function, f"padding must be at most {most} for x.shape[{axis}] = {size} in {mode!r}", max(pad))
    return tuple([before + size + after for size, (before, after) in zip(g.in_size, g.pad, strict=True)])


def conv_transpose_geometry(
    function: str,
    ndim: int,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
) -> ConvGeometry:
    """Check a transposed convolution and return the convolution of which it is the input gradient.

    That one leads from ``(n, oc, *out_size)`` back to ``(n, ic, *in_size)``: its input is this one's output.

    Parameters
    ----------
    function, ndim, x_shape, stride, dilation, groups
        As in :func:`conv_geometry`.
    weight_shape : tuple of int
        ``(ic, oc // groups, *kernel)``.
    padding : int, tuple of `ndim` ints or of `ndim` (before, after) pairs
        What the output lacks at its ends.
    output_padding : int or tuple of `ndim` ints
        Smaller than the stride or the dilation.

    Returns
    -------
    ConvGeometry

    Raises
    ------
    TypeError, ValueError
        As :func:`conv_geometry`; ValueError too if the output would be empty.
    """
    if len(x_shape) != ndim + 2:
        axes = _AXES[ndim]
        _value_error(function, f"x must have shape (n, ic, {axes}), or (ic, {axes}) unbatched", x_shape)
    if len(weight_shape) != ndim + 2:
        rule = f"weight must have shape (ic, oc // groups, {_AXES[ndim].replace('i', 'k')})"
        _value_error(function, rule, weight_shape)
    n, ic, *size = x_shape
    _, ocg, *kernel = weight_shape
    groups = _integer(function, "groups", groups, 1)
    if min(weight_shape) < 1:
        _value_error(function, "weight must have no dimension of size 0", weight_shape)
    if min(size) < 1:
        _value_error(function, "x.shape must have no spatial dimension of size 0", x_shape)
    if weight_shape[0] != ic:
        _value_error(function, f"weight.shape[0] must equal x.shape[1] = {ic}", weight_shape[0])
    if ic % groups:
        _value_error(function, f"groups must divide x.shape[1] = {ic}", groups)

    stride = _per_dimension(function, "stride", stride, ndim)
    dilation = _per_dimension(function, "dilation", dilation, ndim)
    extra = _per_dimension(function, "output_padding", output_padding, ndim, 0)
    if type(padding) is str:
        _value_error(function, "padding must be numbers", repr(padding))
    pad = _pads(function, padding, size, kernel, stride, dilation)
    out = []
    for i, k, s, d, e, (before, after) in zip(size, kernel, stride, dilation, extra, pad, strict=True):
        if e >= max(s, d):
            _value_error(function, f"output_padding must be less than stride or dilation = {max(s, d)}", e)
        length = (i - 1) * s + (k - 1) * d + 1 + e
        if before + after >= length:
            _value_error(function, f"padding must be less in all than the whole output = {length}", before + after)
        out.append(length - before - after)
    _check_bytes(function, "the padded output", n, groups * ocg, out, pad)
    _check_bytes(function, "the input", n, ic, size)
    sizes = _three_dimensional(out, kernel, stride, dilation, pad, size)
    return ConvGeometry(ndim, n, groups * ocg, ic, groups, *sizes)


def pool_geometry(
    function: str,
    ndim: int,
    x_shape: tuple[int, ...],
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    last: bool = False,
) -> PoolGeometry:
    """Check a pool and work out its sizes.

    Parameters
    ----------
    function : str
        The name that messages begin with.
    ndim : int
        Number of spatial dimensions: 1, 2 or 3.
    x_shape : tuple of int
        ``(n, c, *in_size)``, or ``(n, *in_size, c)`` with the channels `last`.
    kernel_size, dilation : int or tuple of `ndim` ints
        At least 1.
    stride : int, tuple of `ndim` ints or None
        At least 1; `kernel_size` where it is None.
    padding : int, tuple of `ndim` ints or of `ndim` (before, after) pairs, "valid", "same" or "same_lower"
        Each side smaller than the extent of the window.
    ceil_mode : bool
        Keep a last window that is not full, if it starts inside the input or the padding before it.
    last : bool
        Whether `x_shape` has its channels last.

    Returns
    -------
    PoolGeometry

    Raises
    ------
    TypeError
        An argument is no integer, or no tuple of integers.
    ValueError
        A shape or a value breaks a rule, or a window would hold padding alone.
    """
    if len(x_shape) != ndim + 2:
        axes = f"{_AXES[ndim]}, c" if last else f"c, {_AXES[ndim]}"
        _value_error(function, f"x must have shape (n, {axes}), or ({axes}) unbatched", x_shape)
    n, c, *size = (x_shape[0], x_shape[-1], *x_shape[1:-1]) if last else x_shape
    shape = "input_shape" if function.endswith("_backward") else "x.shape"
    if min(size) < 1:
        _value_error(function, f"{shape} must have no spatial dimension of size 0", x_shape)
    if math.prod(size) > MAX_INT:
        _value_error(function, f"{shape} must have fewer than 2**31 elements a plane", x_shape)
    check_flag(function, "ceil_mode", ceil_mode)
    kernel = _per_dimension(function, "kernel_size", kernel_size, ndim)
    stride = kernel if stride is None else _per_dimension(function, "stride", stride, ndim)
    dilation = _per_dimension(function, "dilation", dilation, ndim)
    pad = _pads(function, padding, size, kernel, stride, dilation)
    out = []
    steps = zip(size, kernel, stride, dilation, pad, strict=True)
    for axis, (i, k, s, d, (before, after)) in enumerate(steps, -ndim - last):
        padded, extent = before + i + after, (k - 1) * d + 1
        if max(before, after) >= extent:
            _value_error(
                function, f"padding must be less than (kernel_size - 1) * dilation + 1 = {extent}", max(before, after)
            )
        o = (padded - extent + (s - 1 if ceil_mode else 0)) // s + 1
        if o < 1:
            rule = f"(kernel_size - 1) * dilation + 1 must be at most the padded {shape}[{axis}] = {padded}"
            _value_error(function, rule, extent)
        if ceil_mode and (o - 1) * s >= before + i:
            o -= 1
        # Only a window that starts before the input can step over it; start % d is its first tap from 0 on.
        if i < d and any(start % d >= i for start in range(-before, 0, s)[:o]):
            _value_error(function, f"dilation must leave each window an element of {shape}[{axis}] = {i}", d)
        out.append(o)
    _check_bytes(function, "the padded input", n, c, size, pad)
    _check_bytes(function, "the output", n, c, out)
    return PoolGeometry(ndim, n, c, *_three_dimensional(size, kernel, stride, dilation, pad, out))


def unfold_geometry(
    function: str, x_shape: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, dilation: Any
) -> PoolGeometry:
    """Check the windows that are unfolded, of as many dimensions as `kernel_size` has, or of 2, and their sizes."""
    ndim = len(kernel_size) if type(kernel_size) is tuple else 2
    if not 1 <= ndim <= 3:
        _value_error(function, "kernel_size must be an integer or have 1 to 3 elements", kernel_size)
    if len(x_shape) != ndim + 2:
        axes = _AXES[ndim]
        _value_error(function, f"x must have shape (n, c, {axes}), or (c, {axes}) unbatched", x_shape)
    n, c, *size = x_shape
    if min(size) < 1:
        _value_error(function, "x.shape must have no spatial dimension of size 0", x_shape)
    kernel = _per_dimension(function, "kernel_size", kernel_size, ndim)
    stride = _per_dimension(function, "stride", stride, ndim)
    dilation = _per_dimension(function, "dilation", dilation, ndim)
    pad = _pads(function, padding, size, kernel, stride, dilation)
    out = _whole_windows(function, size, kernel, stride, dilation, pad, "kernel_size", "size")
    _check_bytes(function, "the padded input", n, c, size, pad)
    _check_bytes(function, "the columns", n, c * math.prod(kernel), out)
    return PoolGeometry(ndim, n, c, *_three_dimensional(size, kernel, stride, dilation, pad, out))


def fold_geometry(
    function: str,
    x_shape: tuple[int, ...],
    output_size: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    order: str | None,
) -> PoolGeometry:
    """Check columns of shape `x_shape` and return the windows of which they were unfolded."""
    ndim = len(kernel_size) if type(kernel_size) is tuple else 2
    dimensions = (2, 3) if order is None else (2,)
    if len(x_shape) not in dimensions:
        shapes = "(n, c * taps, positions), or (c * taps, positions)" if order is None else "(c * taps, n * positions)"
        _value_error(function, f"x must have shape {shapes}", x_shape)
    taps = math.prod(_per_dimension(function, "kernel_size", kernel_size, ndim))
    if x_shape[-2] % taps:
        _value_error(function, f"x.shape[-2] must be a multiple of the kernel's elements = {taps}", x_shape[-2])
    size = _per_dimension(function, "output_size", output_size, ndim)
    n = x_shape[0] if len(x_shape) == 3 else 1
    options = kernel_size, stride, padding, dilation
    g = unfold_geometry(function, (n, x_shape[-2] // taps, *size), *options)
    positions = math.prod(g.out_size)
    if order is not None and x_shape[1] % positions == 0:
        return replace(g, n=x_shape[1] // positions)
    if x_shape[-1] != positions:
        rule = f"x.shape[-1] must be {'' if order is None else 'a multiple of '}the number of windows = {positions}"
        _value_error(function, rule, x_shape[-1])
    return g


def adaptive_size(function: str, ndim: int, x_shape: tuple[int, ...], output_size: Any) -> tuple[int, ...]:
    """Return the size of the output of an adaptive pool; None keeps a dimension's size."""
    shape = "input_shape" if function.endswith("_backward") else "x.shape"
    if len(x_shape) not in (ndim + 1, ndim + 2):
        axes = _AXES[ndim]
        _value_error(function, f"x must have shape (n, c, {axes}), or (c, {axes}) unbatched", x_shape)
    size = x_shape[-ndim:]
    if min(size) < 1:
        _value_error(function, f"{shape} must have no spatial dimension of size 0", x_shape)
    if math.prod(size) > MAX_INT:
        _value_error(function, f"{shape} must have fewer than 2**31 elements a plane", x_shape)
    wanted = output_size if type(output_size) is tuple else (output_size,) * ndim
    if len(wanted) != ndim:
        _value_error(function, f"output_size must be an integer or have {ndim} elements", output_size)
    out = [i if o is None else _integer(function, "output_size", o, 1) for i, o in zip(size, wanted, strict=True)]
    _check_bytes(function, "the output", 1, math.prod(x_shape[:-ndim]), out)
    return tuple(out)


def unpooled_size(
    function: str, ndim: int, shape: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> tuple[int, ...]:
    """Return the size of the image that a max pool has made an array of `shape` of."""
    if len(shape) not in (ndim + 1, ndim + 2):
        axes = _AXES[ndim]
        _value_error(function, f"indices must have shape (n, c, {axes}), or (c, {axes}) unbatched", shape)
    kernel = _per_dimension(function, "kernel_size", kernel_size, ndim)
    stride = kernel if stride is None else _per_dimension(function, "stride", stride, ndim)
    pads = _per_dimension(function, "padding", padding, ndim, 0)
    sizes = [(i - 1) * s - 2 * p + k for i, k, s, p in zip(shape[-ndim:], kernel, stride, pads, strict=True)]
    if output_size is not None:
        wanted = plain(function, "output_size", output_size)
        if type(wanted) is not tuple:
            raise TypeError(f"{function}: output_size must be a tuple of integers or None, got {output_size!r}")
        if len(wanted) == len(shape):
            wanted = wanted[-ndim:]
        if len(wanted) != ndim:
            _value_error(function, f"output_size must have {ndim} or {len(shape)} elements", output_size)
        for size, default, s in zip(wanted, sizes, stride, strict=True):
            if abs(_integer(function, "output_size", size, 1) - default) >= s:
                rule = f"output_size must differ from {tuple(sizes)} by less than the stride"
                _value_error(function, rule, output_size)
        sizes = wanted
    if min(sizes) < 1:
        _value_error(function, "padding must leave the output an element of each dimension", padding)
    _check_bytes(function, "the output", 1, math.prod(shape[:-ndim]), sizes)
    return tuple(sizes)


def channels_last(function: str, layout: Any) -> bool:
    """Check the name of a layout and return whether it has the channels last."""
    if layout is not None and not isinstance(layout, str):
        raise TypeError(f"{function}: layout must be None or a string, got {layout!r}")
    if layout not in (None, "channels_last"):
        _value_error(function, "layout must be None or 'channels_last'", repr(layout))
    return layout is not None


def check_norm(function: str, norm_type: Any) -> float:
    """Return the exponent of a norm, finite and above 0."""
    if not isinstance(norm_type, Real) or type(norm_type) is bool:
        raise TypeError(f"{function}: norm_type must be a number, got {norm_type!r}")
    if not 0 < norm_type < math.inf:
        _value_error(function, "norm_type must be finite and above 0", norm_type)
    return float(norm_type)


def check_order(function: str, order: Any) -> None:
    """Check the order of the columns of unfolded images."""
    if order not in (None, "batch_outer", "batch_inner"):
        _value_error(function, "order must be None, 'batch_outer' or 'batch_inner'", repr(order))


def plain(function: str, name: str, value: Any) -> Any:
    """Return an option as int, str or tuple of these, so that it is hashable and equal keys have equal meaning.

    Any integer becomes an int and any list a tuple; bools and floats, equal to ints and of the same hash, are refused.
    """
    kind = type(value)
    if kind is int or kind is str:
        return value
    if isinstance(value, (tuple, list)):
        for item in value:
            if type(item) is not int:
                return tuple([plain(function, name, item) for item in value])
        return tuple(value)
    if kind is not bool:
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{function}: {name} must be an integer or a tuple of integers, got {value!r}")


def activation_code(function: str, activation: Any) -> tuple[int, float]:
    """Return the kernels' code and slope of an activation."""
    if activation is None:
        return 0, 0.0
    if isinstance(activation, str) and activation in ACTIVATIONS and activation != "leaky_relu":
        return ACTIVATIONS[activation], 0.0
    match activation:
        case ("leaky_relu", Real() as slope) if type(slope) is not bool and math.isfinite(slope):
            return ACTIVATIONS["leaky_relu"], float(slope)
    names = ", ".join(repr(name) for name in ACTIVATIONS if name != "leaky_relu")
    error = ValueError if isinstance(activation, (str, tuple)) else TypeError
    raise error(f'{function}: activation must be None, {names} or ("leaky_relu", slope), got {activation!r}')


def check_algorithm(function: str, algorithm: Any) -> None:
    """Check the name of an algorithm."""
    if not isinstance(algorithm, str):
        raise TypeError(f"{function}: algorithm must be a string, got {algorithm!r}")
    if algorithm not in ALGORITHMS:
        _value_error(function, f"algorithm must be one of {', '.join(map(repr, ALGORITHMS))}", repr(algorithm))


def check_padding_mode(function: str, mode: Any) -> None:
    """Check what a convolution's padding is to hold."""
    if not isinstance(mode, str):
        raise TypeError(f"{function}: padding_mode must be a string, got {mode!r}")
    if mode not in PADDING_MODES:
        _value_error(function, f"padding_mode must be one of {', '.join(map(repr, PADDING_MODES))}", repr(mode))


def convolution_rank(function: str, op: Any) -> tuple[int, bool]:
    """Return the number of spatial dimensions of the convolution that `op` names, and whether it is transposed."""
    ranks = {f"{name}{ndim}d": (ndim, name != "conv") for name in ("conv", "conv_transpose") for ndim in (1, 2, 3)}
    if op not in ranks:
        _value_error(function, f"op must be one of {', '.join(map(repr, ranks))}", repr(op))
    return ranks[op]


def check_without(function: str, name: str, value: Any, op: str) -> None:
    """Check that an option which an operator lacks is 0."""
    if value != 0:
        _value_error(function, f"{name} must be 0 for {op}", value)


def weight_rank(function: str, shape: tuple[int, ...]) -> int:
    """Return the number of spatial dimensions of a convolution's weights."""
    if not 3 <= len(shape) <= 5:
        _value_error(function, "weight must have shape (oc, ic // groups, *kernel), of 3 to 5 dimensions", shape)
    return len(shape) - 2


def check_algorithm_serves(function: str, algorithm: str, g: ConvGeometry) -> None:
    """Check that an algorithm that was asked for can compute a convolution."""
    if algorithm not in ("auto", *g.algorithms):
        _value_error(function, f"algorithm must be one of {', '.join(map(repr, g.algorithms))} here", repr(algorithm))


def check_flag(function: str, name: str, value: Any) -> None:
    """Check that an option is a bool; 1, say, would be an argument in the wrong place."""
    if type(value) is not bool:
        raise TypeError(f"{function}: {name} must be a bool, got {value!r}")


def check_divisor(function: str, divisor: Any) -> int:
    """Return a divisor override as int, not 0."""
    divisor = plain(function, "divisor_override", divisor)
    if type(divisor) is not int:
        raise TypeError(f"{function}: divisor_override must be an integer or None, got {divisor!r}")
    if not 0 < abs(divisor) <= MAX_INT:
        _value_error(function, f"divisor_override must not be 0 and its magnitude at most {MAX_INT}", divisor)
    return divisor


def check_shape(function: str, name: str, shape: tuple[int, ...], expected: tuple[int, ...], of: str) -> None:
    """Check a shape against `expected`, that of `of`."""
    if shape != expected:
        _value_error(function, f"{name}.shape must equal {of} = {expected}", shape)


def check_input_shape(
    function: str, ndim: int, shape: Any, channels: str = "c", layout: str | None = None
) -> tuple[int, ...]:
    """Return the shape of an input, batched or not, as a tuple of `ndim` + 1 or `ndim` + 2 ints."""
    sizes = plain(function, "input_shape", shape)
    if type(sizes) is not tuple or any(type(size) is not int for size in sizes):
        raise TypeError(f"{function}: input_shape must be a tuple of integers, got {shape!r}")
    if len(sizes) not in (ndim + 1, ndim + 2) or min(sizes) < 0:
        last = channels_last(function, layout)
        axes = f"{_AXES[ndim]}, {channels}" if last else f"{channels}, {_AXES[ndim]}"
        rule = f"input_shape must be (n, {axes}), or ({axes}) unbatched, of sizes >= 0"
        _value_error(function, rule, shape)
    return sizes


def check_mask(function: str, output_mask: Any) -> None:
    """Check that three bools say which gradients are wanted."""
    if not isinstance(output_mask, (tuple, list)) or any(type(wanted) is not bool for wanted in output_mask):
        raise TypeError(f"{function}: output_mask must be a tuple of three bools, got {output_mask!r}")
    if len(output_mask) != 3:
        _value_error(function, "output_mask must have three elements", len(output_mask))


def check_outs(function: str, out: Any, output_mask: tuple[bool, bool, bool]) -> tuple[Any, Any, Any]:
    """Return the three destinations of a backward pass, each an array or None, None where it is masked out."""
    if not isinstance(out, (tuple, list)):
        raise TypeError(f"{function}: out must be a tuple of three arrays or None, got {type(out).__name__}")
    if len(out) != 3:
        _value_error(function, "out must have three elements", len(out))
    for i, (array, wanted) in enumerate(zip(out, output_mask, strict=True)):
        if array is not None and not wanted:
            _value_error(function, f"out[{i}] must be None where output_mask[{i}] is False", type(array).__name__)
    return tuple(out)


def array_error(function: str, name: str, value: Any, reason: object = None) -> NoReturn:
    """Refuse what is no array in the CPU's memory."""
    because = f": {reason}" if reason else ""
    raise TypeError(f"{function}: {name} must be an array in CPU memory, got {type(value).__name__}{because}")


def check_dtype(function: str, name: str, dtype: Any) -> None:
    """Check that a dtype is float32 or float64, of any byte order."""
    if dtype.char not in "fd":
        hint = "" if dtype.kind not in "biuf" else f"; cast with {name}.astype(np.float32)"
        raise TypeError(f"{function}: {name}.dtype must be float32 or float64, got {dtype}{hint}")


def check_same_dtype(function: str, name: str, dtype: Any, expected: Any, of: str = "x") -> None:
    """Check that a dtype is, but for its byte order, that of the argument `of`."""
    if dtype.char != expected.char:
        hint = f"cast with {name}.astype(np.{expected.name})"
        raise TypeError(f"{function}: {name}.dtype must equal {of}.dtype = {expected.name}, got {dtype.name}; {hint}")


def check_indices_dtype(function: str, dtype: Any) -> None:
    """Check that indices are int64, of any byte order."""
    if dtype.kind != "i" or dtype.itemsize != 8:
        hint = "cast with indices.astype(np.int64)"
        raise TypeError(f"{function}: indices.dtype must be int64, got {dtype}; {hint}")


def check_out(function: str, name: str, out: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Check that a destination has the result's shape and type and takes it."""
    if out.dtype.char != dtype.char:
        raise TypeError(f"{function}: {name}.dtype must equal the result's, {dtype.name}, got {out.dtype}")
    check_shape(function, name, out.shape, shape, "the result's shape")
    if not out.flags.writeable:
        _value_error(function, f"{name} must be writeable", "a read-only array")


def check_inplace(function: str, x: Any, out: Any, array_type: type) -> None:
    """Check that `x` may be its own destination."""
    if not isinstance(x, array_type):
        raise TypeError(f"{function}: x must be a numpy.ndarray where inplace is True, got {type(x).__name__}")
    if out is not None and out is not x:
        _value_error(function, "out must be None or x where inplace is True", "another array")


def overlap_error(function: str, name: str, other: str) -> NoReturn:
    """Refuse a destination that shares memory with another argument."""
    _value_error(function, f"{name} must not share memory with {other}", "overlapping arrays")


def indices_error(function: str, outside: int, inside: str = "their window") -> NoReturn:
    """Refuse indices that no pool of this geometry gives."""
    _value_error(function, f"indices must each lie inside {inside}", f"{outside} outside")


def linear_sizes(function: str, x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (rows, in_features, out_features) of ``x @ weight.T``."""
    if len(weight_shape) != 2 or min(weight_shape) < 1:
        _value_error(function, "weight must have shape (out_features, in_features), both at least 1", weight_shape)
    if not x_shape:
        _value_error(function, "x must have shape (..., in_features)", x_shape)
    out_features, in_features = weight_shape
    if x_shape[-1] != in_features:
        _value_error(function, f"weight.shape[1] must equal x.shape[-1] = {x_shape[-1]}", in_features)
    _check_bytes(function, "the output", 1, out_features, x_shape[:-1])
    return math.prod(x_shape[:-1]), in_features, out_features


def norm_sizes(function: str, x_shape: tuple[int, ...], training: bool) -> tuple[int, int]:
    """Return the number of channels of ``(n, c, ...)`` and that of the values of each."""
    if len(x_shape) < 2 or x_shape[1] < 1:
        _value_error(function, "x must have shape (n, c, ...), c at least 1", x_shape)
    count = math.prod(x_shape) // x_shape[1]
    if training and count < 2:
        _value_error(function, "x must have more than one value a channel where training is True", f"shape {x_shape}")
    return x_shape[1], count


def check_axis(function: str, axis: Any, ndim: int) -> int:
    """Return an axis of an array as an int from 0."""
    number = plain(function, "axis", axis)
    if type(number) is not int:
        raise TypeError(f"{function}: axis must be an integer, got {axis!r}")
    if not -ndim <= number < ndim:
        _value_error(function, f"axis must be one of the {ndim} of x", number)
    return number % ndim


def check_number(function: str, name: str, value: Any) -> float:
    """Return a finite number >= 0."""
    if type(value) is bool or not isinstance(value, Real):
        raise TypeError(f"{function}: {name} must be a number, got {value!r}")
    if not 0 <= value < math.inf:
        _value_error(function, f"{name} must be finite and at least 0", value)
    return float(value)


def check_count(function: str, name: str, value: Any) -> int:
    """Return an integer >= 1."""
    return _integer(function, name, value, 1)


def _value_error(function: str, rule: str, got: object) -> NoReturn:
    raise ValueError(f"{function}: {rule}, got {got}")


def _integer(function: str, name: str, value: Any, minimum: int) -> int:
    number = plain(function, name, value)
    if type(number) is not int:
        raise TypeError(f"{function}: {name} must be an integer, got {value!r}")
    if number < minimum:
        _value_error(function, f"{name} must be at least {minimum}", value)
    if number > MAX_INT:
        _value_error(function, f"{name} must be at most {MAX_INT}", value)
    return number


def _per_dimension(function: str, name: str, value: Any, ndim: int, minimum: int = 1) -> tuple[int, ...]:
    """Return one int >= `minimum` per dimension; an int or a tuple of one stands for all."""
    numbers = plain(function, name, value)
    if type(numbers) is not tuple:
        return (_integer(function, name, numbers, minimum),) * ndim
    if len(numbers) == 1:
        numbers *= ndim
    if len(numbers) != ndim:
        _value_error(function, f"{name} must be an integer or have {ndim} elements", value)
    return tuple([_integer(function, name, number, minimum) for number in numbers])


def _pads(function: str, padding: Any, size, kernel, stride, dilation) -> tuple[tuple[int, int], ...]:
    """Return one (before, after) pair per dimension."""
    ndim = len(size)
    pads = plain(function, "padding", padding)
    if pads == "valid":
        return ((0, 0),) * ndim
    if pads in ("same", "same_lower"):
        totals = [
            max((-(-i // s) - 1) * s + (k - 1) * d + 1 - i, 0)
            for i, k, s, d in zip(size, kernel, stride, dilation, strict=True)
        ]
        pairs = [(total // 2, total - total // 2) for total in totals]
        return tuple(pairs if pads == "same" else [pair[::-1] for pair in pairs])
    if type(pads) is str:
        _value_error(function, 'padding must be "valid", "same" or "same_lower" where it is a string', repr(padding))
    if type(pads) is int:
        pads = (pads,)
    if len(pads) == 1:
        pads *= ndim
    pairs = [(pair, pair) if type(pair) is int else pair for pair in pads]
    if len(pairs) != ndim or any(type(pair) is str or len(pair) != 2 for pair in pairs):
        rule = f"padding must be an integer, {ndim} integers or {ndim} (before, after) pairs"
        _value_error(function, rule, repr(padding))
    return tuple([tuple([_integer(function, "padding", side, 0) for side in pair]) for pair in pairs])


def _three_dimensional(size, kernel, stride, dilation, pad, out) -> Iterable[tuple]:
    """Prepend the dimensions that (d, h, w) has and these lack, and drop the steps that are never taken."""
    lacking = 3 - len(size)
    stride = [s if o > 1 else 1 for s, o in zip(stride, out, strict=True)]
    dilation = [d if k > 1 else 1 for d, k in zip(dilation, kernel, strict=True)]
    values = (size, 1), (kernel, 1), (stride, 1), (dilation, 1), (pad, (0, 0)), (out, 1)
    return [(fill,) * lacking + tuple(value) for value, fill in values]


def _whole_windows(function: str, size, kernel, stride, dilation, pad, window: str, of: str) -> list[int]:
    """Return how many windows lie in the padded image, at least one per dimension; `window` and `of` name sizes."""
    out = []
    steps = zip(size, kernel, stride, dilation, pad, strict=True)
    for axis, (i, k, s, d, (before, after)) in enumerate(steps, -len(size)):
        padded, extent = before + i + after, (k - 1) * d + 1
        if extent > padded:
            rule = f"({window.format(axis)} - 1) * dilation + 1 must be at most the padded {of}[{axis}] = {padded}"
            _value_error(function, rule, extent)
        out.append((padded - extent) // s + 1)
    return out


def _check_bytes(function: str, what: str, n: int, channels: int, size, pad=()) -> None:
    """Check that every offset into an array is a 64-bit number, in bytes too; no empty dimension excuses it."""
    extents = [before + i + after for i, (before, after) in zip(size, pad or ((0, 0),) * len(size), strict=True)]
    if math.prod(max(extent, 1) for extent in (n, channels, *extents)) > MAX_BYTES // MAX_ITEMSIZE:
        _value_error(function, f"{what} must fit in 2**63 - 1 bytes", f"shape {(n, channels, *extents)}")
