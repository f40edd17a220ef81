"""The compiled core (``src/_kernels.pyx``): drivers over the SIMD kernels.

Arrays are validated by ``functional``: C-contiguous, aligned, native byte order, one type, with as many elements as the
plan was made for, in any shape. Sizes of plans are (d, h, w).
"""

from typing import Literal

from numpy import float32, float64, int64
from numpy.typing import NDArray

Real = NDArray[float32] | NDArray[float64]
Size = tuple[int, int, int]
Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
TypeChar = Literal["f", "d"]

ISAS: tuple[str, ...]

class ConvPlan:
    flops: float
    blocking: tuple[tuple[int, ...], tuple[int, ...], tuple[int, int, int, int]]
    pointwise: bool
    depthwise: bool
    isa: str
    def __init__(
        self,
        type: TypeChar,
        isa: int,
        n: int,
        ic: int,
        oc: int,
        groups: int,
        in_size: Size,
        out_size: Size,
        kernel: Size,
        stride: Size,
        dilation: Size,
        pad: Size,
        output_blocking: tuple[int, int, int, int, int],
        gradient_blocking: tuple[int, int, int, int, int],
        weight_blocking: tuple[int, int, int, int],
        winograd: tuple[tuple[int, int, int, int, int, int, int, int] | None, ...] = (None, None, None),
        direct: tuple[int, int, int] = (0, 0, 0),
        im2col: tuple[bool, bool, bool] = (False, False, False),
        full: bool = False,
        pointwise: bool = False,
    ) -> None: ...

class PoolPlan:
    def __init__(
        self,
        planes: int,
        in_size: Size,
        out_size: Size,
        kernel: Size,
        stride: Size,
        dilation: Size,
        pad_before: Size,
        count_include_pad: int = 1,
        divisor: int = 0,
        pad_after: Size = (0, 0, 0),
        channels: int = 0,
    ) -> None: ...

class Panels:
    nbytes: int

