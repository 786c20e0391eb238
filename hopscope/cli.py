"""Provides the `hopscope` command."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from hopscope import __version__
from hopscope.commands.analyses import CatalogueGroup
from hopscope.commands.models import models_app
from hopscope.commands.queries import queries_app
from hopscope.commands.runs import runs_app
from hopscope.commands.studies import studies_app
from hopscope.commands.worlds import worlds_app
from hopscope.errors import HopscopeError, UsageError

app = typer.Typer(
    cls=CatalogueGroup,
    no_args_is_help=True,
    help="How does a language model answer a question that takes two hops, and why does it fail?",
    pretty_exceptions_enable=False,
)
app.add_typer(queries_app)
app.add_typer(studies_app)
app.add_typer(models_app, name="models")
app.add_typer(runs_app, name="runs")
app.add_typer(worlds_app, name="worlds")

INTERRUPTED = 130


def main() -> None:
    """Run the command; 2 for a user's mistake, 1 for a failure, 130 when interrupted."""
    # Read when torch is imported: threads that wait must not spin, or a machine whose cores are
    # shared becomes ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except UsageError as error:
        _fail(error, 2)
    except HopscopeError as error:
        _fail(error, 1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer has swallowed the KeyboardInterrupt
            print("stopped; with -o, the same command goes on from here", file=sys.stderr)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(error: HopscopeError, code: int) -> None:
    print(f"hopscope: {error}", file=sys.stderr)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


if __name__ == "__main__":
    main()
