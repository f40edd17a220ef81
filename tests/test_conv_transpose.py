"""Transposed convolutions against the oracle, PyTorch and the convolutions of which they are the input gradients."""

import zlib
from math import prod
from typing import Any, NamedTuple

import numpy as np
import pytest
from tolerance import activation_bound, assert_close, bound

import fastconv
from fastconv import pack_weight, reference

GRADIENTS = ("grad_input", "grad_weight", "grad_bias")


class Case(NamedTuple):
    """A transposed convolution worth testing, and why."""

    reason: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    options: dict[str, Any] = {}  # noqa: RUF012

    @property
    def name(self):
        return f"conv_transpose{len(self.weight) - 2}d"

    @property
    def channels(self):
        return self.weight[1] * self.options.get("groups", 1)

    def functions(self):
        """Return forward and backward of fastconv, and forward and backward of the oracle."""
        names = self.name, f"{self.name}_backward"
        return *(getattr(fastconv, name) for name in names), *(getattr(reference, name) for name in names)

    def arrays(self, dtype):
        """Return x, weight, bias and grad_output."""
        rng = np.random.default_rng(zlib.crc32(self.reason.encode()))
        x, weight, bias = (rng.standard_normal(s).astype(dtype) for s in (self.x, self.weight, (self.channels,)))
        shape = getattr(reference, self.name)(x, weight, **self.options).shape
        return x, weight, bias, rng.standard_normal(shape).astype(dtype)

    def terms(self):
        """Return the most products that an element of the output, and of each gradient, can have."""
        ic, ocg, *kernel = self.weight
        pixels = max(prod(self.x) // ic, 1)
        many = max(prod(self.x) // ic * prod(kernel), 1) * 9
        return ic * prod(kernel), (ocg * prod(kernel), pixels, many)


CASES = [
    Case("DCGAN", (2, 16, 5, 5), (16, 9, 4, 4), {"stride": 2, "padding": 1}),
    Case("DCGAN's first layer", (2, 20, 1, 1), (20, 9, 4, 4)),
    Case("U-Net's upsampling", (2, 9, 7, 9), (9, 7, 2, 2), {"stride": 2}),
    Case("stride 1, 3x3", (2, 5, 9, 8), (5, 7, 3, 3), {"padding": 1}),
    Case("stride 1, 5x5, many channels", (2, 33, 9, 8), (33, 34, 5, 5), {"padding": 2}),
    Case("3x3 stride 2, output_padding", (2, 4, 6, 5), (4, 3, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    Case("output_padding by dimension", (2, 4, 6, 5), (4, 3, 3, 3), {"stride": 3, "output_padding": (2, 1)}),
    Case("stride past the kernel", (2, 4, 5, 6), (4, 5, 2, 2), {"stride": 3}),
    Case("stride past the kernel, output_padding", (2, 4, 5, 6), (4, 5, 2, 1), {"stride": 3, "output_padding": 2}),
    Case("output_padding of a stride and more", (2, 4, 6, 5), (4, 3, 3, 3), {"dilation": 3, "output_padding": 2}),
    Case("one pixel, output_padding", (3, 4, 1, 1), (4, 5, 3, 3), {"stride": 2, "output_padding": 1}),
    Case("dilation 2", (2, 4, 6, 5), (4, 3, 3, 3), {"dilation": 2, "padding": 1}),
    Case("dilation and stride share a factor", (2, 4, 6, 5), (4, 3, 3, 3), {"dilation": 2, "stride": 2}),
    Case("groups 2", (2, 6, 7, 8), (6, 5, 3, 3), {"groups": 2, "stride": 2, "padding": 1}),
    Case("depthwise", (2, 7, 9, 10), (7, 1, 3, 3), {"groups": 7, "padding": 1}),
    Case("depthwise, stride 2", (2, 7, 9, 35), (7, 1, 4, 4), {"groups": 7, "padding": 1, "stride": 2}),
    Case("depthwise, output_padding", (2, 3, 6, 7), (3, 1, 3, 3), {"groups": 3, "dilation": 2, "output_padding": 1}),
    Case("channel multiplier 3", (2, 5, 8, 9), (5, 3, 3, 3), {"groups": 5, "padding": 1}),
    Case("asymmetric padding", (2, 3, 7, 8), (3, 5, 3, 3), {"stride": 2, "padding": ((0, 2), (1, 0))}),
    Case("padding past the kernel", (2, 3, 9, 8), (3, 5, 2, 2), {"padding": (4, 3)}),
    Case("one row of many vectors", (1, 2, 3, 131), (2, 3, 3, 3), {"stride": (1, 2)}),
    Case("1x1", (2, 17, 7, 9), (17, 12, 1, 1)),
    Case("1x1 stride 2", (2, 9, 5, 4), (9, 11, 1, 1), {"stride": 2, "output_padding": 1}),
    Case("no image", (0, 3, 6, 6), (3, 4, 3, 3)),
    Case("unbatched", (3, 8, 9), (3, 4, 3, 3), {"padding": 1, "stride": 2}),
    Case("1-D", (2, 5, 33), (5, 7, 4), {"stride": 2, "padding": 1}),
    Case("1-D, unbatched, asymmetric", (5, 9), (5, 3, 5), {"stride": 3, "padding": ((2, 0),), "output_padding": 1}),
    Case("3-D", (2, 5, 3, 4, 5), (5, 4, 2, 2, 2), {"stride": 2}),
    Case("3-D, by dimension", (1, 4, 3, 4, 5), (4, 3, 3, 2, 3), {"stride": (2, 1, 3), "padding": (1, 0, 1)}),
    Case("3-D, groups", (4, 3, 4, 5), (4, 2, 3, 3, 3), {"groups": 2, "stride": 2, "output_padding": 1, "padding": 1}),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
ALGORITHMS = ("auto", "gemm", "im2col", "direct", "winograd")


def check_output(case, actual, x, weight, bias=None, residual=None, activation=None, algorithm="auto"):
    oracle = case.functions()[2]
    expected = oracle(x, weight, bias, **case.options, residual=residual, activation=activation, dtype=np.float64)
    magnitudes = (None if a is None else np.abs(a) for a in (x, weight, bias))
    rest = None if residual is None else np.abs(residual)
    magnitude = oracle(*magnitudes, **case.options, residual=rest, dtype=np.float64)
    by = "gemm" if algorithm in ("gemm", "im2col", "direct") else "winograd"
    limit = bound(by, x.dtype, case.terms()[0] + (bias is not None) + (residual is not None), magnitude)
    assert_close(actual, expected, activation_bound(activation, x.dtype, expected, limit), x.dtype, "output")


def check_gradients(case, actual, g, x, weight, algorithm="auto"):
    oracle = case.functions()[3]
    expected = oracle(g, x, weight, **case.options, dtype=np.float64)
    magnitudes = oracle(*map(np.abs, (g, x, weight)), **case.options, dtype=np.float64)
    for name, a, e, k, m in zip(GRADIENTS, actual, expected, case.terms()[1], magnitudes, strict=True):
        by = "sum" if name == "grad_bias" or algorithm in ("gemm", "im2col", "direct") else "winograd"
        assert_close(a, e, bound(by, x.dtype, k, m), x.dtype, name)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@every_case
def test_equals_the_oracle(case, algorithm, isa, dtype):
    x, weight, bias, g = case.arrays(dtype)
    forward, backward, *_ = case.functions()
    try:
        y = forward(x, weight, bias, **case.options, algorithm=algorithm)
    except ValueError as error:
        assert algorithm != "auto"
        assert "algorithm must be one of" in str(error)  # noqa: PT017
        return
    check_output(case, y, x, weight, bias, algorithm=algorithm)
    gradients = backward(g, x, weight, **case.options, algorithm=algorithm)
    check_gradients(case, gradients, g, x, weight, algorithm)


@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.2), "tanh"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("case", [CASES[0], CASES[8], CASES[-1]], ids=lambda case: case.reason)
def test_bias_residual_and_activation(case, activation, with_bias, with_residual, isa, dtype):
    x, weight, bias, residual = case.arrays(dtype)
    bias, residual = bias if with_bias else None, residual if with_residual else None
    y = case.functions()[0](x, weight, bias, **case.options, activation=activation, residual=residual)
    check_output(case, y, x, weight, bias, residual, activation)


def test_bias_and_residual_of_planes_past_a_task(isa, dtype, rng):
    case = Case("", (2, 1, 150, 120), (1, 3, 2, 2), {"stride": 2})
    x, weight, bias, residual = case.arrays(dtype)
    y = case.functions()[0](x, weight, bias, **case.options, residual=residual, activation="relu")
    check_output(case, y, x, weight, bias, residual, "relu")


@every_case
def test_is_the_input_gradient_of_a_convolution(case, dtype):
    """So <conv(y), x> = <y, conv_transpose(x)>."""
    x, weight, _, g = case.arrays(dtype)
    forward, backward, *_ = case.functions()
    y, (grad_input, *_) = forward(x, weight, **case.options), backward(g, x, weight, **case.options)
    terms = max(x.size * prod(weight.shape[1:]), 1)
    magnitude = case.functions()[2](np.abs(x), np.abs(weight), **case.options, dtype=np.float64) * np.abs(g)
    difference = abs(np.vdot(y.astype(float), g) - np.vdot(x.astype(float), grad_input))
    assert difference <= bound("winograd", dtype, terms, np.sum(magnitude))


@every_case
def test_equals_torch(torch, case, dtype):
    padding = case.options.get("padding", 0)
    if np.ndim(padding) == 2:
        pytest.skip("PyTorch pads both sides alike")
    *arrays, g = case.arrays(dtype)
    tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]
    expected = getattr(torch.nn.functional, case.name)(*tensors, **case.options)
    expected.backward(torch.from_numpy(g))
    forward, backward, oracle, oracle_backward = case.functions()
    x, weight, _ = arrays
    magnitude = oracle(*map(np.abs, arrays), **case.options, dtype=np.float64)
    limit = 2 * bound("winograd", dtype, case.terms()[0] + 1, magnitude)  # both sides round
    assert_close(forward(*arrays, **case.options), expected.detach().numpy(), limit, dtype, "output")
    magnitudes = oracle_backward(*map(np.abs, (g, x, weight)), **case.options, dtype=np.float64)
    actual = backward(g, x, weight, **case.options)
    for name, a, t, k, m in zip(GRADIENTS, actual, tensors, case.terms()[1], magnitudes, strict=True):
        assert_close(a, t.grad.numpy(), 2 * bound("winograd", dtype, k, m), dtype, name)


@every_case
def test_packed_weights_change_no_bit(case, isa, dtype):
    x, weight, bias, g = case.arrays(dtype)
    forward, backward, *_ = case.functions()
    if case.options.get("output_padding"):
        pytest.skip("the convolution from the output may have another size")
    options = {k: v for k, v in case.options.items() if k != "output_padding"}
    packed = pack_weight(weight, g.shape, **options)
    expected = forward(x, weight, bias, **case.options)
    np.testing.assert_array_equal(forward(x, packed, bias, **case.options), expected)
    for a, b in zip(backward(g, x, packed, **options), backward(g, x, weight, **options), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_number_of_threads_gives_the_same_bits(isa, dtype, rng):
    x, weight = rng.standard_normal((2, 32, 30, 31)).astype(dtype), rng.standard_normal((32, 24, 4, 4)).astype(dtype)
    bias, results = rng.standard_normal(24).astype(dtype), []
    for threads in (1, 2, 3):
        with fastconv.threads(threads):
            y = fastconv.conv_transpose2d(x, weight, bias, 2, 1, activation="relu")
            results.append((y, *fastconv.conv_transpose2d_backward(y, x, weight, 2, 1)))
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_no_image_gives_zero_gradients(dtype):
    x, weight, g = np.ones((0, 3, 4, 4), dtype), np.ones((3, 2, 2, 2), dtype), np.ones((0, 2, 5, 5), dtype)
    grad_input, grad_weight, grad_bias = fastconv.conv_transpose2d_backward(g, x, weight)
    assert grad_input.shape == x.shape
    assert not grad_weight.any()
    assert not grad_bias.any()


def test_explain():
    """Its passes are those of the convolution from the output back to the input."""
    options = {"stride": 2, "padding": 1, "groups": 2}
    g = fastconv.conv_transpose2d(np.ones((2, 32, 7, 8)), np.ones((32, 9, 4, 4)), **options)
    told = fastconv.explain("conv_transpose2d", (2, 32, 7, 8), (32, 9, 4, 4), **options)
    convolution = fastconv.explain("conv2d", g.shape, (32, 9, 4, 4), **options)
    names = {"output": "input_gradient", "input_gradient": "output", "weight_gradient": "weight_gradient"}
    assert told == {name: convolution[other] for name, other in names.items()}
    assert all(name in str(told) for name in names)
    larger = fastconv.explain("conv_transpose2d", (2, 32, 7, 8), (32, 9, 4, 4), **options, output_padding=1)
    assert larger["output"].cost > told["output"].cost
    with pytest.raises(ValueError, match=r"^explain: output_padding must be 0 for conv2d, got 1"):
        fastconv.explain("conv2d", (2, 32, 7, 8), (9, 16, 4, 4), groups=2, output_padding=1)
