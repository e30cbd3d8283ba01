"""The pages and their twins: what they say, what they refuse, what they survive."""

import errno
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from lidc_xai.errors import DependencyError, LidcXaiError, StorageError, UsageError
from lidc_xai.nodules import Repeatability
from lidc_xai.ratings import BIOMARKERS, OUTPUTS, RESEARCH_USE_ONLY, SCALES
from lidc_xai.reporting import nodule_report, study_report
from lidc_xai.reporting import pdf as pdf_module


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    """The study as HTML."""
    return study_report(
        study.store, tmp_path_factory.mktemp("report"), study.predictions, study.maps,
        model_info={"seed": 44, "train_patients": ["LIDC-IDRI-0999"]},
        run_info={"argv": ["lidc-xai", "report"]}, pdf=False,
    )  # fmt: skip


def page(written, study, place: int = 0) -> str:
    text = (written.index.parent / "nodules" / f"{study.ids[place]}.html").read_text(encoding="utf-8")
    return text.replace("\xa0", " ")


def test_study_page_lists_every_nodule(written, study):
    text = written.index.read_text(encoding="utf-8")
    assert RESEARCH_USE_ONLY in text
    assert "SIMULATED" in text
    for nodule_id in study.ids:
        assert f'href="nodules/{nodule_id}.html"' in text
    assert len(written.paths) == 2 + 2 * len(study.ids)  # the index, its page of words, a page and a record each
    assert all(path.exists() for path in written.paths)
    assert not written.skipped


def test_nodule_page_has_what_a_reader_needs(written, study):
    text = page(written, study)
    for phrase in (
        RESEARCH_USE_ONLY, "SIMULATED", "10 mm", "towards spiculated", "towards not spiculated", "4.0 × 4.0 mm",
        "orange argues against calcium", "Never seen by this model", "−1350 to 150 HU", "Reader 4", "Consensus",
    ):  # fmt: skip
        assert phrase in text, phrase
    assert len(re.findall(r'<article class="card[^>]*data-output', text)) == len(OUTPUTS)
    assert text.count('data-reader="') == 3 * 4  # three planes, four readers
    assert "0.20" in text
    assert "0.10 to 0.30" in text


def test_pages_refer_to_nothing_outside(written, study):
    for text in (written.index.read_text(encoding="utf-8"), page(written, study)):
        assert not re.findall(
            r'(?:src|href)="(?!data:|nodules/|\.\./index\.html|(?:\.\./)?glossary\.html|LIDC-IDRI-\d+-s1-n0\.html|#)'
            r'[^"]+"',
            text,
        )
        assert "default-src 'none'" in text
        assert not re.findall(r"url\((?!data:)", text)
        assert len(text.encode()) < 1_000_000


def test_json_twin_holds_the_figures(written, study):
    facts = json.loads((written.index.parent / "nodules" / f"{study.ids[1]}.json").read_text(encoding="utf-8"))
    votes = study.store.votes[study.store.votes["nodule_id"] == study.ids[1]]
    by_name = {output["name"]: output for output in facts["outputs"]}
    assert list(by_name) == list(OUTPUTS)
    for name in OUTPUTS:
        if name == "calcification":
            continue  # its codes are names: see test_texts
        column = "diameter_mm" if name == "diameter" else name
        assert by_name[name]["readers"]["mean"] == pytest.approx(votes[column].mean())
        assert by_name[name]["readers"]["sd"] == pytest.approx(votes[column].std(ddof=1))
        assert by_name[name]["readers"]["votes"] == votes[column].tolist()
    assert by_name["malignancy"]["prediction"]["value"] == pytest.approx(0.5)
    assert by_name["margin"]["prediction"]["words"] == SCALES["margin"].in_words(3.5)
    relevance = study.maps["cdam"][study.ids[1]].relevance
    cdam = facts["maps"][0]
    assert cdam["limits"]["malignancy"] == pytest.approx(np.abs(relevance[:, 0]).max())
    assert cdam["limits"]["texture"] == pytest.approx(np.abs(relevance[:, 1:]).max())
    panel = next(item for item in cdam["panels"] if (item["output"], item["view"]) == ("texture", "coronal"))
    assert panel["maximum"] == pytest.approx(relevance[1, OUTPUTS.index("texture")].max())
    crop = study.store.load(study.ids[1])
    assert facts["readers"][0]["volume_mm3"] == pytest.approx(crop.reader_masks[0].sum())


def test_logits_and_scores_never_share_a_bar(written, study):
    """Malignancy's card is in logits on its own limit; the biomarkers share one limit in standard deviations."""
    text = page(written, study)
    ends = re.findall(r'<span class="ticks"><span>[^<]*</span><span>0</span><span>([^<]*)</span>', text)
    shown = [end for end in ends if end.endswith(("logit", "SD"))]
    assert all(end.endswith("logit") for end in shown[:2])  # the key picture and the card of malignancy
    assert len(set(shown[2 : 2 + len(BIOMARKERS)])) == 1
    assert shown[2].endswith("SD")


