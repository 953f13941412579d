"""Small charts: the same one as SVG, drawn here, and as PNG, drawn by matplotlib where it is installed."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from treewright.agent.view.report import clean, figure
from treewright.envs.errors import TreewrightError

__all__ = ["Chart", "Series", "draw_png", "draw_svg"]

Scale = Callable[[float], float]

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 54, 46
COLOURS = {
    False: ("#0b5c7d", "#c2410c", "#5b7f1f", "#7c4d9e", "#a16207", "#475569"),
    True: ("#67c7e6", "#fb923c", "#a3d65c", "#c9a0ea", "#e5c04b", "#a8b3bf"),
}
INKS = {False: ("#1d2327", "#667076", "#e2e4e1"), True: ("#e4e8e9", "#98a3a8", "#2e3538")}


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour: a 'line', a 'step' curve, 'bars' or 'points'; `spread` is half an interval around y."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: str = "line"
    spread: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart from zero up. `ticks` names whole-numbered x; `share`: y from 0 to 1; `diagonal` draws y = x."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    caption: str
    ticks: Sequence[str] = ()
    share: bool = False
    diagonal: bool = False

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """(x low, x high, y low, y high)."""
        xs = [x for s in self.series for x in s.x] or [1.0]
        ys = [y for s in self.series for y in s.y] or [1.0]
        low = min(0.0, *ys) if not self.share else 0.0
        high = 1.0 if self.share else max(ys) * 1.05 or 1.0
        if any(s.kind == "bars" for s in self.series):
            return min(xs) - 0.6, max(xs) + 0.6, low, high
        return (0.0, 1.0, low, high) if self.diagonal else (0.0, max(xs) * 1.02 or 1.0, low, high)


def marks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two ends."""
    raw = (high - low) / most
    if raw <= 0 or not math.isfinite(raw):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def draw_svg(chart: Chart, dark: bool = False) -> str:
    """The chart as an SVG document; every text in it is escaped."""
    ink, soft, line = INKS[dark]
    x0, x1, y0, y1 = chart.limits
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def px(x: float) -> float:
        return round(LEFT + (x - x0) / (x1 - x0) * inner_w, 1)

    def py(y: float) -> float:
        return round(TOP + (1 - (y - y0) / (y1 - y0)) * inner_h, 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, DejaVu Sans, sans-serif" font-size="12">',
        f"<title>{_safe(chart.title)}</title>",
        _text(LEFT, 20, chart.title, ink, "start", 'font-size="14" font-weight="600"'),
    ]
    for y in marks(y0, y1):
        out.append(f'<path d="M{LEFT} {py(y)}H{WIDTH - RIGHT}" stroke="{line}" fill="none"/>')
        out.append(_text(LEFT - 7, py(y) + 4, figure(y), soft, "end"))
    named = list(enumerate(chart.ticks)) if chart.ticks else [(x, figure(x)) for x in marks(x0, x1)]
    out += [_text(px(x), HEIGHT - BOTTOM + 17, str(word), soft, "middle") for x, word in named]
    out.append(_text(LEFT + inner_w / 2, HEIGHT - 10, chart.x_label, soft, "middle"))
    turned = f'transform="rotate(-90 14 {TOP + inner_h / 2})"'
    out.append(_text(14, TOP + inner_h / 2, chart.y_label, soft, "middle", turned))
    if chart.diagonal:
        out.append(f'<path d="M{px(0)} {py(0)}L{px(1)} {py(1)}" stroke="{soft}" stroke-dasharray="4 4"/>')
    bars = [s for s in chart.series if s.kind == "bars"]
    for i, series in enumerate(chart.series):
        colour = COLOURS[dark][i % 6]
        if series.kind == "bars":
            wide = inner_w / (x1 - x0) * 0.8 / len(bars)
            shift = (bars.index(series) - len(bars) / 2) * wide
            for x, y in zip(series.x, series.y, strict=True):
                top, tall = min(py(y), py(0)), abs(py(0) - py(y))
                at = f'x="{px(x) + shift:.1f}" y="{top}" width="{max(wide - 1, 0.5):.1f}" height="{tall:.1f}"'
                out.append(f'<rect {at} fill="{colour}"><title>{figure(y)}</title></rect>')
        else:
            out += _curve(series, colour, px, py)
    out += _legend(chart, dark, soft)
    out.append(f'<path d="M{LEFT} {py(max(y0, 0.0))}H{WIDTH - RIGHT}" stroke="{soft}" fill="none"/></svg>')
    return "".join(out)


