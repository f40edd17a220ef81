"""Layers with state, activations, blocks; losses, optimisers and schedules: numeric gradients and PyTorch."""

import copy

import numpy as np
import pytest
from test_layers import check_gradients

from fastconv import layers, losses, optim
from fastconv.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, Concat, Conv2d, Parameter, ReLU, Residual, Sequential

F64 = {"dtype": np.float64}


def body(channels):
    return Sequential(Conv2d(2, channels, 3, padding=1, bias=False, rng=0, **F64), BatchNorm2d(channels, **F64))


LAYERS = [
    (BatchNorm1d(3, **F64), (5, 3)),
    (BatchNorm1d(3, affine=False, **F64), (2, 3, 4)),
    (BatchNorm2d(2, **F64), (2, 2, 3, 4)),
    (BatchNorm3d(2, **F64), (2, 2, 2, 3, 2)),
    (layers.LocalResponseNorm(3, 0.5), (2, 4, 2, 3)),
    (layers.ReLU6(), (3, 4)),
    (layers.LeakyReLU(0.2), (3, 4)),
    (layers.Sigmoid(), (3, 4)),
    (layers.Tanh(), (3, 4)),
    (layers.SiLU(), (3, 4)),
    (layers.Hardswish(), (3, 4)),
    (layers.Softmax(1), (2, 3, 4)),
    (layers.LogSoftmax(-1), (3, 4)),
    (Residual(body(2)), (2, 2, 3, 4)),
    (Residual(body(3), Conv2d(2, 3, 1, rng=1, **F64), ReLU()), (2, 2, 3, 4)),
    (Concat(body(3), Sequential(), Conv2d(2, 1, 3, padding=1, rng=2, **F64)), (2, 2, 3, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: repr(value).replace("\n", ""))
def test_gradients_equal_numeric_differences(rng, layer, shape):
    grad_output = check_gradients(rng, layer, shape)
    layer.eval()(rng.standard_normal(shape))
    with pytest.raises(RuntimeError, match="a forward pass in training mode must come before"):
        layer.backward(grad_output)
    layer.train()


def test_names_are_torchs(torch):
    ours = Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), Sequential(BatchNorm2d(4, affine=False)))
    nn = torch.nn
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4, affine=False)))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({key: value + 1 for key, value in theirs.state_dict().items()})
    assert ours[1].num_batches_tracked == 1
    np.testing.assert_array_equal(ours[2][0].running_var, 2)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics(torch, rng, momentum):
    ours, theirs = BatchNorm2d(3, momentum=momentum), torch.nn.BatchNorm2d(3, momentum=momentum)
    for _ in range(3):
        x = rng.standard_normal((4, 3, 5, 6), np.float32)
        np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
    for (name, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        np.testing.assert_allclose(value, other.numpy(), rtol=1e-5, err_msg=name)
    before = ours.state_dict()
    x = rng.standard_normal((4, 3, 5, 6), np.float32)
    np.testing.assert_allclose(
        ours.eval()(x), theirs.eval()(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5
    )
    for name, value in ours.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_dropout(rng, dtype):
    x, layer = np.ones((100, 100), dtype), layers.Dropout(0.25, rng=0)
    y = layer(x)
    assert y.dtype == dtype
    assert set(np.unique(y)) == {0, dtype(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    np.testing.assert_array_equal(layer.backward(x), y)
    assert layer.eval()(x) is x
    np.testing.assert_array_equal(layers.Dropout(0.25, rng=0)(x), y)
    with pytest.raises(ValueError, match=r"^Dropout: p must be from 0 to below 1, got 1"):
        layers.Dropout(1)


def test_residual_names():
    block = Residual(body(3), Conv2d(2, 3, 1), ReLU())
    assert [name for name, _ in block.named_parameters()] == [
        *("0.weight", "1.weight", "1.bias"),
        *("downsample.weight", "downsample.bias"),
    ]
    block.eval()
    assert not any(module.training for module in block.modules())


def test_batch_norm_refuses_other_ranks():
    with pytest.raises(ValueError, match=r"^BatchNorm2d: x must have 4 dimensions, got 3"):
        BatchNorm2d(3)(np.ones((1, 3, 4), np.float32))
    with pytest.raises(ValueError, match=r"^BatchNorm1d: num_features must be at least 1, got 0"):
        BatchNorm1d(0)


# --- Losses, optimisers, schedules -----------------------------------------------------------------------------------


def test_mean_squared_error(torch, rng, dtype):
    x, targets = rng.standard_normal((3, 5)).astype(dtype), rng.standard_normal((3, 5)).astype(dtype)
    criterion, t = losses.MSELoss(), torch.from_numpy(x).requires_grad_()
    with pytest.raises(RuntimeError, match="there must have been a forward pass"):
        criterion.backward()
    loss = torch.nn.functional.mse_loss(t, torch.from_numpy(targets))
    loss.backward()
    assert criterion(x, targets) == pytest.approx(loss.item(), rel=1e-6)
    np.testing.assert_allclose(criterion.backward(), t.grad.numpy(), rtol=1e-6)
    assert criterion.backward().dtype == dtype
    with pytest.raises(
        ValueError, match=r"^MSELoss: targets.shape must equal predictions.shape = \(3, 5\), got \(3,\)"
    ):
        criterion(x, targets[:, 0])
    with pytest.raises(TypeError, match=r"^MSELoss: predictions.dtype must be float32 or float64, got int64"):
        criterion(np.ones(3, int), np.ones(3))


@pytest.mark.parametrize("schedule", [None, ("StepLR", {"step_size": 2}), ("CosineAnnealingLR", {"T_max": 7})])
def test_adamw_and_schedules_equal_torch(torch, rng, schedule):
    data = rng.standard_normal(20)
    ours, theirs = Parameter(data.copy()), torch.nn.Parameter(torch.from_numpy(data.copy()))
    optimizers = optim.AdamW([ours], 0.1), torch.optim.AdamW([theirs], 0.1)
    schedules = []
    if schedule:
        name, options = schedule
        schedules = [
            getattr(module, name)(optimizer, **options)
            for module, optimizer in zip((optim, torch.optim.lr_scheduler), optimizers, strict=True)
        ]
    for _ in range(5):
        ours.grad = rng.standard_normal(20)
        theirs.grad = torch.from_numpy(ours.grad.copy())
        for optimizer in optimizers:
            optimizer.step()
        for each in schedules:
            each.step()
        assert optimizers[0].lr == pytest.approx(optimizers[1].param_groups[0]["lr"], rel=1e-12)
        np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=1e-10)
    if schedule:
        state = copy.deepcopy(schedules[0].state_dict())
        other = getattr(optim, name)(optim.AdamW([ours], 0.1), **options)
        other.load_state_dict(state)
        assert other.optimizer.lr == optimizers[0].lr


@pytest.mark.parametrize(
    "body",
    [
        lambda: Conv2d(3, 3, 3, padding=1, rng=0),
        lambda: Conv2d(3, 3, 3, padding=1, padding_mode="reflect", rng=0),
        lambda: Sequential(BatchNorm2d(3), ReLU()),
        lambda: Sequential(ReLU(), Sequential(BatchNorm2d(3))),
        lambda: Sequential(),
    ],
)
def test_residual_sums_write_over_no_array_of_others(body, rng):
    """The sum is written over a body's output only where the body does not read it again."""
    x, g = rng.standard_normal((2, 2, 3, 6, 7), np.float32)
    before, alone, block = [x.copy(), g.copy()], body(), Residual(body())
    np.testing.assert_array_equal(block(x), alone(x) + x)
    np.testing.assert_array_equal(block.backward(g), alone.backward(g) + g)
    for array, kept in zip((x, g), before, strict=True):
        np.testing.assert_array_equal(array, kept)
