"""Kernels read and write nothing beside their arrays: each array lies against a page that nobody may touch.

Vectors are loaded whole where that is cheaper than masking them; what they read must then be the array's own.
"""

import subprocess
import sys
from textwrap import dedent

import pytest

pytest.importorskip("mmap").PROT_READ  # noqa: B018 (Windows has none)

PROGRAM = dedent("""
    import ctypes, itertools, mmap, sys
    import numpy as np
    import fastconv as fc

    libc = ctypes.CDLL(None, use_errno=True)
    kept = []

    def guarded(array, at_end):
        page = mmap.PAGESIZE
        pages = -(-array.nbytes // page)
        memory = mmap.mmap(-1, (pages + 2) * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for guard in start, start + (pages + 1) * page:
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0, ctypes.get_errno()
        offset = page + (pages * page - array.nbytes if at_end else 0)
        view = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
        view[...] = array
        kept.append(memory)
        return view

    def check(operator, gradient, *arrays, **options):
        expected = operator(*arrays, **options)
        for at_end in False, True:
            inputs = [guarded(a, at_end) for a in arrays]
            out = guarded(np.zeros_like(expected), at_end)
            np.testing.assert_array_equal(operator(*inputs, **options, out=out), expected)
            gradient(inputs, out, at_end)
            kept.clear()

    def convolution_gradient(options, backward=fc.conv2d_backward):
        def gradient(inputs, out, at_end):
            outs = tuple(guarded(np.zeros_like(a), at_end) for a in inputs)
            backward(out, *inputs[:2], **options, out=outs)
        return gradient

    CHANNELS = (1, 1, 1, 0), (3, 3, 3, 0), (3, 3, 3, 90), (3, 6, 3, 0), (4, 18, 1, 0), (4, 4, 2, 0)
    rng = np.random.default_rng(0)
    arrays = lambda *shapes: [rng.standard_normal(shape, dtype) for shape in shapes]
    for isa, dtype in itertools.product(fc.runtime.available_isas(), (np.float32, np.float64)):
        with fc.isa(isa):
            for depth, size, kernel in itertools.product((1, 2, 7), (5, 14), (3, 5)):
                volume = dict(padding=1, algorithm="winograd")
                x = arrays((2, 3, depth + 2, size, size), (17, 3, 3, kernel, kernel), (17,))
                check(fc.conv3d, convolution_gradient(volume, fc.conv3d_backward), *x, **volume)
            for n, size, kernel, stride in itertools.product((1, 3), (1, 7, 14, 33), (1, 3, 5, 7), (1, 2)):
                for c, oc, groups, more in CHANNELS:  # of x, of y, groups, padding beyond what is usual
                    options = dict(stride=stride, padding=(kernel // 2, kernel // 2 + more), groups=groups)
                    x = arrays((n, c, size, size), (oc, c // groups, kernel, kernel), (oc,))
                    for algorithm in ("auto", "gemm", "im2col", "direct", "winograd"):
                        chosen = options | dict(algorithm=algorithm)
                        try:
                            fc.explain("conv2d", x[0].shape, x[1].shape, dtype=dtype, **chosen)
                        except ValueError:  # that algorithm does not serve
                            continue
                        check(fc.conv2d, convolution_gradient(chosen), *x, **chosen)
                last = dict(stride=stride, padding=kernel // 2, groups=19, layout="channels_last")
                x = arrays((n, size, size, 19), (19, 1, kernel, kernel), (19,))
                check(fc.conv2d, convolution_gradient(last), *x, **last)
                if kernel <= size and kernel > 1:
                    pool = dict(kernel_size=kernel, stride=stride, padding=kernel // 2)
                    nothing = lambda *arguments: None
                    check(fc.max_pool2d, nothing, *arrays((n, 2, size, size)), **pool)
                    check(fc.avg_pool2d, nothing, *arrays((n, 2, size, size)), **pool)
""")


def test_guard_pages():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
