"""Names that users give to nodules and structures, as names of folders: any script, and nothing a path could mean."""

from __future__ import annotations

import hashlib
import re
import unicodedata

MOST_BYTES = 100
"""File systems allow 255 bytes for a name; temporary names are longer than their target."""


def path_safe(text: str, default: str = "") -> str:
    """``text`` with letters and digits of any script, ``.``, ``_`` and ``-``; everything else becomes one ``-``.

    Composed (NFC), without ``-`` and ``.`` at its ends, at most 100 bytes of UTF-8 (longer ones keep their beginning
    and get a hash); ``default`` where nothing is left.

    >>> path_safe("Узел 1"), path_safe("../../etc"), path_safe("???", "point")
    ('Узел-1', 'etc', 'point')
    """
    name = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", text)).strip("-.")
    if len(name.encode()) > MOST_BYTES:
        mark = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = name.encode()[: MOST_BYTES - 9].decode("utf-8", "ignore").rstrip("-.") + f"-{mark}"
    return name or default
