"""Small charts as inline SVG: a rating's scale with the readers' votes and the model's value.

Attributes only (no style sheet reaches an SVG inside a PDF); ``currentColor`` follows light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from lidc_xai.ratings import SCALES
from lidc_xai.reporting.pictures import READER_COLOURS
from lidc_xai.reporting.plots import COLOURS, FONTS, Chart, limits
from lidc_xai.reporting.values import show

_GREY = "#8b949c"
_WIDTH, _LEFT, _RIGHT = 190.0, 9.0, 181.0
_BESIDE = 100.0
_HEIGHT, _MODEL_Y, _READER_Y, _DOT = 38.0, 6.5, 33.0, 2.8


def rating_strip(output: Mapping[str, Any], ends: bool = False) -> Markup:
    """Scale of one output with every reader's vote, their mean ± SD, and the model's value with its spread.

    ``output`` is an entry of the facts' ``outputs``. ``ends``: with the words of both ends of the scale beside it. The
    model's probability of a high rating has another scale than the votes: it is drawn from 0 to 1 over the same length.
    """
    readers, prediction = output["readers"], output["prediction"]
    low, high, steps = _axis(output)
    parts = [_grid(low, high, steps)]
    if readers["mean"] is not None:
        parts.append(_readers(readers, low, high))
    if prediction is not None:
        span = (0.0, 1.0) if output["kind"] == "binary" else (low, high)
        parts.append(_model(prediction, *span))
    label = f"{output['title']}: {_in_text(output)}"
    beside = _BESIDE if ends else 0.0
    svg = Markup(
        '<svg class="strip" viewBox="{0} 0 {1} {2}" width="{1}" height="{2}" role="img" aria-label="{3}" '
        'xmlns="http://www.w3.org/2000/svg">'
    ).format(f"{-beside:g}", f"{_WIDTH + 2 * beside:g}", f"{_HEIGHT:g}", label)
    for words, x, anchor in zip(output["ends"], (-3, _WIDTH + 3), ("end", "start"), strict=True) if ends else ():
        text = '<text x="{0}" y="22" font-size="13" text-anchor="{1}" font-family="{2}" fill="#4b545c">{3}</text>'
        svg += Markup(text).format(x, anchor, FONTS, words)
    return svg + Markup("".join(parts) + "</svg>")


def _axis(output: Mapping[str, Any]) -> tuple[float, float, list[float]]:
    if output["name"] != "diameter":
        scale = SCALES[output["name"]]
        return scale.low, scale.high, [float(step) for step in range(int(scale.low), int(scale.high) + 1)]
    prediction = (output["prediction"] or {}).get("value") or 0.0
    largest = max([30.0, prediction, *output["readers"]["votes"]])
    top = 10.0 * (int(largest / 10) + (largest % 10 > 0))
    return 0.0, top, [10.0 * step for step in range(int(top / 10) + 1)]


def _place(value: float, low: float, high: float) -> float:
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return _LEFT + share * (_RIGHT - _LEFT)


def _grid(low: float, high: float, steps: list[float]) -> str:
    ticks = "".join(f"M{_place(step, low, high):.1f} 2V{_HEIGHT - 1:g}" for step in steps)
    return (
        f'<path d="{ticks}" fill="none" stroke="{_GREY}" stroke-opacity=".35" stroke-width=".8"/>'
        f'<path d="M{_LEFT} {_READER_Y}H{_RIGHT}" fill="none" stroke="{_GREY}" stroke-width=".8"/>'
    )


def _readers(readers: Mapping[str, Any], low: float, high: float) -> str:
    parts = []
    if readers["sd"]:
        start, end = (_place(readers["mean"] + sign * readers["sd"], low, high) for sign in (-1, 1))
        parts.append(
            f'<line x1="{start:.1f}" x2="{end:.1f}" y1="{_READER_Y}" y2="{_READER_Y}" stroke="{_GREY}" '
            'stroke-width="3" stroke-opacity=".55"/>'
        )
    seen: dict[float, int] = {}
    for index, vote in enumerate(readers["votes"]):
        repeat = seen.get(vote, 0)
        seen[vote] = repeat + 1
        x, y = _place(vote, low, high), _READER_Y - 2 * _DOT * repeat
        colour = READER_COLOURS[index % len(READER_COLOURS)]
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}" fill="{colour}" stroke="#20262b" stroke-width=".7"/>'
        )
    middle = _place(readers["mean"], low, high)
    parts.append(
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{_READER_Y - 5}" y2="{_READER_Y + 5}" stroke="currentColor" '
        'stroke-width="1.4"/>'
    )
    return "".join(parts)


def _model(prediction: Mapping[str, Any], low: float, high: float) -> str:
    value = prediction["value"]
    start, end = prediction["low"], prediction["high"]
    if (start is None or end is None) and prediction["sd"] is not None:
        start, end = value - prediction["sd"], value + prediction["sd"]
    parts = []
    if start is not None and end is not None:
        left, right = _place(start, low, high), _place(end, low, high)
        parts.append(
            f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{_MODEL_Y}" y2="{_MODEL_Y}" stroke="currentColor" '
            'stroke-width="1.4"/>'
        )
    x = _place(value, low, high)
    parts.append(
        f'<path d="M{x - 5:.1f} {_MODEL_Y}L{x:.1f} {_MODEL_Y - 5}L{x + 5:.1f} {_MODEL_Y}L{x:.1f} {_MODEL_Y + 5}Z" '
        'fill="currentColor"/>'
    )
    return "".join(parts)


def _in_text(output: Mapping[str, Any]) -> str:
    readers, prediction = output["readers"], output["prediction"]
    model = "no prediction" if prediction is None else f"model {show(prediction['value'], 2)}"
    return f"{model}; readers' mean {show(readers['mean'], 1)}, n = {readers['n']}"


def deletion_chart(output: str, curve: Mapping[str, Any]) -> Markup:
    """Score of an output while pixels are replaced, most relevant first and least relevant first.

    ``curve``: ``percent``, ``mif``, ``lif``: lists of the same length.
    """
    percent, most, least = (list(map(float, curve[name])) for name in ("percent", "mif", "lif"))
    chart = Chart(
        (0.0, 100.0),
        limits(most, least),
        "% of pixels replaced",
        "score",
        f"Deletion curve of {output}",
        260,
        190,
        names=2,
    )
    chart.line(percent, most, COLOURS[1], "most relevant first")
    chart.line(percent, least, COLOURS[0], "least relevant first", "4 2")
    return chart.svg()
