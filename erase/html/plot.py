"""Points with whiskers as inline SVG: scales stretched towards 100 % or logarithmic, names beside their points.

A plot is drawn twice, for wide and for narrow screens, and the style sheet shows one of the two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import asinh, hypot, log10

from .label_placement import AROUND, GRID, LINE, MARKER, Box, nearest, place_labels, shortened
from .markup import text

WIDE, NARROW = 720, 344
"""Widths in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 30, 46
INNER = 12
"""Room between the frame and the outermost points."""
PERCENT_TICKS = (-100, -50, 0, 25, 50, 75, 90, 95, 98, 99, 99.5, 100, 100.5, 101, 102, 105, 110, 125, 150, 200)
SECOND_TICKS = tuple(digit * 10.0**power for power in range(-2, 6) for digit in (1, 3))


@dataclass(frozen=True, kw_only=True)
class Point:
    """A method in a plot."""

    label: str
    """Its name."""
    kind: str
    """trained (a circle), closed-form (a square) or inference (a diamond)."""
    x: float
    """Value in the scale's unit."""
    y: float
    """Value in the scale's unit."""
    x_range: tuple[float, float] | None = None
    """Ends of the horizontal whisker."""
    y_range: tuple[float, float] | None = None
    """Ends of the vertical one."""
    on_front: bool = False
    """Filled, its label bold."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values to places in 0–1."""

    title: str
    """What it measures, in which unit."""
    low: float
    """The value at 0."""
    high: float
    """The value at 1."""
    ticks: tuple[tuple[float, str], ...]
    """Values with their text, the more important first."""
    stretch: Callable[[float], float]
    """Monotone; differences of it are distances in the plot."""

    def at(self, value: float) -> float:
        """Place of a value; those beyond the ends lie at the ends."""
        low, high = self.stretch(self.low), self.stretch(self.high)
        return min(1.0, max(0.0, (self.stretch(value) - low) / (high - low)))


def percent_scale(title: str, values: Sequence[float]) -> Scale:
    """A scale in per cent that is stretched towards 100: −asinh(100 − v).

    Above 1 point from 100 it is nearly logarithmic in what is missing, so that 98 and 99.5 stand apart beside a method
    at 20. It covers the values, from 99 at most to 100 at least.
    """
    lowest = min(*values, 99.0)
    low = max((tick for tick in PERCENT_TICKS if tick <= lowest), default=lowest)
    high = min((tick for tick in PERCENT_TICKS if tick >= max(*values, 100.0)), default=max(values))
    ticks = sorted((tick for tick in PERCENT_TICKS if low <= tick <= high), key=lambda tick: abs(100 - tick))
    named = tuple((tick, f"{tick:g}") for tick in ticks)
    return Scale(title=title, low=low, high=high, ticks=named, stretch=lambda value: -asinh(100 - value))


def seconds_scale(title: str, values: Sequence[float]) -> Scale:
    """A logarithmic scale in seconds; 0 has a place of its own at the left end."""
    positive = [value for value in values if value > 0] or [1.0]
    low = max((tick for tick in SECOND_TICKS if tick <= min(positive)), default=min(positive))
    high = min((tick for tick in SECOND_TICKS if tick >= max(positive) and tick > low), default=10 * max(positive))
    zero = low / 4
    has_zero = min(values) <= 0
    ticks = [(tick, f"{tick:g}") for tick in SECOND_TICKS if low <= tick <= high]
    return Scale(
        title=title,
        low=0.0 if has_zero else low,
        high=high,
        ticks=tuple([(0.0, "none"), *ticks] if has_zero else ticks),
        stretch=lambda value: log10(max(value, zero)),
    )


def plot(points: Sequence[Point], x: Scale, y: Scale, label: str, *, front: bool = False, height: int = 420) -> str:
    """Both sizes of a plot in a box; `front` draws the steps that join the points on the Pareto front."""
    drawn = "".join(
        f'<svg class="plot {name}" role="img" aria-label="{text(label)}" viewBox="0 0 {width} {tall}" '
        f'width="{width}" height="{tall}">{_content(points, x, y, Frame(width, tall), front)}</svg>'
        for name, width in (("wide", WIDE), ("narrow", NARROW))
        for tall in [_height(len(points), height)]
    )
    return f'<div class="plots">{drawn}</div>'


def _height(count: int, least: int) -> int:
    """Enough for a place for every label: each takes two lines of a column at most, in steps of the labels' grid."""
    return max(least, TOP + BOTTOM + (2 * LINE + GRID) * (count + 1))


@dataclass(frozen=True)
class Frame:
    """The area that points lie in."""

    width: int
    height: int

    @property
    def box(self) -> Box:
        """Its edges."""
        return LEFT, TOP, self.width - RIGHT, self.height - BOTTOM

    def x(self, share: float) -> float:
        """Pixels from the left of a place in 0–1."""
        left, _, right, _ = self.box
        return left + INNER + share * (right - left - 2 * INNER)

    def y(self, share: float) -> float:
        """Pixels from the top of a place in 0–1, 0 being at the bottom."""
        _, top, _, bottom = self.box
        return bottom - INNER - share * (bottom - top - 2 * INNER)


