import pytest

SUITES = ("layers", "depthwise", "general")


@pytest.mark.benchmark(max_time=0.3, min_rounds=3)
def test_convolution(measure, case, library):
    measure(case, library)
