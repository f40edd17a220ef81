"""Layers, losses and optimisers: against numeric gradients, against PyTorch, and against their own contract."""

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from fastconv import layers
from fastconv.layers import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Module, Parameter, ReLU, Sequential
from fastconv.losses import CrossEntropyLoss
from fastconv.optim import SGD, Adam

ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # of float64, through a few layers
DIFFERENCES = {"rtol": 1e-6, "atol": 1e-8}  # of central differences with a step of 1e-5

LAYERS = [
    (Conv2d(3, 4, 3, dtype=np.float64, rng=0), (2, 3, 5, 6)),
    (Conv2d(4, 6, (3, 2), (2, 1), ((1, 0), (2, 1)), (1, 2), 2, dtype=np.float64, rng=0), (2, 4, 6, 7)),
    (Conv2d(3, 3, 3, padding="same", groups=3, bias=False, dtype=np.float64, rng=0), (1, 3, 4, 4)),
    (Conv2d(2, 3, 3, dtype=np.float64, rng=0), (2, 4, 4)),
    (Linear(5, 3, dtype=np.float64, rng=0), (4, 5)),
    (Linear(5, 3, bias=False, dtype=np.float64, rng=0), (2, 3, 5)),
    (MaxPool2d(2), (2, 3, 4, 6)),
    (MaxPool2d(3, 2, 1, ceil_mode=True), (1, 2, 6, 6)),
    (AvgPool2d(2), (2, 3, 4, 6)),
    (AvgPool2d(3, 2, 1, count_include_pad=False), (1, 2, 6, 5)),
    (ReLU(), (2, 3, 4)),
    (Flatten(), (2, 3, 2, 2)),
    (Flatten(0, 1), (2, 3, 4)),
    (Sequential(Conv2d(2, 3, 3, dtype=np.float64, rng=0), ReLU(), Sequential(MaxPool2d(2), Flatten())), (2, 2, 6, 6)),
    (layers.Conv1d(3, 4, 3, 2, 2, padding_mode="reflect", dtype=np.float64, rng=0), (2, 3, 7)),
    (layers.Conv2d(2, 3, 3, padding="same", padding_mode="circular", dtype=np.float64, rng=0), (2, 4, 5)),
    (layers.Conv3d(2, 3, 2, padding=1, padding_mode="replicate", dtype=np.float64, rng=0), (1, 2, 3, 4, 3)),
    (layers.ConvTranspose1d(3, 4, 4, 2, 1, dtype=np.float64, rng=0), (2, 3, 5)),
    (layers.ConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2, True, 2, dtype=np.float64, rng=0), (2, 4, 3, 4)),
    (layers.ConvTranspose3d(2, 3, 2, 2, bias=False, dtype=np.float64, rng=0), (1, 2, 2, 3, 2)),
    (layers.MaxPool1d(2), (2, 3, 7)),
    (layers.MaxPool3d(2, 1), (1, 2, 3, 4, 3)),
    (layers.AvgPool1d(3, 2, 1), (2, 3, 7)),
    (layers.AvgPool3d(2), (1, 2, 4, 4, 2)),
    *(
        (getattr(layers, f"Adaptive{kind}Pool{n}d")(size), (2, 2, 6, 5, 4)[: n + 2])
        for kind in ("Avg", "Max")
        for n, size in ((1, 4), (2, (3, None)), (3, 1))
    ),
    *((getattr(layers, f"LPPool{n}d")(3, 2, 1), (2, 2, 4, 3, 4)[: n + 2]) for n in (1, 2, 3)),
    (layers.Unfold((3, 2), padding=1), (2, 3, 4, 5)),
    (layers.Fold((4, 5), 2, stride=2, padding=1), (2, 12, 9)),
    (Sequential(), (2, 3)),
]


def numeric_gradient(function, array, step=1e-5):
    gradient = np.empty_like(array)
    for i in np.ndindex(array.shape):
        value = array[i]
        array[i] = value + step
        above = function()
        array[i] = value - step
        gradient[i] = (above - function()) / (2 * step)
        array[i] = value
    return gradient


