"""A training loop: progress, checkpoints that resume bit for bit, Ctrl-C that saves."""

from __future__ import annotations

import math
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .layers import Dropout, Module
from .losses import CrossEntropyLoss
from .optim import SGD, Optimizer, Schedule

__all__ = ["Epoch", "fit"]


class Epoch(NamedTuple):
    """What an epoch of :func:`fit` came to; the accuracy is NaN where the targets are no labels."""

    loss: float
    accuracy: float
    images_per_second: float


def fit(
    model: Module,
    data: tuple[np.ndarray, np.ndarray],
    epochs: int = 1,
    *,
    batch_size: int = 32,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    criterion: Any = None,
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    rng: int | np.random.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> list[Epoch]:
    """Train a model, showing loss, accuracy and images a second.

    Parameters
    ----------
    model : Module
        Left in training mode.
    data : (ndarray, ndarray)
        Images ``(n, ...)`` and what the criterion compares the output with: labels ``(n,)`` by default.
    epochs : int
        Passes over the data, those before a checkpoint was written included.
    batch_size : int
        Images a step; the last step of an epoch takes what is left.
    optimizer : Optimizer, optional
        By default ``SGD(model.parameters(), lr=0.01, momentum=0.9)``.
    schedule : Schedule, optional
        Learning rates, of this optimizer.
    criterion : object, optional
        A loss as of :mod:`fastconv.losses`, by default cross-entropy.
    augment : callable, optional
        Makes a batch of ``(images, rng)``.
    rng : None, int or numpy.random.Generator
        Of the order of the images, and of `augment`.
    checkpoint : path-like, optional
        File to which the whole state is written after each epoch, and on Ctrl-C; where it exists, training goes on
        from there, to the same bits as without a break. It is a pickle: read none that you do not trust.
    progress : bool
        Whether to show a bar (with rich, if installed) or else lines.

    Returns
    -------
    list of Epoch
        One an epoch, those of the checkpoint included.

    Raises
    ------
    ValueError
        Images and targets differ in number, or there are none, or `epochs` or `batch_size` is below 1.
    KeyboardInterrupt
        Ctrl-C was pressed: the step is finished and the checkpoint, if there is to be one, written. Pressed twice, it
        ends at once.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.layers import Linear
    >>> from fastconv.training import fit
    >>> x = np.array([[-1.0], [1.0]], np.float32)
    >>> history = fit(Linear(1, 2, rng=0), (x, np.array([0, 1])), epochs=50, rng=0, progress=False)
    >>> history[-1].accuracy
    1.0
    """
    images, targets = (np.asarray(array) for array in data)
    for name, value in ("epochs", epochs), ("batch_size", batch_size):
        if value < 1:
            raise ValueError(f"fit: {name} must be at least 1, got {value}")
    if len(images) != len(targets) or not len(images):
        raise ValueError(f"fit: data must be as many images as targets, at least 1, got {len(images)}, {len(targets)}")
    if optimizer is None:
        optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    run = _Run(model, optimizer, schedule, np.random.default_rng(rng))
    if checkpoint is not None and os.path.exists(checkpoint):
        run.load(checkpoint)
    criterion, show = criterion or CrossEntropyLoss(), _shown(epochs, len(images)) if progress else _Silent()
    model.train()
    with show as update, _DeferredInterrupt() as interrupt:
        try:
            while len(run.history) < epochs:
                for step in run.steps(images, targets, batch_size, criterion, augment):
                    update(len(run.history) + 1, run.seen, step)
                    interrupt.check()
                if schedule is not None:
                    schedule.step()
                run.end_epoch()
                if checkpoint is not None:
                    run.save(checkpoint)
        except KeyboardInterrupt:
            if checkpoint is not None and run.consistent:
                run.save(checkpoint)
            raise
    return run.history


class _Run:
    """The state of a training run: all that the next step depends on."""

    def __init__(
        self, model: Module, optimizer: Optimizer, schedule: Schedule | None, rng: np.random.Generator
    ) -> None:
        self.model, self.optimizer, self.schedule, self.rng = model, optimizer, schedule, rng
        self.history: list[Epoch] = []
        self.order: np.ndarray | None = None  # of the images in this epoch
        self.seen = 0  # of them
        self.loss = self.right = self.seconds = 0.0
        self.consistent = True  # no step is half done

    def steps(self, images, targets, batch_size, criterion, augment) -> Iterator[Epoch]:
        """Take the steps that are left of this epoch; yield the mean results of those so far."""
        if self.order is None:
            self.order = self.rng.permutation(len(images))
        while self.seen < len(images):
            start, batch = time.perf_counter(), self.order[self.seen : self.seen + batch_size]
            self.consistent = False
            x, target = images[batch], targets[batch]
            output = self.model(x if augment is None else augment(x, self.rng))
            loss = criterion(output, target)
            self.model.zero_grad()
            self.model.backward(criterion.backward(), needs_input_grad=False)
            self.optimizer.step()
            self.loss += loss * len(batch)
            are_labels = output.ndim == 2 and target.ndim == 1
            self.right += int((output.argmax(axis=1) == target).sum()) if are_labels else math.nan
            self.seen += len(batch)
            self.seconds += time.perf_counter() - start
            self.consistent = True
            yield self.means()

    def means(self) -> Epoch:
        return Epoch(self.loss / self.seen, self.right / self.seen, self.seen / self.seconds)

    def end_epoch(self) -> None:
        self.history.append(self.means())
        self.order, self.seen, self.loss, self.right, self.seconds = None, 0, 0.0, 0.0, 0.0

    def _generators(self) -> list[np.random.Generator]:
        """Return the generators that a step draws from, each once."""
        layers = [layer.rng for layer in self.model.modules() if isinstance(layer, Dropout)]
        return list({id(rng): rng for rng in (self.rng, *layers)}.values())

    def save(self, path: str | os.PathLike) -> None:
        """Write the state, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule and self.schedule.state_dict(),
            "generators": [rng.bit_generator.state for rng in self._generators()],
            "progress": (self.history, self.order, self.seen, self.loss, self.right, self.seconds),
        }
        temporary = f"{os.fspath(path)}.part"
        with open(temporary, "wb") as file:
            pickle.dump(state, file)
        os.replace(temporary, path)

    def load(self, path: str | os.PathLike) -> None:
        """Go on from what :meth:`save` wrote."""
        with open(path, "rb") as file:
            state = pickle.load(file)
        self.model.load_state_dict(state["model"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.optimizer.load_state_dict(state["optimizer"])
        for rng, value in zip(self._generators(), state["generators"], strict=True):
            rng.bit_generator.state = value
        self.history, self.order, self.seen, self.loss, self.right, self.seconds = state["progress"]


class _DeferredInterrupt:
    """Holds Ctrl-C back until the step is done; the second one is not."""

    def __enter__(self) -> _DeferredInterrupt:
        self.pending = False
        self.in_main = threading.current_thread() is threading.main_thread()
        if self.in_main:
            self.before = signal.signal(signal.SIGINT, self.note)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.in_main:
            signal.signal(signal.SIGINT, self.before)

    def note(self, *_: Any) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True

    def check(self) -> None:
        if self.pending:
            raise KeyboardInterrupt


# --- Progress --------------------------------------------------------------------------------------------------------


class _Silent:
    """Shows nothing; a context that gives the function to call after each step."""

    def __enter__(self) -> Callable[[int, int, Epoch], None]:
        return self.update

    def __exit__(self, *error: Any) -> None:
        pass

    def update(self, epoch: int, seen: int, means: Epoch) -> None:
        pass


class _Lines(_Silent):
    """A line of text an epoch."""

    def __init__(self, epochs: int, n: int) -> None:
        self.epochs, self.n = epochs, n

    def update(self, epoch: int, seen: int, means: Epoch) -> None:
        if seen == self.n:
            print(f"epoch {epoch}/{self.epochs}  {_text(means)}")


class _Bar(_Silent):
    """A bar of rich."""

    def __init__(self, epochs: int, n: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.epochs, self.n = epochs, n
        text = TextColumn("{task.description}")
        self.bar = Progress(text, BarColumn(bar_width=None), TextColumn("{task.fields[means]}"), TimeElapsedColumn())
        self.task = self.bar.add_task("", total=epochs * n, means="")

    def __enter__(self) -> Callable[[int, int, Epoch], None]:
        self.bar.start()
        return self.update

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()

    def update(self, epoch: int, seen: int, means: Epoch) -> None:
        done, description = (epoch - 1) * self.n + seen, f"epoch {epoch}/{self.epochs}"
        self.bar.update(self.task, completed=done, description=description, means=_text(means))


def _text(means: Epoch) -> str:
    accuracy = "" if math.isnan(means.accuracy) else f"accuracy {means.accuracy:6.2%}  "
    return f"loss {means.loss:.4f}  {accuracy}{means.images_per_second:,.0f} images/s"


def _shown(epochs: int, n: int) -> _Silent:
    try:
        return _Bar(epochs, n)
    except ImportError:
        return _Lines(epochs, n)
