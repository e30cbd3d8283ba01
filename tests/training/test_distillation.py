"""A student learns from a teacher of its own fold, and from no other."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import teacher_outputs
import torch

from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.models import load_model
from lidc_xai.nodules import predict
from lidc_xai.training import FitOptions, cross_validate, fit
from lidc_xai.training.distillation import FINAL, blended, read_teacher

OUTPUTS = ("malignancy", "texture", "diameter")


@pytest.fixture(scope="module")
def teacher(toy_store: CropStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds and a final model, and its teacher.csv."""
    folder = tmp_path_factory.mktemp("teacher")
    model = {"backbone": "vit_small64_p8", "outputs": list(OUTPUTS), "size": 16}
    options = FitOptions.of(model=model, epochs=1, batch_size=16, device="cpu", logs=False)
    cross_validate(toy_store, folder / "run", options=options, n_folds=2, resamples=50, baselines=False)
    arguments = ["--runs", str(folder / "run"), "--store", str(toy_store.path), "--out", str(folder / "said")]
    assert teacher_outputs.main(arguments) == 0
    return folder / "said" / "teacher.csv"


def test_a_folds_rows_are_what_its_teacher_learned_from(teacher: Path, toy_store: CropStore) -> None:
    table = pd.read_csv(teacher)
    for fold, rows in table.groupby("fold"):
        place = "model" if fold == FINAL else f"fold-{fold}/model"
        model = load_model(teacher.parents[1] / "run" / place)
        patients = toy_store.manifest.set_index("nodule_id")["patient_id"]
        assert set(patients[rows["nodule_id"]]) == set(model.training_info["train_patients"])
        said = predict(model, toy_store, nodule_ids=rows["nodule_id"].tolist()).set_index("nodule_id")
        assert rows["texture"].clip(1, 5).to_numpy() == pytest.approx(said["texture"].to_numpy(), abs=1e-4)


def test_a_run_without_a_final_model_teaches_by_its_folds(teacher: Path, toy_store: CropStore, tmp_path: Path) -> None:
    for fold in (0, 1):
        shutil.copytree(teacher.parents[1] / "run" / f"fold-{fold}", tmp_path / "run" / f"fold-{fold}")
    table = teacher_outputs.run_table(
        tmp_path / "run", toy_store, teacher_outputs.Options(runs=["run"], store=toy_store.path)
    )
    nodule = toy_store.nodule_ids[0]
    of_it = table[table["nodule_id"] == nodule].set_index("fold")["texture"]
    assert of_it[FINAL] == pytest.approx(of_it.drop(FINAL).mean())


def test_a_teacher_of_other_patients_is_refused(teacher: Path, toy_store: CropStore, quick: Callable) -> None:
    table = pd.read_csv(teacher)
    mine = table["nodule_id"][table["fold"] == 0].tolist()
    said = read_teacher(teacher, 0, mine[::-1], OUTPUTS)
    wanted = table[table["fold"] == 0].set_index("nodule_id").loc[mine[::-1], list(OUTPUTS)].to_numpy()
    assert said.numpy() == pytest.approx(wanted)
    with pytest.raises(UsageError, match=r"the teacher of fold 0 learned from 'TOY-.* does not hold"):
        read_teacher(teacher, 0, mine[1:], OUTPUTS)
    with pytest.raises(UsageError, match=r"has no row of fold 7; it has \[-1, 0, 1\]"):
        read_teacher(teacher, 7, mine, OUTPUTS)
    with pytest.raises(DataError, match="has no column 'margin'"):
        read_teacher(teacher, 0, mine, ("margin",))
    write_csv(teacher.parent / "logits.csv", table.assign(malignancy=table["malignancy"] * 9))
    with pytest.raises(DataError, match="malignancy is a probability, fold 0 has values outside 0 to 1"):
        read_teacher(teacher.parent / "logits.csv", 0, mine, OUTPUTS)
    options = quick(teacher={"outputs": str(teacher.parent / "absent.csv")})
    with pytest.raises(UsageError, match=r"absent\.csv: no such file; make it with pipelines/teacher_outputs\.py"):
        fit(toy_store, None, options=options)


def test_targets_between_readers_and_teacher() -> None:
    nan = float("nan")
    mixed = blended(torch.tensor([[1.0, nan, 2.0, nan]]), torch.tensor([[0.0, 0.3, nan, nan]]), 0.25)
    assert mixed[0, :3].tolist() == pytest.approx([0.75, 0.3, 2.0])
    assert torch.isnan(mixed[0, 3])


def test_the_gradient_is_that_of_both_losses() -> None:
    output, readers, said = torch.tensor([0.4], requires_grad=True), torch.tensor([1.0]), torch.tensor([0.2])
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    (one,) = torch.autograd.grad(loss(output, blended(readers, said, 0.3)), output)
    (two,) = torch.autograd.grad(0.7 * loss(output, readers) + 0.3 * loss(output, said), output)
    torch.testing.assert_close(one, two)


def test_several_teachers_are_averaged_where_all_know_the_nodule() -> None:
    one = pd.DataFrame({"fold": [0, 0], "nodule_id": ["a", "b"], "texture": [1.0, 2.0]})
    two = pd.DataFrame({"fold": [0, 0], "nodule_id": ["b", "c"], "texture": [4.0, 5.0]})
    assert teacher_outputs.mean_rows([one, two], ["texture"]).to_dict("records") == [
        {"fold": 0, "nodule_id": "b", "texture": 3.0}
    ]


def test_how_much_a_teacher_counts(teacher: Path, toy_store: CropStore, quick: Callable, tmp_path: Path) -> None:
    """A teacher of weight 0 says nothing, one of weight 1 says all that is learned of a rating."""
    ids = pd.read_csv(teacher).query("fold == 0")["nodule_id"].tolist()
    rest = [name for name in toy_store.nodule_ids if name not in set(ids)]

    def student(weight: float, flat: bool) -> torch.Tensor:
        table = pd.read_csv(teacher)
        if flat:
            table["texture"] = 3.0
        write_csv(tmp_path / "said.csv", table)
        options = quick(epochs=1, teacher={"outputs": str(tmp_path / "said.csv"), "weight": weight})
        found = fit(toy_store, None, train_ids=ids, validation_ids=rest, options=options, info={"fold": 0})
        return torch.cat([parameter.detach().flatten() for parameter in found.model.head.parameters()])

    assert torch.equal(student(0.0, False), student(0.0, True))
    assert not torch.equal(student(1.0, False), student(1.0, True))
