"""The page in a real browser: controls are used, and what changes on the page is read back."""

import base64
import io
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.nodules.maps import NoduleMaps
from lidc_xai.ratings import OUTPUTS
from lidc_xai.reporting import nodule_report, study_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs a Chromium of the system (Debian: chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(study, made, tmp_path_factory):
    def context(nodule_id: str) -> NoduleCrop:
        crop = made.crop(nodule_id, size=64)
        crop.affine[:3, 3] -= 16
        return crop

    out = tmp_path_factory.mktemp("browser")
    maps = {**study.maps, "random_weights": {study.ids[0]: made.maps(study.ids[0], seed=9)}}
    result = study_report(study.store, out, study.predictions, maps, pdf=False)
    reads = {"views": ["axial", "coronal", "sagittal"], "slices": 1, "window": [-1000.0, 400.0]}
    parts = {"predictions": study.predictions, "maps": maps, "context": context, "model_info": {"reads": reads}}
    nodule_report(study.store, study.ids[0], out / "nodules", pdf=False, **parts)
    dense = {"cdam": {study.ids[0]: every_axial_slice(made.maps(study.ids[0], seed=3))}}
    nodule_report(study.store, study.ids[0], out / "dense", pdf=False, dense=dense, **parts)
    return result


def every_axial_slice(maps: NoduleMaps) -> NoduleMaps:
    """Maps of slices 4 to 27, those of slice k all of the sign of k % 2."""
    signs = np.where(np.arange(4, 28) % 2, 1.0, -1.0).astype(np.float32)
    relevance = np.abs(np.repeat(maps.relevance[:1], 24, axis=0)) * signs[:, None, None, None]
    values = np.repeat(maps.values[:1], 24, axis=0)
    planes = {"views": ("axial",) * 24, "indices": tuple(range(4, 28))}
    return replace(maps, relevance=relevance, values=values, **planes)


def text_of(tab, selector: str) -> str:
    """What an element says, with ordinary spaces."""
    return tab.inner_text(selector).replace("\xa0", " ")


@pytest.fixture
def page(browser, report, study):
    """A nodule's page that has started; at the end, no error and no request other than for the file itself."""
    tab = browser.new_page(viewport={"width": 1240, "height": 1400})
    problems, requests = [], []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto((report.index.parent / "nodules" / f"{study.ids[0]}.html").as_uri())
    tab.wait_for_selector("#viewer.ready")
    tab.locator("#viewer figure[data-view=axial]").scroll_into_view_if_needed()
    yield tab
    tab.close()
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in requests) == 1


def pixels(page, view: str, kind: str) -> np.ndarray | None:
    """What a canvas shows, (h, w, 4); ``None`` where it is hidden."""
    found = page.evaluate(
        """([view, kind]) => {
            const canvas = document.querySelector(`#viewer figure[data-view=${view}] canvas.${kind}`);
            return canvas.hidden ? null : canvas.toDataURL();
        }""",
        [view, kind],
    )
    if found is None:
        return None
    return np.array(Image.open(io.BytesIO(base64.b64decode(found.split(",")[1]))).convert("RGBA")).astype(int)


def caption(page, view: str) -> str:
    return text_of(page, f"#viewer figure[data-view={view}] figcaption")


def test_starts_as_the_still_picture(page, study):
    crop = study.store.load(study.ids[0])
    assert "z = −293.0 mm" in caption(page, "axial")  # where the outline is largest
    ct = pixels(page, "axial", "ct")
    assert ct.shape == (320, 320, 4)
    block = ct[:, :, 0].reshape(32, 10, 32, 10).mean(axis=(1, 3))  # 10 screen pixels a voxel
    wanted = 255 * np.clip((crop.ct[17] + 1350) / 1500, 0, 1)
    assert np.abs(block - wanted).mean() < 4
    assert np.corrcoef(block.ravel(), wanted.ravel())[0, 1] > 0.98
    assert pixels(page, "axial", "map") is None


