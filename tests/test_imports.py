"""Tests of what an import loads: `hopscope` nothing heavy, `hopscope.probes` torch alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hopscope

ROOT = Path(__file__).parents[1]
HEAVY = ("transformer_lens", "nnsight", "matplotlib", "datasets", "transformers")

# Runs a statement, and prints which of the modules named after it were loaded.
WATCHER = """
import sys
exec(sys.argv[1])
print(*(name for name in sys.argv[2:] if name in sys.modules))
"""

# Runs a statement where nothing can be imported but the standard library, hopscope with what makes
# its names lazy, and what torch has loaded by itself.
TORCH_ALONE = """
import sys
import torch

allowed = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
allowed |= {"hopscope", "lazy_loader", "leaky"}


class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ImportError(f"refused: {name}")


sys.meta_path.insert(0, Refusing())
exec(sys.argv[1])
"""

USING_A_PROBE = """
import torch
from hopscope.probes import LinearProbe, LogitLens, TunedLens, control_labels
norm, unembedding = torch.nn.LayerNorm(4), torch.nn.Linear(4, 10, bias=False)
states, token = torch.randn(2, 3, 4), torch.tensor(7)
for lens in (LogitLens(norm, unembedding), TunedLens(norm, unembedding, n_layers=3, d_model=4)):
    assert lens(states).shape == (2, 3, 10)
    assert lens.rank(states, token).shape == lens.logprob(states, token).shape == (2, 3)
    assert lens.score(states, token.expand(2)).shape == (3,)
assert LinearProbe(2).n_classes == 2
assert control_labels(torch.arange(2), torch.arange(2)).shape == (2,)
"""


def python(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def loaded(statement: str, folder: Path) -> list[str]:
    """The heavy modules that a statement loads."""
    done = python(WATCHER, statement, *HEAVY, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("statement", ["import hopscope", "import hopscope.cli"])
def test_the_package_loads_nothing_heavy(statement: str, tmp_path: Path) -> None:
    assert loaded(statement, tmp_path) == []


def test_it_would_be_seen_if_it_did(tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text("import datasets, matplotlib\n")
    assert loaded("import leaky", tmp_path) == ["matplotlib", "datasets"]


def test_the_experiments_load_only_what_they_use(tmp_path: Path) -> None:
    statement = "import hopscope as hs; hs.grade; hs.back_patch; hs.load_model; hs.load_queries"
    assert set(loaded(statement, tmp_path)) <= {"transformers"}


def test_probes_need_torch_alone(tmp_path: Path) -> None:
    done = python(TORCH_ALONE, USING_A_PROBE, folder=tmp_path)
    assert done.returncode == 0, done.stderr


RUN = Path(__file__).parent / "data" / "runs-c08e896" / "grading"
ALONE = {
    "a world as a model": (
        "from hopscope.models.load import load_model\n"
        "assert load_model('world:two-hop-looped', device='cpu').n_layers == 4"
    ),
    "a world's questions": (
        "from hopscope.queries.load import load_queries\n"
        "assert len(load_queries('world:two-hop-looped')) == 1000"
    ),
    "a result of any kind": (
        f"from hopscope.results.result import Result\nassert Result.load({str(RUN)!r}).n_queries"
    ),
}


@pytest.mark.parametrize("what", ALONE)
def test_a_room_needs_no_other_to_be_imported_first(what: str, tmp_path: Path) -> None:
    done = python(ALONE[what], folder=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["transformers", "pandas"])
def test_it_would_be_seen_if_they_needed_more(module: str, tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(f"import {module}\n")
    done = python(TORCH_ALONE, f"import leaky\n{USING_A_PROBE}", folder=tmp_path)
    assert done.returncode != 0
    assert f"refused: {module}" in done.stderr


PUBLIC = sorted(
    set(re.findall(r"import (\w+) as", (ROOT / "hopscope" / "__init__.pyi").read_text()))
)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str) -> None:
    # A module of version 0.1 that was imported, such as `hopscope.sweep`, stands for the function.
    assert getattr(hopscope, name).__name__.removeprefix("hopscope.") == name
    assert callable(getattr(hopscope, name))
    assert name in dir(hopscope)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "backpatch",
            "hopscope has no 'backpatch'; did you mean back_patch or BackPatching or path_patch?",
        ),
        ("sweeep", "hopscope has no 'sweeep'; did you mean sweep?"),
        ("xyzzy", "hopscope has no 'xyzzy'"),
    ],
)
def test_an_unknown_name_is_told_with_those_that_are_alike(name: str, told: str) -> None:
    with pytest.raises(AttributeError) as error:
        getattr(hopscope, name)
    assert str(error.value) == told


def test_sweep_can_be_called_beside_the_module_that_had_its_name() -> None:
    from hopscope.sweep import ReadOut  # type: ignore[import-not-found]

    assert ReadOut is hopscope.ReadOut
    with pytest.raises(TypeError, match="missing"):
        hopscope.sweep()  # type: ignore[call-arg]