def check_gradients(rng, layer, shape):
    """Compare a layer's gradients, in its input and its parameters, with differences; return that of its output."""
    x = rng.standard_normal(shape)
    grad_output = rng.standard_normal(layer(x).shape)
    layer.zero_grad()
    layer(x)
    grad_input = layer.backward(grad_output)

    def scalar():
        return float(np.sum(layer(x) * grad_output))

    np.testing.assert_allclose(grad_input, numeric_gradient(scalar, x), **DIFFERENCES)
    for name, parameter in layer.named_parameters():
        expected = numeric_gradient(scalar, parameter.data)
        np.testing.assert_allclose(parameter.grad, expected, err_msg=name, **DIFFERENCES)
    return grad_output


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: repr(value).replace("\n", ""))
def test_gradients_equal_numeric_differences(rng, layer, shape):
    check_gradients(rng, layer, shape)


# --- Against PyTorch -------------------------------------------------------------------------------------------------

NETWORK = [
    ("Conv2d", (3, 8, 5, 1, 2), {}),
    ("ReLU", (), {}),
    ("MaxPool2d", (3, 2, 1, 1, False, True), {}),
    ("Conv2d", (8, 12, (3, 1)), {"groups": 4, "bias": False, "dilation": 2, "padding": "same"}),
    ("ReLU", (True,), {}),
    ("AvgPool2d", (2,), {"padding": 1, "count_include_pad": False}),
    ("Flatten", (), {}),
    ("Linear", (12 * 5 * 4, 7), {}),
    ("ReLU", (), {}),
    ("Linear", (7, 4, False), {}),
]
OURS = {cls.__name__: cls for cls in (Conv2d, ReLU, MaxPool2d, AvgPool2d, Flatten, Linear)}


def our_network(rng, dtype=np.float64):
    initial = {name: {"dtype": dtype, "rng": rng} for name in ("Conv2d", "Linear")}
    return Sequential(*(OURS[name](*args, **kwargs, **initial.get(name, {})) for name, args, kwargs in NETWORK))


@pytest.fixture
def networks(torch, rng):
    """The same network twice, with the same weights: ours and PyTorch's."""
    ours = our_network(rng)
    theirs = torch.nn.Sequential(*(getattr(torch.nn, name)(*args, **kwargs) for name, args, kwargs in NETWORK)).double()
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    return ours, theirs


def test_names_and_repr_are_those_of_torch(networks):
    ours, theirs = networks
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)


def test_outputs_and_gradients_equal_torch(torch, networks, rng):
    ours, theirs = networks
    x, labels = rng.standard_normal((3, 3, 14, 13)), np.array([3, 0, 3])
    criterion = CrossEntropyLoss()
    logits = ours(x)
    loss = criterion(logits, labels)
    grad_input = ours.backward(criterion.backward())

    their_x = torch.from_numpy(x).requires_grad_()
    their_logits = theirs(their_x)
    their_loss = torch.nn.functional.cross_entropy(their_logits, torch.from_numpy(labels))
    their_loss.backward()

    np.testing.assert_allclose(logits, their_logits.detach(), **ROUNDING)
    np.testing.assert_allclose(loss, their_loss.item(), **ROUNDING)
    np.testing.assert_allclose(grad_input, their_x.grad, **ROUNDING)
    for (name, parameter), theirs_too in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(parameter.grad, theirs_too.grad, err_msg=name, **ROUNDING)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("Conv1d", (4, 6, 3, 2, 1, 1, 2), {"padding_mode": "circular"}),
        ("Conv3d", (2, 3, (1, 2, 3)), {"bias": False, "padding": 1}),
        ("ConvTranspose1d", (4, 6, 3, 2, 1, 1, 2, False), {}),
        ("ConvTranspose2d", (4, 6, 3), {"dilation": 2, "padding": (1, 0)}),
        ("ConvTranspose3d", (2, 3, 2, 2), {}),
        ("AdaptiveAvgPool2d", ((3, None),), {}),
        ("AdaptiveMaxPool2d", (3,), {}),
        ("LPPool2d", (2, 3), {"stride": 1}),
        ("Unfold", ((2, 3),), {"padding": 1}),
    ],
)
def test_layer_equals_torch(torch, rng, name, arguments, options):
    initial = {"dtype": np.float64, "rng": rng} if name.startswith("Conv") else {}
    ours, theirs = (
        getattr(layers, name)(*arguments, **options, **initial),
        getattr(torch.nn, name)(*arguments, **options),
    )
    theirs = theirs.double()
    assert repr(ours) == repr(theirs)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    ndim = int(name[-2]) if name[-1] == "d" and name[-2].isdigit() else 2
    x = rng.standard_normal((2, arguments[0] if initial else 3, 7, 6, 5)[: ndim + 2])
    their_x = torch.from_numpy(x).requires_grad_()
    y, expected = ours(x), theirs(their_x)
    np.testing.assert_allclose(y, expected.detach(), **ROUNDING)
    g = rng.standard_normal(y.shape)
    expected.backward(torch.from_numpy(g))
    np.testing.assert_allclose(ours.backward(g), their_x.grad, **ROUNDING)
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(parameter.grad, other.grad, **ROUNDING)


