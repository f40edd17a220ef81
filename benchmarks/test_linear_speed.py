"""Fully connected layers against NumPy's BLAS, and against the processor's peak.

    pytest benchmarks/test_linear_speed.py -s

prints, for each layer and pass, times as fast as NumPy and the share of the multiply-add peak of the same run.
"""

import statistics
from functools import partial

import numpy as np
import pytest

import fastconv
from fastconv import _kernels
from fastconv.bench.timing import Budget, alternate, time_block

LAYERS = [
    (2048, 1024, 1024),
    (512, 1024, 1024),
    (1024, 4096, 1000),
    (64, 2048, 1000),
    (16, 9216, 4096),
    (1, 4096, 4096),
]
LEAST = 0.5  # times as fast as NumPy, on a machine with other work
GAP = 0.15  # seconds: so long NumPy's threads go on spinning


def passes(rows, features, out_features):
    """Return, for each pass, NumPy's call and ours."""
    rng = np.random.default_rng(0)
    shapes = (rows, features), (out_features, features), (rows, out_features)
    x, weight, g = (rng.standard_normal(shape, np.float32) for shape in shapes)
    y, grad_input, grad_weight = map(np.empty_like, (g, x, weight))  # each for the two in turn
    backward = partial(fastconv.linear_backward, g, x, weight)
    return {
        "output": (partial(np.matmul, x, weight.T, out=y), partial(fastconv.linear, x, weight, out=y)),
        "input gradient": (
            partial(np.matmul, g, weight, out=grad_input),
            partial(backward, output_mask=(True, False, False), out=(grad_input, None, None)),
        ),
        "weight gradient": (
            partial(np.matmul, g.T, x, out=grad_weight),
            partial(backward, output_mask=(False, True, False), out=(None, grad_weight, None)),
        ),
    }


def result(returned):
    """The array of a pass, alone or among gradients."""
    return next(a for a in returned if a is not None) if isinstance(returned, tuple) else returned


def compare(numpy, ours, flop):
    """Return the rate of `ours`, the peak, both in GFLOP/s, and how many times as fast as `numpy` it is."""
    threads, budget = fastconv.get_num_threads(), Budget(rounds=7, block=0.05, gap=GAP)
    blocks = {"NumPy": partial(time_block, numpy), "fastconv": partial(time_block, ours)}
    times, peaks = alternate(blocks, budget, lambda: _kernels.fma_peak("f", budget.gauge, threads))
    speed = statistics.median(a / b for a, b in zip(times["NumPy"], times["fastconv"], strict=True))
    return flop / statistics.median(times["fastconv"]) / 1e9, max(peaks), speed


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "x".join(map(str, layer)))
def test_linear(layer, request):
    for name, (numpy, ours) in passes(*layer).items():
        np.testing.assert_allclose(result(ours()).copy(), numpy(), rtol=1e-3, atol=1e-2)
        if request.config.getoption("benchmark_disable"):
            continue
        rate, peak, speed = compare(numpy, ours, 2 * np.prod(layer))
        print(
            f"{'x'.join(map(str, layer))} {name}: {rate:.0f} GFLOP/s, {rate / peak:.0%} of the peak, {speed:.2f}x NumPy"
        )
        assert speed >= LEAST
