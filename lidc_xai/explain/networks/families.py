"""The Vision Transformers that are known by name: which class keeps its blocks where. No package is imported for it.

A class is recognised by its own name or a base's, so that a subclass is its family. Its forward pass is never taken
for granted: what is computed here goes through the model's own modules, or is compared with them (``context``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lidc_xai.explain.networks.anatomy import Anatomy, DescribedViT, Size
from lidc_xai.explain.networks.wrappers import unwrapped


@dataclass(frozen=True)
class Family:
    """Where a class keeps its blocks, their first norm and its patch embedding (the first path that exists counts)."""

    package: str
    name: str
    blocks: tuple[str, ...] = ("blocks",)
    norm1: tuple[str, ...] = ("norm1",)
    patch_embed: tuple[str, ...] = ("patch_embed", "embeds.proj")
    prefix: Callable[[Any], int] = lambda body: int(body.num_prefix_tokens)


_HF_BLOCKS = ("layers", "encoder.layer", "encoder.layers", "model.layer", "layer")
_HF_PATCHES = ("embeddings.patch_embeddings",)
FAMILIES = (
    Family("timm", "VisionTransformer", norm1=("norm1", "in_norm")),
    Family("timm", "Eva"),
    Family("timm", "Beit", prefix=lambda body: 1),
    Family("timm", "NaFlexVit"),
    Family("timm", "VisionTransformerRelPos"),
    Family("timm", "VisionTransformerSAM", prefix=lambda body: 0),
    Family("torchvision", "VisionTransformer", ("encoder.layers",), ("ln_1",), ("conv_proj",), lambda body: 1),
    Family("transformers", "ViTModel", _HF_BLOCKS, ("layernorm_before",), _HF_PATCHES, lambda body: 1),
    Family("transformers", "DeiTModel", _HF_BLOCKS, ("layernorm_before",), _HF_PATCHES, lambda body: 2),
    Family("transformers", "BeitModel", _HF_BLOCKS, ("layernorm_before",), _HF_PATCHES, lambda body: 1),
    Family("transformers", "Dinov2Model", _HF_BLOCKS, ("norm1",), _HF_PATCHES, lambda body: 1),
    Family(
        "transformers", "Dinov2WithRegistersModel", _HF_BLOCKS, ("norm1",), _HF_PATCHES,
        lambda body: 1 + body.config.num_register_tokens,
    ),
    Family(
        "transformers", "DINOv3ViTModel", _HF_BLOCKS, ("norm1",), _HF_PATCHES,
        lambda body: 1 + body.config.num_register_tokens,
    ),
)  # fmt: skip
NOT_SO = {
    "SwinTransformer": "its attention lives in windows",
    "SwinTransformerV2": "its attention lives in windows",
    "SwinTransformerV2Cr": "its attention lives in windows",
    "MaxxVit": "its attention lives in windows and grids",
    "PyramidVisionTransformerV2": "its keys are pooled patches",
    "MultiScaleVit": "its queries and keys are pooled from stage to stage",
    "TNT": "it has tokens inside tokens, in two streams",
    "Cait": "class attention follows blocks without a class token",
    "Xcit": "its attention mixes channels, not tokens",
    "VOLO": "outlook attention and class attention are no patch-to-patch matrix",
    "Hiera": "its attention lives in mask units and its tokens are pooled",
    "Nest": "its attention lives in blocks of the image",
    "CrossViT": "it has two streams of patches",
    "CoaT": "its attention is factorised",
    "ConVit": "its gated positional attention is no plain softmax",
    "DaVit": "its attention lives in windows and channels",
    "LevitDistilled": "its attention shrinks the grid from stage to stage",
    "Levit": "its attention shrinks the grid from stage to stage",
    "PoolingVisionTransformer": "its grid shrinks from stage to stage",
    "Twins": "its attention lives in windows and pooled keys",
    "GlobalContextVit": "its attention lives in windows",
    "MobileVit": "its attention joins the same pixel of all patches",
}
"""Why a class of transformers that people take for a ViT has no CLS row of patch-to-patch attention."""


def as_vit(model: nn.Module) -> Anatomy | None:
    """``model`` as a Vision Transformer, or None (``find_anatomy`` says why)."""
    anatomy = find_anatomy(model)
    return None if isinstance(anatomy, str) else anatomy


def find_anatomy(model: nn.Module) -> Anatomy | str:
    """``model``'s anatomy, or the reason why there is none, naming the model's class."""
    outer: Any = unwrapped(model)
    if isinstance(outer, DescribedViT):
        return outer.anatomy
    family = family_of(type(outer))
    if family is not None:
        return _anatomy(outer, outer, family)
    bodies = [(body, kin) for body in outer.modules() if (kin := family_of(type(body))) is not None]
    inner = {part for body, _ in bodies for part in body.modules() if part is not body}
    bodies = [(body, kin) for body, kin in bodies if body not in inner]
    name = type(outer).__name__
    if len(bodies) > 1:
        kinds = ", ".join(sorted({type(body).__name__ for body, _ in bodies}))
        return f"{name} holds {len(bodies)} Vision Transformers ({kinds}); give one of them"
    if not bodies:
        why_not = next((words for base in type(outer).__mro__ if (words := NOT_SO.get(base.__name__))), None)
        if why_not is not None:
            return f"{name} has no attention of patches to patches over the whole image: {why_not}"
        return (
            f"{name} is not a Vision Transformer that is known here (timm, torchvision, transformers); one's own "
            "can be described with describe_vit"
        )
    return _anatomy(outer, *bodies[0])


def family_of(kind: type) -> Family | None:
    """The family that a class is of, by its own name or a base's."""
    for base in kind.__mro__:
        for family in _BY_NAME.get(base.__name__, ()):
            if base.__module__.split(".")[0] == family.package:
                return family
    return None