def test_unpooling_puts_maxima_back(rng):
    pool, unpool = layers.MaxPool2d(2, return_indices=True), layers.MaxUnpool2d(2)
    x = rng.standard_normal((2, 3, 4, 6))
    y, indices = pool(x)
    back = unpool(y, indices)
    np.testing.assert_array_equal(back, np.where(np.isin(x, y), x, 0))
    np.testing.assert_array_equal(unpool.backward(back), y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Conv1d(3, 4, (3, 3)), "Conv1d: kernel_size must be an integer or have 1 elements"),
        (lambda: layers.Conv3d(3, 4, 3, padding_mode="mirror"), "Conv3d: padding_mode must be one of"),
        (
            lambda: layers.ConvTranspose2d(3, 4, 3, padding_mode="reflect"),
            "ConvTranspose2d: padding_mode must be 'zeros'",
        ),
        (
            lambda: layers.ConvTranspose2d(3, 4, 3, output_padding=-1),
            "ConvTranspose2d: output_padding must be at least 0",
        ),
        (
            lambda: layers.ConvTranspose2d(3, 4, 3, groups=3),
            "ConvTranspose2d: out_channels must be divisible by groups",
        ),
    ],
)
def test_wrong_layers_of_several_ranks(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_state_dict_of_torch_can_be_loaded(networks, rng):
    ours, theirs = networks
    other = our_network(np.random.default_rng(1), np.float32)
    other.load_state_dict(theirs.state_dict())
    for name, value in ours.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value.astype(np.float32), err_msg=name)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (SGD, {"lr": 0.1}),
        (SGD, {"lr": 0.1, "weight_decay": 0.02}),
        (SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02}),
        (SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02, "nesterov": True}),
        (Adam, {}),
        (Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ],
)
def test_optimizer_equals_torch(torch, rng, monkeypatch, optimizer, options):
    monkeypatch.setattr("fastconv.optim.BLOCK", 8)  # smaller than the parameter
    ours = [Parameter(rng.standard_normal((3, 7))), Parameter(rng.standard_normal(2)), Parameter(np.ones(2))]
    theirs = [torch.tensor(parameter.data, requires_grad=True) for parameter in ours]
    our_optimizer = optimizer(ours, **options)
    their_optimizer = getattr(torch.optim, optimizer.__name__)(theirs, **options)
    for step in range(5):
        if step == 3:
            our_optimizer.lr = their_optimizer.param_groups[0]["lr"] = 0.02
        for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            our.grad = None if i == 2 or (i == 1 and step == 1) else rng.standard_normal(our.data.shape)
            their.grad = None if our.grad is None else torch.from_numpy(our.grad)
        our_optimizer.step()
        their_optimizer.step()
        for our, their in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(our.data, their.detach(), **ROUNDING)


