"""``python -m fastconv``: What this installation is, how fast it is, and what it can do."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import __version__, show_config

COMMANDS = {
    "info": "print versions, compiler, instruction set and threads",
    "bench": "measure the kernels against NumPy, and with --peers against other libraries",
    "demo": "train networks on digits, faces, a brain or text, or filter a photograph, and draw it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="python -m fastconv", description=__doc__.partition(": ")[2])
    parser.add_argument("--version", action="version", version=f"fastconv {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name != "info" and name in argv[:1]:  # only the command that runs is imported
            module = importlib.import_module(f".{name}", __package__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    if args.command == "info":
        show_config()
        return 0
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
