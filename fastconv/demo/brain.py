"""A network of 3-D convolutions learns to take noise out of a scan of a brain, and a picture shows how well.

The scan is the magnetic resonance image that nibabel ships for its tests, 24 slices of 96 x 128. Noise is added to it,
and the network learns from pieces of the lowest and the highest six slices what was there without. The eight in the
middle are held out, with two between that are left alone, and looked at once, when training is over. What the network
makes of their noise competes with three filters, each with the strength that does best on the slices of the training.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import as_file, files
from itertools import combinations
from typing import Any

import numpy as np

from ..layers import Conv3d, Module, ReLU, Residual, Sequential
from ..losses import MSELoss
from ..optim import Adam, CosineAnnealingLR
from ..training import Epoch, fit
from .drawing import BLUE, INK, RED, heading, new_figure, plain, require, save, show

__all__ = ["denoised", "denoiser", "draw", "noisy", "pieces", "psnr", "rivals", "run", "scan", "train"]

PACKAGES, EPOCHS = ("nibabel", "skimage", "scipy"), 6
REQUIRED_GAIN = 0.1  # in decibels, over the best of the filters
NOISE = 0.15  # its standard deviation; the scan's brightest voxels are about 1
LOW, TEST, HIGH = slice(0, 6), slice(8, 16), slice(18, 24)
PIECE = 6, 24, 24
PIECES = 800
BRAIN = 0.15  # voxels above are brain


def scan() -> np.ndarray:
    """Return the scan, float32 of ``(24, 96, 128)``: from below, from behind to the front, from right to left."""
    import nibabel

    with as_file(files(nibabel) / "tests" / "data" / "example4d.nii.gz") as path:
        voxels = np.asarray(nibabel.load(path).dataobj[..., 0], np.float32)
    return np.ascontiguousarray(voxels.T) / np.percentile(voxels, 99.5)


def noisy(volumes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add normally distributed noise."""
    return volumes + np.float32(NOISE) * rng.standard_normal(volumes.shape, np.float32)


