"""The oracle itself: against PyTorch in float64 where that is installed, and against values worked out by hand."""

from itertools import product

import numpy as np
import pytest

from fastconv import reference

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def with_gradients(torch, function, arrays, grad_output):
    """Return the output of a function of tensors, the ``grad_output`` made for its shape, and PyTorch's gradients."""
    tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]
    y = function(*tensors)
    g = grad_output(tuple(y.shape))
    y.backward(torch.from_numpy(g))
    return y.detach().numpy(), g, [t.grad.numpy() for t in tensors]


CONVOLUTIONS = [
    # x, weight, options
    ((2, 3, 17), (4, 3, 5), {}),
    ((4, 9), (6, 2, 3), {"padding": 1, "groups": 2, "stride": 2}),
    ((2, 3, 9, 8), (4, 3, 3, 3), {"padding": "same"}),
    ((2, 3, 9, 8), (4, 3, 3, 5), {"padding": "same", "dilation": (1, 2)}),
    ((2, 4, 9, 11), (6, 2, 3, 2), {"stride": (2, 3), "padding": (2, 1), "groups": 2}),
    ((3, 8, 9), (6, 1, 3, 3), {"groups": 3, "dilation": 2, "padding": 3}),
    ((1, 2, 5, 5), (3, 2, 5, 5), {"padding": "valid"}),
    ((0, 2, 5, 5), (3, 2, 3, 3), {}),
    ((2, 2, 5, 6, 4), (3, 2, 3, 2, 2), {"stride": (1, 2, 1), "padding": (1, 0, 1)}),
    ((4, 5, 6, 4), (4, 1, 2, 2, 2), {"groups": 4, "dilation": (2, 1, 1)}),
]


@pytest.mark.parametrize(("x_shape", "weight_shape", "options"), CONVOLUTIONS)
def test_conv_equals_torch(torch, rng, x_shape, weight_shape, options):
    name = f"conv{len(weight_shape) - 2}d"
    arrays = [rng.standard_normal(shape) for shape in (x_shape, weight_shape, weight_shape[:1])]
    theirs = getattr(torch.nn.functional, name)
    y, g, gradients = with_gradients(torch, lambda *t: theirs(*t, **options), arrays, rng.standard_normal)
    np.testing.assert_allclose(getattr(reference, name)(*arrays, **options), y, **EXACT)
    ours = getattr(reference, f"{name}_backward")(g, *arrays[:2], **options)
    for a, b in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


TRANSPOSED = [
    # x, weight, options
    ((2, 3, 7), (3, 4, 5), {"stride": 2, "output_padding": 1, "padding": 2}),
    ((4, 9), (4, 2, 3), {"padding": 1, "groups": 2}),
    ((2, 3, 5, 4), (3, 4, 3, 2), {"stride": (2, 3), "output_padding": (1, 2)}),
    ((2, 4, 5, 4), (4, 1, 3, 3), {"groups": 4, "dilation": 3, "output_padding": 2, "padding": (2, 0)}),
    ((0, 2, 5, 5), (2, 3, 3, 3), {}),
    ((2, 2, 3, 4, 2), (2, 3, 2, 3, 2), {"stride": (1, 2, 1), "padding": (1, 0, 1)}),
]


@pytest.mark.parametrize(("x_shape", "weight_shape", "options"), TRANSPOSED)
def test_conv_transpose_equals_torch(torch, rng, x_shape, weight_shape, options):
    name = f"conv_transpose{len(weight_shape) - 2}d"
    bias_shape = (weight_shape[1] * options.get("groups", 1),)
    arrays = [rng.standard_normal(shape) for shape in (x_shape, weight_shape, bias_shape)]
    theirs = getattr(torch.nn.functional, name)
    y, g, gradients = with_gradients(torch, lambda *t: theirs(*t, **options), arrays, rng.standard_normal)
    np.testing.assert_allclose(getattr(reference, name)(*arrays, **options), y, **EXACT)
    ours = getattr(reference, f"{name}_backward")(g, *arrays[:2], **options)
    for a, b in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("batched", [True, False])
