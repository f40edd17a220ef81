import pytest

SUITES = ("pooling", "relu")


@pytest.mark.benchmark(max_time=0.3, min_rounds=3)
def test_pooling(measure, case, library):
    measure(case, library)
