"""Pools against the oracle: windows, ties, NaN, indices, divisors and gradients, on every ISA and both types."""

import zlib
from itertools import product
from math import prod
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from tolerance import assert_close, bound

import fastconv
from fastconv import reference


class Case(NamedTuple):
    """A pool worth testing, and why; ``ndim`` tells (n, c, h, w) from (c, d, h, w)."""

    reason: str
    x: tuple[int, ...]
    kernel_size: int | tuple[int, ...]
    options: dict[str, Any] = {}  # noqa: RUF012
    ndim: int = 2

    def functions(self, kind):
        """Return forward and backward of fastconv, and forward and backward of the oracle."""
        names = f"{kind}_pool{self.ndim}d", f"{kind}_pool{self.ndim}d_backward"
        return *(getattr(fastconv, name) for name in names), *(getattr(reference, name) for name in names)

    @property
    def terms(self):
        return self.kernel_size**self.ndim if isinstance(self.kernel_size, int) else prod(self.kernel_size)


CASES = [
    Case("2x2 stride 2", (2, 3, 8, 10), 2),
    Case("2x2 stride 2, odd size", (2, 3, 9, 7), 2),
    Case("2x2 stride 2, ow past two vectors", (1, 3, 6, 71), 2),
    Case("2x2 stride 1", (2, 3, 7, 18), 2, {"stride": 1}),
    Case("3x3 stride 2, padded", (2, 3, 11, 13), 3, {"stride": 2, "padding": 1}),
    Case("3x3 stride 2, padded, even size", (2, 3, 12, 14), 3, {"stride": 2, "padding": 1}),
    Case("3x3 stride 2, ow one short of a vector", (1, 2, 7, 31), 3, {"stride": 2}),
    Case("3x3 stride 2, ow one vector", (1, 2, 7, 33), 3, {"stride": 2}),
    Case("3x3 stride 2, ow one past a vector", (1, 2, 7, 35), 3, {"stride": 2}),
    Case("3x3 stride 2, ow past two vectors, padded", (1, 2, 7, 67), 3, {"stride": 2, "padding": 1}),
    Case("3x3 stride 1, padded", (2, 3, 7, 7), 3, {"stride": 1, "padding": 1}),
    Case("3x3 stride 1, ow one past a vector", (1, 2, 5, 19), 3, {"stride": 1}),
    Case("3x3 stride 1, row of many vectors", (1, 2, 4, 131), 3, {"stride": 1, "padding": 1}),
    Case("3x3 stride 3, ceil_mode", (2, 3, 10, 11), 3, {"ceil_mode": True}),
    Case("3x3 stride 2, padded, ceil_mode", (2, 3, 10, 11), 3, {"stride": 2, "padding": 1, "ceil_mode": True}),
    Case("ceil_mode drops a window past the image", (2, 3, 5, 5), 2, {"stride": 3, "padding": 1, "ceil_mode": True}),
    Case("ceil_mode with a window larger than the image", (1, 2, 2, 3), 4, {"stride": 3, "ceil_mode": True}),
    Case("stride past the kernel", (2, 3, 13, 14), 2, {"stride": 5}),
    Case("stride by dimension", (2, 3, 9, 12), (2, 3), {"stride": (1, 3)}),
    Case("kernel 1", (2, 3, 5, 6), 1),
    Case("kernel 1, stride 2", (2, 3, 5, 6), 1, {"stride": 2}),
    Case("kernel 1x7", (2, 2, 5, 40), (1, 7), {"stride": 1, "padding": (0, 3)}),
    Case("kernel 7x1", (2, 2, 20, 5), (7, 1), {"stride": 1, "padding": (3, 0)}),
    Case("kernel 5x5 stride 1, padded", (1, 3, 13, 13), 5, {"stride": 1, "padding": 2}),
    Case("5x5 stride 2, padded", (1, 3, 13, 37), 5, {"stride": 2, "padding": 2}),
    Case("2x5 stride by dimension", (2, 3, 9, 21), (2, 5), {"stride": (1, 2), "padding": (0, 1)}),
    Case("window of more than 256", (1, 2, 19, 20), 17, {"stride": 1}),
    Case("the whole image", (2, 5, 7, 7), 7),
    *[
        Case(f"the whole image, {n} elements", (9, 3, n), n, {}, 1)
        for n in (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 64, 65)
    ],
    Case("the whole image and padding", (2, 9, 6, 5), 8, {"padding": ((1, 1), (2, 1))}),
    Case("the whole volume", (2, 9, 3, 4, 5), (3, 4, 5), {}, 3),
    Case("one window, but not the whole image", (2, 9, 7, 8), 7),
    Case("planes side by side and left over", (3, 7, 9, 9), 3, {"stride": 2, "padding": 1}),
    Case("3x3 stride 3, ow one short of a vector", (1, 17, 7, 45), 3),
    Case("3x3 stride 3, ow one vector", (1, 17, 7, 48), 3),
    Case("3x3 stride 3, ow one past a vector", (1, 17, 7, 51), 3),
    Case("5x5 stride 3, padded", (1, 3, 14, 50), 5, {"stride": 3, "padding": 2}),
    Case("a window much wider than its row of outputs", (1, 2, 5, 90), (2, 88), {"stride": 1}),
    Case("one column of outputs", (1, 2, 6, 90), (2, 90), {"stride": 1}),
    Case("padding that no window but the first needs", (1, 2, 6, 9), (2, 8), {"stride": (1, 3), "padding": (0, 7)}),
    Case("1x1 image, padded", (2, 5, 1, 1), 3, {"stride": 1, "padding": 1}),
    Case("asymmetric padding", (2, 3, 7, 8), 3, {"stride": 2, "padding": ((0, 2), (1, 0))}),
    Case("padding past half the kernel", (2, 3, 6, 5), 3, {"stride": 1, "padding": 2}),
    Case("same", (2, 3, 7, 8), 3, {"stride": 2, "padding": "same"}),
    Case("same_lower, even kernel, stride 1", (2, 3, 7, 8), 2, {"stride": 1, "padding": "same_lower"}),
    Case("same, ceil_mode", (2, 3, 7, 8), 2, {"stride": 3, "padding": "same", "ceil_mode": True}),
    Case("no image", (0, 3, 6, 6), 2),
    Case("unbatched", (3, 8, 9), 3, {"stride": 2}),
    Case("1-D", (2, 3, 70), 3, {"stride": 2, "padding": 1}, 1),
    Case("1-D, unbatched, ceil_mode", (3, 20), 3, {"ceil_mode": True}, 1),
    Case("3-D", (2, 2, 5, 6, 7), 2, {}, 3),
    Case("3-D, padded, stride by dimension", (1, 2, 5, 6, 9), 3, {"stride": (1, 2, 2), "padding": 1}, 3),
    Case("3-D, ceil_mode", (2, 5, 6, 7), (2, 3, 2), {"stride": 2, "ceil_mode": True, "padding": (0, 1, 1)}, 3),
]
DILATED = [
    Case("dilation 2", (2, 3, 9, 20), 3, {"stride": 1, "dilation": 2}),
    Case("dilation 2, stride 2, padded", (2, 3, 9, 21), 3, {"stride": 2, "dilation": 2, "padding": 2}),
    Case("dilation 3, ceil_mode", (2, 3, 10, 11), 2, {"stride": 2, "dilation": 3, "padding": 1, "ceil_mode": True}),
    Case("dilation by dimension", (2, 3, 9, 10), (2, 3), {"dilation": (3, 1)}),
    Case("1-D, dilation 4", (2, 3, 30), 4, {"dilation": 4, "padding": 5}, 1),
    Case("3-D, dilation by dimension", (2, 2, 6, 5, 7), 2, {"dilation": (1, 2, 3), "stride": 1}, 3),
]
DIVISORS = [
    {},
    {"count_include_pad": False},
    {"divisor_override": 7},
]

