"""The networks of :mod:`fastconv.models` in PyTorch: torchvision's structure, names and in-place operations."""

from collections.abc import Iterable
from types import ModuleType
from typing import Any


def build(torch: ModuleType, name: str, num_classes: int = 1000) -> Any:
    """Return the network of this name, without dropout."""
    nn = torch.nn
    if name.startswith("resnet"):
        return _resnet(nn, num_classes, *_RESNETS[name])
    return {"alexnet": _alexnet, "vgg16": _vgg16, "mobilenet_v2": _mobilenet_v2}[name](nn, num_classes)


def folded(torch: ModuleType, model: Any) -> Any:
    """Put each batch normalisation into the convolution before it, in place; return the model, in ``eval()`` mode."""
    nn, previous = torch.nn, None
    for module in model.eval().modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, previous, torch.nn.utils.fuse_conv_bn_eval(getattr(module, previous), child))
                setattr(module, name, nn.Identity())
            previous = name
    return model


def _relu(nn: Any) -> Any:
    return nn.ReLU(inplace=True)


def _network(nn: Any, features: Any, pooled: int, classifier: Any) -> Any:
    model = nn.Sequential()
    model.features, model.avgpool, model.flatten = features, nn.AdaptiveAvgPool2d(pooled), nn.Flatten()
    model.classifier = classifier
    return model


def _classifier(nn: Any, channels: int, num_classes: int) -> list[Any]:
    return [nn.Linear(channels, 4096), _relu(nn), nn.Linear(4096, 4096), _relu(nn), nn.Linear(4096, num_classes)]


def _alexnet(nn: Any, num_classes: int) -> Any:
    features = [nn.Conv2d(3, 64, 11, 4, 2), _relu(nn), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), _relu(nn)]
    features.append(nn.MaxPool2d(3, 2))
    for channels, width in (192, 384), (384, 256), (256, 256):
        features += [nn.Conv2d(channels, width, 3, padding=1), _relu(nn)]
    features.append(nn.MaxPool2d(3, 2))
    first, *others = _classifier(nn, 9216, num_classes)
    classifier = nn.Sequential(nn.Identity(), first, others[0], nn.Identity(), *others[1:])
    return _network(nn, nn.Sequential(*features), 6, classifier)


def _vgg16(nn: Any, num_classes: int) -> Any:
    features, channels = [], 3
    for width, depth in (64, 2), (128, 2), (256, 3), (512, 3), (512, 3):
        for _ in range(depth):
            features += [nn.Conv2d(channels, width, 3, padding=1), _relu(nn)]
            channels = width
        features.append(nn.MaxPool2d(2))
    layers = _classifier(nn, 25088, num_classes)
    classifier = nn.Sequential(*layers[:2], nn.Identity(), *layers[2:4], nn.Identity(), layers[4])
    return _network(nn, nn.Sequential(*features), 7, classifier)


def _residual(nn: Any, body: dict[str, Any], shortcut: Any = None, relu: bool = False) -> Any:
    """Return a block of the layers of ``body``, under their names."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in body.items():
                setattr(self, name, layer)
            if shortcut is not None:
                self.downsample = shortcut

        def forward(self, x):
            y = x
            for name in body:
                y = getattr(self, name)(y)
            y += x if shortcut is None else self.downsample(x)
            return y.relu_() if relu else y

    return Block()


def _conv(nn: Any, channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
    return nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)


_RESNETS = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}


def _resnet(nn: Any, num_classes: int, bottleneck: bool, depths: Iterable[int]) -> Any:
    model = nn.Sequential()
    model.conv1, model.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
    model.relu, model.maxpool = _relu(nn), nn.MaxPool2d(3, 2, 1)
    channels, expansion = 64, 4 if bottleneck else 1
    for stage, depth in enumerate(depths):
        width, blocks = 64 * 2**stage, []
        for i in range(depth):
            stride = 2 if stage and i == 0 else 1
            out = expansion * width
            kernels = (1, 3, 1) if bottleneck else (3, 3)
            strides = (1, stride, 1) if bottleneck else (stride, 1)
            widths = (channels, width, width, out) if bottleneck else (channels, width, width)
            body = {}
            for j, (k, s) in enumerate(zip(kernels, strides, strict=True), 1):
                body |= {f"conv{j}": _conv(nn, widths[j - 1], widths[j], k, s), f"bn{j}": nn.BatchNorm2d(widths[j])}
                if j < len(kernels):
                    body[f"relu{j}"] = _relu(nn)
            shortcut = None
            if stride > 1 or channels != out:
                shortcut = nn.Sequential(_conv(nn, channels, out, 1, stride), nn.BatchNorm2d(out))
            blocks.append(_residual(nn, body, shortcut, relu=True))
            channels = out
        setattr(model, f"layer{stage + 1}", nn.Sequential(*blocks))
    model.avgpool, model.flatten, model.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)
    return model


def _mobilenet_v2(nn: Any, num_classes: int) -> Any:
    def conv_bn(channels, width, kernel, stride=1, groups=1):
        convolution = _conv(nn, channels, width, kernel, stride, groups)
        return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU6(inplace=True))

    features, channels = [conv_bn(3, 32, 3, 2)], 32
    settings = (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    for t, c, n, s in settings:
        for i in range(n):
            stride, hidden = s if i == 0 else 1, t * channels
            layers = [conv_bn(channels, hidden, 1)] if t > 1 else []
            layers += [conv_bn(hidden, hidden, 3, stride, hidden), _conv(nn, hidden, c, 1), nn.BatchNorm2d(c)]
            block = nn.Sequential()
            block.conv = nn.Sequential(*layers)
            is_residual = stride == 1 and channels == c
            features.append(_residual(nn, {"conv": block.conv}) if is_residual else block)
            channels = c
    features = nn.Sequential(*features, conv_bn(channels, 1280, 1))
    return _network(nn, features, 1, nn.Sequential(nn.Identity(), nn.Linear(1280, num_classes)))
