"""Texts: reader XML, CSV, YAML, and a whole ``prepare`` over a damaged XML."""

from __future__ import annotations

import csv
from pathlib import Path

from pydantic import Field

from fuzzing.masks import masked_ct
from fuzzing.mutators import Rng, damage_bytes, damage_text, pick
from fuzzing.series import damage_series, identifier, write_series
from fuzzing.watch import Kind
from lidc_xai.annotations import load_nodules
from lidc_xai.config import Config, load_config
from lidc_xai.imaging import prepare_dicom
from lidc_xai.imaging.points import read_points

TEXTS: dict[str, Kind] = {}


def _xml(folder: Path) -> None:
    write_series(folder)
    ratings = "".join(
        f"<{name}>3</{name}>"
        for name in ("subtlety", "internalStructure", "calcification", "sphericity", "margin", "lobulation",
                     "spiculation", "texture", "malignancy")
    )  # fmt: skip
    points = ((8, 8), (14, 8), (14, 12))
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord>\n<yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    roi = f"<roi><imageZposition>-9.0</imageZposition>\n<inclusion>TRUE</inclusion>{edges}</roi>"
    rated = f"<noduleID>N1</noduleID>\n<characteristics>{ratings}</characteristics>\n{roi}"
    session = f"<readingSession>\n<unblindedReadNodule>\n{rated}</unblindedReadNodule>\n</readingSession>\n"
    header = f"<ResponseHeader><SeriesInstanceUid>{identifier('series')}</SeriesInstanceUid></ResponseHeader>\n"
    root = '<LidcReadMessage xmlns="http://www.nih.gov">'
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{root}\n{header}{session * 3}</LidcReadMessage>'
    (folder / "readers.xml").write_text(text, encoding="utf-8")


def _damage_xml(folder: Path, rng: Rng) -> str:
    path = folder / "readers.xml"
    text = path.read_text(encoding="utf-8")
    way = int(rng.integers(8))
    if way == 0:
        encoding = pick(("klingon", "utf-16", "utf-7", "big5", "ascii", "cp037"), rng)
        path.write_text(text.replace("UTF-8", encoding, 1), encoding="utf-8")
        return f"encoding {encoding}"
    if way == 1:
        start, end = text.index("<readingSession>"), text.index("</readingSession>") + 17
        path.write_text(text[:start] + text[start:end] * int(rng.integers(2, 1200)) + text[end:], encoding="utf-8")
        return "many readers"
    if way == 2:
        start, end = text.index("<unblindedReadNodule>"), text.index("</unblindedReadNodule>") + 22
        path.write_text(text[:start] + text[start:end] * int(rng.integers(2, 3000)) + text[end:], encoding="utf-8")
        return "many nodules"
    if way == 3:
        start, end = text.index("<edgeMap>"), text.index("</edgeMap>") + 10
        path.write_text(text[:start] + text[start:end] * int(rng.integers(2, 20000)) + text[end:], encoding="utf-8")
        return "many points"
    if way == 4:
        depth = int(rng.integers(10, 100_000))
        path.write_text(
            text.replace("<readingSession>", "<a>" * depth + "</a>" * depth + "<readingSession>", 1), encoding="utf-8"
        )
        return f"{depth} levels"
    if way == 5:
        entity = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
            f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
        ) + '<!ENTITY f SYSTEM "file:///etc/passwd">]>'  # fmt: skip
        path.write_text(
            text.replace("\n", "\n" + entity, 1).replace("N1", pick(("&j;", "&f;"), rng), 1), encoding="utf-8"
        )
        return "entities"
    return damage_text(path, rng) if way == 6 else damage_bytes(path, rng)


TEXTS["xml"] = Kind(_xml, _damage_xml, lambda folder: load_nodules(folder), slow=2)


def _csv(folder: Path) -> None:
    with (folder / "points.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerows(
            [["nodule_id", "x_lps", "y_lps", "z_lps"], ["Узел 1", 1, 2, 3], ["b", 4.5, -5, 6], ["c", 7, 8, 9]]
        )


def _damage_csv(folder: Path, rng: Rng) -> str:
    path = folder / "points.csv"
    way = int(rng.integers(4))
    if way == 0:
        path.write_bytes(
            path.read_bytes()
            + pick((b'"' + b"x" * 200_000, b"\0" * 50, b"a,b\n" * 1000, "é,1,2,3".encode("utf-16")), rng)
        )
        return "something after the end"
    return damage_text(path, rng) if way == 1 else damage_bytes(path, rng)


def _read_csv(folder: Path) -> None:
    points, _ = read_points(folder / "points.csv")
    for point in points:
        point.to_lps(masked_ct())


TEXTS["csv"] = Kind(_csv, _damage_csv, _read_csv)


class _Values(Config):
    epochs: int = 3
    rates: dict[str, float] = Field(default_factory=dict)
    names: list[str] = Field(default_factory=list)


def _yaml(folder: Path) -> None:
    (folder / "config.yaml").write_text(
        "epochs: 5\nrates:\n  a: 0.1\n  b: 2\nnames: [x, y]\nseed: 3\n", encoding="utf-8"
    )


_ODD_YAML = (
    "a: &a {<<: *a}", "a: &a [*a]", "? [1, 2]\n: 3", "!!python/object/apply:os.system ['true']", "seed: 2020-99-99",
    "epochs: " + "9" * 5000, "rates: !!binary '%%'", "? {a: b}\n: c", "names: !!set {a}",
)  # fmt: skip


def _damage_yaml(folder: Path, rng: Rng) -> str:
    path = folder / "config.yaml"
    way = int(rng.integers(6))
    if way == 0:
        levels = int(rng.integers(3, 12))
        text = "a0: &a0 [x, x]\n" + "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, levels)
        )
        path.write_text(text + f"names: *a{levels - 1}\n", encoding="utf-8")
        return f"aliases of aliases, {levels} levels"
    if way == 1:
        depth = int(rng.integers(40, 20_000))
        path.write_text(
            "names: " + pick(("[" * depth + "]" * depth, "[" * depth, "{a: " * depth), rng), encoding="utf-8"
        )
        return f"{depth} levels"
    if way == 2:
        line = pick(_ODD_YAML, rng)
        path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
        return line[:60]
    return damage_text(path, rng) if way <= 4 else damage_bytes(path, rng)


TEXTS["yaml"] = Kind(_yaml, _damage_yaml, lambda folder: load_config(_Values, folder / "config.yaml"))


def _read_prepare(folder: Path) -> None:
    """All of ``prepare``: it must write its manifest, whatever one file holds."""
    result = prepare_dicom(folder, folder / "store", size_mm=8)
    unexpected = [row.reason for row in result.skipped if row.reason.startswith("unexpected ")]
    if unexpected or not (folder / "store" / "manifest.csv").is_file():
        raise AssertionError(unexpected or "no manifest")


def _damage_prepare(folder: Path, rng: Rng) -> str:
    if rng.random() < 0.3:
        return _damage_xml(folder, rng)
    return damage_series(folder, rng)


TEXTS["prepare"] = Kind(_xml, _damage_prepare, _read_prepare, slow=10)
