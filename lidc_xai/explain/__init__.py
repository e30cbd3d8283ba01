"""Targets × estimators → Explanation: why a Vision Transformer (or a CNN) gives the score that it gives.

Knows models, knows nothing of lungs. ``list_methods()`` and the table behind it need no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
