"""The cases of :mod:`fastconv.bench` under pytest-benchmark: one test is one library in one case.

    pytest benchmarks/                          fastconv and the fastest NumPy form
    pytest benchmarks/ --peers -k res3_3x3      also the libraries that are installed

Each test is a block of its own, so NumPy runs in this process; ``python -m fastconv bench`` alternates the libraries,
and is what published figures come from.
"""

import time

import pytest

import fastconv
from fastconv.bench.cases import load_cases
from fastconv.bench.numpy_peer import NumPy, error
from fastconv.bench.peers import FastConv, installed_peers
from fastconv.bench.suite import WRONG


def pytest_addoption(parser):
    parser.addoption("--peers", action="store_true", help="also time torch, onnxruntime, openvino, ncnn and MNN")


def pytest_generate_tests(metafunc):
    if "library" not in metafunc.fixturenames:
        return
    threads = fastconv.get_num_threads()
    libraries = [FastConv(threads), NumPy(threads)]
    if metafunc.config.getoption("--peers"):
        libraries += installed_peers(threads)
    metafunc.parametrize("library", libraries, ids=lambda library: library.name)
    metafunc.parametrize("case", load_cases(metafunc.module.SUITES), ids=str)


@pytest.fixture
def measure(benchmark):
    def run(case, library):
        arrays = case.arrays()
        call = library.prepare(case, arrays)
        if call is None:
            pytest.skip(f"{library.name} has no {case.function}")
        benchmark.group = str(case)
        time.sleep(0.15)  # until the threads of whatever ran before are asleep
        result = benchmark(call)
        if benchmark.stats:
            benchmark.extra_info["GFLOP/s"] = case.flop / benchmark.stats["median"] / 1e9
        benchmark.extra_info["error"] = error(library.outputs(result), case.expected(arrays))
        assert benchmark.extra_info["error"] < WRONG

    return run