@pytest.mark.parametrize(
    ("out_of_fold", "info", "status"),
    [
        (True, None, "independent"), (False, None, "trained_on"), (None, None, "unknown"),
        (None, {"train_patients": ["LIDC-IDRI-0001"]}, "trained_on"),
        (None, {"train_patients": ["LIDC-IDRI-0999"]}, "independent"),
    ],
)  # fmt: skip
def test_independence_is_shown(study, tmp_path, out_of_fold, info, status):
    predictions = study.predictions.assign(out_of_fold=out_of_fold)
    nodule_report(study.store, study.ids[0], tmp_path, predictions=predictions, model_info=info, pdf=False)
    facts = json.loads((tmp_path / f"{study.ids[0]}.json").read_text())
    assert facts["independence"]["status"] == status
    shown = "Seen in training" in (tmp_path / f"{study.ids[0]}.html").read_text()
    assert shown == (status == "trained_on")


def test_report_without_predictions_maps_or_readers_says_so(made, tmp_path):
    store = made.store(tmp_path / "store", n=1, readers=0, simulated=False)
    result = study_report(store, tmp_path / "out", pdf=False)
    text = (tmp_path / "out" / "nodules" / f"{store.nodule_ids[0]}.html").read_text(encoding="utf-8")
    assert "This report is incomplete" in text
    assert "lidc-xai predict" in text
    assert "lidc-xai explain" in text
    assert "No readers" in text
    assert "SIMULATED" not in text
    assert "There are no predictions" in result.index.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Counts scripts and collects the names of all attributes, as a browser would read them."""

    def __init__(self):
        super().__init__()
        self.scripts, self.attributes = 0, set()

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.attributes |= {name for name, _ in attrs}


def test_hostile_text_is_escaped(made, tmp_path):
    store = made.store(tmp_path / "store", n=1)
    evil = "<script>alert(1)</script>\"' onload=x \u202egnp.exe " + "A" * 3000
    for column in ("patient_id", "issues", "series_uid"):
        store.manifest[column] = evil
    predictions = made.predictions(store.nodule_ids).assign(margin_words=evil)
    result = study_report(
        store, tmp_path / "out", predictions, model_info={"name": evil, evil: 1}, run_info={"argv": [evil]},
        performance={evil: {evil: 0.5}}, title=evil, pdf=False,
    )  # fmt: skip
    for path in result.paths:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".html":
            assert "<script>alert" not in text
            assert "\u202e" not in text
            elements = Elements()
            elements.feed(text)
            assert "onload" not in elements.attributes
            assert elements.scripts == {"index.html": 1, "glossary.html": 0}.get(path.name, 3)
        else:
            assert json.loads(text)["identifiers"]["patient_id"] == evil


def test_bad_input_is_one_clear_line(study, tmp_path):
    with pytest.raises(UsageError, match=r"'nobody' is not in .*store; its 3 ids"):
        study_report(study.store, tmp_path, nodule_ids=["nobody"], pdf=False)
    with pytest.raises(UsageError, match="'nobody' is not in"):
        nodule_report(study.store, "nobody", tmp_path, pdf=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(LidcXaiError, match="cannot be written") as caught:
        study_report(study.store, tmp_path / "file" / "out", pdf=False)
    assert "\n" not in str(caught.value)


def test_damaged_crop_is_left_out_and_named(made, tmp_path):
    store = made.store(tmp_path / "store", n=2)
    (tmp_path / "store" / "crops" / store.nodule_ids[0] / "ct.nii.gz").write_bytes(b"not an image")
    result = study_report(store, tmp_path / "out", pdf=False)
    assert [item.nodule_id for item in result.skipped] == [store.nodule_ids[0]]
    assert "Left out" in result.index.read_text(encoding="utf-8")
    assert store.nodule_ids[0] in (tmp_path / "out" / "skipped.csv").read_text()


def test_a_full_disk_ends_the_report_and_is_no_fault_of_a_nodule(study, tmp_path, monkeypatch):
    def full(*places):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lidc_xai.files.os.replace", full)
    with pytest.raises(StorageError, match=r"No space left on device.; free space"):
        study_report(study.store, tmp_path, study.predictions, study.maps, pdf=False, nodule_ids=study.ids[:1])


def test_a_reports_workers_are_its_own(study, tmp_path, monkeypatch):
    """Those of an earlier step would take a page's memory for a leak, and stop with a warning of joblib's."""
    stopped = []
    monkeypatch.setattr("lidc_xai.reporting.study.stop_workers", lambda: stopped.append(True))
    study_report(study.store, tmp_path, nodule_ids=study.ids[:1], pdf=False)
    assert stopped == [True]


def test_missing_pango_leaves_html(study, tmp_path, monkeypatch):
    def absent():
        raise DependencyError("PDF needs Pango")

    monkeypatch.setattr("lidc_xai.reporting.study.load_weasyprint", absent)
    result = study_report(study.store, tmp_path, nodule_ids=study.ids[:1], pdf=True)
    assert result.index.exists()
    assert [item.stage for item in result.skipped] == ["pdf"]


def test_pango_message_names_the_packages(monkeypatch):
    import builtins

    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.startswith("weasyprint"):
            raise OSError("cannot load library 'libpango-1.0-0'")
        return real(name, *args, **kwargs)

    pdf_module.load_weasyprint.cache_clear()
    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(DependencyError, match=r"apt install libpango-1\.0-0"):
        pdf_module.load_weasyprint()


def test_two_processes_write_the_same_pages(study, tmp_path):
    one = study_report(study.store, tmp_path / "one", study.predictions, study.maps, pdf=False)
    two = study_report(study.store, tmp_path / "two", study.predictions, study.maps, pdf=False, jobs=2)
    for first, second in zip(one.paths, two.paths, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_pdf_is_tagged_with_embedded_fonts(study, tmp_path):
    try:
        pdf_module.load_weasyprint()
    except DependencyError as error:
        pytest.skip(str(error))
    if not shutil.which("pdfinfo"):
        pytest.skip("needs pdfinfo and pdffonts (Debian: poppler-utils)")
    paths, skipped = nodule_report(study.store, study.ids[0], tmp_path, predictions=study.predictions, maps=study.maps)
    assert not skipped
    (path,) = [path for path in paths if path.suffix == ".pdf"]
    info = subprocess.run(["pdfinfo", path], capture_output=True, text=True, check=True).stdout
    assert re.search(r"Tagged:\s+yes", info)
    assert "A4" in info
    fonts = subprocess.run(["pdffonts", path], capture_output=True, text=True, check=True).stdout.splitlines()[2:]
    assert fonts
    assert all(re.search(r"\byes (yes|no)\s+(yes|no)\s", line) for line in fonts)
    text = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True).stdout
    for phrase in (RESEARCH_USE_ONLY, "page 1 of", "towards spiculated", "SIMULATED", "Controls"):
        assert phrase in text, phrase
    outline = ["pdftohtml", "-xml", "-i", "-stdout", str(path)]
    bookmarks = subprocess.run(outline, capture_output=True, text=True, check=True).stdout.split("<outline>", 1)[1]
    assert f"Nodule {study.ids[0]}" in bookmarks
    assert "Why: CDAM map of every output" in bookmarks


def test_the_summary_is_one_page(made, tmp_path):
    try:
        pdf_module.load_weasyprint()
    except DependencyError as error:
        pytest.skip(str(error))
    if not shutil.which("pdfinfo"):
        pytest.skip("needs pdfinfo and pdftotext (Debian: poppler-utils)")
    store = made.store(tmp_path / "store", n=1)
    ends = {f"{name}_{end}": value for name in BIOMARKERS for end, value in (("low", 1.5), ("high", 4.5))}
    predictions = made.predictions(store.nodule_ids).assign(p_calcified=0.1, malignancy_set="low,high", **ends)
    maps = {name: [made.maps(store.nodule_ids[0], name)] for name in ("cdam", "attention")}
    nodule_report(store, store.nodule_ids[0], tmp_path, predictions=predictions, maps=maps, summary=True)
    path = tmp_path / f"{store.nodule_ids[0]}.pdf"
    assert re.search(
        r"Pages:\s+1\b", subprocess.run(["pdfinfo", path], capture_output=True, text=True, check=True).stdout
    )
    text = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True).stdout
    for phrase in (
        RESEARCH_USE_ONLY,
        "at 90 % confidence: low or high",
        "Models disagree",
        "Diameter",
        "1.5 to 4.5",
        "LIDC-IDRI",
    ):
        assert phrase in " ".join(text.split()), phrase


def test_letter_paper(study, tmp_path):
    if not shutil.which("pdfinfo"):
        pytest.skip("needs pdfinfo (Debian: poppler-utils)")
    try:
        path = pdf_module.write_pdf("<h1>One</h1>", tmp_path / "one.pdf", "Letter")
    except DependencyError as error:
        pytest.skip(str(error))
    assert "letter" in subprocess.run(["pdfinfo", path], capture_output=True, text=True, check=True).stdout
    with pytest.raises(UsageError, match="paper 'A5' is not known; choose one of A4, Letter"):
        study_report(study.store, tmp_path, paper="A5")


def test_predictions_of_other_nodules_are_not_mixed(study, tmp_path):
    other = pd.DataFrame([{**study.predictions.iloc[0].to_dict(), "nodule_id": "somebody-else"}])
    nodule_report(study.store, study.ids[0], tmp_path, predictions=other, pdf=False)
    facts = json.loads((tmp_path / f"{study.ids[0]}.json").read_text())
    assert all(output["prediction"] is None for output in facts["outputs"])


def test_percentiles_spread_overlap_and_curves_are_shown(made, tmp_path):
    store = made.store(tmp_path / "store", n=24)
    ids = store.nodule_ids
    predictions = made.predictions(ids).assign(malignancy_probability=np.linspace(0, 1, 24))
    predictions["baseline.diameter_only.malignancy_probability"] = 0.314
    alone = made.maps(ids[5])
    stable = np.zeros(alone.relevance.shape, bool)
    stable[..., :4] = True
    figures = {"agreement": 0.41, "expected": 0.78, "stable_share": 0.5}
    maps = replace(alone, repeatability=Repeatability(("a", "b", "c"), np.abs(alone.relevance), stable, **{
        name: dict.fromkeys(OUTPUTS, value) for name, value in figures.items()
    }))  # fmt: skip
    curve = {"percent": [0, 50, 100], "mif": [1.0, 0.2, 0.1], "lif": [1.0, 0.9, 0.1], "removed": 0.9}
    study_report(
        store, tmp_path / "out", predictions, {"cdam": [maps]},
        curves={ids[5]: {"malignancy": curve}}, nodule_ids=[ids[5]], pdf=False,
    )  # fmt: skip
    facts = json.loads((tmp_path / "out" / "nodules" / f"{ids[5]}.json").read_text())
    malignancy = facts["outputs"][0]["prediction"]
    assert malignancy["percentile"] == pytest.approx(100 * 6 / 24)
    assert malignancy["diameter_only"] == 0.314
    assert facts["curves"]["malignancy"]["mif"] == [1.0, 0.2, 0.1]
    assert facts["maps"][0]["repeatability"]["margin"] == {"models": 3, **figures, "note": ""}
    rows = {(row["method"], row["output"]): row for row in facts["overlap"]}
    assert {("cdam", "malignancy"), ("centred disc", None), ("readers", None)} <= set(rows)
    crop, relevance = store.load(ids[5]), maps.relevance[:, OUTPUTS.index("texture")]
    shares = []
    for scores, mask in zip(
        relevance, (crop.consensus[16], crop.consensus[:, 16], crop.consensus[:, :, 16]), strict=True
    ):
        positive = np.kron(scores, np.ones((4, 4))).clip(min=0)
        shares.append((positive * mask).sum() / positive.sum())
    assert rows["cdam", "texture"]["positive_mass"] == pytest.approx(np.mean(shares), rel=1e-5)
    text = (tmp_path / "out" / "nodules" / f"{ids[5]}.html").read_text(encoding="utf-8")
    for phrase in (
        "percentile 25",
        "readers’ diameter alone would give 0.31",
        "drawn again 0.78",
        "Deletion curve of malignancy",
    ):
        assert phrase in text, phrase


def test_cross_validated_predictions_and_the_leaking_split(study, tmp_path):
    base = study.predictions.drop(columns=["out_of_fold"]).assign(fold=2)
    for kind, status in (("patient", "independent"), ("paper", "trained_on")):
        nodule_report(study.store, study.ids[0], tmp_path / kind, pdf=False, predictions=base.assign(split_kind=kind))
        facts = json.loads((tmp_path / kind / f"{study.ids[0]}.json").read_text())
        assert facts["independence"]["status"] == status
        assert "old 2" in facts["independence"]["text"]


def test_pixel_maps_keep_the_page_small(study, made, tmp_path):
    maps = made.maps(study.ids[0], "saliency", grid=224)
    nodule_report(study.store, study.ids[0], tmp_path, pdf=False, maps={"saliency": [maps], "smoothgrad": [maps]})
    assert (tmp_path / f"{study.ids[0]}.html").stat().st_size < 3_000_000


def test_light_pages_leave_the_context_out(study, made, tmp_path):
    def context(nodule_id):
        return made.crop(nodule_id, size=64)

    nodule_report(study.store, study.ids[0], tmp_path / "full", pdf=False, context=context)
    nodule_report(study.store, study.ids[0], tmp_path / "light", pdf=False, context=context, light=True)
    full, light = (tmp_path / name / f"{study.ids[0]}.html" for name in ("full", "light"))
    assert light.stat().st_size < full.stat().st_size
    assert 'data-tool="volume"' not in light.read_text()
    assert "Context, lung window" in light.read_text()
    assert full.stat().st_size < 8_000_000
