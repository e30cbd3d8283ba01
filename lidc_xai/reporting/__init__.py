"""Reports that a radiologist can read, and files that a viewer can open."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
