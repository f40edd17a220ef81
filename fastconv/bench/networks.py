"""Whole networks: a forward pass for inference, or a training step, of a model of :mod:`fastconv.models`.

A training step is forward pass, loss, backward pass and SGD with momentum. Its results are the loss and the gradient of
the last layer's weights: in float32 that of the first differs by percents between libraries, as rounding decides what
some ReLU lets pass. The learning rate is zero, so that all steps have the same results; the work is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastconv import fold_batch_norm, layers, models
from fastconv.losses import CrossEntropyLoss
from fastconv.optim import SGD

if TYPE_CHECKING:
    from .cases import Arrays

CLASSES = 1000
OPTIONS = {"lr": 0.0, "momentum": 0.9}  # of SGD


@dataclass(frozen=True)
class Network:
    """A network, the shape of its input and a direction, "inference" or "training", with the interface of a `Case`.

    ``macs`` are the multiplications for one image; a training step counts as three forward passes. ``memory`` asks for
    the peak of the process's memory as well.
    """

    suite: str
    model_name: str
    direction: str
    x_shape: tuple[int, int, int, int]
    macs: int
    memory: bool = False
    source: str = ""

    op: ClassVar[str] = "network"
    groups: ClassVar[int] = 1
    depthwise: ClassVar[bool] = False
    bytes: ClassVar[None] = None  # they depend on what is kept where

    def __str__(self) -> str:
        return f"{self.suite}/{self.name}/{self.direction}"

    @property
    def name(self) -> str:
        return f"{self.model_name}_b{self.x_shape[0]}"

    @property
    def shape(self) -> str:
        return "x".join(map(str, self.x_shape))

    @property
    def out_shape(self) -> tuple[int, int]:
        return (self.x_shape[0], CLASSES)

    @property
    def flop(self) -> int:
        return 2 * self.macs * self.x_shape[0] * (1 if self.direction == "inference" else 3)

    def arrays(self) -> Arrays:
        """Make the images and their classes, the same at every call."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal(self.x_shape, np.float32)
        return {"x": x, "labels": rng.integers(CLASSES, size=len(x))}

    def model(self) -> layers.Module:
        """Make the network, with the same weights at every call, and without dropout."""
        has_dropout = not self.model_name.startswith("resnet")
        return getattr(models, self.model_name)(CLASSES, rng=0, **({"dropout": 0.0} if has_dropout else {}))

    def prepare(self) -> Callable[[NDArray, NDArray], tuple[NDArray, ...]]:
        """Return fastconv's function of images and classes."""
        if self.direction == "training":
            return training_step(self.model())
        model = fold_batch_norm(self.model())
        return lambda x, labels: (model(x),)

    def expected(self, arrays: Arrays) -> tuple[NDArray, ...]:
        """Compute the results in float64, by fastconv itself: tests compare its networks with PyTorch's."""
        model, x = doubled(self.model()), arrays["x"].astype(np.float64)
        return (model.eval()(x),) if self.direction == "inference" else gradients(model, x, arrays["labels"])


def doubled(model: layers.Module) -> layers.Module:
    """Make a model one of float64."""
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    for module in model.modules():
        for name in module.buffer_names[:2]:
            setattr(module, name, getattr(module, name).astype(np.float64))
    return model


def gradients(model: layers.Module, x: NDArray, labels: NDArray) -> tuple[NDArray, ...]:
    """Run both passes; return the loss and the gradient of the last layer's weights."""
    criterion = CrossEntropyLoss()
    loss = criterion(model(x), labels)
    model.backward(criterion.backward(), needs_input_grad=False)
    *_, last, _ = model.parameters()  # the last one is the bias
    return np.array([loss]), last.grad


def training_step(model: layers.Module) -> Callable[[NDArray, NDArray], tuple[NDArray, ...]]:
    """Return the function that trains a model on images and classes."""
    optimizer = SGD(model.parameters(), **OPTIONS)

    def step(x: NDArray, labels: NDArray) -> tuple[NDArray, ...]:
        optimizer.zero_grad()
        results = gradients(model, x, labels)
        optimizer.step()
        return results

    return step


# --- ONNX ------------------------------------------------------------------------------------------------------------


class _Graph:
    """The nodes and constants of an ONNX graph, one layer after another."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, operator: str, inputs: list[str], *constants: NDArray | None, **attributes: Any) -> str:
        """Add an operation on named values and arrays; return the name of its result."""
        from onnx import helper, numpy_helper

        for array in constants:
            if array is not None:
                self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
            inputs = [*inputs, "" if array is None else self.constants[-1].name]
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def layer(self, layer: layers.Module | None, x: str) -> str:
        """Add a layer of fastconv's and what it holds."""
        if layer is None or isinstance(layer, layers.Dropout):
            return x
        if isinstance(layer, layers.Sequential):
            for child in layer:
                x = self.layer(child, x)
            return x
        if isinstance(layer, layers.Residual):
            total = self.node("Add", [self.layer(layer.body, x), self.layer(layer.shortcut, x)])
            return self.layer(layer.activation, total)
        if isinstance(layer, layers.AdaptiveAvgPool2d):  # others keep the size that images of 224 pixels have there
            return self.node("GlobalAveragePool", [x]) if layer.output_size in (1, (1, 1)) else x
        values = [] if not hasattr(layer, "_values") else [*layer._values()]
        if isinstance(layer, layers.Conv2d):
            windows = {"strides": layer.stride, "pads": 2 * layer.padding, "dilations": layer.dilation}
            return self.node("Conv", [x], *values[: 1 + (layer.bias is not None)], **windows, group=layer.groups)
        if isinstance(layer, layers.BatchNorm2d):
            values += [layer.running_mean, layer.running_var]
            return self.node("BatchNormalization", [x], *values, epsilon=layer.eps)
        if isinstance(layer, layers.MaxPool2d):
            windows = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "pads": layer.padding}
            return self.node("MaxPool", [x], **{k: [v] * (4 if k == "pads" else 2) for k, v in windows.items()})
        if isinstance(layer, layers.Linear):
            return self.node("Gemm", [x], *values, transB=1)
        if isinstance(layer, layers.ReLU6):
            return self.node("Clip", [x], np.float32(0), np.float32(6))
        return self.node({"ReLU": "Relu", "Flatten": "Flatten"}[type(layer).__name__], [x])


def onnx_graph(case: Network) -> tuple[list[Any], list[Any]]:
    """Return the nodes of the network from ``x`` to ``y`` and their constants."""
    graph = _Graph()
    graph.layer(case.model(), "x")
    graph.nodes[-1].output[0] = "y"
    return graph.nodes, graph.constants
