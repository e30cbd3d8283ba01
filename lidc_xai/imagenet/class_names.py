"""Classes of a photograph's classifier by number, by name or by WordNet synset.

The names of ImageNet-1k and of its larger kin (11k, 12k, 21k) come with timm and need no network. Any other classifier
is asked by number, or with a file of names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from lidc_xai.errors import DataError, UsageError

_SUBSETS = {
    1000: "imagenet-1k",
    11221: "imagenet-21k-miil",
    11821: "imagenet-12k",
    21841: "imagenet-22k",
    21842: "imagenet-22k-ms",
    21843: "imagenet-21k-goog",
}
_SHOWN = 6


@dataclass(frozen=True)
class ClassNames:
    """The classes of a classifier in the order of its outputs. A name may hold synonyms, separated by commas.

    >>> ClassNames.of_imagenet(1000).find("boxer")
    242
    """

    names: tuple[str, ...]
    synsets: tuple[str, ...] | None = None

    @classmethod
    def of_imagenet(cls, count: int) -> ClassNames | None:
        """ImageNet's classes for a classifier of that many outputs (1000 and the larger sets), else None."""
        if count not in _SUBSETS:
            return None
        from timm.data import ImageNetInfo

        info = ImageNetInfo(_SUBSETS[count])
        return cls(tuple(info.label_descriptions()), tuple(info.label_names()))

    @classmethod
    def from_file(cls, path: Path, count: int) -> ClassNames:
        """One name per line, as many lines as the classifier has outputs; ``DataError`` else."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: the class names cannot be read ({error})") from None
        while lines and not lines[-1].strip():
            lines.pop()
        if len(lines) != count:
            raise DataError(f"{path}: has {len(lines)} lines; this classifier has {count} classes, one name a line")
        return cls(tuple(line.strip() for line in lines))

    def __len__(self) -> int:
        return len(self.names)

    def short(self, index: int) -> str:
        """The first of a class's names."""
        return self.names[index].split(",")[0].strip()

    def synset(self, index: int) -> str | None:
        return self.synsets[index] if self.synsets else None

    def find(self, text: str) -> int:
        """The class that ``text`` means: a number, a synset (n02108422), one of its names, or part of a name.

        ``UsageError`` where there is none, or more than one: it then lists them with their numbers.
        """
        text = " ".join(text.replace("_", " ").split()).lower()
        if re.fullmatch(r"-?\d+", text):
            return checked_index(int(text), len(self))
        if re.fullmatch(r"n\d{8}", text):
            if self.synsets is None or text not in self.synsets:
                raise UsageError(f"class {text}: this classifier has no such synset")
            return self.synsets.index(text)
        for matches in (self._by_name.get(text, []), [i for i, name in enumerate(self.names) if text in name.lower()]):
            if len(matches) == 1:
                return matches[0]
            if matches:
                listed = "; ".join(f"{i} {self.names[i]}" for i in matches[:_SHOWN])
                more = f" and {len(matches) - _SHOWN} more" if len(matches) > _SHOWN else ""
                raise UsageError(f"class {text!r} is ambiguous: {listed}{more}; give the number")
        near = get_close_matches(text, self._by_name, n=3, cutoff=0.7)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UsageError(f"class {text!r} is not among this classifier's {len(self)} classes{hint}")

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        by_name: dict[str, list[int]] = {}
        for index, names in enumerate(self.names):
            for name in names.lower().split(","):
                by_name.setdefault(name.strip(), []).append(index)
        return by_name


def checked_index(index: int, count: int) -> int:
    """``index`` where it is one of ``count`` classes; else ``UsageError``."""
    if not 0 <= index < count:
        raise UsageError(f"class {index} does not exist; this classifier has classes 0 to {count - 1}")
    return index
