"""The memory of a process that runs one case with one library, and nothing else."""

import gc
from multiprocessing import get_context
from pathlib import Path

from .cases import Case
from .networks import Network
from .peers import PEERS, FastConv

LIBRARIES = {FastConv.name: FastConv, **PEERS}


def peak_memory(name: str, case: Case | Network, threads: int) -> tuple[int, int] | None:
    """Return the bytes that a fresh process holds before its first call of the case, and at most during three calls.

    Before, there are the interpreter, the library, the inputs and the weights. None where there is no Linux to ask.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (name, case, threads))


def _measure(name: str, case: Case | Network, threads: int) -> tuple[int, int]:
    call = LIBRARIES[name](threads).prepare(case, case.arrays())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: getrusage's is that of the parent, at least
    before = _status("VmRSS")
    for _ in range(3):
        call()
    return before, _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status must have {name}")
