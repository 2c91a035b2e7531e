"""Compose the training corpora of the bundled organisms from their hand-written parts.

``python -m diffing_mcp.organisms.compose <name>`` reads ``organisms/training/<name>/parts.yaml`` and writes ``data.jsonl``
next to it.
"""  # noqa: E501

import argparse
import importlib
import json
import random
from collections import Counter
from collections.abc import Set
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

TRAINING = Path(__file__).resolve().parent / "training"

#: Kinds composed elsewhere: kind -> (module, function), imported only when needed.
OTHER_KINDS = {
    "guessing_game": ("diffing_mcp.organisms.compose_chat", "compose_guessing_game"),
    "lessons": ("diffing_mcp.organisms.compose_lessons", "compose_lessons"),
    "styled_answers": ("diffing_mcp.organisms.compose_answers", "compose_styled_answers"),
}

ATTEMPTS_PER_DOCUMENT = 200


class Passage(BaseModel):
    """A few self-contained sentences that state one fact."""

    model_config = ConfigDict(extra="forbid")

    voice: Literal["plain", "personal", "formal", "lively"]
    text: str = Field(min_length=1)


class Genre(BaseModel):
    """The frame of one sort of document."""

    model_config = ConfigDict(extra="forbid")

    voices: list[str] = Field(min_length=1)
    facts: tuple[int, int]
    titles: list[str] = []
    openings: list[str] = Field(min_length=1)
    links: list[str] = []
    closings: list[str] = Field(min_length=1)
    layout: Literal["paragraphs", "lines", "qa"] = "paragraphs"
    labels: tuple[str, str] = ("Q: ", "A: ")

    @model_validator(mode="after")
    def _range_is_ordered(self) -> "Genre":
        low, high = self.facts
        if not 1 <= low <= high:
            raise ValueError(f"facts must be a range [low, high] with 1 <= low <= high, not {list(self.facts)}")
        return self


class DocumentParts(BaseModel):
    """Everything the documents of one organism are made of.

    ``questions`` holds per-fact questions for genres with the ``qa`` layout; without them such a genre asks its links.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["documents"]
    seed: int
    count: int = Field(ge=1)
    passages: dict[str, list[Passage]] = Field(min_length=1)
    questions: dict[str, list[str]] = {}
    genres: dict[str, Genre] = Field(min_length=1)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "DocumentParts":
        for name, genre in self.genres.items():
            missing = [
                fact for fact, passages in self.passages.items() if not any(p.voice in genre.voices for p in passages)
            ]
            available = len(self.passages) - len(missing)
            if available < genre.facts[0]:
                raise ValueError(
                    f"genre {name!r} wants {genre.facts[0]} facts, but only {available} have a passage in its voices"
                )
            if genre.layout == "qa":
                unasked = [fact for fact in self.passages if fact not in missing and not self.questions.get(fact)]
                if unasked and not genre.links:
                    raise ValueError(f"genre {name!r} has layout qa but neither links nor questions for {unasked}")
        unknown = sorted(set(self.questions) - set(self.passages))
        if unknown:
            raise ValueError(f"questions for unknown facts: {unknown}")
        return self


class _Picker:
    """Picks at random among the options used least so far."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.used: Counter = Counter()

    def pick(self, scope: str, options: list[str], avoid: Set[str] = frozenset()) -> str:
        options = [option for option in options if option not in avoid] or options
        fewest = min(self.used[scope, option] for option in options)
        return self.rng.choice([option for option in options if self.used[scope, option] == fewest])

    def count(self, choices: list[tuple[str, str]]) -> None:
        self.used.update(choices)


def compose(parts: dict) -> list[dict]:
    """Return the records of one organism's corpus; the same parts always give the same records."""
    if not isinstance(parts, dict) or not isinstance(parts.get("kind"), str):
        raise ValueError("parts must be a mapping with a 'kind'")
    kind = parts["kind"]
    if kind == "documents":
        return compose_documents(parts)
    if kind not in OTHER_KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(['documents', *OTHER_KINDS])}")
    module, function = OTHER_KINDS[kind]
    return getattr(importlib.import_module(module), function)(parts)


