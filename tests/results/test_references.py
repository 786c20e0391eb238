"""Tests of the numbers that the papers report."""

from __future__ import annotations

import pytest

import hopscope as hs
from hopscope.errors import UsageError
from hopscope.experiments.catalogue import analyses


def test_every_number_has_its_analysis_its_paper_and_its_unit() -> None:
    table = hs.references()
    assert set(table["analysis"]) <= {each.name for each in analyses()}
    assert table[["paper", "unit", "measure"]].notna().all(axis=None)
    assert table["value"].notna().all()
    shares = table[table["unit"] == "share"]["value"]
    assert shares.between(0, 1).all()
    assert len(table) == len(table.drop_duplicates())


def test_numbers_are_those_of_the_papers() -> None:
    """Spelt out from the papers' tables by hand."""
    llama = hs.references("description", model="Llama-3-8B-Instruct", subset="correct")
    found = llama.set_index(["measure", "entity", "position"])["value"]
    assert found["share", "e2", "t1"] == 0.631
    assert found["mean_first_layer", "e3", "t2"] == 18.8
    trained = hs.references("document_order", setting="fine-tuned, bidirectional")
    assert trained.set_index("model")["value"]["Qwen2.5-7B"] == 0.6296
    assert hs.references("order_choice")["value"].tolist() == [0.286, 0.337]
    assert hs.references("data_needed")["value"].tolist() == [2.26, 2.43, 2.58]
    assert hs.references("superposition", subset="optimal")["value"].tolist()[0] == 2.18
    assert hs.references("back_patching").query("page == 1")["value"].max() == 0.66


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match="did you mean description"):
        hs.references("descripton")
    with pytest.raises(UsageError, match="column"):
        hs.references("description", color="red")
    with pytest.raises(UsageError, match="Llama-3-8B-Instruct"):
        hs.references("description", model="Llama-3-8B")
