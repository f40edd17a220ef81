"""Layers: the parameters, and what a backward pass has to remember.

Each layer is a few lines over :mod:`fastconv.functional`, with PyTorch's class names, constructor arguments and
``state_dict`` keys. There is no graph: ``y = layer(x)`` remembers what ``dx = layer.backward(dy)`` reads.

    forward:     x ──> [ Conv2d ] ──> [ ReLU ] ──> [ Linear ] ──> y
                        remembers x    remembers y    remembers x
    backward:   dx <── [  += dW ] <── [      ] <── [  += dW ] <── dy

What is remembered is remembered by reference: an array that is overwritten between forward and backward changes the
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np

from . import activations, functional, geometry, normalization

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Concat",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Dropout",
    "Flatten",
    "Fold",
    "Hardswish",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "Module",
    "Parameter",
    "ReLU",
    "ReLU6",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "Unfold",
]


class Parameter:
    """An array that is learned, and its gradient.

    Parameters
    ----------
    data : ndarray
        The values; a copy is made only if they are not C-contiguous.

    Attributes
    ----------
    data : ndarray
        The values; optimisers change them in place.
    grad : ndarray or None
        The sum of the gradients since the last :meth:`zero_grad`, of the shape of `data`; None before the first. Its
        memory serves again after :meth:`zero_grad`: copy a gradient to keep it.
    """

    __slots__ = ("_buffer", "_data", "grad")

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, value: np.ndarray) -> None:
        self._data = np.asarray(value, order="C")
        self._buffer = self.grad = None

    @property
    def grad_out(self) -> np.ndarray | None:
        """The array that a kernel may write the next gradient to; None: it allocates one."""
        return self._buffer if self.grad is None else None

    def accumulate(self, grad: np.ndarray) -> None:
        """Add `grad` to :attr:`grad`; the first one since :meth:`zero_grad` is taken over as it is."""
        if self.grad is None:
            self.grad = self._buffer = grad
        else:
            self.grad += grad

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

    def __repr__(self) -> str:
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype})"


class Module:
    """Base of every layer: parameters and layers are found among its attributes, under their names.

    A layer of your own defines :meth:`forward` and :meth:`backward`, by calling those of the layers it holds or with
    :meth:`_remember` and :meth:`_recall`.

    Attributes
    ----------
    training : bool
        Whether :meth:`forward` remembers what :meth:`backward` needs; set by :meth:`train` and :meth:`eval`.
    buffer_names : tuple of str
        Attributes that are arrays, or None, and belong to the state without being learned.
    """

    training = True
    buffer_names: tuple[str, ...] = ()
    _remembered: tuple[Any, ...] | None = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.forward(x)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Compute the output; in training mode, remember what :meth:`backward` needs."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray | None:
        """Accumulate the gradients of the parameters and compute that of the input.

        Parameters
        ----------
        grad_output : ndarray
            The gradient of the last output that was computed in training mode.
        needs_input_grad : bool
            False lets a layer with parameters skip the gradient of its input, which the first layer has no use for.

        Returns
        -------
        ndarray or None
            The gradient of the input; None where it was skipped.

        Raises
        ------
        RuntimeError
            There was no forward pass in training mode since the last backward pass.
        """
        raise NotImplementedError(f"{type(self).__name__}.backward")

    def _remember(self, *values: Any) -> None:
        self._remembered = values if self.training else None

    def _recall(self) -> tuple[Any, ...]:
        """Return what the last forward pass remembered, and keep it no longer: memory falls as a backward pass goes."""
        values, self._remembered = self._remembered, None
        if values is None:
            name = type(self).__name__
            raise RuntimeError(
                f"{name}.backward: a forward pass in training mode must come before each backward pass, got none"
            )
        return values

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield the layers that this one holds, with their names."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield this layer, under the name `prefix`, and every layer below it, with dotted names."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """Yield this layer and every layer below it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield every parameter with its name: PyTorch's names, in PyTorch's order."""
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield (f"{prefix}.{name}" if prefix else name), value

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield every array that belongs to the state but is not learned, with its name."""
        for prefix, module in self.named_modules():
            for name in module.buffer_names:
                if getattr(module, name) is not None:
                    yield (f"{prefix}.{name}" if prefix else name), getattr(module, name)

    def _named_state(self) -> dict[str, np.ndarray]:
        return {name: parameter.data for name, parameter in self.named_parameters()} | dict(self.named_buffers())

    def parameters(self) -> Iterator[Parameter]:
        """Yield every parameter once."""
        return iter(dict.fromkeys(parameter for _, parameter in self.named_parameters()))

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def train(self, mode: bool = True) -> Module:
        """Set training mode here and below; return this layer."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Leave training mode: nothing is remembered; return this layer."""
        return self.train(False)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return a copy of the values of every parameter and buffer, by name."""
        return {name: values.copy() for name, values in self._named_state().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Copy values into the parameters and buffers, in place; either all of them or, on an error, none.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            Such as :meth:`state_dict` returns, here or in PyTorch; converted to the type of each parameter.
        strict : bool
            Whether every parameter and buffer must be there, and nothing else.

        Raises
        ------
        ValueError
            A key is missing or unexpected (if `strict`), or an array has another shape than its parameter.
        TypeError
            An array cannot become floating point.
        """
        parameters = self._named_state()
        if strict and parameters.keys() != state_dict.keys():
            differences = {
                "missing": [key for key in parameters if key not in state_dict],
                "unexpected": [key for key in state_dict if key not in parameters],
            }
            got = ", ".join(f"{what} {', '.join(map(repr, keys))}" for what, keys in differences.items() if keys)
            raise ValueError(f"load_state_dict: keys must be those of {type(self).__name__}, got {got}")
        values = {name: np.asarray(state_dict[name]) for name in parameters if name in state_dict}
        for name, value in values.items():
            data = parameters[name]
            if value.shape != data.shape:
                raise ValueError(f"load_state_dict: {name!r} must have shape {data.shape}, got {value.shape}")
            if not np.can_cast(value.dtype, data.dtype, "same_kind"):
                raise TypeError(f"load_state_dict: {name!r} must be castable to {data.dtype}, got {value.dtype}")
        for name, value in values.items():
            parameters[name][...] = value

    def extra_repr(self) -> str:
        """Return the constructor's arguments as ``repr`` shows them."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        children = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        if not children:
            return f"{type(self).__name__}({extra})"
        lines = [extra, *children] if extra else children
        return "\n  ".join([f"{type(self).__name__}(", *lines]) + "\n)"


class _OfRank(Module):
    """A layer whose operator is one of a family of several numbers of dimensions."""

    _operator: str  # its name in `functional`

    @property
    def _ndim(self) -> int:
        return int(self._operator[-2])

    def _forward(self, *arguments: Any, **options: Any) -> Any:
        return getattr(functional, self._operator)(*arguments, **options)

    @property
    def _gradient(self) -> Callable[..., Any]:
        return getattr(functional, f"{self._operator}_backward")

    def _tuple(self, value: Any) -> tuple:
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        return values * self._ndim if len(values) == 1 else values


def _check_sizes(layer: str, ndim: int, minimum: int = 1, **sizes: int | tuple[int, ...]) -> None:
    for name, value in sizes.items():
        if isinstance(value, tuple) and len(value) != ndim:
            raise ValueError(f"{layer}: {name} must be an integer or have {ndim} elements, got {value}")
        for size in value if isinstance(value, tuple) else (value,):
            if not isinstance(size, Integral):
                raise TypeError(f"{layer}: {name} must be an integer or a tuple of integers, got {value!r}")
            if size < minimum:
                raise ValueError(f"{layer}: {name} must be at least {minimum}, got {size}")


def _arguments(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


class _Weighted(Module):
    """A layer with `weight` and `bias`, both linear in its output."""

    weight: Parameter
    bias: Parameter | None

    def _initialise(
        self,
        shape: tuple[int, ...],
        bias: bool,
        dtype: Any,
        rng: int | np.random.Generator | None,
        outputs: int | None = None,
        fan_in: float | None = None,
    ) -> None:
        """He's normal weights, of variance 2 / fan_in, which keeps the variance through layers of ReLU; zero biases."""
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(f"{type(self).__name__}: dtype must be float32 or float64, got {np.dtype(dtype)}")
        weight = np.random.default_rng(rng).standard_normal(shape, dtype)
        weight *= math.sqrt(2 / (fan_in or math.prod(shape[1:])))
        self.weight = Parameter(weight)
        self.bias = Parameter(np.zeros(outputs or shape[0], dtype)) if bias else None

    def _values(self) -> tuple[np.ndarray, np.ndarray | None]:
        return self.weight.data, None if self.bias is None else self.bias.data

    def _accumulate(self, function: Callable[..., tuple], *arguments: Any, input_grad: bool) -> np.ndarray | None:
        """Call a functional backward, which writes over last step's gradients, and accumulate what it returns."""
        parameters = (self.weight, self.bias)
        out = (None, *(parameter and parameter.grad_out for parameter in parameters))
        mask = (input_grad, True, self.bias is not None)
        grad_input, *gradients = function(*arguments, output_mask=mask, out=out)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter is not None:
                parameter.accumulate(gradient)
        return grad_input


