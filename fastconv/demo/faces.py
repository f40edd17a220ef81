"""A ResNet-18 learns to tell faces from other images, and a picture shows what it looks at.

scikit-image ships 100 faces of "Labeled Faces in the Wild" and 100 pieces of photographs that are no face, of 25 x 25
grey pixels each. Two fifths of either kind are held out and looked at once, when training is over.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from typing import Any

import numpy as np

from ..activations import sigmoid
from ..layers import Module, Sequential
from ..models import resnet18
from ..optim import AdamW, CosineAnnealingLR
from ..training import Epoch, fit
from .drawing import BLUE, FRAME, INK, MUTED, RED, draw_curves, heading, new_figure, require, save, show
from .images import resampled

__all__ = ["draw", "enlarged", "faces", "run", "train"]

PACKAGES, EPOCHS = ("skimage",), 20
REQUIRED_ACCURACY = 0.95
SIZE = 64  # ResNet-18 makes maps of 2 x 2 of it, which it averages
DISTORTION = {"turn": 0.25, "stretch": 0.2, "shift": 2.5, "mirror": True}
LIGHT = 0.3  # contrast changes by up to exp(LIGHT), brightness by LIGHT / 3


def faces(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the training images, test images, training labels and test labels: 120 and 80, half of each faces (1).

    Images are float32, ``(n, 25, 25)``, from 0 (black) to 1 (white).
    """
    from skimage.data import lfw_subset

    images, rng = lfw_subset().astype(np.float32), np.random.default_rng(seed)
    order = np.stack([rng.permutation(100), 100 + rng.permutation(100)])
    train, test = order[:, 40:].ravel(), order[:, :40].ravel()
    return images[train], images[test], (train < 100).astype(int), (test < 100).astype(int)


