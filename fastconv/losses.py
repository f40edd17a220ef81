"""Losses: a number to make small, and its gradient."""

from __future__ import annotations

import numpy as np

__all__ = ["CrossEntropyLoss", "MSELoss"]


class CrossEntropyLoss:
    """Mean cross-entropy between the softmax of logits and the right classes.

    ::

        loss      = mean over rows n of log(sum over c of exp(logits[n, c])) - logits[n, labels[n]]
        d loss / d logits[n, c] = (probabilities[n, c] - [c == labels[n]]) / rows

    The largest logit of each row is subtracted first, so that no exponential overflows.

    Attributes
    ----------
    probabilities : ndarray or None
        The softmax of the last logits, ``(n, classes)``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.losses import CrossEntropyLoss
    >>> criterion = CrossEntropyLoss()
    >>> round(criterion(np.zeros((2, 4), np.float32), [3, 0]), 4)
    1.3863
    >>> criterion.backward()
    array([[ 0.125,  0.125,  0.125, -0.375],
           [-0.375,  0.125,  0.125,  0.125]], dtype=float32)
    """

    probabilities: np.ndarray | None = None

    def __call__(self, logits: np.ndarray, labels: np.ndarray) -> float:
        return self.forward(logits, labels)

    def forward(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """Return the mean loss.

        Parameters
        ----------
        logits : ndarray of float32 or float64, shape (n, classes)
            At least one row.
        labels : array_like of int, shape (n,)
            The right class of each row, from 0 to ``classes - 1``.

        Returns
        -------
        float

        Raises
        ------
        TypeError
            `logits` are not floating point, or `labels` no integers.
        ValueError
            A shape is wrong, or a label is no class.
        """
        logits, labels = np.asarray(logits), np.asarray(labels)
        _check(logits, labels)
        shifted = logits - logits.max(axis=1, keepdims=True)
        probabilities = np.exp(shifted)
        total = probabilities.sum(axis=1, keepdims=True)
        probabilities /= total
        right = np.take_along_axis(shifted, labels[:, None], axis=1)
        self.probabilities, self._labels = probabilities, labels
        return float(np.mean(np.log(total) - right, dtype=np.float64))

    def backward(self) -> np.ndarray:
        """Return the gradient of the last loss in its logits, ``(n, classes)``.

        Raises
        ------
        RuntimeError
            There was no forward pass.
        """
        if self.probabilities is None:
            raise RuntimeError("CrossEntropyLoss.backward: there must have been a forward pass, got none")
        grad_logits = self.probabilities.copy()
        grad_logits[np.arange(len(grad_logits)), self._labels] -= 1
        grad_logits /= len(grad_logits)
        return grad_logits

    def __repr__(self) -> str:
        return "CrossEntropyLoss()"


def _check(logits: np.ndarray, labels: np.ndarray) -> None:
    if logits.dtype not in (np.float32, np.float64):
        raise TypeError(f"CrossEntropyLoss: logits.dtype must be float32 or float64, got {logits.dtype}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"CrossEntropyLoss: labels.dtype must be an integer type, got {labels.dtype}")
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"CrossEntropyLoss: logits must have shape (n, classes), both at least 1, got {logits.shape}")
    n, classes = logits.shape
    if labels.shape != (n,):
        raise ValueError(f"CrossEntropyLoss: labels.shape must equal logits.shape[:1] = {(n,)}, got {labels.shape}")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"CrossEntropyLoss: labels[{row}] must be in 0 ... {classes - 1}, got {labels[row]}")


class MSELoss:
    """Mean of the squared differences between predictions and targets.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.losses import MSELoss
    >>> criterion = MSELoss()
    >>> criterion(np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    2.0
    >>> criterion.backward()
    array([0., 2.])
    """

    _difference: np.ndarray | None = None

    def __call__(self, predictions: np.ndarray, targets: np.ndarray) -> float:
        return self.forward(predictions, targets)

    def forward(self, predictions: np.ndarray, targets: np.ndarray) -> float:
        """Return the mean loss.

        Parameters
        ----------
        predictions : ndarray of float32 or float64, any shape
            At least one element.
        targets : array_like, the shape of `predictions`
            Converted to their type.

        Returns
        -------
        float

        Raises
        ------
        TypeError
            `predictions` are not floating point.
        ValueError
            A shape is wrong.
        """
        predictions, targets = np.asarray(predictions), np.asarray(targets)
        if predictions.dtype not in (np.float32, np.float64):
            raise TypeError(f"MSELoss: predictions.dtype must be float32 or float64, got {predictions.dtype}")
        if targets.shape != predictions.shape:
            rule = f"targets.shape must equal predictions.shape = {predictions.shape}"
            raise ValueError(f"MSELoss: {rule}, got {targets.shape}")
        if not predictions.size:
            raise ValueError(f"MSELoss: predictions must have at least one element, got shape {predictions.shape}")
        self._difference = predictions - targets.astype(predictions.dtype, copy=False)
        return float(np.mean(np.square(self._difference), dtype=np.float64))

    def backward(self) -> np.ndarray:
        """Return the gradient of the last loss in its predictions.

        Raises
        ------
        RuntimeError
            There was no forward pass.
        """
        if self._difference is None:
            raise RuntimeError("MSELoss.backward: there must have been a forward pass, got none")
        return self._difference * self._difference.dtype.type(2 / self._difference.size)

    def __repr__(self) -> str:
        return "MSELoss()"