class _Conv(_OfRank, _Weighted):
    """Convolution of as many dimensions as its operator has."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        geometry.check_padding_mode(type(self).__name__, padding_mode)
        self.padding_mode = padding_mode
        self._configure(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self._initialise((out_channels, in_channels // groups, *self.kernel_size), bias, dtype, rng)

    def _configure(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups) -> None:
        name = type(self).__name__
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = map(self._tuple, (kernel_size, stride, dilation))
        self.padding = padding if isinstance(padding, str) else self._tuple(padding)
        names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
        _check_sizes(name, self._ndim, **{name: getattr(self, name) for name in names})
        for argument, channels in ("in_channels", in_channels), ("out_channels", out_channels):
            if channels % groups:
                raise ValueError(f"{name}: {argument} must be divisible by groups = {groups}, got {channels}")

    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = self._forward(x, *self._values(), **self._options())
        self._remember(x)
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray | None:
        (x,) = self._recall()
        function = partial(self._gradient, **self._options())
        return self._accumulate(function, grad_output, x, self.weight.data, input_grad=needs_input_grad)

    def extra_repr(self) -> str:
        zeros, ones = (0,) * self._ndim, (1,) * self._ndim
        defaults = {"padding": zeros, "dilation": ones, "output_padding": zeros, "groups": 1}
        shown = {"kernel_size": self.kernel_size, "stride": self.stride}
        shown |= {n: getattr(self, n) for n, default in defaults.items() if getattr(self, n, default) != default}
        shown |= {"bias": False} if self.bias is None else {}
        shown |= {} if self.padding_mode == "zeros" else {"padding_mode": self.padding_mode}
        return f"{self.in_channels}, {self.out_channels}, {_arguments(shown)}"


class Conv1d(_Conv):
    """1-D convolution of ``(n, in_channels, w)``: :class:`Conv2d` for signals."""

    _operator = "conv1d"


class Conv2d(_Conv):
    """2-D convolution of ``(n, in_channels, h, w)``: :func:`fastconv.functional.conv2d` and its weights.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and of the output.
    kernel_size : int or (int, int)
        Height and width of the filters.
    stride, padding, dilation, groups
        As in :func:`fastconv.functional.conv2d`.
    padding_mode
        As in :func:`fastconv.functional.conv2d`, after `bias`.
    bias : bool
        Whether each output channel adds a number that is learned.
    dtype : dtype
        float32 or float64.
    rng : None, int or numpy.random.Generator
        Seed or source of He's normal initialisation, of variance ``2 / fan_in``; biases begin at zero.

    Attributes
    ----------
    weight : Parameter
        ``(out_channels, in_channels // groups, kernel_h, kernel_w)``.
    bias : Parameter or None
        ``(out_channels,)``.

    References
    ----------
    He et al., "Delving Deep into Rectifiers", ICCV 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.layers import Conv2d
    >>> conv = Conv2d(3, 8, kernel_size=3, padding=1, rng=0)
    >>> y = conv(np.ones((2, 3, 5, 5), np.float32))
    >>> dx = conv.backward(np.ones_like(y))
    >>> y.shape, dx.shape, conv.weight.grad.shape
    ((2, 8, 5, 5), (2, 3, 5, 5), (8, 3, 3, 3))
    """

    _operator = "conv2d"


class Conv3d(_Conv):
    """3-D convolution of ``(n, in_channels, d, h, w)``: :class:`Conv2d` for volumes."""

    _operator = "conv3d"


class _ConvTranspose(_Conv):
    """Transposed convolution of as many dimensions as its operator has."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f"{type(self).__name__}: padding_mode must be 'zeros', got {padding_mode!r}")
        self.padding_mode, self.output_padding = padding_mode, self._tuple(output_padding)
        _check_sizes(type(self).__name__, self._ndim, 0, output_padding=self.output_padding)
        self._configure(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        fan_in = in_channels // groups * math.prod(self.kernel_size) / math.prod(self.stride)  # of an output
        shape = in_channels, out_channels // groups, *self.kernel_size
        self._initialise(shape, bias, dtype, rng, out_channels, fan_in)

    def _options(self) -> dict[str, Any]:
        names = "stride", "padding", "output_padding", "groups", "dilation"
        return {name: getattr(self, name) for name in names}


class ConvTranspose1d(_ConvTranspose):
    """1-D transposed convolution: :class:`ConvTranspose2d` for signals."""

    _operator = "conv_transpose1d"


class ConvTranspose2d(_ConvTranspose):
    """2-D transposed convolution: :func:`fastconv.functional.conv_transpose2d` and its weights.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, bias, dtype, rng
        As in :class:`Conv2d`.
    stride, padding, output_padding, groups, dilation
        As in :func:`fastconv.functional.conv_transpose2d`.
    padding_mode : "zeros"
        The only one.

    Attributes
    ----------
    weight : Parameter
        ``(in_channels, out_channels // groups, kernel_h, kernel_w)``.
    bias : Parameter or None
        ``(out_channels,)``.
    """

    _operator = "conv_transpose2d"


class ConvTranspose3d(_ConvTranspose):
    """3-D transposed convolution: :class:`ConvTranspose2d` for volumes."""

    _operator = "conv_transpose3d"


class Linear(_Weighted):
    """``y = x @ weight.T + bias`` over the last dimension: :func:`fastconv.functional.linear` and its weights.

    Parameters
    ----------
    in_features, out_features : int
        Length of the last dimension of the input and of the output.
    bias : bool
        Whether each output adds a number that is learned.
    dtype, rng
        As in :class:`Conv2d`.

    Attributes
    ----------
    weight : Parameter
        ``(out_features, in_features)``.
    bias : Parameter or None
        ``(out_features,)``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        _check_sizes("Linear", 1, in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self._initialise((out_features, in_features), bias, dtype, rng)

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = functional.linear(x, *self._values())
        self._remember(x)
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray | None:
        (x,) = self._recall()
        arguments = (grad_output, x, self.weight.data)
        return self._accumulate(functional.linear_backward, *arguments, input_grad=needs_input_grad)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _MaxPool(_OfRank):
    """Maximum of each window, in as many dimensions as its operator has."""

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple | str = 0,
        dilation: int | tuple[int, ...] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation = padding, dilation
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def _options(self):
        return self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode

    def forward(self, x: np.ndarray) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        wanted = self.training or self.return_indices
        result = self._forward(x, *self._options(), return_indices=wanted)
        y, indices = result if wanted else (result, None)
        self._remember(indices, x.shape)
        return (y, indices) if self.return_indices else y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        indices, shape = self._recall()
        return self._gradient(grad_output, indices, shape, *self._options())

    def extra_repr(self) -> str:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return _arguments({name: getattr(self, name) for name in names})


class MaxPool1d(_MaxPool):
    """Maximum of each window: :class:`MaxPool2d` for signals."""

    _operator = "max_pool1d"


class MaxPool2d(_MaxPool):
    """Maximum of each window: :func:`fastconv.functional.max_pool2d`.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, return_indices, ceil_mode
        As in :func:`fastconv.functional.max_pool2d`, in the order of PyTorch's module.
    """

    _operator = "max_pool2d"


class MaxPool3d(_MaxPool):
    """Maximum of each window: :class:`MaxPool2d` for volumes."""

    _operator = "max_pool3d"


class _AvgPool(_OfRank):
    """Mean of each window, in as many dimensions as its operator has."""

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple | str = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override

    def _options(self):
        divisor = self.count_include_pad, self.divisor_override
        return self.kernel_size, self.stride, self.padding, self.ceil_mode, *divisor

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = self._forward(x, *self._options())
        self._remember(x.shape)
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        (shape,) = self._recall()
        return self._gradient(grad_output, shape, *self._options())

    def extra_repr(self) -> str:
        return _arguments({name: getattr(self, name) for name in ("kernel_size", "stride", "padding")})


class AvgPool1d(_AvgPool):
    """Mean of each window: :class:`AvgPool2d` for signals."""

    _operator = "avg_pool1d"


class AvgPool2d(_AvgPool):
    """Mean of each window: :func:`fastconv.functional.avg_pool2d`.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        As in :func:`fastconv.functional.avg_pool2d`.
    """

    _operator = "avg_pool2d"


class AvgPool3d(_AvgPool):
    """Mean of each window: :class:`AvgPool2d` for volumes."""

    _operator = "avg_pool3d"


class _AdaptiveAvgPool(_OfRank):
    """Means of as many windows as the output has elements."""

    def __init__(self, output_size: int | tuple[int | None, ...] | None) -> None:
        self.output_size = output_size

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = self._forward(x, self.output_size)
        self._remember(x.shape)
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        (shape,) = self._recall()
        return self._gradient(grad_output, shape, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """Means of as many windows as the output has elements: :class:`AdaptiveAvgPool2d` for signals."""

    _operator = "adaptive_avg_pool1d"


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """Means of as many windows as the output has elements: :func:`fastconv.functional.adaptive_avg_pool2d`.

    Parameters
    ----------
    output_size : int, None or one of these per dimension
        Size of the output; None keeps that of the input, 1 pools over all of it.
    """

    _operator = "adaptive_avg_pool2d"


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """Means of as many windows as the output has elements: :class:`AdaptiveAvgPool2d` for volumes."""

    _operator = "adaptive_avg_pool3d"


class _AdaptiveMaxPool(_OfRank):
    """Maxima of as many windows as the output has elements."""

    def __init__(self, output_size: int | tuple[int | None, ...] | None, return_indices: bool = False) -> None:
        self.output_size, self.return_indices = output_size, return_indices

    def forward(self, x: np.ndarray) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        wanted = self.training or self.return_indices
        result = self._forward(x, self.output_size, wanted)
        y, indices = result if wanted else (result, None)
        self._remember(indices, x.shape)
        return (y, indices) if self.return_indices else y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        indices, shape = self._recall()
        return self._gradient(grad_output, indices, shape, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """Maxima of as many windows as the output has elements: :class:`AdaptiveMaxPool2d` for signals."""

    _operator = "adaptive_max_pool1d"


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """Maxima of as many windows as the output has elements: :func:`fastconv.functional.adaptive_max_pool2d`.

    Parameters
    ----------
    output_size, return_indices
        As in :func:`fastconv.functional.adaptive_max_pool2d`.
    """

    _operator = "adaptive_max_pool2d"


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """Maxima of as many windows as the output has elements: :class:`AdaptiveMaxPool2d` for volumes."""

    _operator = "adaptive_max_pool3d"


class _LPPool(_OfRank):
    """Norm of each window, in as many dimensions as its operator has."""

    def __init__(
        self,
        norm_type: float,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        ceil_mode: bool = False,
    ) -> None:
        self.norm_type, self.kernel_size, self.stride, self.ceil_mode = norm_type, kernel_size, stride, ceil_mode

    def _options(self):
        return self.norm_type, self.kernel_size, self.stride, self.ceil_mode

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = self._forward(x, *self._options())
        self._remember(x)
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        (x,) = self._recall()
        return self._gradient(grad_output, x, *self._options())

    def extra_repr(self) -> str:
        return _arguments({name: getattr(self, name) for name in ("norm_type", "kernel_size", "stride", "ceil_mode")})


class LPPool1d(_LPPool):
    """Norm of each window: :class:`LPPool2d` for signals."""

    _operator = "lp_pool1d"


class LPPool2d(_LPPool):
    """Norm of each window: :func:`fastconv.functional.lp_pool2d`.

    Parameters
    ----------
    norm_type, kernel_size, stride, ceil_mode
        As in :func:`fastconv.functional.lp_pool2d`.
    """

    _operator = "lp_pool2d"


class LPPool3d(_LPPool):
    """Norm of each window: :class:`LPPool2d` for volumes."""

    _operator = "lp_pool3d"


class _MaxUnpool(_OfRank):
    """Maxima put back, in as many dimensions as its operator has."""

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
    ) -> None:
        self.kernel_size, self.padding = self._tuple(kernel_size), self._tuple(padding)
        self.stride = self.kernel_size if stride is None else self._tuple(stride)

    def __call__(self, x: np.ndarray, indices: np.ndarray, output_size: tuple[int, ...] | None = None) -> np.ndarray:
        return self.forward(x, indices, output_size)

    def forward(self, x: np.ndarray, indices: np.ndarray, output_size: tuple[int, ...] | None = None) -> np.ndarray:
        options = self.kernel_size, self.stride, self.padding, output_size
        y = self._forward(x, indices, *options)
        self._remember(indices, options)
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        indices, options = self._recall()
        return self._gradient(grad_output, indices, *options)

    def extra_repr(self) -> str:
        return _arguments({name: getattr(self, name) for name in ("kernel_size", "stride", "padding")})


class MaxUnpool1d(_MaxUnpool):
    """Maxima put back to where they were: :class:`MaxUnpool2d` for signals."""

    _operator = "max_unpool1d"


class MaxUnpool2d(_MaxUnpool):
    """Maxima put back to where they were: :func:`fastconv.functional.max_unpool2d`.

    It is called with the maxima and their indices, and where needed the output's size.

    Parameters
    ----------
    kernel_size, stride, padding
        As in :func:`fastconv.functional.max_unpool2d`.
    """

    _operator = "max_unpool2d"


class MaxUnpool3d(_MaxUnpool):
    """Maxima put back to where they were: :class:`MaxUnpool2d` for volumes."""

    _operator = "max_unpool3d"


class Unfold(Module):
    """Windows as columns: :func:`fastconv.functional.unfold`.

    Parameters
    ----------
    kernel_size, dilation, padding, stride
        As in :func:`fastconv.functional.unfold`.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        dilation: int | tuple[int, ...] = 1,
        padding: int | tuple | str = 0,
        stride: int | tuple[int, ...] = 1,
    ) -> None:
        self.kernel_size, self.dilation, self.padding, self.stride = kernel_size, dilation, padding, stride

    def _options(self):
        return self.kernel_size, self.dilation, self.padding, self.stride

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = functional.unfold(x, *self._options())
        ndim = len(self.kernel_size) if isinstance(self.kernel_size, (tuple, list)) else 2
        self._remember(x.shape[-ndim:])
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        (size,) = self._recall()
        return functional.fold(grad_output, size, *self._options())

    def extra_repr(self) -> str:
        return _arguments({name: getattr(self, name) for name in ("kernel_size", "dilation", "padding", "stride")})


class Fold(Unfold):
    """Columns added to their windows: :func:`fastconv.functional.fold`.

    Parameters
    ----------
    output_size, kernel_size, dilation, padding, stride
        As in :func:`fastconv.functional.fold`.
    """

    def __init__(
        self,
        output_size: int | tuple[int, ...],
        kernel_size: int | tuple[int, ...],
        dilation: int | tuple[int, ...] = 1,
        padding: int | tuple | str = 0,
        stride: int | tuple[int, ...] = 1,
    ) -> None:
        super().__init__(kernel_size, dilation, padding, stride)
        self.output_size = output_size

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = functional.fold(x, self.output_size, *self._options())
        self._remember()
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        self._recall()
        return functional.unfold(grad_output, *self._options())

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, {super().extra_repr()}"


class ReLU(Module):
    """``max(x, 0)``: :func:`fastconv.functional.relu`.

    Parameters
    ----------
    inplace : bool
        Whether to write over the input.
    """

    def __init__(self, inplace: bool = False) -> None:
        self.inplace = inplace

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = functional.relu(x, self.inplace)
        self._remember(y)  # y > 0 where x > 0, and y is what the next layer remembers too
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        (y,) = self._recall()
        return functional.relu_backward(grad_output, y)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class _Activation(Module):
    """A function of each element, the name of which is that of the layer; backward reads its input or its output."""

    function = ""
    reads_output = True

    def _options(self) -> tuple[Any, ...]:
        return ()

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = getattr(activations, self.function)(x, *self._options())
        self._remember(y if self.reads_output else x)
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        return getattr(activations, f"{self.function}_backward")(grad_output, *self._recall(), *self._options())


class ReLU6(Module):
    """``min(max(x, 0), 6)``: :func:`fastconv.relu6`.

    Parameters
    ----------
    inplace : bool
        Whether to write over the input.
    """

    def __init__(self, inplace: bool = False) -> None:
        self.inplace = inplace

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = activations.relu6(x, out=x if self.inplace else None)
        self._remember(y)
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        return activations.relu6_backward(grad_output, *self._recall())

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class LeakyReLU(_Activation):
    """``x`` above 0, ``negative_slope * x`` below: :func:`fastconv.leaky_relu`.

    Parameters
    ----------
    negative_slope : float
        Finite.
    """

    function, reads_output = "leaky_relu", False

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def _options(self):
        return (self.negative_slope,)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class Sigmoid(_Activation):
    """``1 / (1 + exp(-x))``: :func:`fastconv.sigmoid`."""

    function = "sigmoid"


class Tanh(_Activation):
    """Hyperbolic tangent: :func:`fastconv.tanh`."""

    function = "tanh"


class SiLU(_Activation):
    """``x * sigmoid(x)``: :func:`fastconv.silu`."""

    function, reads_output = "silu", False


class Hardswish(_Activation):
    """``x * relu6(x + 3) / 6``: :func:`fastconv.hardswish`."""

    function, reads_output = "hardswish", False


class Softmax(_Activation):
    """``exp(x) / sum of exp(x)`` along `dim`: :func:`fastconv.softmax`.

    Parameters
    ----------
    dim : int
        The axis.
    """

    function = "softmax"

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def _options(self):
        return (self.dim,)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Softmax):
    """The logarithm of :class:`Softmax`: :func:`fastconv.log_softmax`."""

    function = "log_softmax"


