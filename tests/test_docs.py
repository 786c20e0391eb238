"""Tests that what the documentation tells to do works."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from known import known_model, known_queries

import hopscope as hs
from hopscope.experiments import registry

ROOT = Path(__file__).parents[1]


def code_of(page: str) -> list[str]:
    """The Python examples of a page."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_an_analysis_of_ones_own_is_written_in_a_few_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "margins.py").write_text(code_of("write_your_own.md")[0])
    monkeypatch.syspath_prepend(tmp_path)
    model, queries = known_model(), known_queries()[:3]
    try:
        from margins import margins  # type: ignore[import-not-found]

        result = margins(model, queries, out=tmp_path / "run", progress=False)
        assert set(result.frame["control"]) == {"none", "random"}
        assert len(result.frame) == 3 * (1 + model.n_layers)
        assert result.frame.dtypes.astype(str).to_dict() == result.columns
        assert list(result.tables()["mean"]) == ["control", "layer", "n", "margin", "low", "high"]
        assert type(hs.load_result(tmp_path / "run")) is type(result)
        with pytest.raises(hs.HopscopeError, match="unknown position 't9': choose from t1, t2"):
            margins(model, queries, position="t9")
        assert registry.REGISTERED["margins"].command == "margins"
    finally:
        registry.REGISTERED.pop("margins", None)
        sys.modules.pop("margins", None)


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "reference").glob("*.md")), ids=str)
def test_the_reference_names_what_there_is(page: Path) -> None:
    import importlib

    for path in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.MULTILINE):
        path = re.sub(r"^probes\b", "hopscope.probes", path)
        try:
            importlib.import_module(path)
        except ModuleNotFoundError:
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(module), name), path
