"""Sizes, padding and the normalisation of options: pure arithmetic, against its definition."""

import dataclasses
import enum
import itertools

import numpy as np
import pytest

from fastconv.geometry import conv_geometry, plain, pool_geometry


class Two(enum.IntEnum):
    TWO = 2


def conv(size, kernel, n=1, **options):
    """A convolution of one channel, of as many dimensions as ``size`` has."""
    return conv_geometry("conv", len(size), (n, 1, *size), (1, 1, *kernel), **options)


def pool(size, kernel, n=1, **options):
    return pool_geometry("pool", len(size), (n, 1, *size), kernel, **options)


def window_starts(size, kernel, stride, before, after, dilation, ceil_mode=False):
    """Where windows start, found by sliding one: inside, or (``ceil_mode``) as long as the one before left a rest."""
    extent, starts = (kernel - 1) * dilation + 1, []
    for start in itertools.count(-before, stride):
        hangs_over = start + extent > size + after
        if hangs_over and not (ceil_mode and start < size and (not starts or starts[-1] + extent < size + after)):
            return starts
        starts.append(start)
        if hangs_over:
            return starts
    raise AssertionError


@pytest.mark.parametrize("padding", [(0, 0), (2, 2), (0, 1), (3, 1)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_output_has_one_element_per_window(kernel, stride, dilation, padding):
    extent = (kernel - 1) * dilation + 1
    for size in range(1, 14):
        options = {"stride": stride, "padding": (padding,), "dilation": dilation}
        if extent <= size + sum(padding):
            expected = len(window_starts(size, kernel, stride, *padding, dilation))
            assert conv((size,), (kernel,), **options).out_size == (1, 1, expected)
        else:
            with pytest.raises(ValueError, match="at most the padded"):
                conv((size,), (kernel,), **options)


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (0, 1), (2, 0)])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_ceil_mode_keeps_a_window_that_starts_inside(kernel, stride, padding):
    for size in range(1, 14):
        before, after = padding
        starts = window_starts(size, kernel, stride, before, after, 1, ceil_mode=True)
        if max(padding) >= kernel:
            continue
        if size + before + after + stride - 1 < kernel:  # the window would miss more than a stride
            with pytest.raises(ValueError, match="at most the padded"):
                pool((size,), kernel, stride=stride, padding=(padding,), ceil_mode=True)
        else:
            geometry = pool((size,), kernel, stride=stride, padding=(padding,), ceil_mode=True)
            assert geometry.out_size == (1, 1, len(starts))