class Dropout(Module):
    """In training, elements are 0 with probability `p` and else ``x / (1 - p)``; `x` itself in inference.

    Parameters
    ----------
    p : float
        From 0 to below 1.
    rng : None, int or numpy.random.Generator
        Seed or source of what is dropped.
    """

    def __init__(self, p: float = 0.5, *, rng: int | np.random.Generator | None = None) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be from 0 to below 1, got {p}")
        self.p, self.rng = p, np.random.default_rng(rng)

    def forward(self, x: np.ndarray) -> np.ndarray:
        if not self.training:
            self._remember()
            return x
        factors = (self.rng.random(x.shape, np.float32) >= self.p).astype(x.dtype)
        factors *= x.dtype.type(1 / (1 - self.p))
        self._remember(factors)
        return x * factors

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        (factors,) = self._recall()
        return grad_output * factors

    def extra_repr(self) -> str:
        return f"p={self.p}"


class BatchNorm(Module):
    """Base of batch normalisation: :func:`fastconv.batch_norm`, its parameters and its running statistics.

    In training mode channels are normalised by the statistics of the batch, else by the running ones.

    Parameters
    ----------
    num_features : int
        Channels.
    eps : float
        Added to the variance.
    momentum : float or None
        Share of a batch in the running statistics; None: of k batches so far, each has 1 / k.
    affine : bool
        Whether each channel has a scale and an offset that are learned.
    dtype : dtype
        float32 or float64.

    Attributes
    ----------
    weight, bias : Parameter or None
        ``(num_features,)``, ones and zeros at first.
    running_mean, running_var : ndarray
        ``(num_features,)``, zeros and ones at first.
    num_batches_tracked : ndarray of int64, ()
        Forward passes in training mode.
    """

    buffer_names = ("running_mean", "running_var", "num_batches_tracked")
    dimensions: tuple[int, ...] = ()

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        _check_sizes(type(self).__name__, 1, num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(np.ones(num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, dtype)) if affine else None
        self.running_mean, self.running_var = np.zeros(num_features, dtype), np.ones(num_features, dtype)
        self.num_batches_tracked = np.zeros((), np.int64)

    def forward(self, x: np.ndarray) -> np.ndarray:
        if np.ndim(x) not in self.dimensions:
            wanted = " or ".join(map(str, self.dimensions))
            raise ValueError(f"{type(self).__name__}: x must have {wanted} dimensions, got {np.ndim(x)}")
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / (int(self.num_batches_tracked) + 1)
        y, mean, var = normalization.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            *self._values(),
            self.training,
            momentum,
            self.eps,
            return_statistics=True,
        )
        if self.training:
            self.num_batches_tracked += 1
        self._remember(x, mean, var)
        return y

    def _values(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        return (None, None) if self.weight is None else (self.weight.data, self.bias.data)

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray | None:
        x, mean, var = self._recall()
        learns = self.weight is not None
        grad_input, grad_weight, grad_bias = normalization.batch_norm_backward(
            grad_output, x, mean, var, self._values()[0], True, self.eps, output_mask=(needs_input_grad, learns, learns)
        )
        if learns:
            self.weight.accumulate(grad_weight)
            self.bias.accumulate(grad_bias)
        return grad_input

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class BatchNorm1d(BatchNorm):
    """Of ``(n, c)`` or ``(n, c, w)``; see :class:`BatchNorm`."""

    dimensions = (2, 3)


class BatchNorm2d(BatchNorm):
    """Of ``(n, c, h, w)``; see :class:`BatchNorm`."""

    dimensions = (4,)


class BatchNorm3d(BatchNorm):
    """Of ``(n, c, d, h, w)``; see :class:`BatchNorm`."""

    dimensions = (5,)


class LocalResponseNorm(Module):
    """Normalisation by the mean square of neighbouring channels: :func:`fastconv.local_response_norm`.

    Parameters
    ----------
    size, alpha, beta, k
        As there.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def _options(self):
        return self.size, self.alpha, self.beta, self.k

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = normalization.local_response_norm(x, *self._options())
        self._remember(x)
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        (x,) = self._recall()
        return normalization.local_response_norm_backward(grad_output, x, *self._options())

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class Flatten(Module):
    """Join the dimensions `start_dim` to `end_dim`; by default, all but the batch.

    Parameters
    ----------
    start_dim, end_dim : int
        The first and the last dimension to join.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: np.ndarray) -> np.ndarray:
        first, last = range(x.ndim)[self.start_dim], range(x.ndim)[self.end_dim]
        y = x.reshape(*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])
        self._remember(x.shape)
        return y

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray:
        (shape,) = self._recall()
        return grad_output.reshape(shape)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Sequential(Module):
    """Layers one after another, named "0", "1", ... or by the keys of a mapping.

    Parameters
    ----------
    *layers : Module, or one mapping of str to Module
        Each a layer of its own: one that stood in two places would remember only the second.

    Examples
    --------
    >>> from fastconv.layers import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
    >>> model = Sequential(Conv2d(1, 6, 5), ReLU(), MaxPool2d(2), Flatten(), Linear(864, 10))
    >>> [name for name, _ in model.named_parameters()]
    ['0.weight', '0.bias', '4.weight', '4.bias']
    """

    def __init__(self, *layers: Module | Mapping[str, Module]) -> None:
        mapping = layers[0] if len(layers) == 1 and isinstance(layers[0], Mapping) else dict(enumerate(layers))
        for name, layer in ((str(key), layer) for key, layer in mapping.items()):
            if not isinstance(layer, Module):
                raise TypeError(f"Sequential: {name!r} must be a Module, got {type(layer).__name__}")
            if not {*self.modules()}.isdisjoint(layer.modules()):
                raise ValueError(f"Sequential: {name!r} must be a layer of its own, got one that stands there already")
            setattr(self, name, layer)

    def __iter__(self) -> Iterator[Module]:
        return (layer for _, layer in self.named_children())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return Sequential(dict([*self.named_children()][index]))
        return [*self][index]

    def forward(self, x: np.ndarray) -> np.ndarray:
        for layer in self:
            x = layer(x)
        return x

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray | None:
        layers, last = [*self], 0
        if not needs_input_grad:  # what precedes the first parameter has nothing to learn
            last = next((i for i, layer in enumerate(layers) if any(layer.parameters())), len(layers))
        for i, layer in reversed([*enumerate(layers)][last:]):
            grad_output = layer.backward(grad_output, needs_input_grad or i > last)
        return grad_output if needs_input_grad else None


