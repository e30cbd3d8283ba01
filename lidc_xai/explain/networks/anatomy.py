"""Where things lie in a Vision Transformer: what a family's name, or ``describe_vit``, says about a model's modules.

An ``Anatomy`` holds no arithmetic. Two ways of computing stand on it: ``own_modules`` runs the user's model as it is,
with a hook at ``norm1`` of a block; ``parts`` composes the forward pass anew, which the closed forms need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from lidc_xai.errors import UsageError

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A ViT's modules. ``model`` is what is called with the images (the user's, without known wrappers).

    ``blocks[l]`` and its ``norms[l]``, whose output t (B, T, D) the attention of block l reads. ``prefix``: tokens
    before the patches (CLS first, where there is one). ``grid_of``: image (H, W) → (gh, gw). ``patch``: pixels of a
    patch, None where they are not known. ``reads``: the tokens that the head reads: "cls", "distilled" (CLS and
    distillation token), "patches" or "all"; None: found by differentiation. ``patch_embed``: the module that makes
    patch tokens of pixels, before positions are added. ``not_plain``: why ``norms`` are not the tokens that the
    attention reads. ``family``: the name of the class that was recognised.
    """

    model: nn.Module
    family: str
    blocks: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    prefix: int
    grid_of: Callable[[Size], Size]
    patch: Size | None = None
    fixed_size: Size | None = None
    reads: str | None = None
    patch_embed: nn.Module | None = None
    not_plain: str | None = None

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def layer(self, layer: int) -> int:
        """A block's number from 0, from one that may count from the end."""
        depth = len(self.blocks)
        if not -depth <= layer < depth:
            raise UsageError(f"layer {layer} does not exist; this model has blocks 0 to {depth - 1}, or -1 to {-depth}")
        return layer % depth

    def grid(self, images: Tensor) -> Size:
        """(gh, gw): rows and columns of patches."""
        return self.grid_of((images.shape[-2], images.shape[-1]))

    def covered(self, images: Tensor) -> Size:
        """Pixels that the grid covers: the image, or more where the model pads it."""
        height, width = images.shape[-2:]
        if self.patch is None:
            return height, width
        rows, columns = self.grid(images)
        return max(height, rows * self.patch[0]), max(width, columns * self.patch[1])

    def to_grid(self, scores: Tensor, images: Tensor) -> Tensor:
        """(..., tokens or patches) scores → (..., gh, gw): prefix tokens dropped, rows first."""
        rows, columns = self.grid(images)
        return scores[..., -rows * columns :].unflatten(-1, (rows, columns))

    def tokens(self, images: Tensor) -> int:
        """T, the number of tokens of an image, prefix included."""
        return self.prefix + prod(self.grid(images))


class DescribedViT(nn.Module):
    """A model together with its user's word on where its blocks lie; called like the model itself."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        super().__init__()
        self.model = model
        self.anatomy = anatomy

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def describe_vit(
    model: nn.Module,
    blocks: str | Sequence[nn.Module],
    norm1: str | Sequence[nn.Module] = "norm1",
    prefix_tokens: int = 0,
    grid: Size | Callable[[Size], Size] = (14, 14),
) -> DescribedViT:
    """``model`` as a Vision Transformer that ``explain`` takes, for a class of one's own (SimpleViT and its like).

    ``blocks``: the dotted name of the module that holds the blocks, first to last, or the blocks themselves.
    ``norm1``: name, inside a block, of the norm whose output (B, T, D) the attention reads, or those norms.
    ``prefix_tokens``: tokens before the patches. ``grid``: (rows, columns) of patches, row-major, or a function of the
    image's (H, W). Raises ``UsageError`` for a name that the model does not have.

    >>> import timm, torch
    >>> from lidc_xai.explain import describe_vit, explain
    >>> vit = timm.create_model("test_vit", num_classes=3)
    >>> seen = describe_vit(vit, blocks="blocks", norm1="norm1", prefix_tokens=1, grid=(10, 10))
    >>> explain(seen, torch.zeros(1, 3, 160, 160), 1, "gradcam").relevance.shape
    torch.Size([1, 1, 10, 10])
    """
    chain = tuple(_submodule(model, blocks).children()) if isinstance(blocks, str) else tuple(blocks)
    if not chain or not all(isinstance(block, nn.Module) for block in chain):
        raise UsageError(f"blocks={blocks!r} holds no modules; give the name of a ModuleList or the blocks themselves")
    norms = tuple(_submodule(b, norm1) for b in chain) if isinstance(norm1, str) else tuple(norm1)
    if len(norms) != len(chain):
        raise UsageError(f"norm1 gives {len(norms)} modules for {len(chain)} blocks; give one each")
    known = set(model.modules())
    if not known.issuperset(chain) or not known.issuperset(norms):
        raise UsageError(f"blocks and norm1 must be modules of this {type(model).__name__}")
    if prefix_tokens < 0:
        raise UsageError(f"prefix_tokens is a number from 0, not {prefix_tokens}")
    size = grid if callable(grid) else (int(grid[0]), int(grid[1]))
    anatomy = Anatomy(
        model=model,
        family=f"{type(model).__name__} as described",
        blocks=chain,
        norms=norms,
        prefix=int(prefix_tokens),
        grid_of=size if callable(size) else lambda _: size,
    )
    return DescribedViT(model, anatomy)


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        near = ", ".join(known for known, _ in list(module.named_modules())[1:12])
        raise UsageError(f"{type(module).__name__} has no module {name!r}; there are {near} …") from None
