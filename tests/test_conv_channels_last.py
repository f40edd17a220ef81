"""Convolution of arrays whose channels come last: against the oracle, PyTorch, and the channels first."""

import numpy as np
import pytest
from tolerance import activation_bound, assert_close, bound

import fastconv
from fastconv import functional, reference

LAST = {"layout": "channels_last"}
CASES = {  # name: x, weight, options
    "1x1": ((2, 5, 6, 19), (33, 19, 1, 1), {}),
    "1x1 in pairs": ((2, 5, 6, 7), (3, 7, 1, 1), {"stride": (1, 1), "padding": "valid"}),
    "1x1 with a stride": ((2, 5, 6, 7), (3, 7, 1, 1), {"stride": 2}),
    "1x1, padded": ((2, 5, 6, 7), (3, 7, 1, 1), {"padding": 1}),
    "1x1 in groups": ((2, 5, 6, 8), (4, 4, 1, 1), {"groups": 2}),
    "3x3": ((2, 8, 9, 17), (5, 17, 3, 3), {"padding": 1}),
    "3x3, reflected": ((2, 8, 9, 3), (5, 3, 3, 3), {"padding": 1, "padding_mode": "reflect"}),
    "depthwise": ((2, 8, 9, 17), (17, 1, 3, 3), {"padding": 1, "groups": 17}),
    "unbatched": ((8, 9, 4), (5, 4, 3, 3), {"stride": 2}),
    "unbatched 1x1": ((8, 9, 4), (5, 4, 1, 1), {}),
    "no image": ((0, 8, 9, 4), (5, 4, 1, 1), {}),
    "no image, 3x3": ((0, 8, 9, 4), (5, 4, 3, 3), {}),
    "1-D": ((2, 30, 4), (5, 4, 3), {"dilation": 2}),
    "1-D 1x1": ((2, 30, 4), (5, 4, 1), {}),
    "3-D": ((2, 4, 5, 6, 3), (5, 3, 2, 2, 2), {"padding": 1}),
}


DEPTHWISE = {  # size and channels of x, kernel, options: each channel has one filter, and nothing is copied
    "3x3, runs of three": ((11, 12, 40), (3, 3), {"padding": 1}),
    "3x3, half the outputs": ((11, 21, 33), (3, 3), {"padding": 1, "stride": 2}),
    "5x5": ((9, 13, 16), (5, 5), {"padding": 2}),
    "5x5, half the outputs": ((12, 22, 18), (5, 5), {"padding": 2, "stride": 2}),
    "7x7, channels past a block of vectors": ((9, 20, 150), (7, 7), {"padding": 3}),
    "7x7, half the outputs": ((9, 23, 17), (7, 7), {"padding": 3, "stride": 2}),
    "4x4 and 2x2 taps of a residue": ((8, 30, 7), (4, 4), {"padding": 1, "stride": 2}),
    "a row of six, which are no run": ((3, 20, 5), (2, 6), {}),
    "a row of nine, longer than a run": ((3, 20, 5), (1, 9), {"padding": (0, 4)}),
    "dilation: taps are no neighbours": ((12, 15, 9), (3, 3), {"padding": 2, "dilation": 2}),
    "stride 3, more than the filter: gradients have holes": ((12, 31, 6), (2, 2), {"stride": 3}),
    "strides differ": ((12, 15, 6), (3, 3), {"stride": (1, 2), "padding": (2, 0)}),
    "nothing but border": ((2, 2, 5), (5, 5), {"padding": 2}),
    "more padding than image": ((2, 3, 5), (3, 3), {"padding": ((4, 1), (3, 5))}),
    "four to seven outputs, whose tiles overlap": ((6, 7, 70), (3, 3), {"padding": 1}),
    "1x1": ((5, 9, 18), (1, 1), {}),
    "1-D": ((40, 18), (3,), {"padding": "same"}),
    "3-D": ((3, 4, 12, 18), (3, 2, 3), {"padding": 1, "stride": (2, 1, 1)}),
}


def functions(weight):
    names = f"conv{len(weight) - 2}d", f"conv{len(weight) - 2}d_backward"
    return *(getattr(fastconv, name) for name in names), *(getattr(reference, name) for name in names)


