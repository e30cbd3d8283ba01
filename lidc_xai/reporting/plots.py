"""Line, bar and dot charts as inline SVG, for pages and PDF alike: light, sharp at any size, no drawing library.

Attributes only (no style sheet reaches an SVG inside a PDF); ``currentColor`` follows light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup, escape

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A6A00", "#56B4E9", "#8B949C", "#8A4FBF")
"""Okabe and Ito's, those that show on white and on black."""
GREY = "#8b949c"
FONTS = "Liberation Sans, Arial, sans-serif"
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 12.0, 36.0


@dataclass
class Chart:
    """A frame in data coordinates; marks are added, then ``svg`` draws it.

    ``x``, ``y``: the two ends of each axis; ``label``: what a screen reader says;
    ``names``: lines of legend to keep room for, above the frame.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    x_title: str = ""
    y_title: str = ""
    label: str = ""
    width: float = 340.0
    height: float = 230.0
    x_ticks: Sequence[float] | None = None
    y_ticks: Sequence[float] | None = None
    names: int = 0
    _marks: list[str] = field(default_factory=list)
    _legend: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def top(self) -> float:
        """Pixel of the frame's upper edge."""
        return _TOP + 13.0 * self.names

    def px(self, value: float) -> float:
        """Pixel of an x value."""
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def py(self, value: float) -> float:
        """Pixel of a y value."""
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return self.height - _BOTTOM - share * (self.height - self.top - _BOTTOM)

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str, name: str = "", dash: str = "none") -> None:
        """Join points; gaps where a value is not finite."""
        path, pen = "", "M"
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                path += f"{pen}{self.px(x):.1f} {self.py(y):.1f}"
                pen = "L"
            else:
                pen = "M"
        dashes = "" if dash == "none" else f' stroke-dasharray="{dash}"'
        self._marks.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"{dashes}/>'
        )
        if name:
            self._legend.append((name, colour, dashes))

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> None:
        """Shade between two lines, where both are known."""
        known = [(x, a, b) for x, a, b in zip(xs, low, high, strict=True) if math.isfinite(a) and math.isfinite(b)]
        if not known:
            return
        points = [(x, a) for x, a, _ in known] + [(x, b) for x, _, b in reversed(known)]
        path = "M" + "L".join(f"{self.px(x):.1f} {self.py(y):.1f}" for x, y in points) + "Z"
        self._marks.append(f'<path d="{path}" fill="{colour}" fill-opacity=".18"/>')

    def dot(self, x: float, y: float, colour: str, radius: float = 3.2, title: str = "") -> None:
        """One point, with a title that a pointer or screen reader finds."""
        if math.isfinite(x) and math.isfinite(y):
            hint = f"<title>{escape(title)}</title>" if title else ""
            place = f'cx="{self.px(x):.1f}" cy="{self.py(y):.1f}"'
            self._marks.append(f'<circle {place} r="{radius}" fill="{colour}">{hint}</circle>')

    def whisker(self, x: float, low: float, high: float, colour: str) -> None:
        """A vertical interval."""
        if math.isfinite(low) and math.isfinite(high):
            at = f"{self.px(x):.1f}"
            self._marks.append(
                f'<line x1="{at}" x2="{at}" y1="{self.py(low):.1f}" y2="{self.py(high):.1f}" stroke="{colour}" '
                'stroke-width="1.4"/>'
            )

    def bar(self, x0: float, x1: float, y: float, colour: str) -> None:
        """A bar from zero (or the lower end) up to ``y``."""
        base = max(self.y[0], 0.0)
        top, bottom = sorted((self.py(y), self.py(base)))
        self._marks.append(
            f'<rect x="{self.px(x0):.1f}" y="{top:.1f}" width="{self.px(x1) - self.px(x0):.1f}" '
            f'height="{bottom - top:.1f}" fill="{colour}" fill-opacity=".75"/>'
        )

    def rule(self, *, x: float | None = None, y: float | None = None) -> None:
        """A thin dashed guide."""
        ends = (
            f'x1="{_LEFT}" x2="{self.width - _RIGHT}" y1="{self.py(y):.1f}" y2="{self.py(y):.1f}"'
            if y is not None
            else f'x1="{self.px(x or 0):.1f}" x2="{self.px(x or 0):.1f}" y1="{self.top}" y2="{self.height - _BOTTOM}"'
        )
        self._marks.append(f'<line {ends} stroke="{GREY}" stroke-width="1" stroke-dasharray="3 3"/>')

    def words(self, x: float, text: str) -> None:
        """A word below the frame, in the place of a tick."""
        self._marks.append(_text(self.px(x), self.height - _BOTTOM + 14, text, "middle"))

    def svg(self) -> Markup:
        """The drawing."""
        head = (
            f'<svg class="chart" viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'aria-label="{escape(self.label)}" font-family="{FONTS}" font-size="10.5">'
        )
        return Markup(head + self._frame() + "".join(self._marks) + self._names() + "</svg>")

    def _frame(self) -> str:
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        parts = []
        for value in ticks(*self.x) if self.x_ticks is None else self.x_ticks:
            at = f"{self.px(value):.1f}"
            parts.append(f'<line x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 3}" stroke="{GREY}"/>')
            parts.append(_text(self.px(value), bottom + 13, number(value), "middle"))
        for value in ticks(*self.y) if self.y_ticks is None else self.y_ticks:
            at = f"{self.py(value):.1f}"
            grid = f'y1="{at}" y2="{at}" stroke="{GREY}" stroke-opacity=".3"'
            parts.append(f'<line x1="{_LEFT}" x2="{right}" {grid}/>')
            parts.append(_text(_LEFT - 5, self.py(value) + 3.5, number(value), "end"))
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="{GREY}"/>')
        parts.append(_text((_LEFT + right) / 2, self.height - 7, self.x_title, "middle"))
        middle = (self.top + bottom) / 2
        turn = f' transform="rotate(-90 11 {middle:.1f})"'
        parts.append(_text(11, middle, self.y_title, "middle", turn))
        return "".join(parts)

    def _names(self) -> str:
        parts = []
        for place, (name, colour, dashes) in enumerate(self._legend):
            y = _TOP - 4 + 13 * place
            right = self.width - _RIGHT
            mark = f'x1="{right - 18}" x2="{right}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"{dashes}'
            parts.append(f"<line {mark}/>" + _text(right - 22, y + 3.5, name, "end"))
        return "".join(parts)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between two ends."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return []
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(count * step, 10) for count in range(first, math.floor(high / step + 1e-9) + 1)]


def limits(*series: Any, margin: float = 0.06) -> tuple[float, float]:
    """The two ends of an axis for some series of numbers, with room; (0, 1) where nothing is finite."""
    values = np.concatenate([np.asarray(one, dtype=np.float64).ravel() for one in series]) if series else np.empty(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room


def number(value: float) -> str:
    """A tick's text: few digits, a true minus."""
    return f"{value:.4g}".replace("-", "−")


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor"{more}>{escape(text)}</text>'
