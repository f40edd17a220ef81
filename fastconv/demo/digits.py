"""A LeNet with batch normalisation learns to read digits, and a picture shows what it has learned.

The 1,797 digits that scikit-learn ships were written by hand, and are 8 x 8 pixels of 17 shades. A fifth of them is
held out and looked at once, when training is over.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from ..activations import softmax
from ..layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from ..optim import Adam, CosineAnnealingLR
from ..training import Epoch, fit
from .drawing import FRAME, INK, RED, draw_curves, draw_scores, heading, new_figure, require, save, show
from .images import resampled

__all__ = ["digits", "draw", "enlarged", "lenet", "run", "train"]

PACKAGES, EPOCHS = ("sklearn",), 30
REQUIRED_ACCURACY = 0.99
SIZE = 28  # LeNet's digits are 28 x 28
DISTORTION = {"turn": 0.2, "stretch": 0.12, "shift": 0.6}


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the training images, test images, training labels and test labels: 1437 and 360, each class in proportion.

    Images are float32, ``(n, 8, 8)``, from 0 (paper) to 1 (ink).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8)
    return tuple(train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=seed))


def enlarged(images: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """Enlarge ``(n, 8, 8)`` to ``(n, 1, 28, 28)``; with `rng`, turn, stretch and shift each image a little."""
    paper = np.pad(images, [(0, 0), (1, 1), (1, 1)])
    return resampled(paper, SIZE, span=8, rng=rng, **DISTORTION)[:, None]


def lenet(rng: int | np.random.Generator | None = None) -> Sequential:
    """Return LeNet-5 with more maps, ReLU, max pooling, batch normalisation and dropout, for ``(n, 1, 28, 28)``.

    References
    ----------
    LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86 (1998).
    """
    rng = np.random.default_rng(rng)
    return Sequential(
        {
            "conv1": Conv2d(1, 16, 5, padding=2, rng=rng),
            "bn1": BatchNorm2d(16),
            "relu1": ReLU(),
            "pool1": MaxPool2d(2),
            "conv2": Conv2d(16, 48, 5, rng=rng),
            "bn2": BatchNorm2d(48),
            "relu2": ReLU(),
            "pool2": MaxPool2d(2),
            "flatten": Flatten(),
            "full3": Linear(1200, 120, rng=rng),
            "relu3": ReLU(),
            "dropout3": Dropout(0.25, rng=rng),
            "full4": Linear(120, 10, rng=rng),
        }
    )


def train(images: np.ndarray, labels: np.ndarray, epochs: int, seed: int, **options: Any) -> tuple[Sequential, list]:
    """Train on ``(n, 8, 8)`` images, distorted anew each time; return the network and its history."""
    rng = np.random.default_rng(seed)
    model = lenet(rng)
    optimizer = Adam(model.parameters(), lr=3e-3)
    schedule = CosineAnnealingLR(optimizer, epochs)
    options = {"optimizer": optimizer, "schedule": schedule, "augment": enlarged, "rng": rng, **options}
    return model, fit(model, (images, labels), epochs, batch_size=64, **options)


def run(args: argparse.Namespace) -> None:
    """Train, test and draw."""
    images, test_images, labels, test_labels = digits(args.seed)
    start = time.perf_counter()
    model, history = train(images, labels, args.epochs, args.seed)
    seconds = time.perf_counter() - start
    predicted = model.eval()(enlarged(test_images)).argmax(axis=1)
    right = int((predicted == test_labels).sum())
    accuracy = right / len(test_labels)
    print(
        f"test accuracy {accuracy:.1%}: {right} of {len(test_labels)} digits that were held out,"
        f" after {seconds:.1f} s of training on {len(labels)}"
    )
    save(draw(model, test_images, test_labels, predicted, history), args.out)
    require("digits: test accuracy", accuracy, REQUIRED_ACCURACY)


def draw(model: Sequential, images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, history: list[Epoch]) -> Any:
    """Draw digits with predictions, the history, and one digit on its way through the network.

    Parameters
    ----------
    model : Sequential
        Such as :func:`lenet` returns, trained, not in training mode.
    images, labels, predicted : ndarray
        Test images ``(n, 8, 8)``, and of each the right and the predicted class.
    history : list of Epoch
        Of the training.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = new_figure(
        (16, 11.2),
        "A LeNet reads handwritten digits",
        f"{np.mean(predicted == labels):.1%} of {len(labels)} that it had never seen, after {len(history)} epochs",
    )
    place = {"left": 0.03, "right": 0.975, "top": 0.855, "bottom": 0.045}
    rows = figure.add_gridspec(2, 1, height_ratios=[1, 1.6], hspace=0.26, **place)
    top = rows[0].subgridspec(1, 2, width_ratios=[2.2, 1], wspace=0.12)
    bottom = rows[1].subgridspec(1, 3, width_ratios=[0.62, 2, 2.2], wspace=0.15)
    _draw_predictions(figure, top[0], images, labels, predicted)
    draw_curves(figure, top[1], history, note="on distorted digits, by epoch")

    x = enlarged(images[np.argmax((labels == 3) & (predicted == 3))][None])
    outputs = {"input": x}
    for name, layer in model.named_children():
        outputs[name] = x = layer(x)
    outputs = {name: output[0] for name, output in outputs.items()}
    _draw_digit(figure, bottom[0], outputs["input"][0], outputs["full4"])
    _draw_first_block(figure, bottom[1], model.conv1.weight.data[:, 0], outputs)
    _draw_second_block(figure, bottom[2], outputs)
    return figure


