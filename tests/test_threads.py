"""Threads change no bit: any number of them, many callers at once, and children of fork()."""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastconv

# Enough work for several threads in every pass, and shapes that divide among them in different ways.
CONVOLUTIONS = {
    "dense 3x3": ((4, 24, 20, 21), (40, 24, 3, 3), {"padding": 1}),
    "few pixels, large weights": ((2, 130, 7, 7), (140, 130, 3, 3), {"padding": 1}),
    "many pixels, small weights": ((2, 3, 130, 140), (5, 3, 3, 3), {"padding": 1}),
    "1x1": ((3, 96, 14, 14), (100, 96, 1, 1), {}),
    "one image, one channel": ((1, 1, 300, 300), (2, 1, 5, 5), {}),
    "stride 2": ((2, 16, 45, 47), (32, 16, 5, 5), {"stride": 2, "padding": 2}),
    "grouped": ((2, 32, 30, 31), (48, 8, 3, 3), {"groups": 4, "padding": 1}),
    "depthwise": ((2, 40, 60, 61), (40, 1, 3, 3), {"groups": 40, "padding": 1}),
    "depthwise, channels last": (
        *((2, 60, 61, 40), (40, 1, 3, 3)),
        {"groups": 40, "padding": 1, "layout": "channels_last"},
    ),
    "1-D": ((4, 32, 1000), (32, 32, 5), {"dilation": 3}),
    "3-D": ((2, 8, 9, 16, 17), (12, 8, 3, 3, 3), {"padding": 1}),
}


def convolution(name, dtype=np.float32):
    """Return a function that computes all passes of a convolution."""
    x_shape, weight_shape, options = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, weight_shape, weight_shape[:1]))
    function = f"conv{len(weight_shape) - 2}d"

    def compute():
        y = getattr(fastconv, function)(x, weight, bias, **options)
        return y, *getattr(fastconv, f"{function}_backward")(y, x, weight, **options)

    return compute


def everything_else(dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 32, 75, 77)).astype(dtype)
    rows, weight = rng.standard_normal((70, 300)).astype(dtype), rng.standard_normal((200, 300)).astype(dtype)

    def compute():
        y, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)
        mean = fastconv.avg_pool2d(x, 3, 1, 1)
        positive = fastconv.relu(x)
        scores = fastconv.linear(rows, weight)
        return (
            *(y, indices, mean, positive, scores),
            fastconv.max_pool2d_backward(y, indices, x.shape, 3, 2, 1),
            fastconv.avg_pool2d_backward(mean, x.shape, 3, 1, 1),
            fastconv.relu_backward(x, positive),
            *fastconv.linear_backward(scores, rows, weight),
            *fastconv.linear(rows[:1], weight),
        )

    return compute


def assert_same_bits(results, expected):
    for a, b in zip(results, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", [*CONVOLUTIONS, None], ids=lambda name: name or "everything else")
def test_any_number_of_threads_gives_the_same_bits(name, isa, dtype):
    compute = convolution(name, dtype) if name else everything_else(dtype)
    with fastconv.threads(1):
        expected = compute()
    for threads in (2, 3, 8):
        with fastconv.threads(threads):
            assert_same_bits(compute(), expected)


def test_more_threads_than_shares_of_the_tasks(dtype):
    compute = convolution("many pixels, small weights", dtype)
    with fastconv.threads(1):
        expected = compute()
    with fastconv.threads(70):
        assert_same_bits(compute(), expected)


def test_the_same_call_twice_gives_the_same_bits(isa):
    for name in CONVOLUTIONS:
        compute = convolution(name)
        assert_same_bits(compute(), compute())


def test_threads_is_local_to_the_calling_thread():
    before = fastconv.get_num_threads()
    with fastconv.threads(before + 2):
        assert fastconv.get_num_threads() == before + 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(fastconv.get_num_threads).result() == before
        with fastconv.threads(1):
            assert fastconv.get_num_threads() == 1
        assert fastconv.get_num_threads() == before + 2
    assert fastconv.get_num_threads() == before


def test_set_num_threads_is_process_wide():
    before = fastconv.get_num_threads()
    try:
        fastconv.set_num_threads(before + 1)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(fastconv.get_num_threads).result() == before + 1
    finally:
        fastconv.set_num_threads(before)


def test_many_callers_at_once():
    """Different shapes, ISAs and thread counts, so that workspaces of every size change hands."""
    isas = fastconv.runtime.available_isas()
    jobs = [(convolution(name), isa) for name in CONVOLUTIONS for isa in isas]
    jobs += [(everything_else(), isa) for isa in isas]

    def run(compute, isa, threads):
        with fastconv.isa(isa), fastconv.threads(threads):
            return compute()

    expected = [run(compute, isa, 1) for compute, isa in jobs]
    start = threading.Barrier(8)

    def caller(first):
        start.wait(30)
        for i in range(len(jobs)):
            job = (first * 5 + i) % len(jobs)
            assert_same_bits(run(*jobs[job], 1 + first % 3), expected[job])

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(caller, first) for first in range(8)]:
            future.result(timeout=120)


def child(send, compute):
    before = fastconv.get_num_threads()
    fastconv.set_num_threads(4)
    with fastconv.threads(3):
        send.send((before, fastconv.get_num_threads(), compute()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_child_of_fork_computes_alone():
    """An OpenMP runtime that has had threads waits for them in a child for ever; with one thread it need not."""
    compute = convolution("dense 3x3")
    with fastconv.threads(2):
        expected = compute()
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(send, compute))
        process.start()
        try:
            assert receive.poll(60), "the child hangs"
            before, inside, results = receive.recv()
            process.join(60)
            assert process.exitcode == 0
        finally:
            process.kill()
            process.join()
        assert (before, inside) == (1, 1)
        assert_same_bits(results, expected)
        with fastconv.threads(2):
            assert_same_bits(compute(), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork_while_other_threads_compute():
    """A child forked in the middle of a parallel region, with workspaces leased by threads that it does not have."""
    compute = convolution("dense 3x3")
    with fastconv.threads(1):
        expected = compute()
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            compute()

    context = multiprocessing.get_context("fork")
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(busy) for _ in range(2)]
        try:
            for _ in range(5):
                receive, send = context.Pipe(duplex=False)
                process = context.Process(target=child, args=(send, compute))
                process.start()
                try:
                    assert receive.poll(60), "the child hangs"
                    assert_same_bits(receive.recv()[2], expected)
                finally:
                    process.kill()
                    process.join()
        finally:
            stop.set()
        for future in futures:
            future.result(timeout=60)
