"""Run cases over libraries: check every result, alternate the clocks, keep the medians."""

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

import fastconv
from fastconv import _kernels, runtime

from .cases import NETWORKS, Case
from .memory import LIBRARIES, peak_memory
from .networks import Network
from .numpy_peer import NumPyProcess, error
from .peers import FastConv, Library
from .timing import Budget, alternate, copy_bandwidth, time_block

BEST_LAYOUT = (NETWORKS, "operators")  # suites in which a library's better layout is the one that counts
WRONG = 5e-3  # above the error of every float32 algorithm that peers use, below that of bfloat16


@dataclass
class Result:
    """What one library did in one case.

    ``relative`` is its time over fastconv's, the median of the rounds' ratios; ``memory`` the process's bytes before
    the first call and at most.
    """

    seconds: float | None = None
    relative: float | None = None
    error: float | None = None
    unavailable: str | None = None
    memory: tuple[int, int] | None = None


@dataclass
class Record:
    """One case: the FMA peak measured between its rounds (flop/s of all threads), and every library's result."""

    case: Case | Network
    peak: float
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def own(self) -> Result:
        return self.results[FastConv.name]

    @property
    def rate(self) -> float:
        """Flop/s of fastconv, counted as direct convolution."""
        return self.case.flop / self.own.seconds

    def relative(self, *names: str) -> float | None:
        """Return the least time, over fastconv's, of those of the libraries that have one."""
        times = [self.results[name].relative for name in names if name in self.results]
        return min((t for t in times if t is not None), default=None)


@dataclass
class Report:
    """All records of a run, and what they were measured on."""

    machine: dict[str, Any]
    records: list[Record] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what `json` can write: the fields, with the work of each case spelled out."""
        cases = [asdict(r) | {"flop": r.case.flop, "bytes": r.case.bytes, "rate": r.rate} for r in self.records]
        return {"machine": self.machine, "cases": cases}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Report":
        """Restore what `to_json` returned."""
        records = []
        for entry in data["cases"]:
            kind = Network if entry["case"]["suite"] == NETWORKS else Case
            results = {name: Result(**_with_tuples(result)) for name, result in entry["results"].items()}
            records.append(Record(kind(**_with_tuples(entry["case"])), entry["peak"], results))
        return cls(data["machine"], records)


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def describe_machine(libraries: list[Library], numpy: NumPyProcess, threads: int) -> dict[str, Any]:
    """Measure the machine's limits and say what runs on it."""
    prefixes = ("FASTCONV_", "OMP_", "GOMP_", "OPENBLAS_", "MKL_")
    return {
        "processor": runtime._processor(),
        "isa": runtime.current_isa(),
        "threads": threads,
        "python": platform.python_version(),
        "libraries": {library.name: library.version for library in [*libraries, numpy]},
        "blas": numpy.blas,
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(prefixes)},
        "micro_kernel": micro_kernel_shares(),
        "bandwidth": copy_bandwidth(threads),
    }


def variants(threads: int) -> list[Library]:
    """Make fastconv on one thread, on every other ISA, and by direct summation alone."""
    others = [isa for isa in runtime.available_isas() if isa != runtime.current_isa()]
    return [
        *([FastConv(1, "1 thread")] if threads > 1 else []),
        *(FastConv(threads, isa, isa=isa) for isa in others),
        FastConv(threads, "gemm", algorithm="gemm"),
    ]


def micro_kernel_shares(repeats: int = 5) -> dict[str, tuple[float, float]]:
    """Measure, per ISA, the micro-kernel in cache: its flop/s, and its share of the FMA peak of one core."""
    shares = {}
    for isa in runtime.available_isas():
        with fastconv.isa(isa):
            pairs = [(_kernels.micro_kernel_rate("f", 0.02), _kernels.fma_peak("f", 0.02, 1)) for _ in range(repeats)]
        shares[isa] = (1e9 * median(rate for rate, _ in pairs), median(rate / peak for rate, peak in pairs))
    return shares


def run_cases(
    cases: list[Case | Network], libraries: list[Library], numpy: NumPyProcess, budget: Budget, threads: int
) -> Iterator[Record]:
    """Yield the record of each case; the first library is fastconv, which must be right."""

    def peak() -> float:
        return 1e9 * _kernels.fma_peak("f", budget.gauge, threads)

    for case in cases:
        record, blocks = Record(case, 0), {}
        prepared = numpy.prepare(case)
        arrays = case.arrays()
        expected, numpy_error = prepared()
        if numpy_error is not None:
            record.results[numpy.name] = Result(error=numpy_error)
            blocks[numpy.name] = partial(numpy.time_block, calls=budget.calls)
        for library in filter(partial(_applies, case), libraries):
            try:
                if (call := library.prepare(case, arrays)) is None:
                    continue
                call()  # some libraries settle at their second call: that one's result counts
                result = Result(error=error(library.outputs(call()), expected))
            except Exception as failure:
                if library is libraries[0]:
                    raise
                record.results[library.name] = Result(unavailable=f"{type(failure).__name__}: {failure}")
                continue
            record.results[library.name] = result
            if result.error < WRONG:
                blocks[library.name] = partial(time_block, call, calls=budget.calls)
            elif library is libraries[0]:
                raise ArithmeticError(f"{case}: the error of fastconv's result is {result.error:.1e} of its maximum")
            else:
                result.unavailable = f"wrong result, error {result.error:.1e}"
        times, peaks = alternate(blocks, budget, peak)
        own = times[libraries[0].name]
        for name, rounds in times.items():
            record.results[name].seconds = median(rounds)
            record.results[name].relative = median(t / mine for t, mine in zip(rounds, own, strict=True))
        record.peak = max(peaks)
        if isinstance(case, Network) and case.memory:
            blocks.clear()
            for name in LIBRARIES.keys() & times.keys():
                record.results[name].memory = peak_memory(name, case, threads)
        yield record


def _applies(case: Case | Network, library: Library) -> bool:
    """Channels last is measured where it is worth choosing; fastconv's only in pooling, ReLU, depthwise convolution."""
    if case.suite in BEST_LAYOUT:
        return library.name != f"{FastConv.name} channels_last"
    return "channels_last" not in library.name or case.depthwise or case.op != "conv2d"
