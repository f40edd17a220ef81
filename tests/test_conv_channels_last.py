"""Convolution of arrays whose channels come last: against the oracle, PyTorch, and the channels first."""

import numpy as np
import pytest
from tolerance import assert_close, bound

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
        (ValueError, "activation must be", {"activation": "none"}),
        (ValueError, r"bias.shape must equal weight.shape\[:1\] = \(3,\)", {"bias": np.zeros(4)}),
        (ValueError, r"out.shape must equal the result's shape = \(1, 4, 5, 3\)", {"out": np.zeros((1, 3, 4, 5))}),
        (TypeError, "residual.dtype must be", {"residual": object}),
        (ValueError, r"groups must divide", {"groups": 4}),
    ],
    ids=range(8),
)
def test_bad_input(error, message, options):
    with pytest.raises(error, match=f"^conv2d: {message}"):
        fastconv.conv2d(np.zeros((1, 4, 5, 2)), np.zeros((3, 2, 1, 1)), **(LAST | options))
