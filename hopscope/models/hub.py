"""Provides the models of the Hugging Face hub that load by a short name."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from huggingface_hub import try_to_load_from_cache

WEIGHTS, INDEX = SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""What the weights of a saved model are called: one file, or a list of several."""


@dataclass(frozen=True)
class HubEntry:
    """A model of the hub: its short name, its id and its licence."""

    name: str
    hub_id: str
    licence: str
    n_layers: int
    n_parameters: int
    """Number of weights; tied ones are counted once."""


@cache
def hub_models() -> Mapping[str, HubEntry]:
    """Returns the models by short name, in the order of `hub.toml`.

    Example:
        >>> hub_models()["llama-3.1-8b"].hub_id
        'meta-llama/Llama-3.1-8B'
    """
    table = tomllib.loads(files("hopscope.models").joinpath("hub.toml").read_text("utf-8"))
    return MappingProxyType({name: HubEntry(name, **fields) for name, fields in table.items()})


def is_cached(hub_id: str) -> bool:
    """Returns whether all weights of a model are in the hub's cache; nothing is fetched."""
    if isinstance(try_to_load_from_cache(hub_id, WEIGHTS), str):
        return True
    index = try_to_load_from_cache(hub_id, INDEX)
    if not isinstance(index, str):
        return False
    shards = set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values())
    return all(Path(index).with_name(shard).is_file() for shard in shards)