def test_max_pool_equals_torch(torch, rng, ndim, batched):
    x = np.round(2 * rng.standard_normal((2, 3, 7, 6, 5)[1 - batched : 2 + ndim]))  # with ties
    x[rng.random(x.shape) < 0.1] = np.nan
    name = f"max_pool{ndim}d"
    for kernel, stride, padding, dilation, ceil_mode in product((2, 3), (None, 1, 2, 3), (0, 1), (1, 2), (False, True)):
        options = (kernel, stride, padding, dilation, ceil_mode)
        theirs = getattr(torch.nn.functional, name)
        y, g, gradients = with_gradients(torch, lambda t, o=options, f=theirs: f(t, *o), [x], rng.standard_normal)
        _, places = theirs(torch.from_numpy(x), *options, return_indices=True)
        ours, indices = getattr(reference, name)(x, *options, return_indices=True)
        np.testing.assert_array_equal(ours, y)
        np.testing.assert_array_equal(indices, places.numpy())
        ours = getattr(reference, f"{name}_backward")(g, indices, x.shape, *options)
        np.testing.assert_allclose(ours, gradients[0], **EXACT)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("batched", [True, False])
def test_avg_pool_equals_torch(torch, rng, ndim, batched):
    x = rng.standard_normal((2, 3, 7, 6, 5)[1 - batched : 2 + ndim])
    name = f"avg_pool{ndim}d"
    divisors = (None,) if ndim == 1 else (None, 5)
    choices = (2, 3), (None, 1, 2, 3), (0, 1), (False, True), (False, True), divisors
    for *options, divisor in product(*choices):
        torch_options = options if ndim == 1 else [*options, divisor]
        theirs = getattr(torch.nn.functional, name)
        y, g, gradients = with_gradients(torch, lambda t, o=torch_options, f=theirs: f(t, *o), [x], rng.standard_normal)
        np.testing.assert_allclose(getattr(reference, name)(x, *options, divisor), y, **EXACT)
        ours = getattr(reference, f"{name}_backward")(g, x.shape, *options, divisor)
        np.testing.assert_allclose(ours, gradients[0], **EXACT)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
