"""The two pictures of a run: every layer under the roofline, and speeds beside those of the peers."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from math import hypot
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from .peers import FastConv
from .report import RIVALS, three_digits
from .suite import BEST_LAYOUT, Record, Report

INK, MUTED, FAINT, PAPER = "#1f2430", "#6b7280", "#d9dce3", "#ffffff"
OWN = "#c8102e"
FAMILIES = {  # colour and name of what the roofline shows
    "dense": ("#1f5fa8", "convolution"),
    "grouped": ("#2a9d72", "grouped and depthwise convolution"),
    "pooling": ("#e08a1e", "pooling"),
    "relu": ("#8e5bb5", "ReLU"),
}
MARKERS = {  # of the libraries that fastconv is compared with
    "torch": ("#e4572e", "o"),
    "onnxruntime": ("#2f6fb3", "s"),
    "openvino": ("#7a4fa3", "D"),
    "ncnn": ("#2a9d72", "^"),
    "MNN": ("#d9a400", "v"),
    "NumPy": ("#8a8f99", "X"),
}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}


def plot(report: Report, path: Path) -> None:
    """Draw the roofline above, forward and backward bars below, of all suites but networks and operators."""
    report = Report(report.machine, [r for r in report.records if r.case.suite not in BEST_LAYOUT])
    if not report.records:
        raise ValueError("--plot must have layers, pooling or ReLU to draw, got none")
    convolutions = [r for r in report.records if r.case.op == "conv2d"]
    rows = max((sum(r.case.direction == d for r in convolutions) for d in ("forward", "backward")), default=0)
    heights = (6.2, 1.5 + 0.27 * rows) if rows else (6.2,)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, sum(heights)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.12, hspace=0.03)
        mosaic = [["roof", "roof"], ["forward", "backward"]][: len(heights)]
        roof, *bars = figure.subplot_mosaic(mosaic, height_ratios=heights).values()
        machine = report.machine
        figure.suptitle(
            f"fastconv {machine['libraries'][FastConv.name]} on {machine['processor']}, {machine['isa']}, "
            f"{machine['threads']} threads, float32",
            color=MUTED,
            fontsize=9,
            x=0.01,
            ha="left",
        )
        handles = {}
        for axes, direction in zip(bars, ("forward", "backward"), strict=False):
            _bars(axes, direction, [r for r in convolutions if r.case.direction == direction])
            handles |= {handle.get_label(): handle for handle in axes.get_legend_handles_labels()[0]}
        if handles:
            figure.legend(handles=handles.values(), loc="outside lower center", ncols=len(handles))
        _roofline(roof, report)
        figure.draw_without_rendering()  # settles the layout, which labels need
        figure.set_layout_engine("none")
        _label_roofline(roof, report)
        figure.savefig(path)


def _family(record: Record) -> str:
    if record.case.op == "conv2d":
        return "grouped" if record.case.groups > 1 else "dense"
    return "relu" if record.case.op == "relu" else "pooling"


def _limits(report: Report) -> tuple[float, float]:
    """Return GFLOP/s and GB/s."""
    return float(np.median([r.peak for r in report.records])) / 1e9, report.machine["bandwidth"] / 1e9


def _point(record: Record) -> tuple[float, float]:
    return record.case.flop / record.case.bytes, record.rate / 1e9


# --- Roofline --------------------------------------------------------------------------------------------------------


def _roofline(axes: Axes, report: Report) -> None:
    records = report.records
    intensities, rates = zip(*map(_point, records), strict=True)
    peak, bandwidth = _limits(report)
    ridge = peak / bandwidth
    low, high = min(*intensities, ridge) / 1.6, max(*intensities, ridge) * 1.6
    axes.loglog([low, ridge, high], [low * bandwidth, peak, peak], color=INK, lw=1.6, zorder=3)
    axes.fill_between([low, ridge, high], [low * bandwidth, peak, peak], 1e-9, color="#f3f4f7", lw=0)
    for family, (colour, name) in FAMILIES.items():
        for direction, face in (("forward", colour), ("backward", PAPER)):
            chosen = [r for r in records if _family(r) == family and r.case.direction == direction]
            axes.scatter(
                *np.transpose([_point(r) for r in chosen] or np.empty((0, 2))),
                s=34,
                facecolor=face,
                edgecolor=colour,
                lw=1.2,
                zorder=4,
                label=f"{name}, {direction}" if chosen else None,
            )
    axes.set(
        title="Roofline: speed of every case against the work it has for each byte it must move",
        xlabel="arithmetic intensity: flop / byte, each array moved once",
        ylabel="GFLOP/s, counted as direct convolution",
        xlim=(low, high),
        ylim=(min(rates) / 2, max(*rates, peak) * 2.2),
    )
    axes.grid(which="major", color=FAINT, lw=0.6, zorder=0)
    axes.tick_params(which="both", length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(loc="lower right", fontsize=8, labelspacing=0.35)


def _label_roofline(axes: Axes, report: Report) -> None:
    peak, bandwidth = _limits(report)
    low, _ = axes.get_xlim()
    (x0, y0), (x1, y1) = axes.transData.transform([(low, low * bandwidth), (2 * low, 2 * low * bandwidth)])
    style = {"textcoords": "offset points", "fontsize": 8, "weight": "bold"}
    roofs = [
        axes.annotate(
            f"FMA peak {peak:.0f} GFLOP/s; above it, algorithms that multiply less", (low, peak), (8, 5), **style
        ),
        axes.annotate(
            f"memory {bandwidth:.0f} GB/s; above it, arrays in cache",
            (low * 1.3, low * 1.3 * bandwidth),
            (0, 5),
            rotation=np.degrees(np.arctan2(y1 - y0, x1 - x0)),
            rotation_mode="anchor",
            **style,
        ),
    ]
    points = [_point(record) for record in report.records]
    named = [r for r in report.records if r.case.direction == "forward"]
    _place_labels(axes, [(r.case.name, FAMILIES[_family(r)][0], _point(r)) for r in named], points, roofs)


def _place_labels(
    axes: Axes,
    named: Sequence[tuple[str, str, tuple[float, float]]],
    points: Sequence[tuple[float, float]],
    taken: Sequence[Text],
) -> None:
    """Put each label at the nearest place that is free of points and other labels, with a line to its point."""
    renderer = axes.figure.canvas.get_renderer()
    scale = axes.figure.dpi / 72
    occupied = [text.get_window_extent(renderer) for text in taken] + [axes.get_legend().get_window_extent(renderer)]
    roof = axes.lines[0].get_path().interpolated(100).transformed(axes.transData)
    for (x, y), r in [*((p, 4) for p in axes.transData.transform(points)), *((p, 1) for p in roof.vertices)]:
        occupied.append(Bbox.from_bounds(x - r * scale, y - r * scale, 2 * r * scale, 2 * r * scale))
    places = sorted(product(range(-110, 111, 4), range(-90, 91, 4)), key=lambda place: hypot(place[0], 1.6 * place[1]))
    for name, colour, point in sorted(named, key=lambda entry: -entry[2][1]):
        text = axes.annotate(
            name, point, (0, 0), textcoords="offset points", fontsize=7.5, color=colour, ha="center", va="center"
        )
        box = text.get_window_extent(renderer).padded(1.5 * scale)
        for dx, dy in places:
            moved = box.translated(dx * scale, dy * scale)
            if (
                axes.bbox.containsx(moved.x0)
                and axes.bbox.containsx(moved.x1)
                and not any(map(moved.overlaps, occupied))
            ):
                break
        text.set_position((dx, dy))
        occupied.append(moved)
        if hypot(dx, dy) > 24:
            line = {"arrowstyle": "-", "lw": 0.5, "color": colour, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", point, (dx, dy - np.sign(dy) * 5), textcoords="offset points", arrowprops=line)


# --- Bars ------------------------------------------------------------------------------------------------------------


def _bars(axes: Axes, direction: str, records: list[Record]) -> None:
    """Bars of fastconv, length 1, and marks where the others are: at their speed over fastconv's."""
    speeds = {name: np.array([1 / (r.relative(name) or np.nan) for r in records]) for name in MARKERS}
    limit = 1.05 * float(np.clip(np.nanmax([1, *np.concatenate(list(speeds.values()))]), 1, 1.6))
    places = np.arange(len(records))
    axes.barh(places, 1, height=0.62, color=OWN, alpha=0.16, lw=0, zorder=1)
    axes.axvline(1, color=OWN, lw=1.6, zorder=2, label="fastconv")
    for name, (colour, marker) in MARKERS.items():
        if not np.isnan(speeds[name]).all():
            style = {"color": colour, "marker": marker, "edgecolor": PAPER, "lw": 0.6, "zorder": 3, "label": name}
            axes.scatter(np.minimum(speeds[name], limit), places, s=30, clip_on=False, **style)
    rivals, heading = (RIVALS, "best") if any(r.relative(*RIVALS) for r in records) else (("NumPy",), "NumPy")
    columns = ((1.12, "GFLOP/s", {}), (1.32, f"over {heading}", {"weight": "bold"}))
    cell = partial(axes.text, transform=axes.get_yaxis_transform(), ha="right", va="center")
    for place, record in zip(places, records, strict=True):
        best = record.relative(*rivals)
        texts = (three_digits(record.rate / 1e9), f"{best:.2f}x" if best else "")
        for (x, _, font), text in zip(columns, texts, strict=True):
            cell(x, place, text, color=OWN if font and best and best < 1 else INK, **font)
    for x, heading, _ in columns:
        cell(x, -1, heading, fontsize=8, color=MUTED)
    axes.set(
        title=direction.capitalize(),
        xlim=(0, limit),
        ylim=(len(records) - 0.4, -0.6),
        yticks=places,
        yticklabels=[record.case.name for record in records],
        xlabel="speed over fastconv's",
    )
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="x", color=FAINT, lw=0.6, zorder=0)
