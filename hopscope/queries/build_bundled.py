"""Composes the facts in ``hopscope/data/facts`` into the two-hop query set ``world.csv``.

Run ``python -m hopscope.queries.build_bundled`` to write the file. With ``--check``, nothing is
written, and the exit status is 1 if the file differs from what the facts give. The same facts
always give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hopscope.files import write_text

DATA = Path(__file__).resolve().parents[1] / "data"
WORLD = DATA / "world.csv"
COLUMNS = [
    *("id", "e1", "r1", "e2", "r2", "e3", "e1_label", "e2_label", "e3_label"),
    *("e1_aliases", "e2_aliases", "e3_aliases"),
    *("e1_type", "r1_type", "e2_type", "r2_type", "e3_type"),
    *("r1_template", "r2_template", "source_prompt"),
]


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
    """The contents of the ``facts`` folder; ``objects`` maps (subject, relation) to an object."""

    entities: dict[str, Entity]
    relations: dict[str, Relation]
    objects: dict[tuple[str, str], str]
    pairs: list[tuple[str, str, str]]


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
    rows = read_rows(folder / "pairs.csv")
    pairs = [(row["e1_type"], row["r1"], row["r2"]) for row in rows]
    return Facts(entities, relations, objects, pairs)


def lower_first(text: str) -> str:
    """Lower-case the first letter, so that "The author of" fits inside a phrase."""
    return text[:1].lower() + text[1:]


def without_slot(template: str) -> str:
    """Remove the slot and its preposition: "The author of {}" -> "The author"."""
    return template.rsplit(" ", 2)[0]


def two_hop_prompt(e1: str, r1: str, r2: str) -> str:
    """Return the two-hop prompt r2(r1(e1)), from a label and two templates."""
    return r2.format(lower_first(r1.format(e1))) + " is"


def guarded_prompts(e1: Entity, r1: Relation, e2: Entity, r2: Relation) -> list[str]:
    """Return the prompts that must not contain the answer."""
    return [
        two_hop_prompt(e1.label, r1.template, r2.template),
        r2.template.format(e2.label),
        r2.template.format(e1.label),
        r2.template.format(lower_first(without_slot(r1.template))),
    ]


def fold(text: str) -> str:
    """Drop case and accents, so that "Sao" and "São" compare equal."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def mentions(prompt: str, entity: Entity) -> bool:
    """Return whether the prompt contains a name of the entity as whole words."""
    text = fold(prompt)
    patterns = (rf"(?<!\w){re.escape(fold(name))}(?!\w)" for name in entity.names)
    return any(re.search(pattern, text) for pattern in patterns)


def is_clean(e1: Entity, r1: Relation, e2: Entity, r2: Relation, e3: Entity) -> bool:
    """Return whether the three entities differ and no prompt contains a later one."""
    if len({e1.id, e2.id, e3.id}) < 3:
        return False
    prompts = guarded_prompts(e1, r1, e2, r2)
    bridge_leaks = mentions(prompts[0], e2) or mentions(r1.template.format(e1.label), e2)
    return not bridge_leaks and not any(mentions(prompt, e3) for prompt in prompts)


def make_row(e1: Entity, r1: Relation, e2: Entity, r2: Relation, e3: Entity) -> dict[str, str]:
    """Return one query as a row of ``world.csv``."""
    row = {
        "id": f"{e1.id}.{r1.id}.{r2.id}",
        "source_prompt": two_hop_prompt(e1.label, r1.template, r2.template),
    }
    for slot, entity in (("e1", e1), ("e2", e2), ("e3", e3)):
        row[slot] = entity.id
        row[f"{slot}_label"] = entity.label
        row[f"{slot}_aliases"] = repr(list(entity.aliases))
        row[f"{slot}_type"] = entity.type
    for slot, relation in (("r1", r1), ("r2", r2)):
        row[slot] = relation.id
        row[f"{slot}_type"] = relation.type
        row[f"{slot}_template"] = relation.template
    return row


def compose(facts: Facts) -> Iterator[dict[str, str]]:
    """Chain the facts along each listed pair of relations, leaving out rows that leak an answer."""
    by_type: dict[str, list[Entity]] = {}
    for entity in sorted(facts.entities.values(), key=lambda entity: entity.id):
        by_type.setdefault(entity.type, []).append(entity)
    for e1_type, r1_id, r2_id in facts.pairs:
        r1, r2 = facts.relations[r1_id], facts.relations[r2_id]
        for e1 in by_type[e1_type]:
            bridge = facts.objects.get((e1.id, r1_id), "")
            answer = facts.objects.get((bridge, r2_id), "")
            if not answer:
                continue
            e2, e3 = facts.entities[bridge], facts.entities[answer]
            if is_clean(e1, r1, e2, r2, e3):
                yield make_row(e1, r1, e2, r2, e3)


def render() -> bytes:
    """Return the contents of ``world.csv`` in UTF-8."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(compose(load_facts()))
    return buffer.getvalue().encode("utf-8")


def main(argv: list[str] | None = None) -> int:
    """Write ``world.csv``, or compare it with ``--check``; return the exit status."""
    parser = argparse.ArgumentParser(description="Build hopscope/data/world.csv.")
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    args = parser.parse_args(argv)
    fresh = render()
    if not args.check:
        write_text(WORLD, fresh.decode("utf-8"))
        return 0
    if WORLD.exists() and WORLD.read_bytes() == fresh:
        return 0
    print(
        "world.csv differs from its facts: run python -m hopscope.queries.build_bundled",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
