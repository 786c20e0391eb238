"""Provides Result: a tidy table, what was done to get it, and how it is saved."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import pandas as pd
import torch
from scipy import stats

from hopscope.errors import ResultError, UsageError
from hopscope.models.token_model import TokenModel

if TYPE_CHECKING:
    from hopscope.display.widgets import GridWidget

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "transformer-lens", "nnsight", "numpy", "pandas")
Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True, repr=False)
class Result:
    """What an experiment found.

    Attributes:
        frame: the tidy table.
        details: one row a query (and position): prompts, answers, clean outputs.
        run: what was asked, and provenance.
    """

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[Result]]] = {}

    frame: pd.DataFrame
    details: pd.DataFrame
    run: Mapping[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Result.kinds[cls.kind] = cls

    def __repr__(self) -> str:
        name = self.run.get("model", {}).get("name", "?")
        return (
            f"{type(self).__name__}({name}, {self.run.get('queries', {}).get('name', '?')}, "
            f"{self.details['query'].nunique()} queries, {len(self.frame)} rows)"
        )

    def _repr_mimebundle_(self, **_: Any) -> Mapping[str, Any]:
        from hopscope.display.notebook import bundle_of

        return bundle_of(self)

    def view(self) -> GridWidget:
        """The interactive heatmap that a notebook shows of this result, to keep and to steer.

        Raises:
            UsageError: if this kind of result has none.

        Example:
            >>> view = result.view()                            # doctest: +SKIP
            >>> view.chosen = {**view.chosen, "control": "random"}  # doctest: +SKIP
        """
        from hopscope.display.layer_grids import grid_of
        from hopscope.display.notebook import picture_of
        from hopscope.display.widgets import GridWidget

        grid = grid_of(self)
        if grid is None:
            raise UsageError(f"a result of kind {self.kind!r} has no interactive view; plot() it")
        return GridWidget(grid, lambda: picture_of(self))

    def save(self, path: str | Path) -> Path:
        """Write the result as a run folder, replacing one that is there; never half of it.

        Raises:
            ResultError: if the path is something else than a run folder.
        """
        path = Path(path)
        if path.is_file() or (path.exists() and not is_run(path) and any(path.iterdir())):
            raise ResultError(f"{path} is not a run folder of hopscope; choose another place")
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            write_part(beside, 0, {"frame": self.frame, "details": self.details})
            write_json(beside / "run.json", {**self.run, "kind": self.kind})
            beside.chmod(0o755)
            shutil.rmtree(path, ignore_errors=True)
            beside.rename(path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a run folder that holds a result of this kind.

        Raises:
            ResultError: if there is none, it is damaged, or of another kind.
        """
        result = load_result(path)
        if not isinstance(result, cls):
            raise ResultError(f"{path} holds a result of kind {result.kind!r}, not {cls.kind!r}")
        return result

    @classmethod
    def of(cls, tables: Tables, run: Mapping[str, Any]) -> Self:
        """The result in these tables."""
        return cls(tables["frame"], tables["details"], dict(run))


def load_result(path: str | Path) -> Result:
    """Read a run folder that `Result.save` or an experiment's `out` has written.

    Raises:
        ResultError: if there is none, or it is damaged.
    """
    path = Path(path)
    run = read_run(path)
    from hopscope.experiments.documents import prefix_training  # noqa: F401  (they add themselves to `kinds`)

    kind = Result.kinds.get(str(run.get("kind")))
    if kind is None:
        raise ResultError(
            f"{path} holds a result of kind {run.get('kind')!r}, which this version of hopscope "
            f"does not know; it knows {', '.join(filter(None, Result.kinds))}"
        )
    if "n" not in run.get("queries", {}):
        raise ResultError(f"{path / 'run.json'} is damaged: it does not say what was asked")
    tables = read_parts(path)
    found, asked = tables["details"]["query"].nunique(), run["queries"]["n"]
    if found < asked:
        logger.warning("%s is not finished: %d of %d queries", path, found, asked)
    return kind.of(tables, run)


