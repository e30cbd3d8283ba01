"""The room's public names: lazy, complete, and never hidden by a module of the same name."""

import importlib
import pkgutil
import subprocess
import sys

import torch

import lidc_xai.evaluation as room
from lidc_xai.evaluation.maps import spanning
from lidc_xai.explain import Explanation


def test_names_stay_functions_when_every_module_is_imported() -> None:
    for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        importlib.import_module(module.name)
    for name in room.__all__:
        assert callable(getattr(room, name)), name
        assert getattr(room, name).__doc__, name


def test_the_room_is_imported_without_torch() -> None:
    code = "import sys, lidc_xai.evaluation; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_map_of_a_padded_image_is_cut_to_it() -> None:
    tokens = torch.arange(16.0).view(1, 1, 4, 4)
    common = {
        "values": None,
        "columns": None,
        "target_names": ("a",),
        "method": "cdam",
        "engine": "exact",
        "options": {},
    }
    padded = Explanation(relevance=tokens, image_size=(30, 28), covered=(32, 32), **common)
    found = spanning(padded)
    assert found.shape == (1, 1, 30, 28)
    assert found[0, 0, 29, 27] == 15
    exact = Explanation(relevance=tokens, image_size=(32, 32), covered=(32, 32), **common)
    assert spanning(exact) is tokens