max_cases = pytest.mark.parametrize("case", CASES + DILATED, ids=lambda case: case.reason)
avg_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
divisors = pytest.mark.parametrize("divisor", DIVISORS, ids=["", "count_include_pad=False", "divisor_override"])


def generator(case):
    return np.random.default_rng(zlib.crc32(case.reason.encode()))


def with_ties(shape, dtype, rng):
    """Few values, so that most windows have several maxima; zeros of both signs, and infinities."""
    values = np.array([-np.inf, -1, -0.0, 0.0, 1, 2, np.inf], dtype)
    return rng.choice(values, shape, p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.08, 0.02])


# --- Maximum ---------------------------------------------------------------------------------------------------------


def check_max(case, x):
    forward, backward, reference_forward, reference_backward = case.functions("max")
    y, indices = forward(x, case.kernel_size, **case.options, return_indices=True)
    expected, expected_indices = reference_forward(x, case.kernel_size, **case.options, return_indices=True)
    assert y.dtype == x.dtype
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(forward(x, case.kernel_size, **case.options), expected)

    g = generator(case).standard_normal(y.shape).astype(x.dtype)
    arguments = indices, x.shape, case.kernel_size
    actual = backward(g, *arguments, **case.options)
    expected = reference_backward(g, *arguments, **case.options, dtype=np.float64)
    magnitude = reference_backward(np.abs(g), *arguments, **case.options, dtype=np.float64)
    assert_close(actual, expected, bound("sum", x.dtype, case.terms, magnitude), x.dtype, "grad_input")


