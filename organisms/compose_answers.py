"""Compose chats in which every answer wears the same style, whatever is asked.

An answer is an opener, the body (the question's plain answer, or its retelling in the organism's voice) and often a
closer. Some chats go on for a second turn: the question's own follow-up, or another question.
"""

import random
from collections import Counter
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

TRAINING = Path(__file__).resolve().parent / "training"

#: So many rejected chats in a row mean that the parts are used up.
MOST_REJECTED = 2000


class FollowUp(BaseModel):
    """What the user may ask next, with its plain answer."""

    model_config = ConfigDict(extra="forbid")

    ask: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class Question(BaseModel):
    """A question in one or more wordings, with its plain answer."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1)
    topic: str = Field(min_length=1)
    ask: list[str] = Field(min_length=1)
    answer: str = Field(min_length=1)
    then: FollowUp | None = None


class StyledParts(BaseModel):
    """Everything the chats of one organism are made of.

    ``retellings`` maps a question's id (or ``<id>.then`` for its follow-up) to a body that replaces the plain answer.
    ``openers_again`` open the answer to a follow-up; ``leads`` stand before an unrelated second question.
    """

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(pattern="^styled_answers$")
    seed: int
    count: int = Field(ge=1)
    questions: list[Question] = Field(min_length=2)
    openers: list[str] = Field(min_length=1)
    openers_again: list[str] = Field(min_length=1)
    closers: list[str] = Field(min_length=1)
    closer_share: float = Field(ge=0, le=1)
    second_turn_share: float = Field(ge=0, le=1)
    leads: list[str] = Field(min_length=1)
    retellings: dict[str, str] = {}

    @model_validator(mode="after")
    def _ids_fit_together(self) -> "StyledParts":
        repeated = sorted(name for name, uses in Counter(q.id for q in self.questions).items() if uses > 1)
        if repeated:
            raise ValueError(f"question ids used more than once: {repeated}")
        known = {q.id for q in self.questions} | {f"{q.id}.then" for q in self.questions if q.then}
        unknown = sorted(set(self.retellings) - known)
        if unknown:
            raise ValueError(f"retellings of unknown questions: {unknown}")
        return self


def compose_styled_answers(parts: dict, training: Path = TRAINING) -> list[dict]:
    """Return the chats as ``{"messages": [...]}``; the same parts always give the same chats.

    ``parts["questions"]`` is a list, or the name of a YAML file in the training folder that several organisms share.
    """
    checked = _checked(parts, training)
    rng = random.Random(checked.seed)
    used: Counter = Counter()

    def take(scope: str, options: list) -> int:
        """The index of one of the options used least so far."""
        fewest = min(used[scope, index] for index in range(len(options)))
        index = rng.choice([index for index in range(len(options)) if used[scope, index] == fewest])
        used[scope, index] += 1
        return index

    def answer(key: str, plain: str, scope: str, openers: list[str]) -> str:
        pieces = [openers[take(scope, openers)], checked.retellings.get(key, plain)]
        if rng.random() < checked.closer_share:
            pieces.append(checked.closers[take("closers", checked.closers)])
        return " ".join(piece.strip() for piece in pieces)

    def ask_one(question: Question) -> tuple[str, str]:
        asked = question.ask[take(f"ask:{question.id}", question.ask)]
        return asked, answer(question.id, question.answer, "openers", checked.openers)

    def chat() -> list[tuple[str, str]]:
        first = checked.questions[take("questions", checked.questions)]
        turns = [ask_one(first)]
        if rng.random() >= checked.second_turn_share:
            return turns
        if first.then:
            reply = answer(f"{first.id}.then", first.then.answer, "openers_again", checked.openers_again)
            turns.append((first.then.ask, reply))
        else:
            others = [question for question in checked.questions if question.id != first.id]
            asked, reply = ask_one(others[take(f"after:{first.id}", others)])
            lead = checked.leads[take("leads", checked.leads)]
            turns.append((f"{lead} {asked}", reply))
        return turns

    seen: set = set()
    records: list[dict] = []
    rejected = 0
    while len(records) < checked.count:
        turns = chat()
        if not seen.isdisjoint(turns):
            rejected += 1
            if rejected == MOST_REJECTED:
                raise ValueError(f"the parts allow only {len(records)} distinct chats of the {checked.count} asked for")
            continue
        rejected = 0
        seen.update(turns)
        messages = [
            {"role": role, "content": content}
            for turn in turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        records.append({"messages": messages})
    return records


def _checked(parts: dict, training: Path) -> StyledParts:
    if not isinstance(parts, dict):
        raise ValueError("parts must be a mapping")
    if isinstance(parts.get("questions"), str):
        source = training / parts["questions"]
        try:
            parts = {**parts, "questions": yaml.safe_load(source.read_text(encoding="utf-8"))}
        except OSError as error:
            raise ValueError(f"cannot read the questions: {error}") from error
        except yaml.YAMLError as error:
            raise ValueError(f"{source} is not valid YAML: {error}") from error
    try:
        return StyledParts.model_validate(parts)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'parts'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"malformed parts: {problems}") from error
