"""Composes the facts in ``hopscope/data/facts`` into the bundled query sets of two to four hops.

Run ``python -m hopscope.queries.build_bundled`` to write ``world.csv`` and its like. With
``--check``, nothing is written, and the exit status is 1 if a file differs from what the facts
give. The same facts always give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hopscope.files import write_text
from hopscope.queries.formats import to_frame
from hopscope.queries.multi_hop_query import MultiHopQuery
from hopscope.queries.query import forms_of

DATA = Path(__file__).resolve().parents[1] / "data"
FILES = {2: DATA / "world.csv", 3: DATA / "world-three-hops.csv", 4: DATA / "world-four-hops.csv"}
"""The file of the queries of so many hops."""


@dataclass(frozen=True)
class Entity:
    """An entity that occurs in facts; ``aliases`` does not include the label."""

    id: str
    label: str
    aliases: tuple[str, ...]
    type: str

    @property
    def names(self) -> tuple[str, ...]:
        """The label and every alias."""
        return (self.label, *self.aliases)


@dataclass(frozen=True)
class Relation:
    """A relation; ``template`` is the noun phrase for its object, with {} for the subject."""

    id: str
    type: str
    template: str


@dataclass(frozen=True)
class Facts:
    """The contents of the ``facts`` folder.

    ``objects`` maps (subject, relation) to an object; ``chains`` holds the type of a source entity
    and the relations, the innermost first, that are chained from it.
    """

    entities: dict[str, Entity]
    relations: dict[str, Relation]
    objects: dict[tuple[str, str], str]
    chains: list[tuple[str, tuple[str, ...]]]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header."""
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def load_entities(folder: Path) -> dict[str, Entity]:
    """Read ``entities.csv`` by id; a repeated id is a ValueError."""
    entities: dict[str, Entity] = {}
    for row in read_rows(folder / "entities.csv"):
        if row["id"] in entities:
            raise ValueError(f"entity {row['id']} is listed twice")
        aliases = tuple(row["aliases"].split("|"))
        entities[row["id"]] = Entity(row["id"], row["label"], aliases, row["type"])
    return entities


def load_relations(folder: Path) -> dict[str, Relation]:
    """Read ``relations.csv`` by id."""
    rows = read_rows(folder / "relations.csv")
    return {row["id"]: Relation(row["id"], row["type"], row["template"]) for row in rows}


def load_objects(folder: Path) -> dict[tuple[str, str], str]:
    """Read ``facts.csv`` as (subject, relation) -> object; a second object is a ValueError."""
    objects: dict[tuple[str, str], str] = {}
    for row in read_rows(folder / "facts.csv"):
        key = (row["subject"], row["relation"])
        if key in objects:
            raise ValueError(f"{key} has more than one object")
        objects[key] = row["object"]
    return objects


def load_facts() -> Facts:
    """Read the folder of facts; a fact about an unknown entity or relation is a ValueError."""
    folder = DATA / "facts"
    entities, relations = load_entities(folder), load_relations(folder)
    objects = load_objects(folder)
    for (subject, relation), target in objects.items():
        if not {subject, target} <= entities.keys() or relation not in relations:
            raise ValueError(f"unknown name in the fact {relation}({subject}) = {target}")
    chains = [
        (row["e1_type"], tuple(row[name] for name in ("r1", "r2", "r3", "r4") if row.get(name)))
        for file in ("pairs.csv", "chains.csv")
        for row in read_rows(folder / file)
    ]
    return Facts(entities, relations, objects, chains)


def fold(text: str) -> str:
    """Drop case and accents, so that "Sao" and "São" compare equal."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def mentions(prompt: str, entity: Entity) -> bool:
    """Return whether the prompt contains a name of the entity as whole words."""
    text = fold(prompt)
    patterns = (rf"(?<!\w){re.escape(fold(name))}(?!\w)" for name in entity.names)
    return any(re.search(pattern, text) for pattern in patterns)


def chain_of(entities: Sequence[Entity], relations: Sequence[Relation]) -> MultiHopQuery | None:
    """The query of a chain of facts; None if an entity comes twice, or a prompt gives one away.

    No prompt that begins at a named entity contains a name of a later one, and no other prompt a
    name of the answer.
    """
    query = MultiHopQuery(
        ".".join([entities[0].id, *(relation.id for relation in relations)]),
        tuple(entity.label for entity in entities),
        tuple(relation.template for relation in relations),
        aliases=tuple(entity.aliases for entity in entities),
        entity_ids=tuple(entity.id for entity in entities),
        relation_ids=tuple(relation.id for relation in relations),
        entity_types=tuple(entity.type for entity in entities),
        relation_types=tuple(relation.type for relation in relations),
    )
    if len({entity.id for entity in entities}) < len(entities):
        return None
    for form, asked in forms_of(len(relations)).items():
        text = query.compose(form)[0]
        if any(mentions(text, each) for each in entities[asked.start if asked.named else -1 :]):
            return None
    return query


def compose(facts: Facts, n: int) -> Iterator[MultiHopQuery]:
    """Chain the facts along each listed row of n relations, without what leaks an answer."""
    by_type: dict[str, list[Entity]] = {}
    for entity in sorted(facts.entities.values(), key=lambda entity: entity.id):
        by_type.setdefault(entity.type, []).append(entity)
    for e1_type, relations in facts.chains:
        for e1 in by_type[e1_type] if len(relations) == n else ():
            chain = [e1.id]
            for relation in relations:
                chain.append(facts.objects.get((chain[-1], relation), ""))
            if not chain[-1]:
                continue
            entities = [facts.entities[each] for each in chain]
            query = chain_of(entities, [facts.relations[each] for each in relations])
            if query is not None:
                yield query


def render(n: int) -> str:
    """Return the contents of the file of the queries of n hops."""
    return to_frame(compose(load_facts(), n)).to_csv(index=False, lineterminator="\n")


def main(argv: list[str] | None = None) -> int:
    """Write the files, or compare them with ``--check``; return the exit status."""
    parser = argparse.ArgumentParser(description="Build hopscope/data/world.csv and its like.")
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    check, status = parser.parse_args(argv).check, 0
    for n, path in FILES.items():
        fresh = render(n)
        if not check:
            write_text(path, fresh)
        elif not path.exists() or path.read_bytes() != fresh.encode():
            print(
                f"{path.name} differs from its facts: run python -m hopscope.queries.build_bundled",
                file=sys.stderr,
            )
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
