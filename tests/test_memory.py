"""THE rule of memory: no call allocates more than six times its weights and 24 MiB a thread beyond its results.

An input that is no native layout is copied once besides. Workspaces are counted by the extension, idle ones included,
and arrays by tracemalloc, to which NumPy reports; a process of its own asks the system too.
"""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import _kernels

# x, weight, options, reason
CASES = [
    ((2, 64, 112, 112), (3, 64, 9, 9), {}, "few filters of many taps"),
    ((1, 512, 14, 14), (512, 512, 3, 3), {"padding": 1}, "large weights, batch 1"),
    ((8, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}, "large weights, batch 8"),
    ((8, 256, 28, 28), (256, 64, 3, 3), {"padding": 1, "groups": 4}, "groups"),
    ((8, 1024, 14, 14), (256, 1024, 1, 1), {}, "1x1"),
    ((1, 1024, 7, 7), (2048, 1024, 1, 1), {"stride": 2}, "1x1, stride 2"),
    ((8000, 512, 2, 2), (64, 512, 1, 1), {"stride": 2}, "1x1, a pixel of many images"),
    ((1, 50_000, 4, 4), (1, 50_000, 1, 1), {}, "1x1, many channels to one"),
    ((8, 16, 112, 112), (16, 1, 3, 3), {"padding": 1, "groups": 16}, "depthwise"),
    ((2, 144, 56, 56), (144, 1, 3, 3), {"padding": 1, "groups": 144, "stride": 2}, "depthwise, stride 2"),
    ((2, 4096, 4, 4), (4096, 1, 3, 3), {"padding": 1, "groups": 4096}, "more groups than pixels"),
    ((2, 64, 224, 224), (64, 64, 3, 3), {"padding": 1}, "large images"),
    ((1, 1, 2000, 2000), (1, 1, 3, 3), {}, "one channel"),
    ((4096, 3, 8, 8), (8, 3, 3, 3), {}, "many small images"),
    ((8, 3, 224, 224), (64, 3, 7, 7), {"padding": 3, "stride": 2}, "ResNet's first layer"),
    ((2, 96, 27, 27), (256, 96, 5, 5), {"padding": 2}, "5x5"),
    ((64, 1, 28, 28), (64, 1, 28, 28), {}, "kernels of the size of the image"),
    ((1, 16, 2000, 500), (4, 16, 1, 1), {"stride": 100}, "stride far past the kernel"),
    ((1, 64, 200, 200), (8, 64, 3, 3), {"dilation": 80}, "dilation far past the kernel"),
    ((1, 8, 1_000_000), (8, 8, 9), {}, "long signals"),
    ((2, 16, 16, 28, 28), (32, 16, 3, 3, 3), {"padding": 1}, "3-D"),
    ((1, 4, 40, 64, 64), (4, 4, 3, 3, 3), {"dilation": 19}, "3-D, dilated"),
    ((1, 1024, 6, 14, 14), (8, 1024, 3, 3, 3), {"padding": 1}, "3-D, many channels"),
    ((1, 1, 35, 35, 35), (1, 1, 32, 32, 32), {}, "3-D, few pixels of many taps"),
    ((1, 1, 8, 8), (2**17, 1, 1, 1), {}, "few pixels of many filters"),
    ((1, 4096, 28, 28), (2, 4096, 3, 3), {"padding": 1}, "many channels"),
    ((2, 512, 1536), (512, 512, 6), {"padding": 320, "dilation": 128}, "signals, dilated"),
    ((1, 4096, 300), (1, 4096, 6), {"padding": 40, "dilation": 16}, "signals of many channels"),
]
MASKS = [(True, False, False), (False, True, True), (True, True, True)]
MIB = 2**20


def rule(weight, threads):
    return 6 * weight.nbytes + threads * 24 * MIB


def allocated(call):
    """Return the bytes that a call has allocated at most."""
    call()  # what is kept of a geometry
    fastconv.empty_cache()
    _kernels.peak_bytes()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak + _kernels.peak_bytes()


def calls(x, weight, options):
    """Return every call of a convolution that takes its result's memory, by name."""
    name = f"conv{weight.ndim - 2}d"
    forward, backward = getattr(fastconv, name), getattr(fastconv, f"{name}_backward")
    y = forward(x, weight, **options)
    gradients = np.empty_like(x), np.empty_like(weight), np.empty(weight.shape[:1], x.dtype)
    found = {}
    for algorithm in fastconv.explain(name, x.shape, weight.shape, **options)["output"].costs:
        chosen = options | {"algorithm": algorithm}
        found[algorithm, "forward"] = lambda o=chosen: forward(x, weight, **o, out=y)
        for mask in MASKS:
            out = tuple(g if wanted else None for g, wanted in zip(gradients, mask, strict=True))
            found[algorithm, mask] = lambda o=chosen, m=mask, out=out: backward(
                y, x, weight, **o, output_mask=m, out=out
            )
    return found


@pytest.mark.parametrize(("x", "weight", "options"), [c[:3] for c in CASES], ids=[c[3] for c in CASES])
@pytest.mark.parametrize("threads", [1, 2])
def test_convolutions(x, weight, options, threads):
    x, weight = np.ones(x, np.float32), np.ones(weight, np.float32)
    with fastconv.threads(threads):
        used = {name: allocated(call) / MIB for name, call in calls(x, weight, options).items()}
    assert max(used.values()) <= rule(weight, threads) / MIB, used