# --- Parameters ------------------------------------------------------------------------------------------------------


def test_gradients_accumulate_until_zero_grad(rng):
    layer = Conv2d(2, 3, 3, rng=rng)
    x = rng.standard_normal((2, 2, 5, 5), np.float32)
    grad_output = np.ones_like(layer(x))
    assert layer.weight.grad is None
    layer.backward(grad_output)
    once = [parameter.grad.copy() for parameter in layer.parameters()]
    with pytest.raises(RuntimeError, match="a forward pass in training mode must come before each backward pass"):
        layer.backward(grad_output)  # what the forward pass remembered has been given back
    layer(x)
    layer.backward(grad_output)
    for parameter, grad in zip(layer.parameters(), once, strict=True):
        np.testing.assert_array_equal(parameter.grad, 2 * grad)
    memory = layer.weight.grad
    layer.zero_grad()
    assert layer.weight.grad is None
    layer(x)
    layer.backward(grad_output)
    assert layer.weight.grad is memory  # a training step allocates no gradients
    for parameter, grad in zip(layer.parameters(), once, strict=True):
        np.testing.assert_array_equal(parameter.grad, grad)


def test_parameter_may_change_type_and_order(rng):
    layer = Linear(3, 2, rng=rng)
    layer(np.ones((1, 3), np.float32))
    layer.backward(np.ones((1, 2), np.float32))
    layer.weight.data = np.asfortranarray(layer.weight.data.astype(np.float64))
    layer.bias.data = layer.bias.data.astype(np.float64)
    assert layer.weight.grad is None
    assert layer.weight.data.flags.c_contiguous
    layer(np.ones((1, 3)))
    layer.backward(np.ones((1, 2)))
    assert layer.weight.grad.dtype == np.float64


def test_shared_parameter_counts_once(rng):
    first, second = Linear(3, 3, rng=rng), Linear(3, 3, bias=False, rng=rng)
    second.weight = first.weight
    model = Sequential(first, second)
    assert list(model.parameters()) == [first.weight, first.bias]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight"]
    optimizer = SGD([*first.parameters(), *second.parameters()], lr=1)
    before = first.weight.data.copy()
    first.weight.grad = np.ones((3, 3), np.float32)
    optimizer.step()
    np.testing.assert_array_equal(first.weight.data, before - 1)


