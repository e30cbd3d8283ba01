"""The attention that training uses: the same outputs and gradients, and the model as it was afterwards."""

import timm
import torch

from lidc_xai.training.loop.trainer import unfused_attention


def gradients(model, images):
    model.zero_grad()
    output = model(images)
    output.square().sum().backward()
    return output.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def test_two_products_are_the_fused_attention():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    fused = gradients(model, images)
    with unfused_attention(model, True):
        assert not any(block.attn.fused_attn for block in model.blocks)
        plain = gradients(model, images)
    assert all(block.attn.fused_attn for block in model.blocks)
    torch.testing.assert_close(plain, fused, rtol=1e-10, atol=1e-12)
    with unfused_attention(model, False):
        assert all(block.attn.fused_attn for block in model.blocks)
