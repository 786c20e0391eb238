"""Provides kept_digests(): digests of weights, computed once for the files that they come from.

A large model takes minutes to digest, and every worker of a machine would do so again. What was
found is kept in the cache under the sizes and times of the files, and a checksum of the tensors; a
file that is replaced or written anew, and a model that was changed, is digested again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel

from hopscope.files import make_folder, write_json
from hopscope.models.fingerprint import digests, tensors_checksum
from hopscope.models.zoo import cache_dir

logger = logging.getLogger(__name__)
Digests = tuple[str, str]
FILES = ("config.json", "*.safetensors")
RULE = 1
"""Version of the rule by which weights are digested."""


def stamp_of(place: str, how: dict[str, Any]) -> str | None:
    """What stands for the weights that were read: the files, with sizes and times, and how.

    Args:
        place: the folder or the hub id that they were read from.
        how: what else the numbers depend on, such as the dtype, as JSON.

    Returns:
        A digest; None if the files are not known.
    """
    if not place:
        return None
    folder = Path(place)
    if not folder.is_dir():
        cached = None
        with suppress(ValueError):  # no hub id either
            cached = try_to_load_from_cache(place, "config.json")
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    found = [path for pattern in FILES for path in sorted(folder.glob(pattern))]
    if len(found) < 2:
        return None
    stats = [(path.name, path.resolve().stat()) for path in found]
    files = [[name, each.st_size, each.st_mtime_ns] for name, each in stats]
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    told = [RULE, str(folder.resolve()), files, how, versions]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def kept_digests(stamp: str, hf: PreTrainedModel) -> Digests:
    """The digests that are kept of a model, or those that are computed now, and are kept.

    Of several processes that ask at once, one computes. Where nothing can be kept, each does.

    Args:
        stamp: of the files that it was read from.
        hf: the model.
    """
    path = cache_dir() / "digests" / f"{stamp}-{tensors_checksum(hf)}.json"
    found = _read(path)
    if found is not None:
        return found
    try:
        make_folder(path.parent)
        with FileLock(path.with_suffix(".lock")):
            found = _read(path)
            if found is None:
                found = digests(hf)
                write_json(path, {"parameters": found[0], "buffers": found[1]})
        return found
    except OSError as error:  # a cache that is read-only, say
        logger.debug("digests are not kept: %s", error)
        return digests(hf) if found is None else found


def _read(path: Path) -> Digests | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text("utf-8"))
        return str(kept["parameters"]), str(kept["buffers"])
    return None
