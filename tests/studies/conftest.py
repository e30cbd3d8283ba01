"""A few made photographs that the studies' tests share."""

from __future__ import annotations

import pytest
from studies.made_photos import MadePhotos, make_photos


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadePhotos:
    """A few made photographs: 6 classes, 4 to train on and 2 kept apart of each, 8 pairs; in STUDY/made/photos."""
    folder = tmp_path_factory.mktemp("study") / "made" / "photos"
    return make_photos(folder, train=4, val=2, pairs=8, seed=0)
