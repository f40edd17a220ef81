"""What a run says: tables for the terminal, or in Markdown, and the figures that sum them up."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import exp, log

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .cases import NETWORKS
from .numpy_peer import NumPy
from .peers import FastConv
from .suite import BEST_LAYOUT, Record, Report

RIVALS = ("torch", "onnxruntime", "openvino", "ncnn", "MNN")
NHWC = {f"{FastConv.name} channels_last": "own NHWC", "torch channels_last": "torch NHWC"}
COLUMNS = ("NumPy", "torch", *NHWC, *RIVALS[1:])
Value = Callable[[Record], float | None]
FAMILIES = {
    "Convolution": ("layers", "depthwise"),
    "Convolution of other shapes": ("general",),
    "Pooling and ReLU": ("pooling", "relu"),
    "Operators of one and three dimensions, and transposed": ("operators",),
    "Networks": (NETWORKS,),
}
DIRECTIONS = ("forward", "backward", "inference", "training")


def print_report(report: Report, console: Console, markdown: bool = False) -> None:
    """Print head, tables and figures."""
    console.print(_head(report))
    console.print("Columns of libraries: how many times as fast fastconv is, on NCHW arrays.", style="italic")
    for title, suites in FAMILIES.items():
        for direction in DIRECTIONS:
            records = [r for r in report.records if r.case.suite in suites and r.case.direction == direction]
            if records:
                table = _table(f"{title}, {direction}", records, markdown)
                if _width(table, console) > console.width:
                    table = _table(f"{title}, {direction}", records, markdown, shapes=False)
                console.width = max(console.width, _width(table, console))  # rather let lines wrap than lose digits
                console.print(table)
    if any(result.memory for record in report.records for result in record.results.values()):
        console.print(_memory_table(report, markdown))
    if found := figures(report):
        console.print(_figures_table(found, markdown))
    notes = [
        f"{record.case}, {name}: {result.unavailable}"
        for record in report.records
        for name, result in record.results.items()
        if result.unavailable
    ]
    if notes:
        console.print("Left out:", *notes, sep="\n  ", style="dim", markup=False)


# --- Numbers ---------------------------------------------------------------------------------------------------------


def format_time(seconds: float) -> str:
    """Write a time with three digits: ``812 ns``, ``35.1 us``, ``4.02 ms``."""
    for unit, scale in (("ns", 1e9), ("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{three_digits(seconds * scale)} {unit}"
    return f"{three_digits(seconds)} s"


def three_digits(value: float) -> str:
    """Write a number below 1000 with three digits: ``1.23``, ``12.3``, ``123``."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def format_error(error: float) -> str:
    """Write an error with one digit: ``3e-7``."""
    return f"{error:.0e}".replace("e-0", "e-") if error else "0"


def _times(ratio: float | None) -> Text:
    if ratio is None:
        return Text("-", style="dim")
    return Text(f"{three_digits(ratio)}x", style="green" if ratio >= 1 else "red")


def geomean(values: Iterable[float]) -> float:
    """Return the geometric mean."""
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))


# --- Tables ----------------------------------------------------------------------------------------------------------