def _draw_predictions(figure, spec, images, labels, predicted, rows=4, columns=13):
    wrong = np.flatnonzero(predicted != labels)
    order = np.concatenate([wrong, np.flatnonzero(predicted == labels)])[: rows * columns]
    heading(
        figure,
        spec,
        "Test digits and predictions",
        f"wrong: {len(wrong)} of {len(labels)}, shown first and framed, with the right answer in brackets",
    )
    cells = spec.subgridspec(rows, columns, wspace=0.12, hspace=0.42)
    for i, cell in zip(order, cells, strict=False):
        axes, is_right = figure.add_subplot(cell), predicted[i] == labels[i]
        show(axes, images[i], "gray_r", frame=FRAME if is_right else RED)
        text = f"{predicted[i]}" if is_right else f"{predicted[i]}  ({labels[i]})"
        axes.set_xlabel(
            text, size=11, labelpad=2, color=INK if is_right else RED, weight="normal" if is_right else "bold"
        )


def _draw_digit(figure, spec, image, logits):
    heading(figure, spec, "One digit ...", "28 × 28 pixels")
    upper, lower = spec.subgridspec(2, 1, height_ratios=[1, 2.1], hspace=0.28)
    show(figure.add_subplot(upper), image, "gray_r")
    draw_scores(figure.add_subplot(lower), softmax(logits), range(10), f"... is a {logits.argmax()}")


def _draw_first_block(figure, spec, filters, outputs, count=6):
    note = f"{count} of {len(filters)} maps, one a column: red above 0, blue below, white 0"
    heading(figure, spec, "First convolution", note)
    stages = [
        ("filter", filters, np.abs(filters).max(axis=(1, 2))),
        *_stages(outputs, bn1="convolution", relu1="ReLU", pool1="max pooling"),
    ]
    cells = spec.subgridspec(len(stages), count, wspace=0.08, hspace=0.16)
    for row, (label, maps, limits) in enumerate(stages):
        for column in range(count):
            axes = figure.add_subplot(cells[row, column])
            show(axes, maps[column], limit=limits[column])
            if column == 0:
                axes.set_ylabel("{}\n{} × {}".format(label, *maps.shape[1:]), size=10.5, color=INK)


def _draw_second_block(figure, spec, outputs):
    count = len(outputs["bn2"])
    heading(
        figure, spec, "Second convolution", f"16 of {count} maps, each made from all of the first; colours as there"
    )
    stages = _stages(outputs, bn2="convolution", relu2="ReLU", pool2="max pooling")
    bands = spec.subgridspec(len(stages), 1, hspace=0.1)
    for band, (label, maps, limits) in zip(bands, stages, strict=True):
        cells = band.subgridspec(2, 8, wspace=0.08, hspace=0.08)
        for i, cell in enumerate(cells):
            axes = figure.add_subplot(cell)
            show(axes, maps[i], limit=limits[i])
            if i == 0:
                axes.set_ylabel("{}\n{} × {}".format(label, *maps.shape[1:]), size=10.5, color=INK, y=-0.04)


def _stages(outputs, **labels):
    """Return label, maps and limits of some layers: one limit a channel, that of the first layer."""
    limits = np.abs(outputs[next(iter(labels))]).max(axis=(1, 2))
    return [(label, outputs[name], limits) for name, label in labels.items()]
