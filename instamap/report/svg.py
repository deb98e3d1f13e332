"""Charts as SVG within a page: their colours follow the page's, and their numbers are a table."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from instamap.report.markup import Attributes, element, text
from instamap.report.section import table

WIDTH = 680
HEIGHT = 330
LEFT = 64
RIGHT = 40
TOP = 14
BOTTOM = 52
LAST = WIDTH - RIGHT  # where axes end
FLOOR = HEIGHT - BOTTOM
DOT_RADIUS = 4.5
BAR_GAP = 1.0
# Of a curve: colour-blind people, and print in gray, tell them apart by their dashes.
DASHES = ("", "7 4", "2 3", "10 3 2 3", "14 4", "1 5")
COLOURS = len(DASHES)
MAX_ROWS = 40  # of a table of numbers
TICKS = 5
ROOM = 60  # that words to the right of a line need


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, with words at some places."""

    label: str
    low: float
    high: float
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Curve:
    """Values y over x. best: the place of the one that gets a dot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    best: int | None = None


@dataclass(frozen=True)
class Chart:
    """Curves in one frame.

    title: what is to be seen, in words. levels: dashed lines across at values, and their names.
    places: dotted lines upright, likewise. x_name, x_words: of the table of numbers, its first
    column.
    """

    title: str
    x: Axis
    y: Axis
    curves: list[Curve]
    levels: list[tuple[float, str]]
    places: list[tuple[float, str]]
    x_name: str
    x_words: list[str]


def linear_axis(label: str, low: float, high: float) -> Axis:
    """An axis with round numbers at its ticks, a little longer than it need be."""
    if not high > low:
        high = low + 1
    rough = (high - low) / TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    ticks = [(number * step, f"{number * step:.6g}") for number in range(first, last + 1)]
    return Axis(label, first * step, last * step, ticks)


def figure(chart: Chart, caption: str) -> str:
    """A chart with its legend, and the numbers below for those who cannot see it."""
    names = [curve.name for curve in chart.curves]
    entries = [_legend_entry(number, name) for number, name in enumerate(names)]
    legend = element("ul", {"class": "legend"}, "".join(entries))
    words = text("figcaption", caption)
    summary = text("summary", "Numbers")
    numbers = element("details", {}, summary + _numbers(chart))
    return element("figure", {}, _picture(chart) + legend + words + numbers)


def bars(title: str, axis: Axis, counts: Sequence[int], marks: Sequence[float] = ()) -> str:
    """A histogram of `counts` in bins of one width along an axis, with numbered marks."""
    highest = max([*counts, 1])
    upright = linear_axis("particles", 0.0, float(highest))
    frame = _Frame(axis, upright)
    bin_width = (axis.high - axis.low) / max(len(counts), 1)
    drawn = frame.drawn()
    bottom = frame.up(0)
    for number, count in enumerate(counts):
        start = axis.low + number * bin_width
        left = frame.across(start)
        right = frame.across(start + bin_width)
        top = frame.up(count)
        place: Attributes = {
            "class": "bar",
            "x": left,
            "y": top,
            "width": max(right - left - BAR_GAP, BAR_GAP),
            "height": bottom - top,
        }
        drawn.append(element("rect", place))
    for number, mark in enumerate(marks, 1):
        drawn.append(_upright_line(frame, mark, str(number)))
    return _svg(title, drawn)


@dataclass(frozen=True)
class _Frame:
    """Where values lie in the picture."""

    x: Axis
    y: Axis

    def across(self, value: float) -> float:
        share = (value - self.x.low) / (self.x.high - self.x.low)
        return LEFT + share * (LAST - LEFT)

    def up(self, value: float) -> float:
        share = (value - self.y.low) / (self.y.high - self.y.low)
        return FLOOR - share * (FLOOR - TOP)

    def drawn(self) -> list[str]:
        """Ticks, their words and the names of both axes."""
        parts = [_line("axis", f"M{LEFT} {FLOOR}H{LAST}")]
        for value, words in self.y.ticks:
            y = self.up(value)
            parts.append(_line("grid", f"M{LEFT} {y:.1f}H{LAST}"))
            parts.append(_words(LEFT - 8, y + 4, words, "end"))
        for value, words in self.x.ticks:
            x = self.across(value)
            parts.append(_line("axis", f"M{x:.1f} {FLOOR}v5"))
            parts.append(_words(x, FLOOR + 19, words, "middle"))
        middle = (LEFT + LAST) / 2
        parts.append(_words(middle, HEIGHT - 8, self.x.label, "middle"))
        height = (TOP + FLOOR) / 2
        place: Attributes = {
            "x": 14.0,
            "y": height,
            "text-anchor": "middle",
            "transform": f"rotate(-90 14 {height:.0f})",
        }
        parts.append(text("text", self.y.label, place))
        return parts


def _picture(chart: Chart) -> str:
    frame = _Frame(chart.x, chart.y)
    parts = frame.drawn()
    for value, words in chart.levels:
        y = frame.up(value)
        parts.append(_line("level", f"M{LEFT} {y:.1f}H{LAST}"))
        parts.append(_words(LAST + 4, y + 4, words, "start"))
    for value, words in chart.places:
        parts.append(_upright_line(frame, value, words))
    for number, curve in enumerate(chart.curves):
        parts += _drawn_curve(frame, number, curve)
    return _svg(chart.title, parts)


def _drawn_curve(frame: _Frame, number: int, curve: Curve) -> list[str]:
    places = []
    for x, y in zip(curve.x, curve.y, strict=True):
        inside = min(max(y, frame.y.low), frame.y.high)
        place = (frame.across(x), frame.up(inside))
        places.append(place)
    points = [f"{across:.1f},{up:.1f}" for across, up in places]
    line = {**_stroke(number), "points": " ".join(points)}
    parts = [element("polyline", line)]
    if curve.best is not None:
        across, up = places[curve.best]
        dot: Attributes = {
            "class": f"dot c{number % COLOURS}",
            "cx": across,
            "cy": up,
            "r": DOT_RADIUS,
        }
        parts.append(element("circle", dot))
    return parts


def _stroke(number: int) -> dict[str, str]:
    """The colour and dashes of a curve."""
    place = number % COLOURS
    return {
        "class": f"curve c{place}",
        "stroke-dasharray": DASHES[place],
    }


def _line(kind: str, path: str) -> str:
    return element("path", {"class": kind, "d": path})


def _upright_line(frame: _Frame, value: float, words: str) -> str:
    x = frame.across(value)
    line = _line("place", f"M{x:.1f} {TOP}V{FLOOR}")
    y = TOP + 10
    if x > LAST - ROOM:
        return line + _words(x - 5, y, words, "end")
    return line + _words(x + 4, y, words, "start")


def _words(x: float, y: float, words: str, anchor: str) -> str:
    place: Attributes = {
        "x": x,
        "y": y,
        "text-anchor": anchor,
    }
    return text("text", words, place)


def _svg(title: str, parts: list[str]) -> str:
    frame = {
        "viewBox": f"0 0 {WIDTH} {HEIGHT}",
        "role": "img",
        "aria-label": title,
    }
    name = text("title", title)
    return element("svg", frame, "".join([name, *parts]))


def _legend_entry(number: int, name: str) -> str:
    line = {**_stroke(number), "d": "M1 5H35"}
    size = {
        "width": "36",
        "height": "10",
        "aria-hidden": "true",
    }
    swatch = element("svg", size, element("path", line))
    return element("li", {}, f"{swatch} {html.escape(name)}")


def _numbers(chart: Chart) -> str:
    """A table of the curves: all points, or as many as a table can have."""
    longest = max(chart.curves, key=lambda curve: len(curve.x))
    every = math.ceil(len(longest.x) / MAX_ROWS)
    known = [dict(zip(curve.x, curve.y, strict=True)) for curve in chart.curves]
    places = list(zip(longest.x, chart.x_words, strict=True))
    rows = []
    for place, words in places[::every]:
        values = [f"{one[place]:.4g}" if place in one else "" for one in known]
        rows.append([words, *values])
    names = [curve.name.split(":")[0] for curve in chart.curves]
    return table([chart.x_name, *names], rows, chart.title)