@pytest.mark.parametrize("rows", [1, 8, 300])
def test_linear(rows, dtype):
    x, weight = np.ones((rows, 2000), dtype), np.ones((1000, 2000), dtype)
    y, gradients = fastconv.linear(x, weight), (np.empty_like(x), np.empty_like(weight), np.empty(1000, dtype))
    assert allocated(lambda: fastconv.linear(x, weight, out=y)) <= rule(weight, fastconv.get_num_threads())
    run = lambda: fastconv.linear_backward(y, x, weight, out=gradients)  # noqa: E731
    assert allocated(run) <= rule(weight, fastconv.get_num_threads())


def test_pools():
    x = np.ones((8, 64, 112, 112), np.float32)
    y, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)
    out, limit = np.empty_like(x), 24 * MIB
    with fastconv.threads(1):
        assert allocated(lambda: fastconv.max_pool2d(x, 3, 2, 1, out=y)) <= limit
        assert allocated(lambda: fastconv.avg_pool2d(x, 3, 2, 1, out=y)) <= limit
        assert allocated(lambda: fastconv.max_pool2d_backward(y, indices, x.shape, 3, 2, 1, out=out)) <= limit
        assert allocated(lambda: fastconv.avg_pool2d_backward(y, x.shape, 3, 2, 1, out=out)) <= limit
        assert allocated(lambda: fastconv.relu(x, out=out)) <= 2**16
        assert allocated(lambda: fastconv.relu_backward(x, x, out=out)) <= 2**16


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda a: a[..., ::-1], lambda a: a.astype(">f4")])
def test_an_input_is_copied_once(layout):
    x, weight = np.ones((8, 64, 100, 100), np.float32), np.ones((8, 64, 3, 3), np.float32)
    y, x = fastconv.conv2d(x, weight), layout(x)
    gradients = np.empty(x.shape, np.float32), np.empty_like(weight), np.empty(8, np.float32)
    with fastconv.threads(1):
        limit = rule(weight, 1) + x.nbytes
        assert allocated(lambda: fastconv.conv2d(x, weight, out=y)) <= limit
        assert allocated(lambda: fastconv.conv2d_backward(y, x, weight, out=gradients)) <= limit


def test_a_workspace_that_grows_replaces_the_one_before():
    weight = np.ones((512, 512, 3, 3), np.float32)
    fastconv.empty_cache()
    for size in range(3, 12):
        fastconv.conv2d(np.ones((1, 512, size, size), np.float32), weight, algorithm="gemm")
    assert _kernels.cached_bytes() <= 2 * weight.nbytes


# The system's own figure, for the largest case of the rule: 205 MB of images, three filters of 9 x 9.
MEASURE = """
import json
from pathlib import Path

import numpy as np

import fastconv

def most():
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) * 1024

fastconv.set_num_threads(2)
x, weight = np.ones((16, 64, 224, 224), np.float32), np.ones((3, 64, 9, 9), np.float32)
y, out = np.ones((16, 3, 216, 216), np.float32), (np.ones_like(x), np.ones_like(weight), np.ones(3, np.float32))
fastconv.conv2d(x[:1, :, :20, :20], weight)  # threads and code
before, used = most(), {}
for algorithm in fastconv.explain("conv2d", x.shape, weight.shape)["output"].costs:
    fastconv.conv2d(x, weight, out=y, algorithm=algorithm)
    used[algorithm] = most() - before
    fastconv.conv2d_backward(y, x, weight, out=out, algorithm=algorithm)
    used[algorithm + " backward"] = most() - before
print(json.dumps([6 * weight.nbytes + 2 * 24 * 2**20, used]))
"""


def available():
    try:
        words = Path("/proc/meminfo").read_text().split()
        return int(words[words.index("MemAvailable:") + 1]) * 1024
    except (OSError, ValueError):
        return 0


@pytest.mark.skipif(available() < 2 * 2**30, reason="needs Linux with 2 GiB of memory available")
def test_the_system_agrees():
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    limit, used = json.loads(run.stdout)
    assert len(used) >= 4
    assert max(used.values()) <= limit, {name: value / MIB for name, value in used.items()}


@pytest.mark.parametrize("width", [100, 3000])  # 1.1 and 33 MiB
def test_memory_of_large_results_is_used_again(width):
    x = np.ones((1, 1, 2900, width), np.float32)
    fastconv.empty_cache()
    y = fastconv.relu(x)
    kept = y[0, 0, 5]  # a view keeps all of it
    first = y.ctypes.data
    del y
    z = fastconv.relu(-x)
    assert z.ctypes.data != first
    assert np.all(kept == 1)
    assert not z.any()
    del kept
    assert fastconv.relu(x).ctypes.data == first
    assert _kernels.cached_bytes() >= x.nbytes
    fastconv.empty_cache()
    assert _kernels.cached_bytes() == 0


def test_results_of_other_sizes_give_way():
    fastconv.empty_cache()
    for i in range(100):
        fastconv.relu(np.zeros((1000 + 100 * i, 500), np.float32))
    y = fastconv.relu(np.zeros((1000, 500), np.float32))
    address = y.ctypes.data
    del y
    assert fastconv.relu(np.zeros((1000, 500), np.float32)).ctypes.data == address
    assert _kernels.cached_bytes() <= 300 * MIB
    fastconv.empty_cache()


def test_a_result_beyond_the_cap_drives_none_out():
    fastconv.empty_cache()
    fastconv.relu(np.zeros((1000, 500), np.float32))
    kept = _kernels.cached_bytes()
    fastconv.relu(np.zeros((280 * MIB // 4,), np.float32))
    assert _kernels.cached_bytes() == kept
    fastconv.empty_cache()


def test_large_results_are_kept_up_to_a_cap():
    fastconv.empty_cache()
    results = [fastconv.relu(np.zeros((1, 1, 2900 + i, 3000), np.float32)) for i in range(12)]
    del results
    assert _kernels.cached_bytes() <= 300 * MIB
    fastconv.empty_cache()