def _head(report: Report) -> RenderableType:
    machine = report.machine
    libraries = dict(machine["libraries"])
    rows = {
        "fastconv": f"{libraries.pop(FastConv.name)}, {machine['isa']}, {machine['threads']} threads",
        "processor": machine["processor"],
        "NumPy": f"{libraries.pop(NumPy.name)}, {machine['blas']}; Python {machine['python']}",
        "peers": ", ".join(f"{name} {libraries[name]}" for name in RIVALS if name in libraries),
        "environment": ", ".join(f"{name}={value}" for name, value in machine["environment"].items()),
        "micro-kernel": ", ".join(
            f"{isa} {rate / 1e9:.0f} GFLOP/s = {share:.0%}" for isa, (rate, share) in machine["micro_kernel"].items()
        )
        + " of the FMA peak of one core, in cache",
        "memory": f"{machine['bandwidth'] / 1e9:.1f} GB/s, copying",
        "largest error": ", ".join(f"{name} {format_error(error)}" for name, error in _largest_errors(report).items()),
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        if value:
            grid.add_row(Text(name, style="bold"), Text(value))
    return grid


def _largest_errors(report: Report) -> dict[str, float]:
    """Return, for each library, the largest of its results' errors over the result's maximum."""
    results = [(name, r) for record in report.records for name, r in record.results.items() if r.seconds]
    return {
        name: max(r.error for other, r in results if other == name)
        for name in (FastConv.name, *COLUMNS)
        if any(other == name for other, _ in results)
    }


def _table(title: str, records: list[Record], markdown: bool, shapes: bool = True) -> Table:
    compute = records[0].case.suite not in ("pooling", "relu")
    present = [name for name in COLUMNS if any(name in r.results for r in records)]
    rivals = [name for name in _rivals(records[0]) if name in present]
    table = _new_table(title, markdown)
    table.add_column("case", no_wrap=True)
    if shapes:
        table.add_column("shape", no_wrap=True, style="dim")
    headings = ["time", *(["GFLOP/s", "of peak"] if compute else ["GB/s"]), "error"]
    headings += [NHWC.get(name, name) for name in present]
    headings += ["best peer"] if len(rivals) > 1 else []
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for before, record in zip([None, *records], records, strict=False):
        if before and before.case.suite != record.case.suite and not markdown:
            table.add_section()
        cells = [record.case.name, *([record.case.shape] if shapes else []), format_time(record.own.seconds)]
        if compute:
            cells += [three_digits(record.rate / 1e9), f"{record.rate / record.peak:.0%}"]
        else:
            cells += [three_digits(record.case.bytes / record.own.seconds / 1e9)]
        cells += [format_error(record.own.error), *(_times(record.relative(name)) for name in present)]
        cells += [_times(record.relative(*rivals))] if len(rivals) > 1 else []
        table.add_row(*cells)
    return table


def _rivals(record: Record) -> tuple[str, ...]:
    return (*RIVALS, "torch channels_last") if record.case.suite in BEST_LAYOUT else RIVALS


def _memory_table(report: Report, markdown: bool) -> Table:
    table = _new_table("Memory of a process with one library, MiB", markdown)
    for heading in ("case", "library", "before", "peak", "of the calls"):
        table.add_column(heading, justify="left" if heading in ("case", "library") else "right", no_wrap=True)
    for record in report.records:
        for name, result in record.results.items():
            if result.memory:
                before, peak = (round(size / 2**20) for size in result.memory)
                numbers = map(str, (before, peak, peak - before))
                table.add_row(f"{record.case.name}, {record.case.direction}", name, *numbers)
    return table


def _width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(width=999)).maximum


def _new_table(title: str, markdown: bool) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.MARKDOWN if markdown else box.SIMPLE_HEAD
    )


# --- Figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A geometric mean over cases, and the worst of them; ``form`` writes both."""

    name: str
    mean: float
    worst: float
    case: str
    count: int
    form: Callable[[float], str | Text]