def test_pool_sizes_equal_torch(torch):
    cases = itertools.product(range(1, 10), (1, 2, 3, 4), (1, 2, 3, 5), (0, 1, 2), (1, 2), (False, True))
    for size, kernel, stride, padding, dilation, ceil_mode in cases:
        if padding > kernel // 2:
            continue
        options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
        try:
            expected = torch.nn.functional.max_pool1d(torch.zeros(1, 1, size), kernel, **options).shape[-1]
        except RuntimeError:
            expected = None
        try:
            actual = pool((size,), kernel, **options).out_size[-1]
        except ValueError:
            actual = None
        empty_window = padding and size < dilation  # PyTorch reads outside the image there
        assert actual == expected or empty_window, (size, kernel, options)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_same_keeps_the_size_over_the_stride(kernel, stride, dilation):
    for size in range(1, 12):
        options = {"stride": stride, "dilation": dilation}
        same, lower = (conv((size,), (kernel,), padding=padding, **options) for padding in ("same", "same_lower"))
        assert same.out_size == lower.out_size == (1, 1, -(-size // stride))
        before, after = same.pad[-1]
        assert lower.pad[-1] == (after, before)
        assert after - before in (0, 1)
        if before + after:  # no more padding than the last window needs
            assert (same.out_size[-1] - 1) * stride + (kernel - 1) * dilation + 1 == before + size + after


@pytest.mark.parametrize(
    ("padding", "pad"),
    [
        (1, ((1, 1), (1, 1))),
        (np.int64(1), ((1, 1), (1, 1))),
        (np.array(1), ((1, 1), (1, 1))),
        ((2,), ((2, 2), (2, 2))),
        ([1, 2], ((1, 1), (2, 2))),
        (((0, 1), (2, 3)), ((0, 1), (2, 3))),
        ([[0, 1], [2, np.uint8(3)]], ((0, 1), (2, 3))),
        (((0, 1), 2), ((0, 1), (2, 2))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((0, 1), (0, 1))),
        ("same_lower", ((1, 0), (1, 0))),
    ],
)
def test_padding(padding, pad):
    assert conv((5, 5), (2, 2), padding=padding).pad[1:] == pad
    assert pool((5, 5), 4, stride=1, padding=padding).pad[1:] == pad or isinstance(padding, str)


@pytest.mark.parametrize("value", [2, np.int32(2), (2,), [2, 2], (2, np.int64(2)), np.array(2), Two.TWO])
def test_integers(value):
    geometry = conv((9, 9), (2, 2), stride=value, dilation=value)
    assert geometry.stride == geometry.dilation == (1, 2, 2)
    assert all(type(number) is int for number in geometry.stride)
    assert pool((9, 9), value).kernel == pool((9, 9), value).stride == (1, 2, 2)


@pytest.mark.parametrize(
    "value", [True, 1.0, np.float32(1), np.True_, None, "1", {1, 2}, (1, True), (1, 2.0), ((1, 1), 1)]
)
def test_what_is_no_integer(value):
    for name in ("stride", "dilation", "groups"):
        with pytest.raises(TypeError, match=rf"^conv: {name} must be an integer"):
            conv((9, 9), (2, 2), **{name: value})


@pytest.mark.parametrize("value", [True, 1.0, None, {1}, (1, True), ((1, 1), (0, 1.0)), ((1, 1), (1, (1, 1)))])
def test_what_is_no_padding(value):
    with pytest.raises(TypeError, match=r"^conv: padding must be an integer"):
        conv((9, 9), (2, 2), padding=value)


@pytest.mark.parametrize(
    "value", ["full", "SAME", (), (1, 2, 3), ((1, 2), (1, 2), (1, 2)), ((1,), (1,)), ("same", 1), -1]
)
def test_what_is_the_wrong_padding(value):
    with pytest.raises(ValueError, match=r"^conv: padding must be .*, got "):
        conv((9, 9), (2, 2), padding=value)


def test_plain_keys_are_equal_only_if_they_mean_the_same():
    assert plain("f", "stride", [1, np.int64(2)]) == (1, 2)
    assert plain("f", "padding", [[0, 1], "same"]) == ((0, 1), "same")
    for value in (True, (1, True), 1.0, [[1.0, 2]]):
        with pytest.raises(TypeError, match=r"^f: stride must be an integer or a tuple of integers, got "):
            plain("f", "stride", value)


def test_dimensions_that_are_lacking_are_neutral():
    geometry = conv_geometry("conv1d", 1, (2, 4, 9), (6, 2, 3), 2, 1, 1, 2)
    assert geometry == conv_geometry("conv1d", 1, (2, 4, 9), (6, 2, 3), (2,), ((1, 1),), [1], np.int32(2))
    assert dataclasses.astuple(geometry)[5:] == (
        (1, 1, 9),
        (1, 1, 3),
        (1, 1, 2),
        (1, 1, 1),
        ((0, 0), (0, 0), (1, 1)),
        (1, 1, 5),
    )
    assert (geometry.x_shape, geometry.weight_shape, geometry.out_shape) == ((2, 4, 9), (6, 2, 3), (2, 6, 5))
    assert geometry.macs == 2 * 6 * 5 * 2 * 3


def test_three_dimensions():
    geometry = conv_geometry("conv3d", 3, (2, 3, 5, 6, 7), (4, 3, 1, 2, 3), (1, 2, 3), (0, 1, (2, 0)))
    assert geometry.out_shape == (2, 4, 5, 4, 3)
    assert geometry.pad == ((0, 0), (1, 1), (2, 0))
    geometry = pool_geometry("max_pool3d", 3, (2, 3, 5, 6, 7), (1, 2, 3))
    assert (geometry.x_shape, geometry.out_shape, geometry.planes) == ((2, 3, 5, 6, 7), (2, 3, 5, 3, 2), 6)


def test_empty_arrays():
    assert conv((5, 5), (3, 3), n=0).out_shape == (0, 1, 3, 3)
    assert conv((0, 5), (3, 3), padding=((1, 2), 0)).out_shape == (1, 1, 1, 3)
    assert pool((4, 4), 2, n=0).out_shape == (0, 1, 2, 2)
    with pytest.raises(ValueError, match=r"^conv: .* at most the padded x.shape\[-2\] = 2, got 3"):
        conv((0, 5), (3, 3), padding=1)
    with pytest.raises(
        ValueError, match=r"^pool: x.shape must have no spatial dimension of size 0, got \(1, 1, 0, 5\)"
    ):
        pool((0, 5), 2, padding=1)


def test_a_window_of_padding_alone():
    """Taps at -1 and 1 straddle an image of one pixel; at -2, 0 they do not."""
    with pytest.raises(
        ValueError, match=r"^pool: dilation must leave each window an element of x.shape\[-1\] = 1, got 2"
    ):
        pool((1,), 2, stride=1, padding=1, dilation=2)
    assert pool((1,), 2, stride=1, padding=((2, 0),), dilation=2).out_size == (1, 1, 1)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((2**31, 2**31), {}),
        ((4, 4), {"padding": 2**31 - 1}),
        ((4, 4), {"padding": ((0, 2**31 - 1), 2**30)}),
    ],
)
@pytest.mark.parametrize("n", [0, 1])
def test_products_that_overflow(size, options, n):
    with pytest.raises(ValueError, match=r"^conv: the padded input must fit in 2\*\*63 - 1 bytes, got shape \("):
        conv(size, (1, 1), n=n, **options)


