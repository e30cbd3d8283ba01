"""Configuration: precedence, and errors that name the source, the field, what was got and what was wanted."""

import pytest
from pydantic import BaseModel, ConfigDict, Field

from lidc_xai.config import Config, load_config
from lidc_xai.errors import UsageError


class Fit(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = Field(3, ge=1)


class Study(Config):
    name: str = "a"
    fit: Fit = Fit()


def test_each_source_overrides_the_one_before(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("name: file\nseed: 1\nfit:\n  epochs: 5\n")
    config = load_config(Study, path, ["fit.epochs=7", "seed=2"], {"seed": 3})
    assert (config.name, config.fit.epochs, config.seed) == ("file", 7, 3)
    assert load_config(Study).fit.epochs == 3


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("fit:\n  epohcs: 5\n", "unknown field 'fit.epohcs'; did you mean 'epochs'"),
        ("nonsense: 5\n", "unknown field 'nonsense'; known: .*fit"),
        ("fit:\n  epochs: ten\n", "field 'fit.epochs': got 'ten'; input should be a valid integer"),
        ("fit:\n  epochs: 0\n", "field 'fit.epochs': got 0; .*greater than or equal to 1"),
        ("- a\n- b\n", "wanted 'field: value' lines, got a list"),
        ("a: [\n", "is not YAML"),
        ("seed: -1\nname: [1]\n", "and 1 more"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_and_field(tmp_path, text, wanted):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=wanted) as caught:
        load_config(Study, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_of_another_verb_is_told_so(tmp_path):
    class Other(Study):
        cohort: str = ""

    path = tmp_path / "study.yaml"
    verbs = {"train": Study, "cross-validate": Other}
    for text, wanted in (
        ("cohort: a\nseed: 1\n", "unknown field 'cohort'; the fields given are those of cross-validate"),
        ("cohort: a\nnonsense: 1\n", "unknown field 'cohort'; known: "),
        ("epohcs: 1\n", "unknown field 'epohcs'; known: "),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=wanted):
            load_config(Study, path, verbs=verbs)


@pytest.mark.parametrize("assignment", ["epochs", "=3", "name.x.y=1", "name=[", "fit=3"])
def test_a_wrong_assignment_is_a_usage_error(tmp_path, assignment):
    path = tmp_path / "study.yaml"
    path.write_text("name: a\n")
    with pytest.raises(UsageError):
        load_config(Study, path, [assignment])


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(Study, tmp_path / "absent.yaml")
