"""The training loop: it learns, resumes bit for bit, saves on Ctrl-C and says what it does."""

import os
import signal
import sys

import numpy as np
import pytest

import fastconv
from fastconv.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, ReLU, Sequential
from fastconv.losses import MSELoss
from fastconv.optim import SGD, Adam, StepLR

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 40)
IMAGES = (RNG.standard_normal((40, 1, 6, 6)) + 2 * LABELS[:, None, None, None]).astype(np.float32)


def network():
    layers = Conv2d(1, 4, 3, rng=0), BatchNorm2d(4), ReLU(), Flatten(), Dropout(0.3, rng=1), Linear(64, 2, rng=2)
    return Sequential(*layers)


def train(model, epochs, augment=None, **options):
    optimizer = Adam(model.parameters(), 0.01)
    schedule = StepLR(optimizer, 2)
    options = {"batch_size": 16, "rng": 3, "progress": False} | options
    return fastconv.fit(
        model, (IMAGES, LABELS), epochs, optimizer=optimizer, schedule=schedule, augment=augment, **options
    )


def results(history):
    return [(epoch.loss, epoch.accuracy) for epoch in history]


def assert_same(a, b):
    for (key, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=key)


def noisy(x, rng):
    return x + 0.1 * rng.standard_normal(x.shape, np.float32)


def test_learns():
    model = network()
    history = fastconv.fit(model, (IMAGES, LABELS), 20, rng=0, progress=False)
    assert history[-1].loss < history[0].loss
    assert history[-1].accuracy > 0.9
    assert history[-1].images_per_second > 0
    assert (model.eval()(IMAGES).argmax(axis=1) == LABELS).mean() > 0.9


def test_resumes_bit_for_bit(tmp_path):
    straight, broken, path = network(), network(), tmp_path / "state"
    expected = train(straight, 5, noisy)
    train(broken, 2, noisy, checkpoint=path)
    resumed = network()
    assert results(train(resumed, 5, noisy, checkpoint=path)) == results(expected)
    assert_same(straight, resumed)
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    assert results(train(resumed, 5, noisy, checkpoint=path)) == results(expected)  # nothing is left to do


@pytest.mark.parametrize("at", [2, 3, 5])
def test_interrupt_saves_and_resumes_bit_for_bit(tmp_path, at):
    """Ctrl-C in the midst of a step; 3 is the last of an epoch."""
    straight, path, calls = network(), tmp_path / "state", []
    expected = train(straight, 3, noisy)

    def interrupted(x, rng):
        calls.append(x)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return noisy(x, rng)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(network(), 3, interrupted, checkpoint=path)
    assert len(calls) == at
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = network()
    assert results(train(resumed, 3, noisy, checkpoint=path)) == results(expected)
    assert_same(straight, resumed)


def test_interrupt_within_a_step_leaves_the_checkpoint(tmp_path, monkeypatch):
    """As the second Ctrl-C does."""
    straight, path = network(), tmp_path / "state"
    expected = train(straight, 3)
    train(network(), 1, checkpoint=path)

    def backward(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Linear, "backward", backward)
        with pytest.raises(KeyboardInterrupt):
            train(network(), 3, checkpoint=path)
    resumed = network()
    assert results(train(resumed, 3, checkpoint=path)) == results(expected)
    assert_same(straight, resumed)


@pytest.mark.parametrize("rich", [True, False])
def test_progress(capsys, monkeypatch, rich):
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    train(network(), 2, progress=True)
    text = capsys.readouterr().out
    assert "epoch 2/2" in text
    if not rich:
        assert text.count("accuracy") == 2


def test_other_criteria():
    model = Sequential(Flatten(), Linear(36, 3, rng=0))
    targets = RNG.standard_normal((40, 3)).astype(np.float32)
    optimizer = SGD(model.parameters(), 0.01)
    history = fastconv.fit(model, (IMAGES, targets), 5, optimizer=optimizer, criterion=MSELoss(), rng=0, progress=False)
    assert history[-1].loss < history[0].loss
    assert np.isnan(history[-1].accuracy)


def test_refused():
    with pytest.raises(ValueError, match=r"^fit: epochs must be at least 1, got 0"):
        fastconv.fit(network(), (IMAGES, LABELS), 0)
    with pytest.raises(ValueError, match=r"^fit: data must be as many images as targets, at least 1, got 40, 3"):
        fastconv.fit(network(), (IMAGES, LABELS[:3]))
