"""Fixtures of all tests: every ISA of this machine in one process, both types, fixed seeds."""

import os

import hypothesis
import numpy as np
import pytest

import fastconv

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(params=fastconv.runtime.available_isas())
def isa(request):
    with fastconv.isa(request.param):
        yield request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def pytest_collection_modifyitems(items):
    """The mark `torch`, of all that is compared with PyTorch where it is installed."""
    for item in items:
        if "torch" in item.fixturenames:
            item.add_marker("torch")


class _Zeros(np.random.Generator):
    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)


@pytest.fixture
def no_random_numbers():
    """A source of zeros: random numbers for 138 million weights take longer than a test."""
    return _Zeros(np.random.PCG64(0))
