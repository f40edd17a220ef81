"""What the pictures have in common: their colours, headings and axes, and the check of what was reached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..training import Epoch

__all__ = [
    "BLUE",
    "FRAME",
    "INK",
    "MUTED",
    "RED",
    "SIGNED",
    "draw_curves",
    "draw_scores",
    "heading",
    "new_figure",
    "plain",
    "rectangle",
    "require",
    "save",
    "show",
    "write_numbers",
]

INK, MUTED, BLUE, RED, FRAME = "#1f2a36", "#6b7785", "#2166ac", "#c0272d", "#c9d0d6"
SIGNED = "RdBu_r"  # blue below 0, white at 0, red above


def require(what: str, value: float, minimum: float, form: str = ".1%") -> None:
    """Raise ValueError if a demo has not reached what it promises."""
    if value < minimum:
        raise ValueError(f"{what} must be at least {minimum:{form}}, got {value:{form}}")


def new_figure(size: tuple[float, float], title: str, subtitle: str) -> Any:
    """Return a Matplotlib figure of `size` inches that has a title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, facecolor="white")
    figure.text(0.03, 1 - 0.42 / size[1], title, size=21, weight="bold", color=INK, va="center")
    figure.text(0.03, 1 - 0.82 / size[1], subtitle, size=12.5, color=MUTED, va="center")
    return figure


def save(figure: Any, path: Any) -> None:
    """Write a picture and say so."""
    figure.savefig(path)
    print(f"wrote {path}")


def heading(figure: Any, spec: Any, text: str, note: str = "") -> None:
    """Write a heading, and a note below it, above the place of a subplot."""
    place, inch = spec.get_position(figure), 1 / figure.get_figheight()
    figure.text(place.x0, place.y1 + 0.36 * inch, text, size=13, weight="bold", color=INK)
    figure.text(place.x0, place.y1 + 0.13 * inch, note, size=10, color=MUTED)


def show(axes: Any, image: np.ndarray, cmap: str = SIGNED, limit: float | None = None, frame: str = FRAME) -> None:
    """Draw an image without ticks; `limit` is the value of the last colour, and minus it that of the first."""
    low = None if limit is None else -limit
    axes.imshow(image, cmap=cmap, vmin=low, vmax=limit)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=frame, linewidth=2.5 if frame == RED else 0.8)


def rectangle(corner: Sequence[float], size: float | tuple[float, float], color: str = INK) -> Any:
    """Return a frame to add to axes: left and top, and the side or (width, height)."""
    from matplotlib.patches import Rectangle

    width, height = size if isinstance(size, tuple) else (size, size)
    return Rectangle(tuple(corner), width, height, fill=False, edgecolor=color, linewidth=3)


def write_numbers(axes: Any, values: np.ndarray, size: float, form: str = "g") -> None:
    """Write the numbers of an image that :func:`show` drew with colours about 0 into its pixels."""
    limit = axes.images[0].get_clim()[1]
    for (row, column), value in np.ndenumerate(values):
        color = "white" if abs(value) > 0.6 * limit else INK
        text = f"{value:{form}}".replace("-", "−")
        axes.text(column, row, text, size=size, ha="center", va="center", color=color)


def plain(axes: Any, **labels: str) -> None:
    """Give axes a light grid, no frame, and the labels ``xlabel`` and ``ylabel``."""
    axes.set(**labels)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(color="#e6eaed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, which="both", labelsize=10, length=0)
    axes.spines[:].set_visible(False)


def draw_curves(figure: Any, spec: Any, history: Sequence[Epoch], title: str = "Training", note: str = "") -> None:
    """Draw the loss of each epoch and, below it, the share of training images that were wrong."""
    heading(figure, spec, title, note)
    upper, lower = (figure.add_subplot(cell) for cell in spec.subgridspec(2, 1, hspace=0.12))
    epochs = np.arange(1, len(history) + 1)
    for axes, values, label in (
        (upper, [epoch.loss for epoch in history], "loss"),
        (lower, [100 * (1 - epoch.accuracy) for epoch in history], "wrong, %"),
    ):
        axes.plot(epochs, values, color=BLUE, marker="o", markersize=3.5, linewidth=1.8)
        plain(axes, ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=0)
    upper.set_xticklabels([])
    lower.set_xlabel("epoch", labelpad=1)


def draw_scores(axes: Any, scores: Iterable[float], names: Sequence[Any], title: str) -> None:
    """Draw the probability of each class as a bar, the largest in red."""
    scores = np.asarray(scores)
    best = int(scores.argmax())
    axes.barh(range(len(names)), scores, color=[RED if c == best else BLUE for c in range(len(names))], height=0.62)
    axes.set_title(title, loc="left", size=13, weight="bold", color=INK)
    axes.set(xlim=(0, 1), xticks=[0, 0.5, 1], ylim=(len(names) - 0.4, -0.6))
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("probability", color=MUTED, labelpad=2)
    axes.tick_params(colors=MUTED, length=0, labelsize=10.5)
    axes.spines[:].set_visible(False)
    axes.spines["left"].set(visible=True, color=FRAME)
