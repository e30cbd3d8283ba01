"""Every choice of a training run as validated fields: what a YAML file may hold, with ranges and defaults."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from lidc_xai.config import Options
from lidc_xai.data.augmentation import Augmentation, Slices
from lidc_xai.ratings import OUTPUTS

Views = list[Literal["axial", "coronal", "sagittal"]]


class ModelOptions(Options):
    """What is built: the arguments of ``build_model``.

    >>> ModelOptions(backbone="vit_nodule_p8").backbone
    'vit_nodule_p8'
    """

    backbone: str = Field(default="vit_small64_p8", description="A name of `info backbones` or any timm name.")
    outputs: list[str] = Field(default=list(OUTPUTS), min_length=1, description="Outputs to learn.")
    weights: str | None = Field(
        default=None, description='"pretrained", a path to the official file, or none (random).'
    )
    head: Literal["linear", "mlp", "bottleneck"] = Field(default="linear", description="Kind of head.")
    hidden: int | None = Field(
        default=None, ge=1, description="Width of an mlp's middle layer (none: the backbone's width)."
    )
    size: int | None = Field(default=None, ge=16, description="Side of the input in pixels (none: the backbone's own).")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout in the head.")
    backbone_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout inside a ViT's blocks.")

    @field_validator("outputs")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        unknown = [name for name in names if name not in OUTPUTS]
        if unknown or len(set(names)) < len(names):
            raise ValueError(f"outputs must be different names of {', '.join(OUTPUTS)}")
        return names


class OptimiserOptions(Options):
    """Optimiser and learning-rate schedule.

    >>> OptimiserOptions(lr=2e-3).lr
    0.002
    """

    name: Literal["adam", "adamw", "muon"] = Field(
        default="adamw", description="muon: for the matrices of a ViT's blocks, adamw for the rest; from scratch."
    )
    lr: float = Field(default=3e-4, gt=0, description="Highest learning rate.")
    muon_lr: float = Field(default=5e-3, gt=0, description="muon: highest rate of the matrices, in AdamW's scale.")
    weight_decay: float = Field(default=0.05, ge=0, description="Decoupled for adamw; not applied to biases and norms.")
    schedule: Literal["constant", "exponential", "cyclic", "cosine"] = Field(
        default="cosine", description="Shape of the rate."
    )
    gamma: float = Field(default=0.95, gt=0, le=1, description="exponential: factor per epoch.")
    cycle_epochs: float = Field(default=4.0, gt=0, description="cyclic (triangular2): epochs of one cycle.")
    cycle_lowest: float = Field(default=0.001, gt=0, lt=1, description="cyclic: lowest rate as a share of lr.")
    warmup_epochs: float = Field(default=1.0, ge=0, description="cosine: epochs of linear warm-up.")
    final_share: float = Field(default=0.01, ge=0, le=1, description="cosine: last rate as a share of lr.")
    clip: float | None = Field(default=1.0, gt=0, description="Largest norm of the gradient (none: no limit).")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="Rate of each block of a ViT as a share of the rate of the one after it."
    )
    ema: float = Field(
        default=0.0, ge=0, lt=1, description="Validate and keep a moving average of the weights (0: off; .99, .999)."
    )


class LossOptions(Options):
    """BCE on the malignancy logit plus a regression loss on standardised biomarkers; absent ratings do not count.

    >>> LossOptions(mask_weight=1.0).mask_weight
    1.0
    """

    regression: Literal["mse", "huber"] = "mse"
    regression_weight: float = Field(
        default=1.0, ge=0, description="Weight of the biomarkers' mean loss beside the BCE."
    )
    class_weights: bool = Field(
        default=False, description="Weigh positives by negatives / positives of the training part."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Move binary targets this far towards one half."
    )
    soft_labels: bool = Field(
        default=False, description="Nodules without a label (median 3) learn (mean malignancy rating - 1) / 4."
    )
    mask_weight: float = Field(
        default=0.0, ge=0, description="Of a helper task: what share of each patch the readers outlined (ViT)."
    )


class LoraOptions(Options):
    """Updates of low rank in place of the learning blocks' own matrices (arXiv 2106.09685)."""

    rank: int = Field(default=0, ge=0, description="Rank of the update of the four matrices of a block (0: none).")
    alpha: float = Field(default=8.0, gt=0, description="The update is scaled by alpha / rank.")


class TrunkOptions(Options):
    """Tokens of the frozen blocks, computed once for all folds and seeds."""

    folder: str | None = Field(default=None, description="Where they are kept (none: computed at every step).")
    precision: Literal["float16", "float32"] = Field(default="float16", description="Of the tokens on disk.")


class TeacherOptions(Options):
    """A better model's outputs to learn beside the readers' ratings (training/distillation.py)."""

    outputs: str | None = Field(default=None, description="CSV of pipelines/teacher_outputs.py (none: readers alone).")
    weight: float = Field(default=0.5, ge=0, le=1, description="Share of the teacher in a target that both give.")


