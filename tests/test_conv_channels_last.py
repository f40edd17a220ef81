"""Convolution of arrays whose channels come last: against the oracle, PyTorch, and the channels first."""

import numpy as np
import pytest
from tolerance import activation_bound, assert_close, bound

import fastconv
from fastconv import reference

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
