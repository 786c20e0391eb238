"""Tests of kept_digests.py: weights are digested once, and again when they change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import loaded

import hopscope as hs
from hopscope.models import fingerprint
from hopscope.models.fingerprint import weights_digest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved model, and a cache of its own."""
    monkeypatch.setenv("HOPSCOPE_CACHE", str(tmp_path / "cache"))
    tiny = loaded("tiny-random-llama")
    tiny.hf.save_pretrained(tmp_path / "model")
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list of the models whose weights were digested."""
    found: list[object] = []

    def noting(hf: object) -> str:
        found.append(hf)
        return weights_digest(hf)  # type: ignore[arg-type]

    monkeypatch.setattr(fingerprint, "weights_digest", noting)
    return found


def test_weights_are_digested_once_for_all_processes(folder: Path, digested: list[object]) -> None:
    first, second = (hs.load_model(folder, device="cpu") for _ in range(2))
    assert first.fingerprint == second.fingerprint == weights_digest(first.hf)
    assert first.setup == second.setup
    assert len(digested) == 1


def test_another_dtype_is_digested_for_itself(folder: Path, digested: list[object]) -> None:
    single, half = (hs.load_model(folder, "cpu", dtype) for dtype in ("float32", "bfloat16"))
    assert single.fingerprint != half.fingerprint
    assert len(digested) == 2


def test_a_file_that_is_written_anew_is_digested_again(
    folder: Path, digested: list[object]
) -> None:
    before = hs.load_model(folder, device="cpu").fingerprint
    other = hs.load_model(folder, device="cpu")
    other.hf.lm_head.weight.data += 1
    other.hf.save_pretrained(folder)
    after = hs.load_model(folder, device="cpu")
    assert after.fingerprint == weights_digest(after.hf) != before
    assert len(digested) == 2


def test_a_weight_that_is_changed_in_the_model_is_seen(folder: Path) -> None:
    model = hs.load_model(folder, device="cpu")
    before = model.fingerprint
    with torch.no_grad():
        model.hf.lm_head.weight += 1
    assert model.fingerprint == weights_digest(model.hf) != before


@pytest.mark.parametrize("change", ["one number", "two rows", "two heads"])
def test_a_weight_that_is_changed_before_anyone_asks_is_seen(folder: Path, change: str) -> None:
    """Also where torch does not count the change, as through `data`."""
    before = hs.load_model(folder, device="cpu").fingerprint
    model = hs.load_model(folder, device="cpu")
    weight = model.hf.model.layers[1].self_attn.q_proj.weight.data
    if change == "one number":
        weight[3, 5] += 1e-6
    elif change == "two rows":
        weight[[0, 1]] = weight[[1, 0]]
    else:
        size = model.head_dim
        weight.copy_(torch.cat([weight[size : 2 * size], weight[:size], weight[2 * size :]]))
    assert model.fingerprint == weights_digest(model.hf) != before


def test_nothing_is_lost_without_a_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digested: list[object]
) -> None:
    monkeypatch.setenv("HOPSCOPE_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    model = hs.load_model(folder, device="cpu")
    assert model.fingerprint == weights_digest(model.hf)


def test_a_damaged_entry_is_made_again(folder: Path, tmp_path: Path) -> None:
    before = hs.load_model(folder, device="cpu").fingerprint
    (entry,) = (tmp_path / "cache" / "digests").glob("*.json")
    entry.write_text("{")
    assert hs.load_model(folder, device="cpu").fingerprint == before
    shutil.rmtree(tmp_path / "cache")
    assert hs.load_model(folder, device="cpu").fingerprint == before