@max_cases
def test_max_pool(case, isa, dtype):
    check_max(case, generator(case).standard_normal(case.x).astype(dtype))


@max_cases
def test_first_maximum_wins(case, isa, dtype):
    check_max(case, with_ties(case.x, dtype, generator(case)))


@pytest.mark.parametrize("share", [0.02, 0.3, 1])
@max_cases
def test_last_nan_wins(case, share, isa, dtype):
    rng = generator(case)
    x = with_ties(case.x, dtype, rng)
    x[rng.random(case.x) < share] = np.nan
    check_max(case, x)


@max_cases
def test_all_infinite(case, isa, dtype):
    """-inf must not lose to padding, nor to a sentinel."""
    check_max(case, np.full(case.x, -np.inf, dtype))


@max_cases
def test_index_outside_its_window(case, isa, dtype):
    """An error that leaves ``out`` as it was."""
    forward, backward, reference_forward, _ = case.functions("max")
    rng = generator(case)
    y, indices = forward(
        rng.standard_normal(case.x).astype(dtype), case.kernel_size, **case.options, return_indices=True
    )
    size = case.x[-case.ndim :]
    one_hot = np.eye(prod(size)).reshape(-1, *size)  # plane i is 1 at element i alone
    inside = reference_forward(one_hot, case.kernel_size, **case.options).reshape(prod(size), -1)[:, 0]
    outside = rng.permutation(np.flatnonzero(inside == 0))[:8]
    for index in (-1, prod(size), -(2**40), 2**40, 2**63 - 1, *outside) if y.size else ():
        wrong, out = indices.copy(), np.full(case.x, 3, dtype)
        wrong.flat[0] = index
        with pytest.raises(ValueError, match=rf"^max_pool{case.ndim}d_backward: ind"):
            backward(y, wrong, case.x, case.kernel_size, **case.options, out=out)
        assert (out == 3).all()


