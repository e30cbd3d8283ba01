"""``pretrain``: DINO (arXiv 2104.14294) on the planes of a store, for a site without published weights.

A student sees small and large views of a plane and learns to give what the teacher, its moving average, gives for the
large ones. Loss, projection head and augmentations are lightly's; colour changes are left out, since a plane has none.
"""

from __future__ import annotations

import copy
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum
from lightly.transforms import DINOTransform
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from lidc_xai.data.augmentation import mixed_seed
from lidc_xai.data.dataset import PlaneDataset
from lidc_xai.errors import UsageError
from lidc_xai.files import atomic_path, plain, sha256_of, write_json
from lidc_xai.models.nodule_model import build_backbone
from lidc_xai.models.preprocess import Preprocess
from lidc_xai.training.loop.callbacks import History
from lidc_xai.training.loop.epochs import EpochModule
from lidc_xai.training.loop.record import read_record, run_key
from lidc_xai.training.loop.trainer import is_first_process, run_epochs
from lidc_xai.training.options import OptimiserOptions, PretrainOptions

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore

RECORD = "pretrain.json"
LOCAL_SHARE = 96 / 224
"""Side of a small view as a share of a large one, as in the paper."""


def pretrain(
    store: CropStore,
    out: Path | str,
    *,
    options: PretrainOptions | None = None,
    nodule_ids: Sequence[str] | None = None,
) -> Path:
    """Learn a backbone from the planes of ``nodule_ids`` (all of the store) and write ``out/backbone.safetensors``.

    The path that is returned is what ``model.weights`` of a later run takes. ``out/pretrain.json`` names the patients
    that were seen: no rating was, but their pixels were. The same call continues a run that was killed.
    """
    options, folder = options or PretrainOptions(), Path(out)
    ids = list(nodule_ids) if nodule_ids is not None else store.nodule_ids
    weights, key = folder / "backbone.safetensors", run_key(store, [ids], options)
    record = read_record(folder / RECORD, key)
    if record is not None and record["complete"]:
        return weights
    data = PlaneDataset(store, ids, views=options.views, slices=options.slices)
    module = DinoModule(data.planes, options)
    if is_first_process():  # only now: wrong weights must not bind the folder to a run
        write_json(folder / RECORD, {"key": key, "complete": False})
    history = History(folder / "history.csv")
    run_epochs(module, options, folder, [history], clip=3.0)
    if is_first_process():
        tensors = {name: tensor.cpu().contiguous() for name, tensor in module.teacher.state_dict().items()}
        with atomic_path(weights) as temporary:
            save_file(tensors, temporary)
        done = {
            "key": key,
            "complete": True,
            "patients": sorted(set(data.patient_ids)),
            "nodules": len(ids),
            "sha256": sha256_of(weights),
            "history": history.rows,
        }
        write_json(folder / RECORD, plain(done))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return weights


class PlaneViews(Dataset):
    """Item i: the large and small views of one plane of nodule i // v, in direction i % v of v, (3, s, s) each.

    Standardised. What is drawn depends on seed, epoch and i alone.
    """

    def __init__(self, planes: Tensor, preprocess: Preprocess, options: PretrainOptions, local_size: int) -> None:
        self.planes, self.preprocess, self.seed, self.epoch = planes, preprocess, options.seed, 0
        self.views = DINOTransform(
            global_crop_size=preprocess.size, local_crop_size=local_size, n_local_views=options.local_views,
            vf_prob=0.5, rr_prob=0.5, cj_sat=0.0, cj_hue=0.0, random_gray_scale=0.0, solarization_prob=0.0,
            sigmas=(0.1, 1.0), normalize=None,
        )  # fmt: skip

    def __len__(self) -> int:
        return self.planes.shape[0] * self.planes.shape[1]

    def __getitem__(self, index: int) -> list[Tensor]:
        seed = mixed_seed(self.seed, self.epoch, index)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - lightly's blur draws from the old global generator
        random.seed(seed)
        nodule, view = divmod(index, self.planes.shape[1])
        plane = self.planes[nodule, view, int(torch.randint(self.planes.shape[2], ()))]
        low, high = self.preprocess.window
        grey = ((plane.clamp(low, high) - low) / (high - low) * 255).round().to(torch.uint8)
        picture = Image.fromarray(grey.numpy()).convert("RGB")
        made: list[Any] = self.views(picture)
        return [(image * (high - low) + low - self.preprocess.mean) / self.preprocess.std for image in made]


class DinoModule(EpochModule):
    """Student and teacher, each a backbone and a projection head."""

    options: PretrainOptions

    def __init__(self, planes: Tensor, options: PretrainOptions) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            student: Any = build_backbone(options.backbone, size=options.size, weights=options.weights, any_size=True)
            if not hasattr(student, "patch_embed"):
                raise UsageError(f"backbone {options.backbone!r} is no ViT; self-supervised learning here is for ViTs")
            side, patch = int(student.patch_embed.img_size[0]), int(student.patch_embed.patch_size[0])
            preprocess = Preprocess(size=side).fitted_to(planes)
            small = max(round(side * LOCAL_SHARE / patch), 1) * patch
            optimiser = OptimiserOptions(
                lr=options.lr, weight_decay=options.weight_decay, warmup_epochs=options.warmup_epochs
            )
            super().__init__(PlaneViews(planes, preprocess, options, small), options, optimiser)
            width = int(student.head_hidden_size)
            shape = (width, 4 * width, 256, options.prototypes)
            self.student_head = DINOProjectionHead(*shape, freeze_last_layer=1)
            self.teacher_head = DINOProjectionHead(*shape)
        self.student, self.teacher = student, copy.deepcopy(student)
        self.teacher_head.load_state_dict(self.student_head.state_dict())
        for parameter in [*self.teacher.parameters(), *self.teacher_head.parameters()]:
            parameter.requires_grad_(False)
        warm = max(min(30, options.epochs // 3), 1)
        self.loss = DINOLoss(options.prototypes, teacher_temp=0.07, warmup_teacher_temp_epochs=warm)

    def training_step(self, views: list[Tensor], batch_index: int) -> Tensor:
        done = self.global_step / max(self.steps_per_epoch() * self.options.epochs, 1)
        momentum = 1 - (1 - self.options.momentum) * (math.cos(math.pi * min(done, 1.0)) + 1) / 2
        update_momentum(self.student, self.teacher, m=momentum)
        update_momentum(self.student_head, self.teacher_head, m=momentum)
        with torch.no_grad():
            wanted = [self.teacher_head(_features(self.teacher, view)) for view in views[:2]]
        given = [self.student_head(_features(self.student, view)) for view in views]
        loss = self.loss(wanted, given, epoch=self.current_epoch)
        return self.checked(loss, len(views[0]))

    def on_after_backward(self) -> None:
        self.student_head.cancel_last_layer_gradients(self.current_epoch)


def _features(network: Any, images: Tensor) -> Tensor:
    return network.forward_head(network.forward_features(images), pre_logits=True)