def figures(report: Report) -> list[Figure]:
    """Sum a run up in figures; those whose libraries did not run are left out."""
    found = []

    def add(name: str, value: Value, chosen: Callable[[Record], bool], worst=min, form=_times) -> None:
        for direction in DIRECTIONS:
            records = [r for r in report.records if r.case.direction == direction and chosen(r)]
            values = [(v, r.case.name) for r in records if (v := value(r)) is not None]
            if values:
                mean = geomean(v for v, _ in values)
                found.append(Figure(f"{name}, {direction}", mean, *worst(values), len(values), form))

    def layer(record: Record) -> bool:
        return record.case.suite == "layers"

    def dense_3x3(record: Record) -> bool:
        case = record.case
        if not layer(record):
            return False
        plain = case.kernel == (3, 3) and case.stride == case.dilation == (1, 1) and case.groups == 1
        return plain and min(case.oc, case.x_shape[1]) >= 64

    def pooling(record: Record) -> bool:
        return record.case.suite == "pooling"

    def depthwise(record: Record) -> bool:
        return record.case.depthwise

    def against(*names: str) -> Value:
        return lambda record: record.relative(*names)

    def best_layouts(record: Record) -> float | None:
        if "torch channels_last" not in record.results:
            return None
        own, theirs = ((name, f"{name} channels_last") for name in (FastConv.name, "torch"))
        return _ratio(record.relative(*theirs), record.relative(*own))

    for suite, title in (("layers", "layers"), ("general", "other shapes")):
        if any(name in report.machine["libraries"] for name in RIVALS[1:]):  # torch is alone in going backward
            add(
                f"{title}, against the best peer of each",
                against(*RIVALS),
                lambda r, suite=suite: r.case.suite == suite and r.case.direction == "forward",
            )
        for name in (*RIVALS, "NumPy"):
            add(f"{title}, against {name}", against(name), lambda r, suite=suite: r.case.suite == suite)
    add(
        "3x3 stride 1, 64 channels and more, over the FMA peak",
        lambda r: r.rate / r.peak,
        dense_3x3,
        form="{:.0%}".format,
    )
    for name in ("torch", "NumPy"):
        add(f"pooling, against {name}", against(name), pooling)
        add(f"depthwise, against {name}", against(name), depthwise)
    add("grouped and depthwise, against NumPy", against("NumPy"), lambda r: r.case.groups > 1)
    add("ReLU, against torch", against("torch"), lambda r: r.case.op == "relu")
    add("pooling, against torch, both on NHWC", lambda r: _ratio(*map(r.relative, reversed(NHWC))), pooling)
    add("pooling, against torch, each in its best layout", best_layouts, pooling)
    add("depthwise, against torch, each in its best layout", best_layouts, depthwise)
    torch = ("torch", "torch channels_last")
    add("operators, against torch, the better layout", against(*torch), lambda r: r.case.suite == "operators")
    networks = [r.case for r in report.records if r.case.suite == NETWORKS and not r.case.memory]
    trained = [case for case in networks if case.direction == "training"]
    add("networks, against torch, the better layout", against(*torch), lambda r: r.case in trained)
    for title, rivals in ("torch, the better layout", torch), ("the best peer of each", (*RIVALS, *torch)):
        for n in sorted({case.x_shape[0] for case in networks if case not in trained}):
            chosen = [case for case in networks if case not in trained and case.x_shape[0] == n]
            add(f"networks, batch {n}, against {title}", against(*rivals), lambda r, chosen=chosen: r.case in chosen)
    add(
        f"{report.machine['threads']} threads, against one, cases over 5 ms",
        against(f"{FastConv.name} 1 thread"),
        lambda r: r.case.op in ("conv2d", "network") and r.own.seconds > 5e-3,
    )
    for isa in report.machine["micro_kernel"]:
        name = f"{FastConv.name} {isa}"
        add(f"layers, {isa} against {report.machine['isa']}", lambda r, name=name: _ratio(1, r.relative(name)), layer)
    direct = f"{FastConv.name} gemm"
    add(
        "error, over that of direct summation",
        lambda r: _ratio(r.own.error, r.results[direct].error),
        lambda r: direct in r.results,
        worst=max,
        form="{:.2f}".format,
    )
    return found


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _figures_table(found: list[Figure], markdown: bool) -> Table:
    table = _new_table("Summary", markdown)
    table.add_column("fastconv's speed" if markdown else "")
    for heading in ("geomean", "worst", "at", "cases"):
        table.add_column(heading, justify="right" if heading != "at" else "left", no_wrap=True)
    for figure in found:
        table.add_row(figure.name, *map(figure.form, (figure.mean, figure.worst)), figure.case, str(figure.count))
    return table
