"""Mean maps of several models: joined on what they share, with an error bar, and honest where nothing can be told."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.evaluation import LogVariances, group_agreement, spearman_brown, stable_tokens, variance_prior
from lidc_xai.evaluation.repeatability import on_grid
from lidc_xai.imaging import NoduleCrop
from lidc_xai.models import Preprocess, build_model
from lidc_xai.nodules import NoduleMaps, explain_nodules, load_maps
from lidc_xai.nodules.mean_maps import Member, Noise, gather, joined, mean_maps, recorded_noise

OUTPUTS = ("malignancy", "margin")


def maps_of(nodule: int, relevance: np.ndarray, views: tuple[str, ...] = ("axial",), outputs=OUTPUTS) -> NoduleMaps:
    values = relevance.sum((-1, -2)).astype(np.float32)
    cell = (32 / relevance.shape[-2], 32 / relevance.shape[-1])
    return NoduleMaps(
        f"P-{nodule}-s1-n0", "cdam", views, (16,) * len(views), outputs, relevance.astype(np.float32), values, cell,
        "exact", {},
    )  # fmt: skip


def planted(models: int, nodules: int, rho: float, seed: int = 0) -> tuple[list[list[Member]], list[str]]:
    """Maps (1, 2, 8, 8); the second model's are ten times as large. The second output is noise alone."""
    rng = np.random.default_rng(seed)
    signal = np.sqrt(rho / (1 - rho)) * rng.standard_normal((nodules, 1, 1, 2, 8, 8)) * [[[1]], [[0]]]
    scores = signal + rng.standard_normal((nodules, models, 1, 2, 8, 8))
    scores[:, 1:2] *= 10
    members = [[Member(f"m{r}", maps_of(n, one)) for r, one in enumerate(each)] for n, each in enumerate(scores)]
    return members, [f"P-{n}" for n in range(nodules)]


def test_the_mean_and_its_figures_against_a_naive_reference() -> None:
    members, patients = planted(4, 12, 0.72)
    results = list(mean_maps(members, patients))
    strengths = [np.median([np.abs(each[r].maps.relevance[:, 0]).sum() for each in members]) for r in range(4)]
    scaled = [
        np.stack([each[r].maps.relevance[0, 0].ravel().astype(float) / strengths[r] for r in range(4)])
        for each in members
    ]
    for n, result in enumerate(results):
        scores = np.stack([member.maps.relevance for member in members[n]]).astype(float)
        known = result.repeatability
        assert known is not None
        assert np.allclose(result.relevance, scores.mean(0), atol=1e-6)
        assert np.allclose(result.values, np.mean([member.maps.values for member in members[n]], axis=0), atol=1e-5)
        assert np.allclose(known.standard_error, scores.std(0, ddof=1) / 2, rtol=1e-5)
        rho = group_agreement(scores[:, :, 0].reshape(4, -1))
        assert known.agreement["malignancy"] == pytest.approx(rho)
        assert known.expected["malignancy"] == pytest.approx(spearman_brown(max(rho, 0), 4))
        others = sum((LogVariances.of(one) for k, one in enumerate(scaled) if k != n), LogVariances())
        kept = stable_tokens(scaled[n], variance_prior(others))
        assert np.array_equal(known.stable[0, 0].ravel(), kept)
        strength = np.abs(scaled[n].mean(0))
        assert known.stable_share["malignancy"] == pytest.approx(strength[kept].sum() / strength.sum())
    shares = {name: np.mean([one.repeatability.stable_share[name] for one in results]) for name in OUTPUTS}
    assert shares["malignancy"] > 0.4
    assert shares["margin"] < 0.05


def test_a_model_with_larger_scores_does_not_outvote_the_others() -> None:
    members, patients = planted(5, 12, 0.72)
    stable = np.stack([one.repeatability.stable for one in mean_maps(members, patients)])
    for each in members:
        each[1] = replace(each[1], maps=replace(each[1].maps, relevance=each[1].maps.relevance / 10))
    assert np.array_equal(stable, np.stack([one.repeatability.stable for one in mean_maps(members, patients)]))


def test_maps_that_are_nowhere_negative_are_centred() -> None:
    members, patients = planted(3, 12, 0.72)
    lifted = [
        [replace(member, maps=replace(member.maps, relevance=member.maps.relevance + 100)) for member in each]
        for each in members
    ]
    shares = [one.repeatability.stable_share["margin"] for one in mean_maps(lifted, patients)]
    assert np.mean(shares) < 0.05  # noise about 100 is noise: without centring, everything would be stable


