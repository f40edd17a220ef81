"""``python -m fastconv demo``: a LeNet learns to read digits, and a picture shows what it has learned.

The 1,797 digits that scikit-learn ships were written by hand, and are 8 x 8 pixels of 17 shades. A fifth of them is
held out and looked at once, when training is over. ``--photo`` shows instead what convolution, ReLU and pooling make
of a photograph.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from . import functional, runtime
from .layers import Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential
from .losses import CrossEntropyLoss
from .optim import Adam

__all__ = ["add_arguments", "digits", "digits_figure", "enlarged", "lenet", "photo_figure", "run", "training"]

REQUIRED_ACCURACY = 0.98
SIZE = 28  # LeNet's digits are 28 x 28
LEARNING_RATE = 2e-3
TURN, STRETCH, SHIFT = 0.2, 0.12, 0.6  # of training digits, at most: radians, a factor of exp(), pixels of the 8 x 8

INK, MUTED, BLUE, RED = "#1f2a36", "#6b7785", "#2166ac", "#c0272d"
SIGNED = "RdBu_r"  # blue below 0, white at 0, red above


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo`` to a parser."""
    parser.add_argument("--photo", action="store_true", help="filter a photograph instead of reading digits")
    parser.add_argument("--out", default="fastconv-demo.png", metavar="FILE", help="the picture (%(default)s)")
    parser.add_argument(
        "--epochs", type=_positive, default=20, metavar="N", help="passes over the digits (%(default)s)"
    )
    parser.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="digits a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of split, weights, order and distortions (%(default)s)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads (all that there are)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def run(args: argparse.Namespace) -> int:
    """Run the demo; return the exit status, which is 0 if the picture was written and the digits were learned."""
    try:
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        return _failed(f"{error.name} must be installed: pip install 'fastconv[demo]'")
    try:
        with runtime.threads(args.threads or runtime.get_num_threads()):
            return _photo(args) if args.photo else _digits(args)
    except (OSError, ValueError) as error:
        return _failed(str(error))


def _failed(message: str) -> int:
    print(f"fastconv demo: {message}", file=sys.stderr)
    return 1


# --- Digits ----------------------------------------------------------------------------------------------------------


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
    """Enlarge ``(n, 8, 8)`` to ``(n, 1, 28, 28)``; with `rng`, turn, stretch and shift each image a little.

    Pixel q, counted from the centre, is the image at ``A @ q + t``, between four pixels; outside is paper.
    """
    n, size = images.shape[:2]
    matrix, shift = np.broadcast_to(np.eye(2), (n, 2, 2)), np.zeros((n, 2))
    if rng is not None:
        turn, stretch = rng.uniform(-TURN, TURN, n), np.exp(rng.uniform(-STRETCH, STRETCH, (n, 1, 2)))
        matrix = np.moveaxis(np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]), 2, 0) * stretch
        shift = rng.uniform(-SHIFT, SHIFT, (n, 2))
    q = ((np.arange(SIZE) + 0.5) / SIZE - 0.5) * size
    place = matrix[:, :, :1, None] * q[:, None] + matrix[:, :, 1:, None] * q + shift[:, :, None, None]  # (n, 2, h, w)
    place = np.clip(place + (size + 1) / 2, 0, size + 0.999)  # in the image with one pixel of paper around it
    (y, x), (dy, dx) = np.moveaxis(place.astype(int), 1, 0), np.moveaxis((place % 1).astype(np.float32), 1, 0)
    paper, i = np.pad(images, [(0, 0), (1, 1), (1, 1)]), np.arange(n)[:, None, None]
    above = paper[i, y, x] * (1 - dx) + paper[i, y, x + 1] * dx
    below = paper[i, y + 1, x] * (1 - dx) + paper[i, y + 1, x + 1] * dx
    return (above * (1 - dy) + below * dy)[:, None]


