"""Bad input is refused before anything is written; odd but legal input gives the right answer.

Data are small integers and windows hold a power of two, so every sum is exact and results are compared bit by bit.
"""

import numpy as np
import pytest

import fastconv
from fastconv import reference

RNG = np.random.default_rng(7)
SENTINEL = -777.0


def ints(*shape, dtype=np.float32):
    return RNG.integers(-4, 5, shape).astype(dtype)


def filled(*shape, dtype=np.float32):
    return np.full(shape, SENTINEL, dtype)


def indices_of(x, **options):
    return reference.max_pool2d(x, return_indices=True, **options)[1]


X = ints(2, 4, 6, 6)

# One right call of every operator, in the smallest form that has every array argument.
VALID = {
    "conv2d": {
        "x": X,
        "weight": ints(6, 2, 3, 3),
        "bias": ints(6),
        "groups": 2,
        "residual": ints(2, 6, 4, 4),
        "out": filled(2, 6, 4, 4),
        "algorithm": "gemm",
    },
    "conv2d_backward": {
        "grad_output": ints(2, 6, 4, 4),
        "x": X,
        "weight": ints(6, 2, 3, 3),
        "groups": 2,
        "out": (filled(2, 4, 6, 6), filled(6, 2, 3, 3), filled(6)),
        "algorithm": "gemm",
    },
    "conv_transpose2d": {
        "x": X,
        "weight": ints(4, 3, 3, 3),
        "bias": ints(6),
        "groups": 2,
        "residual": ints(2, 6, 8, 8),
        "out": filled(2, 6, 8, 8),
        "algorithm": "gemm",
    },
    "conv_transpose2d_backward": {
        "grad_output": ints(2, 6, 8, 8),
        "x": X,
        "weight": ints(4, 3, 3, 3),
        "groups": 2,
        "out": (filled(2, 4, 6, 6), filled(4, 3, 3, 3), filled(6)),
        "algorithm": "gemm",
    },
    "max_pool2d": {"x": X, "kernel_size": 2, "out": filled(2, 4, 3, 3)},
    "max_pool2d_backward": {
        "grad_output": ints(2, 4, 3, 3),
        "indices": indices_of(X, kernel_size=2),
        "input_shape": X.shape,
        "kernel_size": 2,
        "out": filled(2, 4, 6, 6),
    },
    "avg_pool2d": {"x": X, "kernel_size": 2, "out": filled(2, 4, 3, 3)},
    "avg_pool2d_backward": {
        "grad_output": ints(2, 4, 3, 3),
        "input_shape": X.shape,
        "kernel_size": 2,
        "out": filled(2, 4, 6, 6),
    },
    "adaptive_avg_pool2d": {"x": X, "output_size": 3, "out": filled(2, 4, 3, 3)},
    "adaptive_avg_pool2d_backward": {
        "grad_output": ints(2, 4, 3, 3),
        "input_shape": X.shape,
        "output_size": 3,
        "out": filled(2, 4, 6, 6),
    },
    "adaptive_max_pool2d": {"x": X, "output_size": 4, "out": filled(2, 4, 4, 4)},
    "adaptive_max_pool2d_backward": {
        "grad_output": ints(2, 4, 4, 4),
        "indices": reference.adaptive_max_pool2d(X, 4, return_indices=True)[1],
        "input_shape": X.shape,
        "output_size": 4,
        "out": filled(2, 4, 6, 6),
    },
    "lp_pool2d": {"x": X, "norm_type": 1, "kernel_size": 2, "out": filled(2, 4, 3, 3)},
    "lp_pool2d_backward": {
        "grad_output": ints(2, 4, 3, 3),
        "x": X,
        "norm_type": 1,
        "kernel_size": 2,
        "out": filled(2, 4, 6, 6),
    },
    "max_unpool2d": {
        "x": ints(2, 4, 3, 3),
        "indices": indices_of(X, kernel_size=2),
        "kernel_size": 2,
        "out": filled(2, 4, 6, 6),
    },
    "max_unpool2d_backward": {
        "grad_output": X,
        "indices": indices_of(X, kernel_size=2),
        "kernel_size": 2,
        "out": filled(2, 4, 3, 3),
    },
    "unfold": {"x": X, "kernel_size": 3, "out": filled(2, 36, 16)},
    "fold": {"x": ints(2, 36, 16), "output_size": 6, "kernel_size": 3, "out": filled(2, 4, 6, 6)},
    "relu": {"x": X, "out": filled(2, 4, 6, 6)},
    "relu_backward": {"grad_output": ints(2, 4, 6, 6), "x_or_y": X, "out": filled(2, 4, 6, 6)},
    "linear": {"x": ints(5, 8), "weight": ints(3, 8), "bias": ints(3), "out": filled(5, 3)},
    "linear_backward": {
        "grad_output": ints(5, 3),
        "x": ints(5, 8),
        "weight": ints(3, 8),
        "out": (filled(5, 8), filled(3, 8), filled(3)),
    },
}

