"""The fastest honest NumPy, in a process of its own: its BLAS threads would spin in ours.

The process also computes the float64 results that every library's error is measured against.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv import reference

from .cases import Arrays, Case
from .peers import Call, Library
from .timing import fastest, time_block

_BLAS_THREADS = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_SPIN_TICKS = "24"  # of OpenBLAS's idle threads: 2**24, some 6 ms, instead of 100; the gap between blocks is longer


class NumPy(Library):
    """The second part of :mod:`fastconv.reference`; for convolution the faster of columns and planes. 2-D alone."""

    name, distribution = "NumPy", "numpy"

    def prepare(self, case: Case, arrays: Arrays) -> Call | None:
        if case.op not in ("conv2d", "max_pool2d", "avg_pool2d", "relu"):
            return None
        backward = case.direction == "backward"
        forms = {"conv2d": ["im2col"], "relu": ["maximum"]}.get(case.op, ["strided"])
        if case.op == "conv2d" and case.oc * case.weight_shape[1] <= 16 * case.groups:  # planes loop over both
            forms.append("planes")
        functions = [getattr(reference, f"{case.op}_{form}" + "_backward" * backward) for form in forms]
        operands = [arrays[name] for name in ("grad_output", "x", "weight", "bias") if name in arrays]
        if case.op == "conv2d":
            operands = operands[: 3 if backward else None]
        if not backward or case.op in ("conv2d", "relu"):
            return fastest([partial(function, *operands, **case.windows) for function in functions])
        grad_output, x = operands
        if case.op == "avg_pool2d":
            return partial(functions[0], grad_output, x.shape, **case.windows)
        _, indices = reference.max_pool2d(x, **case.windows, return_indices=True)
        return partial(functions[0], grad_output, indices, x.shape)

    def outputs(self, result: NDArray | tuple[NDArray, ...]) -> tuple[NDArray, ...]:
        return result if isinstance(result, tuple) else (result,)


def error(actual: tuple[NDArray, ...], expected: tuple[NDArray, ...]) -> float:
    """Return the largest error of any result, relative to that result's largest value; inf if a shape is wrong."""
    if [a.shape for a in actual] != [e.shape for e in expected]:
        return np.inf
    worst = max(np.abs(a - e).max() / np.abs(e).max() for a, e in zip(actual, expected, strict=True))
    return float(worst) if np.isfinite(worst) else np.inf


class NumPyProcess:
    """`NumPy` in a process whose BLAS has ``threads`` threads. Used as a context manager."""

    name, version = NumPy.name, np.__version__

    def __init__(self, threads: int):
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        with _environment(dict.fromkeys(_BLAS_THREADS, str(threads)) | {"OPENBLAS_THREAD_TIMEOUT": _SPIN_TICKS}):
            self._process.start()
        other.close()  # so that each side sees the other's end
        self.blas = self._call("blas")()

    def __enter__(self) -> "NumPyProcess":
        return self

    def __exit__(self, *exception) -> None:
        self._pipe.close()
        self._process.join()

    def prepare(self, case: Case) -> Callable[[], tuple[tuple[NDArray, ...], float | None]]:
        """Begin to prepare the case for `time_block`; return what waits for the float64 results and NumPy's error.

        The error is None where there is nothing to time.
        """
        return self._call("prepare", case)

    def time_block(self, seconds: float, calls: int = 1) -> float:
        """Measure, in the process, as `timing.time_block` does."""
        return self._call("time_block", seconds, calls)()

    def _call(self, method: str, *args: Any) -> Callable[[], Any]:
        self._pipe.send((method, args))
        return self._receive

    def _receive(self) -> Any:
        result = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    kept = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


class _Server:
    """The other end of `NumPyProcess`."""

    call: Call | None

    def prepare(self, case: Case) -> tuple[tuple[NDArray, ...], float | None]:
        library, arrays = NumPy(threads=0), case.arrays()
        self.call = library.prepare(case, arrays)
        expected = case.expected(arrays)
        return expected, error(library.outputs(self.call()), expected) if self.call else None

    def time_block(self, seconds: float, calls: int) -> float:
        return time_block(self.call, seconds, calls)

    def blas(self) -> str:
        """Describe the BLAS: with threadpoolctl its kernels and threads, without it name and version."""
        try:
            from threadpoolctl import threadpool_info
        except ImportError:
            built = getattr(np.__config__, "CONFIG", {}).get("Build Dependencies", {}).get("blas", {})
            return f"{built.get('name', 'unknown BLAS')} {built.get('version', '')}".strip()
        for library in threadpool_info():
            if library["user_api"] == "blas":
                words = (library["internal_api"], library["version"], library.get("architecture"))
                return " ".join(filter(None, words)) + f", {library['num_threads']} threads"
        return "unknown BLAS"


def _serve(pipe: Connection) -> None:
    """Answer calls until the other end is closed, by its owner or by the owner's end."""
    server = _Server()
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            method, args = pipe.recv()
            try:
                answer = getattr(server, method)(*args)
            except Exception as failure:
                answer = failure
            pipe.send(answer)
