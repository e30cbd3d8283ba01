"""How a verb is declared: its pydantic model gives the flags, the YAML keys and their checks; one place ends it well.

A verb is ``function(config, run)``. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done with cases in ``skipped.csv``,
130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from lidc_xai.config import Config, load_config
from lidc_xai.errors import DataError, LidcXaiError, UsageError
from lidc_xai.files import FULL_DISK, remove_half_written
from lidc_xai.lock import lock_folder, unlock_folders
from lidc_xai.progress import show_progress, stop_workers
from lidc_xai.run import Run, current_argv
from lidc_xai.skipped import in_words, write_skipped

if TYPE_CHECKING:
    import pandas as pd

    from lidc_xai.imaging import CropStore
    from lidc_xai.models import NoduleModel

C = TypeVar("C", bound=Config)
Verb = TypeVar("Verb", bound=Callable[..., None])
VERBS: defaultdict[str, list[tuple[str, str, Callable[..., None]]]] = defaultdict(list)
"""Module -> its verbs: name, what it does in one sentence, and what typer calls."""
_CONFIGS: dict[str, type[Config]] = {}
"""The configuration of every verb."""
EXIT_SKIPPED = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class StoreConfig(Config):
    """Fields of the verbs that read a store."""

    store: Path | None = Field(None, description="A store made by prepare.")


class ModelConfig(StoreConfig):
    """Fields of the verbs that run a model on a store's nodules."""

    model: str | None = Field(None, description="A model folder, a run or a shipped name; several by commas.")
    weights: str | None = Field(
        None, description="Published weights of a model saved as an adapter: pretrained or a file."
    )
    nodule: list[str] = Field([], description="Nodule ids; repeat it or separate by commas. All by default.")
    limit: int | None = Field(None, ge=1, description="Only the first so many of them.")


def verb(example: str, name: str = "", argument: str = "") -> Callable[[Verb], Verb]:
    """Declare a function a verb: ``name`` (else the function's own) on the command line, its help, its ``example``.

    Simple fields of its configuration become flags; groups of fields are reached by ``--set``. argument: name of the
    field that is given by position (a path or a list of paths).
    """

    def declare(function: Verb) -> Verb:
        kind: type[Config] = inspect.get_annotations(function, eval_str=True)["config"]
        called = name or function.__name__.replace("_", "-")
        _CONFIGS[called] = kind
        call, about = as_command(called, kind, function, argument), inspect.cleandoc(kind.__doc__ or "")
        call.__doc__ = f"{about}\n\nExample: {example}"
        VERBS[function.__module__].append((called, about.split(". ")[0].split(".\n")[0], call))
        return function

    return declare


def as_command(
    name: str, kind: type[C], function: Callable[[C, Run], None], argument: str = "", argv: list[str] | None = None
) -> Callable[..., None]:
    """``function`` as what typer calls: with a flag for each simple field of ``kind``, ``--config`` and ``--set``.

    argv: what the record says of the command; None: the program's own.
    """

    def call(config: Path | None, assignments: list[str], **flags: Any) -> None:
        given = {
            key: words(value) if _is_chosen_list(kind, key) else value
            for key, value in flags.items() if value not in (None, [])
        }  # fmt: skip
        run = Run(name, current_argv() if argv is None else argv, {})
        _run(run, kind, function, config, assignments, given)

    call.__signature__ = inspect.Signature(_parameters(kind, argument))  # type: ignore[attr-defined]
    return call


def _parameters(kind: type[Config], argument: str) -> list[inspect.Parameter]:
    fields = {
        "config": Annotated[Path | None, typer.Option("--config", help="YAML file with any of these fields.")],
        "assignments": Annotated[list[str], typer.Option("--set", help="field=value, also inside groups: a.b=c.")],
    }
    fields_here = [key for key in kind.model_fields if key not in Config.model_fields]
    for key in [*fields_here, *Config.model_fields]:
        field = kind.model_fields[key]
        if _is_group(field.annotation):
            continue
        fields[key] = _flag(key, field, positional=key == argument)
    return [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=_absent(annotation))
        for key, annotation in fields.items()
    ]


