"""The demo: it learns, it writes its pictures, and it says so if it cannot."""

import argparse
import sys

import numpy as np
import pytest

import fastconv
from fastconv import demo

for extra in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(extra)


def run(*arguments):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.run(parser.parse_args([*arguments, "--threads", "1"]))


def assert_is_a_picture(path):
    from matplotlib.image import imread

    picture = imread(path)
    assert min(picture.shape[:2]) > 1000
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 1000


def test_lenet_learns_digits(tmp_path, capsys):
    threads, out = fastconv.get_num_threads(), tmp_path / "digits.png"
    assert run("--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "test accuracy 9" in printed
    assert f"wrote {out}" in printed
    assert_is_a_picture(out)
    assert fastconv.get_num_threads() == threads


def test_too_little_training_fails(tmp_path, capsys):
    assert run("--epochs", "1", "--batch-size", "256", "--out", str(tmp_path / "digits.png")) == 1
    assert "test accuracy must be at least 98%, got" in capsys.readouterr().err


def test_photo(tmp_path):
    out = tmp_path / "photo.png"
    assert run("--photo", "--out", str(out)) == 0
    assert_is_a_picture(out)


def test_missing_extra_is_explained(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert run() == 1
    assert capsys.readouterr().err == "fastconv demo: sklearn must be installed: pip install 'fastconv[demo]'\n"


def test_unwritable_picture_is_reported(tmp_path, capsys):
    assert run("--photo", "--out", str(tmp_path / "nowhere" / "photo.png")) == 1
    assert "No such file" in capsys.readouterr().err


def test_split_is_stratified_and_seeded():
    images, test_images, labels, test_labels = demo.digits(0)
    assert (images.shape, test_images.shape, images.dtype) == ((1437, 8, 8), (360, 8, 8), np.float32)
    assert (len(labels), len(test_labels)) == (1437, 360)
    assert (images.min(), images.max()) == (0, 1)
    assert np.ptp(np.bincount(test_labels)) <= 2
    np.testing.assert_array_equal(demo.digits(0)[3], test_labels)
    assert (demo.digits(1)[3] != test_labels).any()


def test_training_is_bitwise_repeatable():
    images, _, labels, _ = demo.digits(0)

    def weights(threads):
        rng = np.random.default_rng(5)
        model = demo.lenet(rng)
        with fastconv.threads(threads):
            losses = [loss for loss, _ in demo.training(model, images[:64], labels[:64], 1, 32, rng)]
        return losses, model.state_dict()

    (losses, one), (other_losses, other) = weights(1), weights(2)
    assert losses == other_losses
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_enlarged_keeps_corners_and_is_distorted_only_on_request(rng):
    images = rng.random((3, 8, 8), np.float32)
    large = demo.enlarged(images)
    assert (large.shape, large.dtype) == ((3, 1, 28, 28), np.float32)
    np.testing.assert_allclose(demo.enlarged(np.ones((1, 8, 8), np.float32))[0, 0, 2:-2, 2:-2], 1, rtol=1e-6)
    assert (demo.enlarged(images, rng) != large).any()