@pytest.fixture(params=CASES)
def case(request, dtype, rng):
    x, weight, options = CASES[request.param]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in (x, weight, weight[:1])]
    return arrays, options | LAST, functions(weight)


@pytest.mark.parametrize("fused", [False, True])
def test_output(case, fused, isa, rng):
    (x, weight, bias), options, (forward, _, oracle, _) = case
    options = options | {"algorithm": "gemm"} | ({"activation": "relu"} if fused else {})
    if fused:
        options["residual"] = rng.standard_normal(forward(x, weight, **options).shape).astype(x.dtype)
    y = forward(x, weight, bias, **options)
    magnitudes = {name: np.abs(v) if name == "residual" else v for name, v in options.items() if name != "algorithm"}
    expected = oracle(x, weight, bias, **{**magnitudes, **{k: options[k] for k in magnitudes}}, dtype=np.float64)
    magnitude = oracle(*map(np.abs, (x, weight, bias)), **magnitudes, dtype=np.float64)
    terms = weight[0].size + 2
    assert_close(y, expected, bound("gemm", x.dtype, terms, magnitude), x.dtype, "output")
    out = np.full_like(y, np.nan)
    assert forward(x, weight, bias, **options, out=out) is out
    np.testing.assert_array_equal(out, y)
    if np.prod(weight.shape[2:]) > 1:
        packed = fastconv.pack_weight(
            weight, np.moveaxis(x, -1, 1 - weight.ndim).shape, groups=options.get("groups", 1)
        )
        np.testing.assert_array_equal(forward(x, packed, bias, **options), y)


def test_gradients(case, isa, rng):
    (x, weight, _), options, (forward, backward, _, oracle) = case
    g = rng.standard_normal(forward(x, weight, **options).shape).astype(x.dtype)
    expected = oracle(g, x, weight, **options, dtype=np.float64)
    magnitudes = oracle(*map(np.abs, (g, x, weight)), **options, dtype=np.float64)
    options["algorithm"] = "gemm"
    actual = backward(g, x, weight, **options)
    pixels = g.size // max(1, g.shape[-1])
    for a, e, m, terms in zip(actual, expected, magnitudes, (weight[:, 0].size, pixels, pixels), strict=True):
        assert_close(a, e, bound("gemm", x.dtype, terms + 1, m), x.dtype, "gradient")
    for i, out in enumerate(map(np.empty_like, actual)):
        mask = [j == i for j in range(3)]
        into = [out if m else None for m in mask]
        got = backward(g, x, weight, **options, output_mask=mask, out=into)
        assert got[i] is out
        assert [a is None for a in got] == [not m for m in mask]
        np.testing.assert_array_equal(out, backward(g, x, weight, **options, output_mask=mask)[i])


@pytest.fixture(params=DEPTHWISE)
def depthwise(request, dtype, rng):
    size, kernel, options = DEPTHWISE[request.param]
    channels = size[-1]
    shapes = (2, *size), (channels, 1, *kernel), (channels,)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    return arrays, options | LAST | {"groups": channels}, functions(shapes[1])


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_depthwise_output(depthwise, activation, isa, rng):
    (x, weight, bias), options, (forward, _, oracle, _) = depthwise
    residual = rng.standard_normal(forward(x, weight, **options).shape).astype(x.dtype)
    expected = oracle(x, weight, bias, **options, residual=residual, activation=activation, dtype=np.float64)
    magnitude = oracle(*map(np.abs, (x, weight, bias)), **options, residual=np.abs(residual), dtype=np.float64)
    limit = bound("direct", x.dtype, weight[0].size + 2, magnitude)
    assert residual.shape == expected.shape
    actual = forward(x, weight, bias, **options, residual=residual, activation=activation)
    assert_close(actual, expected, activation_bound(activation, x.dtype, expected, limit), x.dtype, "output")


