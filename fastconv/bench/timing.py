"""How time is taken: libraries alternate in blocks, and every figure is a median.

A library's threads go on spinning after a call and slow down whatever runs next, so that calls of different libraries
must not be interleaved one by one. A round gives each library one block:

    gap (its predecessor's threads fall asleep) | calls that are discarded (its own wake up) | calls that are timed

The next round begins with the next library. A processor's speed drifts over seconds; what is reported as a ratio is
therefore formed within each round, and the peak that a speed is compared with is measured in each round too.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

Block = Callable[[float], float]


@dataclass(frozen=True)
class Budget:
    """How often and how long, in seconds, to measure.

    ``rounds`` of blocks; in each block ``block`` seconds and ``calls`` calls at least; ``gap`` before it; ``gauge`` for
    the machine's speed, once a round.
    """

    rounds: int = 5
    block: float = 0.1
    calls: int = 3
    gap: float = 0.05
    gauge: float = 0.02


FULL = Budget()
QUICK = Budget(rounds=2, block=0.01, calls=1, gap=0.01, gauge=0.01)


def time_block(call: Callable[[], Any], seconds: float, calls: int = 1) -> float:
    """Return the median time of ``call``, in seconds, after calls that are discarded.

    Timed calls go on for ``seconds``, discarded ones for a quarter of that; there are at least ``calls`` timed ones.
    """
    clock = time.perf_counter
    start = clock()
    call()
    while clock() < start + seconds / 4:
        call()
    times = []
    start = end = clock()
    while len(times) < calls or end < start + seconds:
        begin = clock()
        call()
        end = clock()
        times.append(end - begin)
    return median(times)


def fastest(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """Return the fastest of equivalent calls, each given a short block."""
    return min(calls, key=lambda call: time_block(call, 0.01)) if len(calls) > 1 else calls[0]


def alternate(
    blocks: dict[str, Block], budget: Budget, gauge: Callable[[], float]
) -> tuple[dict[str, list[float]], list[float]]:
    """Run all blocks in every round, in rotating order, each after a gap.

    Parameters
    ----------
    blocks : for each library, a function that measures for so many seconds and returns a time
    budget : rounds and durations
    gauge : measured at the start of every round: the machine's speed

    Returns
    -------
    For each library its time in each round, and the gauge's values.
    """
    order = list(blocks)
    times = {name: [] for name in order}
    gauged = []
    for _ in range(budget.rounds):
        time.sleep(budget.gap)
        gauged.append(gauge())
        for name in order:
            time.sleep(budget.gap)
            times[name].append(blocks[name](budget.block))
        order.append(order.pop(0))
    return times, gauged


def copy_bandwidth(threads: int, megabytes: int = 64) -> float:
    """Measure the bytes per second, read and written, that ``threads`` threads reach in copying large arrays."""
    pairs = [(np.empty(megabytes << 17), np.ones(megabytes << 17)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = time_block(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)), 0.1, calls=3)
    return 2 * threads * (megabytes << 20) / seconds
