"""Every operator over the whole space of its options, drawn: against the oracle, PyTorch, its adjoint and its slopes.

A family is a strategy that draws an `Operator`: a call with its options, which knows how to run itself by fastconv, by
the oracle and by PyTorch, and how far from each other they may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, ClassVar

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from test_normalization import absolute, gradient_magnitudes
from test_pool import pools
from tolerance import OWN_ERRORS, activation_bound, assert_close, bound

import fastconv
from fastconv import reference

try:
    import torch
except ImportError:
    torch = None

ISAS = fastconv.runtime.available_isas()
ACTIVATIONS = None, "relu", "relu6", ("leaky_relu", 0.2), "silu", "hardswish", "sigmoid", "tanh"


@dataclass
class Operator:
    """A call as drawn: of which arrays, with which options, and the most terms in each sum that it computes."""

    name: str
    shapes: tuple[tuple[int, ...], ...]  # of what it is differentiated in
    options: dict[str, Any]
    terms: tuple[int, ...]  # of the output, and of each gradient

    linear: ClassVar[bool] = True
    by: ClassVar[str] = "sum"  # its row of the tolerances
    takes_out: ClassVar[bool] = True

    def arrays(self, rng):
        return [rng.standard_normal(shape) for shape in self.shapes]

    def forward(self, module, arrays, **more):
        return getattr(module, self.name)(*arrays, **self.options, **more)

    def backward(self, module, g, arrays, **more):
        if len(self.shapes) == 1 and "out" in more:
            (more["out"],) = more["out"]
        gradients = getattr(module, f"{self.name}_backward")(g, *self.kept(module, arrays), **self.options, **more)
        return gradients if isinstance(gradients, tuple) else (gradients,)

    def kept(self, module, arrays):
        """Return what the gradient takes besides that of the output."""
        return (arrays[0].shape,)

    def magnitudes(self, g, arrays):
        """Return the sums of absolute values that the output, and each gradient, are made of."""
        arrays = [np.abs(a) for a in arrays]
        return self.forward(reference, arrays), *self.backward(reference, np.abs(g), arrays)

    def limits(self, g, arrays, dtype, by):
        """Return the largest errors of the output and of each gradient; `g` and `arrays` are those of the oracle."""
        magnitudes = zip(self.terms, self.magnitudes(g, arrays), strict=True)
        return [bound(by, dtype, max(terms, 1), magnitude) for terms, magnitude in magnitudes]

    def theirs(self, *tensors):
        """Return PyTorch's output, or None where it has no such option."""
        return None


# --- Pieces of strategies --------------------------------------------------------------------------------------------

FEW = st.integers(1, 3)


def batches(*more):
    return st.sampled_from([(), (1,), (2,), (5,), *more])


def per_dimension(ndim, values):
    """An integer for all dimensions, or one for each."""
    return st.one_of(values, st.tuples(*[values] * ndim))


def sizes(draw, ndim, least=(1, 1, 1)):
    """Draw extents of images around the width of vectors, small in three dimensions."""
    return tuple(draw(st.integers(low, low + (70, 20, 9)[ndim - 1])) for low in least[:ndim])


def spread(value, ndim):
    return (value,) * ndim if np.ndim(value) == 0 else tuple(value)


def symmetric(padding):
    """Whether PyTorch's operators take a padding as it is."""
    return not isinstance(padding, str) and np.ndim(padding) < 2


def extents(kernel, dilation):
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, spread(dilation, len(kernel)), strict=True))


# --- Convolutions ----------------------------------------------------------------------------------------------------


class Weighted(Operator):
    """Of an input, weights and a bias."""

    by = "winograd"

    def forward(self, module, arrays, bias=True, **more):
        return super().forward(module, arrays if bias else arrays[:2], **more)

    def kept(self, module, arrays):
        return arrays[:2]


