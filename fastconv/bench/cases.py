"""What is timed: a case is an operator, a shape and a direction. Shapes are data, in the ``.csv`` files beside this.

``layers`` and ``depthwise`` are convolutions of well-known networks, ``general`` are shapes that no list of layers has
(1x7, odd channel counts, one pixel, 1-D signals), ``operators`` are those of one and three dimensions and transposed
convolutions, ``pooling``, ``relu`` and ``networks`` say what they are. A number for each dimension is written ``3x0``:
rows by columns.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import prod
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from fastconv import reference

from .networks import Network

SUITES = ("layers", "depthwise", "pooling", "relu", "general", "operators")
NETWORKS = "networks"
DIRECTIONS = ("forward", "backward")
Sizes = tuple[int, ...]
Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class Case:
    """One operator on one shape in one direction; ``str`` gives its identity, which ``--filter`` searches.

    ``flop`` counts direct convolution, also for algorithms that need fewer operations, and one comparison or addition
    for each element of a pooling window. ``bytes`` is what a call has to move at least: every array once.
    """

    suite: str
    name: str
    op: str
    direction: str
    x_shape: Sizes
    oc: int
    kernel: Sizes = (1, 1)
    stride: Sizes = (1, 1)
    padding: Sizes = (0, 0)
    dilation: Sizes = (1, 1)
    groups: int = 1
    source: str = ""

    def __str__(self) -> str:
        return f"{self.suite}/{self.name}/{self.direction}"

    @property
    def kind(self) -> str:
        """The operator without its number of dimensions: ``conv``, ``conv_transpose``, ``max_pool``."""
        return self.op.rstrip("123d")

    @property
    def weighted(self) -> bool:
        return self.op.startswith("conv")

    @property
    def transposed(self) -> bool:
        return self.kind == "conv_transpose"

    @property
    def function(self) -> str:
        return self.op if self.direction == "forward" else f"{self.op}_backward"

    @property
    def weight_shape(self) -> Sizes:
        channels = (self.x_shape[1], self.oc) if self.transposed else (self.oc, self.x_shape[1])
        return (channels[0], channels[1] // self.groups, *self.kernel)

    @property
    def out_shape(self) -> Sizes:
        windows = zip(self.x_shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        if self.transposed:
            size = [(i - 1) * s - 2 * p + d * (k - 1) + 1 for i, k, s, p, d in windows]
        else:
            size = [(i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in windows]
        return (self.x_shape[0], self.oc, *size)

    @property
    def depthwise(self) -> bool:
        return self.op == "conv2d" and self.groups == self.x_shape[1] > 1

    @property
    def flop(self) -> int:
        outputs = prod(self.out_shape)
        if self.weighted:
            pixels = prod(self.x_shape if self.transposed else self.out_shape)
            return 2 * pixels * prod(self.weight_shape[1:]) * (1 if self.direction == "forward" else 2)
        return outputs if self._scatters else outputs * prod(self.kernel)

    @property
    def _scatters(self) -> bool:
        return self.kind == "max_pool" and self.direction == "backward"

    @property
    def bytes(self) -> int:
        x, y, weight = prod(self.x_shape), prod(self.out_shape), prod(self.weight_shape)
        if self.weighted:
            return 4 * (x + y + weight) if self.direction == "forward" else 4 * (2 * x + y + 2 * weight)
        also = 4 * x if self.function == "relu_backward" else 8 * y if self._scatters else 0  # x again; int64 indices
        return 4 * (x + y) + also

    @property
    def shape(self) -> str:
        """The shape in words: ``8x128x56x56, 3x3/2, 128``."""
        words = ["x".join(map(str, self.x_shape))]
        if self.op != "relu":
            stride = "" if set(self.stride) == {1} else f"/{self.stride[-1]}"
            words.append("x".join(map(str, self.kernel)) + stride)
        if self.weighted:
            words.append(str(self.oc))
        if set(self.dilation) != {1}:
            words.append(f"dilation {max(self.dilation)}")
        if self.groups > 1:
            words.append("depthwise" if self.depthwise else f"{self.groups} groups")
        return ", ".join(words)

    @property
    def windows(self) -> dict[str, Sizes | int]:
        """The arguments after the arrays, by PyTorch's names."""
        if self.op == "relu":
            return {}
        windows = {"stride": self.stride, "padding": self.padding}
        windows |= {"dilation": self.dilation} if self.weighted else {"kernel_size": self.kernel}
        windows = {name: sizes[0] if len({*sizes}) == 1 else sizes for name, sizes in windows.items()}
        return windows | {"groups": self.groups} if self.weighted else windows

    def arrays(self) -> Arrays:
        """Make the inputs: float32, normal, the same at every call; weights are scaled to keep the variance."""
        rng = np.random.default_rng(crc32(self.name.encode()))
        shapes = {"x": self.x_shape}
        if self.weighted:
            shapes |= {"weight": self.weight_shape, "bias": (self.oc,)}
        if self.direction == "backward":
            shapes |= {"grad_output": self.out_shape}
        arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        if self.weighted:
            arrays["weight"] *= np.float32(prod(self.weight_shape[1:]) ** -0.5)
        return arrays

    def expected(self, arrays: Arrays) -> tuple[NDArray, ...]:
        """Compute the results in float64: the output; or the gradient of the input, and of weight and bias if any."""
        x, grad_output = arrays["x"], arrays.get("grad_output")
        function = getattr(reference, self.function)
        if self.weighted and grad_output is None:
            return (function(x, arrays["weight"], arrays["bias"], **self.windows, dtype=np.float64),)
        if self.weighted:
            return function(grad_output, x, arrays["weight"], **self.windows, dtype=np.float64)
        if self.op == "relu":
            return (function(x) if grad_output is None else function(grad_output, x),)
        if grad_output is None:
            return (function(x.astype(np.float64), **self.windows),)
        where = ()
        if self._scatters:
            where = (getattr(reference, self.op)(x, **self.windows, return_indices=True)[1],)
        return (function(grad_output, *where, self.x_shape, **self.windows, dtype=np.float64),)


