"""The demos: they learn, they write their pictures, and they say so if they cannot."""

import argparse
import importlib
import sys

import numpy as np
import pytest

import fastconv
from fastconv import demo
from fastconv.demo import brain, digits, drawing, faces, figures, images, photo, text

for extra in ("matplotlib", "nibabel", "skimage", "sklearn"):
    pytest.importorskip(extra)


def run(*arguments):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.run(parser.parse_args([*map(str, arguments), "--threads", "1"]))


def assert_is_a_picture(path):
    from matplotlib.image import imread

    picture = imread(path)
    assert min(picture.shape[:2]) > 800
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 200


# --- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "printed"),
    [
        ("photo", {}, ""),
        ("faces", {"REQUIRED_ACCURACY": 0}, "of 80 images that were held out"),
        ("brain", {"REQUIRED_GAIN": -99, "PIECES": 8}, "PSNR in the slices that were held out: noisy 16."),
        (
            "text",
            {"REQUIRED_ACCURACY": 0, "FILES": 30, "TRAINING_WINDOWS": 4, "SAMPLE": 4},
            "files by their 10 windows",
        ),
    ],
)
def test_demo_writes_its_picture(name, settings, printed, tmp_path, capsys, monkeypatch):
    for setting, value in settings.items():
        monkeypatch.setattr(importlib.import_module(f"fastconv.demo.{name}"), setting, value)
    threads, out = fastconv.get_num_threads(), tmp_path / f"{name}.png"
    assert run(name, "--epochs", 1, "--out", out) == 0
    output = capsys.readouterr().out
    assert printed in output
    assert f"wrote {out}" in output
    assert_is_a_picture(out)
    assert fastconv.get_num_threads() == threads


def test_figures_are_four(tmp_path):
    assert run("figures", "--epochs", 1, "--out", tmp_path / "f.png") == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["f-maps.png", "f-over-fitting.png", "f-pooling.png", "f-window.png"]
    for name in names:
        assert_is_a_picture(tmp_path / name)


def test_too_little_training_fails(tmp_path, capsys):
    assert run("digits", "--epochs", 1, "--out", tmp_path / "digits.png") == 1
    printed = capsys.readouterr()
    assert "of 360 digits that were held out" in printed.out
    assert "fastconv demo: digits: test accuracy must be at least 99.0%, got" in printed.err
    assert_is_a_picture(tmp_path / "digits.png")