def lenet(rng: int | np.random.Generator | None = None) -> Sequential:
    """Return LeNet-5 with ReLU and max pooling: ``(n, 1, 28, 28)`` to ten logits.

    References
    ----------
    LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86 (1998).
    """
    rng = np.random.default_rng(rng)
    return Sequential(
        {
            "conv1": Conv2d(1, 6, 5, padding=2, rng=rng),
            "relu1": ReLU(),
            "pool1": MaxPool2d(2),
            "conv2": Conv2d(6, 16, 5, rng=rng),
            "relu2": ReLU(),
            "pool2": MaxPool2d(2),
            "flatten": Flatten(),
            "full3": Linear(400, 120, rng=rng),
            "relu3": ReLU(),
            "full4": Linear(120, 84, rng=rng),
            "relu4": ReLU(),
            "full5": Linear(84, 10, rng=rng),
        }
    )


def training(
    model: Module, images: np.ndarray, labels: np.ndarray, epochs: int, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[float, float]]:
    """Train on ``(n, 8, 8)`` images, distorted anew each time; yield the loss and accuracy of each step's batch."""
    criterion, optimizer = CrossEntropyLoss(), Adam(model.parameters())
    starts = range(0, len(images), batch_size)
    for epoch in range(epochs):
        order = rng.permutation(len(images))
        for step, start in enumerate(starts, epoch * len(starts)):
            optimizer.lr = LEARNING_RATE * (1 + math.cos(math.pi * step / (epochs * len(starts)))) / 2
            batch = order[start : start + batch_size]
            logits = model(enlarged(images[batch], rng))
            loss = criterion(logits, labels[batch])
            optimizer.zero_grad()
            model.backward(criterion.backward(), needs_input_grad=False)
            optimizer.step()
            yield loss, float(np.mean(logits.argmax(axis=1) == labels[batch]))


def _digits(args: argparse.Namespace) -> int:
    images, test_images, labels, test_labels = digits(args.seed)
    rng = np.random.default_rng(args.seed)
    model = lenet(rng)
    start = time.perf_counter()
    history = _with_progress(training(model, images, labels, args.epochs, args.batch_size, rng), len(images), args)
    seconds = time.perf_counter() - start

    predicted = model.eval()(enlarged(test_images)).argmax(axis=1)
    right = int((predicted == test_labels).sum())
    accuracy = right / len(test_labels)
    print(
        f"test accuracy {accuracy:.1%}: {right} of {len(test_labels)} digits that were held out,"
        f" after {seconds:.1f} s of training on {len(labels)}"
    )
    digits_figure(model, test_images, test_labels, predicted, history).savefig(args.out)
    print(f"wrote {args.out}")
    if accuracy < REQUIRED_ACCURACY:
        return _failed(f"test accuracy must be at least {REQUIRED_ACCURACY:.0%}, got {accuracy:.1%}")
    return 0


