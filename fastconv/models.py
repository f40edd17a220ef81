"""The networks of the textbooks, with torchvision's ``state_dict`` keys where it has them, and files for their weights.

    >>> from fastconv import models
    >>> model = models.resnet18(num_classes=10, rng=0)
    >>> sum(parameter.data.size for parameter in model.parameters())
    11181642

Published weights load by ``model.load_state_dict(models.read(path))``; without, weights are He's, from `rng`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .layers import (
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    BatchNorm2d,
    BatchNorm3d,
    Concat,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose2d,
    Dropout,
    Flatten,
    Linear,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    Module,
    ReLU,
    ReLU6,
    Residual,
    Sequential,
)

__all__ = [
    "alexnet",
    "lenet5",
    "load",
    "mobilenet_v2",
    "read",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "save",
    "text_cnn",
    "unet_small",
    "vgg16",
    "volume_cnn",
]

Rng = int | np.random.Generator | None


def lenet5(num_classes: int = 10, rng: Rng = None) -> Sequential:
    """Return LeNet-5 with ReLU and max pooling, for ``(n, 1, 28, 28)``.

    References
    ----------
    LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86 (1998).
    """
    rng = np.random.default_rng(rng)
    return Sequential(
        {
            "conv1": Conv2d(1, 6, 5, padding=2, rng=rng),
            "relu1": ReLU(inplace=True),
            "pool1": MaxPool2d(2),
            "conv2": Conv2d(6, 16, 5, rng=rng),
            "relu2": ReLU(inplace=True),
            "pool2": MaxPool2d(2),
            "flatten": Flatten(),
            "fc1": Linear(400, 120, rng=rng),
            "relu3": ReLU(inplace=True),
            "fc2": Linear(120, 84, rng=rng),
            "relu4": ReLU(inplace=True),
            "fc3": Linear(84, num_classes, rng=rng),
        }
    )


def alexnet(num_classes: int = 1000, dropout: float = 0.5, rng: Rng = None) -> Sequential:
    """Return AlexNet, in the form for one device, for ``(n, 3, 224, 224)``.

    References
    ----------
    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997 (2014).
    """
    rng = np.random.default_rng(rng)
    features = Sequential(
        Conv2d(3, 64, 11, 4, 2, rng=rng),
        ReLU(inplace=True),
        MaxPool2d(3, 2),
        Conv2d(64, 192, 5, padding=2, rng=rng),
        ReLU(inplace=True),
        MaxPool2d(3, 2),
        Conv2d(192, 384, 3, padding=1, rng=rng),
        ReLU(inplace=True),
        Conv2d(384, 256, 3, padding=1, rng=rng),
        ReLU(inplace=True),
        Conv2d(256, 256, 3, padding=1, rng=rng),
        ReLU(inplace=True),
        MaxPool2d(3, 2),
    )
    classifier = Sequential(
        Dropout(dropout, rng=rng),
        Linear(256 * 6 * 6, 4096, rng=rng),
        ReLU(inplace=True),
        Dropout(dropout, rng=rng),
        Linear(4096, 4096, rng=rng),
        ReLU(inplace=True),
        Linear(4096, num_classes, rng=rng),
    )
    return _network(features=features, avgpool=AdaptiveAvgPool2d((6, 6)), flatten=Flatten(), classifier=classifier)


def vgg16(num_classes: int = 1000, dropout: float = 0.5, rng: Rng = None) -> Sequential:
    """Return VGG-16 (configuration D, without batch normalisation), for ``(n, 3, 224, 224)``.

    References
    ----------
    Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.
    """
    rng = np.random.default_rng(rng)
    layers, channels = [], 3
    for width, depth in (64, 2), (128, 2), (256, 3), (512, 3), (512, 3):
        for _ in range(depth):
            layers += [Conv2d(channels, width, 3, padding=1, rng=rng), ReLU(inplace=True)]
            channels = width
        layers.append(MaxPool2d(2))
    classifier = Sequential(
        Linear(512 * 7 * 7, 4096, rng=rng),
        ReLU(inplace=True),
        Dropout(dropout, rng=rng),
        Linear(4096, 4096, rng=rng),
        ReLU(inplace=True),
        Dropout(dropout, rng=rng),
        Linear(4096, num_classes, rng=rng),
    )
    pool = AdaptiveAvgPool2d((7, 7))
    return _network(features=Sequential(*layers), avgpool=pool, flatten=Flatten(), classifier=classifier)


def _network(**layers: Module) -> Sequential:
    return Sequential(layers)


def _conv(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1, *, rng: Any) -> Conv2d:
    """Return a convolution that batch normalisation follows, of "same" size at stride 1."""
    return Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False, rng=rng)


# --- Residual networks -----------------------------------------------------------------------------------------------


def _basic(channels: int, width: int, stride: int, rng: Any) -> Sequential:
    return _network(
        conv1=_conv(channels, width, 3, stride, rng=rng),
        bn1=BatchNorm2d(width),
        relu=ReLU(inplace=True),
        conv2=_conv(width, width, 3, rng=rng),
        bn2=BatchNorm2d(width),
    )


def _bottleneck(channels: int, width: int, stride: int, rng: Any) -> Sequential:
    return _network(
        conv1=_conv(channels, width, 1, rng=rng),
        bn1=BatchNorm2d(width),
        relu1=ReLU(inplace=True),
        conv2=_conv(width, width, 3, stride, rng=rng),
        bn2=BatchNorm2d(width),
        relu2=ReLU(inplace=True),
        conv3=_conv(width, 4 * width, 1, rng=rng),
        bn3=BatchNorm2d(4 * width),
    )


def _resnet(body: Any, expansion: int, depths: Iterable[int], num_classes: int, rng: Rng) -> Sequential:
    rng = np.random.default_rng(rng)
    layers = {
        "conv1": Conv2d(3, 64, 7, 2, 3, bias=False, rng=rng),
        "bn1": BatchNorm2d(64),
        "relu": ReLU(inplace=True),
        "maxpool": MaxPool2d(3, 2, 1),
    }
    channels = 64
    for stage, depth in enumerate(depths):
        width, blocks = 64 << stage, []
        for i in range(depth):
            stride, shortcut = 2 if stage and not i else 1, None
            if stride > 1 or channels != expansion * width:
                convolution = _conv(channels, expansion * width, 1, stride, rng=rng)
                shortcut = Sequential(convolution, BatchNorm2d(expansion * width))
            blocks.append(Residual(body(channels, width, stride, rng), shortcut, ReLU(inplace=True)))
            channels = expansion * width
        layers[f"layer{stage + 1}"] = Sequential(*blocks)
    layers |= {
        "avgpool": AdaptiveAvgPool2d((1, 1)),
        "flatten": Flatten(),
        "fc": Linear(channels, num_classes, rng=rng),
    }
    return Sequential(layers)


def resnet18(num_classes: int = 1000, rng: Rng = None) -> Sequential:
    """Return ResNet-18, for ``(n, 3, 224, 224)`` or other multiples of 32.

    References
    ----------
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    return _resnet(_basic, 1, (2, 2, 2, 2), num_classes, rng)


