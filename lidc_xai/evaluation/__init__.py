"""How far may an explanation be believed: faithfulness, discrimination, sanity, localisation, and the benchmark.

Knows models' outputs and the estimators of ``lidc_xai.explain``, and nothing of where images come from: everything
takes tensors, and the benchmark any iterable of (images, targets, masks).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