def _with_progress(steps: Iterator[tuple[float, float]], n: int, args: argparse.Namespace) -> list[list]:
    """Run the training under a progress bar; return (loss, accuracy) of each step, one list an epoch."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("epoch {task.fields[epoch]:2d}/" + str(args.epochs)),
        BarColumn(bar_width=None),
        TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:6.2%}"),
        TextColumn("{task.fields[rate]:7,.0f} images/s", style="cyan"),
        TimeElapsedColumn(),
    )
    history, start = [], time.perf_counter()
    with Progress(*columns, expand=True) as progress:
        bar = progress.add_task("", total=args.epochs * n, epoch=0, loss=math.nan, accuracy=math.nan, rate=math.nan)
        for epoch in range(1, args.epochs + 1):
            history.append([])
            for step in islice(steps, math.ceil(n / args.batch_size)):
                history[-1].append(step)
                done = min(epoch * n, (epoch - 1) * n + len(history[-1]) * args.batch_size)
                loss, accuracy = np.mean(history[-1], axis=0)
                rate = done / (time.perf_counter() - start)
                progress.update(bar, completed=done, epoch=epoch, loss=loss, accuracy=accuracy, rate=rate)
    return history


# --- The pictures ----------------------------------------------------------------------------------------------------


def digits_figure(
    model: Sequential, images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, history: list[list]
) -> Any:
    """Draw digits with predictions, the loss, and one digit on its way through the network.

    Parameters
    ----------
    model : Sequential
        Such as :func:`lenet` returns, trained.
    images, labels, predicted : ndarray
        Test images ``(n, 8, 8)``, and of each the right and the predicted class.
    history : list of list of (float, float)
        Loss and accuracy of each step, one list an epoch.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = _figure(
        (16, 11.2),
        "A LeNet reads handwritten digits",
        f"{np.mean(predicted == labels):.1%} of {len(labels)} that it had never seen, after {len(history)} epochs",
    )
    place = {"left": 0.03, "right": 0.975, "top": 0.855, "bottom": 0.045}
    rows = figure.add_gridspec(2, 1, height_ratios=[1, 1.6], hspace=0.26, **place)
    top = rows[0].subgridspec(1, 2, width_ratios=[2.2, 1], wspace=0.12)
    bottom = rows[1].subgridspec(1, 3, width_ratios=[0.62, 2, 2.2], wspace=0.15)
    _draw_predictions(figure, top[0], images, labels, predicted)
    _draw_history(figure, top[1], history)

    x = enlarged(images[np.argmax((labels == 3) & (predicted == 3))][None])
    outputs = {"input": x}
    for name, layer in model.named_children():
        outputs[name] = x = layer(x)
    outputs = {name: output[0] for name, output in outputs.items()}
    _draw_scores(figure, bottom[0], outputs["input"][0], outputs["full5"])
    _draw_first_block(figure, bottom[1], model[0].weight.data[:, 0], outputs)
    _draw_second_block(figure, bottom[2], outputs)
    return figure


def _figure(size: tuple[float, float], title: str, subtitle: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, facecolor="white")
    figure.text(0.03, 1 - 0.42 / size[1], title, size=21, weight="bold", color=INK, va="center")
    figure.text(0.03, 1 - 0.82 / size[1], subtitle, size=12.5, color=MUTED, va="center")
    return figure


def _heading(figure: Any, spec: Any, text: str, note: str = "") -> None:
    """Write a heading, and a note below it, above the place of a subplot."""
    place, inch = spec.get_position(figure), 1 / figure.get_figheight()
    figure.text(place.x0, place.y1 + 0.36 * inch, text, size=13, weight="bold", color=INK)
    figure.text(place.x0, place.y1 + 0.13 * inch, note, size=10, color=MUTED)


def _show(axes: Any, image: np.ndarray, cmap: str = SIGNED, limit: float | None = None, frame: str = "#c9d0d6") -> None:
    """Draw an image without ticks; `limit` is the value of the last colour, and minus it that of the first."""
    low = None if limit is None else -limit
    axes.imshow(image, cmap=cmap, vmin=low, vmax=limit)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=frame, linewidth=2.5 if frame == RED else 0.8)


def _draw_predictions(figure, spec, images, labels, predicted, rows=4, columns=13):
    wrong = np.flatnonzero(predicted != labels)
    order = np.concatenate([wrong, np.flatnonzero(predicted == labels)])[: rows * columns]
    _heading(
        figure,
        spec,
        "Test digits and predictions",
        f"wrong: {len(wrong)} of {len(labels)}, shown first and framed, with the right answer in brackets",
    )
    cells = spec.subgridspec(rows, columns, wspace=0.12, hspace=0.42)
    for i, cell in zip(order, cells, strict=False):
        axes, is_right = figure.add_subplot(cell), predicted[i] == labels[i]
        _show(axes, images[i], "gray_r", frame="#c9d0d6" if is_right else RED)
        text = f"{predicted[i]}" if is_right else f"{predicted[i]}  ({labels[i]})"
        axes.set_xlabel(
            text, size=11, labelpad=2, color=INK if is_right else RED, weight="normal" if is_right else "bold"
        )