def test_output_shows_its_map_and_scale(page, study):
    page.select_option('[data-tool="output"]', "spiculation")
    shown = pixels(page, "coronal", "map")
    scores = study.maps["cdam"][study.ids[0]].relevance[1, OUTPUTS.index("spiculation")]
    signs = np.flipud(scores)  # stored from below, shown from above
    centres = shown[20::40, 20::40]  # 8 x 8 tokens on 320 pixels
    assert np.array_equal(centres[..., 0] > centres[..., 2], signs > 0)
    strongest = np.unravel_index(np.abs(signs).argmax(), signs.shape)
    assert centres[..., 3].argmax() == np.ravel_multi_index(strongest, signs.shape)
    scale = text_of(page, ".viewer-scale")
    assert "towards spiculated" in scale
    assert "SD" in scale
    page.select_option('[data-tool="output"]', "malignancy")
    assert "logit" in text_of(page, ".viewer-scale")
    page.select_option('[data-tool="output"]', "none")
    assert pixels(page, "coronal", "map") is None
    assert page.is_hidden(".viewer-scale")


def test_slices_move_and_the_map_stays_on_its_own(page):
    page.keyboard.press("1")
    before, outline = (
        pixels(page, "axial", "ct"),
        page.get_attribute("#viewer figure[data-view=axial] [data-reader='0']", "d"),
    )
    page.focus("#viewer figure[data-view=axial] .frame")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert "z = −291.0 mm" in caption(page, "axial")
    assert "map of z = −294.0 mm" in caption(page, "axial")  # it stays, and says where it belongs
    assert pixels(page, "axial", "map") is not None
    assert pixels(page, "sagittal", "map") is not None
    assert not np.array_equal(pixels(page, "axial", "ct"), before)
    assert page.get_attribute("#viewer figure[data-view=axial] [data-reader='0']", "d") != outline
    slider = page.locator("#viewer figure[data-view=axial] input[type=range]")
    slider.fill("0")
    assert "z = −310.0 mm" in caption(page, "axial")
    assert page.get_attribute("#viewer figure[data-view=axial] [data-reader='0']", "d") == ""
    page.click('[data-tool="home"]')
    assert np.array_equal(pixels(page, "axial", "ct"), before)
    assert page.get_attribute("#viewer figure[data-view=axial] [data-reader='0']", "d") == outline


def test_maps_of_every_slice_follow_the_slice(browser, report, study):
    tab = browser.new_page(viewport={"width": 1240, "height": 1400})
    tab.goto((report.index.parent / "dense" / f"{study.ids[0]}.html").as_uri())
    tab.wait_for_selector("#viewer.ready")
    assert "Every slice that was scanned has a map of its own" in text_of(tab, "#viewer")
    tab.keyboard.press("1")
    slider = tab.locator("#viewer figure[data-view=axial] input[type=range]")
    for index, raised in ((9, True), (16, False), (27, True)):
        slider.fill(str(index))
        shown = pixels(tab, "axial", "map")[20::40, 20::40]
        assert np.array_equal(shown[..., 0] > shown[..., 2], np.full((8, 8), raised))
        assert "map of" not in caption(tab, "axial")
    slider.fill("2")  # not evaluated: the explained plane's, and it is said
    assert "map of z = −294.0 mm" in caption(tab, "axial")
    tab.select_option('[data-tool="volume"]', "context")
    slider.fill(str(16 + 9))  # the context begins 16 slices below
    assert "map of" not in caption(tab, "axial")
    shown = pixels(tab, "axial", "map")[20::40, 20::40]
    assert (shown[..., 0] > shown[..., 2]).all()
    tab.close()


def test_drag_and_click_move_the_planes(page):
    frame = page.locator("#viewer figure[data-view=axial] .frame").bounding_box()
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=5)
    page.mouse.up()
    assert "z = −288.0 mm" in caption(page, "axial")
    page.mouse.click(frame["x"] + frame["width"] * 0.9, frame["y"] + frame["height"] * 0.1)
    assert "x = −32.0 mm" in caption(page, "sagittal")  # column 28
    assert "y = 23.0 mm" in caption(page, "coronal")  # row 3
    assert re.search(r"−?\d+ HU", caption(page, "axial"))


