"""Weights that keep the forms in which kernels read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _kernels

__all__ = ["PackedWeight"]

_KEPT = 8  # forms; one more starts anew


class Box(NamedTuple):
    """Taps of filters that do more than meet padding."""

    start: tuple[int, int, int]
    shape: tuple[int, ...]  # spatial


def live_taps(weight: NDArray, box: Box) -> NDArray | None:
    """Return the taps in a box.

    None where a weight may be no finite number, which makes NaN of the zeros of padding.
    """
    live = _kernels.empty((*weight.shape[:2], *box.shape), weight.dtype.char)
    return live if _kernels.live_taps(weight, box.start, live) else None


class PackedWeight:
    """An immutable snapshot of a convolution's weights that keeps what the kernels make of them: see `pack_weight`.

    It stands for its weights wherever a convolution takes them, whatever the shape of the input, the options and the
    instruction set: a form that it lacks it makes at the first call that needs it, and keeps for the next. NumPy sees
    the weights themselves, read-only. Pickles hold nothing else.

    Attributes
    ----------
    raw : ndarray
        The weights, read-only.
    shape, dtype, ndim
        Theirs.
    nbytes : int
        Bytes of the weights and of the forms kept.
    """

    __slots__ = ("_forms", "_live", "_raw")

    def __init__(self, weight: NDArray):
        weight = np.array(weight, weight.dtype.newbyteorder("="), order="C")
        weight.flags.writeable = False
        self._raw = weight[...]  # a view, which nobody can make writeable
        self._forms: dict[tuple, _kernels.Panels] = {}
        self._live: dict[Box, PackedWeight | None] = {}

    @property
    def raw(self) -> NDArray:
        return self._raw

    @property
    def shape(self) -> tuple[int, ...]:
        return self._raw.shape

    @property
    def dtype(self) -> np.dtype:
        return self._raw.dtype

    @property
    def ndim(self) -> int:
        return self._raw.ndim

    @property
    def nbytes(self) -> int:
        live = [weight.nbytes for weight in tuple(self._live.values()) if weight is not None]
        return self._raw.nbytes + sum([form.nbytes for form in tuple(self._forms.values())]) + sum(live)

    def __array__(self, dtype: DTypeLike = None, copy: bool | None = None) -> NDArray:
        if copy or dtype not in (None, self.dtype):
            if copy is False:
                raise ValueError(f"PackedWeight: an array of {np.dtype(dtype)} needs a copy")
            return self._raw.astype(dtype or self.dtype)
        return self._raw

    def __repr__(self) -> str:
        snapshots = self, *[live for live in tuple(self._live.values()) if live is not None]
        keys = [key for snapshot in snapshots for key in tuple(snapshot._forms)]
        forms = ", ".join([" ".join(key[:3]) for key in keys]) or "nothing yet"
        return (
            f"PackedWeight(shape={self.shape}, dtype={self.dtype}, {self.nbytes / 2**20:.1f} MiB, packed for: {forms})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, (self._raw,)

    def __copy__(self) -> PackedWeight:
        return self

    def __deepcopy__(self, memo: Any) -> PackedWeight:
        return self

    def live(self, box: Box) -> PackedWeight | None:
        """Return `live_taps` of the weights, with forms of their own."""
        if (known := self._live.get(box, self)) is not self:
            return known
        taps = live_taps(self._raw, box)
        live = None if taps is None else PackedWeight(taps)
        if len(self._live) >= _KEPT:
            self._live = {}
        self._live[box] = live
        return live

    def form(self, plan: _kernels.ConvPlan, key: tuple | None, gradient: bool) -> _kernels.Panels | None:
        """Return the packed weights for a pass of a plan, `key` being its `packing`: None where that is.

        Threads that lack a form at the same time each make it; the last stays.
        """
        if key is None:
            return None
        return self._form(key, _kernels.pack_weight, plan, gradient, self._raw)

    def windows(self, plan: _kernels.ConvPlan, x_last: bool) -> _kernels.Panels:
        """Return the packed weights for an output whose channels come last, of an input where they may, too."""
        turned = x_last and math.prod(self.shape[2:]) > 1
        key = "output", "channels last" if turned else "im2col", plan.isa, 1
        return self._form(key, _kernels.pack_windows_weight, plan, self._raw, x_last)

    def _form(self, key: tuple, make: Callable[..., _kernels.Panels], *arguments: Any) -> _kernels.Panels:
        form = self._forms.get(key)
        if form is None:
            form = make(*arguments)
            if len(self._forms) >= _KEPT:
                self._forms = {}
            self._forms[key] = form
        return form
