"""The architectures: each at its smallest width and two blocks, weights in which nothing is zero or one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 5
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
NAFLEX = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
STAGES = {"depths": (1, 1, 1, 1)}
SWIN = {"img_size": 64, "embed_dim": 12, "num_heads": (1, 1, 1, 1), **STAGES}
TRANSFORMERS: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "num_labels": CLASSES,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One architecture. ``norm``: the last block's first norm, if it is a ViT with one; ``prefix``: tokens before the
    patches; ``reads``: the rows of attention that its head reads; ``attention``: whether blocks have one matrix."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    size: int = 32
    norm: str | None = None
    prefix: int = 1
    reads: str = "cls"
    attention: bool = True
    source: str = "timm"


def _vit(name: str, prefix: int = 1, reads: str = "cls", norm: str = "norm1", **more: Any) -> Entry:
    base = NAFLEX if name.startswith("naflex") else VIT
    attention = more.pop("attention", True)
    return Entry(name, {**base, **more}, 32, norm, prefix, reads, attention)


ENTRIES = (
    _vit("vit_tiny_patch16_224"),
    _vit("deit3_small_patch16_224"),
    _vit("vit_base_patch16_clip_224"),
    _vit("vit_small_patch14_dinov2"),
    _vit("vit_small_patch14_reg4_dinov2", 5),
    _vit("flexivit_small"),
    _vit("beit3_base_patch16_224", 1, "patches"),
    _vit("vit_base_patch16_siglip_gap_224", 0, "patches"),
    _vit("vit_little_patch16_reg4_gap_256", 4, "patches"),
    _vit("vit_so150m_patch16_reg4_map_256", 4, "patches"),
    _vit("vit_base_patch16_rpn_224", 0, "patches", "norm1", attention=False),
    _vit("vit_pwee_patch16_reg1_gap_256", 1, "patches", "in_norm"),
    _vit("vit_dwee_patch16_reg1_gap_256", 1, "patches", attention=False),
    _vit("deit_tiny_distilled_patch16_224", 2, "distilled"),
    Entry("vit_tiny_r_s16_p8_224", {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}, 64, "norm1"),
    _vit("eva02_tiny_patch14_224", 1, "patches"),
    _vit("eva_giant_patch14_224", 1, "patches"),
    _vit("vit_small_patch16_dinov3", 5, "patches"),
    _vit("vit_small_patch16_rope_224"),
    _vit("vit_small_patch16_rope_mixed_224"),
    _vit("vit_medium_patch16_rope_reg1_gap_256", 1, "patches"),
    _vit("vit_pe_core_tiny_patch16_384", 1, "all"),
    _vit("beit_base_patch16_224", 1, "patches"),
    _vit("beitv2_base_patch16_224", global_pool="token"),
    _vit("naflexvit_base_patch16_gap", 4, "patches"),
    _vit("naflexvit_base_patch16_map", 1, "patches"),
    _vit("vit_relpos_small_patch16_224", 0, "patches"),
    _vit("vit_relpos_base_patch16_cls_224", 1, "cls"),
    _vit("vit_srelpos_small_patch16_224", 0, "patches"),
    _vit("vit_relpos_base_patch32_plus_rpn_256", 0, "patches", attention=False),
    _vit("samvit_base_patch16_224", 0, "patches", global_attn_indexes=(0, 1)),
    _vit("samvit_base_patch16_224", 0, "patches", global_attn_indexes=(1,), window_size=2, attention=False),
    Entry("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 2}, 64),
    Entry("swinv2_tiny_window8_256", {**SWIN, "window_size": 2}, 64),
    Entry("pvt_v2_b0", {**STAGES, "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 1, 1)}, 64),
    Entry("maxvit_pico_rw_256", {"img_size": 64}, 64),
    Entry("coatnet_pico_rw_224", {"img_size": 64}, 64),
    Entry("convnext_atto", {**STAGES, "dims": (8, 8, 16, 16)}, 64),
    Entry("convnextv2_atto", {**STAGES, "dims": (8, 8, 16, 16)}, 64),
    Entry("mvitv2_tiny", {"img_size": 64}, 64),
    Entry("tnt_s_patch16_224", {"img_size": 64, "depth": 2}, 64),
    Entry("cait_xxs24_224", {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}, 32),
    Entry("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 2}, 64),
    Entry("volo_d1_224", {"img_size": 64}, 64),
    Entry("convit_tiny", {"img_size": 32, "depth": 3, "local_up_to_layer": 1}, 32),
    Entry("coat_lite_tiny", {"img_size": 64}, 64),
    Entry("davit_tiny", {**STAGES, "embed_dims": (16, 16, 16, 16), "num_heads": (1, 1, 1, 1)}, 64),
    Entry("hiera_tiny_224", {"img_size": 64}, 64),
    Entry("pit_ti_224", {"img_size": 64}, 64),
    Entry("gcvit_xxtiny", {"img_size": 64}, 64),
    Entry("mobilevit_xxs", {}, 64),
    Entry("edgenext_xx_small", {}, 64),
    Entry("resnet18", {}, 64),
    Entry("efficientnet_b0", {}, 64),
    Entry("torchvision vit", {}, 32, "ln_1", source="torchvision"),
    Entry("ViT", {}, 32, "layernorm_before", source="transformers"),
    Entry("DeiT", {}, 32, "layernorm_before", 2, source="transformers"),
    Entry("Beit", {}, 32, "layernorm_before", 1, "patches", source="transformers"),
    Entry("Dinov2", {}, 32, "norm1", 1, "all", source="transformers"),
    Entry("Dinov2WithRegisters", {}, 32, "norm1", 5, "all without registers", source="transformers"),
    Entry("DINOv3ViT", {}, 32, "norm1", 5, source="transformers"),
    Entry("Swin", {}, 64, source="transformers"),
    Entry("ConvNext", {}, 64, source="transformers"),
)


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic gets a value that matters; float64, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if not x.is_floating_point() or "rope" in name or "periods" in name or "inv_freq" in name:
                continue
            noise = torch.randn(x.shape, generator=generator)
            if name.endswith("running_var"):
                x.copy_(1 + 0.3 * noise.abs())
            elif x.ndim > 1 and isinstance(x, nn.Parameter):
                x.copy_(noise * (2.0 / x[0].numel()) ** 0.5)
            elif isinstance(x, nn.Parameter) or name.endswith("running_mean"):
                one = any(word in name for word in ("norm", "ls1", "ls2", "gamma", "lambda", "layer_scale", "bn"))
                x.copy_(0.3 * noise + (1.0 if one and not name.endswith(("bias", "running_mean")) else 0.0))
    return model.double().eval()


def build(entry: Entry) -> nn.Module:
    if entry.source == "torchvision":
        from torchvision.models import VisionTransformer

        return shake(VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=CLASSES))
    if entry.source == "transformers":
        return shake(_from_transformers(entry.name))
    import timm

    return shake(timm.create_model(entry.name, num_classes=CLASSES, **entry.options))


def _from_transformers(name: str) -> nn.Module:
    import transformers

    config = dict(TRANSFORMERS)
    if name == "Swin":
        config = {
            "image_size": 64,
            "embed_dim": 12,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 1, 1],
            "window_size": 2,
        }
    if name == "ConvNext":
        config = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    if name == "Beit":
        config |= {"use_relative_position_bias": True, "use_mean_pooling": True}
    if name == "DINOv3ViT":
        config |= {"num_register_tokens": 4}
    made = getattr(transformers, f"{name}Config")(**{**config, "num_labels": CLASSES})
    if name == "DINOv3ViT" and not hasattr(transformers, "DINOv3ViTForImageClassification"):
        return _Headed(transformers.DINOv3ViTModel(made), 24)
    model: nn.Module = getattr(transformers, f"{name}ForImageClassification")(made)
    return model


class _Headed(nn.Module):
    """A transformers body that has no classification head of its own, with a linear one on its CLS token."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).last_hidden_state[:, 0])
