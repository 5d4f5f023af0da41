"""Names beside the points of a plot: near them, inside the frame, and never one over another."""

from collections.abc import Sequence
from math import hypot

import numpy as np

LETTER = 12.5
"""Height of a label's letters in pixels."""
LINE = 16
"""Height that a label needs."""
GRID = 4
"""Pixels between the places that a label may take."""
LONGEST_LABEL = 26
MARKER = 5.5
"""Half the size of a point's marker."""
AROUND = 8
"""Half the size of what a label keeps clear of it."""
WIDTHS = {"ijl.,:;|!'() -": 0.42, "tfrI[]/": 0.5, "=+": 0.84, "mwMW@%—…": 1.1}
"""Letters that are narrower or wider than most, in heights of a letter."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


def shortened(label: str) -> str:
    """A label as it stands in a plot."""
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def text_width(words: str) -> float:
    """Pixels that a label takes in DejaVu Sans Bold, the widest of the usual sans-serif fonts."""
    widths = {letter: share for letters, share in WIDTHS.items() for letter in letters}
    return LETTER * sum(widths.get(letter, 0.8 if letter.isupper() else 0.72) for letter in words)


def place_labels(
    labels: Sequence[str], places: Sequence[tuple[float, float]], lines: Sequence[Box], frame: Box
) -> list[Box]:
    """A box for each label inside the frame, near its point; no two labels overlap.

    Each takes the cheapest place of a fine grid: distance counts, and covering a marker, a whisker or another label's
    leader, or being nearer to another point, costs more than being some way off. ValueError when no place is left.
    """
    placed: dict[int, Box] = {}
    soft = list(lines)
    # The most crowded point chooses first: it has the fewest places.
    crowd = [sum(hypot(x - a, y - b) < 90 for a, b in places) for x, y in places]
    for at in sorted(range(len(labels)), key=lambda at: -crowd[at]):
        others = [place for other, place in enumerate(places) if other != at and place != places[at]]
        width = text_width(shortened(labels[at]))
        box = _cheapest(width, places[at], others, list(placed.values()), soft, frame)
        if box is None:
            raise ValueError(f"The plot has no place for the label {labels[at]!r} among {len(labels)}.")
        placed[at] = box
        soft += _along(places[at], nearest(places[at], box))
    return [placed[at] for at in range(len(labels))]


def _along(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """Small boxes along a leader."""
    steps = int(hypot(end[0] - start[0], end[1] - start[1]) / 8)
    shares = [(step + 0.5) / steps for step in range(steps)]
    spots = [(start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])) for share in shares]
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in spots]


def _cheapest(
    width: float,
    place: tuple[float, float],
    others: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    soft: Sequence[Box],
    frame: Box,
) -> Box | None:
    """The best box of `width` in the frame, or None when every place is taken."""
    left, top, right, bottom = frame
    x, y = np.meshgrid(np.arange(left + 2, right - width - 2, GRID), np.arange(top + 2, bottom - LINE - 1, GRID))
    # Right of the point, left of it, above and below: the grid's places are not exactly there.
    beside = AROUND + 1
    middle, upper = -LINE / 2, -beside - LINE
    for dx, dy in ((beside, middle), (-beside - width, middle), (-width / 2, upper), (-width / 2, beside)):
        spot = place[0] + dx, place[1] + dy
        if left <= spot[0] <= right - width and top <= spot[1] <= bottom - LINE:
            x, y = np.append(x, spot[0]), np.append(y, spot[1])
    away = _distance(x, y, width, place)
    nearest_other = np.min([_distance(x, y, width, other) for other in others], axis=0, initial=np.inf)
    cost = away + 25.0 * (nearest_other < away + MARKER) + 12.0 * _covered(x, y, width, soft)
    cost += 60.0 * _covered(
        x, y, width, [(a - AROUND, b - AROUND, a + AROUND, b + AROUND) for a, b in (place, *others)]
    )
    cost[_covered(x, y, width, taken) > 0] = np.inf
    if not cost.size or not np.isfinite(cost.min()):
        return None
    best = np.unravel_index(int(cost.argmin()), cost.shape)
    return float(x[best]), float(y[best]), float(x[best]) + width, float(y[best]) + LINE


def _distance(x: np.ndarray, y: np.ndarray, width: float, place: tuple[float, float]) -> np.ndarray:
    """How far a place is from a label of `width` at each (x, y)."""
    beside = np.maximum(0, np.maximum(x - place[0], place[0] - x - width))
    return np.hypot(beside, np.maximum(0, np.maximum(y - place[1], place[1] - y - LINE)))


def _covered(x: np.ndarray, y: np.ndarray, width: float, boxes: Sequence[Box]) -> np.ndarray:
    """How many of the boxes a label of `width` at each (x, y) touches."""
    count = np.zeros(x.shape)
    for left, top, right, bottom in boxes:
        count += (x <= right) & (x + width >= left) & (y <= bottom) & (y + LINE >= top)
    return count


def nearest(place: tuple[float, float], box: Box) -> tuple[float, float]:
    """The point of a box that is nearest to a place."""
    return min(max(place[0], box[0]), box[2]), min(max(place[1], box[1]), box[3])
