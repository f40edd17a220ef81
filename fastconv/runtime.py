"""Threads, instruction set and workspace: what the process computes with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from . import _kernels

__all__ = [
    "available_isas",
    "current_isa",
    "empty_cache",
    "get_num_threads",
    "isa",
    "set_num_threads",
    "show_config",
    "threads",
]

MAX_THREADS = 1024


def _thread_count(function: str, n: object) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"{function}: n must be an int, got {type(n).__name__}")
    n = n.__index__()
    if not 1 <= n <= MAX_THREADS:
        raise ValueError(f"{function}: n must be from 1 to {MAX_THREADS}, got {n}")
    return n


def set_num_threads(n: int) -> None:
    """Set the number of threads that calls from any Python thread of this process use.

    Results are bitwise equal for every number of threads.

    Parameters
    ----------
    n : int
        From 1 to 1024.

    Raises
    ------
    TypeError, ValueError
        If `n` is no such int.
    """
    _kernels.set_num_threads(_thread_count("set_num_threads", n))


def get_num_threads() -> int:
    """Return the number of threads that a call from this Python thread uses.

    It is 1 in a child after ``fork()``, whatever was set: OpenMP's threads do not survive a fork.
    """
    return _kernels.get_num_threads()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use `n` threads inside a ``with`` block, in the calling Python thread alone.

    Examples
    --------
    >>> import fastconv
    >>> with fastconv.threads(1):
    ...     fastconv.get_num_threads()
    1
    """
    before = _kernels.swap_local_threads(_thread_count("threads", n))
    try:
        yield
    finally:
        _kernels.swap_local_threads(before)


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets that this machine has, narrowest first: of "generic", "avx2", "avx512"."""
    return _kernels.available_isas()


def current_isa() -> str:
    """Return the instruction set that calls from this Python thread use."""
    return _kernels.ISAS[_kernels.get_isa()]


def _isa_index(function: str, name: object) -> int:
    if name not in available_isas():
        raise ValueError(f"{function}: name must be one of {', '.join(available_isas())} on this machine, got {name!r}")
    return _kernels.ISAS.index(name)


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Use the instruction set `name` inside a ``with`` block, in the calling Python thread alone.

    Raises
    ------
    ValueError
        If this machine lacks it.
    """
    before = _kernels.swap_local_isa(_isa_index("isa", name))
    try:
        yield
    finally:
        _kernels.swap_local_isa(before)


def empty_cache() -> None:
    """Give the memory that is kept for later calls, workspaces and large results, back to the system."""
    _kernels.empty_cache()


def show_config() -> None:
    """Print versions, compiler, instruction sets and threads."""
    build = _kernels.build_info()
    forced = " (FASTCONV_ISA)" if os.environ.get("FASTCONV_ISA") else ""
    rows = {
        "fastconv": _version(),
        "numpy": np.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "processor": _processor(),
        "compiler": build["compiler"],
        "instruction set": f"{current_isa()}{forced}, of {', '.join(available_isas())}",
        "register tile": ", ".join(
            "{} {}x{}".format(name, *_kernels.register_tile(_kernels.get_isa(), char))
            for name, char in (("float32", "f"), ("float64", "d"))
        ),
        "threads": f"{get_num_threads()}{'' if build['openmp'] else ' (built without OpenMP)'}",
    }
    for name, value in rows.items():
        print(f"{name:>16}  {value}")


def _version() -> str:
    from . import __version__

    return __version__


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cgroup_cores() -> float:
    """CPU quota of this process's control group, in cores (v2, then v1); infinite without one."""
    for quota, period in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            words = Path(quota).read_text().split() + (Path(period).read_text().split() if period else [])
            if words[0] != "max" and float(words[0]) > 0:
                return float(words[0]) / float(words[1])
        except (OSError, ValueError, IndexError):
            continue
    return float("inf")


def _default_threads() -> int:
    """min(CPUs this process may run on, its CPU quota rounded up, OMP_NUM_THREADS)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cores()
    if quota < cores:
        cores = max(1, int(-(-quota // 1)))
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if wanted.isdigit() and int(wanted) > 0:
        cores = min(cores, int(wanted))
    return min(cores, MAX_THREADS)


def _start() -> None:
    name = os.environ.get("FASTCONV_ISA") or available_isas()[-1]
    try:
        _kernels.set_isa(_isa_index("FASTCONV_ISA", name))
    except ValueError as error:
        raise ImportError(str(error)) from None
    _kernels.set_num_threads(_default_threads())


_start()
