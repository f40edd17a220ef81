"""Networks for inference alone: batch normalisation, activations and residual sums inside the convolutions.

y = w * x                     (x * w - mean) / sqrt(var + eps) * gamma + beta  =  x * w' + b'
w' = w * gamma / sqrt(var + eps),   b' = (b - mean) * gamma / sqrt(var + eps) + beta
"""

from __future__ import annotations

import copy
from operator import is_not
from typing import Any

import numpy as np

from . import functional
from .layers import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Module,
    Parameter,
    ReLU,
    ReLU6,
    Residual,
    Sequential,
)
from .packing import PackedWeight

__all__ = ["FusedConv2d", "fold_batch_norm"]

_KEPT = 8  # plans of a block; one more starts anew


class FusedConv2d(Conv2d):
    """A convolution for inference whose epilogue adds a residual and applies an activation.

    Parameters
    ----------
    convolution : Conv2d
        Whose weights and options it has.
    activation : None, "relu" or "relu6"
        As of :func:`fastconv.conv2d`.
    """

    _packed: PackedWeight | None = None
    channels_last = False  # of the result in memory

    def __init__(self, convolution: Conv2d, activation: str | None = None) -> None:
        vars(self).update(vars(convolution))
        self.activation, self.training = activation, False

    def packed(self) -> tuple[PackedWeight, np.ndarray | None, tuple, str | None]:
        """Return the packed weights, the bias, the options and the activation."""
        weight, bias = self._values()
        if self._packed is None or self._packed.raw is not weight:
            self._packed = PackedWeight(weight)
            self.weight.data = self._packed.raw  # read-only: what was packed cannot be changed unnoticed
        return self._packed, bias, (self.stride, self.padding, self.dilation, self.groups), self.activation

    def forward(self, x: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
        weight, bias, options, activation = self.packed()
        if self.channels_last:
            return functional.conv2d_to_last(x, weight, bias, *options, self.padding_mode, activation, residual)
        fused = {"padding_mode": self.padding_mode, "activation": activation, "residual": residual}
        return functional.conv2d(x, weight, bias, *options, **fused)

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray | None:
        raise RuntimeError("FusedConv2d.backward: it is for inference; train the model that was folded")

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", activation={self.activation}" if self.activation else "")


