"""Tests of the models of the hub that load by a short name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from hopscope.errors import ModelError, UnknownModelError
from hopscope.models.hub import INDEX, WEIGHTS, hub_models, is_cached
from hopscope.models.load import load_model
from hopscope.models.tiny import build_tiny
from hopscope.models.zoo import zoo

HUB_ID = "meta-llama/Llama-3.2-1B"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model in a hub's cache that is not reached beyond."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "models--meta-llama--Llama-3.2-1B"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("abc")
    folder = model / "snapshots" / "abc"
    folder.mkdir(parents=True)
    return folder


def test_names_are_those_of_no_other_model() -> None:
    assert not set(hub_models()) & set(zoo())
    assert len({entry.hub_id for entry in hub_models().values()}) == len(hub_models())


def test_a_model_is_at_hand_when_all_its_files_are(snapshot: Path) -> None:
    assert not is_cached(HUB_ID)
    for name in (WEIGHTS, "config.json", "tokenizer.model"):
        assert not is_cached(HUB_ID)
        (snapshot / name).touch()
    assert is_cached(HUB_ID)
    (snapshot / WEIGHTS).unlink()
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (snapshot / INDEX).write_text(json.dumps({"weight_map": shards}))
    (snapshot / "model-1.safetensors").touch()
    assert not is_cached(HUB_ID)
    (snapshot / "model-2.safetensors").touch()
    assert is_cached(HUB_ID)


def test_a_short_name_loads_what_is_in_the_cache(snapshot: Path) -> None:
    hf, tokenizer = build_tiny("tiny-random-llama")
    hf.save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    model = load_model("llama-3.2-1b", device="cpu")
    assert (model.name, model.n_layers) == ("llama-3.2-1b", 4)


def test_a_failed_fetch_says_what_to_do(snapshot: Path) -> None:
    with pytest.raises(ModelError, match=rf"(?s)cannot read.*{HUB_ID}.*hf auth login.*hf download"):
        load_model("llama-3.2-1b")


def test_a_name_that_is_nearly_one_is_told() -> None:
    with pytest.raises(UnknownModelError, match=r"did you mean llama-3\.1-8b"):
        load_model("lama-3.1-8b")


@pytest.mark.parametrize("name", ["llama-3.2-1b", "smollm2-135m", "tiny-random-llama"])
def test_a_local_folder_comes_before_a_short_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, tokenizer = build_tiny("tiny-random-gpt2")
    hf.save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    model = load_model(name, device="cpu")
    assert (model.name, model.hf.config.model_type) == (name, "gpt2")


def test_a_folder_without_a_model_shadows_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of results, which are kept by the name of the model."""
    (tmp_path / "tiny-random-llama").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("tiny-random-llama", device="cpu").hf.config.model_type == "llama"
