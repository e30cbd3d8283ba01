"""HTML text to PDF by WeasyPrint: tagged, with bookmarks, nothing fetched."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from lidc_xai.errors import DependencyError, UsageError
from lidc_xai.files import atomic_path

PAPERS = ("A4", "Letter")
DEBIAN_PACKAGES = "libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0"


class Pictures(dict[str, str]):
    """Pictures beside a text, by name: ``data:`` addresses, or SVG that a template drew and gave to ``keep``."""

    def keep(self, svg: str) -> str:
        """Hold ``svg`` and return its new name."""
        name = f"drawn-{len(self)}"
        self[name] = str(svg).strip()
        return name


@lru_cache(maxsize=1)
def load_weasyprint() -> ModuleType:
    """WeasyPrint, or ``DependencyError`` naming the Debian packages where the system lacks Pango."""
    from PIL import ImageFile

    tolerated = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        import weasyprint
        import weasyprint.urls
    except OSError as error:
        raise DependencyError(
            f"PDF needs Pango from the system ({str(error).splitlines()[0]}): apt install {DEBIAN_PACKAGES}; "
            "the HTML is written all the same"
        ) from error
    # it lets the whole process read half of a picture without a word: a damaged CT slice or photograph, too
    ImageFile.LOAD_TRUNCATED_IMAGES = tolerated
    for name in ("weasyprint", "fontTools"):
        logging.getLogger(name).setLevel(logging.ERROR)  # unknown screen-only CSS is not news to the reader
    return weasyprint


def check_paper(paper: str) -> str:
    """``paper`` where it is one of ``PAPERS``, else ``UsageError``."""
    if paper not in PAPERS:
        raise UsageError(f"paper {paper!r} is not known; choose one of {', '.join(PAPERS)}")
    return paper


TIGHTER = (
    ".research { font-size: 6.5pt; padding: .6mm } .simulated { font-size: 7.5pt; padding: .6mm } "
    ".head { grid-template-columns: 36mm 1fr } .head .key img.row { width: 36mm !important; height: auto !important }",
    "ul.flags li { font-size: 6.5pt } ul.flags b { font-size: 7pt; display: inline; margin-right: 1mm } "
    ".onepage, .numbers td { font-size: 7pt } th[scope=row] { font-size: 8pt } .numbers td small { font-size: 6.5pt }",
    "ul.flags li { padding: .2mm 1.5mm } .onepage p, .onepage li { line-height: 1.15 } .box { font-size: 7pt }",
)
"""Style sheets that are added one after the other until a page of its own fits."""


def write_pdf(
    html: str,
    path: Path | str,
    paper: str = "A4",
    pictures: Mapping[str, str] | None = None,
    one_page: bool = False,
    style: str = "",
) -> Path:
    """Write ``html`` (self-contained) as a tagged PDF with bookmarks of its headings, atomically.

    ``one_page``: draw it tighter, step by step, until it fits on one page. ``style``: a style sheet that ``html`` does
    not hold itself, so that it is parsed once a process and not once a page.

    ``pictures``: see ``Pictures``. The text shows one as ``picture:<name>``, many times if it wants; it is held once.
    """
    weasyprint = load_weasyprint()
    path = Path(path)
    document = _page_kind()(string=html, url_fetcher=_fetcher(weasyprint, pictures or {}))
    with atomic_path(path) as temporary:
        for count in range(len(TIGHTER) + 1 if one_page else 1):
            sheets, fonts = [_sheet(check_paper(paper), count, style)], _fonts()
            rendered = document.render(pdf_variant="pdf/ua-1", stylesheets=sheets, font_config=fonts)
            if len(rendered.pages) == 1:
                break
        rendered.write_pdf(temporary, pdf_variant="pdf/ua-1")
    return path


@lru_cache(maxsize=1)
def _page_kind() -> Any:
    """WeasyPrint's page without the rules for notes of its own style sheet: five styles more for every element, which
    are a tenth of a page's time, for footnotes that no page has."""
    weasyprint = load_weasyprint()
    rules = (files("weasyprint.css") / "html5_ua.css").read_text(encoding="utf-8").splitlines()
    kept = "\n".join(line for line in rules if not line.startswith(("::footnote", "::note")))
    sheet = weasyprint.CSS(string=kept)

    class Page(weasyprint.HTML):  # type: ignore[name-defined]
        def _ua_stylesheets(self, forms: bool = False) -> list[Any]:
            return [sheet]

    return Page


@lru_cache(maxsize=16)
def _sheet(paper: str, tighter: int, style: str) -> Any:
    """``style``, size of the page and the first so many steps of ``TIGHTER``, parsed once a process."""
    steps = " ".join(TIGHTER[:tighter])
    text = f"{style} @page {{ size: {paper} }} @media print {{{steps}}}"
    return load_weasyprint().CSS(string=text, font_config=_fonts())


@lru_cache(maxsize=1)
def _fonts() -> Any:
    """The system's fonts, looked up once a process: no page brings fonts of its own."""
    from weasyprint.text.fonts import FontConfiguration

    return FontConfiguration()


def _fetcher(weasyprint: ModuleType, pictures: Mapping[str, str]) -> Any:
    """What the text may load: ``data:`` addresses and the given pictures. Nothing of files or networks."""

    class OwnPictures(weasyprint.urls.URLFetcher):  # type: ignore[name-defined]
        def fetch(self, url: str, headers: Any = None) -> Any:
            name = url.removeprefix("picture:")
            if name != url and name in pictures:
                kind, _, body = pictures[name].partition(";base64,")
                if body:
                    return weasyprint.urls.URLFetcherResponse(url, base64.b64decode(body))
                return weasyprint.urls.URLFetcherResponse(url, kind, {"Content-Type": "image/svg+xml"})
            return super().fetch(url, headers)

    return OwnPictures(allowed_protocols=("data",))