def test_initialisation_is_that_of_he_and_seeded():
    conv, linear = Conv2d(64, 128, 3, groups=2, rng=7), Linear(400, 300, dtype=np.float64, rng=np.random.default_rng(7))
    for layer, fan_in in (conv, 32 * 9), (linear, 400):
        assert abs(layer.weight.data.mean()) < 1e-3
        assert layer.weight.data.std() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
        assert not layer.bias.data.any()
    assert (conv.weight.data.dtype, linear.weight.data.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(conv.weight.data, Conv2d(64, 128, 3, groups=2, rng=7).weight.data)
    assert (conv.weight.data != Conv2d(64, 128, 3, groups=2, rng=8).weight.data).any()


# --- Modules ---------------------------------------------------------------------------------------------------------


class Residual(Module):
    """A layer of one's own: children by attribute."""

    def __init__(self, rng):
        self.conv = Conv2d(2, 2, 3, padding=1, dtype=np.float64, rng=rng)
        self.scale = Parameter(np.array(0.5))
        self.relu = ReLU()

    def forward(self, x):
        y = self.conv(x)
        self._remember(y)
        return self.relu(x + self.scale.data * y)

    def backward(self, grad_output, needs_input_grad=True):
        (y,) = self._recall()
        grad = self.relu.backward(grad_output)
        self.scale.accumulate(np.sum(grad * y))
        return grad + self.conv.backward(grad * self.scale.data)


def test_module_of_ones_own(rng):
    model = Sequential(OrderedDict(body=Residual(rng), pool=AvgPool2d(2)))
    assert [name for name, _ in model.named_parameters()] == ["body.scale", "body.conv.weight", "body.conv.bias"]
    x = rng.standard_normal((1, 2, 4, 4))
    grad_output = rng.standard_normal(model(x).shape)
    grad_input = model.backward(grad_output)
    expected = numeric_gradient(lambda: float(np.sum(model(x) * grad_output)), x)
    np.testing.assert_allclose(grad_input, expected, **DIFFERENCES)
    assert not model.eval().body.conv.training
    assert model.train().body.relu.training
    twin = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(twin(x), model(x))
    assert copy.deepcopy(model).body.conv.weight is not model.body.conv.weight
    with pytest.raises(NotImplementedError, match=r"Module\.forward"):
        Module()(x)
    with pytest.raises(NotImplementedError, match=r"Module\.backward"):
        Module().backward(x)


def test_sequential_is_a_sequence():
    first, second = ReLU(), Flatten()
    model = Sequential(first, second)
    assert list(model) == [first, second]
    assert len(model) == 2
    assert model[-1] is second
    assert list(model[1:].named_children()) == [("1", second)]
    with pytest.raises(ValueError, match="'1' must be a layer of its own"):
        Sequential(first, first)
    with pytest.raises(ValueError, match="'1' must be a layer of its own"):
        Sequential(Sequential(first), Sequential(first))
    with pytest.raises(TypeError, match="'0' must be a Module, got function"):
        Sequential(lambda x: x)


@pytest.mark.parametrize(("layer", "shape"), LAYERS[:-1], ids=lambda value: repr(value).replace("\n", ""))
def test_backward_needs_a_forward_in_training_mode(layer, shape):
    layer, x = copy.deepcopy(layer), np.ones(shape)
    y = layer.train()(x)
    layer.eval()(x)
    with pytest.raises(RuntimeError, match=r"\w+\.backward: a forward pass in training mode must come before"):
        layer.backward(y)
    layer.train()
    with pytest.raises(RuntimeError, match="training mode"):
        layer.backward(y)
    layer(x)
    layer.eval()  # the forward pass was in training mode: this is its backward
    assert layer.backward(y).shape == x.shape


def test_backward_without_forward():
    with pytest.raises(RuntimeError, match=r"ReLU\.backward: .* got none"):
        ReLU().backward(np.ones(3))


def test_input_gradient_is_skipped_on_request(rng):
    model = Sequential(ReLU(), Conv2d(2, 3, 3, rng=rng), ReLU(), Flatten(), Linear(27, 2, rng=rng))
    x = rng.standard_normal((2, 2, 5, 5), np.float32)
    y = model(x)
    assert model.backward(y).shape == x.shape
    expected = [parameter.grad.copy() for parameter in model.parameters()]
    model.zero_grad()
    model(x)
    assert model.backward(y, needs_input_grad=False) is None
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        np.testing.assert_array_equal(parameter.grad, grad)
    model[1](x)
    assert model[1].backward(np.ones((2, 3, 3, 3), np.float32), needs_input_grad=False) is None


def test_max_pool_can_return_indices(rng):
    layer, x = MaxPool2d(2, None, 0, 1, True), rng.standard_normal((1, 1, 4, 4))
    y, indices = layer(x)
    np.testing.assert_array_equal(x.ravel()[indices.ravel()], y.ravel())
    assert np.count_nonzero(layer.backward(np.ones_like(y))) == 4
    assert layer.eval()(x)[1].dtype == np.int64


def test_relu_in_place(rng):
    x = rng.standard_normal((3, 4))
    expected = np.maximum(x, 0)
    layer = ReLU(inplace=True)
    assert layer(x) is x
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(layer.backward(np.ones_like(x)), expected > 0)


# --- State -----------------------------------------------------------------------------------------------------------


def test_state_dict_round_trip(rng):
    model, other = our_network(rng), our_network(rng)
    x = rng.standard_normal((1, 3, 14, 13))
    weight = other[0].weight.data
    state = model.state_dict()
    other.load_state_dict(state)
    np.testing.assert_array_equal(other(x), model(x))
    assert other[0].weight.data is weight  # filled in place
    state["0.weight"][:] = 0
    assert model[0].weight.data.all()  # a state is a copy


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"0.bias": None}, ValueError, "keys must be those of Sequential, got missing '0.bias'"),
        ({"0.extra": np.ones(1)}, ValueError, "keys must be those of Sequential, got unexpected '0.extra'"),
        ({"0.bias": np.ones(2)}, ValueError, r"'0.bias' must have shape \(1,\), got \(2,\)"),
        ({"0.bias": np.ones(1, complex)}, TypeError, "'0.bias' must be castable to float32, got complex128"),
    ],
)
def test_load_state_dict_is_strict_and_all_or_nothing(change, error, message):
    model = Sequential(Linear(1, 1, rng=0))
    before = model.state_dict()
    state = {"0.weight": np.full((1, 1), 9.0), "0.bias": np.ones(1)} | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(error, match=message):
        model.load_state_dict(state)
    assert model.state_dict() == before


