"""How far apart two ImageNet classes are in WordNet.

    distance(a, b) = 1 − 2 d(m) / (s(a, m) + s(b, m) + 2 d(m)),      m the common ancestor that makes it smallest

with d the depth below the root (entity) and s the number of steps up (Wu and Palmer 1994). 0: the same class; breeds of
dogs 0.1 to 0.3; a desk and a keyboard 0.4; a dog and a bicycle 0.7; 1: nothing in common but the root.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from lidc_xai.errors import UsageError

_FILE = Path(__file__).with_name("wordnet_hypernyms.txt")
_ROOT = "n00001740"


@cache
def hypernyms() -> dict[str, tuple[str, ...]]:
    """Synset → its hypernyms: ImageNet's 1000 synsets and all their ancestors."""
    lines = [line.split() for line in _FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {f"n{first}": tuple(f"n{other}" for other in rest) for first, *rest in lines}


@cache
def ancestors(synset: str) -> dict[str, int]:
    """``synset`` and every ancestor with the fewest steps up to it; ``UsageError`` for a synset that is not here."""
    known = hypernyms()
    if synset not in known:
        raise UsageError(f"synset {synset!r} is none of ImageNet's 1000 classes nor above one of them")
    steps = {synset: 0}
    level = [synset]
    while level:
        above = [(parent, steps[child] + 1) for child in level for parent in known[child] if parent not in steps]
        steps.update(dict(reversed(above)))
        level = list(dict.fromkeys(parent for parent, _ in above))
    return steps


@cache
def steps_down(synset: str) -> int:
    """From the root to ``synset`` along the first hypernym of each."""
    above = hypernyms()[synset]
    return 1 + steps_down(above[0]) if above else 0


def distance(first: str, second: str) -> float:
    """Between two synsets (n02108422), from 0 (the same) to 1."""
    if first == second:
        return 0.0
    a, b = ancestors(first), ancestors(second)
    similarity = 0.0
    for common in a.keys() & b.keys():
        depth = ancestors(common)[_ROOT]
        if depth:
            similarity = max(similarity, 2 * depth / (a[common] + b[common] + 2 * depth))
    return 1.0 - similarity
