"""``python -m fastconv demo``: networks learn from data that PyPI's packages ship, and pictures show what they learned.

Each module here but `drawing` and `images` is one demo: its docstring says what it does, ``PACKAGES`` what it imports
beside Matplotlib, ``EPOCHS`` how long it trains by default, and ``run`` does it, printing what it finds.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from .. import runtime

__all__ = ["DEMOS", "add_arguments", "run"]

DEMOS = {
    "digits": "a LeNet reads handwritten digits",
    "photo": "convolution, ReLU and pooling over a photograph",
    "faces": "a ResNet-18 tells faces from other images",
    "brain": "a network of 3-D convolutions takes the noise out of a scan of a brain",
    "text": "a network of 1-D convolutions tells Python from C",
    "figures": "four teaching figures: windows, ReLU and pooling, feature maps, over-fitting",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo`` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["demos:", *(f"  {name:<9} {summary}" for name, summary in DEMOS.items())])
    parser.add_argument("demo", nargs="?", choices=DEMOS, default="digits", help="which one (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the picture (fastconv-DEMO.png)")
    parser.add_argument("--epochs", type=_positive, metavar="N", help="passes over the data (as many as it takes)")
    parser.add_argument("--seed", type=int, default=0, help="of split, weights, order and distortions (%(default)s)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads (all that there are)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def run(args: argparse.Namespace) -> int:
    """Run a demo; return the exit status, which is 0 if the picture was written and the network learned enough."""
    module = importlib.import_module(f".{args.demo}", __package__)
    args.out = args.out or Path(f"fastconv-{args.demo}.png")
    args.epochs = args.epochs or module.EPOCHS
    try:
        for package in ("matplotlib", *module.PACKAGES):
            importlib.import_module(package)
        with runtime.threads(args.threads or runtime.get_num_threads()):
            module.run(args)
    except ImportError as error:
        return _failed(f"{error.name} must be installed: pip install 'fastconv[demo]'")
    except (OSError, ValueError) as error:
        return _failed(str(error))
    return 0


def _failed(message: str) -> int:
    print(f"fastconv demo: {message}", file=sys.stderr)
    return 1