@pytest.mark.parametrize("special", [None, np.nan, np.inf])
def test_depthwise_gradients(depthwise, special, isa, rng):
    (x, weight, _), options, (forward, backward, _, oracle) = depthwise
    g = rng.standard_normal(forward(x, weight, **options).shape).astype(x.dtype)
    magnitudes = oracle(*map(np.abs, (g, x, weight)), **options, dtype=np.float64)
    if special is not None:  # in a corner, where taps meet padding, which is multiplied
        g[0].flat[0] = special
    expected = oracle(g, x, weight, **options, dtype=np.float64)
    pixels = g.size // g.shape[-1]
    for a, e, m, terms in zip(
        backward(g, x, weight, **options), expected, magnitudes, (weight[0].size, pixels, pixels), strict=True
    ):
        assert_close(a, e, bound("direct", x.dtype, terms + 1, m), x.dtype, "gradient")


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "weight"])
def test_depthwise_output_of_what_is_not_finite(depthwise, special, where, isa):
    (x, weight, bias), options, (forward, _, oracle, _) = depthwise
    magnitude = oracle(*map(np.abs, (x, weight, bias)), **options, dtype=np.float64)
    (x if where == "x" else weight).flat[1] = special
    expected = oracle(x, weight, bias, **options, dtype=np.float64)
    limit = bound("direct", x.dtype, weight[0].size + 1, magnitude)
    assert_close(forward(x, weight, bias, **options), expected, limit, x.dtype, "output")


def test_depthwise_masks_and_destinations(depthwise, isa, rng):
    (x, weight, bias), options, (forward, backward, _, _) = depthwise
    y = forward(x, weight, bias, **options)
    out = np.full_like(y, np.nan)
    assert forward(x, weight, bias, **options, out=out) is out
    np.testing.assert_array_equal(out, y)
    packed = fastconv.pack_weight(weight, np.moveaxis(x, -1, 1).shape, padding="same", groups=len(weight))
    np.testing.assert_array_equal(forward(x, packed, bias, **options), y)
    together = backward(y, x, weight, **options)
    for i, expected in enumerate(together):
        mask = [j == i for j in range(3)]
        into = [np.full_like(expected, np.nan) if m else None for m in mask]
        alone = backward(y, x, weight, **options, output_mask=mask, out=into)
        assert alone[i] is into[i]
        np.testing.assert_array_equal(alone[i], expected)


WINDOWS = {  # x, weight, options: windows that are read where they lie, or in rows that were copied with their padding
    "one channel": ((3, 9, 11, 1), (5, 1, 3, 3), {"padding": 1}),
    "3 channels, half the outputs": ((2, 15, 16, 3), (17, 3, 3, 3), {"padding": 1, "stride": 2}),
    "no padding": ((2, 9, 10, 5), (50, 5, 3, 3), {}),
    "stride 3, 7x7": ((2, 19, 22, 3), (17, 3, 7, 7), {"stride": 3, "padding": 3}),
    "strides differ": ((2, 13, 12, 5), (3, 5, 3, 2), {"stride": (1, 3), "padding": (0, 1)}),
    "padding of each side": ((2, 8, 9, 17), (5, 17, 3, 3), {"padding": ((0, 2), (3, 1))}),
    "padding before alone": ((2, 8, 9, 5), (5, 5, 2, 3), {"padding": ((1, 0), (2, 0)), "stride": 2}),
    "more padding than image": ((2, 2, 3, 5), (17, 5, 3, 3), {"padding": ((4, 1), (3, 5))}),
    "even kernels": ((1, 9, 12, 17), (50, 17, 2, 4), {"padding": "same"}),
    "6x1": ((2, 12, 7, 5), (3, 5, 6, 1), {"padding": (2, 0)}),
    "1x5": ((2, 6, 14, 5), (1, 5, 1, 5), {"padding": (0, 2)}),
    "dilation along w": ((2, 8, 15, 17), (5, 17, 3, 3), {"dilation": (1, 3), "padding": (1, 2)}),
    "dilation along h": ((2, 15, 8, 3), (5, 3, 3, 2), {"dilation": (4, 1), "padding": (3, 1), "stride": 2}),
    "dilation without padding": ((2, 11, 12, 5), (17, 5, 2, 3), {"dilation": 2}),
    "1x1, padded on a side": ((2, 5, 6, 17), (50, 17, 1, 1), {"padding": ((0, 1), (2, 0))}),
    "1x1 with strides": ((2, 9, 10, 50), (17, 50, 1, 1), {"stride": (2, 3)}),
    "rows that are no pixels of the image": ((2, 7, 40, 5), (3, 5, 3, 3), {"stride": (3, 1)}),
    "K past a slice": ((1, 6, 7, 200), (50, 200, 3, 3), {"padding": 1}),
    "K past a slice, with holes": ((1, 7, 8, 200), (5, 200, 3, 3), {"padding": 2, "dilation": 2}),
    "K past two slices of one run": ((1, 6, 5, 1100), (17, 1100, 1, 1), {}),
    "K past a slice, 1x1 with a stride": ((1, 9, 8, 600), (3, 600, 1, 1), {"stride": 2}),
    "panels": ((1, 6, 6, 17), (150, 17, 3, 3), {"padding": 1}),
    "1-D": ((2, 40, 17), (5, 17, 5), {"stride": 2, "padding": ((1, 3),)}),
    "1-D with holes": ((3, 25, 3), (50, 3, 4), {"dilation": 3, "padding": 4}),
    "3-D": ((2, 4, 5, 6, 3), (17, 3, 3, 2, 3), {"padding": (1, 0, 1), "stride": (1, 2, 1)}),
    "3-D without padding": ((2, 5, 4, 6, 5), (3, 5, 2, 3, 1), {"dilation": (2, 1, 1)}),
    "3-D, padding of each side": ((2, 3, 4, 5, 5), (3, 5, 2, 2, 2), {"padding": ((2, 0), (0, 1), (1, 2))}),
    "unbatched": ((9, 10, 5), (17, 5, 3, 3), {"padding": 1, "stride": 2}),
}


