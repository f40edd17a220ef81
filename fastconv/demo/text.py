"""A network of 1-D convolutions over characters learns to tell Python from C, and a picture shows by what.

The files are the standard library's ``.py`` and the ``.h`` of Python and NumPy. They are split, three tenths of either
language for the test, before windows of 100 characters are cut from them, so that no file is in both parts; the test's
are looked at once, when training is over.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..layers import Module
from ..models import text_cnn
from ..optim import Adam, CosineAnnealingLR
from ..training import Epoch, fit
from .drawing import (
    BLUE,
    FRAME,
    INK,
    MUTED,
    RED,
    draw_curves,
    heading,
    new_figure,
    plain,
    require,
    save,
    show,
    write_numbers,
)

__all__ = ["contributions", "draw", "encoded", "one_hot", "run", "sources", "train", "windows"]

PACKAGES, EPOCHS = (), 6
REQUIRED_ACCURACY = 0.95
LANGUAGES = "Python", "C"
LENGTH = 100  # of a window, in characters
FILES = 180  # of either language, at most
TRAINING_WINDOWS, TEST_WINDOWS = 40, 10  # of each file
SAMPLE = 80  # windows of each language whose characters are judged
CHARACTERS = 96  # printable ASCII from the blank on; the last stands for all others, the end of a line among them


def sources(rng: np.random.Generator) -> list[list[Path]]:
    """Return as many files of Python as of C, in random order, each of them long enough for a window.

    Raises
    ------
    FileNotFoundError
        There are too few headers.
    """
    library = Path(sysconfig.get_path("stdlib"))
    python = [path for path in library.rglob("*.py") if "site-packages" not in path.parts]
    folders = {Path(sysconfig.get_path("include")), Path(np.get_include())}
    headers = [path for folder in folders for path in folder.rglob("*.h")]
    found = [[path for path in sorted(paths) if path.stat().st_size >= 10 * LENGTH] for paths in (python, headers)]
    count = min(FILES, *map(len, found))
    if count < 20:
        places = " and ".join(map(str, sorted(folders)))
        raise FileNotFoundError(f"text: C headers must be at least 20, in {places}, got {len(found[1])}")
    return [[paths[i] for i in rng.permutation(len(paths))[:count]] for paths in found]


def encoded(path: Path) -> np.ndarray:
    """Return the characters of a file as numbers from 0 to 95, uint8."""
    text = np.frombuffer(path.read_bytes(), np.uint8)
    return np.where((text >= 32) & (text < 127), text - 32, CHARACTERS - 1).astype(np.uint8)


def decoded(window: np.ndarray) -> str:
    """Return the text of numbers from 0 to 95."""
    return "".join(chr(code + 32) if code < CHARACTERS - 1 else "⏎" for code in window)


def windows(paths: list[list[Path]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut windows from files, evenly apart; return them, ``(n, LENGTH)`` of uint8, and their languages."""
    cut, labels = [], []
    for label, files in enumerate(paths):
        for text in map(encoded, files):
            starts = np.linspace(0, len(text) - LENGTH, count).astype(int)
            cut += [text[start : start + LENGTH] for start in starts]
            labels += [label] * count
    return np.array(cut), np.array(labels)


