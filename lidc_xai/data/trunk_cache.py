"""Tokens of a frozen trunk on disk: every plane in its eight turns and mirrors, computed once for all folds and seeds.

FOLDER/ tokens.bin (n, V, K, turns, T, width), memory-mapped; trunk.json: what they were made from, and how many are
done. A build that was killed goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lidc_xai.data.augmentation import Augmentation
from lidc_xai.data.dataset import PlaneDataset, TrainingPlanes
from lidc_xai.data.transforms import Item
from lidc_xai.errors import DataError, StorageError, UsageError
from lidc_xai.files import write_json
from lidc_xai.models.digest import tensors_digest
from lidc_xai.models.inference import TURNS, turned
from lidc_xai.models.trunk import after_trunk, trunk_depth, trunk_modules, trunk_tokens
from lidc_xai.progress import track

if TYPE_CHECKING:
    from lidc_xai.models.nodule_model import NoduleModel

_WORDS = {
    "preprocess": "other preprocessing", "slices": "another number of slices", "depth": "another number of blocks",
    "views": "other views", "precision": "another precision", "mixed": "products of another precision",
    "weights": "other weights",
}  # fmt: skip  # weights last: another size or depth changes their hash too
_EVERY = 32
"""Nodules between two records of what is done."""


class TrunkCache:
    """The tokens before block ``depth`` of all planes of ``data`` that ``model`` can read.

    ``precision``: of the tokens on disk; ``mixed``: the trunk computes them with bfloat16 products.

    Raises ``UsageError`` where ``folder`` holds tokens of another trunk or of other planes, ``StorageError`` where the
    disk has no room for them.
    """

    def __init__(
        self,
        folder: Path | str,
        model: NoduleModel,
        data: PlaneDataset,
        learning_blocks: int,
        precision: str = "float16",
        mixed: bool = False,
    ) -> None:
        self.folder, self.depth, self.data = Path(folder), trunk_depth(model, learning_blocks), data
        margin = model.preprocess.planes_per_input - 1
        self.slices = data.slices - margin
        reads = replace(model.preprocess, views=data.views, slices=self.slices, turns=1, box_mm=None, spacing_mm=None)
        made_from = {
            "weights": tensors_digest(trunk_modules(model, self.depth)), "preprocess": reads.to_json(),
            "slices": self.slices, "depth": self.depth, "views": list(data.views), "precision": precision,
            "mixed": mixed,
        }  # fmt: skip
        network: Any = model.backbone
        tokens = int(network.patch_embed.num_patches) + int(network.num_prefix_tokens)
        each = (len(data.views), self.slices, TURNS, tokens, int(network.num_features))
        planes = {name: tensors_digest({"": data.planes[row]}) for row, name in enumerate(data.nodule_ids)}
        record = self._record(made_from, planes)
        if record is None:
            self._check_room(len(planes) * int(np.prod(each)) * np.dtype(precision).itemsize)
            record = {**made_from, "planes": planes, "done": 0}
        place = {name: row for row, name in enumerate(record["planes"])}
        self.rows = [place[name] for name in data.nodule_ids]
        shape = (len(record["planes"]), *each)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"trunk.folder {self.folder}: cannot be made ({error.strerror})") from None
        path = self.folder / "tokens.bin"
        if record["done"] < shape[0]:
            self._build(path, shape, precision, record, model, reads)
        self.tokens = np.memmap(path, dtype=precision, mode="r", shape=shape)

    def __getitem__(self, places: Sequence[tuple[int, int, int, int]]) -> Tensor:
        """(n, T, width) of planes, each by its row of the dataset, view, slice counted from the first, and turn."""
        rows, *others = np.array(places).T
        return torch.from_numpy(self.tokens[(np.array(self.rows)[rows], *others)])

    def outputs(self, model: NoduleModel, rows: Sequence[int], batch_size: int = 256) -> Tensor:
        """What ``view_outputs`` gives for these rows of the dataset, from the cached tokens: (n, V·slices, outputs)."""
        parameter, first = next(model.head.parameters()), self.slices // 2 - model.preprocess.slices // 2
        numbers = range(first, first + model.preprocess.slices)
        views = [self.data.views.index(view) for view in model.preprocess.views]
        places = [
            (row, view, number, turn)
            for row in rows for view in views for number in numbers for turn in range(model.preprocess.turns)
        ]  # fmt: skip
        was_training = model.training
        model.eval()
        parts = []
        try:
            with torch.inference_mode():
                for start in range(0, len(places), batch_size):
                    batch = self[places[start : start + batch_size]]
                    parts.append(after_trunk(model, batch.to(parameter), self.depth)[1].float().cpu())
        finally:
            model.train(was_training)
        shape = (len(rows), len(views) * len(numbers), model.preprocess.turns, len(model.output_names))
        return torch.cat(parts).reshape(shape).mean(2)

    def _record(self, made_from: dict[str, Any], planes: dict[str, str]) -> dict[str, Any] | None:
        path = self.folder / "trunk.json"
        if not path.is_file():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise UsageError(f"{self.folder}: holds something that is no cache of a trunk; choose another folder")
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            other = [words for name, words in _WORDS.items() if record[name] != made_from[name]]
            if record["preprocess"] != made_from["preprocess"]:
                before, now = record["preprocess"], made_from["preprocess"]
                field = next(name for name in sorted({*now, *before}) if before.get(name, "") != now.get(name, ""))
                other[0] += f" ({field} {before.get(field)}, now {now.get(field)})"
            if not other and any(record["planes"].get(name) != digest for name, digest in planes.items()):
                other = ["other planes"]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete {self.folder} and start again") from error
        if other:
            raise UsageError(
                f"{self.folder}: this cache was made with {other[0]}; choose another trunk.folder or delete it"
            )
        return record

    def _check_room(self, needed: int) -> None:
        home = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
        free = shutil.disk_usage(home).free
        if free < needed:
            raise StorageError(
                f"{self.folder}: the cache needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
                "free space, choose another trunk.folder, or read fewer slices or views"
            )

    def _build(
        self, path: Path, shape: tuple[int, ...], precision: str, record: dict[str, Any], model: NoduleModel, reads: Any
    ) -> None:
        if [name for name in record["planes"] if name not in set(self.data.nodule_ids)]:
            raise UsageError(f"{self.folder}: this cache is unfinished and of other nodules; finish or delete it")
        row_of = {name: row for row, name in enumerate(self.data.nodule_ids)}
        parameter = next(model.parameters())
        was_training = model.training
        model.eval()
        try:
            if not path.exists() or path.stat().st_size != int(np.prod(shape)) * np.dtype(precision).itemsize:
                record["done"] = 0
                write_json(self.folder / "trunk.json", record)
                np.memmap(path, dtype=precision, mode="w+", shape=shape).flush()
            tokens = np.memmap(path, dtype=precision, mode="r+", shape=shape)
            names = list(record["planes"])[record["done"] :]
            for name in track(names, "trunk", len(names)):
                inputs = reads.inputs(self.data.planes[row_of[name]]).to(parameter)
                with (
                    torch.inference_mode(),
                    torch.autocast(parameter.device.type, torch.bfloat16, enabled=record["mixed"]),
                ):
                    turns = torch.stack([turned(inputs, turn) for turn in range(TURNS)], dim=1).flatten(0, 1)
                    made = trunk_tokens(model, reads.apply(turns), self.depth).float().cpu()
                tokens[record["done"]] = made.numpy().astype(precision).reshape(shape[1:])
                record["done"] += 1
                if record["done"] % _EVERY == 0 or record["done"] == shape[0]:
                    tokens.flush()
                    write_json(self.folder / "trunk.json", record)
        except OSError as error:
            raise StorageError(f"{self.folder}: the cache cannot be written ({error.strerror or error})") from error
        finally:
            model.train(was_training)


class TrunkPlanes(TrainingPlanes):
    """``TrainingPlanes`` whose items hold the plane's cached ``tokens`` (T, width) in place of its ``image``; the mask
    is turned already. Shifts, zooms and changes of HU cannot be cached and must be off.
    """

    def __init__(
        self, cache: TrunkCache, rows: Sequence[int], augment: Augmentation, seed: int = 0, channels: int = 1
    ) -> None:
        super().__init__(cache.data, rows, augment, seed, channels)
        self.cache = cache

    def drawn(self, row: int, seed: int, epoch: int) -> Item:
        name = self.data.data[row]["nodule_id"]
        draw = self.augment.draw(name, seed, epoch, len(self.data.views))
        tokens = self.cache[[(row, draw.view, self.cache.slices // 2 + draw.slice, draw.turn)]][0]
        sample = {"row": row, "tokens": tokens, "numbers": draw.numbers()}
        item = PlaneDataset._transform(self.data, row)
        if "masks" in item:
            sample["mask"] = turned(item["masks"][draw.view, self.data.slices // 2 + draw.slice], draw.turn)
        return sample