def enlarged(images: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """Enlarge ``(n, 25, 25)`` to ``(n, 3, 64, 64)``, three times the same; with `rng`, distort and relight each."""
    large = resampled(images, SIZE, rng=rng, **DISTORTION)
    if rng is not None:
        contrast, brightness = rng.uniform(-LIGHT, LIGHT, (2, len(images), 1, 1)).astype(np.float32)
        large = large * np.exp(contrast) + brightness / 3
    return np.repeat(4 * large[:, None] - 2, 3, axis=1)


def train(images: np.ndarray, labels: np.ndarray, epochs: int, seed: int, **options: Any) -> tuple[Sequential, list]:
    """Train a ResNet-18 on ``(n, 25, 25)`` images, distorted anew each time; return it and its history."""
    rng = np.random.default_rng(seed)
    model = resnet18(num_classes=2, rng=rng)
    optimizer = AdamW(model.parameters(), lr=5e-4)
    schedule = CosineAnnealingLR(optimizer, epochs)
    options = {"optimizer": optimizer, "schedule": schedule, "augment": enlarged, "rng": rng, **options}
    return model, fit(model, (images, labels), epochs, batch_size=16, **options)


def run(args: argparse.Namespace) -> None:
    """Train, test and draw."""
    images, test_images, labels, test_labels = faces(args.seed)
    start = time.perf_counter()
    model, history = train(images, labels, args.epochs, args.seed)
    seconds = time.perf_counter() - start
    scores = sigmoid(log_odds(model.eval(), test_images))
    right = int(((scores > 0.5) == test_labels).sum())
    accuracy = right / len(test_labels)
    print(
        f"test accuracy {accuracy:.1%}: {right} of {len(test_labels)} images that were held out,"
        f" after {seconds:.1f} s of training on {len(labels)}"
    )
    save(draw(model, test_images, test_labels, scores, history), args.out)
    require("faces: test accuracy", accuracy, REQUIRED_ACCURACY)


def log_odds(model: Module, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Return the logarithm of P(face) / P(no face) for each of ``(n, 25, 25)`` images."""
    batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    return np.concatenate([np.diff(model(enlarged(batch)))[:, 0] for batch in batches])


def hidden(model: Module, image: np.ndarray, side: int = 7, step: int = 2) -> np.ndarray:
    """Return by how much the log-odds of a face fall where a grey square hides a part, ``(10, 10)``."""
    places = range(0, 26 - side, step)
    covered = np.repeat(image[None], len(places) ** 2, axis=0)
    for one, (y, x) in zip(covered, product(places, places), strict=True):
        one[y : y + side, x : x + side] = image.mean()
    return (log_odds(model, image[None]) - log_odds(model, covered)).reshape(len(places), len(places))


def draw(model: Module, images: np.ndarray, labels: np.ndarray, scores: np.ndarray, history: list[Epoch]) -> Any:
    """Draw the test images with their probabilities, the history, a face's maps, and what matters in it.

    Parameters
    ----------
    model : Module
        Trained, not in training mode.
    images, labels, scores : ndarray
        Test images ``(n, 25, 25)``, and of each whether it is a face, and the probability that it is.
    history : list of Epoch
        Of the training.

    Returns
    -------
    matplotlib.figure.Figure
    """
    wrong = int(((scores > 0.5) != labels).sum())
    figure = new_figure(
        (16, 10.6),
        "A ResNet-18 tells faces from other images",
        f"{1 - wrong / len(labels):.1%} of {len(labels)} that it had never seen, after {len(history)} epochs",
    )
    place = {"left": 0.03, "right": 0.975, "top": 0.845, "bottom": 0.03}
    rows = figure.add_gridspec(2, 1, height_ratios=[1.35, 1], hspace=0.27, **place)
    top = rows[0].subgridspec(1, 2, width_ratios=[2.6, 1], wspace=0.13)
    bottom = rows[1].subgridspec(1, 2, width_ratios=[2.5, 1], wspace=0.1)
    _draw_sorted(figure, top[0], images, labels, scores)
    draw_curves(figure, top[1], history, note="on distorted images, by epoch")
    best = np.argsort(-scores * labels, kind="stable")[:3]
    _draw_maps(figure, bottom[0], model, images[best[1]])
    _draw_hidden(figure, bottom[1], model, images[best])
    return figure


def _draw_sorted(figure, spec, images, labels, scores, rows=5, columns=16):
    wrong = (scores > 0.5) != labels
    heading(
        figure,
        spec,
        "All test images, from the surest face to the surest other image",
        f"below each, the probability of a face; wrong: {wrong.sum()} of {len(labels)}, framed",
    )
    cells = spec.subgridspec(rows, columns, wspace=0.1, hspace=0.36)
    for i, cell in zip(np.argsort(-scores, kind="stable"), cells, strict=False):
        axes = figure.add_subplot(cell)
        show(axes, images[i], "gray", frame=RED if wrong[i] else FRAME)
        color = RED if wrong[i] else BLUE if scores[i] > 0.5 else MUTED
        axes.set_xlabel(f"{scores[i]:.2f}", size=9.5, labelpad=2, color=color, weight="bold" if wrong[i] else "normal")


def _draw_maps(figure, spec, model, image):
    """Draw an image and the first maps after the stem and after three of the four stages."""
    heading(figure, spec, "A face on its way through the network", "12 maps of each: the redder, the more")
    stages, x = {}, enlarged(image[None])
    for name, layer in model.named_children():
        stages[name] = x = layer(x)
    left, right = spec.subgridspec(1, 2, width_ratios=[1, 3.9], wspace=0.12)
    show(figure.add_subplot(left), image, "gray")
    shown = {"relu": "stem", "layer1": "stage 1", "layer2": "stage 2", "layer3": "stage 3"}
    for band, (name, label) in zip(right.subgridspec(4, 1, hspace=0.1), shown.items(), strict=True):
        for i, cell in enumerate(band.subgridspec(1, 12, wspace=0.06)):
            axes, maps = figure.add_subplot(cell), stages[name][0]
            show(axes, maps[i], limit=max(float(maps[i].max()), 1e-6))
            if i == 0:
                axes.set_ylabel("{}\n{} × {}".format(label, *maps.shape[1:]), size=10.5, color=INK)


def _draw_hidden(figure, spec, model, images):
    heading(figure, spec, "What makes a face", "the redder, the lower the log-odds if it is hidden")
    cells = spec.subgridspec(2, len(images), wspace=0.06, hspace=0.04)
    for column, image in enumerate(images):
        show(figure.add_subplot(cells[0, column], anchor="N"), image, "gray")
        axes, falls = figure.add_subplot(cells[1, column], anchor="N"), hidden(model, image)
        axes.imshow(image, "gray")
        show(axes, falls, limit=np.abs(falls).max())
        axes.images[-1].set(extent=(2.5, 22.5, 22.5, 2.5), alpha=0.6, interpolation="bilinear")
        axes.set(xlim=(-0.5, 24.5), ylim=(24.5, -0.5))