@pytest.fixture(params=WINDOWS)
def windows(request, dtype, rng):
    x, weight, options = WINDOWS[request.param]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in (x, weight, weight[:1])]
    return arrays, options | LAST, functions(weight)


@pytest.fixture
def in_place(monkeypatch):
    """Count the calls of the kernel that reads windows in place."""
    calls, kernel = [], fastconv._kernels.conv_windows_output

    def counted(*arguments):
        calls.append(arguments)
        return kernel(*arguments)

    monkeypatch.setattr(fastconv._kernels, "conv_windows_output", counted)
    return calls


@pytest.mark.parametrize(("adds", "activation"), [(False, None), (True, "relu6"), (True, "silu")])
def test_windows_output(windows, adds, activation, in_place, isa, rng):
    (x, weight, bias), options, (forward, _, oracle, _) = windows
    magnitude = oracle(*map(np.abs, (x, weight, bias)), **options, dtype=np.float64)
    residual = rng.standard_normal(magnitude.shape).astype(x.dtype) if adds else None
    magnitude += 0 if residual is None else np.abs(residual)
    fused = {"residual": residual, "activation": activation}
    expected = oracle(x, weight, bias, **options, **fused, dtype=np.float64)
    limit = activation_bound(activation, x.dtype, expected, bound("gemm", x.dtype, weight[0].size + 2, magnitude))
    actual = forward(x, weight, bias, **options, **fused, algorithm="gemm")
    assert len(in_place) == 1
    assert_close(actual, expected, limit, x.dtype, "output")
    packed = fastconv.PackedWeight(weight)
    out = np.full_like(actual, np.nan)
    for values in (weight, packed, packed):
        assert forward(x, values, bias, **options, **fused, algorithm="gemm", out=out) is out
        np.testing.assert_array_equal(out, actual)
        out[...] = np.nan
    assert len(in_place) == 4


def test_windows_by_the_algorithm_of_choice(windows, isa):
    (x, weight, bias), options, (forward, _, oracle, _) = windows
    expected = oracle(x, weight, bias, **options, dtype=np.float64)
    magnitude = oracle(*map(np.abs, (x, weight, bias)), **options, dtype=np.float64)
    actual = forward(x, weight, bias, **options)
    assert_close(actual, expected, bound("winograd", x.dtype, weight[0].size + 1, magnitude), x.dtype, "output")
    np.testing.assert_array_equal(forward(x, fastconv.PackedWeight(weight), bias, **options), actual)


def test_windows_without_a_bias_and_of_views(windows, isa):
    (x, weight, _), options, (forward, _, _, _) = windows
    options = options | {"algorithm": "gemm"}
    zeros, every_other = np.zeros(len(weight), x.dtype), np.repeat(x, 2, axis=-2)[..., ::2, :]
    expected = forward(x, weight, zeros, **options)
    np.testing.assert_array_equal(forward(x, weight, **options), expected)
    np.testing.assert_array_equal(forward(every_other, weight, **options), expected)
    out = np.full(expected.shape[::-1], np.nan, x.dtype).T
    assert forward(x, weight, **options, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "weight"])