def packing(plan: ConvPlan, gradient: bool) -> tuple | None: ...
def live_taps(weight: Real, start: tuple[int, int, int], out: Real) -> bool: ...
def pack_weight(plan: ConvPlan, gradient: bool, weight: Real) -> Panels: ...
def conv_output(
    plan: ConvPlan,
    x: Real,
    weight: Real,
    bias: Real | None,
    residual: Real | None,
    out: Real,
    activation: int = 0,
    slope: float = 0,
    panels: Panels | None = None,
) -> None: ...
def reads_windows(plan: ConvPlan, x_last: bool) -> bool: ...
def pack_windows_weight(plan: ConvPlan, weight: Real, x_last: bool) -> Panels: ...
def conv_windows_output(
    plan: ConvPlan,
    x: Real,
    weight: Real,
    bias: Real | None,
    residual: Real | None,
    out: Real,
    activation: int,
    slope: float,
    x_last: bool,
    panels: Panels | None = None,
) -> None: ...
def block_pays(depthwise: ConvPlan, expands: bool) -> bool: ...
def conv_block_output(
    expand: ConvPlan | None,
    depthwise: ConvPlan,
    project: ConvPlan,
    x: Real,
    expand_panels: Panels | None,
    weight: Real,
    project_panels: Panels,
    biases: list[Real | None],
    activations: list[tuple[int, float]],
    residual: Real | None,
    out: Real,
) -> bool: ...
def conv_last_output(
    plan: ConvPlan,
    x: Real,
    weight: Real,
    bias: Real | None,
    residual: Real | None,
    out: Real,
    activation: int = 0,
    slope: float = 0,
) -> bool: ...
def conv_last_input_gradient(plan: ConvPlan, grad_output: Real, weight: Real, grad_input: Real) -> None: ...
def conv_last_weight_gradient(plan: ConvPlan, grad_output: Real, x: Real, grad_weight: Real) -> None: ...
def conv_input_gradient(
    plan: ConvPlan,
    grad_output: Real,
    weight: Real,
    grad_input: Real,
    panels: Panels | None = None,
    bias: Real | None = None,
) -> bool: ...
def conv_weight_gradient(
    plan: ConvPlan, grad_output: Real, x: Real, grad_weight: Real, grad_bias: Real | None
) -> None: ...
def epilogue(
    y: Real, bias: Real | None, residual: Real | None, n: int, c: int, activation: int = 0, slope: float = 0
) -> None: ...
def channel_sums(x: Real, y: Real, n: int) -> None: ...
def linear_output(
    x: Real, weight: Real, bias: Real | None, out: Real, rows: int, activation: int = 0, slope: float = 0
) -> None: ...
def linear_input_gradient(grad_output: Real, weight: Real, grad_input: Real, rows: int) -> None: ...
def linear_weight_gradient(
    grad_output: Real, x: Real, grad_weight: Real, grad_bias: Real | None, rows: int
) -> None: ...
def max_pool(plan: PoolPlan, x: Real, y: Real, index: NDArray[int64] | None) -> None: ...
def max_pool_backward(plan: PoolPlan, g: Real, index: NDArray[int64], gx: Real, keep: bool = True) -> int: ...
def avg_pool(plan: PoolPlan, x: Real, y: Real) -> None: ...
def avg_pool_backward(plan: PoolPlan, g: Real, gx: Real) -> None: ...
def unfold(
    x: Real,
    columns: Real,
    n: int,
    c: int,
    in_size: Size,
    out_size: Size,
    kernel: Size,
    stride: Size,
    dilation: Size,
    pad: Pads,
    order: str | None,
    back: bool,
) -> None: ...
def border(x: Real, y: Real, planes: int, in_size: Size, out_size: Size, pad: Pads, mode: str, back: bool) -> None: ...
def uneven_pool(
    x: Real, y: Real, index: NDArray[int64] | None, planes: int, in_size: Size, out_size: Size, maximum: bool
) -> None: ...
def uneven_pool_backward(
    g: Real, index: NDArray[int64] | None, gx: Real, planes: int, in_size: Size, out_size: Size
) -> int: ...
def relu(x: Real, y: Real) -> None: ...
def relu_backward(g: Real, x: Real, y: Real) -> None: ...
def activation(g: Real | None, x: Real, y: Real, activation: int, slope: float = 0) -> None: ...
def softmax(g: Real | None, x: Real, y: Real, n: int, logarithm: bool) -> None: ...
def channel_moments(g: Real | None, x: Real, shift: NDArray[float64], sums: NDArray[float64], n: int) -> None: ...
def channel_affine(g: Real | None, x: Real, factors: NDArray[float64], y: Real, n: int) -> None: ...
def type_char(value: object) -> TypeChar | None: ...
def available_isas() -> tuple[str, ...]: ...
def build_info() -> dict[str, object]: ...
def register_tile(isa: int, type: TypeChar) -> tuple[int, int, int]: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def swap_local_threads(n: int) -> int: ...
def set_isa(isa: int) -> None: ...
def get_isa() -> int: ...
def swap_local_isa(isa: int) -> int: ...
def are_ints(options: tuple) -> bool: ...
def fits(out: object, shape: tuple[int, ...], type: TypeChar) -> bool: ...
def all_apart(out: object, others: dict[str, object]) -> bool: ...
def apart(a: object, b: object) -> bool: ...
def empty(shape: tuple[int, ...], type: TypeChar) -> Real: ...
def empty_cache() -> None: ...
def cached_bytes() -> int: ...
def peak_bytes() -> int: ...
def reads_in_place(rows: int, cols: int, depth: int, itemsize: int, along: bool) -> bool: ...
def fma_peak(type: TypeChar = "f", seconds: float = 0.02, threads: int = 1) -> float: ...
def micro_kernel_rate(type: TypeChar = "f", seconds: float = 0.02, k: int = 256) -> float: ...