def test_missing_extra_is_explained(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert run() == 1
    assert capsys.readouterr().err == "fastconv demo: sklearn must be installed: pip install 'fastconv[demo]'\n"


def test_unwritable_picture_is_reported(tmp_path, capsys):
    assert run("photo", "--out", tmp_path / "nowhere" / "photo.png") == 1
    assert "No such file" in capsys.readouterr().err


def test_every_module_is_offered():
    assert set(demo.DEMOS) == {
        module.__name__.split(".")[-1] for module in (brain, digits, faces, figures, photo, text)
    }
    with pytest.raises(SystemExit):
        run("unheard-of")


def test_require():
    drawing.require("accuracy", 0.95, 0.95)
    with pytest.raises(ValueError, match=r"^accuracy must be at least 95\.0%, got 94\.9%$"):
        drawing.require("accuracy", 0.949, 0.95)


# --- Data ------------------------------------------------------------------------------------------------------------


def test_digits_are_split_by_class_and_seed():
    train, test, labels, test_labels = digits.digits(0)
    assert (train.shape, test.shape, train.dtype) == ((1437, 8, 8), (360, 8, 8), np.float32)
    assert (len(labels), len(test_labels)) == (1437, 360)
    assert (train.min(), train.max()) == (0, 1)
    assert np.ptp(np.bincount(test_labels)) <= 2
    np.testing.assert_array_equal(digits.digits(0)[3], test_labels)
    assert (digits.digits(1)[3] != test_labels).any()


def test_faces_are_split_by_class_and_seed():
    train, test, labels, test_labels = faces.faces(0)
    assert (train.shape, test.shape, train.dtype) == ((120, 25, 25), (80, 25, 25), np.float32)
    np.testing.assert_array_equal([np.bincount(labels), np.bincount(test_labels)], [[60, 60], [40, 40]])
    assert len(np.unique(np.concatenate([train, test]).reshape(200, -1), axis=0)) > 195  # no image is in both parts
    assert (faces.faces(1)[1] != test).any()


def test_brain_is_learned_from_other_slices(rng):
    volume = np.zeros((24, 96, 128), np.float32)
    volume[brain.TEST] = np.nan
    volume[brain.LOW] = volume[brain.HIGH] = 1
    pieces = brain.pieces(volume, rng, 20)
    assert pieces.shape == (20, 1, *brain.PIECE)
    assert (pieces == 1).all()
    assert brain.scan().shape == volume.shape


def test_files_of_text_are_long_enough_and_seeded(monkeypatch):
    monkeypatch.setattr(text, "FILES", 25)
    python, headers = text.sources(np.random.default_rng(0))
    assert len(python) == len(headers) == 25
    assert {path.suffix for path in python} == {".py"}
    assert {path.suffix for path in headers} == {".h"}
    assert text.sources(np.random.default_rng(0)) == [python, headers]
    codes, labels = text.windows([python[:2], headers[:2]], 3)
    assert (codes.shape, codes.dtype, labels.tolist()) == ((12, text.LENGTH), np.uint8, [0] * 6 + [1] * 6)
    assert text.one_hot(codes).sum() == codes.size


def test_missing_headers_are_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(np, "get_include", lambda: str(tmp_path))
    monkeypatch.setattr(
        text.sysconfig,
        "get_path",
        lambda name, path=text.sysconfig.get_path: str(tmp_path) if name == "include" else path(name),
    )
    assert run("text") == 1
    assert f"text: C headers must be at least 20, in {tmp_path}, got 0" in capsys.readouterr().err


def test_text_survives_encoding(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n~é", encoding="utf-8")
    assert text.decoded(text.encoded(tmp_path / "a.py")) == "x = 1⏎~⏎⏎"


# --- Distortion, measures --------------------------------------------------------------------------------------------


def test_resampled_keeps_its_size_and_is_distorted_only_on_request(rng):
    pictures = rng.random((3, 8, 8), np.float32)
    np.testing.assert_allclose(images.resampled(pictures, 8), pictures, atol=1e-2)
    large = digits.enlarged(pictures)
    assert (large.shape, large.dtype) == ((3, 1, 28, 28), np.float32)
    np.testing.assert_allclose(digits.enlarged(np.ones((1, 8, 8), np.float32))[0, 0, 2:-2, 2:-2], 1, rtol=1e-6)
    assert (digits.enlarged(pictures, rng) != large).any()


def test_resampled_mirrors(rng):
    ramp = np.broadcast_to(np.arange(9, dtype=np.float32), (40, 9, 9))
    rising = np.diff(images.resampled(ramp, 9, rng=rng, mirror=True)[:, 4, 1:8]) > 0
    assert set(rising.all(axis=1)) == {True, False}
    assert (rising.all(axis=1) | ~rising.any(axis=1)).all()


def test_noise_and_its_ratio(rng):
    clean = np.ones((40, 40, 40), np.float32)
    ratio = brain.psnr(brain.noisy(clean, rng), clean)
    assert abs(ratio + 20 * np.log10(brain.NOISE)) < 0.1


def test_what_a_character_contributes():
    class Counting(fastconv.layers.Module):
        """The log-odds are three times the number of semicolons."""

        def forward(self, x):
            count = x[:, ord(";") - 32].sum(axis=1)
            return np.stack([-count, 2 * count], axis=1)

    window = np.array([ord(character) - 32 for character in "a;b;"], np.uint8)
    np.testing.assert_array_equal(text.contributions(Counting(), window), [0, 3, 0, 3])


def test_unlike_maps_are_chosen(rng):
    one, other = rng.standard_normal((2, 6, 6))
    assert sorted(figures.unlike(np.stack([one, 2 * one, other, -one]), 2)) == [1, 2]


def test_training_is_bitwise_repeatable():
    pictures, _, labels, _ = digits.digits(0)

    def weights(threads):
        with fastconv.threads(threads):
            model, history = digits.train(pictures[:64], labels[:64], 1, 5, progress=False)
        return history[0].loss, model.state_dict()

    (loss, one), (other_loss, other) = weights(1), weights(2)
    assert loss == other_loss
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