def test_load_state_dict_need_not_be_strict():
    model = Sequential(Linear(1, 1, rng=0))
    model.load_state_dict({"0.weight": [[5]], "other": 1}, strict=False)
    assert model[0].weight.data == 5


@pytest.mark.parametrize("optimizer", [lambda p: SGD(p, 0.1, 0.9, nesterov=True), Adam])
def test_optimizer_state_round_trip(rng, optimizer):
    def steps(optimizer):
        for grad in np.random.default_rng(3).standard_normal((3, 4)):
            optimizer.parameters[0].grad = grad
            optimizer.step()

    first, second = Parameter(np.ones(4)), Parameter(np.ones(4))
    one, other = optimizer([first]), optimizer([second])
    steps(one)
    one.lr = 0.3
    second.data[...] = first.data
    other.load_state_dict(pickle.loads(pickle.dumps(one.state_dict())))
    steps(one)
    steps(other)
    assert repr(other) == repr(one)
    np.testing.assert_array_equal(first.data, second.data)
    with pytest.raises(ValueError, match="state must be that of 2 parameters, got 1"):
        optimizer([first, second]).load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match=r"state\[0\]\['\w+'\] must have shape \(5,\), got \(4,\)"):
        optimizer([Parameter(np.ones(5))]).load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match=r"options must be lr, .*, got lr"):
        one.load_state_dict({"options": {"lr": 1}, "state": []})


def test_optimizer_step_keeps_type_and_zero_grad_clears(dtype):
    parameter = Parameter(np.ones(3, dtype))
    data = parameter.data
    for optimizer in SGD([parameter], lr=1, momentum=0.5, weight_decay=0.1), Adam([parameter], weight_decay=0.1):
        parameter.grad = np.ones(3, dtype)
        optimizer.step()
        assert parameter.data is data
        assert data.dtype == dtype
        optimizer.zero_grad()
        assert parameter.grad is None


# --- Loss ------------------------------------------------------------------------------------------------------------


def test_loss_gradient_equals_numeric_differences(rng):
    criterion, logits, labels = CrossEntropyLoss(), rng.standard_normal((4, 5)), np.array([0, 4, 2, 2], np.uint8)
    criterion(logits, labels)
    np.testing.assert_allclose(criterion.probabilities.sum(axis=1), 1)
    expected = numeric_gradient(lambda: CrossEntropyLoss()(logits, labels), logits)
    np.testing.assert_allclose(criterion.backward(), expected, **DIFFERENCES)


