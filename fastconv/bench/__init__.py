"""``python -m fastconv bench``: an installed fastconv measures itself.

::

    *.csv            shapes
    cases.py         what is timed: inputs, expected results, work
    networks.py      the same for whole networks
    timing.py        blocks that alternate, rounds, medians
    peers.py         fastconv and the libraries that it is compared with
    torch_models.py  PyTorch's networks
    numpy_peer.py    the fastest honest NumPy, in a process of its own
    memory.py        the peak memory of a process of its own
    suite.py         runs cases over libraries, checks every result
    report.py        tables and figures
    plot.py          the roofline, and bars against peers
"""

import argparse
import importlib.util
import json
import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .suite import Report

__all__ = ["add_arguments", "run"]

_QUICK_SUITES = ("layers", "pooling", "relu")
_SUITES = ("depthwise", *_QUICK_SUITES)
_NAMED_SUITES = ("general", "operators", "networks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench`` to a parser."""
    parser.add_argument("--quick", action="store_true", help="fewer cases, rounds and calls: under a minute")
    parser.add_argument(
        "--filter", type=_regex, default="", metavar="REGEX", help="only cases like this: layers/res3_3x3/forward"
    )
    parser.add_argument(
        "--suite",
        action="append",
        choices=(*_SUITES, *_NAMED_SUITES),
        help="only these, can be repeated; measured only if named: general (shapes that no list of layers has), "
        "operators (of one and three dimensions, transposed), networks (whole ones, inference and training)",
    )
    parser.add_argument(
        "--networks", action="append_const", dest="suite", const="networks", help="the same as --suite networks"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of every library (all that there are)")
    parser.add_argument(
        "--peers", action="store_true", help="also what is installed of torch, onnxruntime, openvino, ncnn and MNN"
    )
    parser.add_argument(
        "--variants", action="store_true", help="also fastconv on one thread, on the other ISAs, by direct summation"
    )
    parser.add_argument("--json", type=_writable, metavar="FILE", help="write all results")
    parser.add_argument("--load", type=Path, metavar="FILE", help="report what --json wrote, measure nothing")
    parser.add_argument("--plot", type=_writable, metavar="FILE.png", help="draw the roofline, and bars against peers")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")


def _regex(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def _writable(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():  # known before minutes of measuring
        raise argparse.ArgumentTypeError(f"{path.parent} is no directory")
    return path


def run(args: argparse.Namespace) -> int:
    """Measure or load, print, write; return the exit status."""
    for package in ("rich", *(["matplotlib"] if args.plot else [])):
        if importlib.util.find_spec(package) is None:
            return _failed(f"{package} must be installed: pip install 'fastconv[bench]'")
    from rich.console import Console

    from .report import print_report
    from .suite import Report

    try:
        report = Report.from_json(json.loads(args.load.read_text())) if args.load else _measure(args)
    except (ArithmeticError, OSError, ValueError) as error:
        return _failed(f"bench: {error}")
    if args.json:
        args.json.write_text(json.dumps(report.to_json(), indent=1))
    console = Console()
    print_report(report, console if console.is_terminal else Console(width=200), args.markdown)
    if args.plot:
        from .plot import plot

        try:
            plot(report, args.plot)
        except ValueError as error:
            return _failed(f"bench: {error}")
    return 0


def _measure(args: argparse.Namespace) -> "Report":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    import fastconv

    from .cases import load_cases
    from .numpy_peer import NumPyProcess
    from .peers import FastConv, installed_peers
    from .suite import Report, describe_machine, run_cases, variants
    from .timing import FULL, QUICK

    cases = load_cases(args.suite or (_QUICK_SUITES if args.quick else _SUITES), args.filter)
    if not cases:
        raise ValueError(f"--filter must match a case, got {args.filter.pattern}")
    if args.threads is not None:
        fastconv.set_num_threads(args.threads)
    threads = fastconv.get_num_threads()
    libraries = [FastConv(threads), FastConv(threads, "channels_last", layout="channels_last")]
    libraries += variants(threads) if args.variants else []
    libraries += installed_peers(threads) if args.peers else []
    budget = QUICK if args.quick else FULL
    if args.peers:
        budget = replace(budget, gap=FULL.gap)
    columns = (TextColumn("{task.description:32}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        NumPyProcess(threads) as numpy,
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task(str(cases[0]), total=len(cases))
        report = Report(describe_machine(libraries, numpy, threads))
        with suppress(KeyboardInterrupt):  # what has been measured is reported
            for record in run_cases(cases, libraries, numpy, budget, threads):
                report.records.append(record)
                following = cases[len(report.records) % len(cases)]
                progress.update(task, advance=1, description=str(following))
    return report


def _failed(message: str) -> int:
    print(message, file=sys.stderr)
    return 1
