"""Small charts as inline SVG: a rating's scale with the readers' votes and the model's value.

Attributes only (no style sheet reaches an SVG inside a PDF); ``currentColor`` follows light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from markupsafe import Markup

from lidc_xai.ratings import SCALES
from lidc_xai.reporting.nodule.words import deletion_order
from lidc_xai.reporting.pictures import READER_COLOURS
from lidc_xai.reporting.plots import COLOURS, FONTS, Chart, limits
from lidc_xai.reporting.values import show

if TYPE_CHECKING:
    from lidc_xai.reporting.nodule.fact_types import Output, Prediction, Readings

_GREY = "#8b949c"
_WIDTH, _LEFT, _RIGHT = 190.0, 9.0, 181.0
_BESIDE = 100.0
_HEIGHT, _MODEL_Y, _READER_Y, _DOT = 38.0, 6.5, 33.0, 2.8


def rating_strip(output: Output, ends: bool = False) -> Markup:
    """Scale of one output with every reader's vote, their mean ± SD, and the model's value with its 90 % interval.

    ``ends``: with the words of both ends of the scale beside it. Of malignancy only the votes: the model's probability
    is another quantity, see ``probability_strip``.
    """
    readers, prediction = output["readers"], output["prediction"]
    low, high, steps = _axis(output)
    parts = [_grid(low, high, steps)]
    if readers["mean"] is not None:
        parts.append(_readers(readers, low, high))
    if prediction is not None and output["kind"] != "probability":
        parts.append(_model(prediction, low, high))
    return _framed(parts, f"{output['title']}: {_in_text(output)}", output["ends"] if ends else [])


def probability_strip(output: Output, ends: bool = False) -> Markup:
    """An axis from 0 to 1 with the model's probability; of calcification also the share of readers who saw any."""
    readers, prediction = output["readers"], output["prediction"]
    parts = [_grid(0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0])]
    if output["kind"] == "any" and readers["mean"] is not None:
        at = _place(readers["mean"], 0.0, 1.0)
        parts.append(_mark(at))
    if prediction is not None:
        spread = {**prediction, "low": prediction["least"], "high": prediction["greatest"]}
        parts.append(_model(cast("Prediction", spread), 0.0, 1.0))
    value = "no prediction" if prediction is None else show(prediction["value"], 2)
    return _framed(parts, f"{output['title']}: probability {value}", ["0", "1"] if ends else [])


def _framed(parts: list[str], label: str, ends: list[str]) -> Markup:
    beside = _BESIDE if ends else 0.0
    svg = Markup(
        '<svg class="strip" viewBox="{0} 0 {1} {2}" width="{1}" height="{2}" role="img" aria-label="{3}" '
        'xmlns="http://www.w3.org/2000/svg">'
    ).format(f"{-beside:g}", f"{_WIDTH + 2 * beside:g}", f"{_HEIGHT:g}", label)
    for words, x, anchor in zip(ends, (-3, _WIDTH + 3), ("end", "start"), strict=True) if ends else ():
        text = '<text x="{0}" y="22" font-size="13" text-anchor="{1}" font-family="{2}" fill="#4b545c">{3}</text>'
        svg += Markup(text).format(x, anchor, FONTS, words)
    return svg + Markup("".join(parts) + "</svg>")


def _axis(output: Output) -> tuple[float, float, list[float]]:
    if output["name"] != "diameter":
        scale = SCALES[output["name"]]
        return scale.low, scale.high, [float(step) for step in range(int(scale.low), int(scale.high) + 1)]
    predicted = output["prediction"]
    ends = [predicted["value"], predicted["high"] or 0.0] if predicted else []
    largest = max([30.0, *ends, *output["readers"]["votes"]])
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


def _readers(readers: Readings, low: float, high: float) -> str:
    parts = []
    mean, sd = readers["mean"] or 0.0, readers["sd"]
    if sd:
        start, end = (_place(mean + sign * sd, low, high) for sign in (-1, 1))
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
    parts.append(_mark(_place(mean, low, high)))
    return "".join(parts)


def _mark(x: float) -> str:
    """What readers say on the whole."""
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_READER_Y - 5}" y2="{_READER_Y + 5}" stroke="currentColor" '
        'stroke-width="1.4"/>'
    )


def _model(prediction: Prediction, low: float, high: float) -> str:
    value = prediction["value"]
    start, end = prediction["low"], prediction["high"]
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


def _in_text(output: Output) -> str:
    readers, prediction = output["readers"], output["prediction"]
    model = "no prediction" if prediction is None else f"model {show(prediction['value'], 2)}"
    return f"{model}; readers' mean {show(readers['mean'], 1)}, n = {readers['n']}"


def deletion_chart(output: str, curve: Mapping[str, Any], unit: str) -> Markup:
    """Score of an output while pixels are replaced, most relevant first and least relevant first.

    ``curve``: ``percent``, ``mif``, ``lif``: lists of the same length. ``unit``: of the score.
    """
    percent, most, least = (list(map(float, curve[name])) for name in ("percent", "mif", "lif"))
    chart = Chart(
        (0.0, 100.0), limits(most, least), "% of pixels replaced", f"score ({unit})", f"Deletion curve of {output}",
        260, 190, names=2,
    )  # fmt: skip
    chart.line(percent, most, COLOURS[1], "most relevant first")
    chart.line(percent, least, COLOURS[0], "least relevant first", "4 2")
    return chart.svg()


def deletion_caption(curve: Mapping[str, Any], unit: str) -> str:
    """What these very curves show: where the score ends, and whether the map's order is borne out."""
    lost = curve.get("removed")
    end = (
        ""
        if lost is None
        else f"{'falls' if lost > 0 else 'rises'} by {show(abs(lost), 2)} {unit} when all is replaced; "
    )
    order = deletion_order(curve)
    if order == "untold":
        return f"{end}the two curves lie no further apart than those of a random map may"
    lower = "lies lower" if order == "follows" else "lies higher"
    borne = "is borne out" if order == "follows" else "is not borne out"
    return f"{end}it {lower} when the most relevant go first: the order of the map {borne}"
