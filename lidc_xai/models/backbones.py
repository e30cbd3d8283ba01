"""The table of backbones: one torch-free place that feeds ``build_model``, the command line, the docs and the tests.

A backbone that is not in the table can still be built by its timm name; the table says what a timm name does not: where
the publisher's own file lives, in which format it is written, and under which licence.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

from lidc_xai.errors import UsageError

Format = Literal["dino", "dinov2", "deit", "torchvision_vit", "torchvision_vgg", "torchvision_resnet"]


@dataclass(frozen=True)
class Backbone:
    """One backbone: what it is, and where its publisher's weights come from.

    ``parameters`` counts the backbone without classifier at ``input_size`` pixels; ``prefix_tokens`` is CLS plus
    registers or the distillation token (0 for a CNN); ``width`` is the length of the vector that the head reads;
    ``pretrained`` is the timm name with tag (None: the official file is fetched, or there is nothing to fetch);
    ``official_size`` is the input size that the published positions belong to; ``official_sha256`` is the SHA-256 of
    the publisher's file, or the leading digits of it that its name carries, or None where it was never published;
    ``timm_arguments`` go to ``timm.create_model``; ``stem`` says how patches become tokens: one convolution as large as
    the patch, or several small ones (``models/conv_stem.py``, placed by ``models/conv_stem.py``).

    >>> BACKBONES["dino_vits8"].licence, BACKBONES["dino_vits8"].width
    ('Apache-2.0', 384)
    """

    name: str
    kind: Literal["vit", "cnn"]
    timm_name: str
    patch: int | None
    input_size: int
    prefix_tokens: int
    width: int
    depth: int
    parameters: int
    licence: str
    citation: str
    pretrained: str | None = None
    official_format: Format | None = None
    official_url: str | None = None
    official_size: int | None = None
    official_sha256: str | None = None
    timm_arguments: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    stem: Literal["patch", "conv"] = "patch"

    def as_row(self) -> dict[str, Any]:
        """The entry as plain values, for a printed table or JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**values, "timm_arguments": dict(self.timm_arguments)}


def _dino(name: str, timm_name: str, patch: int, width: int, parameters: int, file: str) -> Backbone:
    return Backbone(
        name, "vit", timm_name, patch, 224, 1, width, 12, parameters, "Apache-2.0",
        "Caron et al. 2021, arXiv 2104.14294",
        pretrained=f"{timm_name}.dino", official_format="dino", official_size=224,
        official_url=f"https://dl.fbaipublicfiles.com/dino/{file}/{file}.pth",
    )  # fmt: skip


def _deit(size: str, distilled: bool, width: int, parameters: int, sha256: str) -> Backbone:
    name = f"deit_{size}{'_distilled' if distilled else ''}"
    timm_name = f"{name}_patch16_224"
    return Backbone(
        name, "vit", timm_name, 16, 224, 1 + distilled, width, 12, parameters, "Apache-2.0",
        "Touvron et al. 2020, arXiv 2012.12877",
        pretrained=f"{timm_name}.fb_in1k", official_format="deit", official_size=224, official_sha256=sha256,
        official_url=f"https://dl.fbaipublicfiles.com/deit/{timm_name}-{sha256}.pth",
    )  # fmt: skip


def _dinov2(letter: str, registers: bool, width: int, parameters: int) -> Backbone:
    size = {"s": "small", "b": "base"}[letter]
    timm_name = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2"
    folder = f"dinov2_vit{letter}14"
    file = f"{folder}{'_reg4' if registers else ''}_pretrain.pth"
    return Backbone(
        folder + "_reg" * registers, "vit", timm_name, 14, 224, 5 if registers else 1, width, 12, parameters,
        "Apache-2.0", "Oquab et al. 2023, arXiv 2304.07193" + ("; Darcet et al. 2023, arXiv 2309.16588" * registers),
        pretrained=f"{timm_name}.lvd142m", official_format="dinov2", official_size=518,
        official_url=f"https://dl.fbaipublicfiles.com/dinov2/{folder}/{file}",
    )  # fmt: skip