def test_linear_equals_torch(torch, rng, shape):
    arrays = [rng.standard_normal(s) for s in (shape, (7, 5), (7,))]
    y, g, gradients = with_gradients(torch, torch.nn.functional.linear, arrays, rng.standard_normal)
    np.testing.assert_allclose(reference.linear(*arrays), y, **EXACT)
    for a, b in zip(reference.linear_backward(g, *arrays[:2]), gradients, strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


@pytest.mark.parametrize("activation", ["relu", "relu6", ("leaky_relu", 0.1), "silu", "hardswish", "sigmoid", "tanh"])
def test_activations_equal_torch(torch, activation):
    z = np.array([-np.inf, -1000, -7, -3, -0.5, -0.0, 0, 1e-40, 0.5, 3, 6, 7, 1000, np.inf, np.nan])
    name, *slope = (activation,) if isinstance(activation, str) else activation
    theirs = getattr(torch.nn.functional, name)(torch.from_numpy(z), *slope).numpy()
    ours = reference.linear(z[:, None], np.ones((1, 1)), activation=activation)[:, 0]
    np.testing.assert_allclose(ours, theirs, **EXACT)


def test_relu_equals_torch(torch, rng):
    x = np.array([-np.inf, -1, -0.0, 0, 1e-310, 1, np.inf, np.nan])
    y, g, gradients = with_gradients(torch, torch.relu, [x], rng.standard_normal)
    np.testing.assert_array_equal(reference.relu(x), y)
    np.testing.assert_array_equal(reference.relu_backward(g, x), gradients[0])
    np.testing.assert_array_equal(reference.relu_backward(g, y), gradients[0])


def test_same_padding_keeps_the_larger_half_after_or_before():
    x = np.arange(1.0, 6.0).reshape(1, 1, 5)
    weight = np.ones((1, 1, 2))
    np.testing.assert_array_equal(reference.conv1d(x, weight, padding="same"), [[[3, 5, 7, 9, 5]]])
    np.testing.assert_array_equal(reference.conv1d(x, weight, padding="same_lower"), [[[1, 3, 5, 7, 9]]])
    # out = ceil(5 / 3) = 2; total = 3 + 4 - 5 = 2
    np.testing.assert_array_equal(reference.conv1d(x, np.ones((1, 1, 4)), stride=3, padding="same"), [[[6, 12]]])


def test_pairs_pad_each_side():
    y = reference.conv2d(np.ones((1, 2, 2)), np.ones((1, 1, 1, 1)), padding=((1, 0), (0, 2)))
    np.testing.assert_array_equal(y, [[[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]])


def test_padding_is_a_zero_that_is_multiplied():
    y = reference.conv1d(np.ones((1, 1, 3)), np.array([[[np.inf, 1, 1]]]), padding=1)
    np.testing.assert_array_equal(y, [[[np.nan, np.inf, np.inf]]])


def test_max_pool_takes_the_first_maximum_and_the_last_nan():
    y, indices = reference.max_pool1d(np.array([[1, 3, 3, np.nan, 0, np.nan]]), 3, return_indices=True)
    np.testing.assert_array_equal(y, [[3, np.nan]])
    np.testing.assert_array_equal(indices, [[1, 5]])


def test_result_has_the_type_of_x_unless_asked_otherwise():
    x, weight = np.ones((1, 1, 4), np.float32), np.full((1, 1, 1), 0.1, np.float32)
    assert reference.conv1d(x, weight).dtype == np.float32
    assert reference.conv1d(x, weight, dtype=np.float64).dtype == np.float64


FAST = [
    # x, weight, stride, padding, dilation, groups
    ((2, 4, 9, 8), (6, 4, 3, 3), 1, 1, 1, 1),
    ((3, 4, 9, 11), (6, 2, 3, 2), (2, 3), ((1, 0), (2, 1)), 1, 2),
    ((2, 6, 12, 9), (6, 1, 3, 3), 2, 1, 1, 6),
    ((2, 6, 12, 9), (12, 1, 3, 3), (1, 2), 1, 2, 6),
    ((2, 6, 7, 7), (4, 6, 1, 1), 1, 0, 1, 1),
    ((2, 6, 17, 17), (4, 6, 1, 1), 1, 0, 1, 1),
    ((1, 6, 7, 7), (4, 3, 1, 1), 2, 0, 1, 2),
    ((2, 3, 5, 5), (4, 3, 3, 3), 1, 4, 1, 1),
]


@pytest.mark.parametrize("form", ["im2col", "planes"])
@pytest.mark.parametrize(("x_shape", "weight_shape", "stride", "padding", "dilation", "groups"), FAST)
def test_fast_convolutions_equal_the_readable_one(rng, form, x_shape, weight_shape, stride, padding, dilation, groups):
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    x, weight, bias = (rng.standard_normal(shape) for shape in (x_shape, weight_shape, weight_shape[:1]))
    y = reference.conv2d(x, weight, bias, **options)
    g = rng.standard_normal(y.shape)
    np.testing.assert_allclose(getattr(reference, f"conv2d_{form}")(x, weight, bias, **options), y, **EXACT)
    fast = getattr(reference, f"conv2d_{form}_backward")(g, x, weight, **options)
    for a, b in zip(fast, reference.conv2d_backward(g, x, weight, **options), strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((1, 3), (1, 2), (0, 1))])
def test_fast_pools_equal_the_readable_ones(rng, kernel, stride, padding):
    x, options = rng.standard_normal((2, 3, 9, 8)), (kernel, stride, padding)
    y, indices = reference.max_pool2d(x, *options, return_indices=True)
    g = rng.standard_normal(y.shape)
    pairs = [
        (reference.max_pool2d_strided(x, *options), y),
        (
            reference.max_pool2d_strided_backward(g, indices, x.shape),
            reference.max_pool2d_backward(g, indices, x.shape, *options),
        ),
        (reference.avg_pool2d_strided(x, *options), reference.avg_pool2d(x, *options)),
        (
            reference.avg_pool2d_strided_backward(g, x.shape, *options),
            reference.avg_pool2d_backward(g, x.shape, *options),
        ),
    ]
    for a, b in pairs:
        np.testing.assert_allclose(a, b, **EXACT)


def test_fast_relu_equals_the_readable_one(rng):
    x, g = rng.standard_normal((2, 1000))
    np.testing.assert_array_equal(reference.relu_maximum(x), reference.relu(x))
    np.testing.assert_array_equal(reference.relu_maximum_backward(g, x), reference.relu_backward(g, x))
