"""Which structures of a mask file are nodules: those that the user names, and nothing that cannot be one.

A planning CT comes with lungs, spinal cord and target volumes; each of them would be cut, predicted and reported like a
nodule. What is called like an organ or a target volume is left out unless it was asked for by name; what reaches over
more than 60 mm is left out always.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from lidc_xai.errors import UsageError
from lidc_xai.imaging.mask_files import NamedMask, Structures

LARGEST_NODULE_MM = 60.0
"""A nodule has up to 30 mm by definition; twice that leaves room for generous outlines and masses."""

_NODULE = re.compile(r"nodul|lesion|tumou?r|\bmass|metasta|finding|opacit", re.IGNORECASE)
_ORGANS = (
    "lungs?", "lobes?", "spinal", "cord", "canal", "heart", "atri(?:um|a)", "ventricles?", "pericardium", "aorta",
    "o?esophag\\w*", "trachea", "bronch\\w*", "airways?", "carina", "liver", "spleen", "stomach", "kidneys?",
    "pancreas", "gallbladder", "bowel", "colon", "duodenum", "thyroid", "larynx", "brain", "brainstem", "breasts?",
    "ribs?", "sternum", "clavicles?", "scapulae?", "vertebrae?", "humerus", "bones?", "diaphragm", "mediastinum",
    "thymus",
    "chest\\s*wall", "brachial", "plexus", "arter(?:y|ies)", "veins?", "vessels?", "svc", "ivc", "body", "external",
    "outline", "skin", "patient", "couch", "table", "bolus", "contour", "gtv\\w*", "ctv\\w*", "itv\\w*", "ptv\\w*",
    "prv\\w*", "isodose", "dose", "oar",
)  # fmt: skip
_ORGAN = re.compile(rf"(?<![a-z])(?:{'|'.join(_ORGANS)})(?![a-z])", re.IGNORECASE)


def is_organ(name: str) -> bool:
    """Whether a structure is called like an organ, a target volume or a part of the couch, and not like a finding.

    >>> [is_organ(name) for name in ("Lung_L", "SpinalCord", "GTV-1", "BODY", "nodule in left lung", "roi 2")]
    [True, True, True, True, False, False]
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return bool(_ORGAN.search(words)) and not _NODULE.search(name)


def choose_nodules(
    structures: Structures, patterns: Sequence[str] = (), largest_mm: float = LARGEST_NODULE_MM
) -> tuple[list[NamedMask], list[tuple[str, str]]]:
    """The structures to cut, and a (name, reason) for each of the others that was meant, or may have been.

    ``patterns``: names with ``*`` and ``?``, in any case; only what one of them matches is taken. Raises UsageError,
    with the names that there are, where a pattern matches nothing.
    """
    names = [one.label for one in structures.masks] + [name for name, _ in structures.unusable]
    there = f"there are: {', '.join(dict.fromkeys(names))}"
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise UsageError(f"--roi {pattern}: no structure is called so; {there}")
    chosen: list[NamedMask] = []
    refused = [row for row in structures.unusable if not patterns or _any_matches(row[0], patterns)]
    how = f"name the nodules with --roi NAME (* and ? as in file names); {there}"
    for one in structures.masks:
        if patterns and not (_any_matches(one.label, patterns) or _any_matches(one.name, patterns)):
            continue
        if not patterns and is_organ(one.label):
            refused.append((one.name, f"is called {one.label!r}, no nodule by its name; {how}"))
        elif one.extent_mm > largest_mm:
            reason = f"{one.label!r} reaches over {one.extent_mm:.0f} mm, more than any nodule ({largest_mm:g} mm)"
            refused.append((one.name, f"{reason}; {there if patterns else how}"))
        else:
            chosen.append(one)
    return chosen, refused


def _any_matches(name: str, patterns: Sequence[str]) -> bool:
    return any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name.casefold(), pattern.casefold())