def test_windows_opacity_readers(page):
    lung = pixels(page, "axial", "ct")
    page.click('button[value="mediastinum"]')
    assert "mediastinum, −135 to 215 HU" in text_of(page, "[data-window-words]")
    assert (pixels(page, "axial", "ct")[..., 0] == 0).mean() > 0.5 > (lung[..., 0] == 0).mean()
    page.keyboard.press("w")
    assert page.get_attribute('button[value="model input"]', "aria-pressed") == "true"
    page.keyboard.press("[")
    page.keyboard.press("[")
    assert page.evaluate("getComputedStyle(document.querySelector('#maps img.map')).opacity") == "0.8"
    page.locator('[data-tool="opacity"]').fill("0.35")
    assert page.evaluate("getComputedStyle(document.querySelector('#maps img.map')).opacity") == "0.35"
    page.locator('[data-tool="reader"]').nth(1).uncheck()
    paths = [
        page.get_attribute(f"#viewer figure[data-view=axial] [data-reader='{reader}']", "d") for reader in range(4)
    ]
    assert paths[1] == ""
    assert all(path for place, path in enumerate(paths) if place != 1)
    page.keyboard.press("c")
    assert page.get_attribute("#viewer figure[data-view=axial] path.consensus >> nth=0", "d") == ""


def test_method_and_scale_redraw_the_cards(page):
    def first() -> str:
        return page.get_attribute('#maps .card[data-output="margin"] img.map >> nth=0', "src")

    def ticks() -> str:
        return text_of(page, '#maps .card[data-output="margin"] .ticks')

    page.select_option('[data-tool="scale"]', "own")
    own, own_ticks = first(), ticks()
    page.select_option('[data-tool="scale"]', "shared")
    assert (first(), ticks()) != (own, own_ticks)
    shared = first()
    page.select_option('[data-tool="method"]', "random_weights")
    assert first() != shared
    assert "random weights" in text_of(page, "#maps h2")
    page.check('[data-tool="smooth"]')
    page.select_option('[data-tool="output"]', "margin")
    tokens = pixels(page, "axial", "map").reshape(8, 40, 8, 40, 4)
    assert (tokens == tokens[:, :1, :, :1]).all()


def test_context_has_its_own_extent(page):
    page.select_option('[data-tool="output"]', "margin")
    page.select_option('[data-tool="volume"]', "context")
    assert page.get_attribute("#viewer figure[data-view=axial] svg.outlines", "viewBox") == "0 0 64 64"
    assert "map of z" not in caption(page, "axial")  # the context's middle is the plane that was explained
    page.focus("#viewer figure[data-view=axial] .frame")
    page.keyboard.press("ArrowUp")
    assert "map of z = −294.0 mm" in caption(page, "axial")
    page.keyboard.press("ArrowDown")
    style = (
        "const s = document.querySelector('#viewer figure[data-view=axial] canvas.map').style; [s.left, s.top, s.width]"
    )
    assert page.evaluate(f"(() => {{ {style.replace('; [', '; return [')} }})()") == ["25%", "25%", "50%"]
    bar = page.get_attribute("#viewer figure[data-view=axial] svg.marks .bar path >> nth=0", "d")
    start, end = (float(value) for value in re.match(r"M([\d.]+) [\d.]+H([\d.]+)", bar).groups())
    assert (end - start) / 100 * 64 == pytest.approx(10, abs=0.01)
    page.keyboard.press("v")
    assert page.get_attribute("#viewer figure[data-view=axial] svg.outlines", "viewBox") == "0 0 32 32"


