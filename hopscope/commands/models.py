"""Provides `hopscope models`: list the models that are known by name, fetch one."""

from __future__ import annotations

from typing import Annotated

import typer

from hopscope.commands.printing import AsJson, show, table_text

models_app = typer.Typer(no_args_is_help=True, help="The models that hopscope knows by name.")


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the models of the zoo."""
    from hopscope.models.zoo import model_dir, zoo

    entries = [
        {
            "name": entry.name,
            "hub_id": entry.hub_id,
            "licence": entry.licence,
            "here": model_dir(entry.name).is_dir(),
            "description": entry.description,
        }
        for entry in zoo().values()
    ]
    show({"models": entries}, as_json, lambda: table_text(entries))


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="A name of `hopscope models list`.")],
    force: Annotated[bool, typer.Option(help="Download it again.")] = False,
) -> None:
    """Fetch a model of the zoo into the cache."""
    from hopscope.models.zoo import pull

    print(pull(name, force=force))