def _own(name: str, patch: int, parameters: int) -> Backbone:
    return Backbone(
        name, "vit", "vit_tiny_patch16_224", patch, 64, 1, 192, 6, parameters, "Apache-2.0",
        "this project: no published weights, trained from scratch or from `lidc-xai pretrain`",
        timm_arguments=MappingProxyType({"patch_size": patch, "embed_dim": 192, "depth": 6, "num_heads": 3}),
    )  # fmt: skip


def _nodule(patch: int, parameters: int) -> Backbone:
    return Backbone(
        f"vit_nodule_p{patch}", "vit", "vit_tiny_patch16_224", patch, 64, 1, 96, 4, parameters, "Apache-2.0",
        "this project; convolutional stem: Xiao et al. 2021, arXiv 2106.14881",
        timm_arguments=MappingProxyType({"patch_size": patch, "embed_dim": 96, "depth": 4, "num_heads": 3}),
        stem="conv",
    )  # fmt: skip


def _torchvision(file: str, sha256: str) -> dict[str, Any]:
    return {"official_url": f"https://download.pytorch.org/models/{file}-{sha256}.pth", "official_sha256": sha256}


_ENTRIES = (
    _dino("dino_vits8", "vit_small_patch8_224", 8, 384, 21_670_272, "dino_deitsmall8_pretrain"),
    _dino("dino_vits16", "vit_small_patch16_224", 16, 384, 21_665_664, "dino_deitsmall16_pretrain"),
    _dino("dino_vitb8", "vit_base_patch8_224", 8, 768, 85_807_872, "dino_vitbase8_pretrain"),
    _dino("dino_vitb16", "vit_base_patch16_224", 16, 768, 85_798_656, "dino_vitbase16_pretrain"),
    _deit("tiny", False, 192, 5_524_416, "a1311bcf"),
    _deit("small", False, 384, 21_665_664, "cd65a155"),
    _deit("base", False, 768, 85_798_656, "b5f2ef4d"),
    _deit("tiny", True, 192, 5_524_800, "b40b3cf7"),
    _deit("small", True, 384, 21_666_432, "649709d9"),
    _deit("base", True, 768, 85_800_192, "df68dfff"),
    _dinov2("s", False, 384, 21_628_800),
    _dinov2("b", False, 768, 85_724_928),
    _dinov2("s", True, 384, 21_629_952),
    _dinov2("b", True, 768, 85_727_232),
    Backbone(
        "swag_vitb16", "vit", "vit_base_patch16_224", 16, 384, 1, 768, 12, 86_090_496, "CC-BY-NC-4.0",
        "Singh et al. 2022, arXiv 2201.08371", official_format="torchvision_vit", official_size=384,
        **_torchvision("vit_b_16_swag", "9ac1b537"),
    ),
    Backbone(
        "vgg16", "cnn", "vgg16", None, 224, 0, 4096, 16, 134_260_544, "BSD-3-Clause",
        "Simonyan and Zisserman 2014, arXiv 1409.1556", pretrained="vgg16.tv_in1k", official_format="torchvision_vgg",
        **_torchvision("vgg16", "397923af"),
    ),
    Backbone(
        "resnet50", "cnn", "resnet50", None, 224, 0, 2048, 50, 23_508_032, "BSD-3-Clause",
        "He et al. 2015, arXiv 1512.03385", pretrained="resnet50.tv_in1k", official_format="torchvision_resnet",
        **_torchvision("resnet50", "0676ba61"),
    ),
    _own("vit_small64_p8", 8, 2_719_296),
    _own("vit_small64_p4", 4, 2_728_512),
    _nodule(8, 516_024),
    _nodule(4, 524_688),
)  # fmt: skip

BACKBONES: MappingProxyType[str, Backbone] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def list_backbones() -> list[str]:
    """Names that ``build_model`` knows with a published file and a licence (any timm name works too).

    >>> "dino_vits8" in list_backbones()
    True
    """
    return list(BACKBONES)


def unknown_backbone(name: str) -> UsageError:
    """The error for a name that is neither in the table nor a timm architecture, with the nearest names."""
    near = difflib.get_close_matches(name, BACKBONES, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(BACKBONES)}"
    return UsageError(f"unknown backbone {name!r}; {hint} (any timm architecture works by its timm name too)")