def drag(page, view: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag across a plane, from and to shares of its picture."""
    box = page.locator(f"#viewer figure[data-view={view}] .frame").bounding_box()
    place = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (start, end)]
    page.mouse.move(*place[0])
    page.mouse.down()
    page.mouse.move(*place[1], steps=4)
    page.mouse.up()


def test_ruler_measures_in_mm(page):
    page.click('button[data-tool="drag"][value="ruler"]')
    drag(page, "axial", (0.25, 0.5), (0.75, 0.5))
    assert "16.0 mm" in caption(page, "axial")  # half of 32 mm
    assert "z = −293.0 mm" in caption(page, "axial")
    page.keyboard.press("+")
    drag(page, "axial", (0.25, 0.5), (0.75, 0.5))
    assert "8.0 mm" in caption(page, "axial")  # twice as near


def test_window_by_dragging(page):
    page.click('button[data-tool="drag"][value="window"]')
    before = pixels(page, "axial", "ct")
    drag(page, "axial", (0.5, 0.5), (0.9, 0.5))
    low, high = (int(text.replace("−", "-")) for text in re.findall(r"−?\d+", text_of(page, "[data-window-words]")))
    assert high - low > 1500  # wider than the lung window
    assert (low + high) / 2 == pytest.approx(-600, abs=2)
    assert not np.array_equal(pixels(page, "axial", "ct"), before)
    page.keyboard.press("h")
    page.click('button[value="lung"]')
    assert np.array_equal(pixels(page, "axial", "ct"), before)


def test_zoom_keeps_the_point_under_the_pointer(page):
    frame = page.locator("#viewer figure[data-view=axial] .frame").bounding_box()
    page.keyboard.press("+")
    page.mouse.click(frame["x"] + frame["width"] * 0.5156, frame["y"] + frame["height"] * 0.5156)
    x = float(re.search(r"x = (−?[\d.]+)", caption(page, "sagittal"))[1].replace("−", "-"))
    assert abs(x - -44.0) <= 4  # near the middle, not at the border
    page.keyboard.press("-")
    transform = page.evaluate("document.querySelector('#viewer figure[data-view=axial] canvas.ct').style.transform")
    assert transform == ""


def test_keys_go_to_the_next_nodule(browser, report, study):
    tab = browser.new_page()
    tab.goto((report.index.parent / "nodules" / f"{study.ids[1]}.html").as_uri())
    tab.wait_for_selector("#viewer.ready")
    tab.keyboard.press("n")
    tab.wait_for_url(f"**/{study.ids[2]}.html")
    tab.wait_for_selector("#viewer.ready")
    tab.keyboard.press("p")
    tab.wait_for_url(f"**/{study.ids[1]}.html")
    assert tab.url.endswith(f"nodules/{study.ids[1]}.html")
    tab.close()


def test_card_opens_in_the_viewer_and_keys_are_announced(page):
    page.click('#maps .card[data-output="texture"] [data-show]')
    assert page.input_value('[data-tool="output"]') == "texture"
    page.keyboard.press("m")
    assert "attention" in text_of(page, "[aria-live]").lower()


def test_readable_without_script_and_in_the_dark(browser, report, study):
    context = browser.new_context(
        java_script_enabled=False, color_scheme="dark", viewport={"width": 390, "height": 800}
    )
    tab = context.new_page()
    tab.goto((report.index.parent / "nodules" / f"{study.ids[0]}.html").as_uri())
    assert tab.is_hidden(".tools")
    assert tab.is_visible("#viewer figure[data-view=axial] svg.outlines")
    box = tab.locator("#viewer figure[data-view=axial] .frame").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    luminance = tab.evaluate("getComputedStyle(document.querySelector('main')).backgroundColor")
    assert max(int(value) for value in re.findall(r"\d+", luminance)[:3]) < 60
    context.close()


def test_touch_moves_the_planes(browser, report, study):
    context = browser.new_context(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    tab = context.new_page()
    tab.goto((report.index.parent / "nodules" / f"{study.ids[0]}.html").as_uri())
    tab.wait_for_selector("#viewer.ready")
    frame = tab.locator("#viewer figure[data-view=axial] .frame")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    tab.touchscreen.tap(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
    assert "x = −32.0 mm" in caption(tab, "sagittal")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_study_table_sorts(browser, report, study):
    tab = browser.new_page()
    tab.goto(report.index.as_uri())
    heading = tab.locator("th button", has_text="Malignancy")
    heading.click()
    first = text_of(tab, "table.study tbody tr >> nth=0")
    heading.click()
    assert study.ids[0] in first
    assert study.ids[2] in text_of(tab, "table.study tbody tr >> nth=0")
    tab.close()


def test_study_table_filters_and_shows_pictures(browser, report, study):
    tab = browser.new_page()
    tab.goto(report.index.as_uri())
    visible = "[...document.querySelectorAll('table.study tbody tr')].filter((row) => !row.hidden).length"
    assert tab.evaluate(visible) == 3
    tab.fill('[data-filter="text"]', study.ids[1][:14].lower())
    assert tab.evaluate(visible) == 1
    assert "1 of 3 nodules" in text_of(tab, "[data-shown]")
    tab.fill('[data-filter="text"]', "")
    tab.select_option('[data-filter="trust"]', "low")
    assert tab.evaluate(visible) == 0
    tab.select_option('[data-filter="trust"]', "")
    tab.click("[data-sheet]")
    assert tab.is_hidden("table.study thead")
    assert tab.is_visible("table.study .thumb >> nth=0")
    tab.close()
