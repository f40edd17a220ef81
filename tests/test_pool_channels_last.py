"""Pools of arrays whose channels come last: against the oracle, against PyTorch, and against the channels first."""

import numpy as np
import pytest
from test_pool import CASES, DILATED, DIVISORS, Case, assert_threads_agree, generator, torch_pools_so, with_ties
from tolerance import assert_close, bound

import fastconv

LAST = {"layout": "channels_last"}
CHANNELS = [
    *[Case(f"{c} channels", (2, c, 7, 9), 3, {"stride": 2, "padding": 1}) for c in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16)],
    *[Case(f"{c} channels", (2, c, 5, 6), 2) for c in (17, 31, 32, 33, 63, 64, 65, 129)],
    *[Case(f"{c} channels, stride 1", (1, c, 6, 7), 3, {"stride": 1, "padding": 1}) for c in (3, 16, 47, 80)],
    *[Case(f"the whole image, {c} channels", (3, c, 7, 7), 7) for c in (2, 16, 300, 1027)],
    Case("1-D, many channels", (2, 65, 21), 3, {"stride": 2, "padding": 1, "ceil_mode": True}, 1),
    Case("3-D, many channels", (1, 33, 4, 5, 6), 2, {"stride": 1, "padding": 1}, 3),
    Case("more taps than lanes", (2, 33, 9, 8), 5, {"stride": 1, "padding": 2}),
    Case("an image in several blocks of channels", (1, 259, 6, 6), 3, {"stride": 1}),
]
CASES = CASES + CHANNELS
max_cases = pytest.mark.parametrize("case", CASES + DILATED, ids=lambda case: case.reason)
avg_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)


def last(array, case):
    return np.ascontiguousarray(np.moveaxis(array, -1 - case.ndim, -1))


def check_max(case, x):
    forward, backward, reference_forward, reference_backward = case.functions("max")
    x, options = last(x, case), case.options | LAST
    y, indices = forward(x, case.kernel_size, **options, return_indices=True)
    expected, expected_indices = reference_forward(x, case.kernel_size, **options, return_indices=True)
    assert y.dtype == x.dtype
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(forward(x, case.kernel_size, **options), expected)

    g = generator(case).standard_normal(y.shape).astype(x.dtype)
    arguments = indices, x.shape, case.kernel_size
    actual = backward(g, *arguments, **options)
    expected = reference_backward(g, *arguments, **options, dtype=np.float64)
    magnitude = reference_backward(np.abs(g), *arguments, **options, dtype=np.float64)
    assert_close(actual, expected, bound("sum", x.dtype, case.terms, magnitude), x.dtype, "grad_input")


def check_avg(case, x, divisor):
    forward, backward, reference_forward, reference_backward = case.functions("avg")
    x, options = last(x, case), case.options | divisor | LAST
    y = forward(x, case.kernel_size, **options)
    expected = reference_forward(x, case.kernel_size, **options, dtype=np.float64)
    magnitude = reference_forward(np.abs(x), case.kernel_size, **options, dtype=np.float64)
    assert_close(y, expected, bound("sum", x.dtype, case.terms + 1, magnitude), x.dtype, "output")

    g = generator(case).standard_normal(y.shape).astype(x.dtype)
    actual = backward(g, x.shape, case.kernel_size, **options)
    expected = reference_backward(g, x.shape, case.kernel_size, **options, dtype=np.float64)
    magnitude = reference_backward(np.abs(g), x.shape, case.kernel_size, **options, dtype=np.float64)
    assert_close(actual, expected, bound("sum", x.dtype, case.terms + 1, magnitude), x.dtype, "grad_input")


@max_cases
def test_max_pool(case, isa, dtype):
    check_max(case, generator(case).standard_normal(case.x).astype(dtype))


@max_cases
def test_ties_nan_and_infinities(case, isa, dtype):
    rng = generator(case)
    x = with_ties(case.x, dtype, rng)
    check_max(case, x)
    for share in (0.02, 0.3, 1):
        x[rng.random(case.x) < share] = np.nan
        check_max(case, x)
    check_max(case, np.full(case.x, -np.inf, dtype))


