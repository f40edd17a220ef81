"""Four teaching figures: a window that slides, ReLU and pooling, feature maps of a photograph, over-fitting.

They are written beside ``--out``: to ``fastconv-figures-window.png`` and so on. All numbers in them are computed. The
feature maps are those of a network that learns to tell six photographs and textures of scikit-image by pieces of
64 x 64 pixels; over-fitting is that of two networks on digits of scikit-learn.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np

from .. import functional
from ..layers import AdaptiveAvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from ..losses import CrossEntropyLoss
from ..optim import Adam
from ..training import fit
from .drawing import (
    BLUE,
    INK,
    MUTED,
    RED,
    heading,
    new_figure,
    plain,
    rectangle,
    save,
    show,
    write_numbers,
)

__all__ = [
    "Curves",
    "draw_maps",
    "draw_over_fitting",
    "draw_pooling",
    "draw_window",
    "moved_digits",
    "over_fitting",
    "run",
    "texture_network",
]

PACKAGES, EPOCHS = ("skimage", "sklearn"), 60
TEXTURES = "brick", "grass", "gravel", "coffee", "chelsea", "astronaut"
CROP = 64

IMAGE = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 8, 9, 9, 9, 7, 0],
        [0, 0, 0, 0, 9, 4, 0],
        [0, 0, 0, 6, 8, 0, 0],
        [0, 0, 2, 9, 2, 0, 0],
        [0, 0, 7, 7, 0, 0, 0],
        [0, 0, 8, 4, 0, 0, 0],
    ],
    np.float32,
)  # a seven
KERNEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)  # vertical edges


def run(args: argparse.Namespace) -> None:
    """Draw the four."""
    path = args.out
    for name, figure in {
        "window": draw_window(IMAGE, KERNEL),
        "pooling": draw_pooling(np.random.default_rng(args.seed)),
        "maps": draw_maps(*texture_network(args.seed, steps=10 * args.epochs)),
        "over-fitting": draw_over_fitting(
            *(over_fitting(pooling, args.epochs, args.seed) for pooling in (True, False))
        ),
    }.items():
        save(figure, path.with_name(f"{path.stem}-{name}{path.suffix}"))


# --- A window that slides --------------------------------------------------------------------------------------------


def draw_window(image: np.ndarray, kernel: np.ndarray) -> Any:
    """Draw how a kernel of 3 x 3 slides over an image ``(h, w)``, and the sum in one window."""
    result = functional.conv2d(image[None], kernel[None, None])[0]
    (row, column), limit = np.unravel_index(np.abs(result).argmax(), result.shape), np.abs(result).max()
    figure = new_figure(
        (16, 10.2),
        "Convolution: a window slides over an image",
        "at each place, nine numbers of the image times the nine of the kernel add up to one number of the result",
    )
    top, bottom = figure.add_gridspec(
        2, 1, height_ratios=[2.6, 1], hspace=0.26, left=0.03, right=0.975, top=0.835, bottom=0.03
    )
    cells = top.subgridspec(1, 5, width_ratios=[1, 0.1, 0.5, 0.1, 0.72], wspace=0.05)
    panels = (0, "Image", image, 9.0, 17), (2, "Kernel", kernel, 2.0, 17), (4, "Result", result, limit, 17)
    for place, title, values, bound, size in panels:
        note = "{} × {}".format(*values.shape)
        heading(figure, cells[place], title, f"{note}, for edges from dark to bright" if values is kernel else note)
        axes = figure.add_subplot(cells[place], anchor="N" if values is kernel else "NW")
        show(axes, values, limit=1.3 * bound)
        write_numbers(axes, values, size)
        if values is image:
            axes.add_patch(rectangle((column - 0.5, row - 0.5), 3, RED))
        if values is result:
            axes.add_patch(rectangle((column - 0.5, row - 0.5), 1, RED))
        if values is kernel:
            axes.add_patch(rectangle((-0.5, -0.5), 3, RED))
            terms = [
                f"{w:g} · {x:g}" for w, x in zip(kernel.ravel(), image[row:, column:][:3, :3].ravel(), strict=True)
            ]
            lines = [
                " + ".join(f"({term})" if term[0] == "-" else term for term in terms[i : i + 3]) for i in (0, 3, 6)
            ]
            text = ("\n+ ".join(lines) + f"\n= {result[row, column]:g}").replace("-", "−")
            axes.text(0, -0.12, text, transform=axes.transAxes, size=14, color=INK, va="top", linespacing=1.7)
    for cell, sign in (cells[1], "*"), (cells[3], "="):
        axes = figure.add_subplot(cell)
        axes.axis("off")
        axes.text(0.5, 0.68 if sign == "*" else 0.7, sign, size=34, color=MUTED, ha="center", va="center")
    heading(figure, bottom, "Step by step", "left the window, right what is known of the result by then")
    count = result.size
    for cell, step in zip(bottom.subgridspec(1, 5, wspace=0.12), (1, 2, 5, 6, count), strict=True):
        y, x = divmod(step - 1, result.shape[1])
        left, right = cell.subgridspec(1, 2, width_ratios=[1.4, 1], wspace=0.08)
        axes = figure.add_subplot(left, anchor="N")
        show(axes, image, limit=12)
        axes.add_patch(rectangle((x - 0.5, y - 0.5), 3, RED))
        axes.set_xlabel(f"step {step} of {count}", color=INK, size=11)
        known = np.where(np.arange(count).reshape(result.shape) < step, result, np.nan)
        axes = figure.add_subplot(right, anchor="N")
        show(axes, known, limit=1.3 * limit)
        axes.add_patch(rectangle((x - 0.5, y - 0.5), 1, RED))
    return figure


# --- ReLU and pooling ------------------------------------------------------------------------------------------------


def draw_pooling(rng: np.random.Generator) -> Any:
    """Draw what ReLU makes of a map of random numbers, and the maxima and means of its 2 x 2 blocks."""
    values = rng.integers(-9, 10, (6, 6)).astype(np.float32)
    positive = functional.relu(values)
    largest = functional.max_pool2d(positive[None], 2)[0]
    mean = functional.avg_pool2d(positive[None], 2)[0]
    figure = new_figure(
        (16, 7.2),
        "ReLU and pooling",
        "ReLU keeps what is above 0; pooling makes one number of four, and leaves a quarter of them",
    )
    cells = figure.add_gridspec(
        1, 4, width_ratios=[0.8, 1, 1, 0.46], wspace=0.13, left=0.045, right=0.985, top=0.75, bottom=0.1
    )
    heading(figure, cells[0], "ReLU", "above y = max(x, 0), below its slope")
    upper, lower = cells[0].subgridspec(2, 1, hspace=0.25)
    x = np.linspace(-9, 9, 181)
    for spec, y, label in (upper, np.maximum(x, 0), "y"), (lower, np.where(x > 0, 1.0, 0.0), "slope"):
        axes = figure.add_subplot(spec)
        axes.plot(x, np.where(x == 0, np.nan, y) if label == "slope" else y, color=BLUE, linewidth=2.6)
        plain(axes, ylabel=label)
        axes.set_xticks([-8, -4, 0, 4, 8])
    axes.set_xlabel("x")
    blocks = [(2 * j - 0.5, 2 * i - 0.5) for i in range(3) for j in range(3)]
    for cell, title, note, image in (
        (cells[1], "A feature map", "red above 0, blue below", values),
        (cells[2], "After ReLU", "in blocks of 2 × 2", positive),
    ):
        heading(figure, cell, title, note)
        axes = figure.add_subplot(cell, anchor="NW")
        show(axes, image, limit=11)
        write_numbers(axes, image, 15)
        if image is positive:
            for corner in blocks:
                axes.add_patch(rectangle(corner, 2))
    upper, lower = cells[3].subgridspec(2, 1, hspace=0.36)
    for spec, title, note, image in (
        (upper, "Max pooling", "the largest of each block", largest),
        (lower, "Average pooling", "the mean of each block", mean),
    ):
        heading(figure, spec, title, note)
        axes = figure.add_subplot(spec, anchor="NW")
        show(axes, image, limit=11, frame=INK)
        write_numbers(axes, image, 13, ".3g")
    return figure


# --- Feature maps ----------------------------------------------------------------------------------------------------


def texture_network(seed: int, steps: int) -> tuple[Sequential, float]:
    """Train a network to tell photographs by pieces of 64 x 64; return it and the accuracy of its last tenth."""
    from skimage import color, data

    photos = [getattr(data, name)() for name in TEXTURES]
    photos = [(color.rgb2gray(photo) if photo.ndim == 3 else photo / 255).astype(np.float32) for photo in photos]
    rng = np.random.default_rng(seed)

    def pieces(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        crops = np.empty((len(labels), 1, CROP, CROP), np.float32)
        for crop, label in zip(crops, labels, strict=True):
            y, x = (rng.integers(0, side - CROP + 1) for side in photos[label].shape)
            crop[0] = photos[label][y : y + CROP, x : x + CROP]
        return levelled(crops)

    model = Sequential(
        {
            "conv1": Conv2d(1, 8, 5, padding=2, rng=rng),
            "relu1": ReLU(),
            "pool1": MaxPool2d(2),
            "conv2": Conv2d(8, 16, 5, padding=2, rng=rng),
            "relu2": ReLU(),
            "pool2": MaxPool2d(2),
            "conv3": Conv2d(16, 32, 3, padding=1, rng=rng),
            "relu3": ReLU(),
            "pool3": MaxPool2d(2),
            "mean": AdaptiveAvgPool2d(1),
            "flatten": Flatten(),
            "full": Linear(32, len(TEXTURES), rng=rng),
        }
    )
    labels = np.arange(32 * steps) % len(TEXTURES)
    optimizer = Adam(model.parameters(), lr=2e-3)
    history = fit(model, (labels, labels), 1, batch_size=32, optimizer=optimizer, augment=pieces, rng=rng)
    return model.eval(), history[-1].accuracy


def levelled(images: np.ndarray) -> np.ndarray:
    """Subtract from each pixel of ``(n, 1, h, w)`` the mean of the 11 x 11 around it: what is left are edges."""
    return images - functional.avg_pool2d(images, 11, 1, 5, count_include_pad=False)


def unlike(maps: np.ndarray, count: int) -> list[int]:
    """Choose maps of ``(c, h, w)``: the strongest, then time and again the one least correlated with those chosen."""
    alike = np.abs(np.corrcoef(maps.reshape(len(maps), -1)))
    chosen = [int(maps.std(axis=(1, 2)).argmax())]
    while len(chosen) < count:
        worst = alike[chosen].max(axis=0)
        worst[chosen] = np.inf
        chosen.append(int(worst.argmin()))
    return chosen


def draw_maps(model: Sequential, accuracy: float) -> Any:
    """Draw the maps that the network makes of a photograph that it was not trained on."""
    from skimage.data import camera

    photo = camera().astype(np.float32) / 255
    names = ", ".join(TEXTURES[:-1]) + " and " + TEXTURES[-1]
    figure = new_figure(
        (16, 12.4),
        "Feature maps, layer by layer",
        f"of a network that tells pieces of {names} ({CROP} × {CROP} pixels), {accuracy:.0%} of them right",
    )
    bands = figure.add_gridspec(3, 1, hspace=0.3, left=0.03, right=0.975, top=0.855, bottom=0.02)
    x = levelled(photo[None, None])
    for block, band in zip("123", bands, strict=True):
        convolved = getattr(model, f"conv{block}")(x)
        x = getattr(model, f"pool{block}")(functional.relu(convolved))
        sides = ["{} × {}".format(*maps.shape[2:]) for maps in (convolved, x)]
        note = f"8 of {convolved.shape[1]} maps, {sides[0]}, red above 0 and blue below; then {sides[1]}"
        whole, maps = band.subgridspec(1, 2, width_ratios=[1, 4.1], wspace=0.05)
        if block == "1":
            heading(figure, whole, "Photograph", "which it has never seen")
            show(figure.add_subplot(whole), photo, "gray")
        elif block == "3":
            heading(figure, whole, "Filters", "of the first convolution")
            weight = model.conv1.weight.data[:, 0]
            for cell, kernel in zip(whole.subgridspec(3, 3, wspace=0.1, hspace=0.1), weight, strict=False):
                show(figure.add_subplot(cell), kernel, limit=np.abs(weight).max())
        else:
            heading(figure, whole, "What enters", "less the mean around each pixel")
            show(figure.add_subplot(whole), levelled(photo[None, None])[0, 0], limit=0.4)
        heading(figure, maps, f"Block {block}: convolution, then ReLU and pooling", note)
        rows = maps.subgridspec(2, 8, wspace=0.05, hspace=0.06)
        for column, i in enumerate(unlike(convolved[0], 8)):
            limit = np.percentile(np.abs(convolved[0, i]), 99.5)
            for row, image, label in (0, convolved, "convolution"), (1, x, "pooled"):
                axes = figure.add_subplot(rows[row, column])
                show(axes, image[0, i], limit=limit)
                if column == 0:
                    axes.set_ylabel(label, size=10.5, color=INK)
    return figure


# --- Over-fitting ----------------------------------------------------------------------------------------------------


class Curves(NamedTuple):
    """Cross-entropy and share of wrong answers after each epoch, ``(epochs,)`` each."""

    train_loss: np.ndarray
    test_loss: np.ndarray
    train_wrong: np.ndarray
    test_wrong: np.ndarray


def moved_digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's 1,797 digits in random order, each somewhere in 12 x 12 pixels, and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    moved = np.zeros((len(images), 1, 12, 12), np.float32)
    for canvas, image, (y, x) in zip(moved, images[order], rng.integers(0, 5, (len(images), 2)), strict=True):
        canvas[0, y : y + 8, x : x + 8] = image.reshape(8, 8) / 16
    return moved, labels[order]


def over_fitting(pooling: bool, epochs: int, seed: int, count: int = 200) -> Curves:
    """Train on `count` moved digits, and look at all the others after each epoch."""
    images, labels = moved_digits(seed)
    rng = np.random.default_rng(seed)
    pools = [[MaxPool2d(2)], [MaxPool2d(2)]] if pooling else [[], []]
    model = Sequential(
        *[Conv2d(1, 16, 3, padding=1, rng=rng), ReLU(), *pools[0]],
        *[Conv2d(16, 32, 3, padding=1, rng=rng), ReLU(), *pools[1]],
        *[Flatten(), Linear(32 * (9 if pooling else 144), 10, rng=rng)],
    )
    optimizer, criterion, points = Adam(model.parameters(), lr=2e-3), CrossEntropyLoss(), []
    for _ in range(epochs):
        fit(model, (images[:count], labels[:count]), optimizer=optimizer, rng=rng, progress=False)
        logits, parts = model.eval()(images), (slice(count), slice(count, None))
        losses = [criterion(logits[part], labels[part]) for part in parts]
        points.append([*losses, *(np.mean(logits[part].argmax(axis=1) != labels[part]) for part in parts)])
    return Curves(*np.transpose(points))


def draw_over_fitting(with_pooling: Curves, without: Curves) -> Any:
    """Draw the curves of two networks that differ in pooling alone."""
    figure = new_figure(
        (16, 10.4),
        "Over-fitting, with and without pooling",
        "two convolutions learn 200 digits, each put anywhere in 12 × 12 pixels, and are tested on 1,597 others",
    )
    cells = figure.add_gridspec(
        2,
        2,
        wspace=0.12,
        hspace=0.4,
        left=0.055,
        right=0.975,
        top=0.83,
        bottom=0.07,
    )
    top = 1.08 * max(without.test_loss.max(), with_pooling.test_loss.max())
    for column, (title, curves) in enumerate((("With max pooling", with_pooling), ("Without", without))):
        epochs = np.arange(1, len(curves.test_loss) + 1)
        rows = (
            ("cross-entropy", curves.train_loss, curves.test_loss, top, "{:.2f}"),
            ("wrong, %", 100 * curves.train_wrong, 100 * curves.test_wrong, 100, "{:.0f}%"),
        )
        for row, (label, train, test, bound, form) in enumerate(rows):
            spec = cells[row, column]
            last = f"at the end, {form} in training and {form} in the test".format(train[-1], test[-1])
            heading(figure, spec, f"{title}: {label.removesuffix(', %')}", last)
            axes = figure.add_subplot(spec)
            axes.fill_between(epochs, train, test, color=RED, alpha=0.07, linewidth=0)
            axes.plot(epochs, train, color=BLUE, linewidth=2.2)
            axes.plot(epochs, test, color=RED, linewidth=2.2)
            plain(axes, xlabel="epoch" if row else "", ylabel=label)
            axes.set(ylim=(0, bound), xlim=(0, len(epochs)))
            for values, name, color in (train, "training", BLUE), (test, "test", RED):
                middle = len(epochs) // 2
                place = (epochs[middle], values[middle])
                axes.annotate(name, place, (0, 7), textcoords="offset points", color=color, size=12, weight="bold")
    return figure