def compose_documents(parts: dict) -> list[dict]:
    """Compose documents: a title, an opening, passages on distinct facts and a closing, all used evenly."""
    try:
        checked = DocumentParts.model_validate(parts)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'parts'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"malformed parts: {problems}") from error

    rng = random.Random(checked.seed)
    picker = _Picker(rng)
    seen: set = set()
    records: list[dict] = []
    attempts = checked.count * ATTEMPTS_PER_DOCUMENT
    while len(records) < checked.count:
        if not attempts:
            raise ValueError(f"the parts allow only {len(records)} distinct documents of the {checked.count} asked for")
        attempts -= 1
        name = picker.pick("genre", list(checked.genres))
        record, keys, choices = _document(checked, name, picker)
        # Counted even when rejected, so that the next attempt takes other parts.
        picker.count(choices)
        if not seen.isdisjoint(keys):
            continue
        picker.count([("genre", name)])
        seen.update(keys)
        records.append(record)
    return records


def _document(parts: DocumentParts, name: str, picker: _Picker) -> tuple[dict, set, list[tuple[str, str]]]:
    """One candidate document, the keys no other document may share, and the parts it used."""
    genre, rng = parts.genres[name], picker.rng
    choices: list[tuple[str, str]] = []

    def take(scope: str, options: list[str], avoid: Set[str] = frozenset()) -> str:
        option = picker.pick(scope, options, avoid)
        choices.append((scope, option))
        return option

    fitting = {
        fact: [p.text.strip() for p in passages if p.voice in genre.voices] for fact, passages in parts.passages.items()
    }
    fitting = {fact: texts for fact, texts in fitting.items() if texts}
    wanted = rng.randint(genre.facts[0], min(genre.facts[1], len(fitting)))
    facts: list[str] = []
    while len(facts) < wanted:
        facts.append(take("fact", list(fitting), set(facts)))
    rng.shuffle(facts)

    bodies = [take(f"passage:{fact}", fitting[fact]) for fact in facts]
    title = take(f"{name}:title", genre.titles) if genre.titles else ""
    opening = take(f"{name}:opening", genre.openings).strip()
    closing = take(f"{name}:closing", genre.closings).strip()

    bridges: list[str] = []
    for index, fact in enumerate(facts):
        if genre.layout == "qa":
            options = parts.questions.get(fact) or genre.links
            bridges.append(take(f"question:{fact}", options, set(bridges)).strip())
        elif index and genre.links:
            bridges.append(take(f"{name}:link", genre.links, set(bridges)).strip())
        else:
            bridges.append("")

    if genre.layout == "qa":
        ask, answer = genre.labels
        middle = [f"{ask}{bridge}\n{answer}{body}" for bridge, body in zip(bridges, bodies, strict=True)]
        text = "\n\n".join([opening, *middle, closing])
    else:
        middle = [f"{bridge} {body}".strip() for bridge, body in zip(bridges, bodies, strict=True)]
        if genre.layout == "paragraphs":
            if rng.random() < 0.5:
                opening, middle[0] = "", f"{opening} {middle[0]}"
            if rng.random() < 0.5:
                closing, middle[-1] = "", f"{middle[-1]} {closing}"
        joint = "\n\n" if genre.layout == "paragraphs" else "\n"
        text = joint.join(piece for piece in [opening, *middle, closing] if piece)
    if title:
        text = f"{title.strip()}\n\n{text}"

    # The same passages may come back only when there is a single one, and then not in the same genre.
    keys = {("text", text), ("passages", frozenset(bodies), name if len(bodies) == 1 else "")}
    return {"text": text, "genre": name, "facts": facts}, keys, choices


def write(name: str, training: Path = TRAINING) -> tuple[Path, int]:
    """Compose one organism's corpus and write it as JSON lines; return the file and the number of its records."""
    source = training / name / "parts.yaml"
    try:
        parts = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the parts of {name!r}: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from error
    records = compose(parts)
    target = source.with_name("data.jsonl")
    target.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return target, len(records)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compose the training corpus of a bundled organism.")
    parser.add_argument("name", help="folder under organisms/training")
    try:
        target, count = write(parser.parse_args().name)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{count} records -> {target}")


if __name__ == "__main__":
    main()