def one_hot(codes: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """Turn ``(n, length)`` into ``(n, 96, length)`` of float32: 1 in the channel of the character."""
    return (codes[:, None] == np.arange(CHARACTERS, dtype=np.uint8)[:, None]).astype(np.float32)


def train(codes: np.ndarray, labels: np.ndarray, epochs: int, seed: int, **options: Any) -> tuple[Module, list]:
    """Train on windows; return the network and its history."""
    rng = np.random.default_rng(seed)
    model = text_cnn(CHARACTERS, len(LANGUAGES), rng=rng)
    optimizer = Adam(model.parameters())
    schedule = CosineAnnealingLR(optimizer, epochs)
    options = {"optimizer": optimizer, "schedule": schedule, "augment": one_hot, "rng": rng, **options}
    return model, fit(model, (codes, labels), epochs, batch_size=64, **options)


def log_odds(model: Module, x: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Return the logarithm of P(C) / P(Python) for each of ``(n, 96, length)``."""
    return np.concatenate([np.diff(model(x[i : i + batch_size]))[:, 0] for i in range(0, len(x), batch_size)])


def contributions(model: Module, window: np.ndarray) -> np.ndarray:
    """Return by how much each character of ``(length,)`` raises the log-odds: what they lose if it is left blank."""
    x = np.repeat(one_hot(window[None]), 1 + len(window), axis=0)
    places = np.arange(len(window))
    x[1 + places, :, places] = 0  # in image 0, nothing
    whole, *without = log_odds(model, x)
    return whole - np.array(without)


def run(args: argparse.Namespace) -> None:
    """Train, test and draw."""
    paths = sources(np.random.default_rng(args.seed))
    count = len(paths[0])
    held_out = round(0.3 * count)
    codes, labels = windows([files[held_out:] for files in paths], TRAINING_WINDOWS)
    test_codes, test_labels = windows([files[:held_out] for files in paths], TEST_WINDOWS)
    start = time.perf_counter()
    model, history = train(codes, labels, args.epochs, args.seed)
    seconds = time.perf_counter() - start
    scores = log_odds(model.eval(), one_hot(test_codes))
    right = (scores > 0) == test_labels
    by_file = (scores.reshape(-1, TEST_WINDOWS).mean(axis=1) > 0) == test_labels[::TEST_WINDOWS]
    print(
        f"test accuracy {right.mean():.1%}: {right.sum()} of {len(right)} windows of {LENGTH} characters,"
        f" and {by_file.sum()} of {len(by_file)} files by their {TEST_WINDOWS} windows, that were held out,"
        f" after {seconds:.1f} s of training on {2 * (count - held_out)} files"
    )
    save(draw(model, test_codes, test_labels, scores, history), args.out)
    require("text: test accuracy", right.mean(), REQUIRED_ACCURACY)


def draw(model: Module, codes: np.ndarray, labels: np.ndarray, scores: np.ndarray, history: list[Epoch]) -> Any:
    """Draw windows with what each character says, the confusion matrix, the history, and the telling characters.

    Parameters
    ----------
    model : Module
        Trained, not in training mode.
    codes, labels, scores : ndarray
        Windows of the test ``(n, length)``, and of each the language and the log-odds of C.
    history : list of Epoch
        Of the training.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = new_figure(
        (16, 11.8),
        "A convolutional network tells Python from C",
        f"{np.mean((scores > 0) == labels):.1%} of {len(labels)} windows of {LENGTH} characters from files that it had"
        f" never seen, after {len(history)} epochs",
    )
    place = {"left": 0.03, "right": 0.975, "top": 0.855, "bottom": 0.05}
    top, bottom = figure.add_gridspec(2, 1, height_ratios=[1.25, 1], hspace=0.2, **place)
    columns = bottom.subgridspec(1, 4, width_ratios=[0.8, 1.25, 1, 1], wspace=0.3)
    rng = np.random.default_rng(0)
    wrong = np.flatnonzero((scores > 0) != labels)
    chosen = [rng.permutation(np.flatnonzero(((scores > 0) == labels) & (labels == c)))[:5] for c in (0, 1)]
    _draw_windows(figure, top, model, codes, labels, scores, np.concatenate([*chosen, rng.permutation(wrong)[:3]]))
    _draw_confusion(figure, columns[0], labels, (scores > 0).astype(int))
    draw_curves(figure, columns[1], history, note="on training windows, by epoch")
    sample = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:SAMPLE] for c in (0, 1)])
    _draw_characters(figure, columns[2], columns[3], model, codes[sample])
    return figure


def _draw_windows(figure, spec, model, codes, labels, scores, chosen):
    heading(
        figure,
        spec,
        "Windows of the test, and what each character says",
        "red for C, blue for Python: its effect on the log-odds; ⏎ ends a line or is not ASCII; framed are mistakes",
    )
    cells = spec.subgridspec(len(chosen), 3, width_ratios=[3.5, 100, 4], hspace=0.3, wspace=0.02)
    for row, i in enumerate(chosen):
        axes, values = figure.add_subplot(cells[row, 1]), contributions(model, codes[i])
        show(axes, values[None], limit=np.abs(values).max() * 1.6, frame=FRAME if (scores[i] > 0) == labels[i] else RED)
        axes.set_aspect("auto")
        for column, character in enumerate(decoded(codes[i])):
            axes.text(column, 0, character, size=10, family="monospace", ha="center", va="center_baseline", color=INK)
        probability = 1 / (1 + np.exp(-scores[i]))
        for x, text in (-0.042, LANGUAGES[labels[i]]), (1.006, f"C {probability:.2f}"):
            axes.text(x, 0.5, text, transform=axes.transAxes, size=10.5, va="center", color=MUTED)


def _draw_confusion(figure, spec, labels, predicted):
    heading(figure, spec, "Confusion", "windows of the test")
    matrix = np.zeros((2, 2), int)
    np.add.at(matrix, (labels, predicted), 1)
    axes = figure.add_subplot(spec.subgridspec(1, 2, width_ratios=[0.3, 1])[1], anchor="N")
    show(axes, matrix, "Blues")
    axes.images[0].set_clim(0, matrix.max() * 1.1)
    write_numbers(axes, matrix, 16)
    axes.set_xticks([0, 1], LANGUAGES)
    axes.set_yticks([0, 1], LANGUAGES)
    axes.set_xlabel("answer", color=INK)
    axes.set_ylabel("truth", color=INK)
    axes.tick_params(length=0, colors=INK, labelsize=11)


def _draw_characters(figure, left, right, model, codes, count=14, least=15):
    """Draw the characters with the largest mean contributions to either language."""
    values = np.concatenate([contributions(model, window) for window in codes])
    seen = np.bincount(codes.ravel(), minlength=CHARACTERS)
    means = np.bincount(codes.ravel(), values, CHARACTERS) / np.maximum(seen, 1)
    order = [code for code in np.argsort(means) if seen[code] >= least]
    heading(figure, left, "Characters that say Python", f"mean effect on the log-odds, {len(codes)} windows")
    heading(figure, right, "Characters that say C", f"among those that occur {least} times or more")
    for spec, chosen, color in (left, order[:count], BLUE), (right, order[: -count - 1 : -1], RED):
        axes = figure.add_subplot(spec)
        axes.barh(range(len(chosen)), means[chosen], color=color, height=0.65)
        plain(axes)
        axes.set_yticks(range(len(chosen)), [decoded([code]) if code else "blank" for code in chosen])
        axes.tick_params(axis="y", colors=INK, labelsize=11, labelfontfamily="monospace")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
