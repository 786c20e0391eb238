"""Provides `hopscope models`: list the models that are known by name, fetch one."""

from __future__ import annotations

from typing import Annotated

import typer

from hopscope.commands.printing import AsJson, show, table_text

models_app = typer.Typer(no_args_is_help=True, help="The models that hopscope knows by name.")


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the models of the zoo: layers, gigabytes to fetch and in memory, licence, if at hand."""
    from hopscope.models.zoo import model_dir, zoo

    entries = [
        {
            "name": entry.name,
            "layers": entry.n_layers,
            "fetch_GB": round(entry.bytes / 1e9, 2),
            "float32_GB": round(4 * entry.n_parameters / 1e9, 2),
            "bfloat16_GB": round(2 * entry.n_parameters / 1e9, 2),
            "here": model_dir(entry.name).is_dir(),
            "licence": entry.licence,
            "hub_id": entry.hub_id,
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
