"""Convolutions against the oracle: all three passes, on every ISA and both types."""

import zlib
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
import pytest
from tolerance import activation_bound, assert_close, bound

import fastconv
from fastconv import reference

GRADIENTS = ("grad_input", "grad_weight", "grad_bias")
PASSES = {"grad_input": "input_gradient", "grad_weight": "weight_gradient"}


class Case(NamedTuple):
    """A convolution worth testing, and why."""

    reason: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    options: dict[str, Any] = {}  # noqa: RUF012

    @property
    def name(self):
        return f"conv{len(self.weight) - 2}d"

    @property
    def forward(self):
        return getattr(fastconv, self.name)

    @property
    def backward(self):
        return getattr(fastconv, f"{self.name}_backward")

    @property
    def reference(self):
        return getattr(reference, self.name)

    @property
    def reference_backward(self):
        return getattr(reference, f"{self.name}_backward")

    def algorithm(self, name, dtype, algorithm="auto"):
        """Return the algorithm that computes a pass."""
        x = self.x if len(self.x) == len(self.weight) else (1, *self.x)
        return fastconv.explain(self.name, x, self.weight, **self.options, dtype=dtype, algorithm=algorithm)[
            name
        ].algorithm

    def arrays(self, dtype, draw):
        """Return x, weight, bias and grad_output, made by ``draw(shape)``."""
        x, weight, bias = (draw(shape).astype(dtype) for shape in (self.x, self.weight, self.weight[:1]))
        return x, weight, bias, draw(self.reference(x, weight, **self.options).shape).astype(dtype)

    def terms(self, grad_output):
        """Return the number of products in an element of the output, and of each gradient."""
        oc, icg, *kernel = self.weight
        pixels = max(grad_output.size // oc, 1)
        return icg * prod(kernel), (oc // self.options.get("groups", 1) * prod(kernel), pixels, pixels)


# Register tiles are 8 x 48, 6 x 16 and 4 x 8 in float32 and half as wide in float64; K is cut every few hundred.
CASES = [
    Case("ow one short of a vector", (2, 3, 6, 17), (4, 3, 3, 3)),
    Case("ow one vector", (2, 3, 6, 18), (4, 3, 3, 3)),
    Case("ow one past a vector", (2, 3, 6, 19), (4, 3, 3, 3)),
    Case("pixels one past a panel", (1, 5, 7, 7), (9, 5, 3, 3), {"padding": 1}),
    Case("a panel crosses images of 7x7", (3, 5, 7, 7), (9, 5, 3, 3), {"padding": 1}),
    Case("a panel holds many images", (30, 3, 2, 2), (5, 3, 3, 3), {"padding": 1}),
    Case("every pixel of a panel is an image", (53, 3, 3, 3), (9, 3, 3, 3)),
    Case("a row spans panels", (1, 2, 4, 131), (3, 2, 3, 3), {"padding": 1}),
    Case("K one past a slice, and odd", (1, 43, 6, 5), (10, 43, 3, 3), {"padding": 1}),
    Case("K of several slices", (2, 1031, 3, 3), (5, 1031, 1, 1)),
    Case("a pixel, 3x3", (5, 30, 1, 1), (20, 30, 3, 3), {"padding": 1}),
    Case("a dilation of the image's size", (2, 20, 9, 8), (5, 20, 3, 3), {"padding": 9, "dilation": 9}),
    Case("taps of one side", (2, 6, 4, 5), (8, 3, 3, 4), {"padding": ((3, 0), (1, 5)), "groups": 2, "dilation": 2}),
    Case("planes as rows", (2, 6, 9, 4, 5), (8, 3, 3, 1, 1), {"padding": (2, 0, 0), "stride": (2, 1, 1), "groups": 2}),
    Case("planes as rows, padded", (2, 6, 9, 4, 5), (8, 6, 3, 1, 1), {"padding": (2, 1, 0)}),
    Case("planes, one strided window", (1, 6, 5, 3, 2), (4, 6, 3, 1, 1), {"stride": (1, 1, 2)}),
    Case("K of one", (1, 1, 5, 6), (7, 1, 1, 1)),
    Case("oc one past every tile", (1, 4, 6, 6), (25, 4, 3, 3)),
    Case("oc one short of every tile", (1, 4, 6, 6), (23, 4, 3, 3)),
    Case("oc past a block", (1, 3, 5, 5), (131, 3, 3, 3), {"padding": 1}),
    Case("ic past a block", (1, 131, 5, 5), (3, 131, 3, 3), {"padding": 1}),
    Case("oc of many panels, all tiles in one task", (2, 3, 5, 9), (387, 3, 3, 3), {"padding": 1}),
    Case("oc of many panels, no image", (0, 3, 5, 9), (387, 3, 3, 3), {"padding": 1}),
    Case("planes of a volume, flat filters of many panels", (1, 2, 5, 6, 7), (387, 2, 1, 3, 3), {"padding": (0, 1, 1)}),
    Case("ic of many panels, all tiles in one task", (2, 387, 5, 9), (3, 387, 3, 3), {"padding": 1}),
    Case("blocks of rows that share pixels, groups, slices", (1, 900, 3, 5), (262, 450, 1, 1), {"groups": 2}),
    Case("the same of the gradient's residues", (1, 131, 4, 6), (450, 131, 3, 3), {"stride": 2, "padding": 1}),
    Case("one channel to one channel", (2, 1, 9, 9), (1, 1, 3, 3), {"padding": 1}),
    Case("pixels past a block of the weight gradient", (2, 2, 70, 67), (3, 2, 3, 3), {"padding": 1}),
    Case("1x1", (2, 17, 7, 9), (12, 17, 1, 1)),
    Case("one tap: panels of weights first, slices", (3, 523, 5, 3), (131, 523, 1, 1)),
    Case("one tap: pixels first, a thread keeps all weights", (2, 40, 13, 11), (101, 40, 1, 1)),
    Case("one tap: pixels first, weights packed for all", (2, 530, 23, 13), (560, 530, 1, 1)),
    Case("one tap, padded behind", (1, 40, 4, 5), (33, 40, 1, 1), {"padding": ((0, 2), (0, 1))}),
    Case("one tap, padded behind, strided", (2, 40, 4, 5), (33, 40, 1, 1), {"padding": ((0, 3), (0, 0)), "stride": 2}),
    Case("one tap lives, padded behind", (1, 64, 1, 1), (48, 64, 2, 2), {"padding": 3, "stride": 2, "dilation": 3}),
    Case("one tap, one pixel an image, strided", (70, 19, 2, 2), (21, 19, 1, 1), {"stride": 2}),
    Case("one tap, strided over images and planes", (3, 9, 4, 7, 5), (50, 9, 1, 1, 1), {"stride": (2, 3, 2)}),
    Case("1x1 with padding", (2, 5, 7, 9), (6, 5, 1, 1), {"padding": 2}),
    Case("1x1 stride 2", (2, 9, 8, 9), (11, 9, 1, 1), {"stride": 2}),
    Case("1x1 image", (1, 70, 1, 1), (33, 70, 1, 1)),
    Case("1x1 image, 3x3 kernel, padded", (2, 6, 1, 1), (7, 6, 3, 3), {"padding": 1}),
    Case("stride 2, padded, odd size", (2, 5, 11, 13), (6, 5, 3, 3), {"stride": 2, "padding": 1}),
    Case("stride 2, the last row unread", (2, 5, 10, 12), (6, 5, 3, 3), {"stride": 2}),
    Case("stride 3, padded", (2, 4, 13, 14), (5, 4, 5, 5), {"stride": 3, "padding": 2}),
    Case("stride past the kernel: pixels that no tap meets", (2, 4, 14, 15), (5, 4, 3, 3), {"stride": 4, "padding": 1}),
    Case("stride past the image", (2, 3, 5, 4), (4, 3, 2, 2), {"stride": 7, "padding": 1}),
    Case("stride by dimension", (2, 3, 9, 14), (4, 3, 3, 3), {"stride": (1, 3), "padding": (0, 1)}),
    Case("AlexNet's first layer, small", (1, 3, 35, 35), (8, 3, 11, 11), {"stride": 4, "padding": 2}),
    Case("ResNet's first layer, small", (1, 3, 23, 24), (8, 3, 7, 7), {"stride": 2, "padding": 3}),
    Case("kernel 2x5", (2, 3, 7, 11), (5, 3, 2, 5), {"padding": (1, 2)}),
    Case("asymmetric padding", (2, 3, 7, 8), (5, 3, 3, 3), {"padding": ((0, 2), (3, 1))}),
    Case("asymmetric padding, stride 2", (2, 3, 7, 8), (5, 3, 3, 4), {"padding": ((2, 0), (1, 2)), "stride": 2}),
    Case("same", (2, 3, 7, 8), (5, 3, 3, 5), {"padding": "same"}),
    Case("same, even kernel, stride 2", (2, 3, 7, 8), (5, 3, 4, 2), {"padding": "same", "stride": 2}),
    Case("same_lower, even kernel", (2, 3, 7, 8), (5, 3, 4, 2), {"padding": "same_lower"}),
    Case("valid", (2, 3, 7, 8), (5, 3, 3, 3), {"padding": "valid"}),
    Case("padding larger than the kernel", (2, 3, 5, 4), (4, 3, 3, 3), {"padding": 4}),
    Case("padding larger than the kernel, stride 3", (2, 3, 5, 4), (4, 3, 2, 2), {"padding": (5, 3), "stride": 3}),
    Case("dilation 2", (2, 4, 11, 12), (5, 4, 3, 3), {"dilation": 2, "padding": 2}),
    Case(
        "dilation and stride share a factor", (2, 4, 13, 12), (5, 4, 3, 3), {"dilation": 2, "stride": 2, "padding": 1}
    ),
    Case(
        "dilation by dimension, stride 2", (1, 3, 9, 15), (4, 3, 3, 3), {"dilation": (1, 3), "stride": 2, "padding": 2}
    ),
    Case("dilation past the image", (1, 2, 4, 4), (3, 2, 3, 3), {"dilation": 5, "padding": 5}),
    Case("groups 2", (2, 6, 8, 9), (10, 3, 3, 3), {"groups": 2, "padding": 1}),
    Case("groups 4, stride 2", (2, 12, 9, 8), (8, 3, 3, 3), {"groups": 4, "stride": 2, "padding": 1}),
    Case("groups of more than a tile", (1, 34, 5, 6), (36, 17, 1, 1), {"groups": 2}),
    Case("depthwise", (2, 7, 9, 10), (7, 1, 3, 3), {"groups": 7, "padding": 1}),
    Case(
        "depthwise, ow past two vectors, stride 2",
        (1, 5, 8, 68),
        (5, 1, 3, 3),
        {"groups": 5, "stride": 2, "padding": 1},
    ),
    Case("depthwise 5x5", (2, 4, 9, 35), (4, 1, 5, 5), {"groups": 4, "padding": 2}),
    Case("channel multiplier 3", (2, 5, 8, 9), (15, 1, 3, 3), {"groups": 5, "padding": 1}),
    Case("kernel is the whole image", (3, 5, 6, 7), (9, 5, 6, 7)),
    Case("kernel is the whole image, one image", (1, 16, 5, 5), (120, 16, 5, 5)),
    Case("kernel is the whole image, more images than dot products are for", (9, 7, 3, 4), (11, 7, 3, 4)),
    Case("the same, padded behind", (2, 5, 3, 4), (11, 5, 3, 5), {"padding": ((0, 0), (0, 1))}),
    Case("the same, padded behind and dilated", (2, 5, 3, 3), (11, 5, 3, 3), {"padding": ((0, 2),) * 2, "dilation": 2}),
    Case(
        "the same, padded behind and not stepped to",
        (2, 5, 3, 3),
        (9, 5, 3, 3),
        {"padding": ((0, 2),) * 2, "stride": 3},
    ),
    Case("1x1 image, four of them", (4, 300, 1, 1), (37, 300, 1, 1)),
    Case("kernel is the whole padded image", (3, 5, 3, 4), (9, 5, 5, 6), {"padding": 1}),
    Case("depthwise 5x5, stride 2, odd size", (2, 3, 19, 37), (3, 1, 5, 5), {"groups": 3, "stride": 2, "padding": 2}),
    Case("depthwise 7x7, five vectors wide", (1, 2, 9, 75), (2, 1, 7, 7), {"groups": 2, "padding": 3}),
    Case("depthwise 7x7, stride 2", (1, 2, 40, 41), (2, 1, 7, 7), {"groups": 2, "padding": (3, 1), "stride": 2}),
    Case("depthwise, no padding, more rows than a band", (1, 2, 70, 9), (4, 1, 3, 2), {"groups": 2}),
    Case(
        "depthwise, padding larger than the kernel",
        (2, 2, 4, 5),
        (2, 1, 3, 3),
        {"groups": 2, "padding": 4, "stride": 2},
    ),
    Case("depthwise, stride by dimension", (1, 2, 8, 9), (2, 1, 3, 3), {"groups": 2, "stride": (1, 2)}),
    Case(
        "depthwise signals, stride 2", (2, 3, 1, 50), (3, 1, 1, 4), {"groups": 3, "stride": (1, 2), "padding": (0, 2)}
    ),
    Case("depthwise signals longer than a band", (1, 2, 1, 1100), (2, 1, 1, 5), {"groups": 2, "padding": (0, 2)}),
    Case("depthwise signals longer than a band, stride 2", (1, 2, 1, 2190), (4, 1, 1, 2), {"groups": 2, "stride": 2}),
    Case("depthwise, rows as long as a band", (1, 2, 8, 512), (2, 1, 3, 3), {"groups": 2, "padding": 1}),
    Case(
        "depthwise, rows longer than a band by their padding", (1, 2, 3, 508), (2, 1, 3, 3), {"groups": 2, "padding": 4}
    ),
    Case("depthwise, rows longer than a band", (1, 2, 5, 1070), (2, 1, 3, 3), {"groups": 2, "padding": 1}),
    Case(
        "depthwise, rows longer than a band, stride 2",
        (1, 2, 5, 2101),
        (2, 1, 3, 5),
        {"groups": 2, "stride": 2, "padding": 2},
    ),
    Case("signals as 1xW", (2, 4, 1, 53), (6, 4, 1, 5), {"padding": (0, 2)}),
    Case("signals as Hx1", (2, 4, 53, 1), (6, 4, 5, 1), {"padding": (2, 0)}),
    Case("no image", (0, 3, 6, 6), (4, 3, 3, 3)),
    Case("unbatched", (3, 8, 9), (4, 3, 3, 3), {"padding": 1}),
    Case("1-D", (2, 5, 67), (7, 5, 3), {"padding": 1}),
    Case(
        "1-D, dilated, grouped, stride 2",
        (2, 6, 50),
        (4, 3, 4),
        {"dilation": 3, "groups": 2, "stride": 2, "padding": 2},
    ),
    Case("1-D, asymmetric, unbatched", (5, 20), (3, 5, 4), {"padding": ((3, 0),)}),
    Case("1-D, one pixel", (2, 5, 9), (3, 5, 9)),
    Case("3-D", (2, 3, 5, 6, 7), (4, 3, 3, 3, 3), {"padding": 1}),
    Case(
        "3-D, stride by dimension, 'same'", (1, 2, 5, 6, 7), (3, 2, 2, 3, 2), {"stride": (2, 1, 3), "padding": "same"}
    ),
    Case(
        "3-D, dilated depthwise",
        (1, 3, 7, 6, 8),
        (3, 1, 2, 3, 3),
        {"groups": 3, "dilation": (2, 1, 2), "padding": (0, 1, 2)},
    ),
    Case("3-D, depth 1, unbatched", (2, 1, 6, 7), (3, 2, 1, 3, 3), {"padding": (0, 1, 1)}),
    Case("few pixels, past a slice and a block of channels", (2, 50, 5, 5), (70, 50, 3, 3), {"padding": 1}),
    Case("few pixels, strided, a volume", (3, 4, 5, 3, 6), (66, 4, 3, 2, 3), {"padding": 1, "stride": (2, 1, 3)}),
    Case("few pixels, pointwise", (2, 70, 4, 5), (67, 70, 1, 1), {}),
]
FEW = [
    case
    for case in CASES
    if case.reason in ("K one past a slice, and odd", "stride 2, padded, odd size", "groups 2", "3-D")
]

# Winograd's tiles give 4 x 4 or 3 x 3 outputs, or 4, 3 or 12 in a line; patches are up to 16 tiles wide.
WINOGRAD = [
    Case("Winograd: whole tiles", (2, 16, 8, 12), (16, 16, 3, 3), {"padding": 1}),
    Case("Winograd: tiles across every border", (2, 5, 13, 17), (3, 5, 3, 3)),
    Case("Winograd: one pixel", (1, 3, 3, 3), (4, 3, 3, 3)),
    Case("Winograd: a row of several patches", (1, 2, 6, 75), (3, 2, 3, 3), {"padding": 1}),
    Case("Winograd: a panel and a bit of channels", (1, 50, 9, 9), (51, 50, 3, 3), {"padding": 1}),
    Case("Winograd: blocks of patches", (9, 37, 21, 22), (20, 37, 3, 3), {"padding": 1}),
    Case("Winograd: tiles of 3 x 3 outputs", (3, 19, 9, 5), (35, 19, 3, 3), {"padding": 1}),
    Case("Winograd: tiles of 3 x 3 outputs in residues", (2, 18, 33, 17), (5, 18, 3, 3), {"padding": 6, "dilation": 6}),
    Case("Winograd: tiles of 3 x 3 outputs, 3x3x3", (2, 5, 4, 6, 6), (17, 5, 3, 3, 3), {"padding": 1}),
    Case("Winograd: far more residues than outputs", (1, 3, 3), (4, 3, 3), {"padding": 10**6, "dilation": 10**6}),
    Case("Winograd: 5x5", (2, 17, 9, 11), (19, 17, 5, 5), {"padding": 2}),
    Case("Winograd: 5x5, many channels", (1, 131, 13, 14), (67, 131, 5, 5), {"padding": 2}),
    Case("Winograd: 5x5, groups", (1, 6, 8, 7), (4, 3, 5, 5), {"groups": 2}),
    Case(
        "Winograd: dilation 2, residues of unequal size", (2, 17, 15, 13), (18, 17, 3, 3), {"padding": 2, "dilation": 2}
    ),
    Case("Winograd: dilation by dimension", (1, 3, 22, 19), (5, 3, 3, 3), {"padding": (4, 3), "dilation": (4, 3)}),
    Case("Winograd: dilation larger than the image", (2, 3, 5, 7), (4, 3, 3, 3), {"padding": 9, "dilation": 9}),
    Case(
        "Winograd: 5x5, dilation 1 by 2", (1, 6, 9, 12), (4, 3, 5, 5), {"groups": 2, "dilation": (1, 2), "padding": 4}
    ),
    Case("Winograd: planes of a volume", (2, 4, 3, 9, 10), (6, 2, 1, 3, 3), {"groups": 2, "padding": (0, 1, 1)}),
    Case("Winograd: padding larger than the kernel", (1, 3, 5, 4), (4, 3, 3, 3), {"padding": ((0, 5), (4, 1))}),
    Case("Winograd: 3x3x3", (2, 5, 7, 9, 18), (17, 5, 3, 3, 3), {"padding": 1}),
    Case("Winograd: 3x3x3, blocks of patches", (3, 67, 9, 17, 21), (35, 67, 3, 3, 3), {"padding": 1}),
    Case(
        "Winograd: 2x3x3, dilated, groups",
        (1, 6, 5, 8, 9),
        (4, 3, 2, 3, 3),
        {"groups": 2, "dilation": (1, 2, 1)},
    ),
    Case("Winograd: 5x5x5, padded far", (1, 2, 4, 7, 8), (3, 2, 5, 5, 5), {"padding": ((7, 1), (2, 0), (3, 2))}),
    Case("Winograd: 3x3x3, one plane", (1, 19, 1, 9, 8), (18, 19, 3, 3, 3), {"padding": 1}),
    Case("Winograd: 1x9, whole tiles", (2, 16, 4, 24), (16, 16, 1, 9), {"padding": (0, 4)}),
    Case("Winograd: 9x1, whole tiles", (2, 16, 24, 4), (16, 16, 9, 1), {"padding": (4, 0)}),
    Case("Winograd: 1x7, a tile and a bit", (3, 5, 7, 13), (19, 5, 1, 7), {"padding": (1, 3)}),
    Case("Winograd: 7x1, a tile and a bit", (3, 5, 13, 18), (19, 5, 7, 1), {"padding": (3, 1)}),
    Case("Winograd: 1x5, several patches", (1, 35, 9, 400), (33, 35, 1, 5)),
    Case("Winograd: 5x1, several patches", (1, 35, 400, 18), (33, 35, 5, 1)),
    Case("Winograd: a signal, dilated, groups", (2, 6, 131), (8, 3, 8), {"groups": 2, "padding": 9, "dilation": 4}),
    Case(
        "Winograd: 6x1, dilated by dimension",
        (1, 4, 50, 11),
        (5, 4, 6, 1),
        {"dilation": (3, 2), "padding": ((9, 2), (0, 1))},
    ),
    Case("Winograd: one output of a line", (1, 3, 1, 7), (4, 3, 1, 7)),
    Case("Winograd: 1x3", (2, 19, 5, 18), (17, 19, 1, 3), {"padding": (0, 1)}),
    Case("Winograd: 3x1", (2, 19, 18, 5), (17, 19, 3, 1), {"padding": (1, 0)}),
    Case("Winograd: 1x4, groups", (2, 6, 3, 50), (10, 3, 1, 4), {"groups": 2, "padding": (1, 2)}),
    Case("Winograd: 4x1, dilated", (2, 5, 50, 3), (10, 5, 4, 1), {"padding": (5, 1), "dilation": (3, 5)}),
    Case("Winograd: 3x1x1", (2, 19, 9, 4, 5), (17, 19, 3, 1, 1), {"padding": (1, 0, 0)}),
    Case("Winograd: 7x1x1, dilated, groups", (1, 6, 40, 2, 3), (4, 3, 7, 1, 1), {"groups": 2, "dilation": (2, 1, 3)}),
    Case("Winograd: residues of a row", (2, 35, 2, 300), (33, 35, 1, 3), {"padding": (0, 8), "dilation": 8}),
    Case("Winograd: more residues than pixels", (2, 5, 30), (9, 5, 3), {"padding": 40, "dilation": 40}),
    Case("Winograd: more residues than a patch has", (1, 5, 700), (9, 5, 3), {"padding": 200, "dilation": 200}),
    Case("Winograd: blocks of lines", (40, 67, 9, 20), (35, 67, 1, 7), {"padding": (0, 3)}),
]


def serves(algorithm, case):
    try:
        return case.algorithm("output", np.float32, algorithm) == algorithm
    except ValueError:
        return False


FORCED = [(case, a) for case in CASES + WINOGRAD for a in ("im2col", "direct", "winograd") if serves(a, case)]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
a_few_cases = pytest.mark.parametrize("case", FEW, ids=lambda case: case.reason)


def generator(case):
    return np.random.default_rng(zlib.crc32(case.reason.encode()))


def check_output(case, x, weight, bias, actual, activation=None, residual=None, algorithm="auto"):
    expected = case.reference(
        x, weight, bias, activation=activation, residual=residual, dtype=np.float64, **case.options
    )
    magnitudes = (None if a is None else np.abs(a) for a in (x, weight, bias))
    rest = None if residual is None else np.abs(residual)
    magnitude = case.reference(*magnitudes, residual=rest, dtype=np.float64, **case.options)
    terms = case.terms(expected)[0] + (bias is not None) + (residual is not None)
    limit = activation_bound(
        activation,
        x.dtype,
        expected,
        bound(case.algorithm("output", x.dtype, algorithm), x.dtype, terms, magnitude),
    )
    assert_close(actual, expected, limit, x.dtype, "output")


def check_gradients(case, grad_output, x, weight, actual, algorithm="auto"):
    expected = case.reference_backward(grad_output, x, weight, dtype=np.float64, **case.options)
    magnitudes = case.reference_backward(*map(np.abs, (grad_output, x, weight)), dtype=np.float64, **case.options)
    terms = case.terms(grad_output)[1]
    for name, a, e, k, magnitude in zip(GRADIENTS, actual, expected, terms, magnitudes, strict=True):
        by = "sum" if name == "grad_bias" else case.algorithm(PASSES[name], x.dtype, algorithm)
        assert_close(a, e, bound(by, x.dtype, k, magnitude), x.dtype, name)


# --- Against the oracle ----------------------------------------------------------------------------------------------


@every_case
def test_output(case, isa, dtype):
    x, weight, bias, _ = case.arrays(dtype, generator(case).standard_normal)
    check_output(case, x, weight, bias, case.forward(x, weight, bias, **case.options))


@every_case
def test_gradients(case, isa, dtype):
    x, weight, _, g = case.arrays(dtype, generator(case).standard_normal)
    check_gradients(case, g, x, weight, case.backward(g, x, weight, **case.options))


@every_case
def test_small_integers_are_exact(case, isa, dtype):
    """No rounding, so no tolerance: direct summation of small integers gives the oracle's bits."""
    rng = generator(case)
    x, weight, bias, g = case.arrays(dtype, lambda shape: rng.integers(-4, 5, shape))
    y = case.forward(x, weight, bias, **case.options, algorithm="gemm")
    np.testing.assert_array_equal(y, case.reference(x, weight, bias, **case.options))
    actual = case.backward(g, x, weight, **case.options, algorithm="gemm")
    expected = case.reference_backward(g, x, weight, **case.options)
    for name, a, e in zip(GRADIENTS, actual, expected, strict=True):
        np.testing.assert_array_equal(a, e, err_msg=name)


@pytest.mark.parametrize(
    "activation", [None, "relu", "relu6", ("leaky_relu", 0.1), "silu", "hardswish", "sigmoid", "tanh"]
)
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@a_few_cases
def test_bias_residual_and_activation(case, activation, with_bias, with_residual, isa, dtype):
    x, weight, bias, residual = case.arrays(dtype, generator(case).standard_normal)
    weight /= dtype(np.sqrt(case.terms(residual)[0] / 4))  # outputs where activations bend
    bias, residual = bias if with_bias else None, residual if with_residual else None
    y = case.forward(x, weight, bias, **case.options, activation=activation, residual=residual)
    check_output(case, x, weight, bias, y, activation, residual)


def torch_pads_so(case):
    padding = case.options.get("padding", 0)
    return not isinstance(padding, str) and np.ndim(padding) < 2


@pytest.mark.parametrize("case", list(filter(torch_pads_so, CASES)), ids=lambda case: case.reason)
def test_equals_torch(torch, case, dtype):
    rng = generator(case)
    arrays = [a.requires_grad_() for a in map(torch.from_numpy, case.arrays(dtype, rng.standard_normal))]
    *arguments, g = arrays
    y = getattr(torch.nn.functional, case.name)(*arguments, **case.options)
    y.backward(g.detach())
    x, weight, bias = (a.detach().numpy() for a in arguments)
    expected = y.detach().numpy()
    magnitude = case.reference(np.abs(x), np.abs(weight), np.abs(bias), dtype=np.float64, **case.options)
    by = case.algorithm("output", dtype)
    limit = 2 * bound(by, dtype, case.terms(expected)[0] + 1, magnitude)  # both sides round
    assert_close(case.forward(x, weight, bias, **case.options), expected, limit, dtype, "output")

    g = g.detach().numpy()
    actual = case.backward(g, x, weight, **case.options)
    magnitudes = case.reference_backward(np.abs(g), np.abs(x), np.abs(weight), dtype=np.float64, **case.options)
    for name, a, e, k, m in zip(GRADIENTS, actual, arguments, case.terms(g)[1], magnitudes, strict=True):
        by = "sum" if name == "grad_bias" else case.algorithm(PASSES[name], dtype)
        assert_close(a, e.grad.numpy(), 2 * bound(by, dtype, k, m), dtype, name)


BORDERED = [
    Case("padding 1", (2, 3, 6, 7), (4, 3, 3, 3), {"padding": 1}),
    Case("asymmetric, stride 2", (2, 4, 7, 8), (6, 2, 3, 4), {"padding": ((2, 0), (0, 3)), "stride": 2, "groups": 2}),
    Case("as much as there may be", (2, 3, 4, 5), (4, 3, 3, 3), {"padding": (3, 4)}),
    Case("all before, or all after", (2, 3, 4, 5), (4, 3, 3, 3), {"padding": ((0, 3), (4, 0))}),
    Case("same, even kernel, dilated", (2, 3, 7, 8), (5, 3, 4, 2), {"padding": "same", "dilation": 2}),
    Case("no padding", (2, 3, 6, 7), (4, 3, 3, 3)),
    Case("no image", (0, 3, 6, 6), (4, 3, 3, 3), {"padding": 1}),
    Case("unbatched", (3, 8, 9), (4, 3, 3, 3), {"padding": 2}),
    Case("1-D", (2, 5, 27), (7, 5, 5), {"padding": ((4, 1),)}),
    Case("3-D", (2, 3, 4, 5, 6), (4, 3, 3, 3, 3), {"padding": (1, 2, 1)}),
]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("case", BORDERED, ids=lambda case: case.reason)
def test_padding_modes(case, mode, isa, dtype):
    case = case._replace(options=case.options | {"padding_mode": mode})
    x, weight, bias, g = case.arrays(dtype, generator(case).standard_normal)
    options = case.options | {"algorithm": "gemm"}
    expected = case.reference(x, weight, bias, **case.options, dtype=np.float64)
    magnitude = case.reference(*map(np.abs, (x, weight, bias)), **case.options, dtype=np.float64)
    limit = bound("gemm", dtype, case.terms(g)[0] + 1, magnitude)
    assert_close(case.forward(x, weight, bias, **options), expected, limit, dtype, "output")
    expected = case.reference_backward(g, x, weight, **case.options, dtype=np.float64)
    magnitudes = case.reference_backward(*map(np.abs, (g, x, weight)), **case.options, dtype=np.float64)
    terms = np.array(case.terms(g)[1]) * (2 ** (len(case.weight) - 2) * 9, 1, 1)  # the border folds back
    out = tuple(np.empty(a.shape, dtype) for a in (x, weight, bias))
    actual = case.backward(g, x, weight, **options, out=out)
    for name, a, o, e, k, m in zip(GRADIENTS, actual, out, expected, terms, magnitudes, strict=True):
        assert a is o
        assert_close(a, e, bound("gemm", dtype, k, m), dtype, name)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("case", [case for case in BORDERED if torch_pads_so(case)], ids=lambda case: case.reason)
def test_padding_modes_equal_torch(torch, case, mode):
    ndim, options = len(case.weight) - 2, case.options
    x, weight, _, g = case.arrays(np.float64, generator(case).standard_normal)
    layer = getattr(torch.nn, f"Conv{ndim}d")(
        case.weight[1], case.weight[0], case.weight[2:], **options, padding_mode=mode, bias=False
    ).double()
    if not x.size:
        pytest.skip("PyTorch pads no empty batch")
    layer.weight.data = torch.from_numpy(weight)
    theirs = torch.from_numpy(x).requires_grad_()
    y = layer(theirs)
    y.backward(torch.from_numpy(g))
    ours = case.forward(x, weight, **options, padding_mode=mode)
    np.testing.assert_allclose(ours, y.detach(), rtol=1e-12, atol=1e-12)
    grad_input, grad_weight, _ = case.backward(g, x, weight, **options, padding_mode=mode)
    np.testing.assert_allclose(grad_input, theirs.grad, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(grad_weight, layer.weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("case", "algorithm"), FORCED, ids=lambda value: getattr(value, "reason", value))
def test_forced_algorithm(case, algorithm, isa, dtype):
    x, weight, bias, g = case.arrays(dtype, generator(case).standard_normal)
    y = case.forward(x, weight, bias, **case.options, activation="relu", residual=g, algorithm=algorithm)
    check_output(case, x, weight, bias, y, "relu", g, algorithm=algorithm)
    actual = case.backward(g, x, weight, **case.options, algorithm=algorithm)
    check_gradients(case, g, x, weight, actual, algorithm=algorithm)


@pytest.mark.parametrize(("case", "algorithm"), FORCED, ids=lambda value: getattr(value, "reason", value))
def test_nan_and_inf_stay_in_their_windows_by_any_algorithm(case, algorithm, isa, dtype):
    rng = generator(case)
    x, weight, bias, g = case.arrays(dtype, rng.standard_normal)
    spoilt_x, spoilt_g = spoilt(x, rng), spoilt(g, rng)
    y = case.forward(spoilt_x, weight, bias, **case.options, algorithm=algorithm)
    check_output(case, spoilt_x, weight, bias, y, algorithm=algorithm)
    actual = case.backward(g, spoilt_x, weight, **case.options, algorithm=algorithm)
    check_gradients(case, g, spoilt_x, weight, actual, algorithm=algorithm)
    actual = case.backward(spoilt_g, x, weight, **case.options, algorithm=algorithm)
    check_gradients(case, spoilt_g, x, weight, actual, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ["gemm", "im2col", "direct", "winograd"])
def test_denormals_are_flushed_in_convolutions_alone(algorithm, isa):
    tiny = np.full((1, 2, 8, 8), 1e-40, np.float32)
    y = fastconv.conv2d(tiny, np.full((3, 2, 3, 3), 1e3, np.float32), padding=1, algorithm=algorithm)
    np.testing.assert_array_less(np.abs(y), 1e-35)
    zeros, image = np.zeros((3, 2, 3, 3), np.float32), np.ones((1, 2, 8, 8), np.float32)
    y = fastconv.conv2d(image, zeros, residual=np.full((1, 3, 6, 6), 1e-40, np.float32), algorithm=algorithm)
    np.testing.assert_array_equal(y, 0)
    assert np.float32(1e-40) * np.float32(0.5) != 0  # the processor's mode is what it was
    np.testing.assert_array_equal(fastconv.max_pool2d(tiny, 2), tiny[:, :, ::2, ::2])
    np.testing.assert_array_equal(fastconv.relu(tiny), tiny)


# --- Without the oracle ----------------------------------------------------------------------------------------------


@every_case
def test_gradients_are_the_adjoint(case, isa, dtype):
    """<conv(x), g> = <x, grad_input> = <weight, grad_weight>: what bias leaves is linear in x and in weight."""
    x, weight, _, g = case.arrays(dtype, generator(case).standard_normal)
    y = case.forward(x, weight, **case.options).astype(np.float64)
    grad_input, grad_weight, grad_bias = case.backward(g, x, weight, **case.options)
    magnitude = np.vdot(case.reference(np.abs(x), np.abs(weight), **case.options), np.abs(g))
    limit = 2 * bound("gemm", dtype, max(case.terms(g)[0], *case.terms(g)[1]), magnitude)
    assert abs(np.vdot(y, g) - np.vdot(x, grad_input.astype(np.float64))) <= limit
    assert abs(np.vdot(y, g) - np.vdot(weight, grad_weight.astype(np.float64))) <= limit
    sums = g.sum(axis=tuple(i for i in range(g.ndim) if i != g.ndim - len(case.weight) + 1), dtype=np.float64)
    np.testing.assert_allclose(grad_bias, sums, rtol=1e-4, atol=1e-4)


@a_few_cases
def test_gradients_are_the_slopes_of_a_loss(case, isa):
    """Central differences of sum(sin(conv)) in float64, along one random direction."""
    rng = generator(case)
    arrays = case.arrays(np.float64, lambda shape: rng.standard_normal(shape) / 4)[:3]
    directions = [rng.standard_normal(a.shape) for a in arrays]

    def loss(step):
        return np.sin(
            case.forward(*(a + step * d for a, d in zip(arrays, directions, strict=True)), **case.options)
        ).sum()

    gradients = case.backward(np.cos(case.forward(*arrays, **case.options)), *arrays[:2], **case.options)
    slope = sum(np.vdot(g, d) for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose((loss(1e-5) - loss(-1e-5)) / 2e-5, slope, rtol=1e-6)


NON_FINITE = (np.nan, np.inf, -np.inf)


def spoilt(array, rng):
    """Return a copy with each non-finite value in one place, or as many as there is room for."""
    array = array.copy()
    places = rng.choice(array.size, min(array.size, 3), replace=False)
    array.flat[places] = NON_FINITE[: len(places)]
    return array


@every_case
def test_nan_and_inf_in_x_stay_in_their_windows(case, isa, dtype):
    rng = generator(case)
    x, weight, bias, g = case.arrays(dtype, rng.standard_normal)
    x = spoilt(x, rng)
    check_output(case, x, weight, bias, case.forward(x, weight, bias, **case.options))
    check_gradients(case, g, x, weight, case.backward(g, x, weight, **case.options))


@every_case
def test_nan_and_inf_in_grad_output_stay_in_their_windows(case, isa, dtype):
    rng = generator(case)
    x, weight, _, g = case.arrays(dtype, rng.standard_normal)
    g = spoilt(g, rng)
    check_gradients(case, g, x, weight, case.backward(g, x, weight, **case.options))


@every_case  # without gradients: whether zeros outside grad_output are multiplied is the algorithm's affair
def test_nan_and_inf_in_weight_stay_in_their_channels(case, isa, dtype):
    rng = generator(case)
    x, weight, bias, _ = case.arrays(dtype, rng.standard_normal)
    weight = spoilt(weight, rng)
    check_output(case, x, weight, bias, case.forward(x, weight, bias, **case.options))


@every_case
def test_out_receives_the_same_bits(case, isa, dtype):
    x, weight, bias, g = case.arrays(dtype, generator(case).standard_normal)
    y = case.forward(x, weight, bias, **case.options)
    out = np.full_like(y, np.nan)
    assert case.forward(x, weight, bias, **case.options, out=out) is out
    np.testing.assert_array_equal(out, y)

    gradients = case.backward(g, x, weight, **case.options)
    outs = tuple(np.full_like(a, np.nan) for a in gradients)
    for a, returned, out in zip(gradients, case.backward(g, x, weight, **case.options, out=outs), outs, strict=True):
        assert returned is out
        np.testing.assert_array_equal(out, a)


@pytest.mark.parametrize("mask", list(product((False, True), repeat=3)), ids=str)
@a_few_cases
def test_output_mask_leaves_the_other_gradients_alone(case, mask, isa, dtype):
    x, weight, _, g = case.arrays(dtype, generator(case).standard_normal)
    masked = case.backward(g, x, weight, **case.options, output_mask=mask)
    assert [a is not None for a in masked] == list(mask)
    full = case.backward(g, x, weight, **case.options)
    check_gradients(case, g, x, weight, [a if wanted else b for a, b, wanted in zip(masked, full, mask, strict=True)])


def test_strided_arguments_are_right(isa, dtype, rng):
    x, weight, bias = rng.standard_normal((8, 9, 6, 2)).T, rng.standard_normal((3, 3, 6, 8)).T, rng.standard_normal(16)
    x, weight, bias = (a.astype(dtype, order="K") for a in (x, weight, bias))
    x, bias = x[:, :, ::-1], bias[::2]
    native = [np.ascontiguousarray(a) for a in (x, weight, bias)]
    out = np.empty((6, 7, 8, 2), dtype).T
    np.testing.assert_array_equal(fastconv.conv2d(x, weight, bias, out=out), fastconv.conv2d(*native))
