"""Images drawn again at another size, turned, stretched and shifted at random."""

from __future__ import annotations

import numpy as np

__all__ = ["resampled"]


def resampled(
    images: np.ndarray,
    size: int,
    span: float | None = None,
    rng: np.random.Generator | None = None,
    *,
    turn: float = 0.0,
    stretch: float = 0.0,
    shift: float = 0.0,
    mirror: bool = False,
) -> np.ndarray:
    """Draw the middle of images again with `size` pixels a side; with `rng`, each one distorted in its own way.

    Pixel ``q``, counted from the centre, is the image at ``A @ q + t``, between four pixels; beyond the border the
    image goes on as its last pixels do.

    Parameters
    ----------
    images : ndarray of float32, (n, side, side)
        What is drawn.
    size : int
        Of the result, ``(n, size, size)``.
    span : float, optional
        How many pixels of the images the result covers, by default all.
    rng : Generator, optional
        Of the distortions; there are none without.
    turn, stretch, shift : float
        At most: radians, the logarithm of a factor for each axis, pixels of `images`.
    mirror : bool
        Whether left and right may be swapped.
    """
    n, side = images.shape[:2]
    matrix, offset = np.broadcast_to(np.eye(2), (n, 2, 2)), np.zeros((n, 2))
    if rng is not None:
        angle, factor = rng.uniform(-turn, turn, n), np.exp(rng.uniform(-stretch, stretch, (n, 1, 2)))
        matrix = np.moveaxis(np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]), 2, 0) * factor
        if mirror:
            matrix[:, :, 1] *= rng.choice([-1, 1], (n, 1))
        offset = rng.uniform(-shift, shift, (n, 2))
    q = ((np.arange(size) + 0.5) / size - 0.5) * (span or side)
    place = matrix[:, :, :1, None] * q[:, None] + matrix[:, :, 1:, None] * q + offset[:, :, None, None]  # (n, 2, h, w)
    place = np.clip(place + (side - 1) / 2, 0, side - 1.001)
    (y, x), (dy, dx) = np.moveaxis(place.astype(int), 1, 0), np.moveaxis((place % 1).astype(np.float32), 1, 0)
    i = np.arange(n)[:, None, None]
    above = images[i, y, x] * (1 - dx) + images[i, y, x + 1] * dx
    below = images[i, y + 1, x] * (1 - dx) + images[i, y + 1, x + 1] * dx
    return above * (1 - dy) + below * dy