class _SeparableBlock(Sequential):
    """A 1x1 convolution or none, one with a filter a channel and a 1x1 convolution, computed together where it pays."""

    def __init__(self, *layers: FusedConv2d) -> None:
        super().__init__(*layers)
        self._known: tuple[list, dict] = [], {}  # what plans depend on, and the plans by shape and instruction set

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_known": ([], {})}

    def forward(self, x: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
        layers = [*self]
        block = self._find(layers, x.shape) if isinstance(x, np.ndarray) else None
        y = None if block is None else functional.conv2d_block(x, block, residual)
        if y is None:
            *others, last = layers
            for layer in others:
                x = layer(x)
            y = last.forward(x, residual)
        return y

    def _find(self, layers: list[FusedConv2d], shape: tuple[int, ...]) -> functional.BlockPlan | None:
        used = [value for layer in layers for value in (*layer._values(), layer.activation)]
        known, plans = self._known
        if len(used) != len(known) or any(map(is_not, used, known)):
            packed = [layer.packed() for layer in layers]
            known = [value for weight, bias, _, activation in packed for value in (weight.raw, bias, activation)]
            plans = {}
            self._known = known, plans
        key = shape, functional.isa_index()
        plan = plans.get(key, self)
        if plan is self:
            plan = functional.plan_block(shape, [layer.packed() for layer in layers])
            if len(plans) >= _KEPT:
                plans.clear()
            plans[key] = plan
        return plan


class _GlobalAvgPool2d(AdaptiveAvgPool2d):
    """The mean of an image whose channels lie last in memory."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = functional.global_avg_pool2d(x)
        self._remember(x.shape)
        return y


class _FusedResidual(Residual):
    """A residual block whose last convolution adds the shortcut."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        *layers, last = self.body
        y = x
        for layer in layers:
            y = layer(y)
        return last.forward(y, x if self.shortcut is None else self.shortcut(x))


def fold_batch_norm(model: Module) -> Module:
    """Return a copy of a model for inference, with each batch normalisation inside the convolution before it.

    In every Sequential, a Conv2d with the BatchNorm2d and the ReLU or ReLU6 that follow becomes one convolution; in a
    Residual whose body then ends in a convolution, that also adds the shortcut and applies the activation. Dropout is
    left out. Outputs are those of ``model.eval()`` but for rounding. The first call packs the weights of convolutions,
    as :func:`fastconv.pack_weight` does, and makes them read-only: assign ``weight.data`` to change them.

    Where all convolutions but the first are 1x1 or have a filter a channel, results inside lie in memory with their
    channels last, and 1x1 convolutions around one with a filter a channel are computed with it, in one pass.

    Parameters
    ----------
    model : Module
        Any; it stays as it is.

    Returns
    -------
    Module
        In ``eval()`` mode. Its layers and names are not those of `model`.

    Examples
    --------
    >>> from fastconv.layers import BatchNorm2d, Conv2d, ReLU, Sequential
    >>> fold_batch_norm(Sequential(Conv2d(3, 8, 3, bias=False), BatchNorm2d(8), ReLU()))
    Sequential(
      (0): FusedConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), activation=relu)
    )
    """
    forgotten = {id(module._remembered): None for module in model.modules()}  # what backward reads is not copied
    return _ordered(_folded(copy.deepcopy(model, forgotten))).eval()


def _ordered(model: Module) -> Module:
    """Let channels lie last in memory where all convolutions but the first read them so in place."""
    convolutions = [layer for layer in model.modules() if isinstance(layer, FusedConv2d)]
    if len(convolutions) > 1 and all(_reads_last(convolution) for convolution in convolutions[1:]):
        for convolution in convolutions:
            convolution.channels_last = True
        return _blocked(model)
    return model


def _blocked(layer: Module) -> Module:
    """Join convolutions that are a separable block."""
    if isinstance(layer, Residual):
        layer.body = _blocked(layer.body)
        layer.shortcut = None if layer.shortcut is None else _blocked(layer.shortcut)
        return layer
    if isinstance(layer, AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
        return _GlobalAvgPool2d(layer.output_size)
    for name, child in [*layer.named_children()]:
        setattr(layer, name, _blocked(child))
    if not isinstance(layer, Sequential):
        return layer
    rest, joined = [*layer], []
    while rest:
        count = next((count for count in (3, 2) if _is_separable(rest[:count], count)), 1)
        joined.append(rest[0] if count == 1 else _SeparableBlock(*rest[:count]))
        del rest[:count]
    return Sequential(*joined)


def _is_separable(layers: list[Module], count: int) -> bool:
    if len(layers) < count or not all(isinstance(layer, FusedConv2d) for layer in layers):
        return False
    *first, middle, last = layers
    pointwise = all(layer.kernel_size == (1, 1) and layer.groups == 1 for layer in (*first, last))
    return pointwise and middle.groups > 1 and all(layer.padding_mode == "zeros" for layer in layers)


def _reads_last(convolution: Conv2d) -> bool:
    """Whether a filter is one pixel, or each channel has one of its own."""
    channels = convolution.in_channels
    depthwise = convolution.groups == channels == convolution.out_channels > 1
    return depthwise or (convolution.groups == 1 and convolution.kernel_size == (1, 1))


def _folded(layer: Module) -> Module:
    if isinstance(layer, Sequential):
        return _flattened(layer)
    if isinstance(layer, Residual):
        return _folded_residual(layer)
    for name, child in [*layer.named_children()]:
        setattr(layer, name, _folded(child))
    return layer


def _flattened(sequential: Sequential) -> Sequential:
    """Fuse the layers of a Sequential and of those inside it, in one row."""
    layers: list[Module] = []
    for layer in _rows(sequential):
        last = layers[-1] if layers else None
        if isinstance(layer, Dropout):
            continue
        if isinstance(layer, Conv2d) and not isinstance(layer, FusedConv2d):
            layers.append(FusedConv2d(layer))
        elif isinstance(layer, BatchNorm2d) and isinstance(last, FusedConv2d) and last.activation is None:
            _scale(last, layer)
        elif isinstance(layer, (ReLU, ReLU6)) and isinstance(last, FusedConv2d) and last.activation is None:
            last.activation = type(layer).__name__.lower()
        else:
            layers.append(_folded(layer))
    return Sequential(*layers)


def _rows(sequential: Sequential):
    for layer in sequential:
        if isinstance(layer, Sequential):
            yield from _rows(layer)
        else:
            yield layer


def _scale(convolution: Conv2d, norm: BatchNorm2d) -> None:
    """Make a convolution do what it and the batch normalisation behind it do."""
    weight, bias = convolution._values()
    gamma, beta = norm._values()
    scale = (1 if gamma is None else gamma) / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
    offset = ((0 if bias is None else bias) - norm.running_mean.astype(np.float64)) * scale
    offset = offset + (0 if beta is None else beta)
    convolution.weight = Parameter((weight * scale[:, None, None, None]).astype(weight.dtype))
    convolution.bias = Parameter(offset.astype(weight.dtype))


def _folded_residual(block: Residual) -> Residual:
    body = _flattened(block.body)
    shortcut = None if block.shortcut is None else _folded(block.shortcut)
    last = body[-1] if len(body) else None
    fuses = isinstance(last, FusedConv2d) and last.activation is None
    if not fuses or not (block.activation is None or isinstance(block.activation, (ReLU, ReLU6))):
        return Residual(body, shortcut, None if block.activation is None else _folded(block.activation))
    if block.activation is not None:
        last.activation = type(block.activation).__name__.lower()
    return _FusedResidual(body, shortcut)