def _content(points: Sequence[Point], x: Scale, y: Scale, frame: Frame, front: bool) -> str:
    places = [(frame.x(x.at(p.x)), frame.y(y.at(p.y))) for p in points]
    whiskers = [_whiskers(point, place, x, y, frame) for point, place in zip(points, places)]
    boxes = place_labels([p.label for p in points], places, [line for lines in whiskers for line in lines], frame.box)
    parts = [_axes(x, y, frame)]
    parts += [_front(points, places, frame)] if front and any(point.on_front for point in points) else []
    for place, lines, box in zip(places, whiskers, boxes):
        parts += [_whisker(line) for line in lines] + [_leader(place, box)]
    # Markers and names lie above every line.
    parts += [_marker(point, place) for point, place in zip(points, places)]
    parts += [_name(point, box) for point, box in zip(points, boxes)]
    return "".join(parts)


def _axes(x: Scale, y: Scale, frame: Frame) -> str:
    left, top, right, bottom = frame.box
    parts = [f'<rect class="frame" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>']
    for place, name in _apart([(frame.x(x.at(value)), name) for value, name in x.ticks], 34):
        parts.append(f'<line class="tick" x1="{place:.1f}" x2="{place:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">{name}</text>')
    for place, name in _apart([(frame.y(y.at(value)), name) for value, name in y.ticks], 18):
        parts.append(f'<line class="tick" x1="{left}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{place + 4:.1f}" text-anchor="end">{name}</text>')
    parts.append(f'<text class="title" x="{right}" y="{bottom + 36}" text-anchor="end">{text(x.title)}</text>')
    parts.append(f'<text class="title" x="0" y="14">{text(y.title)}</text>')
    return "".join(parts)


def _apart(ticks: Sequence[tuple[float, str]], least: float) -> list[tuple[float, str]]:
    """The ticks that have room, in their order of importance."""
    kept: list[tuple[float, str]] = []
    for place, name in ticks:
        if all(abs(place - other) >= least for other, _ in kept):
            kept.append((place, name))
    return kept


def _whiskers(point: Point, place: tuple[float, float], x: Scale, y: Scale, frame: Frame) -> list[Box]:
    """Horizontal and vertical whisker as boxes without width or height; none where the interval is not known."""
    found = []
    if point.x_range:
        left, right = (frame.x(x.at(end)) for end in point.x_range)
        found.append((left, place[1], right, place[1]))
    if point.y_range:
        bottom, top = (frame.y(y.at(end)) for end in point.y_range)
        found.append((place[0], top, place[0], bottom))
    return found


def _whisker(line: Box) -> str:
    return f'<line class="whisker" x1="{line[0]:.1f}" y1="{line[1]:.1f}" x2="{line[2]:.1f}" y2="{line[3]:.1f}"/>'


def _front(points: Sequence[Point], places: Sequence[tuple[float, float]], frame: Frame) -> str:
    """Steps around what the front's points beat by their values: no other of them is both higher and farther right."""
    left, _, _, bottom = frame.box
    front = sorted({place for point, place in zip(points, places) if point.on_front})
    corners = [(x, y) for x, y in front if not any(a >= x and b <= y and (a, b) != (x, y) for a, b in front)]
    path = [f"M{left} {corners[0][1]:.1f}"]
    for at, (x, _) in enumerate(corners):
        below = corners[at + 1][1] if at + 1 < len(corners) else bottom
        path.append(f"H{x:.1f}V{below:.1f}")
    return f'<path class="front" d="{"".join(path)}"/>'


def _marker(point: Point, place: tuple[float, float]) -> str:
    x, y = place
    kind, size = "point on-front" if point.on_front else "point", MARKER
    if point.kind == "closed-form":
        return f'<rect class="{kind}" x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}"/>'
    if point.kind == "inference":
        reach = 1.35 * size
        corners = f"{x:.1f},{y - reach:.1f} {x + reach:.1f},{y:.1f} {x:.1f},{y + reach:.1f} {x - reach:.1f},{y:.1f}"
        return f'<polygon class="{kind}" points="{corners}"/>'
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'


def _name(point: Point, box: Box) -> str:
    kind = "name on-front" if point.on_front else "name"
    full = f"<title>{text(point.label)}</title>" if shortened(point.label) != point.label else ""
    return f'<text class="{kind}" x="{box[0]:.1f}" y="{box[3] - 4:.1f}">{text(shortened(point.label))}{full}</text>'


def _leader(place: tuple[float, float], box: Box) -> str:
    """A line from a point to its name, where the name is not beside it."""
    end = nearest(place, box)
    distance = hypot(end[0] - place[0], end[1] - place[1])
    if distance < 2 * AROUND:
        return ""
    share = MARKER / distance
    start = [a + share * (b - a) for a, b in zip(place, end)]
    return f'<line class="leader" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'