def resnet34(num_classes: int = 1000, rng: Rng = None) -> Sequential:
    """Return ResNet-34; see :func:`resnet18`."""
    return _resnet(_basic, 1, (3, 4, 6, 3), num_classes, rng)


def resnet50(num_classes: int = 1000, rng: Rng = None) -> Sequential:
    """Return ResNet-50, with the stride in the 3x3 convolutions as in torchvision; see :func:`resnet18`."""
    return _resnet(_bottleneck, 4, (3, 4, 6, 3), num_classes, rng)


def resnet101(num_classes: int = 1000, rng: Rng = None) -> Sequential:
    """Return ResNet-101; see :func:`resnet50`."""
    return _resnet(_bottleneck, 4, (3, 4, 23, 3), num_classes, rng)


def resnet152(num_classes: int = 1000, rng: Rng = None) -> Sequential:
    """Return ResNet-152; see :func:`resnet50`."""
    return _resnet(_bottleneck, 4, (3, 8, 36, 3), num_classes, rng)


# --- MobileNetV2 -----------------------------------------------------------------------------------------------------


def _conv_bn_relu6(channels: int, width: int, kernel: int, stride: int, groups: int, rng: Any) -> Sequential:
    return Sequential(_conv(channels, width, kernel, stride, groups, rng=rng), BatchNorm2d(width), ReLU6(inplace=True))