def _draw_history(figure, spec, history):
    steps = np.concatenate(history)
    epochs = np.arange(1, len(history) + 1)
    losses, accuracies = np.array([np.mean(epoch, axis=0) for epoch in history]).T
    _heading(figure, spec, "Loss", "cross-entropy of each training batch, and its mean by epoch")
    axes = figure.add_subplot(spec)
    axes.plot((np.arange(len(steps)) + 1) / len(history[0]), steps[:, 0], color=BLUE, alpha=0.22, linewidth=0.8)
    axes.plot(epochs - 0.5, losses, color=BLUE, marker="o", markersize=4, linewidth=1.8)
    axes.set_yscale("log")
    axes.set_ylim(max(steps[:, 0].min(), losses.min() / 12), steps[:, 0].max() * 1.5)
    axes.set_xlim(0, len(history))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch", color=INK, labelpad=1)
    axes.annotate(
        f"mean of the last epoch: {losses[-1]:.3f}\naccuracy {accuracies[-1]:.1%}",
        (0.97, 0.95),
        xycoords="axes fraction",
        ha="right",
        va="top",
        color=BLUE,
        size=11,
    )
    axes.grid(color="#e6eaed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, which="both", labelsize=10, length=0)
    axes.spines[:].set_visible(False)


def _draw_scores(figure, spec, image, logits):
    _heading(figure, spec, "One digit ...", "28 × 28 pixels")
    upper, lower = spec.subgridspec(2, 1, height_ratios=[1, 2.1], hspace=0.28)
    _show(figure.add_subplot(upper), image, "gray_r")
    scores = np.exp(logits - logits.max())
    scores /= scores.sum()
    axes = figure.add_subplot(lower)
    best = int(scores.argmax())
    axes.barh(range(10), scores, color=[RED if c == best else BLUE for c in range(10)], height=0.62)
    axes.set_title(f"... is a {best}", loc="left", size=13, weight="bold", color=INK)
    axes.set(xlim=(0, 1), ylim=(9.6, -0.6), yticks=range(10), xticks=[0, 0.5, 1])
    axes.set_xlabel("probability", color=MUTED, labelpad=2)
    axes.tick_params(colors=MUTED, length=0, labelsize=10.5)
    axes.spines[:].set_visible(False)
    axes.spines["left"].set(visible=True, color="#c9d0d6")


def _draw_first_block(figure, spec, filters, outputs):
    _heading(figure, spec, "First convolution", "six maps, one a column: red above 0, blue below, white 0")
    stages = [
        ("filter", filters, np.abs(filters).max(axis=(1, 2))),
        *_stages(outputs, conv1="convolution", relu1="ReLU", pool1="max pooling"),
    ]
    cells = spec.subgridspec(len(stages), len(filters), wspace=0.08, hspace=0.16)
    for row, (label, maps, limits) in enumerate(stages):
        for column, (image, limit) in enumerate(zip(maps, limits, strict=True)):
            axes = figure.add_subplot(cells[row, column])
            _show(axes, image, limit=limit)
            if column == 0:
                axes.set_ylabel(f"{label}\n{image.shape[0]} × {image.shape[1]}", size=10.5, color=INK)


def _draw_second_block(figure, spec, outputs):
    _heading(figure, spec, "Second convolution", "16 maps, each made from all six of the first; colours as there")
    stages = _stages(outputs, conv2="convolution", relu2="ReLU", pool2="max pooling")
    bands = spec.subgridspec(len(stages), 1, hspace=0.1)
    for band, (label, maps, limits) in zip(bands, stages, strict=True):
        cells = band.subgridspec(2, 8, wspace=0.08, hspace=0.08)
        for i, (cell, image, limit) in enumerate(zip(cells, maps, limits, strict=True)):
            axes = figure.add_subplot(cell)
            _show(axes, image, limit=limit)
            if i == 0:
                axes.set_ylabel(f"{label}\n{image.shape[0]} × {image.shape[1]}", size=10.5, color=INK, y=-0.04)


def _stages(outputs, **labels):
    """Return label, maps and limits of some layers: one limit a channel, that of the first layer."""
    limits = np.abs(outputs[next(iter(labels))]).max(axis=(1, 2))
    return [(label, outputs[name], limits) for name, label in labels.items()]


def photo_figure(photo: np.ndarray) -> Any:
    """Draw what convolution, ReLU and pooling make of a photograph.

    Parameters
    ----------
    photo : ndarray of float32, (3, h, w)
        Red, green and blue, from 0 to 1.

    Returns
    -------
    matplotlib.figure.Figure
    """
    grey = photo.mean(axis=0, keepdims=True)
    bell = np.exp(-np.square(np.arange(-6, 7)) / 18)
    blur = np.outer(bell, bell) / bell.sum() ** 2
    sharpen = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])
    edges = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    laplace = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])

    def filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        weight = np.broadcast_to(kernel.astype(np.float32), (len(image), 1, *kernel.shape))
        return functional.conv2d(image, weight, groups=len(image))

    vertical = filtered(grey, edges)
    rising = functional.relu(vertical)
    panels = [
        ("Photograph", "x", photo, None),
        ("Blur", "conv2d(x, blur, groups=3)", filtered(photo, blur), blur),
        ("Sharpen", "conv2d(x, sharpen, groups=3)", filtered(photo, sharpen), sharpen),
        ("Edges in any direction", "conv2d(grey, laplace)", filtered(grey, laplace), laplace),
        ("Horizontal edges", "conv2d(grey, edges.T)", filtered(grey, edges.T), edges.T),
        ("Vertical edges", "y = conv2d(grey, edges)", vertical, edges),
        ("ReLU: only from dark to bright", "z = relu(y)", rising, None),
        ("Max pooling: the strongest of 8 × 8", "max_pool2d(z, 8)", functional.max_pool2d(rising, 8), None),
        ("Average pooling: the mean of 8 × 8", "avg_pool2d(z, 8)", functional.avg_pool2d(rising, 8), None),
    ]
    figure = _figure(
        (16, 12.9),
        "Convolution, ReLU and pooling",
        "above, each kernel filters red, green and blue; below, the grey image: results above 0 are red, below 0 blue",
    )
    cells = figure.add_gridspec(3, 3, left=0.03, right=0.975, top=0.878, bottom=0.012, wspace=0.05, hspace=0.16)
    for cell, (title, code, image, kernel) in zip(cells, panels, strict=True):
        axes = figure.add_subplot(cell)
        if len(image) == 3:
            _show(axes, np.clip(np.moveaxis(image, 0, 2), 0, 1))
        else:
            _show(axes, image[0], limit=1 if kernel is laplace else 2)
        axes.set_anchor("N")
        axes.set_title(title, loc="left", size=13, weight="bold", color=INK, pad=22)
        axes.text(0, 1.025, code, size=10.5, family="monospace", color=BLUE, transform=axes.transAxes)
        size = " × ".join(map(str, image.shape))
        axes.text(1, 1.025, size, size=10.5, color=MUTED, ha="right", transform=axes.transAxes)
        if kernel is not None:
            _draw_kernel(axes.inset_axes([0.015, 0.02, 0.2, 0.3]), kernel)
    return figure


def _draw_kernel(axes, kernel):
    """Draw a kernel, with its numbers if they are whole."""
    limit = np.abs(kernel).max()
    _show(axes, kernel, limit=limit, frame=INK)
    if kernel.dtype.kind == "i":
        for (row, column), value in np.ndenumerate(kernel):
            color = "white" if abs(value) > 0.6 * limit else INK
            axes.text(column, row, f"{value}".replace("-", "−"), size=9.5, ha="center", va="center", color=color)


def _photo(args: argparse.Namespace) -> int:
    from sklearn.datasets import load_sample_image

    photo = np.moveaxis(load_sample_image("china.jpg"), 2, 0).astype(np.float32) / 255
    photo_figure(photo).savefig(args.out)
    print(f"wrote {args.out}")
    return 0