class Convolution(Weighted):
    def theirs(self, x, weight, bias):
        ndim, options = weight.ndim - 2, dict(self.options)
        mode, padding = options.pop("padding_mode"), options.pop("padding")
        x = x if x.ndim == ndim + 2 else x[None]
        steps = (spread(options[key], ndim) for key in ("stride", "dilation"))
        pads = reference._pads(padding, x.shape[2:], weight.shape[2:], *steps)
        if not x.numel():
            return None
        x = torch.nn.functional.pad(x, sum(reversed(pads), ()), "constant" if mode == "zeros" else mode)
        y = getattr(torch.nn.functional, self.name)(x, weight, bias, **options)
        return y if len(self.shapes[0]) == ndim + 2 else y[0]


class Transposed(Weighted):
    def theirs(self, *tensors):
        if symmetric(self.options["padding"]) and tensors[0].numel():
            return getattr(torch.nn.functional, self.name)(*tensors, **self.options)


class Linear(Weighted):
    by = "gemm"

    def theirs(self, *tensors):
        return torch.nn.functional.linear(*tensors)


@st.composite
def convolutions(draw):
    ndim, groups = draw(FEW), draw(FEW)
    kernel = draw(st.tuples(*[st.integers(1, 4)] * ndim))
    stride, dilation = draw(per_dimension(ndim, st.integers(1, 4))), draw(per_dimension(ndim, FEW))
    pad = st.integers(0, 4)
    pairs = st.tuples(*[st.tuples(pad, pad)] * ndim)
    padding = draw(st.one_of(per_dimension(ndim, pad), pairs, st.sampled_from(["same", "same_lower", "valid"])))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    size = sizes(draw, ndim, (1, 1, 1) if mode == "zeros" else (6, 6, 6))  # no border is as large as that
    if padding not in ("same", "same_lower"):
        before_and_after = np.array(reference._pads(padding, *[(1,) * ndim] * 4)).sum(1)
        size = tuple(int(s) for s in np.maximum(size, extents(kernel, dilation) - before_and_after))
    icg, ocg = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    x, weight = (*draw(batches((0,))), groups * icg, *size), (groups * ocg, icg, *kernel)
    pixels, taps = prod(x) // (groups * icg) * 9**ndim, prod(kernel)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    terms = icg * taps + 2, ocg * taps * 9**ndim, pixels, pixels
    return Convolution(f"conv{ndim}d", (x, weight, weight[:1]), options, terms)


