"""Tests of what surrounds the code: environments, commands, versions and the wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hopscope
from hopscope.models.zoo import zoo

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
"""Packages that conda-forge calls otherwise."""


@cache
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def named(requirements: list[str]) -> dict[str, Requirement]:
    """Requirements by the name that PyPI has for them."""
    found = {}
    for text in requirements:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        found[CONDA_NAMES.get(name, name)] = requirement
    return found


def dependencies() -> dict[str, Requirement]:
    return named(project()["dependencies"])


def of_extras() -> dict[str, Requirement]:
    return named([text for extra in project()["optional-dependencies"].values() for text in extra])


def environment() -> dict[str, Requirement]:
    """What environment.yml installs, from conda-forge and from PyPI."""
    asked = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    conda = [each for each in asked if isinstance(each, str)]
    pip = [text for each in asked if isinstance(each, dict) for text in each["pip"]]
    return named([text for text in [*conda, *pip] if text != "pip" and text[0] not in "-."])


def test_the_environment_has_every_dependency_and_no_other() -> None:
    there = environment()
    python = there.pop("python")
    assert str(python.specifier) == project()["requires-python"]
    assert set(dependencies()) - set(there) == set()
    assert set(there) - set(dependencies()) - set(of_extras()) == set()


def test_the_environment_asks_for_the_same_versions() -> None:
    asked = {**of_extras(), **dependencies()}
    there = environment()
    there.pop("python")
    for name, requirement in there.items():
        assert requirement.specifier == asked[name].specifier, name


def test_packages_that_conda_forge_lacks_come_from_pip() -> None:
    asked = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert asked["channels"][0] == "conda-forge"
    (pip,) = (each["pip"] for each in asked["dependencies"] if isinstance(each, dict))
    assert {"transformer-lens", "nnsight"} <= set(named(pip))
    assert "pip" in asked["dependencies"]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    texts = [line.partition("#")[0].strip() for line in lines]
    return named([text for text in texts if text])


def test_constraints_pin_every_direct_dependency() -> None:
    pinned = pins()
    models = {part.package for entry in zoo().values() for part in entry.parts}
    direct = {**dependencies(), **of_extras()}
    assert set(direct) - models - set(pinned) == set()
    for name, requirement in pinned.items():
        (pin,) = requirement.specifier
        assert pin.operator == "==", name
        assert "*" not in pin.version, name
        if name in direct:
            assert direct[name].specifier.contains(pin.version, prereleases=True), name


EXTRAS = {
    "gemma": "gemma3-270m",
    "qwen-0_5b": "qwen2.5-coder-0.5b",
    "qwen-1_5b": "qwen2.5-coder-1.5b",
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extra_of_a_model_is_pinned(extra: str) -> None:
    packages = named(project()["optional-dependencies"][extra])
    assert {name: str(asked.specifier) for name, asked in packages.items()} == {
        part.package: f"=={part.version}" for part in zoo()[EXTRAS[extra]].parts
    }


@pytest.mark.parametrize("target", ["figures", "test", "test-browser", "lab", "docs"])
def test_the_makefile_and_the_readme_know_the_commands(target: str) -> None:
    makefile, readme = ((ROOT / name).read_text("utf-8") for name in ("Makefile", "README.md"))
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert f"make {target}" in readme


def test_make_takes_another_model_and_other_queries() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    rule = makefile.partition("\nfigures:")[2].partition("\n\n")[0]
    assert "--model $(MODEL)" in rule
    assert "--queries $(QUERIES)" in rule


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    for command in ("make test", "make test-browser", "make docs"):
        assert re.search(rf"^{command}$", script, re.MULTILINE)
        assert command in readme
    assert script.startswith("#!")
    assert "set -e" in script


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert project()["version"] == hopscope.__version__ == citation["version"]
    assert hopscope.__version__ in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_licence_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert project()["license"] == citation["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


SOURCES = ("pyproject.toml", "README.md", "LICENSE", "hopscope", "probes", "figures")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel that is built from a copy, without network."""
    if find_spec("pip") is None or find_spec("setuptools") is None:
        pytest.skip("pip and setuptools are needed to build a wheel offline")
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--wheel-dir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("hopscope-*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


@pytest.mark.parametrize(
    "name",
    [
        "hopscope/__init__.py",
        "hopscope/py.typed",
        "hopscope/cli.py",
        "hopscope/data/world.csv",
        "hopscope/data/README.md",
        "hopscope/experiments/two_hop/back_patching.py",
        "hopscope/models/zoo.toml",
        "hopscope/study/report.html.j2",
        "hopscope/display/static/grid.js",
        "hopscope/display/static/view.css",
        "hopscope/figures/knockout.py",
        "hopscope/probes/__init__.py",
        "hopscope/probes/trained/README.md",
        "hopscope/probes/trained/smollm2-135m.bridge_probe.safetensors",
        "hopscope/probes/trained/smollm2-135m.tuned_lens.safetensors",
        "hopscope/probes/py.typed",
    ],
)
def test_the_wheel_holds(wheel: list[str], name: str) -> None:
    assert name in wheel


def test_the_wheel_holds_every_module(wheel: list[str]) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hopscope").rglob("*.py")}
    modules |= {
        f"hopscope/{path.relative_to(ROOT).as_posix()}"
        for folder in ("probes", "figures")
        for path in ROOT.glob(f"{folder}/*.py")
    }
    assert modules - set(wheel) == set()


def test_the_wheel_holds_nothing_else(wheel: list[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert tops == {"hopscope", f"hopscope-{hopscope.__version__}.dist-info"}