_BY_NAME = {family.name: [other for other in FAMILIES if other.name == family.name] for family in FAMILIES}


def _anatomy(outer: nn.Module, body: Any, family: Family) -> Anatomy | str:
    name = type(body).__name__
    holder = _first(body, family.blocks)
    if holder is None:
        return f"{name} keeps its blocks elsewhere than {' or '.join(family.blocks)}"
    blocks = tuple(holder.children())
    if getattr(body, "global_pool", None) == "" and outer is body:
        return f"{name} with global_pool='' returns all tokens, not one row of outputs"
    norms = tuple(_first(unwrapped(block), family.norm1) for block in blocks)
    not_plain = next((words for block in blocks if (words := _not_plain(unwrapped(block)))), None)
    if any(norm is None for norm in norms):
        not_plain = not_plain or f"its blocks are {type(blocks[0]).__name__}, which have no {family.norm1[0]}"
    embed = _first(body, ("embeds", *family.patch_embed))
    patch = _patch(body, embed)
    grid_of = _grid_of(embed, patch)
    if grid_of is None:
        return f"{name}'s patch embedding {type(embed).__name__} does not say what patches it makes"
    return Anatomy(
        model=outer,
        family=family.name if family.package != "transformers" else f"transformers' {family.name}",
        blocks=blocks,
        norms=tuple(norm if norm is not None else block for norm, block in zip(norms, blocks, strict=True)),
        prefix=family.prefix(body),
        grid_of=grid_of,
        patch=patch,
        fixed_size=_fixed_size(body, embed),
        reads="distilled" if name in ("VisionTransformerDistilled", "DeiTForImageClassificationWithTeacher") else None,
        patch_embed=_first(body, family.patch_embed),
        not_plain=not_plain,
    )


_NOT_PLAIN = {
    "ResPostBlock": "not plain pre-norm blocks",
    "ResPostRelPosBlock": "not plain pre-norm blocks",
    "EvaBlockPostNorm": "which normalise behind the attention",
    "ParallelThingsBlock": "with several attentions behind norms of their own",
}


def _not_plain(block: nn.Module) -> str | None:
    words = _NOT_PLAIN.get(type(block).__name__)
    return None if words is None else f"its blocks are {type(block).__name__}, {words}"


def _first(module: nn.Module, paths: tuple[str, ...]) -> Any:
    """The first of ``paths`` that leads to a module, or None."""
    return next((there for path in paths if (there := _at(module, path)) is not None), None)


def _at(module: Any, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = module._modules.get(name)
        if module is None:
            return None
    return module if isinstance(module, nn.Module) else None


def _patch(body: Any, embed: Any) -> Size | None:
    for holder, attribute in (
        (embed, "patch_size"),
        (body, "patch_size"),
        (getattr(body, "config", None), "patch_size"),
    ):
        value = getattr(holder, attribute, None)
        if isinstance(value, int):
            return value, value
        if isinstance(value, tuple | list) and len(value) == 2:
            return int(value[0]), int(value[1])
    return None


def _grid_of(embed: Any, patch: Size | None) -> Callable[[Size], Size] | None:
    dynamic = getattr(embed, "dynamic_feat_size", None)
    if dynamic is not None:
        return lambda size: (int(dynamic(size)[0]), int(dynamic(size)[1]))
    fixed = getattr(embed, "grid_size", None)
    if fixed is not None:
        return lambda size: (int(fixed[0]), int(fixed[1]))
    return None if patch is None else lambda size: (size[0] // patch[0], size[1] // patch[1])


def _fixed_size(body: Any, embed: Any) -> Size | None:
    """The one image size that the model takes, or None where it takes several."""
    size = None
    if getattr(embed, "strict_img_size", False):
        size = embed.img_size
    elif type(body).__module__.startswith("torchvision."):
        size = body.image_size
    elif type(body).__name__ in ("ViTModel", "DeiTModel", "BeitModel"):
        size = body.config.image_size
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
