"""The command line ``lidc-xai``: gathers the verbs; nothing heavy is imported before a verb runs."""

from __future__ import annotations

import sys
from importlib import import_module

import typer
from typer.exceptions import TyperException

from lidc_xai import __version__
from lidc_xai.commands import GROUPS
from lidc_xai.commands.common import VERBS
from lidc_xai.ratings import RESEARCH_USE_ONLY

app = typer.Typer(
    help=f"Explain Vision Transformers on lung nodules, and measure how far to trust it. {RESEARCH_USE_ONLY}",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lidc-xai {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Version.")) -> None:
    pass


for group in GROUPS:
    for verb, about, call in VERBS[import_module(f"lidc_xai.commands.{group}").__name__]:
        app.command(verb, short_help=about)(call)


def main() -> None:
    """Entry point. A usage error is one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        print(f"lidc-xai: {' '.join(error.format_message().split())} (see lidc-xai --help)", file=sys.stderr)
        code = 2
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
