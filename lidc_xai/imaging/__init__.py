"""CT in, crops out: series reading and geometry, contours to masks, crops, the store, the PNG edition, simulated CT."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