def pieces(volume: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Cut ``(count, 1, 6, 24, 24)`` at random from the slices of the training, half of them or more brain."""
    cut = []
    while len(cut) < count:
        part = volume[(LOW, HIGH)[rng.integers(2)]]
        corner = [rng.integers(0, side - size + 1) for side, size in zip(part.shape, PIECE, strict=True)]
        piece = part[tuple(slice(start, start + size) for start, size in zip(corner, PIECE, strict=True))]
        if (piece > BRAIN).mean() >= 0.5:
            piece = np.flip(piece, np.flatnonzero(rng.integers(0, 2, 3)))
            cut.append(piece.swapaxes(1, 2) if rng.integers(2) else piece)
    return np.array(cut)[:, None]


def denoiser(width: int = 16, rng: int | np.random.Generator | None = None) -> Residual:
    """Return a network that adds to volumes ``(n, 1, d, h, w)`` what it takes for the opposite of their noise.

    References
    ----------
    Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", IEEE TIP 26 (2017).
    """
    rng = np.random.default_rng(rng)
    layers = [Conv3d(1, width, 5, padding=2, rng=rng), ReLU()]
    for _ in range(2):
        layers += [Conv3d(width, width, 3, padding=1, rng=rng), ReLU()]
    last = Conv3d(width, 1, 3, padding=1, rng=rng)
    last.weight.data *= 0.1  # it begins close to the identity
    return Residual(Sequential(*layers, last))


def train(clean: np.ndarray, epochs: int, seed: int, **options: Any) -> tuple[Module, list[Epoch]]:
    """Train on pieces ``(n, 1, d, h, w)``, with new noise each time; return the network and its history."""
    rng = np.random.default_rng(seed)
    model = denoiser(rng=rng)
    optimizer = Adam(model.parameters(), lr=3e-3)
    schedule = CosineAnnealingLR(optimizer, epochs)
    options = {"optimizer": optimizer, "schedule": schedule, "augment": noisy, "rng": rng, **options}
    return model, fit(model, (clean, clean), epochs, batch_size=4, criterion=MSELoss(), **options)


def denoised(model: Module, volume: np.ndarray) -> np.ndarray:
    """Return the mean of what the network makes of ``(d, h, w)`` and of its mirror images."""
    mirrored = [axes for count in range(4) for axes in combinations(range(3), count)]
    return np.mean([np.flip(model(np.flip(volume, axes)[None, None])[0, 0], axes) for axes in mirrored], axis=0)


def psnr(volume: np.ndarray, truth: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in the brain, in decibels, where 1 is the peak."""
    return float(-10 * np.log10(np.mean(np.square(volume - truth)[truth > BRAIN])))


def rivals(training: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return three filters by name, each with the strength that does best on pairs of noisy and clean volumes."""
    from scipy.ndimage import gaussian_filter, generate_binary_structure, median_filter
    from skimage.restoration import denoise_tv_chambolle

    families = {
        "Gaussian": (gaussian_filter, [{"sigma": sigma} for sigma in np.arange(0.5, 1.15, 0.05)]),
        "median": (median_filter, [{"footprint": generate_binary_structure(3, reach)} for reach in (1, 2, 3)]),
        "total variation": (denoise_tv_chambolle, [{"weight": weight} for weight in np.arange(0.04, 0.21, 0.02)]),
    }
    best = {}
    for name, (function, settings) in families.items():
        scores = [sum(psnr(function(x, **options), y) for x, y in training) for options in settings]
        best[name] = partial(function, **settings[int(np.argmax(scores))])
    return best


def run(args: argparse.Namespace) -> None:
    """Train, test and draw."""
    volume, rng = scan(), np.random.default_rng(args.seed)
    clean = pieces(volume, rng, PIECES)
    start = time.perf_counter()
    model, history = train(clean, args.epochs, args.seed)
    seconds = time.perf_counter() - start
    filters = rivals([(noisy(volume[part], rng), volume[part]) for part in (LOW, HIGH)])

    truth = volume[TEST]
    x = noisy(truth, rng)
    results = {"noisy": x, **{name: function(x) for name, function in filters.items()}}
    best = max(psnr(results[name], truth) for name in filters)
    results["network"] = denoised(model.eval(), x)
    print(
        "PSNR in the slices that were held out: "
        + ", ".join(f"{name} {psnr(result, truth):.2f} dB" for name, result in results.items())
        + f", after {seconds:.1f} s of training on {len(clean)} pieces of others"
    )
    save(draw(truth, results, history), args.out)
    require("brain: gain in dB over the best filter", psnr(results["network"], truth) - best, REQUIRED_GAIN, ".2f")


def draw(truth: np.ndarray, results: dict[str, np.ndarray], history: list[Epoch]) -> Any:
    """Draw slices, what is left of the noise in one, the ratios, and the history.

    Parameters
    ----------
    truth : ndarray
        The slices that were held out, ``(8, 96, 128)``.
    results : dict of str to ndarray
        These with noise, under ``"noisy"``, and what became of that, the network's last.
    history : list of Epoch
        Of the training.

    Returns
    -------
    matplotlib.figure.Figure
    """
    network, *others = (psnr(result, truth) for result in reversed(results.values()))
    figure = new_figure(
        (16, 11.8),
        "A network takes the noise out of a scan of a brain",
        f"{network - others[-1]:.1f} dB more signal to noise in eight slices that it had never seen,"
        f" and {network - max(others):.1f} dB more than the best of three filters, after {len(history)} epochs",
    )
    images, curves = figure.add_gridspec(
        2, 1, height_ratios=[2.75, 1], hspace=0.17, left=0.03, right=0.975, top=0.85, bottom=0.06
    )
    head = np.s_[4, :92, 26:100]
    _draw_slice(figure, images, truth[head], {name: result[head] for name, result in results.items()})
    left, middle, right = curves.subgridspec(1, 3, wspace=0.2, width_ratios=[1, 1.1, 1])
    _draw_ratios(figure, left, {name: psnr(result, truth) for name, result in results.items()})
    _draw_by_slice(figure, middle, truth, results)
    heading(figure, right, "Training", "ratio on noisy pieces of other slices, dB, by epoch")
    axes = figure.add_subplot(right)
    ratios = -10 * np.log10([epoch.loss for epoch in history])
    axes.plot(range(1, len(history) + 1), ratios, color=BLUE, marker="o", markersize=3.5, linewidth=1.8)
    plain(axes, xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _draw_slice(figure, spec, truth, results):
    note = "above, what was made of it; below, by how much that differs: red is too bright, blue too dark"
    heading(figure, spec, "A slice that was held out", note)
    cells = spec.subgridspec(2, 1 + len(results), wspace=0.04, hspace=0.1)
    for column, (name, image) in enumerate({"scan": truth, **results}.items()):
        axes = figure.add_subplot(cells[0, column])
        show(axes, image[::-1], "gray")
        axes.images[0].set_clim(0, 1.1 * truth.max())
        axes.set_xlabel("with noise" if name == "noisy" else name, size=12, color=RED if name == "network" else INK)
        if name != "scan":
            show(figure.add_subplot(cells[1, column]), (image - truth)[::-1], limit=2.5 * NOISE)


def _draw_ratios(figure, spec, ratios):
    heading(figure, spec, "Signal to noise", "PSNR in the brain, dB, all eight slices")
    axes = figure.add_subplot(spec.subgridspec(1, 2, width_ratios=[0.27, 1])[1])
    axes.barh(range(len(ratios)), ratios.values(), height=0.62, color=[RED if n == "network" else BLUE for n in ratios])
    for row, value in enumerate(ratios.values()):
        axes.text(value, row, f"{value:.2f} ", ha="right", va="center", color="white", size=11)
    plain(axes)
    axes.set_yticks(range(len(ratios)), ratios)
    axes.tick_params(axis="y", colors=INK, labelsize=11)
    axes.invert_yaxis()
    axes.grid(visible=False)


def _draw_by_slice(figure, spec, truth, results):
    heading(figure, spec, "Slice by slice", "PSNR in the brain, dB")
    axes = figure.add_subplot(spec)
    numbers = np.arange(TEST.start, TEST.stop)
    styles = dict(zip(results, [None, "-", ":", "--", "-"], strict=True))
    for name, style in styles.items():
        if style:
            ratios = [psnr(image, clean) for image, clean in zip(results[name], truth, strict=True)]
            color = RED if name == "network" else BLUE
            axes.plot(numbers, ratios, style, color=color, linewidth=2.2, label=name)
    plain(axes, xlabel="slice")
    axes.set(xlim=(numbers[0] - 0.3, numbers[-1] + 3.6), xticks=numbers)
    axes.legend(frameon=False, fontsize=10, labelcolor=INK, loc="center right")