def _flag(key: str, field: FieldInfo, positional: bool) -> Any:
    help_text = f"{field.description or ''}{_default_in_words(field)}"
    base = _simple(field.annotation)
    wanted = base if get_origin(base) is list else base | None
    if positional:
        return Annotated[wanted, typer.Argument(help=help_text, show_default=False)]
    name = f"--{(field.alias or key).replace('_', '-')}"
    return Annotated[wanted, typer.Option(name, help=help_text, show_default=False)]


def _default_in_words(field: FieldInfo) -> str:
    if field.is_required():
        return " [required]"
    default = field.get_default(call_default_factory=True)
    if default is None or isinstance(default, bool) or default in ("", []):
        return ""
    return f" [default: {','.join(map(str, default)) if isinstance(default, list) else default}]"


def _simple(annotation: Any) -> Any:
    """The type that a flag parses to; everything finer (ranges, choices) is checked by pydantic afterwards."""
    options = [part for part in get_args(annotation) if part is not type(None)] or [annotation]
    if get_origin(annotation) is list:
        return list[Path] if get_args(annotation)[0] is Path else list[str]
    if get_origin(annotation) is not None and options[0] is not annotation and not isinstance(options[0], str):
        return _simple(options[0])
    return options[0] if options[0] in (int, float, bool, Path) else str


def _is_chosen_list(kind: type[Config], key: str) -> bool:
    """Whether a field is a list of numbers or of choices, given by several flags or by commas as its default is shown.
    What is text or a path is split by the verb, where it can be.
    """
    annotation = kind.model_fields[key].annotation
    return get_origin(annotation) is list and get_args(annotation)[0] not in (str, Path)


def _absent(annotation: Any) -> Any:
    return [] if get_origin(get_args(annotation)[0]) is list else None


def _is_group(annotation: Any) -> bool:
    parts = [annotation, *get_args(annotation)]
    return any((isinstance(part, type) and issubclass(part, BaseModel)) or part is dict for part in parts) or any(
        get_origin(part) is dict for part in parts
    )


def _run(
    run: Run,
    kind: type[C],
    function: Callable[[C, Run], None],
    path: Path | None,
    assignments: list[str],
    flags: dict[str, Any],
) -> None:
    try:
        with _interruptible():
            config = load_config(kind, path, assignments, flags, _CONFIGS)
            run.config, run.out = config.model_dump(mode="json"), config.out
            with show_progress(not config.quiet):
                try:
                    function(config, run)
                finally:
                    stop_workers()
            if run.out is not None and run.out.is_dir() and run.skipped:
                write_skipped(run.out, run.skipped)
            run.write("done")
    except LidcXaiError as error:
        raise typer.Exit(_fail(run, str(error), error.exit_code)) from None
    except KeyboardInterrupt as stop:
        code = EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
        raise typer.Exit(_fail(run, "interrupted; the same command goes on from here", code, "interrupted")) from None
    except Exception as error:
        if os.environ.get("LIDC_XAI_DEBUG"):
            raise
        raise typer.Exit(_fail(run, _unexpected(error), 1)) from None
    finally:
        unlock_folders()
    if run.skipped:
        where = f"; see {run.out / 'skipped.csv'}" if run.out else ""
        print(f"{run.name}: {in_words(run.skipped)}{where}", file=sys.stderr)
        raise typer.Exit(EXIT_SKIPPED)


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run as Ctrl-C does, with an exit code of its own."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM inside this block is an exception, so that what is half-written is removed and the record written."""

    ended = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ended
        ended = True
        raise Terminated

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if in_main else None
    try:
        yield
    except KeyboardInterrupt as stop:  # a library on the way may have made another exception of it
        if ended and not isinstance(stop, Terminated):
            raise Terminated from stop
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _unexpected(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}the disk is full ({error.strerror}); free space and run the same command again"
    text = f"unexpected {type(error).__name__}: {error}".splitlines()[0]
    return f"{text} (LIDC_XAI_DEBUG=1 shows where; please report it)"


def _fail(run: Run, message: str, code: int, status: str = "failed") -> int:
    """Note in the record how the run ended and say it in one line; a record that cannot be written changes nothing."""
    try:
        run.write(status)
    except (LidcXaiError, OSError) as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or str(error)
        message = f"{message} (and no run.json: {reason})"
    print(f"{run.name}: {message}", file=sys.stderr)
    return code