class MachineOptions(Options):
    """How long, in what portions and on what hardware a network learns."""

    epochs: int = Field(default=30, ge=1, description="Most epochs.")
    batch_size: int = Field(default=32, ge=1, description="Nodules per step, over all processes.")
    accumulate: int = Field(default=1, ge=1, description="Steps whose gradients are summed before the weights move.")
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N.")
    devices: int = Field(default=1, ge=1, description="Processes (one per device) on each machine.")
    nodes: int = Field(default=1, ge=1, description="Machines.")
    seed: int = Field(default=0, ge=0, description="Seed of weights, order and augmentation.")
    logs: bool = Field(default=True, description="TensorBoard logs in the run's folder (history.csv is always there).")

    @model_validator(mode="after")
    def _even_shares(self) -> Self:
        processes = self.devices * self.nodes
        if self.batch_size % processes:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of devices × nodes ({processes})")
        return self


class PretrainOptions(MachineOptions):
    """Self-supervised learning (DINO) on the crops' own planes: no rating is read.

    >>> PretrainOptions(epochs=2).epochs
    2
    """

    backbone: str = Field(default="vit_small64_p8", description="A ViT of `info backbones` or any timm ViT.")
    weights: str | None = Field(default=None, description="Where to start, as for a model (none: random).")
    size: int | None = Field(default=None, ge=16, description="Side of the large views (none: the backbone's own).")
    views: Views = Field(default=["axial", "coronal", "sagittal"], min_length=1, description="Planes to learn from.")
    slices: Slices = Field(default=5, ge=1, description="Planes around the middle of each view to learn from (odd).")
    epochs: int = Field(default=100, ge=1, description="Passes over all nodules and views.")
    lr: float = Field(default=5e-4, gt=0, description="Highest learning rate (AdamW, cosine).")
    weight_decay: float = Field(default=0.04, ge=0)
    warmup_epochs: float = Field(default=10.0, ge=0, description="Linear warm-up of the learning rate.")
    local_views: int = Field(default=6, ge=0, description="Small views per plane beside the two large ones.")
    prototypes: int = Field(default=4096, ge=2, description="Length of the projection that student and teacher share.")
    momentum: float = Field(default=0.996, ge=0, lt=1, description="Of the teacher at the start; 1 at the end.")


class FitOptions(MachineOptions):
    """One training run.

    >>> FitOptions.of(epochs=3, model={"backbone": "vit_nodule_p8"}).model.backbone
    'vit_nodule_p8'
    """

    model: ModelOptions = ModelOptions()
    augment: Augmentation = Augmentation()
    optimiser: OptimiserOptions = OptimiserOptions()
    loss: LossOptions = LossOptions()
    teacher: TeacherOptions = TeacherOptions()
    views: Views = Field(
        default=["axial", "coronal", "sagittal"], min_length=1, description="Planes to learn from and to average."
    )
    slices_averaged: Slices = Field(
        default=1, ge=1, description="Planes about the middle of each view whose outputs are averaged (odd)."
    )
    channels: Literal["repeat", "neighbours"] = Field(
        default="repeat", description="Three channels: one slice repeated, or with the slices below and above it."
    )
    turns_averaged: Literal[1, 8] = Field(
        default=1, description="8: outputs and maps are averaged over the turns and mirrors of every plane."
    )
    trainable_tensors: int | None = Field(
        default=None, ge=0, description="Only the last k parameter tensors learn (paper)."
    )
    trainable_blocks: int | None = Field(
        default=None, ge=0, description="Only the last k blocks, final norm and head learn."
    )
    lora: LoraOptions = LoraOptions()
    trunk: TrunkOptions = TrunkOptions()
    standardise: Literal["training", "fixed"] = Field(
        default="training",
        description="HU by mean and deviation of the training part, or by -630 and 360 in every fold.",
    )
    patience: int | None = Field(
        default=None, ge=1, description="Stop after this many epochs without a better validation."
    )
    monitor: Literal["loss", "auc"] = Field(
        default="loss", description="What chooses the checkpoint on the validation part."
    )
    validation_share: float = Field(default=0.15, gt=0, lt=1, description="Share of patients set aside for validation.")
    calibration: Literal["platt", "temperature", "none"] = Field(
        default="platt", description="Fitted on the validation part."
    )

    @property
    def slices_read(self) -> int:
        """Slices about the middle of each view that a run reads."""
        return max(self.augment.slices, self.slices_averaged) + 2 * (self.channels == "neighbours")

    @model_validator(mode="after")
    def _one_depth(self) -> Self:
        if self.trainable_tensors is not None and self.trainable_blocks is not None:
            raise ValueError("give trainable_tensors or trainable_blocks, not both")
        if self.monitor == "auc" and "malignancy" not in self.model.outputs:
            raise ValueError("monitor 'auc' needs the output malignancy")
        if self.lora.rank and not self.trainable_blocks:
            raise ValueError("lora.rank needs trainable_blocks, which says how many blocks get an update")
        if self.trunk.folder is not None:
            self._check_trunk()
        return self

    def _check_trunk(self) -> None:
        if self.trainable_blocks is None:
            raise ValueError("trunk.folder needs trainable_blocks, which says where the trunk ends")
        if not self.augment.turns_only:
            fields = "rotate_degrees, shift_pixels, scale, shift_hu and scale_hu"
            raise ValueError(f"trunk.folder keeps turns and mirrors alone: set augment.{fields} to 0")
        if self.standardise != "fixed":
            raise ValueError("trunk.folder needs standardise 'fixed', so that all folds read the same trunk")
        if self.model.backbone_dropout:
            raise ValueError("trunk.folder needs model.backbone_dropout 0: a kept token cannot be drawn anew")
