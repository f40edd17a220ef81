"""Batch normalisation and local response normalisation, each with its gradient.

Arrays are as in :mod:`fastconv.functional`. Numbers of a channel - means, variances, sums - are float64 inside,
whatever the type of the arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _kernels, functional, geometry
from .functional import _ALL, Gradients, Mask, _check_overlap, _delivered, _input, _operand, _outs, _target, _targets

__all__ = ["batch_norm", "batch_norm_backward", "local_response_norm", "local_response_norm_backward"]


def _channels(function: str, name: str, value: ArrayLike | None, c: int, dtype: np.dtype) -> NDArray | None:
    """Return one number a channel, of `dtype`."""
    if value is None:
        return None
    value = _operand(function, name, value, dtype)
    geometry.check_shape(function, name, value.shape, (c,), "x.shape[1:2]")
    return value


def _factors(shift: NDArray, a: NDArray | float, b: NDArray | float, c: NDArray | float) -> NDArray:
    """Return (shift, a, b, c) of each channel, as the kernel reads them."""
    factors = np.empty((len(shift), 4))
    for column, value in zip(factors.T, (shift, a, b, c), strict=True):
        column[...] = value
    return factors


def _statistics(x: NDArray) -> tuple[NDArray, NDArray]:
    """Return the mean and the variance of each channel: sums of ``x - shift`` and of its square, in one pass."""
    n, c = x.shape[:2]
    count = x.size // c
    first = x.reshape(n, c, -1)[0, :, 0].astype(np.float64)
    shift, sums = np.where(np.isfinite(first), first, 0), np.empty((c, 2))
    _kernels.channel_moments(None, x, shift, sums, n)
    mean, square = sums.T / count
    with np.errstate(invalid="ignore"):
        return shift + mean, np.maximum(square - mean * mean, 0)


def batch_norm(
    x: ArrayLike,
    running_mean: NDArray | None,
    running_var: NDArray | None,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_statistics: bool = False,
    out: NDArray | None = None,
) -> NDArray | tuple[NDArray, NDArray, NDArray]:
    """Normalise each channel: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    In training, `mean` and `var` are those of the channel over the batch, and

    ::

        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var  = (1 - momentum) * running_var  + momentum * var * count / (count - 1)

    are updated in place; else they are `running_mean` and `running_var`.

    Parameters
    ----------
    x : array_like of float32 or float64, (n, c, ...)
        Input.
    running_mean, running_var : ndarray of the type of `x`, (c,)
        Statistics of all batches so far; both may be None in training.
    weight, bias : array_like of the type of `x`, (c,), optional
        Scale and offset of each channel.
    training : bool
        Whether to normalise by the statistics of `x`, of which a channel must then have more than one value.
    momentum, eps : float
        Share of this batch in the running statistics, and what is added to the variance.
    return_statistics : bool
        Whether to return also what `x` was normalised by, for :func:`batch_norm_backward`.
    out : ndarray, optional
        Receives the result; shares no memory with `x`.

    Returns
    -------
    y : ndarray, the shape of `x`
    mean, var : ndarray of float64, (c,)
        Only if `return_statistics`; the variance is the biased one.

    Raises
    ------
    TypeError
        Types are not float32 or float64, or differ.
    ValueError
        A shape is wrong, running statistics are missing or read-only, or a channel has a single value.

    References
    ----------
    Ioffe & Szegedy, "Batch Normalization", ICML 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import batch_norm
    >>> batch_norm(np.array([[1.0], [3.0]]), None, None, training=True, eps=0.0)
    array([[-1.],
           [ 1.]])
    """
    function = "batch_norm"
    running = {"running_mean": running_mean, "running_var": running_var}
    if out is not None:
        _check_overlap(function, "out", out, {"x": x, "weight": weight, "bias": bias, **running})
    x = _input(function, "x", x)
    geometry.check_flag(function, "training", training)
    geometry.check_flag(function, "return_statistics", return_statistics)
    momentum, eps = (geometry.check_number(function, *item) for item in (("momentum", momentum), ("eps", eps)))
    c, count = geometry.norm_sizes(function, x.shape, training)
    running = {name: _running(function, name, value, c, x.dtype, training) for name, value in running.items()}
    weight, bias = (_channels(function, *item, c, x.dtype) for item in (("weight", weight), ("bias", bias)))
    target = _target(function, "out", out, x.shape, x.dtype)
    if training:
        mean, var = _statistics(x)
        updates = {"running_mean": mean, "running_var": var * (count / (count - 1))}
        for name, value in running.items():
            if value is not None:
                value[...] = (1 - momentum) * value.astype(np.float64) + momentum * updates[name]
    else:
        mean, var = (value.astype(np.float64) for value in running.values())
    if target.size:
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = (1 if weight is None else weight) / np.sqrt(var + eps)
        _kernels.channel_affine(None, x, _factors(mean, 0, scale, 0 if bias is None else bias), target, x.shape[0])
    y = _delivered(out, target)
    return (y, mean, var) if return_statistics else y


def _running(function, name, value, c, dtype, training):
    """Check running statistics: updated in place in training, and needed else."""
    if value is None and training:
        return None
    array = _channels(function, name, value, c, dtype) if value is not None else None
    if array is None:
        geometry.array_error(function, name, value, "it may be None only where training is True")
    if training:
        geometry.check_out(function, name, np.asarray(value), (c,), dtype)
        return value
    return array


def batch_norm_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    weight: ArrayLike | None = None,
    training: bool = False,
    eps: float = 1e-5,
    *,
    output_mask: Mask = _ALL,
    out: Gradients | None = None,
) -> Gradients:
    """Return the gradients of :func:`batch_norm` in its input, weight and bias.

    ::

        grad_bias   = sum of grad_output
        grad_weight = sum of grad_output * (x - mean) / sqrt(var + eps)
        grad_input  = weight / sqrt(var + eps) * (grad_output
                      - (grad_bias + (x - mean) / sqrt(var + eps) * grad_weight) / count   in training)

    Parameters
    ----------
    grad_output : array_like, the shape and type of `x`
        Gradient of the output.
    x : array_like of float32 or float64, (n, c, ...)
        Input of the forward pass.
    mean, var : array_like, (c,)
        What it was normalised by: in training, what ``return_statistics=True`` returned.
    weight, training, eps
        As in the forward pass.
    output_mask, out
        As in :func:`fastconv.conv2d_backward`.

    Returns
    -------
    grad_input : ndarray or None, the shape of `x`
    grad_weight, grad_bias : ndarray or None, (c,)

    Raises
    ------
    TypeError, ValueError
        As :func:`batch_norm`.
    """
    function = "batch_norm_backward"
    outs = _outs(function, out, output_mask, {"grad_output": grad_output, "x": x, "weight": weight})
    x = _input(function, "x", x)
    geometry.check_flag(function, "training", training)
    eps = geometry.check_number(function, "eps", eps)
    c, count = geometry.norm_sizes(function, x.shape, training)
    grad_output = _operand(function, "grad_output", grad_output, x.dtype)
    geometry.check_shape(function, "grad_output", grad_output.shape, x.shape, "x.shape")
    weight = _channels(function, "weight", weight, c, x.dtype)
    mean, var = (
        _channels(function, name, _input(function, name, value).astype(np.float64), c, np.dtype(np.float64))
        for name, value in (("mean", mean), ("var", var))
    )
    targets = _targets(function, outs, output_mask, (x.shape, (c,), (c,)), x.dtype)
    grad_input, grad_weight, grad_bias = targets
    with np.errstate(all="ignore"):
        inverse, sums = 1 / np.sqrt(var + eps), np.zeros((c, 2))
        if x.size:
            _kernels.channel_moments(grad_output, x, mean, sums, x.shape[0])
        total, dot = sums.T
        if grad_weight is not None:
            grad_weight[...] = dot * inverse
        if grad_bias is not None:
            grad_bias[...] = total
        if grad_input is not None and x.size:
            a = inverse if weight is None else weight * inverse
            if training:
                factors = _factors(mean, a, -a * inverse**2 * dot / count, -a * total / count)
                _kernels.channel_affine(grad_output, x, factors, grad_input, x.shape[0])
            else:
                _kernels.channel_affine(None, grad_output, _factors(0 * mean, 0, a, 0), grad_input, x.shape[0])
    return tuple(map(_delivered, outs, targets))


# --- Local response --------------------------------------------------------------------------------------------------


def _window_means(x: NDArray, before: int, after: int) -> NDArray:
    """Return the mean of each channel and its neighbours, zeros beyond the first and the last."""
    flat = x.reshape(x.shape[0], 1, x.shape[1], -1)
    means = functional.avg_pool2d(flat, (before + 1 + after, 1), 1, ((before, after), (0, 0)))
    return means.reshape(x.shape)


def local_response_norm(x: ArrayLike, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> NDArray:
    """Divide by ``(k + alpha * mean of squares over size neighbouring channels) ** beta``.

    Parameters
    ----------
    x : array_like of float32 or float64, (n, c, ...)
        Input.
    size : int
        Channels in a window, ``size // 2`` of them before the one that it is for; beyond the edges they are zero.
    alpha, beta, k : float
        As in the formula.

    Returns
    -------
    ndarray, the shape of `x`

    Raises
    ------
    TypeError, ValueError
        As :func:`batch_norm`; `size` is below 1.

    References
    ----------
    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012.
    """
    x, before, after = _response_arguments("local_response_norm", x, size)
    if not x.size:
        return x.copy()
    return x * (k + alpha * _window_means(x * x, before, after)) ** -beta


def _response_arguments(function: str, x: ArrayLike, size: int) -> tuple[NDArray, int, int]:
    x = _input(function, "x", x)
    geometry.norm_sizes(function, x.shape, False)
    size = geometry.check_count(function, "size", size)
    return x, size // 2, (size - 1) // 2


def local_response_norm_backward(
    grad_output: ArrayLike, x: ArrayLike, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> NDArray:
    """Return the gradient of :func:`local_response_norm` in its input, of the same arguments.

    ::

        d = k + alpha * mean of x * x
        grad_input = grad_output * d**-beta - 2 * alpha * beta * x * mean of (grad_output * x * d**(-beta - 1))

    with the second mean over the windows that hold the channel.
    """
    function = "local_response_norm_backward"
    x, before, after = _response_arguments(function, x, size)
    grad_output = _operand(function, "grad_output", grad_output, x.dtype)
    geometry.check_shape(function, "grad_output", grad_output.shape, x.shape, "x.shape")
    if not x.size:
        return x.copy()
    d = k + alpha * _window_means(x * x, before, after)
    scaled = grad_output * d**-beta
    return scaled - 2 * alpha * beta * x * _window_means(scaled * x / d, after, before)