class Residual(Module):
    """``activation(body(x) + shortcut(x))``, the shortcut being `x` itself by default.

    Names in ``state_dict`` are torchvision's: those of the layers of `body`, and ``downsample`` for the shortcut.

    Parameters
    ----------
    body : Module
        What the shortcut goes around; a layer that is no Sequential becomes one.
    shortcut : Module, optional
        Brings `x` to the shape of the body's output.
    activation : Module, optional
        Applied to the sum.

    Examples
    --------
    >>> from fastconv.layers import BatchNorm2d, Conv2d, ReLU, Residual, Sequential
    >>> block = Residual(Sequential(Conv2d(4, 4, 3, padding=1, bias=False), BatchNorm2d(4)), activation=ReLU())
    >>> [name for name, _ in block.named_parameters()]
    ['0.weight', '1.weight', '1.bias']
    """

    def __init__(self, body: Module, shortcut: Module | None = None, activation: Module | None = None) -> None:
        self.body = body if isinstance(body, Sequential) else Sequential(body)
        self.shortcut, self.activation = shortcut, activation

    def named_children(self) -> Iterator[tuple[str, Module]]:
        yield from self.body.named_children()
        for name, layer in ("activation", self.activation), ("downsample", self.shortcut):
            if layer is not None:
                yield name, layer

    def _sum(self, a: np.ndarray, b: np.ndarray, end: int) -> np.ndarray:
        """Add in place where `a` is new, from a layer at that end of the body which keeps no hold of it."""
        layer: Module = self.body
        while isinstance(layer, Sequential) and len(layer):
            layer = layer[end]
        return functional._add(a, b) if isinstance(layer, (_Weighted, BatchNorm)) else a + b

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = self._sum(self.body(x), x if self.shortcut is None else self.shortcut(x), -1)
        return y if self.activation is None else self.activation(y)

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray | None:
        if self.activation is not None:
            grad_output = self.activation.backward(grad_output)
        grad_input = self.body.backward(grad_output, needs_input_grad)
        if self.shortcut is not None:
            grad_output = self.shortcut.backward(grad_output, needs_input_grad)
        return self._sum(grad_input, grad_output, 0) if needs_input_grad else None


class Concat(Module):
    """The outputs of several branches of the same input, joined along the channels.

    Parameters
    ----------
    *branches : Module, or one mapping of str to Module
        As of :class:`Sequential`; an empty Sequential hands on its input.
    """

    def __init__(self, *branches: Module | Mapping[str, Module]) -> None:
        vars(self).update(vars(Sequential(*branches)))

    def forward(self, x: np.ndarray) -> np.ndarray:
        outputs = [branch(x) for _, branch in self.named_children()]
        self._remember([y.shape[1] for y in outputs])
        return np.concatenate(outputs, axis=1)

    def backward(self, grad_output: np.ndarray, needs_input_grad: bool = True) -> np.ndarray | None:
        (channels,) = self._recall()
        parts = np.split(grad_output, np.cumsum(channels)[:-1], axis=1)
        gradients = [
            branch.backward(part, needs_input_grad)
            for (_, branch), part in zip(self.named_children(), parts, strict=True)
        ]
        return sum(gradients[1:], gradients[0]) if needs_input_grad else None
