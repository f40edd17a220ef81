"""Denormals are flushed: what they cost is asserted here, where speed is measured; that results are right, in tests/.

Without flushing, each product of denormals takes the processor over a hundred cycles.
"""

import statistics
import time
from functools import partial

import numpy as np
import pytest

import fastconv

MOST = 1.2  # times what normal numbers take
CASES = {  # by algorithm
    "gemm": ((2, 64, 28, 28), (64, 64, 3, 3)),
    "direct": ((2, 64, 56, 56), (64, 1, 3, 3)),
    "winograd": ((2, 64, 28, 28), (64, 64, 3, 3)),
}
PASSES = {
    "forward": lambda x, weight, y, options: fastconv.conv2d(x, weight, **options, out=y),
    "input gradient": lambda x, weight, y, options: fastconv.conv2d_backward(
        y, x, weight, **options, output_mask=(True, False, False)
    ),
    "weight gradient": lambda x, weight, y, options: fastconv.conv2d_backward(
        y, x, weight, **options, output_mask=(False, True, True)
    ),
}


def arrays(scale, x, weight, dtype):
    rng = np.random.default_rng(0)
    shapes = x, weight, (x[0], weight[0], *x[2:])
    return [(rng.uniform(0.5, 1, shape) * scale).astype(dtype) for shape in shapes]


def seconds(call, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("algorithm", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_denormals_cost_what_normal_numbers_cost(algorithm, name, dtype):
    """Inputs, weights and gradients all denormal, against the same numbers of common size; blocks alternate."""
    x, weight = CASES[algorithm]
    options = {"padding": 1, "groups": x[1] // weight[1], "algorithm": algorithm}
    numbers = [arrays(scale, x, weight, dtype) for scale in (np.finfo(dtype).tiny / 4, 1)]
    denormal, normal = (partial(PASSES[name], *values, options) for values in numbers)
    with fastconv.threads(1):
        repeats = max(1, round(2e-3 / seconds(normal, 3)))
        for _ in range(3):  # a machine that does other things as well slows one block down more than another
            pairs = [(seconds(denormal, repeats), seconds(normal, repeats)) for _ in range(21)]
            ratio = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
            if ratio <= MOST:
                break
    assert ratio <= MOST
