"""Backbones, pretrained weights, heads and saved models: everything that turns a plane of CT into outputs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
