"""Templates to text: one Jinja environment, autoescaped, with the style and script of the package inside the page."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lidc_xai import __version__
from lidc_xai.ratings import OUTPUTS, RESEARCH_USE_ONLY, SCALES
from lidc_xai.reporting.nodule.charts import deletion_caption, deletion_chart, probability_strip, rating_strip
from lidc_xai.reporting.nodule.facts import method_title
from lidc_xai.reporting.pictures import (
    CONSENSUS_COLOUR,
    READER_COLOURS,
    READER_DASHES,
    signed_gradient_css,
)
from lidc_xai.reporting.values import show, show_figure, show_probability, show_score, summary

# Unicode controls that turn or hide text: a field that holds one would misplace what is printed after it.
_CONTROLS = dict.fromkeys((*range(8234, 8239), *range(8294, 8298), 8206, 8207, 1564), "�")
_CONTROLS |= {code: " " for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def harmless(value: object) -> str:
    """Text without characters that turn the direction of writing or cannot be printed."""
    return str(value).translate(_CONTROLS)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates of this package. Every value is escaped; a name that a template misspells is an error."""
    env = Environment(
        loader=PackageLoader("lidc_xai.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            value if isinstance(value, Markup) else harmless(value) if isinstance(value, str) else value
        ),
    )
    env.filters.update(
        show=show,
        score=show_score,
        chance=show_probability,
        strip=rating_strip,
        probability=probability_strip,
        figure=show_figure,
        summary=summary,
        method_title=method_title,
        lines=str.splitlines,
        plain_name=lambda name: str(name).replace("_", " "),
    )
    env.globals.update(
        version=__version__,
        research_use_only=RESEARCH_USE_ONLY,
        scales=SCALES,
        output_names=OUTPUTS,
        reader_colours=READER_COLOURS,
        reader_dashes=READER_DASHES,
        consensus_colour=CONSENSUS_COLOUR,
        signed_gradient=Markup(signed_gradient_css()),
        positive_gradient=Markup(signed_gradient_css(first=0)),
        style=Markup(asset("report.css")),
        deletion=deletion_chart,
        deletion_caption=deletion_caption,
        asset=lambda name: Markup(asset(name)),
        glossary="",  # address of the page of words, where one lies beside a page
    )
    return env


def render(template: str, **values: Any) -> str:
    """Text of a template of this package, no line of which breaks between a figure and its unit. ``glossary``: address
    of the page of words, where one lies beside it.
    """
    return unbroken(environment().get_template(template).render(**values))


_PROGRAM = re.compile(r"(<(?:script|style)\b.*?</(?:script|style)>)", re.DOTALL)
_TOGETHER = re.compile(
    r" (?:(?<=[\d)] )(?=(?:<(?:span|small)[^>]*>)?(?:(?:%|mm|HU|SD|logit)(?![\w-])|±))|(?<=± )(?=\d)"
    r"|(?<=\d, )(?=[\d.]+\])|(?<=\b[nzpP] )(?==)|(?<=\b[nzpP] = )(?=\S))"
)


def unbroken(page: str) -> str:
    """A page's text with a space that does not break between a figure and its unit, in ± and in intervals.

    >>> unbroken("<p>5.1 ± 0.2 mm, n = 4, 89 % [86, 91]</p><script>5 % 3</script>").replace("\xa0", "_")
    '<p>5.1_±_0.2_mm, n_=_4, 89_% [86,_91]</p><script>5 % 3</script>'
    """
    parts = _PROGRAM.split(page)
    return "".join(part if place % 2 else _TOGETHER.sub("\xa0", part) for place, part in enumerate(parts))


@lru_cache(maxsize=8)
def asset(name: str) -> str:
    """A style sheet or script of the package."""
    return files("lidc_xai.reporting").joinpath("templates", name).read_text(encoding="utf-8")