def need_out(config: Config) -> Path:
    """The folder to write into, made where it is absent and kept from other runs until this one ends.

    ``UsageError`` where it was not given, cannot be made, or another run writes there.
    """
    if config.out is None:
        raise UsageError("--out is missing: name the folder to write into")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {config.out}: cannot be made ({error.strerror})") from None
    if lock_folder(config.out):  # a run was killed here
        remove_half_written(config.out)
    return config.out


def need_path(path: Path | None, flag: str) -> Path:
    """``path`` where it exists; else ``UsageError`` that names the flag."""
    if path is None:
        raise UsageError(f"{flag} is missing")
    if not path.exists():
        raise UsageError(f"{flag} {path}: no such file or folder")
    return path


def pick_device(name: str) -> str:
    """``auto`` becomes cuda where there is one; a device that is not there is a ``UsageError``."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: wanted auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device is visible; use --device cpu")
    return name


def need_model(name: str | None, weights: str | None = None) -> NoduleModel:
    """The model of a folder or of a shipped name; ``UsageError`` where --model was not given."""
    if not name:
        raise UsageError("--model is missing: name a model folder (RUN/model)")
    from lidc_xai.models import load_model

    return load_model(name, weights)


def need_models(name: str | None, weights: str | None = None) -> list[NoduleModel]:
    """The models behind --model, each named folder's: a run's folds, an ensemble's members, or the one.

    ``UsageError`` where two of them are the same weights: a copy is not another training.
    """
    from lidc_xai.models.digest import check_different, weights_digest
    from lidc_xai.nodules._predict import load_models

    each = {folder: load_models(folder, weights) for folder in model_names(name)}
    models = load_models([model for some in each.values() for model in some])
    if len(each) > 1:
        labels = [
            folder if len(some) == 1 else f"{folder} ({k + 1})"
            for folder, some in each.items()
            for k in range(len(some))
        ]
        check_different([weights_digest(model) for model in models], labels)
    return models


def model_names(name: str | None) -> list[str]:
    """What --model names: one folder or shipped name, or several separated by commas."""
    if not name:
        raise UsageError("--model is missing: name a model folder (RUN/model) or a cross-validated run")
    names = [name] if Path(name).exists() else words([name])
    twice = next((one for k, one in enumerate(names) if one in names[:k]), None)
    if twice is not None:
        raise UsageError(f"--model names {twice} twice: a copy is not another training; give it once")
    return names


def usable_nodules(store: CropStore, wanted: list[str], run: Run, limit: int | None = None) -> list[str]:
    """Those of ``wanted`` (all where it is empty), the first ``limit`` of them, whose crops can be read; the others
    become skipped rows of ``run``.

    DataError where none is left.
    """
    good, lost = store.sound((wanted or store.nodule_ids)[:limit])
    run.skipped += lost
    if not good:
        raise DataError(lost[0].reason if lost else f"{store.path}: holds no nodule")
    return good


def what_to_look_at(table: pd.DataFrame) -> str:
    """How many nodules were predicted, which of them are in doubt and why, how many have issues."""
    said = [f"{len(table)} nodules"]
    doubted = table[table["flag"] != ""]
    if len(doubted):
        first = doubted.iloc[0]
        said.append(f"{len(doubted)} in doubt ({first['nodule_id']}: {first['flag']})")
    if (table["issues"] != "").any():
        said.append(f"{(table['issues'] != '').sum()} with issues, see the columns flag and issues")
    return ", ".join(said)


def words(values: list[str]) -> list[str]:
    """Values of a flag that may be repeated and may hold several, separated by commas."""
    return [word.strip() for value in values for word in value.split(",") if word.strip()]


def print_table(rows: list[dict[str, Any]], stream: TextIO | None = None) -> None:
    """Rows of plain values as aligned columns; columns that hold tables of their own are left out."""
    shown = [key for key in rows[0] if all(not isinstance(row[key], (dict, list)) for row in rows)]
    cells = [[str("–" if row[key] is None else row[key]) for key in shown] for row in rows]
    widths = [max(len(line[k]) for line in [shown, *cells]) for k in range(len(shown))]
    for line in [shown, *cells]:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip(), file=stream)