def test_the_prior_comes_from_other_patients() -> None:
    members, patients = planted(3, 12, 0.72)
    plain = next(mean_maps(members, patients)).repeatability
    same_patient = [patients[0]] * 6 + patients[6:]
    alone = next(mean_maps(members, [patients[0]] * 12)).repeatability
    assert next(mean_maps(members, same_patient)).repeatability.stable is not None
    for own, known in ((7, True), (8, False)):  # five nodules of others are enough, four are not
        result = next(mean_maps(members, [patients[0]] * own + patients[own:]))
        assert (result.repeatability.stable is not None) == known
    assert plain.stable is not None
    assert alone.stable is None
    assert "5 nodules of other patients" in alone.note
    assert set(alone.stable_share.values()) == {None}
    assert alone.agreement == plain.agreement


def test_a_recorded_cohort_serves_a_nodule_of_ones_own() -> None:
    members, patients = planted(3, 30, 0.72)
    noise = gather(members, patients).noise()
    assert set(noise) == {"m0", "m1", "m2"}
    info = {"map_noise": {"cdam": {output: asdict(item) for output, item in noise["m0"].items()}}}
    assert recorded_noise(info)["cdam"] == noise["m0"]
    new, name = planted(3, 1, 0.72, seed=1)
    (without,), (served,) = mean_maps(new, name), mean_maps(new, name, noise)
    assert without.repeatability.stable is None
    assert served.repeatability.stable[0, 0].mean() > 0.2
    assert served.repeatability.stable[0, 1].mean() < 0.1
    (partly,) = mean_maps(new, name, {model: noise[model] for model in ("m0", "m1")})
    assert partly.repeatability.stable is None
    assert Noise(1.0, False, 2.0, None).prior.degrees == np.inf
    with pytest.raises(ModelError, match=r"map_noise is damaged"):
        recorded_noise({"map_noise": {"cdam": {"malignancy": {"strength": 1}}}})


def test_two_models_give_agreement_and_one_gives_its_map() -> None:
    members, patients = planted(2, 8, 0.72)
    both = next(mean_maps(members, patients)).repeatability
    assert both.stable is None
    assert "three models" in both.note
    assert both.agreement["malignancy"] is not None
    single = next(mean_maps([each[:1] for each in members], patients))
    assert single.repeatability is None
    assert single is members[0][0].maps


def test_maps_meet_on_what_they_share() -> None:
    rng = np.random.default_rng(3)
    fine = maps_of(0, rng.standard_normal((3, 2, 14, 14)), ("axial", "coronal", "sagittal"))
    coarse = maps_of(0, rng.standard_normal((2, 2, 8, 8)), ("sagittal", "axial"), ("margin", "malignancy"))
    one, other = joined([fine, coarse])
    assert one.views == other.views == ("axial", "sagittal")
    assert one.output_names == other.output_names == OUTPUTS
    assert one.relevance.shape == other.relevance.shape == (2, 2, 8, 8)
    assert one.token_mm == other.token_mm == (4.0, 4.0)
    assert np.allclose(one.relevance.sum((-1, -2)), fine.relevance[[0, 2]].sum((-1, -2)), atol=1e-5)
    assert np.array_equal(other.relevance[0, 0], coarse.relevance[1, 1])
    with pytest.raises(UsageError, match="share no output"):
        joined([fine, replace(coarse, output_names=("texture", "diameter"))])
    with pytest.raises(UsageError, match="share no plane"):
        joined([fine, replace(coarse, indices=(15, 15))])


def test_a_coarser_grid_against_a_naive_reference() -> None:
    scores = np.random.default_rng(4).standard_normal((14, 10))
    naive = np.kron(scores, np.ones((8, 8))).reshape(8, 14, 8, 10).sum((1, 3)) / 64
    assert np.allclose(on_grid(scores, (8, 8)), naive, atol=1e-5)


@pytest.fixture(scope="module")
def crops() -> list[NoduleCrop]:
    rng = np.random.default_rng(0)
    return [
        NoduleCrop(rng.normal(-700, 200, (16, 16, 16)).astype(np.float32), np.eye(4), nodule_id=f"P-{n}-s1-n0")
        for n in range(7)
    ]