@st.composite
def transposed(draw):
    ndim, groups = draw(FEW), draw(FEW)
    kernel, size = draw(st.tuples(*[st.integers(1, 4)] * ndim)), sizes(draw, ndim)
    stride, dilation = (draw(per_dimension(ndim, FEW)) for _ in range(2))
    strides, dilations = spread(stride, ndim), spread(dilation, ndim)
    behind = tuple(draw(st.integers(0, max(pair) - 1)) for pair in zip(strides, dilations, strict=True))
    pads = []
    for i, s, extent, o in zip(size, strides, extents(kernel, dilation), behind, strict=True):
        room = (i - 1) * s + extent + o - 1
        before = draw(st.integers(0, min(4, room)))
        pads.append((before, draw(st.integers(0, min(4, room - before)))))
    padding = draw(st.sampled_from([tuple(pads), tuple(min(pair[0], sum(pair) // 2) for pair in pads)]))
    icg, ocg = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    x, weight = (*draw(batches((0,))), groups * icg, *size), (groups * icg, ocg, *kernel)
    options = {"stride": stride, "padding": padding, "output_padding": behind, "groups": groups, "dilation": dilation}
    pixels, taps = prod(x) // (groups * icg), prod(kernel)
    terms = icg * taps + 2, ocg * taps, pixels, pixels * taps * 9
    return Transposed(f"conv_transpose{ndim}d", (x, weight, (groups * ocg,)), options, terms)


@st.composite
def linears(draw):
    lead = draw(st.lists(st.integers(0, 9), max_size=3))
    features, out_features = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    shapes = (*lead, features), (out_features, features), (out_features,)
    return Linear("linear", shapes, {}, (features + 1, out_features, prod(lead), prod(lead)))


# --- Pools -----------------------------------------------------------------------------------------------------------


class Pool(Operator):
    """A pool of windows; PyTorch's are no larger than the image, and padded by at most half of one."""

    def theirs(self, x):
        padding, kernel = self.options.get("padding", 0), spread(self.options["kernel_size"], self.ndim)
        if not symmetric(padding) or any(k > i for i, k in zip(x.shape[-self.ndim :], kernel, strict=True)):
            return None
        halves = all(2 * p <= k for p, k in zip(spread(padding, self.ndim), kernel, strict=True))
        if halves and x.numel() and not (self.ndim == 1 and self.options.get("divisor_override")):
            options = {key: value for key, value in self.options.items() if key != "divisor_override" or value}
            return getattr(torch.nn.functional, self.name)(x, **options)

    @property
    def ndim(self):
        return int(self.name[-2])


class MaxPool(Pool):
    """Linear, once its indices are known; and exact."""

    def arrays(self, rng):
        return [np.round(2 * array) for array in super().arrays(rng)]

    def kept(self, module, arrays):
        return self.forward(module, arrays, return_indices=True)[1], arrays[0].shape

    def magnitudes(self, g, arrays):
        y, grad = self.forward(reference, arrays), self.backward(reference, np.abs(g), arrays)
        return 0 * y, *grad


class AdaptiveAvgPool(Operator):
    def theirs(self, x):
        size = self.options["output_size"]
        if x.numel() and size is not None and not ("1d" in self.name and size == (None,)):
            return getattr(torch.nn.functional, self.name)(x, **self.options)


class AdaptiveMaxPool(AdaptiveAvgPool, MaxPool):
    pass


class LpPool(Operator):
    """PyTorch takes no absolute values, and knows neither padding nor ceil_mode as ONNX does."""

    linear = False

    def arrays(self, rng):
        """Return values away from 0, where norms have a corner."""
        return [x + np.copysign(0.2, x) for x in super().arrays(rng)]

    def kept(self, module, arrays):
        return arrays

    def limits(self, g, arrays, dtype, by):
        powers = 8 * max(self.options["norm_type"], 1 / self.options["norm_type"])  # and what these amplify
        y, *gradients = self.magnitudes(g, arrays)
        return [bound(by, dtype, self.terms[0] + powers**2, np.abs(m)) for m in (y, *gradients)]

    def theirs(self, x):
        options = {key: value for key, value in self.options.items() if key != "padding"}
        if x.numel() and options["norm_type"] == 2 and not options["ceil_mode"] and not np.any(self.options["padding"]):
            if "1d" in self.name:  # takes integers
                options = {key: value[0] if np.ndim(value) else value for key, value in options.items()}
            return getattr(torch.nn.functional, self.name)(x, **options)


@dataclass
class MaxUnpool(Operator):
    """With indices that are all different."""

    indices: np.ndarray

    def forward(self, module, arrays, **more):
        return super().forward(module, (*arrays, self.indices), **more)

    def kept(self, module, arrays):
        return (self.indices,)

    def theirs(self, x):
        if x.numel():
            return getattr(torch.nn.functional, self.name)(x, torch.from_numpy(self.indices), **self.options)


@st.composite
def windows(draw, dilated):
    """Draw (ndim, shape of x, options) of a pool; without dilation the padding is below the kernel."""
    case, dilation = draw(pools())
    kernel = case.kernel_size if dilated else extents(case.kernel_size, dilation)
    options = {"kernel_size": kernel, **case.options} | ({"dilation": dilation} if dilated else {})
    if draw(st.booleans()):  # as PyTorch has it
        sides = zip(options["padding"], kernel, strict=True)
        halves = tuple(max(0, min(k // 2, max(pair))) for pair, k in sides)
        size, reach = case.x[-case.ndim :], extents(kernel, options.get("dilation", 1))
        if all(s + 2 * p >= r for s, p, r in zip(size, halves, reach, strict=True)):
            options["padding"] = halves
    if draw(st.booleans()) and all(s >= e for s, e in zip(case.x[-case.ndim :], kernel, strict=True)):
        options |= {"stride": None, "padding": 0, "dilation": 1} if dilated else {"stride": None, "padding": 0}
    return case.ndim, case.x, options


@st.composite
def max_pools(draw):
    ndim, x, options = draw(windows(True))
    return MaxPool(f"max_pool{ndim}d", (x,), options, (1, prod(options["kernel_size"])))


@st.composite
def avg_pools(draw):
    ndim, x, options = draw(windows(False))
    options |= {"count_include_pad": draw(st.booleans()), "divisor_override": draw(st.sampled_from([None, 1, 7]))}
    terms = prod(options["kernel_size"]) + 1
    return Pool(f"avg_pool{ndim}d", (x,), options, (terms, terms))


@st.composite
def lp_pools(draw):
    ndim, x, options = draw(windows(False))
    options["norm_type"] = draw(st.sampled_from([0.5, 1, 1.5, 2, 2.0, 3]))
    return LpPool(f"lp_pool{ndim}d", (x,), options, (prod(options["kernel_size"]),) * 2)


@st.composite
def adaptive_pools(draw):
    ndim, cls = draw(FEW), draw(st.sampled_from([AdaptiveAvgPool, AdaptiveMaxPool]))
    size, batch = sizes(draw, ndim), draw(st.sampled_from([(3,), (1, 1), (2, 5), (0, 2)]))
    out = st.none() | st.integers(1, (40, 9, 5)[ndim - 1])
    name = f"adaptive_{'avg' if cls is AdaptiveAvgPool else 'max'}_pool{ndim}d"
    terms = (prod(size), 3**ndim * 40)
    return cls(name, ((*batch, *size),), {"output_size": draw(per_dimension(ndim, out))}, terms)


@st.composite
def max_unpools(draw):
    ndim, batch = draw(FEW), draw(st.sampled_from([(3,), (1, 1), (2, 5), (0, 2)]))
    size, padding = tuple(draw(st.integers(1, 9)) for _ in range(ndim)), draw(per_dimension(ndim, st.integers(0, 2)))
    kernel = tuple(2 * p + draw(FEW) for p in spread(padding, ndim))
    stride = draw(per_dimension(ndim, FEW))
    out = np.array([(i - 1) * s + k for i, s, k in zip(size, spread(stride, ndim), kernel, strict=True)])
    out = tuple(map(int, out - 2 * np.array(spread(padding, ndim))))
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    if draw(st.booleans()):
        out = tuple(o + draw(st.integers(0, s - 1)) for o, s in zip(out, spread(stride, ndim), strict=True))
        options["output_size"] = out
    rng, planes = np.random.default_rng(0), prod(batch)
    indices = [rng.permutation(prod(out))[: prod(size)] for _ in range(planes)]
    indices = np.array(indices, np.int64).reshape(*batch, *size)
    return MaxUnpool(f"max_unpool{ndim}d", ((*batch, *size),), options, (1, 1), indices)


# --- Unfolding -------------------------------------------------------------------------------------------------------


@dataclass
class Unfold(Operator):
    output_size: tuple[int, ...]

    def backward(self, module, g, arrays, out=(None,)):
        more = {"out": out[0]} if out[0] is not None else {}
        return (module.fold(g, self.output_size, **self.options, **more),)

    def theirs(self, x):
        options = dict(self.options)
        if options.pop("order") is None and len(self.output_size) == 2 and x.numel() and symmetric(options["padding"]):
            return self.torch_so(x, options)

    def torch_so(self, x, options):
        return torch.nn.functional.unfold(x, **options)


class Fold(Unfold):
    def forward(self, module, arrays, **more):
        return module.fold(*arrays, self.output_size, **self.options, **more)

    def backward(self, module, g, arrays, out=(None,)):
        more = {"out": out[0]} if out[0] is not None else {}
        return (module.unfold(g, **self.options, **more),)

    def torch_so(self, x, options):
        return torch.nn.functional.fold(x, self.output_size, **options)


@st.composite
def unfolds(draw):
    conv = draw(convolutions().filter(lambda op: prod(op.shapes[0])))
    ndim, (x, weight, _) = int(conv.name[-2]), conv.shapes
    size, kernel, order = x[-ndim:], weight[2:], draw(st.sampled_from([None, None, "batch_outer", "batch_inner"]))
    x = (*(x[: -ndim - 1] or ((2,) if order else ())), draw(FEW), *size)
    options = {key: conv.options[key] for key in ("stride", "padding", "dilation")}
    options |= {"kernel_size": kernel, "order": order}
    if draw(st.booleans()):
        return Unfold("unfold", (x,), options, (1, prod(kernel)), size)
    return Fold("fold", (reference.unfold(np.zeros(x), **options).shape,), options, (prod(kernel), 1), size)


# --- Activations and normalisation -----------------------------------------------------------------------------------


class Curved(Operator):
    """No linear function."""

    linear = False

    def kept(self, module, arrays):
        return arrays[:1]


class Activation(Curved):
    def kept(self, module, arrays):
        return (self.forward(module, arrays),) if self.name in ("sigmoid", "tanh") else arrays

    def limits(self, g, arrays, dtype, by):
        y, eps = self.forward(reference, arrays), np.finfo(dtype).eps
        return OWN_ERRORS.get(self.name, 0) * eps * (1 + np.abs(y)), 8 * eps * (1 + np.abs(arrays[0])) * np.abs(g)

    def theirs(self, x):
        return getattr(torch if self.name in ("sigmoid", "tanh") else torch.nn.functional, self.name)(x, **self.options)


class Softmax(Curved):
    def kept(self, module, arrays):
        return (self.forward(module, arrays),)

    def magnitudes(self, g, arrays):
        y, axis, g = self.forward(reference, arrays), self.options["axis"], np.abs(g)
        return 1 + np.abs(y), 2 * (g + g.sum(axis, keepdims=True)) * (1 + np.abs(y))

    def theirs(self, x):
        return getattr(torch.nn.functional, self.name)(x, self.options["axis"])


class BatchNorm(Curved):
    """Of an input and, or not, weight and bias; the running statistics are 0.3 and 1.2."""

    def running(self, like):
        return [np.full(like.shape[1], value, like.dtype) for value in (0.3, 1.2)]

    def forward(self, module, arrays, **more):
        x, *affine = arrays
        return getattr(module, self.name)(x, *self.running(x), *affine, **self.options, **more)

    def backward(self, module, g, arrays, **more):
        x, *affine = arrays
        more |= {key: self.options[key] for key in ("training", "eps")}
        if not affine and "out" in more:
            more |= {"out": (*more["out"], None, None), "output_mask": (True, False, False)}
        return module.batch_norm_backward(g, x, *self.statistics(module, x), *affine[:1], **more)[: len(arrays)]

    def statistics(self, module, x):
        return module.batch_norm(x, *self.running(x), **self.options, return_statistics=True)[1:]

    def magnitudes(self, g, arrays):
        x, (weight, bias) = arrays[0], arrays[1:] or (np.ones(arrays[0].shape[1]), np.zeros(arrays[0].shape[1]))
        mean, var = self.statistics(reference, x)
        training, eps = self.options["training"], self.options["eps"]
        y = absolute(x, weight, bias, mean, var, training, eps)
        return y, *gradient_magnitudes(g, x, weight, mean, var, training, eps)[: len(arrays)]

    def theirs(self, x, *affine):
        running = map(torch.from_numpy, self.running(x.detach().numpy()))
        return torch.nn.functional.batch_norm(x, *running, *affine, **self.options) if x.numel() else None


class LocalResponse(Curved):
    takes_out = False

    def magnitudes(self, g, arrays):
        (x,), g = arrays, np.abs(g)
        largest = np.abs(x).max(initial=1) ** 2
        return np.abs(x) + 0 * g, g + g.max(initial=0) * largest * self.options["alpha"]

    def theirs(self, x):
        return torch.nn.functional.local_response_norm(x, **self.options) if x.numel() and x.ndim > 2 else None


@st.composite
def activations(draw):
    name = draw(st.sampled_from(["relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "hardswish"]))
    options = {"negative_slope": draw(st.floats(0, 2))} if name == "leaky_relu" else {}
    shape = tuple(draw(st.lists(st.integers(0, 40), max_size=3)))
    return Activation(name, (shape,), options, (1, 1))


@st.composite
def softmaxes(draw):
    shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    name = draw(st.sampled_from(["softmax", "log_softmax"]))
    return Softmax(name, (shape,), {"axis": axis}, (shape[axis] + 8,) * 2)


@st.composite
def batch_norms(draw):
    training, affine = draw(st.booleans()), draw(st.booleans())
    c, size = draw(st.integers(1, 20)), tuple(draw(st.lists(st.integers(1, 12), max_size=3)))
    n = draw(st.integers(0 if not training else 1 if prod(size) > 2 else 3, 5))
    options = {"training": training, "momentum": draw(st.sampled_from([0.0, 0.1, 1.0]))}
    options["eps"] = draw(st.sampled_from([1e-5, 1e-2]))
    shapes = ((n, c, *size), (c,), (c,)) if affine else ((n, c, *size),)
    terms = 8 + training * n * prod(size)  # of the statistics
    return BatchNorm("batch_norm", shapes, options, (terms,) * (1 + len(shapes)))


@st.composite
def local_responses(draw):
    shape = draw(st.integers(0, 3)), draw(st.integers(1, 20)), *draw(st.lists(st.integers(1, 12), max_size=3))
    options = {"size": draw(st.integers(1, 7)), "alpha": draw(st.sampled_from([1e-4, 0.5]))}
    options |= {"beta": draw(st.sampled_from([0.5, 0.75, 1.0])), "k": draw(st.sampled_from([1.0, 2.0]))}
    return LocalResponse("local_response_norm", (shape,), options, (options["size"] + 40,) * 2)


# --- What holds for every operator -----------------------------------------------------------------------------------

FAMILIES = {
    "conv": convolutions(),
    "conv_transpose": transposed(),
    "linear": linears(),
    "max_pool": max_pools(),
    "avg_pool": avg_pools(),
    "lp_pool": lp_pools(),
    "adaptive_pool": adaptive_pools(),
    "max_unpool": max_unpools(),
    "unfold": unfolds(),
    "activation": activations(),
    "softmax": softmaxes(),
    "batch_norm": batch_norms(),
    "local_response_norm": local_responses(),
}
LAYOUTS = {
    "C": lambda a: a,
    "F": lambda a: np.copy(a, order="F"),
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1] if a.ndim else a,
    "every second": lambda a: np.repeat(a, 2, -1)[..., ::2] if a.ndim else a,
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
}
layouts = st.sampled_from([*LAYOUTS])


def check(actual, expected, limits, dtype, what):
    assert len(actual) == len(expected)
    for i, (a, e, limit) in enumerate(zip(actual, expected, limits, strict=True)):
        assert_close(np.asarray(a), np.asarray(e), limit, dtype, f"{what} {i}")


def doubles(arrays):
    return [a.astype(np.float64) for a in arrays]


def check_adjoint(op, arrays, y, g, gradients, by):
    """<op(x), g> = <x, op_backward(g)>; of weights too, less what the bias adds."""
    own = np.vdot(y.astype(np.float64), g)
    magnitude = np.vdot(op.forward(reference, [np.abs(a) for a in doubles(arrays)]), np.abs(g))
    limit = 2 * bound(by, y.dtype, max(*op.terms, y.size, 1), magnitude)
    for i, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
        rest = 0
        if len(arrays) == 3:
            rest = np.vdot(arrays[2].astype(np.float64), gradients[2]) if i < 2 else np.inf
        if np.isfinite(rest):
            assert abs(own - rest - np.vdot(array.astype(np.float64), gradient)) <= limit, f"adjoint in {i}"


def check_slopes(op, arrays, rng):
    """A directional derivative by central differences in float64, away from the activations' kinks."""
    arrays, step = doubles(arrays), 1e-5
    for a, kink in product(arrays, (-3, 0, 3, 6)):
        a[np.abs(a - kink) < 2 * step] += 4 * step
    directions = [rng.uniform(-1, 1, a.shape) for a in arrays]
    g = rng.standard_normal(op.forward(fastconv, arrays).shape)

    def loss(t):
        return np.vdot(op.forward(fastconv, [a + t * d for a, d in zip(arrays, directions, strict=True)]), g)

    gradients = op.backward(fastconv, g, arrays)
    slope = sum(np.vdot(a, d) for a, d in zip(gradients, directions, strict=True))
    scale = sum(np.vdot(np.abs(a), np.abs(d)) for a, d in zip(gradients, directions, strict=True))
    assert abs((loss(step) - loss(-step)) / (2 * step) - slope) <= 1e-6 * (scale + np.abs(g).sum())


def check_layouts(op, arrays, y, g, gradients, layout, more):
    """Neither the layout of arguments nor that of `out` changes a bit."""
    change = LAYOUTS[layout]
    given, target = [change(a) for a in arrays], LAYOUTS["F"] if layout == "swapped" else change
    out, *outs = (target(np.full_like(a, np.nan)) for a in (y, *gradients))
    assert op.forward(fastconv, given, **more, out=out) is out
    np.testing.assert_array_equal(out, y)
    returned = op.backward(fastconv, change(g), given, **more, out=tuple(outs))
    for a, o, e in zip(returned, outs, gradients, strict=True):
        assert a is o
        np.testing.assert_array_equal(o, e)


def check_mask(op, arrays, g, gradients, limits, mask, more):
    """Only what is asked for is computed, and as well."""
    masked = op.backward(fastconv, g, arrays, **more, output_mask=mask)
    assert [a is not None for a in masked] == list(mask)
    merged = [a if wanted else b for a, b, wanted in zip(masked, gradients, mask, strict=True)]
    exact = op.backward(reference, g.astype(np.float64), doubles(arrays))
    check(merged, exact, limits, g.dtype, f"{op.name} masked")


def check_epilogue(op, arrays, shape, limit, more, activation, with_bias, with_residual, rng):
    """A fused bias, residual and activation."""
    dtype = arrays[0].dtype
    given = {"bias": with_bias, "activation": activation}
    if with_residual and op.name != "linear":
        given["residual"] = rng.standard_normal(shape).astype(dtype)
    expected = op.forward(reference, doubles(arrays), **given)
    limit = activation_bound(activation, dtype, expected, limit + 2 * np.finfo(dtype).eps * (1 + limit + 9))
    assert_close(op.forward(fastconv, arrays, **given, **more), expected, limit, dtype, f"with {activation}")


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
@hypothesis.given(st.data(), st.sampled_from(ISAS), st.sampled_from("fd"), layouts, st.integers(0, 99))
def test_every_option(family, data, isa, char, layout, seed):
    op, rng, dtype = data.draw(FAMILIES[family]), np.random.default_rng(seed), np.dtype(char)
    arrays = [np.asarray(a, dtype) for a in op.arrays(rng)]
    with fastconv.isa(isa):
        more, by = {}, op.by
        if op.by == "winograd":
            more["algorithm"] = data.draw(st.sampled_from(["auto", "gemm", "im2col", "direct", "winograd"]))
            by = op.by if more["algorithm"] in ("auto", "winograd") else "gemm"
        try:
            y = op.forward(fastconv, arrays, **more)
        except ValueError as error:
            hypothesis.assume("algorithm must be one of" not in str(error))
            raise
        g = rng.standard_normal(y.shape).astype(dtype)
        gradients = op.backward(fastconv, g, arrays, **more)
        exact = doubles([g, *arrays])
        results = op.forward(reference, exact[1:]), *op.backward(reference, exact[0], exact[1:])
        limits = op.limits(exact[0], exact[1:], dtype, by)
        check((y, *gradients), results, limits, dtype, op.name)
        if op.linear:
            check_adjoint(op, arrays, y, g, gradients, by)
        else:
            check_slopes(op, arrays, rng)
        if op.takes_out:
            check_layouts(op, arrays, y, g, gradients, layout, more)
        if isinstance(op, Weighted):
            mask = data.draw(st.tuples(*[st.booleans()] * 3))
            check_mask(op, arrays, g, gradients, limits[1:], mask, more)
            activation = data.draw(st.sampled_from(ACTIVATIONS))
            check_epilogue(
                op, arrays, y.shape, limits[0], more, activation, *data.draw(st.tuples(*[st.booleans()] * 2)), rng
            )
    if torch is not None and dtype == np.float64:
        tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
        theirs = op.theirs(*tensors)
        if theirs is not None:
            theirs.backward(torch.from_numpy(g))
            expected = [theirs.detach(), *(t.grad for t in tensors)]
            check((y, *gradients), expected, [2 * limit for limit in limits], dtype, f"{op.name} of PyTorch")
