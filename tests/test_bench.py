"""The benchmark: its shapes, its clock, every library's results, and the command line."""

import importlib.util
import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

import fastconv
from fastconv import functional, geometry, models
from fastconv.__main__ import main
from fastconv.bench import timing
from fastconv.bench.cases import SUITES, load_cases
from fastconv.bench.memory import peak_memory
from fastconv.bench.numpy_peer import NumPy, NumPyProcess, error
from fastconv.bench.peers import PEERS, FastConv
from fastconv.bench.suite import WRONG, Record, Report, Result

SMALL = load_cases(pattern="lenet|relu_19kb|pixel_3x3|odd_41")
VOLUMES = [  # operators of other ranks, with few channels and pixels
    replace(case, x_shape=(1, 4, *(min(size, 6) for size in case.x_shape[2:])), oc=4)
    for case in load_cases(["operators"], "unet3d|wavenet_d1/|dcgan_2|max3d|avg3d")
]
NETWORKS = [  # on small images
    replace(case, x_shape=(2, 3, 64, 64)) for case in load_cases(["networks"], "resnet18_b8|mobilenet_v2_b8/inference")
]
TINY = timing.Budget(rounds=2, block=0, gap=0)


@pytest.mark.parametrize("suite", SUITES)
def test_shapes_are_what_the_operators_make_of_them(suite):
    cases = load_cases([suite])
    assert len({str(case) for case in cases}) == len(cases) > 0
    for case in cases:
        windows, ndim = case.windows, len(case.kernel)
        if case.weighted:  # a transposed convolution goes from the output of a convolution to its input
            x_shape, out_shape = (case.x_shape, case.out_shape)[:: -1 if case.transposed else 1]
            g = geometry.conv_geometry("", ndim, x_shape, case.weight_shape, **windows)
            assert out_shape == g.out_shape
            assert case.flop == 2 * g.macs * (1 + (case.direction == "backward"))
        elif case.op != "relu":
            g = geometry.pool_geometry("", ndim, case.x_shape, **windows | {"dilation": 1}, ceil_mode=False)
            assert case.out_shape == (*case.x_shape[:2], *g.out_size[-ndim:])


def test_filter_searches_the_identity():
    assert [str(case) for case in load_cases(pattern="s/res3_3x3/")] == [
        "layers/res3_3x3/forward",
        "layers/res3_3x3/backward",
    ]


def test_error_is_relative_to_the_largest_value_of_each_result():
    expected = np.array([0.0, 4.0]), np.array([100.0])
    assert error((np.array([0.0, 3.0]), np.array([110.0])), expected) == 0.25
    assert error((np.zeros(3), np.array([100.0])), expected) == np.inf
    assert error((np.array([0.0, np.nan]), np.array([100.0])), expected) == np.inf


def test_a_block_discards_a_call_and_gives_the_median(monkeypatch):
    ticks = itertools.accumulate([0, 50, 0, 0, 1, 0, 9, 0, 2])  # start; discarded; start; three calls of 1, 9 and 2
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(ticks)))
    calls = []
    assert timing.time_block(lambda: calls.append(None), 0, calls=3) == 2
    assert len(calls) == 4


def test_every_round_begins_with_another_library():
    order = []
    blocks = {name: lambda seconds, name=name: order.append(name) or 1.0 for name in "abc"}
    times, gauged = timing.alternate(blocks, timing.Budget(rounds=3, block=0, gap=0), lambda: 7.0)
    assert "".join(order) == "abcbcacab"
    assert times == {name: [1.0] * 3 for name in "abc"}
    assert gauged == [7.0] * 3


def marked(name):
    return pytest.param(name, marks=pytest.mark.torch) if name.startswith("torch") else name


@pytest.mark.parametrize("name", [marked(name) for name in (FastConv.name, NumPy.name, *PEERS)])
@pytest.mark.filterwarnings("default")  # what other libraries warn of at import is their affair
def test_every_library_computes_every_operator(name):
    try:
        library = ({FastConv.name: FastConv, NumPy.name: NumPy} | PEERS)[name](1)
    except ImportError as failure:
        pytest.skip(str(failure))
    ran = set()
    for case in (*SMALL, *VOLUMES, *NETWORKS):
        arrays = case.arrays()
        if (call := library.prepare(case, arrays)) is not None:
            call()
            assert error(library.outputs(call()), case.expected(arrays)) < WRONG, case
            ran.add((case.op, case.direction))
    assert ran >= {(case.op, "forward") for case in SMALL}
    if name in ("fastconv", "torch"):
        assert ran == {(case.op, case.direction) for case in (*SMALL, *VOLUMES, *NETWORKS)}
    elif name in ("onnxruntime", "openvino", "MNN"):
        assert ("network", "inference") in ran


@pytest.mark.parametrize("case", load_cases(["networks"], "training"), ids=str)
def test_networks_have_the_multiplications_that_are_counted(case, no_random_numbers, monkeypatch):
    macs = []

    def convolve(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, **options):
        g = geometry.conv_geometry("conv2d", 2, x.shape, weight.shape, stride, padding, dilation, groups)
        macs.append(g.macs)
        return np.zeros(g.out_shape, np.float32)

    def multiply(x, weight, bias=None):
        macs.append(weight.size)
        return np.zeros((1, len(weight)), np.float32)

    monkeypatch.setattr(functional, "conv2d", convolve)
    monkeypatch.setattr(functional, "linear", multiply)
    getattr(models, case.model_name)(rng=no_random_numbers).eval()(np.zeros((1, *case.x_shape[1:]), np.float32))
    assert sum(macs) == pytest.approx(case.macs, rel=2e-3)


