"""Optimisers: what a step makes of the gradients.

Updates run in place over blocks that stay in the cache, so a step allocates nothing and reads and writes each array
once, however large the parameter and however many the operations.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from .layers import Parameter

__all__ = ["SGD", "Adam", "AdamW", "CosineAnnealingLR", "Optimizer", "Schedule", "StepLR"]

BLOCK = 16384  # elements: with its two blocks of scratch and two of state, a float32 update takes 384 KiB


class Optimizer:
    """Base of the optimisers: the parameters, and the state that goes with each.

    A subclass names its options, which are attributes and may be changed between steps, and its arrays of state, and
    defines :meth:`_update` for a block of them all.

    Parameters
    ----------
    parameters : iterable of Parameter
        Such as ``model.parameters()``.
    """

    option_names: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Parameter], **options: Any) -> None:
        self.parameters = list(parameters)
        for parameter in self.parameters:
            if not isinstance(parameter, Parameter):
                self._refuse("parameters must be Parameter objects", type(parameter).__name__, TypeError)
        if not self.parameters:
            self._refuse("parameters must be at least one", "none")
        self.parameters = list(dict.fromkeys(self.parameters))  # a shared one takes one step
        self._state: list[dict[str, Any]] = [{} for _ in self.parameters]
        self._scratch = np.empty((2, BLOCK))
        self._set_options(options)

    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        for i, (parameter, state) in enumerate(zip(self.parameters, self._state, strict=True)):
            data, grad = parameter.data, parameter.grad
            if grad is None:
                continue
            if grad.shape != data.shape:
                self._refuse(f"parameters[{i}].grad.shape must equal that of its data = {data.shape}", grad.shape)
            for name in self.state_names:
                if name not in state:
                    state[name] = np.zeros_like(data)
            state["step"] = state.get("step", 0) + 1
            arrays = [array.reshape(-1) for array in (data, grad, *map(state.get, self.state_names))]
            for start in range(0, data.size, BLOCK):
                blocks = [array[start : start + BLOCK] for array in arrays]
                scratch = self._scratch.view(data.dtype)[:, : blocks[0].size]
                self._update(state["step"], *scratch, *blocks)

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for parameter in self.parameters:
            parameter.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return the options, and a copy of the state of each parameter in order."""
        options = {name: getattr(self, name) for name in self.option_names}
        return {"options": options, "state": copy.deepcopy(self._state)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned, for the same parameters in the same order.

        Raises
        ------
        ValueError
            An option is missing or unexpected, or the state is that of other parameters.
        """
        options, states = dict(state_dict["options"]), copy.deepcopy(list(state_dict["state"]))
        if options.keys() != set(self.option_names):
            self._refuse(f"options must be {', '.join(self.option_names)}", ", ".join(options))
        if len(states) != len(self.parameters):
            self._refuse(f"state must be that of {len(self.parameters)} parameters", len(states))
        for i, (parameter, state) in enumerate(zip(self.parameters, states, strict=True)):
            for name, value in state.items():
                if name != "step" and value.shape != parameter.data.shape:
                    self._refuse(f"state[{i}][{name!r}] must have shape {parameter.data.shape}", value.shape)
        self._set_options(options)
        self._state = states

    def _set_options(self, options: Mapping[str, Any]) -> None:
        """Check the options and make them attributes."""
        for name, value in options.items():
            if name not in ("betas", "nesterov") and not value >= 0:
                self._refuse(f"{name} must be at least 0", value)
        vars(self).update(options)

    def _update(self, step: int, *blocks: np.ndarray) -> None:
        """Take step number `step`, from 1; two blocks of scratch, then data, gradient and arrays of state."""
        raise NotImplementedError(f"{type(self).__name__}._update")

    def _refuse(self, rule: str, got: object, error: type[Exception] = ValueError) -> NoReturn:
        raise error(f"{type(self).__name__}: {rule}, got {got}")

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)}" for name in self.option_names)
        return f"{type(self).__name__}({options})"


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as PyTorch's.

    ::

        d = grad + weight_decay * data
        v = momentum * v + d                            (with momentum)
        data -= lr * (d + momentum * v if nesterov else v)

    Parameters
    ----------
    parameters : iterable of Parameter
        What to learn.
    lr, momentum, weight_decay : float
        At least 0.
    nesterov : bool
        Look ahead along the momentum, which must not be 0.
    """

    option_names = ("lr", "momentum", "weight_decay", "nesterov")

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Momentum alone needs an array."""
        return ("momentum_buffer",) if self.momentum else ()

    def _set_options(self, options):
        if options["nesterov"] and not options["momentum"]:
            self._refuse("momentum must be above 0 where nesterov is True", options["momentum"])
        super()._set_options(options)

    def _update(self, step, d, scratch, data, grad, velocity=None):
        if self.weight_decay:
            np.multiply(data, self.weight_decay, out=d)
            grad = np.add(d, grad, out=d)
        if velocity is not None:
            velocity *= self.momentum
            velocity += grad
            if self.nesterov:
                np.multiply(velocity, self.momentum, out=scratch)
                grad = np.add(scratch, grad, out=scratch)
            else:
                grad = velocity
        data -= np.multiply(grad, self.lr, out=scratch)


class Adam(Optimizer):
    """Adam, as PyTorch's.

    ::

        d = grad + weight_decay * data
        m += (1 - beta1) * (d - m)
        v = beta2 * v + (1 - beta2) * d * d
        data -= lr * m / (1 - beta1**step) / (sqrt(v / (1 - beta2**step)) + eps)

    Parameters
    ----------
    parameters : iterable of Parameter
        What to learn.
    lr, eps, weight_decay : float
        At least 0.
    betas : (float, float)
        From 0 to below 1.

    References
    ----------
    Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    """

    option_names = ("lr", "betas", "eps", "weight_decay")
    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)

    def _set_options(self, options):
        betas = options["betas"]
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            self._refuse("betas must be two numbers from 0 to below 1", betas)
        super()._set_options(options)

    def _decayed(self, d: np.ndarray, data: np.ndarray, grad: np.ndarray) -> np.ndarray:
        """Return the gradient with the decay in it, written to `d`."""
        np.multiply(data, self.weight_decay, out=d)
        return np.add(d, grad, out=d)

    def _update(self, step, d, scratch, data, grad, exp_avg, exp_avg_sq):
        beta1, beta2 = self.betas
        if self.weight_decay:
            grad = self._decayed(d, data, grad)
        np.subtract(grad, exp_avg, out=scratch)
        scratch *= 1 - beta1
        exp_avg += scratch
        np.multiply(grad, grad, out=scratch)
        scratch *= 1 - beta2
        exp_avg_sq *= beta2
        exp_avg_sq += scratch
        np.sqrt(exp_avg_sq, out=scratch)
        scratch /= math.sqrt(1 - beta2**step)
        scratch += self.eps
        np.divide(exp_avg, scratch, out=scratch)
        scratch *= self.lr / (1 - beta1**step)
        data -= scratch


class AdamW(Adam):
    """:class:`Adam` with decoupled weight decay, as PyTorch's: ``data *= 1 - lr * weight_decay`` before the step.

    Parameters
    ----------
    parameters, lr, betas, eps, weight_decay
        As in :class:`Adam`.

    References
    ----------
    Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def _decayed(self, d, data, grad):
        data *= 1 - self.lr * self.weight_decay
        return grad


class Schedule:
    """Base of the learning-rate schedules: after epoch number `epoch`, the rate is :meth:`rate` times the first.

    Parameters
    ----------
    optimizer : Optimizer
        Its `lr` is the first rate, and is set by :meth:`step`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.base_lr, self.epoch = optimizer, optimizer.lr, 0

    def rate(self, epoch: int) -> float:
        """Return the learning rate after `epoch` epochs."""
        raise NotImplementedError(f"{type(self).__name__}.rate")

    def step(self) -> None:
        """Set the learning rate of the next epoch."""
        self.epoch += 1
        self.optimizer.lr = self.rate(self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the first rate and the number of epochs."""
        return {"base_lr": self.base_lr, "epoch": self.epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.base_lr, self.epoch = state_dict["base_lr"], state_dict["epoch"]
        self.optimizer.lr = self.rate(self.epoch)


class StepLR(Schedule):
    """``lr * gamma ** (epoch // step_size)``.

    Parameters
    ----------
    optimizer : Optimizer
        What to schedule.
    step_size : int
        Epochs between changes.
    gamma : float
        Factor of each change.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        if step_size < 1:
            raise ValueError(f"StepLR: step_size must be at least 1, got {step_size}")
        super().__init__(optimizer)
        self.step_size, self.gamma = step_size, gamma

    def rate(self, epoch: int) -> float:
        return self.base_lr * self.gamma ** (epoch // self.step_size)


class CosineAnnealingLR(Schedule):
    """``eta_min + (lr - eta_min) * (1 + cos(pi * epoch / T_max)) / 2``.

    Parameters
    ----------
    optimizer : Optimizer
        What to schedule.
    T_max : int
        Epochs until the rate is `eta_min`.
    eta_min : float
        The last rate.

    References
    ----------
    Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        if T_max < 1:
            raise ValueError(f"CosineAnnealingLR: T_max must be at least 1, got {T_max}")
        super().__init__(optimizer)
        self.T_max, self.eta_min = T_max, eta_min

    def rate(self, epoch: int) -> float:
        return self.eta_min + (self.base_lr - self.eta_min) * (1 + math.cos(math.pi * epoch / self.T_max)) / 2