def read_run(path: Path) -> dict[str, Any]:
    """The `run.json` of a run folder."""
    try:
        run = json.loads((path / "run.json").read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ResultError(f"{path} is not a run folder: it has no run.json") from None
    except ValueError as error:
        raise ResultError(f"{path / 'run.json'} is damaged: {error}") from None
    if not isinstance(run, dict):
        raise ResultError(f"{path / 'run.json'} is damaged: it holds no object")
    return run


def is_run(path: Path) -> bool:
    """Whether a folder is a run folder."""
    return (path / "run.json").is_file()


def is_taken(path: Path, record: str) -> bool:
    """Whether a place holds anything but what a kill may have left before its record was there."""
    if not path.is_dir():
        return path.exists()
    return any(not file.name.startswith(f".{record}.") for file in path.iterdir())


def part_path(path: Path, table: str, part: int) -> Path:
    """Where a part of a table lies in a run folder."""
    return path / f"{table}-{part:06d}.parquet"


def write_part(path: Path, part: int, tables: Tables) -> None:
    """Write one part of each table; `frame` comes last, so that it stands for the whole part."""
    for table in sorted(tables, key=lambda name: name == "frame"):
        target = part_path(path, table, part)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        tables[table].to_parquet(beside, index=False)
        os.replace(beside, target)


def read_parts(path: Path) -> Tables:
    """All parts of each table, in the order of the queries."""
    parts = sorted(int(file.stem.split("-")[1]) for file in path.glob("frame-*.parquet"))
    if not parts:
        raise ResultError(f"{path} has no finished part yet; run the experiment again to go on")
    try:
        return {
            table: pd.concat(
                [pd.read_parquet(part_path(path, table, part)) for part in parts],
                ignore_index=True,
            )
            for table in ("frame", "details")
        }
    except (OSError, ValueError) as error:
        raise ResultError(
            f"a table in {path} is damaged: {error}; delete it and run again"
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON beside, then rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8"
    )
    os.replace(beside, path)


class Asked(Protocol):
    """What a result was asked: queries, questions or the like, with a name.

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
    queries: Asked,
    kind: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What a result must carry so that it can be made again."""
    record = {
        "kind": kind,
        "settings": dict(settings),
        "model": {
            "name": model.name,
            "family": model.hf.config.model_type,
            "sha256": model.fingerprint,
            "n_layers": model.n_layers,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": device_name(model.device),
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
    as_saved: dict[str, Any] = json.loads(json.dumps(record))
    return as_saved


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


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """A mean with its 95 % percentile bootstrap interval over the values.

    Args:
        values: one number a query.
        seed: of the resampling.

    Returns:
        Mean, low and high; of one value low and high are NaN, of none all three.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()) if len(values) else float("nan"), float("nan"), float("nan")
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(values.mean()), float(interval.low), float(interval.high)


def mean_intervals(
    groups: Sequence[np.ndarray], seed: int = 0, n_resamples: int = 9999
) -> list[tuple[float, float, float]]:
    """The means of many groups with their 95 % percentile bootstrap intervals, quickly.

    As `mean_interval`, but groups of one size share their resamples, which makes a resampled mean
    of all of them one row of a matrix product.

    Args:
        groups: for each group one number a query.
        seed: of the resampling.
        n_resamples: how many.

    Returns:
        Mean, low and high of each group.
    """
    unknown = float("nan")
    found = [(float(each.mean()) if len(each) else unknown, unknown, unknown) for each in groups]
    for size in sorted({len(group) for group in groups if len(group) > 1}):
        members = [index for index, group in enumerate(groups) if len(group) == size]
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(size, np.full(size, 1 / size), size=n_resamples)
        means = counts @ np.stack([groups[index] for index in members], axis=1) / size
        lows, highs = np.percentile(means, [2.5, 97.5], axis=0)
        for index, low, high in zip(members, lows, highs, strict=True):
            found[index] = (found[index][0], float(low), float(high))
    return found


def t_interval(values: np.ndarray) -> tuple[float, float, float]:
    """A mean with its 95 % interval by Student's t, for the few values that seeds give.

    A bootstrap of three values would be far too narrow.

    Returns:
        Mean, low and high; of one value low and high are NaN.
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def parse_shard(text: str) -> tuple[int, int]:
    """Read a shard `i/n`: every n-th query, from the i-th (1 to n) on.

    Raises:
        UsageError: if it is not of that form.
    """
    index, _, count = text.partition("/")
    plain = re.fullmatch(r"[0-9]+/[0-9]+", text)
    if plain is None or not 1 <= int(index) <= int(count):
        raise UsageError(f"{text!r} is not a shard: write i/n with 1 <= i <= n, such as 1/4")
    return int(index), int(count)