def mobilenet_v2(num_classes: int = 1000, dropout: float = 0.2, rng: Rng = None) -> Sequential:
    """Return MobileNetV2, for ``(n, 3, 224, 224)`` or other multiples of 32.

    References
    ----------
    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
    """
    rng = np.random.default_rng(rng)
    features, channels = [_conv_bn_relu6(3, 32, 3, 2, 1, rng)], 32
    settings = (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    for expansion, width, depth, first_stride in settings:
        for i in range(depth):
            stride, hidden = first_stride if i == 0 else 1, expansion * channels
            layers = [_conv_bn_relu6(channels, hidden, 1, 1, 1, rng)] if expansion > 1 else []
            layers += [
                _conv_bn_relu6(hidden, hidden, 3, stride, hidden, rng),
                _conv(hidden, width, 1, rng=rng),
                BatchNorm2d(width),
            ]
            block = _network(conv=Sequential(*layers))
            features.append(Residual(block) if stride == 1 and channels == width else block)
            channels = width
    features.append(_conv_bn_relu6(channels, 1280, 1, 1, 1, rng))
    classifier = Sequential(Dropout(dropout, rng=rng), Linear(1280, num_classes, rng=rng))
    pool = AdaptiveAvgPool2d((1, 1))
    return _network(features=Sequential(*features), avgpool=pool, flatten=Flatten(), classifier=classifier)


# --- Images to images, text, volumes ---------------------------------------------------------------------------------


def _double(channels: int, width: int, rng: Any) -> Sequential:
    layers = []
    for ic in (channels, width):
        layers += [_conv(ic, width, 3, rng=rng), BatchNorm2d(width), ReLU(inplace=True)]
    return Sequential(*layers)


def _unet_level(channels: int, width: int, depth: int, rng: Any) -> Sequential:
    if depth == 0:
        return _double(channels, width, rng)
    below = _network(
        pool=MaxPool2d(2),
        level=_unet_level(width, 2 * width, depth - 1, rng),
        up=ConvTranspose2d(2 * width, width, 2, stride=2, rng=rng),
    )
    joined = Concat({"skip": Sequential(), "below": below})
    return _network(down=_double(channels, width, rng), joined=joined, out=_double(2 * width, width, rng))


def unet_small(
    in_channels: int = 1, num_classes: int = 2, width: int = 16, depth: int = 3, rng: Rng = None
) -> Sequential:
    """Return a U-Net that gives each pixel of ``(n, in_channels, h, w)`` the scores of `num_classes` classes.

    ``h`` and ``w`` are multiples of ``2 ** depth``; level ``i`` below the first has ``width * 2 ** i`` channels.

    References
    ----------
    Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.
    """
    rng = np.random.default_rng(rng)
    return _network(unet=_unet_level(in_channels, width, depth, rng), head=Conv2d(width, num_classes, 1, rng=rng))


def text_cnn(
    in_channels: int = 96, num_classes: int = 2, width: int = 64, dropout: float = 0.5, rng: Rng = None
) -> Sequential:
    """Return a convolutional network over characters, for one-hot ``(n, in_channels, length)``, ``length >= 9``.

    References
    ----------
    Zhang et al., "Character-level Convolutional Networks for Text Classification", NeurIPS 2015: fewer layers here, and
    the maximum over all positions in the place of the first fully connected one.
    """
    rng = np.random.default_rng(rng)
    features = []
    for channels, kernel in (in_channels, 7), (width, 7), (width, 3):
        features += [Conv1d(channels, width, kernel, padding=kernel // 2, rng=rng), ReLU(inplace=True), MaxPool1d(3)]
    features[-1] = AdaptiveMaxPool1d(1)
    classifier = Sequential(Dropout(dropout, rng=rng), Linear(width, num_classes, rng=rng))
    return _network(features=Sequential(*features), flatten=Flatten(), classifier=classifier)


def volume_cnn(in_channels: int = 1, num_classes: int = 2, width: int = 16, rng: Rng = None) -> Sequential:
    """Return a small network for volumes ``(n, in_channels, d, h, w)`` of at least eight voxels a side.

    References
    ----------
    Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015: 3x3x3 filters too.
    """
    rng = np.random.default_rng(rng)
    features = []
    for i in range(3):
        channels = in_channels if i == 0 else width * 2 ** (i - 1)
        features += [
            Conv3d(channels, width * 2**i, 3, padding=1, bias=False, rng=rng),
            BatchNorm3d(width * 2**i),
            ReLU(inplace=True),
            MaxPool3d(2),
        ]
    pool, fc = AdaptiveAvgPool3d(1), Linear(4 * width, num_classes, rng=rng)
    return _network(features=Sequential(*features), avgpool=pool, flatten=Flatten(), fc=fc)


# --- Files -----------------------------------------------------------------------------------------------------------


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("safetensors must be installed: pip install 'fastconv[models]'") from error
    return safetensors.numpy


def _suffix(function: str, path: str | os.PathLike) -> str:
    suffix = os.path.splitext(os.fspath(path))[1]
    if suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{function}: path must end in .npz or .safetensors, got {os.fspath(path)!r}")
    return suffix


def save(model: Module, path: str | os.PathLike) -> None:
    """Write a model's ``state_dict`` to a file, whole or not at all.

    Parameters
    ----------
    model : Module
        Any.
    path : path-like
        Ends in ``.npz`` or ``.safetensors``.

    Raises
    ------
    ValueError
        The path has another ending.
    ImportError
        The safetensors package is missing.
    """
    state, temporary = model.state_dict(), f"{os.fspath(path)}.part"
    try:
        if _suffix("save", path) == ".npz":
            with open(temporary, "wb") as file:
                np.savez(file, **state)
        else:
            _safetensors().save_file(state, temporary)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def read(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
    """Return the arrays of a ``.npz`` or ``.safetensors`` file by name; errors are those of :func:`save`."""
    if _suffix("read", path) == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    return _safetensors().load_file(path)


def load(model: Module, path: str | os.PathLike) -> Module:
    """Read what :func:`save` wrote, or weights published under the same names, into a model; return the model.

    Parameters
    ----------
    model : Module
        Of the same names and shapes.
    path : path-like
        Ends in ``.npz`` or ``.safetensors``.

    Returns
    -------
    Module
        `model` itself.

    Raises
    ------
    ValueError, TypeError
        As :meth:`Module.load_state_dict`; the path has another ending.
    ImportError
        The safetensors package is missing.
    """
    model.load_state_dict(read(path))
    return model
