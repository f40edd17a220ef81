"""Activations other than ReLU, and softmax, each with its gradient.

Arguments and results are those of :mod:`fastconv.functional`: any shape, float32 or float64, ``out=``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _kernels, geometry
from .functional import _check_elementwise_overlap, _check_overlap, _delivered, _input, _operand, _target

__all__ = [
    "hardswish",
    "hardswish_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "log_softmax",
    "log_softmax_backward",
    "relu6",
    "relu6_backward",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "tanh",
    "tanh_backward",
]


def _forward(name: str, x: ArrayLike, out: NDArray | None, slope: float | None = None) -> NDArray:
    code, slope = geometry.activation_code(name, name if slope is None else (name, slope))
    if out is not None:
        _check_elementwise_overlap(name, out, {"x": x})
    x = _input(name, "x", x)
    target = _target(name, "out", out, x.shape, x.dtype)
    if target.size:
        _kernels.activation(None, x, target, code, slope)
    return _delivered(out, target)


def _backward(
    name: str, grad_output: ArrayLike, known: str, value: ArrayLike, out: NDArray | None, slope: float | None = None
) -> NDArray:
    function = f"{name}_backward"
    code, slope = geometry.activation_code(function, name if slope is None else (name, slope))
    if out is not None:
        _check_elementwise_overlap(function, out, {"grad_output": grad_output, known: value})
    grad_output = _input(function, "grad_output", grad_output)
    value = _operand(function, known, value, grad_output.dtype, of="grad_output")
    geometry.check_shape(function, known, value.shape, grad_output.shape, "grad_output.shape")
    target = _target(function, "out", out, grad_output.shape, grad_output.dtype)
    if target.size:
        _kernels.activation(grad_output, value, target, code, slope)
    return _delivered(out, target)


def relu6(x: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    """Return ``min(max(x, 0), 6)``; NaN passes.

    Parameters
    ----------
    x : array_like of float32 or float64, any shape
        Input.
    out : ndarray, optional
        Receives the result; may be `x`.

    Returns
    -------
    ndarray, the shape of `x`

    Raises
    ------
    TypeError
        The type is not float32 or float64.
    ValueError
        `out` has another shape, is read-only or shares memory with `x` without being it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import relu6
    >>> relu6(np.array([-1.0, 2.0, 7.0]))
    array([0., 2., 6.])
    """
    return _forward("relu6", x, out)


def relu6_backward(grad_output: ArrayLike, x_or_y: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    """Return `grad_output` where ``0 < x_or_y < 6`` and 0 elsewhere: input and output of :func:`relu6` give the same.

    Parameters, results and errors are those of :func:`fastconv.relu_backward`.
    """
    return _backward("relu6", grad_output, "x_or_y", x_or_y, out)


def leaky_relu(x: ArrayLike, negative_slope: float = 0.01, *, out: NDArray | None = None) -> NDArray:
    """Return ``negative_slope * x`` where ``x <= 0`` and `x` elsewhere.

    Parameters
    ----------
    x, out
        As in :func:`relu6`.
    negative_slope : float
        Finite.

    Returns
    -------
    ndarray, the shape of `x`

    Raises
    ------
    TypeError, ValueError
        As :func:`relu6`.
    """
    return _forward("leaky_relu", x, out, negative_slope)


def leaky_relu_backward(
    grad_output: ArrayLike, x: ArrayLike, negative_slope: float = 0.01, *, out: NDArray | None = None
) -> NDArray:
    """Return ``negative_slope * grad_output`` where ``x <= 0`` and `grad_output` elsewhere.

    Parameters, results and errors are those of :func:`fastconv.relu_backward`.
    """
    return _backward("leaky_relu", grad_output, "x", x, out, negative_slope)


def sigmoid(x: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    """Return ``1 / (1 + exp(-x))``; parameters, results and errors are those of :func:`relu6`."""
    return _forward("sigmoid", x, out)


def sigmoid_backward(grad_output: ArrayLike, y: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    """Return ``grad_output * y * (1 - y)``, where `y` is the OUTPUT of :func:`sigmoid`.

    Parameters, results and errors are those of :func:`fastconv.relu_backward`.
    """
    return _backward("sigmoid", grad_output, "y", y, out)


def tanh(x: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    """Return the hyperbolic tangent; parameters, results and errors are those of :func:`relu6`."""
    return _forward("tanh", x, out)


def tanh_backward(grad_output: ArrayLike, y: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    """Return ``grad_output * (1 - y * y)``, where `y` is the OUTPUT of :func:`tanh`.

    Parameters, results and errors are those of :func:`fastconv.relu_backward`.
    """
    return _backward("tanh", grad_output, "y", y, out)


def silu(x: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    """Return ``x * sigmoid(x)``; parameters, results and errors are those of :func:`relu6`."""
    return _forward("silu", x, out)


def silu_backward(grad_output: ArrayLike, x: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    """Return ``grad_output * s * (1 + x * (1 - s))`` with ``s = sigmoid(x)``.

    Parameters, results and errors are those of :func:`fastconv.relu_backward`.
    """
    return _backward("silu", grad_output, "x", x, out)


def hardswish(x: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    """Return ``x * relu6(x + 3) / 6``; parameters, results and errors are those of :func:`relu6`."""
    return _forward("hardswish", x, out)


def hardswish_backward(grad_output: ArrayLike, x: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    """Return 0 where ``x <= -3``, `grad_output` where ``x >= 3`` and ``grad_output * (x / 3 + 1 / 2)`` between.

    Parameters, results and errors are those of :func:`fastconv.relu_backward`.
    """
    return _backward("hardswish", grad_output, "x", x, out)


# --- Softmax ---------------------------------------------------------------------------------------------------------


def _rows(function: str, axis: int, out: NDArray | None, logarithm: bool, x: NDArray, g: NDArray | None = None):
    """Run the kernel over rows that lie along the last axis: a copy is made where they do not."""
    axis = geometry.check_axis(function, axis, x.ndim)
    target = _target(function, "out", out, x.shape, x.dtype)
    if target.size:
        if axis == x.ndim - 1:
            _kernels.softmax(g, x, target, x.shape[axis], logarithm)
        else:
            moved = [None if a is None else np.ascontiguousarray(np.moveaxis(a, axis, -1)) for a in (g, x)]
            rows = np.empty_like(moved[1])
            _kernels.softmax(*moved, rows, x.shape[axis], logarithm)
            np.copyto(target, np.moveaxis(rows, -1, axis))
    return _delivered(out, target)


def _softmax(function: str, x: ArrayLike, axis: int, out: NDArray | None) -> NDArray:
    if out is not None:
        _check_overlap(function, "out", out, {"x": x})
    return _rows(function, axis, out, function == "log_softmax", _input(function, "x", x))


def _softmax_backward(function: str, grad_output: ArrayLike, y: ArrayLike, axis: int, out: NDArray | None) -> NDArray:
    if out is not None:
        _check_elementwise_overlap(function, out, {"grad_output": grad_output, "y": y})
    grad_output = _input(function, "grad_output", grad_output)
    y = _operand(function, "y", y, grad_output.dtype, of="grad_output")
    geometry.check_shape(function, "y", y.shape, grad_output.shape, "grad_output.shape")
    return _rows(function, axis, out, function == "log_softmax_backward", y, grad_output)


def softmax(x: ArrayLike, axis: int = -1, *, out: NDArray | None = None) -> NDArray:
    """Return ``exp(x) / sum of exp(x) along axis``, the largest element of each row subtracted first.

    Parameters
    ----------
    x : array_like of float32 or float64, at least one dimension
        Input.
    axis : int
        What the results add to 1 along.
    out : ndarray, optional
        Receives the result.

    Returns
    -------
    ndarray, the shape of `x`

    Raises
    ------
    TypeError
        The type is not float32 or float64, or `axis` no integer.
    ValueError
        There is no such axis, or `out` has another shape, is read-only or shares memory with `x`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import softmax
    >>> softmax(np.zeros((1, 4)))
    array([[0.25, 0.25, 0.25, 0.25]])
    """
    return _softmax("softmax", x, axis, out)


def softmax_backward(grad_output: ArrayLike, y: ArrayLike, axis: int = -1, *, out: NDArray | None = None) -> NDArray:
    """Return ``y * (grad_output - sum of grad_output * y along axis)``, where `y` is the OUTPUT of :func:`softmax`.

    Parameters, results and errors are those of :func:`fastconv.relu_backward`, and `axis` that of :func:`softmax`.
    """
    return _softmax_backward("softmax_backward", grad_output, y, axis, out)


def log_softmax(x: ArrayLike, axis: int = -1, *, out: NDArray | None = None) -> NDArray:
    """Return the logarithm of :func:`softmax`, which may be below the smallest number; the rest is as there."""
    return _softmax("log_softmax", x, axis, out)


def log_softmax_backward(
    grad_output: ArrayLike, y: ArrayLike, axis: int = -1, *, out: NDArray | None = None
) -> NDArray:
    """Return ``grad_output - exp(y) * sum of grad_output along axis``, `y` being the OUTPUT of :func:`log_softmax`.

    Parameters, results and errors are those of :func:`fastconv.relu_backward`, and `axis` that of :func:`softmax`.
    """
    return _softmax_backward("log_softmax_backward", grad_output, y, axis, out)