ARRAYS = [
    (function, name)
    for function, arguments in VALID.items()
    for name, value in arguments.items()
    if isinstance(value, np.ndarray) and name != "out"
]
REALS = [(function, name) for function, name in ARRAYS if name != "indices"]


def arguments_of(function, changes=(), dtype=np.float32):
    """Return copies of the valid arguments, of ``dtype``, and the changes, which may be functions of those."""
    arguments = {name: converted(value, dtype) for name, value in VALID.get(function, VALID["conv2d"]).items()}
    changes = dict(changes)
    return arguments | {name: change(arguments) if callable(change) else change for name, change in changes.items()}


def converted(value, dtype):
    if isinstance(value, tuple):
        return tuple(converted(item, dtype) for item in value)
    if isinstance(value, np.ndarray):
        return value.astype(dtype if value.dtype.kind == "f" else value.dtype)
    return value


def expected_of(function, arguments):
    """Call the oracle, which knows none of the arguments that concern memory and speed alone."""
    arguments = {name: value for name, value in arguments.items() if name not in ("out", "algorithm", "inplace")}
    return getattr(reference, function)(**arguments)


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def check_equal(actual, expected):
    for a, e in zip(as_tuple(actual), as_tuple(expected), strict=True):
        np.testing.assert_array_equal(a, e, strict=True)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def one_short(array):
    return array.ravel()[1:].copy()


def other_type(array):
    return array.astype(np.float64 if array.dtype == np.float32 else np.float32)


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    copy = memory[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert array.size == 0 or not copy.flags.aligned
    return copy


def byte_swapped(array):
    return array.astype(array.dtype.newbyteorder())


def every_other(array):
    """Return the array with a gap after each element; the gaps hold NaN, or the smallest integer."""
    gap = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), gap, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def backwards(array):
    everywhere = (slice(None, None, -1),) * array.ndim
    return array[everywhere].copy()[everywhere]


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "gaps": every_other,
    "negative strides": backwards,
    "misaligned": misaligned,
    "byte-swapped": byte_swapped,
}

# --- What is refused -------------------------------------------------------------------------------------------------

