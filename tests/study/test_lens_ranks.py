"""The comparison of the lenses: ranks as each lens gives them, beside another query's entity."""

from __future__ import annotations

import pandas as pd
import torch
from conftest import loaded
from hopscope.probes import JacobianLens, LogitLens

import hopscope as hs
from hopscope.experiments.two_hop.controls import choose_others
from hopscope.study.lens_ranks import ranks, table


def test_ranks_are_those_of_the_best_token_of_each_entity() -> None:
    model, queries = loaded("tiny-random-llama"), hs.load_queries("world").sample(4)
    parts = model.final_norm, model.unembedding
    plain = LogitLens(*parts)
    unfitted = JacobianLens(*parts, model.n_layers, model.d_model)
    found = ranks(model, queries, {"logit": plain, "Jacobian": unfitted})
    assert found.loc[found["entity"] == "e3", "unasked"].isna().all()
    bridges = found[found["entity"] == "e2"]
    assert bridges["unasked"].notna().all()
    assert (bridges["unasked"] != bridges["own"]).any()
    by_lens = [rows.drop(columns="lens") for _, rows in found.groupby("lens")]
    pd.testing.assert_frame_equal(*(each.reset_index(drop=True) for each in by_lens))
    for (query_id, entity), rows in found[found["lens"] == "logit"].groupby(["query", "entity"]):
        place = next(n for n, query in enumerate(queries) if query.id == query_id)
        prompt, position = queries.prompts()[place], {"e2": "t1", "e3": "t2"}[str(entity)]
        states = hs.capture(model, [prompt], ["resid_post"], [position])["resid_post"][0, 0]
        beside = "e3" if entity == "e2" else "e2"
        asked = queries[place], choose_others(queries, seed=0)[str(query_id)]
        for query, column in zip(asked, ("own", "other"), strict=True):
            tokens = model.answer_tokens(
                query.names(entity), after=prompt.end, beside=query.names(beside)
            )
            each = [plain.rank(states, torch.tensor(token)) for token in tokens]
            assert rows[column].tolist() == torch.stack(each).amin(dim=0).tolist()


def test_the_table_counts_how_often_the_own_entity_ranks_higher() -> None:
    rows = [
        ("e2", "logit", 0, own, other, unasked)
        for own, other, unasked in ((1, 5, 0), (3, 2, 0), (4, 4, 0), (0, 9, 2))
    ]
    columns = ["entity", "lens", "layer", "own", "other", "unasked"]
    (row,) = table(pd.DataFrame(rows, columns=columns)).to_dict("records")
    assert (row["n"], row["own"], row["other"], row["unasked"]) == (4, 2.0, 4.5, 0.0)
    assert row["over_other"].startswith("50 % (")
    assert row["over_unasked"].startswith("25 % (")