def _sizes(text: str, ndim: int) -> Sizes:
    values = tuple(int(number) for number in text.split("x"))
    return values * ndim if len(values) == 1 else values


def _case(suite: str, row: dict[str, str], direction: str) -> Case | Network:
    if suite == NETWORKS:
        shape = (int(row["n"]), 3, int(row["h"]), int(row["w"]))
        macs = 10**6 * int(row["mmacs"])
        return Network(suite, row["model"], direction, shape, macs, bool(row["memory"]), row["from"])
    op = row.get("op", "relu" if suite == "relu" else "conv2d")
    ndim = int(op[-2]) if op != "relu" else 2
    c, size = int(row["c"]), _sizes(row.get("size") or "{h}x{w}".format(**row), ndim)
    names = ("kernel", "stride", "padding", "dilation")
    windows = {name: _sizes(row[name], ndim) for name in names if name in row}
    if "r" in row:
        windows["kernel"] = (int(row["r"]), int(row["s"]))
    defaults = {name: (value,) * ndim for name, value in zip(names, (1, 1, 0, 1), strict=True)}
    options = {"oc": int(row.get("k", c)), "groups": int(row.get("groups", 1)), "source": row["from"]}
    return Case(suite, row["name"], op, direction, (int(row["n"]), c, *size), **options, **(defaults | windows))


def load_cases(suites: Sequence[str] = SUITES, pattern: str | re.Pattern = "") -> list[Case | Network]:
    """Read the cases of ``suites`` whose identity contains the regular expression ``pattern``."""
    cases = []
    for suite in suites:
        with (files(__package__) / f"{suite}.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                directions = [row["direction"]] if "direction" in row else DIRECTIONS
                cases += [_case(suite, row, direction) for direction in directions]
    return [case for case in cases if re.search(pattern, str(case))]