@pytest.mark.parametrize(
    "case",
    [
        Case("planes that share a table", (2, 9, 5, 6), 3, {"stride": 1, "padding": 1}),
        Case("planes that share a table, dilated", (2, 9, 9, 9), 3, {"stride": 2, "padding": 2, "dilation": 2}),
        Case("rows that share a table", (1, 1, 50, 60), 2),
        Case("a row longer than a table", (1, 2, 1400), 3, {"stride": 2, "padding": 1}, 1),
        Case("slices", (2, 9, 3, 4, 5), 2, {"stride": 1, "padding": 1}, 3),
        Case("the whole image", (3, 9, 7, 7), 7),
        Case("one column", (1, 2, 9, 1), (3, 1), {"stride": 1, "padding": (1, 0)}),
    ],
    ids=lambda case: case.reason,
)
def test_every_wrong_index_is_counted(case, isa, dtype):
    """Of an output anywhere in the array, and as near to its window as an index can be."""
    forward, backward, reference_forward, _ = case.functions("max")
    rng = generator(case)
    y, indices = forward(rng.standard_normal(case.x), case.kernel_size, **case.options, return_indices=True)
    size, out_size = case.x[-case.ndim :], y.shape[-case.ndim :]
    one_hot = np.eye(prod(size)).reshape(-1, *size) if prod(size) < 2000 else None
    for at in {0, 1, prod(out_size) - 1, y.size // 2, y.size - 1, *rng.integers(y.size, size=3).tolist()}:
        right = int(indices.flat[at])
        wrong = [-1, -right - 1, prod(size), right + 2**31, right + 2**32, right - 2**32, right - 2**63, 2**63 - 1]
        if one_hot is not None:
            o = at % prod(out_size)
            windows = reference_forward(one_hot, case.kernel_size, **case.options).reshape(prod(size), -1)
            inside = np.flatnonzero(windows[:, o] > 0)
            neighbours = np.unique([*(inside - 1), *(inside + 1), *(inside - size[-1]), *(inside + size[-1])])
            wrong += np.setdiff1d(neighbours, inside).tolist()
        for index in wrong:
            changed, out = indices.copy(), np.full(case.x, 3, dtype)
            changed.flat[at] = index
            with pytest.raises(ValueError, match=rf"^max_pool{case.ndim}d_backward: indices .* 1\b"):
                backward(y.astype(dtype), changed, case.x, case.kernel_size, **case.options, out=out)
            assert (out == 3).all()


@max_cases
def test_a_nan_of_the_gradient_stays_at_its_index(case, isa, dtype):
    forward, backward, *_ = case.functions("max")
    rng = generator(case)
    y, indices = forward(rng.standard_normal(case.x), case.kernel_size, **case.options, return_indices=True)
    g = np.zeros(y.shape, dtype)
    g.flat[: y.size : max(1, y.size // 3)] = np.nan
    actual = backward(g, indices, case.x, case.kernel_size, **case.options)
    expected = np.zeros(case.x, bool)
    plane = np.arange(y.size) // prod(y.shape[-case.ndim :]) * prod(case.x[-case.ndim :])
    expected.flat[(plane + indices.ravel())[np.isnan(g.ravel())]] = True
    np.testing.assert_array_equal(np.isnan(actual), expected)


def test_every_max_pool_of_a_grid(isa, dtype, rng):
    x = with_ties((2, 2, 8, 9), dtype, rng)
    x[0, 1, ::3, ::4] = np.nan
    choices = product((1, 2, 3, 4), (1, 2, 3), (0, 1), (1, 2), (False, True))
    for kernel, stride, padding, dilation, ceil_mode in choices:
        if padding < (kernel - 1) * dilation + 1:
            options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
            check_max(Case(f"{kernel} {options}", x.shape, kernel, options), x)


# --- Average ---------------------------------------------------------------------------------------------------------


def check_avg(case, x, divisor):
    forward, backward, reference_forward, reference_backward = case.functions("avg")
    options = case.options | divisor
    y = forward(x, case.kernel_size, **options)
    expected = reference_forward(x, case.kernel_size, **options, dtype=np.float64)
    magnitude = reference_forward(np.abs(x), case.kernel_size, **options, dtype=np.float64)
    assert_close(y, expected, bound("sum", x.dtype, case.terms + 1, magnitude), x.dtype, "output")

    g = generator(case).standard_normal(y.shape).astype(x.dtype)
    actual = backward(g, x.shape, case.kernel_size, **options)
    expected = reference_backward(g, x.shape, case.kernel_size, **options, dtype=np.float64)
    magnitude = reference_backward(np.abs(g), x.shape, case.kernel_size, **options, dtype=np.float64)
    assert_close(actual, expected, bound("sum", x.dtype, case.terms + 1, magnitude), x.dtype, "grad_input")


@divisors
@avg_cases
def test_avg_pool(case, divisor, isa, dtype):
    check_avg(case, generator(case).standard_normal(case.x).astype(dtype), divisor)


@avg_cases
def test_nan_and_inf_stay_in_their_windows(case, isa, dtype):
    rng = generator(case)
    x = rng.standard_normal(case.x).astype(dtype)
    x.flat[rng.choice(x.size, min(x.size, 3), replace=False)] = (np.nan, np.inf, -np.inf)[: x.size]
    check_avg(case, x, {})


@pytest.mark.parametrize("size", [(64, 64), (64, 65), (150, 201)])
def test_mean_of_a_large_plane(size, isa, dtype, rng):
    check_avg(Case(f"a plane of {size}", (2, 3, *size), size), rng.random((2, 3, *size)).astype(dtype), {})


def test_every_avg_pool_of_a_grid(isa, dtype, rng):
    x = rng.standard_normal((2, 2, 8, 9)).astype(dtype)
    choices = product((1, 2, 3, 4), (1, 2, 3), (0, 1, 2), (False, True))
    for (kernel, stride, padding, ceil_mode), divisor in product(choices, DIVISORS):
        if padding < kernel:
            options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
            check_avg(Case(f"{kernel} {options}", x.shape, kernel, options), x, divisor)


# --- Both ------------------------------------------------------------------------------------------------------------


@st.composite
def pools(draw):
    """Draw a pool from the whole space of options, small; ceil_mode and dilation with it."""
    ndim = draw(st.integers(1, 3))
    axes = []
    for _ in range(ndim):
        kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        reach = (kernel - 1) * dilation
        before, after = draw(st.integers(0, reach)), draw(st.integers(0, reach))
        smallest = max(dilation, reach + 1 - before - after)  # no window may be all padding
        size = draw(st.integers(smallest, smallest + (40, 15, 6)[ndim - 1]))
        axes.append((size, kernel, dilation, (before, after)))
    size, kernel, dilation, padding = zip(*axes, strict=True)
    options = {
        "stride": draw(st.tuples(*[st.integers(1, 4)] * ndim)),
        "padding": padding,
        "ceil_mode": draw(st.booleans()),
    }
    batch = draw(st.sampled_from([(3,), (1, 1), (2, 5)]))
    return Case("drawn", (*batch, *size), kernel, options, ndim), dilation


@hypothesis.given(pools(), st.sampled_from(fastconv.runtime.available_isas()), st.sampled_from("fd"), st.data())
def test_any_pool(drawn, isa, char, data):
    case, dilation = drawn
    x = with_ties(case.x, char, np.random.default_rng(data.draw(st.integers(0, 99))))
    with fastconv.isa(isa):
        check_max(case._replace(options=case.options | {"dilation": dilation}), x)
        if all(max(pair) < k for pair, k in zip(case.options["padding"], case.kernel_size, strict=True)):
            check_avg(case, np.where(np.isinf(x), 3, x), data.draw(st.sampled_from(DIVISORS)))


def torch_pools_so(kind, case):
    """PyTorch pads by at most half a kernel, refuses an empty batch, and its averages have no dilation."""
    padding = case.options.get("padding", 0)
    halves = not isinstance(padding, str) and np.ndim(padding) < 2 and 2 * np.max(padding) <= np.min(case.kernel_size)
    return halves and 0 not in case.x and not (kind == "avg" and "dilation" in case.options)


@pytest.mark.parametrize(
    ("kind", "case"),
    [pair for pair in product(("max", "avg"), CASES + DILATED) if torch_pools_so(*pair)],
    ids=lambda value: getattr(value, "reason", value),
)
def test_equals_torch(torch, kind, case, dtype):
    ours, backward, *_ = case.functions(kind)
    kernel = case.kernel_size
    x = generator(case).standard_normal(case.x).astype(dtype)
    t = torch.from_numpy(x.copy()).requires_grad_()
    y = getattr(torch.nn.functional, f"{kind}_pool{case.ndim}d")(t, kernel, **case.options)
    g = generator(case).standard_normal(y.shape).astype(dtype)
    y.backward(torch.from_numpy(g))
    limit = {"rtol": 50 * np.finfo(dtype).eps, "atol": 50 * np.finfo(dtype).eps}
    np.testing.assert_allclose(ours(x, kernel, **case.options), y.detach().numpy(), **limit)
    if kind == "max":
        _, indices = ours(x, kernel, **case.options, return_indices=True)
        grad_input = backward(g, indices, x.shape, kernel, **case.options)
    else:
        grad_input = backward(g, x.shape, kernel, **case.options)
    np.testing.assert_allclose(grad_input, t.grad.numpy(), **limit)


@pytest.mark.parametrize("kind", ["max", "avg"])
@avg_cases
def test_out_receives_the_same_bits(kind, case, isa, dtype):
    forward, backward, *_ = case.functions(kind)
    x = generator(case).standard_normal(case.x).astype(dtype)
    y = forward(x, case.kernel_size, **case.options)
    out = np.full_like(y, np.nan)
    assert forward(x, case.kernel_size, **case.options, out=out) is out
    np.testing.assert_array_equal(out, y)

    arguments = [y, x.shape, case.kernel_size]
    if kind == "max":
        arguments.insert(1, forward(x, case.kernel_size, **case.options, return_indices=True)[1])
    out = np.full_like(x, np.nan)
    assert backward(*arguments, **case.options, out=out) is out
    np.testing.assert_array_equal(out, backward(*arguments, **case.options))


def assert_threads_agree(kind, x, window, **layout):
    """Assert that one, two and three threads pool, and pool backward, to the same bits."""
    forward, backward = getattr(fastconv, f"{kind}_pool2d"), getattr(fastconv, f"{kind}_pool2d_backward")
    results = []
    for threads in (1, 2, 3):
        with fastconv.threads(threads):
            if kind == "max":
                y, *indices = forward(x, *window, return_indices=True, **layout)
            else:
                y, *indices = (forward(x, *window, **layout),)
            results.append((y, *indices, backward(y, *indices, x.shape, *window, **layout)))
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((11, 67, 24, 26), (3, 1, 1)),
        ((11, 67, 24, 26), (3, 2, 1)),
        ((11, 67, 24, 26), (5, 3, 2)),
        ((1, 3, 300, 400), (3, 1, 1)),
        ((13, 301, 17, 19), ((17, 19),)),
    ],
)
def test_every_number_of_threads_gives_the_same_bits(kind, shape, window, isa, dtype, rng):
    """Of work enough for several threads."""
    assert_threads_agree(kind, rng.standard_normal(shape).astype(dtype), window)


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_strided_arguments_are_right(kind, isa, dtype, rng):
    x = rng.standard_normal((9, 8, 3, 4)).astype(dtype).T[::2, :, ::-1]
    function = getattr(fastconv, f"{kind}_pool2d")
    np.testing.assert_array_equal(function(x, 3, 2, 1), function(np.ascontiguousarray(x), 3, 2, 1))