BAD = [
    # function, what is changed, the error, its message after the function's name
    # Rank
    (
        "conv2d",
        {"x": ints(6, 6)},
        ValueError,
        "x must have shape (n, ic, ih, iw), or (ic, ih, iw) unbatched, got (6, 6)",
    ),
    ("conv2d", {"x": ints(1, 1, 4, 6, 6)}, ValueError, "x must have shape (n, ic, ih, iw), or"),
    (
        "conv2d",
        {"weight": ints(2, 3, 3)},
        ValueError,
        "weight must have shape (oc, ic // groups, kh, kw), got (2, 3, 3)",
    ),
    ("conv2d", {"bias": ints(1, 6)}, ValueError, "bias.shape must equal weight.shape[:1] = (6,), got (1, 6)"),
    ("conv2d", {"bias": ints(4)}, ValueError, "bias.shape must equal weight.shape[:1] = (6,), got (4,)"),
    ("conv2d", {"x": X[0]}, ValueError, "residual.shape must equal the result's shape = (6, 4, 4), got (2, 6, 4, 4)"),
    ("conv1d", {}, ValueError, "x must have shape (n, ic, iw), or (ic, iw) unbatched, got (2, 4, 6, 6)"),
    ("conv3d", {}, ValueError, "weight must have shape (oc, ic // groups, kd, kh, kw), got (6, 2, 3, 3)"),
    (
        "conv2d_backward",
        {"grad_output": ints(6, 4, 4)},
        ValueError,
        "grad_output.shape must equal the output's shape = ",
    ),
    (
        "max_pool2d",
        {"x": ints(6, 6)},
        ValueError,
        "x must have shape (n, c, ih, iw), or (c, ih, iw) unbatched, got (6, 6)",
    ),
    (
        "avg_pool2d",
        {"x": np.float32(1)},
        ValueError,
        "x must have shape (n, c, ih, iw), or (c, ih, iw) unbatched, got ()",
    ),
    ("max_pool2d_backward", {"input_shape": (6, 6)}, ValueError, "input_shape must be (n, c, ih, iw), or (c, ih, iw)"),
    ("max_pool2d_backward", {"input_shape": (2, 4, 6, -6)}, ValueError, "input_shape must be (n, c, ih, iw), or"),
    ("avg_pool2d_backward", {"input_shape": (2, 4, 6, 6.0)}, TypeError, "input_shape must be an integer or a tuple"),
    ("avg_pool2d_backward", {"input_shape": 6}, TypeError, "input_shape must be a tuple of integers, got 6"),
    ("linear", {"x": np.float32(1)}, ValueError, "x must have shape (..., in_features), got ()"),
    ("linear", {"weight": ints(8)}, ValueError, "weight must have shape (out_features, in_features), both at least 1"),
    ("linear", {"bias": ints(1)}, ValueError, "bias.shape must equal weight.shape[:1] = (3,), got (1,)"),
    # Channels and groups
    ("conv2d", {"weight": ints(6, 3, 3, 3)}, ValueError, "weight.shape[1] must equal x.shape[1] // groups = 2, got 3"),
    ("conv2d", {"groups": 3}, ValueError, "groups must divide x.shape[1] = 4, got 3"),
    ("conv2d", {"weight": ints(5, 2, 3, 3)}, ValueError, "groups must divide weight.shape[0] = 5, got 2"),
    ("conv2d", {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
    ("conv2d", {"groups": (2,)}, TypeError, "groups must be an integer, got (2,)"),
    ("conv2d", {"x": ints(2, 0, 6, 6)}, ValueError, "x.shape[1] must be at least 1, got 0"),
    ("conv2d", {"weight": ints(0, 2, 3, 3)}, ValueError, "weight must have no dimension of size 0, got (0, 2, 3, 3)"),
    ("conv2d", {"weight": ints(6, 2, 0, 3)}, ValueError, "weight must have no dimension of size 0, got (6, 2, 0, 3)"),
    (
        "conv2d_backward",
        {"weight": ints(6, 4, 3, 3)},
        ValueError,
        "weight.shape[1] must equal x.shape[1] // groups = 2",
    ),
    ("linear", {"weight": ints(3, 7)}, ValueError, "weight.shape[1] must equal x.shape[-1] = 8, got 7"),
    (
        "linear_backward",
        {"grad_output": ints(5, 4)},
        ValueError,
        "grad_output.shape must equal the output's shape = (5, 3)",
    ),
    # Padding mode
    ("conv2d", {"padding_mode": "constant"}, ValueError, "padding_mode must be one of 'zeros', 'reflect', "),
    ("conv2d", {"padding_mode": None}, TypeError, "padding_mode must be a string, got None"),
    ("conv2d", {"padding_mode": 1}, TypeError, "padding_mode must be a string, got 1"),
    (
        "conv2d",
        {"padding_mode": "reflect", "padding": (1, 6)},
        ValueError,
        "padding must be at most 5 for x.shape[-1] = 6 in 'reflect', got 6",
    ),
    (
        "conv2d_backward",
        {"padding_mode": "circular", "padding": (7, 1)},
        ValueError,
        "padding must be at most 6 for x.shape[-2] = 6 in 'circular', got 7",
    ),
    (
        "conv2d",
        {"padding_mode": "replicate", "padding": 2, "x": ints(2, 4, 0, 6)},
        ValueError,
        "padding must be at most 0 for x.shape[-2] = 0 in 'replicate', got 2",
    ),
    ("conv2d", {"padding_mode": "reflect", "groups": 3}, ValueError, "groups must divide x.shape[1] = 4, got 3"),
    # Adaptive, Lp and inverse pools
    ("adaptive_avg_pool2d", {"x": ints(6, 6)}, ValueError, "x must have shape (n, c, ih, iw), or (c, ih, iw)"),
    ("adaptive_avg_pool2d", {"output_size": 0}, ValueError, "output_size must be at least 1, got 0"),
    ("adaptive_avg_pool2d", {"output_size": 2.0}, TypeError, "output_size must be an integer or a tuple of integers"),
    (
        "adaptive_avg_pool2d",
        {"output_size": (1, 2, 3)},
        ValueError,
        "output_size must be an integer or have 2 elements",
    ),
    ("adaptive_max_pool2d", {"x": ints(2, 4, 0, 6)}, ValueError, "x.shape must have no spatial dimension of size 0"),
    ("adaptive_max_pool2d", {"return_indices": 1}, TypeError, "return_indices must be a bool, got 1"),
    ("lp_pool2d", {"norm_type": 0}, ValueError, "norm_type must be finite and above 0, got 0"),
    ("lp_pool2d", {"norm_type": "2"}, TypeError, "norm_type must be a number, got '2'"),
    (
        "max_unpool2d",
        {"indices": lambda a: a["indices"] + 8},
        ValueError,
        "indices must each lie inside the output, got ",
    ),
    ("max_unpool2d", {"x": ints(2, 4, 3, 4)}, ValueError, "x.shape must equal indices.shape = (2, 4, 3, 3), got "),
    ("max_unpool2d", {"output_size": (8, 6)}, ValueError, "output_size must differ from (6, 6) by less than the str"),
    ("max_unpool2d", {"output_size": 6}, TypeError, "output_size must be a tuple of integers or None, got 6"),
    # Unfolding
    ("unfold", {"x": ints(6, 6)}, ValueError, "x must have shape (n, c, ih, iw), or (c, ih, iw) unbatched, got (6, 6)"),
    (
        "unfold",
        {"kernel_size": 7},
        ValueError,
        "(kernel_size - 1) * dilation + 1 must be at most the padded size[-2] =",
    ),
    ("unfold", {"order": "rows"}, ValueError, "order must be None, 'batch_outer' or 'batch_inner', got 'rows'"),
    ("fold", {"x": ints(2, 35, 16)}, ValueError, "x.shape[-2] must be a multiple of the kernel's elements = 9, got 35"),
    ("fold", {"output_size": 7}, ValueError, "x.shape[-1] must be the number of windows = 25, got 16"),
    ("fold", {"order": "batch_outer"}, ValueError, "x must have shape (c * taps, n * positions), got (2, 36, 16)"),
    # Transposed convolution
    ("conv_transpose2d", {"x": ints(6, 6)}, ValueError, "x must have shape (n, ic, ih, iw), or (ic, ih, iw) unbatched"),
    ("conv_transpose2d", {"weight": ints(4, 3, 3)}, ValueError, "weight must have shape (ic, oc // groups, kh, kw)"),
    ("conv_transpose2d", {"weight": ints(6, 3, 3, 3)}, ValueError, "weight.shape[0] must equal x.shape[1] = 4, got 6"),
    ("conv_transpose2d", {"weight": ints(4, 3, 0, 3)}, ValueError, "weight must have no dimension of size 0, got"),
    ("conv_transpose2d", {"x": ints(2, 4, 0, 6)}, ValueError, "x.shape must have no spatial dimension of size 0"),
    ("conv_transpose2d", {"groups": 3}, ValueError, "groups must divide x.shape[1] = 4, got 3"),
    ("conv_transpose2d", {"bias": ints(3)}, ValueError, "bias.shape must equal (oc,) = (6,), got (3,)"),
    ("conv_transpose2d", {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ("conv_transpose2d", {"output_padding": -1}, ValueError, "output_padding must be at least 0, got -1"),
    (
        "conv_transpose2d",
        {"output_padding": 2, "stride": 2},
        ValueError,
        "output_padding must be less than stride or dilation = 2, got 2",
    ),
    ("conv_transpose2d", {"padding": "same"}, ValueError, "padding must be numbers, got 'same'"),
    ("conv_transpose2d", {"padding": 4}, ValueError, "padding must be less in all than the whole output = 8, got 8"),
    (
        "conv_transpose2d",
        {"algorithm": "winograd", "stride": 2},
        ValueError,
        "algorithm must be one of 'gemm', 'direct'",
    ),
    (
        "conv_transpose2d_backward",
        {"grad_output": ints(2, 6, 6, 6)},
        ValueError,
        "grad_output.shape must equal the output's shape = (2, 6, 8, 8), got (2, 6, 6, 6)",
    ),
    # Stride, dilation, kernel
    ("conv2d", {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ("conv2d", {"stride": (1, -2)}, ValueError, "stride must be at least 1, got -2"),
    ("conv2d", {"stride": (1, 1, 1)}, ValueError, "stride must be an integer or have 2 elements, got (1, 1, 1)"),
    ("conv2d", {"stride": 1.0}, TypeError, "stride must be an integer or a tuple of integers, got 1.0"),
    ("conv2d", {"stride": True}, TypeError, "stride must be an integer or a tuple of integers, got True"),
    ("conv2d", {"stride": (1, True)}, TypeError, "stride must be an integer or a tuple of integers, got True"),
    ("conv2d", {"stride": None}, TypeError, "stride must be an integer or a tuple of integers, got None"),
    ("conv2d", {"stride": "1"}, TypeError, "stride must be an integer, got '1'"),
    ("conv2d", {"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
    ("conv2d", {"dilation": [1, 2.0]}, TypeError, "dilation must be an integer or a tuple of integers, got 2.0"),
    ("conv2d", {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    ("conv2d", {"padding": ((0, 1), (0, -1))}, ValueError, "padding must be at least 0, got -1"),
    ("conv2d", {"padding": 0.0}, TypeError, "padding must be an integer or a tuple of integers, got 0.0"),
    ("conv2d", {"padding": "full"}, ValueError, 'padding must be "valid", "same" or "same_lower" where it is a string'),
    (
        "conv2d",
        {"padding": (1, 1, 1, 1)},
        ValueError,
        "padding must be an integer, 2 integers or 2 (before, after) pairs",
    ),
    (
        "conv2d",
        {"x": ints(2, 4, 6, 2)},
        ValueError,
        "(weight.shape[-1] - 1) * dilation + 1 must be at most the padded x.shape[-1] = 2, got 3",
    ),
    (
        "conv2d",
        {"dilation": 3},
        ValueError,
        "(weight.shape[-2] - 1) * dilation + 1 must be at most the padded x.shape[-2] = 6",
    ),
    ("max_pool2d", {"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
    ("max_pool2d", {"kernel_size": 2.0}, TypeError, "kernel_size must be an integer or a tuple of integers, got 2.0"),
    ("max_pool2d", {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ("max_pool2d", {"padding": 2}, ValueError, "padding must be less than (kernel_size - 1) * dilation + 1 = 2, got 2"),
    (
        "max_pool2d",
        {"kernel_size": 7},
        ValueError,
        "(kernel_size - 1) * dilation + 1 must be at most the padded x.shape[-2] = 6",
    ),
    ("max_pool2d", {"ceil_mode": 1}, TypeError, "ceil_mode must be a bool, got 1"),
    ("max_pool2d", {"return_indices": None}, TypeError, "return_indices must be a bool, got None"),
    ("avg_pool2d", {"ceil_mode": 1}, TypeError, "ceil_mode must be a bool, got 1"),
    ("avg_pool2d", {"count_include_pad": 0}, TypeError, "count_include_pad must be a bool, got 0"),
    ("avg_pool2d", {"divisor_override": 0}, ValueError, "divisor_override must not be 0 and its magnitude at most"),
    ("avg_pool2d", {"divisor_override": 2.0}, TypeError, "divisor_override must be an integer"),
    (
        "avg_pool2d_backward",
        {"divisor_override": (2, 2)},
        TypeError,
        "divisor_override must be an integer or None, got (2, 2)",
    ),
    # Activation and algorithm
    ("conv2d", {"activation": "gelu"}, ValueError, "activation must be None, 'relu', "),
    ("conv2d", {"activation": "leaky_relu"}, ValueError, "activation must be None, 'relu', "),
    ("conv2d", {"activation": ("leaky_relu", np.nan)}, ValueError, "activation must be None, 'relu', "),
    ("linear", {"activation": ("relu", 1)}, ValueError, "activation must be None, 'relu', "),
    ("linear", {"activation": 1}, TypeError, "activation must be None, 'relu', "),
    (
        "conv2d",
        {"algorithm": "fft"},
        ValueError,
        "algorithm must be one of 'auto', 'gemm', 'im2col', 'direct', 'winograd', got 'fft'",
    ),
    (
        "conv2d",
        {"algorithm": "winograd", "stride": 2},
        ValueError,
        "algorithm must be one of 'gemm', 'direct' here, got 'winograd'",
    ),
    ("conv2d_backward", {"algorithm": ["gemm"]}, TypeError, "algorithm must be a string, got ['gemm']"),
    # Indices
    (
        "max_pool2d_backward",
        {"indices": indices_of(X, kernel_size=2).astype(np.int32)},
        TypeError,
        "indices.dtype must be int64, got int32; cast with indices.astype(np.int64)",
    ),
    ("max_pool2d_backward", {"indices": None}, TypeError, "indices must be an array in CPU memory, got NoneType"),
    (
        "max_pool2d_backward",
        {"indices": indices_of(X[:1], kernel_size=2)},
        ValueError,
        "indices.shape must equal the output's",
    ),
    *(
        (
            "max_pool2d_backward",
            {"indices": lambda a, wrong=wrong: np.where(np.arange(72).reshape(2, 4, 3, 3) == 71, wrong, a["indices"])},
            ValueError,
            "indices must each lie inside their window, got 1 outside",
        )
        for wrong in (-1, 27, 36, 2**62, -(2**63))
    ),
    # Zero-size spatial dimensions
    (
        "conv2d",
        {"x": ints(2, 4, 0, 6)},
        ValueError,
        "(weight.shape[-2] - 1) * dilation + 1 must be at most the padded x.shape[-2]",
    ),
    (
        "max_pool2d",
        {"x": ints(2, 4, 0, 6)},
        ValueError,
        "x.shape must have no spatial dimension of size 0, got (2, 4, 0, 6)",
    ),
    (
        "avg_pool2d_backward",
        {"input_shape": (2, 4, 6, 0)},
        ValueError,
        "input_shape must have no spatial dimension of size 0",
    ),
    # Products that overflow, numbers that do
    (
        "conv2d",
        {"padding": 2**31 - 1},
        ValueError,
        "the padded input must fit in 2**63 - 1 bytes, got shape (2, 4, 42949",
    ),
    ("conv2d", {"padding": 2**70}, ValueError, "padding must be at most 2147483647, got 1180591620717411303424"),
    (
        "max_pool2d_backward",
        {"input_shape": (2**40, 2**40, 6, 6)},
        ValueError,
        "the padded input must fit in 2**63 - 1 bytes",
    ),
    # out
    (
        "conv2d",
        {"out": filled(2, 6, 4, 5)},
        ValueError,
        "out.shape must equal the result's shape = (2, 6, 4, 4), got (2, 6, 4, 5)",
    ),
    (
        "conv2d",
        {"out": filled(2, 6, 4, 4, dtype=np.float64)},
        TypeError,
        "out.dtype must equal the result's, float32, got float64",
    ),
    ("conv2d", {"out": [0.0]}, TypeError, "out must be an array in CPU memory, got list: it must be a numpy.ndarray"),
    (
        "conv2d_backward",
        {"out": filled(2, 4, 6, 6)},
        TypeError,
        "out must be a tuple of three arrays or None, got ndarray",
    ),
    ("conv2d_backward", {"out": (None, None)}, ValueError, "out must have three elements, got 2"),
    (
        "conv2d_backward",
        {"out": lambda a: (a["out"][0], None, filled(5))},
        ValueError,
        "out[2].shape must equal the result's",
    ),
    (
        "linear_backward",
        {"output_mask": (True, False, True)},
        ValueError,
        "out[1] must be None where output_mask[1] is False",
    ),
    ("linear_backward", {"output_mask": (True, True)}, ValueError, "output_mask must have three elements, got 2"),
    (
        "conv2d_backward",
        {"output_mask": (1, 1, 1)},
        TypeError,
        "output_mask must be a tuple of three bools, got (1, 1, 1)",
    ),
    ("relu", {"x": ints(3), "out": filled(4)}, ValueError, "out.shape must equal the result's shape = (3,), got (4,)"),
    ("relu", {"inplace": 1}, TypeError, "inplace must be a bool, got 1"),
    ("relu", {"inplace": True}, ValueError, "out must be None or x where inplace is True, got another array"),
    (
        "relu",
        {"inplace": True, "x": [1.0], "out": None},
        TypeError,
        "x must be a numpy.ndarray where inplace is True, got list",
    ),
    (
        "relu",
        {"inplace": True, "x": read_only(X), "out": None},
        ValueError,
        "x must be writeable, got a read-only array",
    ),
    (
        "relu_backward",
        {"x_or_y": X[:1]},
        ValueError,
        "x_or_y.shape must equal grad_output.shape = (2, 4, 6, 6), got (1, 4, 6, 6)",
    ),
]


UNSUPPORTED = [np.int64, np.uint8, np.bool_, np.float16, np.complex64, np.longdouble, object, "S4"]


def arrays_in(value):
    """Yield the arrays in an argument, and those that they are views of."""
    for array in as_tuple(value):
        while isinstance(array, np.ndarray) and array.nbytes < 1 << 20:
            yield array
            array = array.base


def check_refused(function, changes, error, message):
    arguments = arguments_of(function, changes)
    before = [(array, array.copy()) for value in arguments.values() for array in arrays_in(value)]
    with pytest.raises(error) as caught:
        getattr(fastconv, function)(**arguments)
    assert str(caught.value).startswith(f"{function}: {message}")
    assert ", got " in str(caught.value)
    for array, copy in before:
        np.testing.assert_array_equal(array, copy, err_msg="something was written")


@pytest.mark.parametrize(
    ("function", "changes", "error", "message"),
    BAD,
    ids=[f"{function}-{'-'.join(changes)}-{line}" for line, (function, changes, _, _) in enumerate(BAD)],
)
def test_refused(function, changes, error, message):
    check_refused(function, changes, error, message)


@pytest.mark.parametrize("dtype", UNSUPPORTED, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize(("function", "name"), REALS)
def test_unsupported_types(function, name, dtype):
    array = VALID[function][name].astype(dtype)
    hint = f"; cast with {name}.astype(np.float32)" if array.dtype.kind in "biuf" else ""
    message = f"{name}.dtype must be float32 or float64, got {array.dtype}{hint}"
    check_refused(function, {name: array}, TypeError, message)


@pytest.mark.parametrize(("function", "name"), REALS)
def test_mixed_types(function, name):
    """The type of x, or of what comes first, is right; the first other one is wrong."""
    names = [other for f, other in REALS if f == function]
    first = "x" if "x" in names else names[0]
    rest = [other for other in names if other != first]
    wrong, got, want = (rest[:1] or ["out"], "float32", "float64") if name == first else ([name], "float64", "float32")
    if name == first and function.endswith("_backward") and "weight" in names:
        wrong = ["weight"]
    message = f"{wrong[0]}.dtype must equal {first}.dtype = {want}, got {got}; cast with {wrong[0]}.astype(np.{want})"
    if wrong == ["out"]:
        message = f"out.dtype must equal the result's, {want}, got {got}"
    check_refused(function, {name: lambda arguments: arguments[name].astype(np.float64)}, TypeError, message)


@pytest.mark.parametrize("value", [None, "text", [[1, 2], [3]], object(), {1: 2}], ids=repr)
@pytest.mark.parametrize(("function", "name"), [case for case in ARRAYS if case[1] not in ("bias", "residual")])
def test_what_is_no_array(function, name, value):
    if value is None or isinstance(value, list):
        message = f"{name} must be an array in CPU memory, got {type(value).__name__}"
    else:
        message = f"{name}.dtype must be "
    check_refused(function, {name: value}, TypeError, message)


def test_arrays_of_another_device():
    class OnDevice:
        def __dlpack__(self, **options):
            raise BufferError("device memory")

        def __dlpack_device__(self):
            return 2, 0

    with pytest.raises(TypeError, match=r"^relu: x must be an array in CPU memory, got OnDevice: device memory"):
        fastconv.relu(OnDevice())


def outs_of(function):
    """Return (function, name, replace) for each destination; ``replace(out, array)`` puts the array there."""
    out = VALID[function]["out"]
    if not isinstance(out, tuple):
        return [(function, "out", lambda outs, array: array)]
    return [(function, f"out[{i}]", lambda outs, array, i=i: (*outs[:i], array, *outs[i + 1 :])) for i in range(3)]


OUTS = [out for function in VALID for out in outs_of(function)]


def out_array(function, name):
    out = VALID[function]["out"]
    return out[int(name[4])] if "[" in name else out


@pytest.mark.parametrize(("function", "name", "replace"), OUTS)
def test_read_only_out(function, name, replace):
    out = read_only(out_array(function, name))
    changes = {"out": lambda arguments: replace(arguments["out"], out)}
    check_refused(function, changes, ValueError, f"{name} must be writeable, got a read-only array")


def overlapping(a, b):
    """Return copies of two arrays of which the first's last bytes are the second's first."""
    memory = np.zeros(a.nbytes + b.nbytes, np.uint8)
    first = memory[: a.nbytes].view(a.dtype).reshape(a.shape)
    second = memory[a.nbytes - b.itemsize : -b.itemsize].view(b.dtype).reshape(b.shape)
    second[...] = b
    first[...] = a
    return first, second


@pytest.mark.parametrize(
    ("function", "name", "replace", "other"),
    [(*out, other) for out in OUTS for function, other in ARRAYS if function == out[0]],
)
def test_out_overlaps_an_argument(function, name, replace, other):
    array, out = overlapping(VALID[function][other], out_array(function, name))
    changes = {other: array, "out": lambda arguments: replace(arguments["out"], out)}
    check_refused(function, changes, ValueError, f"{name} must not share memory with {other}, got overlapping arrays")


@pytest.mark.parametrize("function", ["conv2d_backward", "conv_transpose2d_backward", "linear_backward"])
def test_outs_overlap_one_another(function):
    outs = VALID[function]["out"]
    first, second = overlapping(outs[0], outs[1])
    message = "out[1] must not share memory with out[0], got overlapping arrays"
    check_refused(function, {"out": (first, second, outs[2].copy())}, ValueError, message)


@pytest.mark.parametrize("value", [True, 1.0, np.float64(1)])
def test_what_equals_a_right_option_is_not_right(value):
    """1, 1.0 and True are equal and have the same hash: a cache of plans must not take one for another."""
    weight = ints(2, 4, 3, 3)
    fastconv.conv2d(X, weight, stride=1, padding=(1, 1))
    with pytest.raises(TypeError, match=r"^conv2d: stride must be an integer"):
        fastconv.conv2d(X, weight, stride=value, padding=(1, 1))
    with pytest.raises(TypeError, match=r"^conv2d: padding must be an integer"):
        fastconv.conv2d(X, weight, stride=1, padding=(1, value))


def test_memory_that_nobody_has():
    x = np.broadcast_to(np.float32(0), (2**18, 2**18, 2**10, 2**10))
    with pytest.raises(MemoryError):
        fastconv.max_pool2d(x, 2)
    with pytest.raises(MemoryError):
        fastconv.conv1d(X[0, :, 0], ints(2**20, 4, 1), padding=2**31 - 1)


# --- What is odd, but right ------------------------------------------------------------------------------------------


class Exporter:
    """An array that only DLPack can read."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Interface:
    """An array that only ``__array_interface__`` describes."""

    def __init__(self, array):
        self.array, self.__array_interface__ = array, array.__array_interface__


@pytest.mark.parametrize("function", VALID)
def test_valid(function, dtype):
    arguments = arguments_of(function, dtype=dtype)
    actual = getattr(fastconv, function)(**arguments)
    check_equal(actual, expected_of(function, arguments))
    for result, out in zip(as_tuple(actual), as_tuple(arguments["out"]), strict=True):
        assert result is out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_layouts_of_arguments(function, name, layout, dtype):
    arguments = arguments_of(function, dtype=dtype)
    expected = expected_of(function, arguments)
    arguments[name] = LAYOUTS[layout](arguments[name])
    copy = arguments[name].copy()
    check_equal(getattr(fastconv, function)(**arguments), expected)
    np.testing.assert_array_equal(arguments[name], copy)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("function", "name", "replace"), OUTS)
def test_layouts_of_out(function, name, replace, layout, dtype):
    arguments = arguments_of(function, dtype=dtype)
    out = LAYOUTS[layout](out_array(function, name).astype(dtype))
    arguments["out"] = replace(arguments["out"], out)
    actual = getattr(fastconv, function)(**arguments)
    assert any(result is out for result in as_tuple(actual))
    native = tuple(result.astype(dtype) for result in as_tuple(actual))
    check_equal(native, expected_of(function, arguments))
    if layout == "gaps":
        assert np.isnan(out.base[..., 1::2]).all()


@pytest.mark.parametrize("function", VALID)
def test_read_only_arguments(function, dtype):
    arguments = arguments_of(function, dtype=dtype)
    arguments |= {name: read_only(arguments[name]) for f, name in ARRAYS if f == function}
    check_equal(getattr(fastconv, function)(**arguments), expected_of(function, arguments))


@pytest.mark.parametrize("wrap", [memoryview, Exporter, Interface, np.ndarray.tolist], ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("function", VALID)
def test_arguments_that_are_no_ndarrays(function, wrap):
    arguments = arguments_of(function, dtype=np.float64)
    expected = expected_of(function, arguments)
    arguments |= {name: wrap(arguments[name]) for f, name in ARRAYS if f == function}
    check_equal(getattr(fastconv, function)(**arguments), expected)


@pytest.mark.parametrize("function", VALID)
def test_zero_batch(function, dtype):
    arguments = arguments_of(function, dtype=dtype)
    for name in arguments.keys() & {"x", "residual", "grad_output", "indices", "x_or_y"}:
        arguments[name] = arguments[name][:0]
    if "input_shape" in arguments:
        arguments["input_shape"] = (0, *arguments["input_shape"][1:])
    out = as_tuple(arguments.pop("out"))
    expected = expected_of(function, arguments)
    check_equal(getattr(fastconv, function)(**arguments), expected)
    out = tuple(array if i else array[:0] for i, array in enumerate(out))
    check_equal(getattr(fastconv, function)(**arguments, out=out if len(out) > 1 else out[0]), expected)


def test_images_of_size_zero_in_padding(dtype):
    x, weight, bias = ints(2, 4, 0, 5, dtype=dtype), ints(3, 4, 2, 2, dtype=dtype), ints(3, dtype=dtype)
    grad_output = ints(2, 3, 2, 4, dtype=dtype)
    check_equal(
        fastconv.conv2d(x, weight, bias, padding=((1, 2), 0)), reference.conv2d(x, weight, bias, 1, ((1, 2), 0))
    )
    check_equal(
        fastconv.conv2d_backward(grad_output, x, weight, padding=((1, 2), 0)),
        reference.conv2d_backward(grad_output, x, weight, 1, ((1, 2), 0)),
    )


@pytest.mark.parametrize("function", [function for function in VALID if "2d" in function])
def test_unbatched(function, dtype):
    arguments = arguments_of(function, dtype=dtype)
    for name in arguments.keys() & {"x", "residual", "grad_output", "indices"}:
        arguments[name] = arguments[name][1]
    if "input_shape" in arguments:
        arguments["input_shape"] = arguments["input_shape"][1:]
    out = as_tuple(arguments["out"])
    arguments["out"] = out[0][1] if len(out) == 1 else (out[0][1], *out[1:])
    check_equal(getattr(fastconv, function)(**arguments), expected_of(function, arguments))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 3, 4, 5, 6, 7)], ids=str)
def test_relu_of_any_shape(shape, dtype):
    x, grad_output = ints(*shape, dtype=dtype), ints(*shape, dtype=dtype)
    check_equal(fastconv.relu(x), reference.relu(x))
    check_equal(fastconv.relu_backward(grad_output, x), reference.relu_backward(grad_output, x))


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_relu_in_place(layout, dtype):
    x, grad_output = ints(3, 4, 5, dtype=dtype), ints(3, 4, 5, dtype=dtype)
    for run, expected in [
        (lambda a: fastconv.relu(a, inplace=True), reference.relu(x)),
        (lambda a: fastconv.relu(a, out=a), reference.relu(x)),
        (lambda a: fastconv.relu(a, out=a[:]), reference.relu(x)),
        (lambda a: fastconv.relu_backward(grad_output, a, out=a), reference.relu_backward(grad_output, x)),
        (lambda a: fastconv.relu_backward(a, grad_output, out=a), reference.relu_backward(x, grad_output)),
    ]:
        a = LAYOUTS[layout](x) if layout else x.copy()
        assert np.may_share_memory(run(a), a)
        np.testing.assert_array_equal(a, expected)


@pytest.mark.parametrize("shape", [(8,), (2, 3, 8), (0, 3, 8), (1, 8)], ids=str)
def test_linear_of_any_leading_shape(shape, dtype):
    x, weight, bias = ints(*shape, dtype=dtype), ints(3, 8, dtype=dtype), ints(3, dtype=dtype)
    grad_output = ints(*shape[:-1], 3, dtype=dtype)
    check_equal(fastconv.linear(x, weight, bias), reference.linear(x, weight, bias))
    check_equal(fastconv.linear_backward(grad_output, x, weight), reference.linear_backward(grad_output, x, weight))


@pytest.mark.parametrize("spoil", [every_other, misaligned, byte_swapped, read_only, one_short, other_type])
def test_kernels_assert_what_operators_check(spoil):
    """The operators see to it that these never happen; a kernel that wrote to such memory would crash the process."""
    x, y = ints(4, 5), filled(4, 5)
    with pytest.raises(AssertionError, match="as the kernels"):
        fastconv._kernels.relu(x, spoil(y))
    if spoil is not read_only:
        with pytest.raises(AssertionError, match="as the kernels"):
            fastconv._kernels.relu_backward(spoil(x), x, y)
    with pytest.raises(TypeError):
        fastconv._kernels.relu(x, y.tolist())
    np.testing.assert_array_equal(y, SENTINEL)


def test_interleaved_arrays_do_not_overlap():
    memory = np.zeros((3, 10), np.float32)
    x, out = memory[:, ::2], memory[:, 1::2]
    x[...] = ints(3, 5)
    check_equal(fastconv.relu(x, out=out), reference.relu(x))


def test_torch_tensors(torch):
    weight = ints(2, 4, 3, 3)
    check_equal(fastconv.conv2d(torch.from_numpy(X), torch.from_numpy(weight)), fastconv.conv2d(X, weight))
    with pytest.raises(TypeError, match=r"^conv2d: x must be an array in CPU memory, got Tensor: .*requires? grad"):
        fastconv.conv2d(torch.from_numpy(X).requires_grad_(), weight)
