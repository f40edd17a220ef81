"""The fast layers of CS231n against the course's own method, on the shapes of its notebook.

The baseline, ``cs231n_im2col.pyx``, is compiled into a temporary folder; it needs Cython and a C compiler.
"""

import importlib.util
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fastconv.bench.timing import Budget, alternate, time_block
from fastconv.integrations import cs231n

SOURCE = Path(__file__).with_name("cs231n_im2col.pyx")
LEAST = {"forward": 4, "backward": 1.5}  # times as fast as the course's convolution, on a machine with other work


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    pytest.importorskip("Cython")
    folder = tmp_path_factory.mktemp("cs231n")
    (folder / SOURCE.name).write_text(SOURCE.read_text())
    subprocess.run([sys.executable, "-m", "Cython.Build.Cythonize", "-3", "-i", SOURCE.name], cwd=folder, check=True)
    (library,) = [path for path in folder.glob("cs231n_im2col.*") if path.suffix in (".so", ".pyd")]
    spec = importlib.util.spec_from_file_location(SOURCE.stem, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ratio(theirs, ours):
    """How many times as fast `ours` is: blocks alternate."""
    budget = Budget(rounds=5, block=0.05)
    times, _ = alternate({"theirs": partial(time_block, theirs), "ours": partial(time_block, ours)}, budget, lambda: 0)
    return statistics.median(a / b for a, b in zip(times["theirs"], times["ours"], strict=True))


def equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-9)


def compare(name, modules, arguments, dout, least, results_alone):
    """Check both passes of both modules, and that ours is `least` times as fast in each direction."""
    directions = "forward", "backward"
    ours, theirs = ([getattr(module, f"{name}_{d}{suffix}") for d in directions] for module, suffix in modules.items())
    (out, cache), (expected, their_cache) = ours[0](*arguments), theirs[0](*arguments)
    equal([out], [expected])
    gradients, expected = ours[1](dout, cache), theirs[1](dout, their_cache)
    equal(*([g] if name == "max_pool" else g for g in (gradients, expected)))
    calls = (
        (partial(theirs[0], *arguments), partial(ours[0], *arguments)),
        (partial(theirs[1], dout, their_cache), partial(ours[1], dout, cache)),
    )
    for direction, pair in zip(directions, calls, strict=True):
        if not results_alone:
            speed = ratio(*pair)
            print(f"{name} {direction}: {speed:.1f} times as fast as the course's")
            assert speed >= least[direction]


@pytest.fixture
def results_alone(request):
    """Whether `--benchmark-disable` asks for no speed."""
    return request.config.getoption("benchmark_disable")


def test_convolution(course, results_alone):
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape) for shape in ((100, 3, 31, 31), (25, 3, 3, 3), (25,)))
    dout = rng.standard_normal((100, 25, 16, 16))
    compare("conv", {cs231n: "_fast", course: ""}, (x, w, b, {"stride": 2, "pad": 1}), dout, LEAST, results_alone)


def test_max_pooling(course, results_alone):
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((100, 3, 32, 32)), rng.standard_normal((100, 3, 16, 16))
    windows = {"pool_height": 2, "pool_width": 2, "stride": 2}
    compare("max_pool", {cs231n: "_fast", course: ""}, (x, windows), dout, {"forward": 6, "backward": 1}, results_alone)
