"""The command line as a user meets it: exit codes, one-line errors, a record of the run, a quick --help."""

import io
import json
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from lidc_xai.cli import main


def lidc_xai(*arguments):
    """The command line in this process, which has imported torch already: exit code and what it printed."""
    said, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["lidc-xai", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return SimpleNamespace(returncode=ended.value.code, stdout=said.getvalue(), stderr=errors.getvalue())


def test_help_needs_neither_torch_nor_pandas():
    code = (
        "import sys; from lidc_xai import cli; "
        "print([name for name in ('torch', 'monai', 'pandas', 'numpy', 'SimpleITK') if name in sys.modules])"
    )
    started = time.perf_counter()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert time.perf_counter() - started < 20  # a guard against a heavy import; the goal (0.5 s) is measured by hand


def test_every_verb_has_help_with_an_example_and_the_shared_options():
    verbs = [line.split()[0] for line in lidc_xai("--help").stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert "cohort" in verbs
    from typer.main import get_command

    from lidc_xai.cli import app

    commands = get_command(app).commands
    for name, command in commands.items():
        assert "Example: lidc-xai" in command.help, name
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--config", "--set", "--out", "--device", "--seed", "--quiet"} <= options, name


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["cohrot"], "No such command 'cohrot'"),
        (["cohort", "--nome", "x"], "No such option"),
        (["cohort", "--name", "paper853"], "paper854"),
        (["cohort", "--set", "nam=3"], "did you mean 'name'"),
        (["cohort", "--seed", "minus"], "--seed"),
        (["cohort", "--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_wrong_usage_is_exit_2_and_one_line(arguments, text):
    found = lidc_xai(*arguments)
    assert found.returncode == 2
    assert text in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert "Traceback" not in found.stderr


def test_cohort_writes_tables_and_a_record(tmp_path):
    found = lidc_xai("cohort", "--name", "paper854", "--out", tmp_path / "cohort")
    assert found.returncode == 0, found.stderr
    assert "411 malignant, 443 benign" in found.stderr
    record = json.loads((tmp_path / "cohort" / "run.json").read_text())
    assert record["verb"] == "cohort"
    assert record["status"] == "done"
    assert record["results"]["nodules"] == 854
    assert record["argv"][0] == "lidc-xai"
    assert (tmp_path / "cohort" / "paper854.csv").read_text().count("\n") == 855


def test_an_out_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    found = lidc_xai("cohort", "--out", tmp_path / "file" / "x")
    assert found.returncode == 2
    assert "cannot be made" in found.stderr


def test_info_says_what_a_model_can_do_and_why_not_the_rest():
    found = lidc_xai("info", "methods", "--model", "test_vit", "--json")
    assert found.returncode == 0, found.stderr
    rows = {row["name"]: row for row in json.loads(found.stdout)}
    assert rows["cdam"] == {"name": "cdam", "works": "yes", "why not": ""}
    assert rows["rsi_gradcam"]["works"] == "no"
    assert "a ViT's residual stream leads around norm1" in rows["rsi_gradcam"]["why not"]
    shipped = lidc_xai("info", "methods", "--model", "lidc-small", "--json")
    assert {row["name"]: row["works"] for row in json.loads(shipped.stdout)}["attn_lrp"] == "yes"
    wrong = lidc_xai("info", "backbones", "--model", "test_vit")
    assert wrong.returncode == 2
    assert "--model goes with info methods, not with info backbones" in wrong.stderr
