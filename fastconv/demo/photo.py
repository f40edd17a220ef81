"""What convolution, ReLU and pooling make of a photograph, which scikit-learn ships."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from .. import functional
from .drawing import BLUE, INK, MUTED, new_figure, save, show, write_numbers

__all__ = ["draw", "filtered", "run"]

PACKAGES, EPOCHS = ("sklearn",), 1


def filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter each channel of an image ``(c, h, w)`` alike."""
    weight = np.broadcast_to(kernel.astype(np.float32), (len(image), 1, *kernel.shape))
    return functional.conv2d(image, weight, groups=len(image))


def draw(photo: np.ndarray) -> Any:
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
    figure = new_figure(
        (16, 12.9),
        "Convolution, ReLU and pooling",
        "above, each kernel filters red, green and blue; below, the grey image: results above 0 are red, below 0 blue",
    )
    cells = figure.add_gridspec(3, 3, left=0.03, right=0.975, top=0.878, bottom=0.012, wspace=0.05, hspace=0.16)
    for cell, (title, code, image, kernel) in zip(cells, panels, strict=True):
        axes = figure.add_subplot(cell)
        if len(image) == 3:
            show(axes, np.clip(np.moveaxis(image, 0, 2), 0, 1))
        else:
            show(axes, image[0], limit=1 if kernel is laplace else 2)
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
    show(axes, kernel, limit=np.abs(kernel).max(), frame=INK)
    if kernel.dtype.kind == "i":
        write_numbers(axes, kernel, 9.5)


def run(args: argparse.Namespace) -> None:
    """Filter and draw."""
    from sklearn.datasets import load_sample_image

    photo = np.moveaxis(load_sample_image("china.jpg"), 2, 0).astype(np.float32) / 255
    save(draw(photo), args.out)