def _curve(series: Series, colour: str, px: Scale, py: Scale) -> list[str]:
    out = []
    points = [(px(x), py(y)) for x, y in zip(series.x, series.y, strict=True)]
    if series.kind in ("line", "step") and points:
        joint = " ".join(f"H{x}V{y}" if series.kind == "step" else f"L{x} {y}" for x, y in points[1:])
        path = f"M{points[0][0]} {points[0][1]}{joint}"
        out.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>')
    for (x, _), y, half in zip(points, series.y, series.spread, strict=False):
        ends = (min(max(py(y + sign * half), TOP), HEIGHT - BOTTOM) for sign in (-1, 1))
        out.append(f'<path d="M{x} {next(ends)}V{next(ends)}" stroke="{colour}" stroke-width="1.4"/>')
    if series.kind in ("line", "points"):
        out += [f'<circle cx="{x}" cy="{y}" r="3.4" fill="{colour}"/>' for x, y in points]
    return out


def _legend(chart: Chart, dark: bool, soft: str) -> list[str]:
    if len(chart.series) < 2:
        return []
    out, x = [], float(LEFT)
    room = (WIDTH - LEFT - RIGHT) / len(chart.series) - 24
    for i, series in enumerate(chart.series):
        letters = max(4, int(room / 7))
        name = series.name if len(series.name) <= letters else series.name[: letters - 1] + "…"
        out.append(f'<rect x="{x:.1f}" y="31" width="9" height="9" fill="{COLOURS[dark][i % 6]}"/>')
        out.append(_text(x + 14, 40, name, soft, "start"))
        x += min(room, 7 * len(name)) + 30
    return out


def _safe(text: str) -> str:
    return html.escape(clean(text))


def _text(x: float, y: float, text: str, colour: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" {more}>{_safe(text)}</text>'


def draw_png(chart: Chart, path: Path) -> None:
    """The chart as a PNG. Raises TreewrightError where matplotlib is not installed."""
    try:
        make_figure = import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise TreewrightError("PNG needs matplotlib: pip install 'treewright[plot]'") from error
    paper = make_figure(figsize=(7, 4.25), dpi=144, layout="constrained")
    axes = paper.subplots()
    bars = [s for s in chart.series if s.kind == "bars"]
    for i, series in enumerate(chart.series):
        colour, name = COLOURS[False][i % 6], clean(series.name).replace("$", r"\$")
        if series.kind == "bars":
            wide = 0.8 / len(bars)
            shift = (bars.index(series) - (len(bars) - 1) / 2) * wide
            axes.bar([x + shift for x in series.x], series.y, wide, color=colour, label=name)
        elif series.kind == "step":
            axes.step(series.x, series.y, where="post", color=colour, label=name)
        else:
            style = "o-" if series.kind == "line" else "o"
            axes.errorbar(series.x, series.y, series.spread or None, fmt=style, color=colour, label=name)
    if chart.diagonal:
        axes.plot([0, 1], [0, 1], "--", color="#667076", linewidth=1)
    x0, x1, y0, y1 = chart.limits
    axes.set(xlim=(x0, x1), ylim=(y0, y1), xlabel=chart.x_label, ylabel=chart.y_label, title=chart.title)
    if chart.ticks:
        axes.set_xticks(range(len(chart.ticks)), list(chart.ticks))
    if len(chart.series) > 1:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    paper.savefig(path)
