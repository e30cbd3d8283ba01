"""Pictures hold what the numbers say, and the page's data block reads back."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from lidc_xai.palette import palette, signed_colour
from lidc_xai.reporting.nodule.viewer import differences, pack, unpack
from lidc_xai.reporting.pictures import ct_picture, map_picture, pooled, windowed


def decode(uri: str) -> Image.Image:
    head, data = uri.split(",", 1)
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_window_ends():
    assert windowed(np.array([-1350.0, -600.0, 150.0, 4000.0, -5000.0]), "lung").tolist() == [0, 128, 255, 255, 0]


def test_ct_picture_has_square_pixels_and_keeps_places():
    image = np.full((16, 32), -1350.0, np.float32)
    image[4:8, 8:16] = 150
    picture = np.array(decode(ct_picture(image, (2.0, 0.5), "lung", 128)))  # 32 mm x 16 mm
    assert picture.shape == (128, 64)
    assert picture[48, 24] > 240
    assert picture[20, 24] < 15
    assert picture[48, 60] < 15


def test_signed_palette_is_symmetric_and_clear_at_zero():
    assert signed_colour(0.0)[3] == 0
    assert signed_colour(1.0)[3] == signed_colour(-1.0)[3] > 0.8
    positive, negative = signed_colour(0.7), signed_colour(-0.7)
    assert positive[0] > positive[2]  # orange
    assert negative[2] > negative[0]  # blue
    strengths = [signed_colour(value)[3] for value in np.linspace(0, 1, 11)]
    assert strengths == sorted(strengths)
    assert len(palette()) == 255
    assert palette()[127][3] == 0


def test_map_picture_shows_sign_and_strength_in_place():
    scores = np.zeros((4, 4), np.float32)
    scores[0, 0], scores[3, 3] = 2.0, -1.0
    picture = np.array(decode(map_picture(scores, 2.0, (32.0, 32.0), 64)).convert("RGBA")).astype(int)
    assert picture[4, 4, 0] > picture[4, 4, 2]
    assert picture[60, 60, 2] > picture[60, 60, 0]
    assert picture[4, 4, 3] == pytest.approx(2 * picture[60, 60, 3], abs=4)
    assert picture[4, 60, 3] == 0


def test_pooled_maps_are_block_means():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 128, 100))
    small = pooled(scores, most=64)
    assert small.shape == (2, 64, 64)
    assert np.abs(small).max() <= np.abs(scores).max()
    rows = pooled(scores[:, :, :64], most=64)
    assert np.allclose(rows, scores[:, :, :64].reshape(2, 64, 2, 64).mean(axis=2), atol=1e-6)
    assert np.array_equal(pooled(scores[0, :8, :8]), scores[0, :8, :8].astype(np.float32))
    assert np.allclose(pooled(np.full((224, 224), 0.3)), 0.3)


def test_map_without_any_score_is_clear():
    assert not np.array(decode(map_picture(np.zeros((4, 4)), 0.0, (8.0, 8.0))).convert("RGBA"))[..., 3].any()


def test_payload_reads_back():
    rng = np.random.default_rng(0)
    volume = rng.normal(-700, 200, (5, 6, 7)).astype(np.float32)
    arrays = {
        "ct": differences(volume),
        "map": rng.normal(size=(2, 3)).astype(np.float32),
        "m": np.eye(3, dtype=np.uint8),
    }
    text = pack({"words": "towards <sharp>", "n": [1, 2.5, None]}, arrays)
    assert text == pack({"words": "towards <sharp>", "n": [1, 2.5, None]}, arrays)
    header, found = unpack(text)
    assert header == {"words": "towards <sharp>", "n": [1, 2.5, None]}
    assert np.array_equal(found["ct"].cumsum(axis=-1), np.round(volume))
    assert np.array_equal(found["map"], arrays["map"])
    assert np.array_equal(found["m"], arrays["m"])
    with pytest.raises(TypeError, match="float64"):
        pack({}, {"x": np.zeros(2)})
