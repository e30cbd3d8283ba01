"""The simulated study's parts: its configuration loads, patients are apart, the dry run is small."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lidc_xai.config import load_config
from lidc_xai.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_simulated", ROOT / "pipelines" / "benchmark_simulated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks the annotations up there
    spec.loader.exec_module(module)
    return module


def test_the_configuration_asks_for_enough_and_keeps_patients_apart(script: ModuleType) -> None:
    study = load_config(script.Study, ROOT / "configs" / "benchmark_simulated.yaml")
    train, test = script.choose_nodules(study)
    trained, tested = ({nodule.patient_id for nodule in part} for part in (train, test))
    assert len(test) >= 100
    assert len(tested) >= 30
    assert not trained & tested
    assert len(train) == study.train_nodules
    assert script.choose_nodules(study)[1] == test
    assert set(study.benchmark.outputs) <= set(study.fit.model.outputs)


def test_a_dry_run_is_small_and_an_impossible_study_is_refused(script: ModuleType) -> None:
    study = load_config(script.Study, None, [], {"out": "runs/x"})
    dry = script.small(study, 6)
    train, test = script.choose_nodules(dry)
    assert (len(train), dry.fit.epochs) == (24, 1)
    assert 6 <= len(test) < 20
    with pytest.raises(UsageError, match="leaves no patient to train on"):
        script.choose_nodules(study.model_copy(update={"test_nodules": 10_000}))
