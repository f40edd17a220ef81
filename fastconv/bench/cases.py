"""What is timed: a case is an operator, a shape and a direction. Shapes are data, in the ``.csv`` files beside this.

``layers`` and ``depthwise`` are convolutions of well-known networks, ``general`` are shapes that no list of layers has
(1x7, odd channel counts, one pixel, 1-D signals), ``pooling`` and ``relu`` say what they are. A pair of numbers is
written ``3x0``: rows by columns.
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

SUITES = ("layers", "depthwise", "pooling", "relu", "general")
DIRECTIONS = ("forward", "backward")
Pair = tuple[int, int]
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
    x_shape: tuple[int, int, int, int]
    oc: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    source: str = ""

    def __str__(self) -> str:
        return f"{self.suite}/{self.name}/{self.direction}"

    @property
    def function(self) -> str:
        return self.op if self.direction == "forward" else f"{self.op}_backward"

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.oc, self.x_shape[1] // self.groups, *self.kernel)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        windows = zip(self.x_shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return (self.x_shape[0], self.oc, *((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in windows))

    @property
    def depthwise(self) -> bool:
        return self.op == "conv2d" and self.groups == self.x_shape[1] > 1

    @property
    def flop(self) -> int:
        outputs = prod(self.out_shape)
        if self.op == "conv2d":
            return 2 * outputs * prod(self.weight_shape[1:]) * (1 if self.direction == "forward" else 2)
        return outputs if self.function == "max_pool2d_backward" else outputs * prod(self.kernel)

    @property
    def bytes(self) -> int:
        x, y, weight = prod(self.x_shape), prod(self.out_shape), prod(self.weight_shape)
        if self.op == "conv2d":
            return 4 * (x + y + weight) if self.direction == "forward" else 4 * (2 * x + y + 2 * weight)
        also = {"relu_backward": 4 * x, "max_pool2d_backward": 8 * y}  # relu reads x again, max_pool int64 indices
        return 4 * (x + y) + also.get(self.function, 0)

    @property
    def shape(self) -> str:
        """The shape in words: ``8x128x56x56, 3x3/2, 128``."""
        words = ["x".join(map(str, self.x_shape))]
        if self.op != "relu":
            stride = "" if self.stride == (1, 1) else f"/{self.stride[0]}"
            words.append("{}x{}".format(*self.kernel) + stride)
        if self.op == "conv2d":
            words.append(str(self.oc))
        if self.dilation != (1, 1):
            words.append(f"dilation {max(self.dilation)}")
        if self.groups > 1:
            words.append("depthwise" if self.depthwise else f"{self.groups} groups")
        return ", ".join(words)

    @property
    def windows(self) -> dict[str, Pair | int]:
        """The arguments after the arrays, by PyTorch's names."""
        if self.op == "relu":
            return {}
        windows = {"stride": self.stride, "padding": self.padding}
        windows |= {"dilation": self.dilation} if self.op == "conv2d" else {"kernel_size": self.kernel}
        windows = {name: a if a == b else (a, b) for name, (a, b) in windows.items()}
        return windows | {"groups": self.groups} if self.op == "conv2d" else windows

    def arrays(self) -> Arrays:
        """Make the inputs: float32, normal, the same at every call; weights are scaled to keep the variance."""
        rng = np.random.default_rng(crc32(self.name.encode()))
        shapes = {"x": self.x_shape}
        if self.op == "conv2d":
            shapes |= {"weight": self.weight_shape, "bias": (self.oc,)}
        if self.direction == "backward":
            shapes |= {"grad_output": self.out_shape}
        arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        if self.op == "conv2d":
            arrays["weight"] *= np.float32(prod(self.weight_shape[1:]) ** -0.5)
        return arrays

    def expected(self, arrays: Arrays) -> tuple[NDArray, ...]:
        """Compute the results in float64: the output; or the gradient of the input, and of weight and bias if any."""
        x, grad_output = arrays["x"], arrays.get("grad_output")
        function = getattr(reference, self.function)
        if self.op == "conv2d" and grad_output is None:
            return (function(x, arrays["weight"], arrays["bias"], **self.windows, dtype=np.float64),)
        if self.op == "conv2d":
            return function(grad_output, x, arrays["weight"], **self.windows, dtype=np.float64)
        if self.op == "relu":
            return (function(x) if grad_output is None else function(grad_output, x),)
        if grad_output is None:
            return (function(x.astype(np.float64), **self.windows),)
        where = (reference.max_pool2d(x, **self.windows, return_indices=True)[1],) if self.op == "max_pool2d" else ()
        return (function(grad_output, *where, self.x_shape, **self.windows, dtype=np.float64),)


def _pair(text: str) -> Pair:
    values = [int(number) for number in text.split("x")]
    return (values[0], values[-1])


def load_cases(suites: Sequence[str] = SUITES, pattern: str | re.Pattern = "") -> list[Case]:
    """Read the cases of ``suites`` whose identity contains the regular expression ``pattern``."""
    cases = []
    for suite in suites:
        with (files(__package__) / f"{suite}.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                shape = tuple(int(row[axis]) for axis in "nchw")
                windows = {name: _pair(row[name]) for name in ("stride", "padding", "dilation") if name in row}
                cases += [
                    Case(
                        suite,
                        row["name"],
                        row.get("op", "relu" if suite == "relu" else "conv2d"),
                        direction,
                        shape,
                        oc=int(row.get("k", shape[1])),
                        kernel=(int(row.get("r", 1)), int(row.get("s", 1))),
                        groups=int(row.get("groups", 1)),
                        source=row["from"],
                        **windows,
                    )
                    for direction in DIRECTIONS
                ]
    return [case for case in cases if re.search(pattern, str(case))]
