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

import fastconv
from fastconv.bench.timing import Budget, alternate, time_block
from fastconv.integrations import cs231n

SOURCE = Path(__file__).with_name("cs231n_im2col.pyx")
LEAST = 6  # times as fast as the course's convolution


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


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_convolution(course, direction, record_property):
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape) for shape in ((100, 3, 31, 31), (25, 3, 3, 3), (25,)))
    arguments, dout = (x, w, b, {"stride": 2, "pad": 1}), rng.standard_normal((100, 25, 16, 16))
    (out, cache), (expected, their_cache) = cs231n.conv_forward_fast(*arguments), course.conv_forward(*arguments)
    equal([out], [expected])
    equal(cs231n.conv_backward_fast(dout, cache), course.conv_backward(dout, their_cache))
    if direction == "forward":
        calls = partial(course.conv_forward, *arguments), partial(cs231n.conv_forward_fast, *arguments)
    else:
        calls = partial(course.conv_backward, dout, their_cache), partial(cs231n.conv_backward_fast, dout, cache)
    report(f"convolution {direction}", ratio(*calls), record_property, LEAST)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_max_pooling(course, direction, record_property):
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((100, 3, 32, 32)), rng.standard_normal((100, 3, 16, 16))
    arguments = x, {"pool_height": 2, "pool_width": 2, "stride": 2}
    (out, cache), (expected, their_cache) = (
        cs231n.max_pool_forward_fast(*arguments),
        course.max_pool_forward(*arguments),
    )
    equal([out, cs231n.max_pool_backward_fast(dout, cache)], [expected, course.max_pool_backward(dout, their_cache)])
    if direction == "forward":
        calls = partial(course.max_pool_forward, *arguments), partial(cs231n.max_pool_forward_fast, *arguments)
    else:
        calls = (
            partial(course.max_pool_backward, dout, their_cache),
            partial(cs231n.max_pool_backward_fast, dout, cache),
        )
    report(f"max pooling {direction}", ratio(*calls), record_property, 1)


def report(name, speed, record_property, least):
    record_property(name, round(speed, 1))
    print(f"{name}: {speed:.1f} times as fast as the course's, {fastconv.get_num_threads()} threads")
    assert speed >= least
