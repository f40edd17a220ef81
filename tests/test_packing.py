"""Packed weights change no bit of any result, whatever they were packed for."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastconv

# x, weight, options, reason
CASES = [
    ((2, 5, 9, 11), (13, 5, 3, 3), {"padding": 1}, "3x3, odd channels"),
    ((1, 3, 40, 90), (20, 3, 3, 3), {"padding": 1}, "3x3, more patches than a task"),
    ((1, 70, 30, 33), (50, 70, 3, 3), {"padding": 1}, "3x3, several chunks of channels"),
    ((4, 12, 50, 49), (10, 6, 5, 5), {"padding": 2, "groups": 2}, "5x5 in two groups"),
    ((2, 7, 12, 13), (9, 7, 3, 3), {"stride": 2, "padding": 1}, "stride 2: several sweeps of the gradient"),
    ((2, 4, 13, 12), (6, 4, 3, 3), {"stride": 2, "dilation": 2, "padding": 2}, "stride 2, dilation 2: holes"),
    ((2, 8, 10, 11), (8, 1, 3, 3), {"padding": 1, "groups": 8}, "depthwise"),
    ((3, 40, 7, 7), (33, 40, 1, 1), {}, "1x1"),
    ((2, 6, 50), (8, 3, 5), {"padding": 2, "groups": 2}, "1-D"),
    ((1, 3, 6, 7, 8), (5, 3, 2, 3, 3), {"padding": 1}, "3-D"),
    ((3, 9, 10), (4, 3, 3, 3), {}, "unbatched"),
    ((0, 3, 9, 10), (4, 3, 3, 3), {}, "no image"),
    ((2, 30, 4, 5), (20, 30, 3, 3), {"padding": 5, "dilation": 5}, "taps that meet only padding"),
]
ALGORITHMS = ("auto", "gemm", "im2col", "direct", "winograd")


def drawn(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def passes(x, weight, **options):
    """Return the output and the gradients."""
    name = f"conv{weight.ndim - 2}d"
    y = getattr(fastconv, name)(x, weight, **options)
    return y, *getattr(fastconv, f"{name}_backward")(np.cos(y), x, weight, **options)


def assert_same_bits(results, expected):
    for a, b in zip(results, expected, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("x", "weight", "options"), [c[:3] for c in CASES], ids=[c[3] for c in CASES])
def test_results_are_those_of_the_weights(x, weight, options, algorithm, isa, dtype):
    options = options | {"algorithm": algorithm}
    shape, x, weight = x, drawn(*x, dtype=dtype), drawn(*weight, dtype=dtype, seed=1)
    try:
        expected = passes(x, weight, **options)
    except ValueError as error:
        with pytest.raises(ValueError, match="algorithm must be one of"):
            fastconv.pack_weight(weight, shape, **options)
        pytest.skip(str(error))
    packed = fastconv.pack_weight(weight, shape, **options)
    weight[...] = np.nan  # a snapshot
    for _ in range(2):
        assert_same_bits(passes(x, packed, **options), expected)


def test_other_shapes_options_and_instruction_sets(dtype):
    weight = drawn(12, 4, 3, 3, dtype=dtype)
    packed = fastconv.pack_weight(weight, (1, 4, 8, 8))
    calls = [
        ((size, 4 * groups, size, size + 1), {"stride": stride, "padding": padding, "groups": groups, "algorithm": a})
        for size in (3, 30)
        for groups in (1, 3)
        for stride, padding in ((1, 1), (2, 1), (2, 0), (3, 1))
        for a in ALGORITHMS
        if (a != "winograd" or stride == 1) and (a != "im2col" or size * groups == 3)
    ]
    for isa in (*fastconv.runtime.available_isas(), fastconv.runtime.available_isas()[0]):
        with fastconv.isa(isa):
            for shape, options in calls:
                x = drawn(*shape, dtype=dtype, seed=2)
                assert_same_bits(passes(x, packed, **options), passes(x, weight, **options))
    assert packed.nbytes <= 10 * weight.nbytes * 36 / 9 + 10 * 2**14, "the number of forms is bounded"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_winograd_gives_way_to_gemm(value, isa):
    x, weight = drawn(1, 3, 40, 90), drawn(20, 3, 3, 3, seed=1)
    weight[3, 1, 1, 1] = value
    packed = fastconv.pack_weight(weight, x.shape, algorithm="winograd")
    with np.errstate(all="ignore"):
        assert_same_bits(passes(x, packed, algorithm="winograd"), passes(x, weight, algorithm="winograd"))


def test_one_for_images_of_all_sizes(isa, dtype):
    weight = drawn(35, 20, 3, 3, dtype=dtype)
    packed = fastconv.pack_weight(weight, (2, 20, 14, 14), padding=1, algorithm="winograd")
    for size in (14, 9, 6, 8, 1, 13, 5):
        x = drawn(2, 20, size, size, dtype=dtype)
        for algorithm in ("winograd", "auto"):
            options = {"padding": 1, "algorithm": algorithm}
            assert_same_bits(passes(x, packed, **options), passes(x, weight, **options))


def test_one_for_all_strides_of_volumes(dtype):
    weight, x = drawn(8, 6, 3, 1, 1, dtype=dtype), drawn(1, 6, 9, 8, 8, dtype=dtype)
    packed = fastconv.pack_weight(weight, x.shape)
    for stride in ((2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, 1)):
        options = {"stride": stride, "algorithm": "gemm"}
        assert_same_bits(passes(x, packed, **options), passes(x, weight, **options))


def test_a_weight_that_meets_only_padding_and_is_not_finite(dtype):
    x, weight = drawn(2, 6, 1, 1, dtype=dtype), drawn(5, 6, 3, 3, dtype=dtype)
    weight[2, 3, 0, 0], weight[4, 3, 2, 2] = np.inf, np.nan
    packed = fastconv.pack_weight(weight, x.shape, padding=1)
    for y in (fastconv.conv2d(x, weight, padding=1), fastconv.conv2d(x, packed, padding=1)):
        assert np.isnan(y).any(axis=(0, 2, 3)).tolist() == [False, False, True, False, True]
        np.testing.assert_allclose(y, fastconv.reference.conv2d(x, weight, padding=1), rtol=1e-4)


@pytest.mark.parametrize("copied", [lambda p: pickle.loads(pickle.dumps(p)), copy.copy, copy.deepcopy, lambda p: p])
def test_copies_and_pickles(copied, dtype):
    x, weight = drawn(1, 4, 30, 30, dtype=dtype), drawn(8, 4, 3, 3, dtype=dtype)
    packed = fastconv.pack_weight(weight, x.shape)
    passes(x, packed)
    assert len(pickle.dumps(packed)) < weight.nbytes + 1000, "pickles hold the weights alone"
    twin = copied(packed)
    np.testing.assert_array_equal(twin, weight)
    assert_same_bits(passes(x, twin), passes(x, weight))


def test_it_looks_like_its_weights(dtype):
    weight = drawn(8, 4, 3, 3, dtype=dtype)
    packed = fastconv.pack_weight(weight, (4, 9, 9), algorithm="gemm")
    assert (packed.shape, packed.dtype, packed.ndim) == (weight.shape, weight.dtype, weight.ndim)
    assert packed.nbytes > weight.nbytes
    np.testing.assert_array_equal(np.asarray(packed), weight)
    np.testing.assert_array_equal(np.array(packed, np.float64), weight.astype(np.float64))
    assert np.may_share_memory(np.asarray(packed), packed.raw)
    assert not np.may_share_memory(np.array(packed), packed.raw)
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(packed)[...] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        packed.raw.flags.writeable = True
    with pytest.raises(AttributeError):
        packed.raw = weight
    with pytest.raises(ValueError, match="needs a copy"):
        packed.__array__(np.int64, copy=False)
    text = repr(packed)
    assert text.startswith(f"PackedWeight(shape=(8, 4, 3, 3), dtype={np.dtype(dtype)}")
    assert f"output gemm {fastconv.runtime.current_isa()}" in text
    assert "nothing yet" in repr(pickle.loads(pickle.dumps(packed)))


def test_threads_share_one():
    x = [drawn(n, 4, 30, 30, seed=n) for n in range(1, 5)]
    weight = drawn(8, 4, 3, 3)
    options = [{"stride": stride, "algorithm": a} for stride in (1, 2, 3) for a in ("gemm", "direct")]
    expected = [[passes(images, weight, **o) for o in options] for images in x]
    packed = fastconv.PackedWeight(weight)
    start = threading.Barrier(4)

    def run(i):
        start.wait(30)
        for _ in range(20):
            for o, wanted in zip(options, expected[i], strict=True):
                assert_same_bits(passes(x[i], packed, **o), wanted)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(run, i) for i in range(4)]:
            future.result(timeout=120)


WEIGHT = drawn(6, 2, 3, 3)
BAD_PACKING = [
    (
        {"weight": drawn(6, 2)},
        ValueError,
        "weight must have shape (oc, ic // groups, *kernel), of 3 to 5 dimensions, got",
    ),
    ({"weight": WEIGHT.astype(int)}, TypeError, "weight.dtype must be float32 or float64, got int64; cast with"),
    ({"weight": None}, TypeError, "weight must be an array in CPU memory, got NoneType"),
    (
        {"input_shape": (6, 6)},
        ValueError,
        "input_shape must be (n, ic, ih, iw), or (ic, ih, iw) unbatched, of sizes >=",
    ),
    ({"input_shape": (1, 2, 6, -6)}, ValueError, "input_shape must be (n, ic, ih, iw), or (ic, ih, iw) unbatched, of"),
    ({"input_shape": (1, 2, 6, 6.0)}, TypeError, "input_shape must be an integer or a tuple of integers, got 6.0"),
    ({"input_shape": 6}, TypeError, "input_shape must be a tuple of integers, got 6"),
    ({"input_shape": (1, 3, 6, 6)}, ValueError, "weight.shape[1] must equal input_shape[1] // groups = 3, got 2"),
    ({"groups": 3}, ValueError, "groups must divide input_shape[1] = 2, got 3"),
    (
        {"input_shape": (1, 2, 6, 2)},
        ValueError,
        "(weight.shape[-1] - 1) * dilation + 1 must be at most the padded input_",
    ),
    ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ({"padding": 1.0}, TypeError, "padding must be an integer or a tuple of integers, got 1.0"),
    (
        {"algorithm": "fft"},
        ValueError,
        "algorithm must be one of 'auto', 'gemm', 'im2col', 'direct', 'winograd', got 'fft'",
    ),
    (
        {"algorithm": "winograd", "stride": 2},
        ValueError,
        "algorithm must be one of 'gemm', 'im2col', 'direct' here, got 'wino",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_PACKING, ids=[case[2] for case in BAD_PACKING])
def test_bad_input_of_pack_weight(changes, error, message):
    with pytest.raises(error) as caught:
        fastconv.pack_weight(**{"weight": WEIGHT, "input_shape": (1, 2, 6, 6)} | changes)
    assert str(caught.value).startswith(f"pack_weight: {message}")


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (drawn(1, 2, 6, 6, dtype=np.float64), {}),
        (drawn(1, 3, 6, 6), {}),
        (drawn(1, 2, 6, 2), {}),
        (drawn(2, 6), {}),
        (drawn(1, 4, 6, 6), {"groups": 4}),
        (drawn(1, 2, 6, 6), {"bias": drawn(5)}),
        (drawn(1, 2, 6, 6), {"stride": 0}),
        (drawn(1, 2, 6, 6), {"out": np.asarray(fastconv.PackedWeight(WEIGHT))}),
    ],
)
def test_bad_input_with_packed_weights(x, options):
    """The same errors as with the weights themselves."""
    with pytest.raises((TypeError, ValueError)) as wanted:
        fastconv.conv2d(x, WEIGHT, **options)
    with pytest.raises((TypeError, ValueError)) as caught:
        fastconv.conv2d(x, fastconv.PackedWeight(WEIGHT), **options)
    assert (type(caught.value), str(caught.value)) == (type(wanted.value), str(wanted.value))


def test_other_rank():
    packed = fastconv.pack_weight(WEIGHT, (1, 2, 6, 6))
    with pytest.raises(ValueError, match=r"conv1d: x must have shape \(n, ic, iw\), or \(ic, iw\) unbatched"):
        fastconv.conv1d(drawn(1, 2, 6, 6), packed)
    with pytest.raises(ValueError, match=r"conv1d: weight must have shape \(oc, ic // groups, kw\)"):
        fastconv.conv1d(drawn(1, 2, 6), packed)


def test_out_must_not_share_memory_with_it():
    packed = fastconv.PackedWeight(drawn(2, 2, 1, 1))
    with pytest.raises(ValueError, match="out must not share memory with weight"):
        fastconv.conv2d(drawn(2, 2, 1, 1), packed, out=packed.raw)