def test_loss_is_stable(dtype):
    criterion = CrossEntropyLoss()
    logits = np.array([[1e30, 0, -1e30], [-np.inf, 0, 0], [1e4, 1e4, 1e4]], dtype)
    assert criterion(logits, [0, 1, 2]) == pytest.approx((np.log(2) + np.log(3)) / 3)
    assert criterion.backward().dtype == dtype
    assert criterion(logits[:1], [1]) == pytest.approx(1e30)


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Conv2d(0, 4, 3), ValueError, "Conv2d: in_channels must be at least 1, got 0"),
        (lambda: Conv2d(3, 4.0, 3), TypeError, "Conv2d: out_channels must be an integer.*got 4.0"),
        (lambda: Conv2d(3, 4, 0), ValueError, "Conv2d: kernel_size must be at least 1, got 0"),
        (lambda: Conv2d(3, 4, (3, 3, 3)), ValueError, "Conv2d: kernel_size must be an integer or have 2 elements"),
        (lambda: Conv2d(3, 4, 3, stride=0), ValueError, "Conv2d: stride must be at least 1, got 0"),
        (lambda: Conv2d(3, 4, 3, groups=2), ValueError, "Conv2d: in_channels must be divisible by groups = 2, got 3"),
        (lambda: Conv2d(4, 3, 3, groups=2), ValueError, "Conv2d: out_channels must be divisible by groups = 2, got 3"),
        (lambda: Conv2d(3, 4, 3, dtype=np.float16), TypeError, "Conv2d: dtype must be float32 or float64, got float16"),
        (lambda: Linear(3, -1), ValueError, "Linear: out_features must be at least 1, got -1"),
        (lambda: Conv2d(3, 4, 3)(np.ones((1, 2, 5, 5), "f")), ValueError, "conv2d: weight.shape.1. must equal"),
        (lambda: Conv2d(3, 4, 3)(np.ones((1, 3, 5, 5))), TypeError, "conv2d: .*float64.*cast with"),
        (lambda: SGD([]), ValueError, "SGD: parameters must be at least one, got none"),
        (lambda: SGD([np.ones(3)]), TypeError, "SGD: parameters must be Parameter objects, got ndarray"),
        (lambda: SGD([Parameter(np.ones(3))], lr=-1), ValueError, "SGD: lr must be at least 0, got -1"),
        (lambda: SGD([Parameter(np.ones(3))], nesterov=True), ValueError, "SGD: momentum must be above 0"),
        (lambda: Adam([Parameter(np.ones(3))], betas=(0.9, 1)), ValueError, "Adam: betas must be two numbers"),
        (lambda: CrossEntropyLoss()(np.ones((2, 3), int), [0, 0]), TypeError, "logits.dtype must be .* got int64"),
        (lambda: CrossEntropyLoss()(np.ones((2, 3)), [0.0, 1.0]), TypeError, "labels.dtype must be .* got float64"),
        (lambda: CrossEntropyLoss()(np.ones(3), [0]), ValueError, r"logits must have shape \(n, classes\).*got \(3,\)"),
        (lambda: CrossEntropyLoss()(np.ones((0, 3)), [0]), ValueError, r"logits must have .*at least 1, got \(0, 3\)"),
        (
            lambda: CrossEntropyLoss()(np.ones((2, 3)), [0]),
            ValueError,
            r"labels.shape must equal .* \(2,\), got \(1,\)",
        ),
        (lambda: CrossEntropyLoss()(np.ones((2, 3)), [0, 3]), ValueError, r"labels\[1\] must be in 0 ... 2, got 3"),
        (lambda: CrossEntropyLoss()(np.ones((2, 3)), [-1, 0]), ValueError, r"labels\[0\] must be in 0 ... 2, got -1"),
        (lambda: CrossEntropyLoss().backward(), RuntimeError, "CrossEntropyLoss.backward: there must have been a forw"),
    ],
)
def test_errors_name_argument_rule_and_value(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_gradient_of_another_shape_is_refused():
    parameter = Parameter(np.ones((2, 3)))
    parameter.grad = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"parameters\[0\].grad.shape must equal .* = \(2, 3\), got \(3, 2\)"):
        SGD([parameter]).step()
