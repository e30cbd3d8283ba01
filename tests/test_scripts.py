"""Scripts of pipelines/ and benchmarks/ are declared like verbs: flags, --config, --set, checks, codes, run.json."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from pydantic import Field

from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import DataError
from lidc_xai.run import Run
from lidc_xai.skipped import Skipped

ROOT = Path(__file__).resolve().parents[1]
PIPELINES = ROOT / "pipelines"
SCRIPTS = sorted(path for folder in (PIPELINES, ROOT / "benchmarks") for path in folder.glob("*.py"))


class Options(Config):
    """Fields of the script under test."""

    store: Path = Field(description="A store.")
    count: int = Field(3, ge=1, description="How many.")
    groups: dict[str, int] = Field({}, description="Reached by --set.")
    levels: list[float] = Field([1.0], description="Numbers.")
    kinds: list[Literal["blur", "zero"]] = Field(["blur"], description="Choices.")


def work(options: Options, run: Run) -> None:
    need_out(options)
    if options.count == 13:
        raise DataError("thirteen cannot be read; give fourteen")
    if options.count == 5:
        run.skipped.append(Skipped("n5", "read", "five"))
    run.results = {"sum": options.count + sum(options.groups.values())}


def called(*arguments: str) -> int:
    return run_script("count_them", Options, work, "Counts.\n\n    python count_them.py\n", arguments)


def test_flags_file_and_set_are_one_configuration(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("count: 4\nstore: /data/store\ngroups: {a: 1}\n")
    out = tmp_path / "out"
    assert called("--config", str(tmp_path / "c.yaml"), "--set", "groups.b=2", "--out", str(out)) == 0
    told = json.loads((out / "run.json").read_text())
    assert told["verb"] == "count_them"
    assert told["argv"] == ["count_them", "--config", "c.yaml", "--set", "groups.b=2", "--out", "out"]
    assert told["config"]["count"] == 4
    assert told["config"]["store"] == "store"
    assert (told["results"], told["status"]) == ({"sum": 7}, "done")
    assert called("--store", "x", "--count", "6", "--config", str(tmp_path / "c.yaml"), "--out", str(out)) == 0
    assert json.loads((out / "run.json").read_text())["results"] == {"sum": 7}


def test_numbers_and_choices_may_be_given_by_commas_or_by_several_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ("--store", "x", "--out", str(tmp_path))
    assert called("--levels", "0.1, 2", "--levels", "3", "--kinds", "blur,zero", *usual) == 0
    config = json.loads((tmp_path / "run.json").read_text())["config"]
    assert (config["levels"], config["kinds"]) == ([0.1, 2.0, 3.0], ["blur", "zero"])
    assert called("--levels", "0.1,b", *usual) == 2
    assert "field 'levels.1': got 'b'; input should be a valid number" in capsys.readouterr().err


def test_every_end_has_its_code_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = ("--store", "x", "--out", str(tmp_path))
    for arguments, code, line in (
        (("--count", "5", *usual), 3, f"count_them: 1 left out; see {tmp_path / 'skipped.csv'}"),
        (("--count", "13", *usual), 1, "count_them: thirteen cannot be read; give fourteen"),
        (
            ("--count", "0", *usual),
            2,
            "count_them: options: field 'count': got 0; input should be greater",
        ),
        (("--counts", "1", *usual), 2, "count_them: No such option: --counts"),
        (("--out", str(tmp_path)), 2, "field 'store' is missing"),
        (("--store", "x"), 2, "count_them: --out is missing: name the folder to write into"),
    ):
        assert called(*arguments) == code
        said = capsys.readouterr().err.strip()
        assert line in said
        assert len(said.splitlines()) == 1
    assert json.loads((tmp_path / "run.json").read_text())["verb"] == "count_them"


def test_help_is_the_text_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert called("--help") == 0
    shown = capsys.readouterr().out
    assert "      python count_them.py\n" in shown
    assert "--store" in shown
    assert "--groups" not in shown


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_script_parses_by_itself(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "argparse" not in text
    assert "run_script(" in text or "studies.study import" in text or "__main__" not in text


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PIPELINES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_a_real_script_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = load("results_tables")
    assert tables.main([]) == 2
    assert "results_tables: give one of --run and --benchmark" in capsys.readouterr().err
    assert tables.main(["--run", str(tmp_path / "absent")]) == 2
    assert "--run" in capsys.readouterr().err
    readers = load("reader_study")
    assert readers.main(["publish", "--store", "x", "--out", str(tmp_path / "o")]) == 2
    assert "field 'step': got 'publish'" in capsys.readouterr().err