def test_windows_of_what_is_not_finite(windows, special, where, isa):
    (x, weight, bias), options, (forward, _, oracle, _) = windows
    magnitude = oracle(*map(np.abs, (x, weight, bias)), **options, dtype=np.float64)
    (x[..., 0, 0] if where == "x" else weight[:2, -1])[...] = special  # at a border; and where taps meet padding
    expected = oracle(x, weight, bias, **options, dtype=np.float64)
    assert not np.isfinite(expected).all()
    limit = bound("gemm", x.dtype, weight[0].size + 1, magnitude)
    assert_close(forward(x, weight, bias, **options, algorithm="gemm"), expected, limit, x.dtype, "output")


WIDE = {  # x, weight, options, whether windows are read in place
    "a line of 4096": ((1, 2, 4096, 3), (5, 3, 3, 3), {"padding": 1}, True),
    "a line of 4097": ((1, 2, 4097, 3), (5, 3, 3, 3), {"padding": 1}, False),
    "a long line without padding": ((1, 4, 4200, 3), (5, 3, 3, 3), {}, True),
    "a long line, half the outputs": ((1, 2, 8300, 2), (3, 2, 2, 3), {"padding": 1, "stride": 2}, False),
    "1-D": ((2, 5000, 2), (3, 2, 5), {"padding": 2}, False),
    "copies past 4 MiB": ((1, 3, 300, 1300), (2, 1300, 3, 3), {"padding": 1}, False),
}


@pytest.mark.parametrize("name", WIDE)
def test_long_lines(name, in_place, isa, rng):
    *shapes, options, expected_calls = WIDE[name]
    x, weight = (rng.standard_normal(shape, np.float32) for shape in shapes)
    bias, (forward, _, oracle, _) = weight.reshape(len(weight), -1)[:, 0].copy(), functions(weight.shape)
    actual = forward(x, weight, bias, **options, **LAST, activation="relu", algorithm="gemm")
    assert len(in_place) == expected_calls
    expected = oracle(x, weight, bias, **options, **LAST, activation="relu", dtype=np.float64)
    magnitude = oracle(*map(np.abs, (x, weight, bias)), **options, **LAST, dtype=np.float64)
    assert_close(actual, expected, bound("gemm", x.dtype, weight[0].size + 1, magnitude), x.dtype, "output")


