"""Provides provenance(): what a result must carry so that it can be made again."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

from hopscope.models.token_model import TokenModel

LIBRARIES = ("torch", "transformers", "transformer-lens", "nnsight", "numpy", "pandas")


class Described(Protocol):
    """Inputs as a run's record describes them: queries, questions or the like.

    Attributes:
        name: what the set is called.
        few_shot: demonstrations in a prompt.
        few_shot_seed: of their choice.
        fingerprint: a digest of all that is asked.
    """

    @property
    def name(self) -> str: ...
    @property
    def few_shot(self) -> int: ...
    @property
    def few_shot_seed(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...


def provenance(
    model: TokenModel,
    queries: Described,
    kind: str,
    settings: Mapping[str, Any],
    also: Sequence[TokenModel] = (),
    rules: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What a result must carry so that it can be made again.

    Args:
        model: the model.
        queries: what it was asked.
        kind: the kind of result.
        settings: of the analysis.
        also: further models, if it is an analysis of several.
        rules: versions of rules that the numbers follow, by name; see `Result.rules`.

    Raises:
        UsageError: if the queries are asked in another model's chat.
    """
    chat = getattr(queries, "chat", None)  # only two-hop queries are asked in one
    if chat is not None:
        chat.check(model.tokenizer)
    record: dict[str, Any] = {
        "kind": kind,
        "settings": dict(settings),
        **({"rules": dict(rules)} if rules else {}),
        "model": {
            "name": model.name,
            "family": model.hf.config.model_type,
            "sha256": model.fingerprint,
            "setup": model.setup,
            **({"setups": [each.setup for each in also]} if also else {}),
            "n_layers": model.n_layers,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": device_name(model.device),
            **({} if model.quantization is None else {"quantization": model.quantization}),
        },
        "queries": {
            "name": queries.name,
            "n": len(queries),
            "sha256": queries.fingerprint,
            "few_shot": queries.few_shot,
            "few_shot_seed": queries.few_shot_seed,
        },
        "versions": {
            "hopscope": metadata.version("hopscope"),
            "git": _git_commit(),
            "python": platform.python_version(),
            **{library: metadata.version(library) for library in LIBRARIES},
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if chat is not None:
        record["queries"]["chat"] = chat.settings
    as_saved: dict[str, Any] = json.loads(json.dumps(record))
    return as_saved


def machine_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded with each part of a run that this machine computes: device, host, versions.

    Two parts may be of two machines, under two versions of a library, but of one kind of device.

    Args:
        run: the record of the run, as this process made it.
    """
    model = run.get("model") or {}
    return {
        "device": model.get("device"),
        "host": socket.gethostname(),
        "versions": run.get("versions") or {},
    }


def summary_of(run: Mapping[str, Any]) -> dict[str, str]:
    """Return what a page says of how a result was made, by name: model, queries and versions.

    Args:
        run: the record of a run; what it lacks is left out.
    """
    model, queries = run.get("model", {}), run.get("queries", {})
    found = {
        "model": model.get("name"),
        "weights sha256": model.get("sha256"),
        "queries": f"{queries.get('name')} ({queries.get('n')})" if queries else None,
        "queries sha256": queries.get("sha256"),
        **run.get("versions", {}),
    }
    return {name: str(each) for name, each in found.items() if each}


SAME = ("kind", "settings", "model", "queries")
"""What two runs must share to be one."""

LATER = ("setup", "setups")
"""Parts of a model's description that records of earlier versions lack."""

EMPTY = (None, "")
"""What a setting is where a record lacks it, as those of versions do that did not know it."""


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Where a run differs from the one that a folder holds, if they are not the same.

    The device may differ, since a run that is finished is the same everywhere; see `other_device`.
    Of a record of an earlier version, or one whose `setup` has another rule, it counts what it
    says.

    Args:
        before: the record of the folder.
        now: the record of the run.

    Returns:
        The name of the first part that differs, and both values; None if there is none.
    """
    models = [dict(each.get("model") or {}) for each in (before, now)]
    rules = [model.get("setup", {}).get("rule") for model in models]
    for model in models:
        model.pop("device", None)
        for name in LATER if rules[0] != rules[1] else ():
            model.pop(name, None)
    pairs = [{**each, "model": model} for each, model in zip((before, now), models, strict=True)]
    return next(
        filter(None, (_first(key, *(each.get(key) for each in pairs)) for key in SAME)), None
    )


def other_device(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """The devices of a folder's record and of a run that would go on, if they are of two kinds."""
    first, second = ((each.get("model") or {}).get("device") for each in (before, now))
    return None if first in (*EMPTY, second) or second in EMPTY else (first, second)


def other_rules(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The rules of a run that a folder's record does not follow, or, of an earlier version, know.

    A run that is there as a whole is what it says; one that would go on would mix two rules.
    """
    followed = before.get("rules", {})
    return [name for name, rule in now.get("rules", {}).items() if followed.get(name) != rule]


def _first(name: str, before: Any, now: Any) -> tuple[str, Any, Any] | None:
    """The first part in which two values differ, with its name."""
    if before == now or (before in EMPTY and now in EMPTY):
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        inner = (_first(f"{name} {key}", before.get(key), now.get(key)) for key in keys)
        return next(filter(None, inner), None)
    return name, before, now


def device_name(device: torch.device) -> str:
    """What a device is called in records: the card's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _git_commit() -> str | None:
    """The commit that hopscope runs from, if it runs from a checkout of its own."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
