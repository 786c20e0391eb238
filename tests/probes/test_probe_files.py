"""Files of probes: what cannot be read is told, and what was there is not lost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hopscope.probes import JacobianLens, LinearProbe, LogitLens, TunedLens
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from hopscope.errors import ResultError, UsageError

PARTS = (nn.LayerNorm(4), nn.Linear(4, 6, bias=False))
ACTS, LABELS = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2

Load = Callable[[Path], Any]
PROBES: dict[str, tuple[Any, Load]] = {
    "LogitLens": (LogitLens(*PARTS), lambda path: LogitLens.load(path, *copy.deepcopy(PARTS))),
    "TunedLens": (
        TunedLens(*PARTS, 2, 4),
        lambda path: TunedLens.load(path, *copy.deepcopy(PARTS)),
    ),
    "JacobianLens": (
        JacobianLens(*PARTS, 2, 4),
        lambda path: JacobianLens.load(path, *copy.deepcopy(PARTS)),
    ),
    "LinearProbe": (LinearProbe(2).fit(ACTS, LABELS), LinearProbe.load),
}
each_probe = pytest.mark.parametrize(("probe", "load"), PROBES.values(), ids=PROBES)


def resaved(path: Path, change: Callable[[dict[str, Any], dict[str, str]], object]) -> None:
    """Write a file again with its tensors or metadata changed."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@each_probe
def test_a_damaged_file(probe: Any, load: Load, tmp_path: Path) -> None:
    path = probe.save(tmp_path / "probe")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ResultError, match=r"damaged.*save it again"):
        load(path)
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ResultError, match="not a safetensors file"):
        load(path)
    with pytest.raises(ResultError, match="there is no probe at"):
        load(tmp_path / "elsewhere")


@each_probe
def test_a_file_of_something_else(probe: Any, load: Load, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ResultError, match="not a probe of this version"):
        load(path)
    other = "LinearProbe" if not isinstance(probe, LinearProbe) else "TunedLens"
    PROBES[other][0].save(path)
    with pytest.raises(ResultError, match=f"holds a {other}, not a .*load it with {other}.load"):
        load(path)


@each_probe
def test_a_file_without_a_tensor_or_a_setting(probe: Any, load: Load, tmp_path: Path) -> None:
    path = probe.save(tmp_path / "probe")
    resaved(path, lambda tensors, _: tensors.popitem())
    with pytest.raises(ResultError, match=r"does not fit|its tensors are"):
        load(path)
    for settings in ("{}", "[", "3"):
        probe.save(path)
        resaved(path, lambda _, metadata, text=settings: metadata.update(settings=text))
        with pytest.raises(ResultError, match="its settings are"):
            load(path)


@each_probe
def test_a_failed_save_leaves_what_was_there(probe: Any, load: Load, tmp_path: Path) -> None:
    path = probe.save(tmp_path / "probe")
    before = path.read_bytes()
    large = load(path)
    for tensor in large.state_dict().values():
        tensor.fill_(1e6)
    with pytest.raises(UsageError, match=r"too large for torch\.float16; save in torch\.bfloat16"):
        large.save(path, dtype=torch.float16)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["probe"]
    with pytest.raises(UsageError, match="is a folder"):
        probe.save(tmp_path)


def test_a_write_that_breaks_off_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = PROBES["LinearProbe"][0]
    path = probe.save(tmp_path / "probe")
    before = path.read_bytes()

    def full(tensors: Any, target: Path, metadata: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        probe.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["probe"]


def test_a_logit_lens_is_read_without_its_model(tmp_path: Path) -> None:
    lens = LogitLens(*PARTS, softcap=3.0)
    path = lens.save(tmp_path / "lens")
    norm, unembedding = nn.LayerNorm(4), nn.Linear(4, 6, bias=False)
    before = unembedding.weight.clone()
    loaded = LogitLens.load(path, norm, unembedding)
    assert torch.equal(loaded(ACTS), lens(ACTS))
    assert torch.equal(unembedding.weight, before)
    with pytest.raises(ResultError, match="does not fit"):
        LogitLens.load(path, norm, nn.Linear(4, 7, bias=False))


def test_a_tuned_lens_does_not_fit_a_model_of_another_size(tmp_path: Path) -> None:
    path = TunedLens(*PARTS, 2, 4).save(tmp_path / "lens")
    with pytest.raises(UsageError, match=r"\(5,\), and d_model=4"):
        TunedLens.load(path, nn.LayerNorm(5), nn.Linear(5, 6))
