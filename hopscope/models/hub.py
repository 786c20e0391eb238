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
from transformers.utils.hub import has_file

WEIGHTS, INDEX = SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""What the weights of a saved model are called: one file, or a list of several."""
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""What they are called as a pickle."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
"""What the vocabulary of a saved tokenizer is called: one of these."""


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
    """Returns whether a model is in the hub's cache: all weights, configuration and tokenizer.

    Nothing is fetched.
    """

    def is_there(name: str) -> bool:
        return isinstance(try_to_load_from_cache(hub_id, name), str)

    if not (is_there("config.json") and any(map(is_there, TOKENIZERS))):
        return False
    if is_there(WEIGHTS):
        return True
    index = try_to_load_from_cache(hub_id, INDEX)
    if not isinstance(index, str):
        return False
    shards = set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values())
    return all(Path(index).with_name(shard).is_file() for shard in shards)


def has_only_pickles(hub_id: str) -> bool:
    """Returns whether a repository of the hub has pickled weights and no safetensors.

    Nothing is fetched; of a hub that does not answer, what lies in the cache counts.
    """

    def is_there(name: str) -> bool:
        try:
            return bool(has_file(hub_id, name))
        except Exception:  # the hub client raises many unrelated types of errors
            return False

    return any(map(is_there, PICKLED_WEIGHTS)) and not any(map(is_there, SAFE_WEIGHTS))