def test_memory_of_a_process(monkeypatch):
    case = NETWORKS[0]
    before, peak = peak_memory(FastConv.name, case, 1) or pytest.skip("no Linux")
    assert 4 * 11_689_512 < before < peak < 2**30  # the weights, and what a step adds: gradients and momentum at least
    assert peak - before > 2 * 4 * 11_689_512


def test_numpy_in_its_process():
    case = SMALL[0]
    with NumPyProcess(1) as numpy:
        expected, own_error = numpy.prepare(case)()
        np.testing.assert_array_equal(expected[0], case.expected(case.arrays())[0])
        assert 0 < own_error < 1e-6
        assert numpy.time_block(0) > 0
        with pytest.raises(AttributeError):
            numpy._call("nothing")()
    assert numpy._process.exitcode == 0


@pytest.fixture
def report():
    """A report in which fastconv is twice as fast as anything, and thrice in its other layout."""
    names = ("NumPy", *PEERS, "fastconv 1 thread", "fastconv gemm")
    records = []
    for case in load_cases((*SUITES, "networks")):
        results = {name: Result(2.0, 2.0, 2e-6) for name in names} | {FastConv.name: Result(1.0, 1.0, 1e-6)}
        results[f"{FastConv.name} channels_last"] = Result(2 / 3, 2 / 3, 1e-6)
        results["ncnn"] = Result(unavailable="wrong result")
        if getattr(case, "memory", False):
            results[FastConv.name].memory = (2**29, 2**30)
        records.append(Record(case, 1e11, results))
    machine = dict.fromkeys(("processor", "isa", "python", "blas"), "") | {"threads": 2, "environment": {}}
    libraries = dict.fromkeys((*names, FastConv.name), "1.0")
    return Report(machine | {"libraries": libraries, "micro_kernel": {}, "bandwidth": 1e10}, records)


def test_reports_survive_json(report):
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_figures(report):
    pytest.importorskip("rich")
    from fastconv.bench.report import figures

    means = {figure.name: (round(figure.mean, 6), round(figure.worst, 6)) for figure in figures(report)}
    assert means["layers, against the best peer of each, forward"] == (2, 2)
    assert means["layers, against torch, backward"] == (2, 2)
    assert means["depthwise, against torch, each in its best layout, forward"] == (3, 3)
    assert means["pooling, against torch, both on NHWC, backward"] == (3, 3)
    assert means["error, over that of direct summation, forward"] == (0.5, 0.5)
    assert means["networks, batch 8, against the best peer of each, inference"] == (2, 2)
    assert means["networks, against torch, the better layout, training"] == (2, 2)
    assert means["operators, against torch, the better layout, backward"] == (2, 2)
    assert "layers, against ncnn, forward" not in means
    assert "layers, against the best peer of each, backward" not in means


def test_tables_of_networks_and_operators(report):
    console = pytest.importorskip("rich.console").Console(record=True, width=200, file=io.StringIO())
    from fastconv.bench.report import print_report

    print_report(report, console)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["resnet152_b2,", "training", "fastconv", "512", "1024", "512"] in lines
    for case in ("resnet50_b8", "c3d_1", "dcgan_2"):
        assert sum(case in line for line in lines) == 2


def test_plot(report, tmp_path):
    for package in ("rich", "matplotlib"):
        pytest.importorskip(package)
    from fastconv.bench.plot import plot

    for name, records in (("all", report.records[:12]), ("relu", [r for r in report.records if r.case.op == "relu"])):
        path = tmp_path / f"{name}.png"
        plot(Report(report.machine, records), path)
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="--plot must have"):
        plot(Report(report.machine, [r for r in report.records if r.case.suite == "networks"]), path)


def test_bench_measures_prints_and_writes(tmp_path, capsys):
    pytest.importorskip("rich")
    path = tmp_path / "result.json"
    before = fastconv.get_num_threads()
    try:
        assert main(["bench", "--quick", "--filter", "lenet1_b1/forward", "--threads", "1", "--json", str(path)]) == 0
    finally:
        fastconv.set_num_threads(before)
    printed = capsys.readouterr().out
    assert "lenet1_b1" in printed
    assert "of the FMA peak of one core" in printed
    result = json.loads(path.read_text())["cases"][0]["results"]
    assert set(result) == {"NumPy", "fastconv"}
    assert main(["bench", "--load", str(path), "--markdown"]) == 0
    assert "| lenet1_b1 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "no such case"], "must match a case"),
        (["--load", "no/such/file"], "no/such/file"),
        (["--filter", "lenet1", "--threads", "0"], "must be"),
    ],
)
def test_bad_arguments_end_with_a_message(arguments, message, capsys):
    pytest.importorskip("rich")
    assert main(["bench", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--filter", "["], ["--json", "no/such/directory/file"], ["--suite", "none"]])
def test_bad_options_are_refused_before_anything_runs(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["bench"]) == 1
    assert "pip install 'fastconv[bench]'" in capsys.readouterr().err


def test_info(capsys):
    assert main(["info"]) == 0
    assert fastconv.__version__ in capsys.readouterr().out