def test_windows_of_every_number_of_threads(isa, dtype, rng):
    for shapes, options in (
        (((3, 33, 35, 17), (50, 17, 3, 3)), {"padding": ((1, 0), (2, 1))}),
        (((2, 40, 41, 24), (70, 24, 3, 3)), {"stride": 2}),
        (((1, 14, 15, 1100), (100, 1100, 1, 1)), {}),
        (((1, 9, 10, 200), (150, 200, 3, 3)), {"padding": 2, "dilation": 2}),
    ):
        x, weight = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
        packed, results = fastconv.PackedWeight(weight), []
        for threads in (1, 2, 3):
            with fastconv.threads(threads):
                for values in (weight, packed):
                    results.append(fastconv.conv2d(x, values, **options, **LAST, algorithm="gemm", activation="silu"))
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("activation", [None, "relu6"])
@pytest.mark.parametrize("name", [name for name, (x, *_) in (WINDOWS | CASES).items() if len(x) == 4 and x[0]])
def test_output_whose_channels_lie_last(name, activation, isa, dtype, rng):
    x, weight, options = (WINDOWS | CASES)[name]
    x, weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in (x, weight, weight[:1]))
    oracle, options = reference.conv2d, {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    mode = options.pop("padding_mode", "zeros")
    expected = oracle(x, weight, bias, **options, **LAST, padding_mode=mode, dtype=np.float64)
    residual = rng.standard_normal(expected.shape).astype(dtype)
    fused = {"residual": residual, "activation": activation, "padding_mode": mode}
    expected = oracle(x, weight, bias, **options, **LAST, **fused, dtype=np.float64).transpose(0, 3, 1, 2)
    fused["residual"], fused["activation"] = np.abs(residual), None
    magnitude = oracle(*map(np.abs, (x, weight, bias)), **options, **LAST, **fused, dtype=np.float64)
    limit = bound("winograd", dtype, weight[0].size + 2, magnitude.transpose(0, 3, 1, 2))
    limit = activation_bound(activation, dtype, expected, limit)
    x, residual = x.transpose(0, 3, 1, 2), residual.transpose(0, 3, 1, 2)
    packed = fastconv.PackedWeight(weight)
    for images in (x, np.ascontiguousarray(x), np.repeat(x, 2, axis=3)[..., ::2]):
        for added in (residual, np.ascontiguousarray(residual)):
            y = functional.conv2d_to_last(images, packed, bias, *options.values(), mode, activation, added)
            assert_close(y, expected, limit, dtype, "output")


@pytest.mark.parametrize("memory", ["first", "last"])
@pytest.mark.parametrize("groups", [1, 24])
def test_where_channels_lie_last(memory, groups, isa, dtype, rng):
    x = rng.standard_normal((2, 11, 13, 24)).astype(dtype).transpose(0, 3, 1, 2)
    packed = fastconv.PackedWeight(rng.standard_normal((24, 24 // groups, 3, 3)).astype(dtype))
    x = np.ascontiguousarray(x) if memory == "first" else x
    y = functional.conv2d_to_last(x, packed, None, 2, 1, 1, groups, "zeros", "relu", None)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous == (memory == "last" or groups == 1)
    expected = reference.conv2d(x, packed.raw, None, 2, 1, groups=groups, activation="relu", dtype=np.float64)
    magnitude = reference.conv2d(np.abs(x), np.abs(packed.raw), None, 2, 1, groups=groups, dtype=np.float64)
    assert_close(y, expected, bound("gemm", dtype, packed.raw[0].size, magnitude), dtype, "output")


def test_bias_gradient_of_many_pixels(isa, dtype, rng):
    g, x = rng.standard_normal((2, 5, 60, 50, 9)).astype(dtype)
    _, _, grad = fastconv.conv2d_backward(g, x, np.ones((9, 9, 1, 1), dtype), **LAST)
    expected, magnitude = (v.sum((0, 1, 2), dtype=np.float64) for v in (g, np.abs(g)))
    assert_close(grad, expected, bound("sum", dtype, g.size // 9, magnitude), dtype, "bias")


def test_equals_torch(torch, rng):
    x, weight = rng.standard_normal((2, 9, 8, 12), np.float32), rng.standard_normal((16, 12, 1, 1), np.float32)
    t = torch.from_numpy(x.transpose(0, 3, 1, 2))
    expected = torch.nn.functional.conv2d(t, torch.from_numpy(weight)).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(fastconv.conv2d(x, weight, **LAST), expected, rtol=1e-5, atol=1e-5)


def test_every_number_of_threads_gives_the_same_bits(isa, rng):
    x, results = rng.standard_normal((3, 33, 35, 64), np.float32), []
    weight = rng.standard_normal((48, 64, 1, 1), np.float32)
    for threads in (1, 2, 3):
        with fastconv.threads(threads):
            y = fastconv.conv2d(x, weight, **LAST)
            results.append((y, *fastconv.conv2d_backward(y, x, weight, **LAST)))
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "layout must be None or a string, got True", {"layout": True}),
        (ValueError, "layout must be None or 'channels_last', got 'NHWC'", {"layout": "NHWC"}),
        (TypeError, "stride must be an integer", {"stride": True}),
        (TypeError, "stride must be an integer", {"stride": np.array([1, 1])}),
        (TypeError, "groups must be an integer", {"groups": np.array([3, 3])}),
        (ValueError, "activation must be", {"activation": "none"}),
        (ValueError, r"bias.shape must equal weight.shape\[:1\] = \(3,\)", {"bias": np.zeros(4)}),
        (ValueError, r"out.shape must equal the result's shape = \(1, 4, 5, 3\)", {"out": np.zeros((1, 3, 4, 5))}),
        (TypeError, "residual.dtype must be", {"residual": object}),
        (ValueError, r"groups must divide", {"groups": 4}),
    ],
    ids=range(10),
)
def test_bad_input(error, message, options):
    with pytest.raises(error, match=f"^conv2d: {message}"):
        fastconv.conv2d(np.zeros((1, 4, 5, 2)), np.zeros((3, 2, 1, 1)), **(LAST | options))