@max_cases
def test_index_outside_its_window(case, isa, dtype):
    """An error that leaves ``out`` as it was."""
    forward, backward, reference_forward, _ = case.functions("max")
    rng = generator(case)
    size, options = case.x[-case.ndim :], case.options | LAST
    x = last(rng.standard_normal(case.x).astype(dtype), case)
    y, indices = forward(x, case.kernel_size, **options, return_indices=True)
    one_hot = np.eye(np.prod(size)).reshape(-1, *size)  # plane i is 1 at element i alone
    windows = reference_forward(one_hot, case.kernel_size, **case.options).reshape(len(one_hot), -1)
    for at in {0, y.size - 1, y.size // 2} if y.size else ():
        window = at // y.shape[-1] % windows.shape[1]
        outside = rng.permutation(np.flatnonzero(windows[:, window] <= 0))[:4]
        right = int(indices.flat[at])
        for index in (-1, len(one_hot), right + 2**32, right - 2**32, 2**63 - 1, *outside):
            wrong, out = indices.copy(), np.full(x.shape, 3, dtype)
            wrong.flat[at] = index
            with pytest.raises(ValueError, match=rf"^max_pool{case.ndim}d_backward: indices .* 1\b"):
                backward(y, wrong, x.shape, case.kernel_size, **options, out=out)
            assert (out == 3).all()


@pytest.mark.parametrize("divisor", DIVISORS, ids=["", "count_include_pad=False", "divisor_override"])
@avg_cases
def test_avg_pool(case, divisor, isa, dtype):
    check_avg(case, generator(case).standard_normal(case.x).astype(dtype), divisor)


@avg_cases
def test_nan_and_inf_stay_in_their_windows(case, isa, dtype):
    rng = generator(case)
    x = rng.standard_normal(case.x).astype(dtype)
    x.flat[rng.choice(x.size, min(x.size, 3), replace=False)] = (np.nan, np.inf, -np.inf)[: x.size]
    check_avg(case, x, {})


def test_mean_of_a_large_plane(isa, dtype, rng):
    check_avg(Case("a large plane", (2, 3, 150, 201), (150, 201)), rng.random((2, 3, 150, 201)).astype(dtype), {})


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("case", [c for c in CASES + DILATED if c.ndim == 2 and len(c.x) == 4], ids=lambda c: c.reason)
def test_equals_torch(torch, kind, case, dtype):
    if not torch_pools_so(kind, case):
        pytest.skip("PyTorch has no such pool")
    forward, backward, *_ = case.functions(kind)
    x = generator(case).standard_normal(case.x).astype(dtype)
    t = torch.from_numpy(x).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = getattr(torch.nn.functional, f"{kind}_pool2d")(t, case.kernel_size, **case.options)
    g = generator(case).standard_normal(y.shape).astype(dtype)
    y.backward(torch.from_numpy(g))
    limit = {"rtol": 50 * np.finfo(dtype).eps, "atol": 50 * np.finfo(dtype).eps}
    x, options = last(x, case), case.options | LAST
    np.testing.assert_allclose(forward(x, case.kernel_size, **options), last(y.detach().numpy(), case), **limit)
    arguments = [last(g, case), x.shape, case.kernel_size]
    if kind == "max":
        arguments.insert(1, forward(x, case.kernel_size, **options, return_indices=True)[1])
    np.testing.assert_allclose(backward(*arguments, **options), last(t.grad.numpy(), case), **limit)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((5, 40, 42, 67), (3, 1, 1)),
        ((1, 61, 53, 129), (3, 2, 1)),
        ((3, 47, 39, 33), (5, 3, 2)),
        ((2, 19, 17, 901), ((19, 17),)),
    ],
)
def test_every_number_of_threads_gives_the_same_bits(kind, shape, window, isa, dtype, rng):
    """Of work enough for several threads."""
    assert_threads_agree(kind, rng.standard_normal(shape).astype(dtype), window, **LAST)


@pytest.mark.parametrize("kind", ["max", "avg"])
@avg_cases
def test_out_receives_the_same_bits(kind, case, isa, dtype):
    forward, backward, *_ = case.functions(kind)
    options = case.options | LAST
    x = last(generator(case).standard_normal(case.x).astype(dtype), case)
    y = forward(x, case.kernel_size, **options)
    out = np.full_like(y, np.nan)
    assert forward(x, case.kernel_size, **options, out=out) is out
    np.testing.assert_array_equal(out, y)
    arguments = [y, x.shape, case.kernel_size]
    if kind == "max":
        arguments.insert(1, forward(x, case.kernel_size, **options, return_indices=True)[1])
    out = np.full_like(x, np.nan)
    assert backward(*arguments, **options, out=out) is out
    np.testing.assert_array_equal(out, backward(*arguments, **options))


@pytest.mark.parametrize(
    ("error", "message", "function", "arguments"),
    [
        (TypeError, "layout must be None or a string, got 1", "max_pool2d", {"layout": 1}),
        (ValueError, "layout must be None or 'channels_last', got 'NHWC'", "avg_pool2d", {"layout": "NHWC"}),
        (
            ValueError,
            r"x must have shape \(n, id, ih, iw, c\), or \(id, ih, iw, c\) unbatched",
            "max_pool3d",
            {"axes": 3},
        ),
        (ValueError, r".* at most the padded x.shape\[-2\] = 3, got 4", "max_pool2d", {"kernel_size": (1, 4)}),
        (ValueError, r"input_shape must be \(n, ih, iw, c\), or", "avg_pool2d_backward", {"input_shape": (1,)}),
        (ValueError, r"grad_output.shape .* = \(1, 2, 1, 5\)", "avg_pool2d_backward", {"input_shape": (1, 4, 3, 5)}),
        (ValueError, r"out.shape .* = \(1, 2, 1, 5\)", "max_pool2d", {"out": np.empty((1, 5, 2, 1))}),
    ],
    ids=range(7),
)
def test_bad_input(error, message, function, arguments):
    x = np.zeros((1, 4, 3, 5)[4 - arguments.pop("axes", 4) :])
    with pytest.raises(error, match=f"^{function}: {message}"):
        getattr(fastconv, function)(x, **({"kernel_size": 2} | LAST | arguments))