def test_output_that_overflows():
    with pytest.raises(ValueError, match=r"^conv2d: the output must fit in 2\*\*63 - 1 bytes"):
        conv_geometry("conv2d", 2, (1, 1, 2**20, 2**20), (2**21, 1, 1, 1))


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_numbers_that_overflow(name):
    with pytest.raises(ValueError, match=rf"^conv: {name} must be at most 2147483647, got {2**62}"):
        conv((4, 4), (1, 1), **{name: 2**62})


def test_steps_that_are_never_taken():
    geometry = conv((4, 4), (1, 2), stride=(2**31 - 1, 2), dilation=(2**31 - 1, 2))
    assert (geometry.out_size, geometry.stride, geometry.dilation) == ((1, 1, 1), (1, 1, 1), (1, 1, 2))
    assert pool((4, 4), 2, stride=(2, 2**31 - 1)).stride == (1, 2, 1)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 1), (4, 0), (2, 7)])
def test_taps_that_meet_only_padding_are_left_out(before, after):
    some = 0
    for size, kernel, stride, dilation in itertools.product((1, 2, 3, 5), (1, 2, 3, 6), (1, 2, 3, 7), (1, 2, 5)):
        if dilation * (kernel - 1) >= size + before + after:
            continue
        g = conv((size,), (kernel,), stride=stride, dilation=dilation, padding=((before, after),))
        starts = range(-before, -before + stride * g.out_size[2], stride)
        live = [k for k in range(kernel) if any(0 <= start + k * dilation < size for start in starts)]
        first, rest = g.live
        kept = range(first[2], first[2] + rest.kernel[2])
        assert set(live) <= set(kept) <= set(range(kernel))
        assert rest.pad[2] == (before - first[2] * dilation, after - (kernel - 1 - kept[-1]) * dilation)
        assert min(rest.pad[2]) >= 0
        assert dataclasses.replace(rest, kernel=g.kernel, dilation=g.dilation, pad=g.pad) == g
        assert rest.dilation[2] == (g.dilation[2] if len(kept) > 1 else 1)
        some += len(kept) < kernel
    assert (some > 0) == (before + after > 1)