def models(count: int, **parts) -> list:
    return [build_model("vit_nodule_p8", **{"outputs": OUTPUTS, "size": 32, "seed": s} | parts) for s in range(count)]


def test_models_explain_crops_together_as_each_does_alone(crops: list[NoduleCrop], tmp_path: Path) -> None:
    each = models(3)
    together = list(explain_nodules(each, crops, ["cdam", "attention"]))
    alone = [list(explain_nodules(model, crops, ["cdam", "attention"])) for model in each]
    for n, result in enumerate(together):
        for name, maps in result.items():
            expected = np.mean([one[n][name].relevance for one in alone], axis=0)
            assert np.allclose(maps.relevance, expected, rtol=1e-4, atol=1e-7)
            assert maps.repeatability.stable.shape == maps.relevance.shape
            assert len(maps.repeatability.models) == 3
    again = load_maps(together[0]["cdam"].save(tmp_path).parents[1], "P-0-s1-n0", "cdam")
    kept, first = again.repeatability, together[0]["cdam"].repeatability
    assert np.array_equal(kept.stable, first.stable)
    assert np.array_equal(kept.standard_error, first.standard_error)
    assert kept.described() == first.described()


def test_slices_and_turns_are_averaged_and_turned_back(crops: list[NoduleCrop]) -> None:
    (model,) = models(1)
    crop = crops[0]
    (wide,) = explain_nodules(model, [crop], "cdam", ["axial"], slices=3)
    shifted = [NoduleCrop(np.roll(crop.ct, by, 0), np.eye(4), nodule_id="P-0-s1-n0") for by in (-1, 0, 1)]
    single = [next(explain_nodules(model, [one], "cdam", ["axial"]))["cdam"].relevance for one in shifted]
    assert np.allclose(wide["cdam"].relevance, np.mean(single, axis=0), atol=1e-7)
    assert wide["cdam"].options["slices"] == 3
    (turned,) = explain_nodules(model, [crop], "cdam", ["axial"], turns=8)
    lying = NoduleCrop(np.ascontiguousarray(crop.ct[:, :, ::-1]), np.eye(4), nodule_id="P-0-s1-n0")
    (mirrored,) = explain_nodules(model, [lying], "cdam", ["axial"], turns=8)
    assert np.allclose(turned["cdam"].relevance, mirrored["cdam"].relevance[..., ::-1], atol=1e-6)
    with pytest.raises(UsageError, match="slices is odd"):
        explain_nodules(model, [crop], slices=2)


def test_a_model_that_knows_the_patient_is_left_out(crops: list[NoduleCrop]) -> None:
    each = models(3)
    for model, patients in zip(each, (["P-0"], ["P-1"], ["P-0", "P-2"]), strict=True):
        model.training_info = {"train_patients": patients}
    results = [maps["cdam"] for maps in explain_nodules(each, crops)]
    counts = [0 if one.repeatability is None else len(one.repeatability.models) for one in results]
    assert counts == [0, 2, 2, 3, 3, 3, 3]
    alone = next(explain_nodules(each[1], crops))["cdam"]
    assert np.allclose(results[0].relevance, alone.relevance, atol=1e-7)


def test_models_of_other_kinds_are_joined_or_refused(crops: list[NoduleCrop]) -> None:
    first, second = models(2)
    wide = build_model("vit_nodule_p4", ("margin", "texture"), size=32, seed=5)
    wide.preprocess = replace(wide.preprocess, views=("coronal", "axial"))
    maps = next(explain_nodules([first, wide], crops))["cdam"]
    assert maps.output_names == ("margin",)
    assert maps.views == ("axial", "coronal")
    assert maps.relevance.shape == (2, 1, 4, 4)
    with pytest.raises(UsageError, match="share no output"):
        list(explain_nodules([first, build_model("vit_nodule_p8", ("texture",), size=32)], crops))
    sagittal = build_model("vit_nodule_p8", OUTPUTS, size=32, seed=6, preprocess=Preprocess(views=("sagittal",)))
    with pytest.raises(UsageError, match="read no plane together"):
        list(explain_nodules([wide, sagittal], crops))
    (copy,) = models(1)
    with pytest.raises(UsageError, match="model 1 and model 3 have the same weights"):
        list(explain_nodules([first, second, copy], crops))
