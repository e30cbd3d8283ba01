"""The kinds of input that are damaged."""

from __future__ import annotations

from fuzzing.masks import MASKS
from fuzzing.results import RESULTS
from fuzzing.series import SERIES
from fuzzing.texts import TEXTS
from fuzzing.volumes import VOLUMES
from fuzzing.watch import Kind

KINDS: dict[str, Kind] = {**SERIES, **VOLUMES, **MASKS, **TEXTS, **RESULTS}
