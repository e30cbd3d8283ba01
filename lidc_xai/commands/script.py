"""A script is declared like a verb: a pydantic model gives its flags, ``--config``, ``--set``, and ``run.json``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import typer
from typer.exceptions import TyperException

from lidc_xai.commands.common import as_command
from lidc_xai.config import Config
from lidc_xai.run import Run, shareable_argv

C = TypeVar("C", bound=Config)


def run_script(
    name: str,
    kind: type[C],
    function: Callable[[C, Run], None],
    about: str,
    arguments: Sequence[str] | None = None,
    *,
    argument: str = "",
) -> int:
    """Parse ``arguments`` (None: the process's own), run ``function(config, run)``, and return the exit code.

    ``about``: the text of ``--help``, shown as it is written. ``argument``: a field that is given by position. Exit
    codes are those of the verbs: 0 done, 1 failed, 2 wrong usage, 3 done with cases in ``skipped.csv``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    call = as_command(name, kind, function, argument, argv=[name, *shareable_argv(given)])
    as_written = about.strip().replace("\n\n", "\n\n\b\n")  # \b: click does not wrap the paragraph anew
    app.command(name, help=f"\b\n{as_written}", context_settings={"help_option_names": ["-h", "--help"]})(call)
    try:
        code = app(given, standalone_mode=False, prog_name=name)
    except TyperException as error:
        print(f"{name}: {' '.join(error.format_message().split())} (see --help)", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0
