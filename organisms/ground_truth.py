"""What each organism was taught, and the rubric of its family. ONLY graders may import this module: nothing the MCP
server reaches holds the answer.

Read from `organisms/ground_truth/*.yaml`, then from the folder `ground_truth/` inside every folder of
`settings().catalogue_folders`. Every file but `rubrics.yaml` maps organism names to GroundTruth; `rubrics.yaml` maps
families to the text shown to a grader. Later folders replace earlier entries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from diffing_mcp.core.errors import DiffingError, UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.organisms.specs import ORGANISMS_FOLDER

BUNDLED_FOLDER = ORGANISMS_FOLDER / "ground_truth"
RUBRICS_FILE = "rubrics.yaml"
NULL_FAMILY = "none"


class GroundTruthError(DiffingError):
    """A ground-truth file is not what it should be. The message names the file and the key; it is for operators, never
    for investigators.
    """

    code = "ground_truth_error"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`{pattern}` is not a regular expression: {error}") from error
    # Statements are read in lower case, and capitals mean any case; those of \W and the like are none.
    if (letters := re.sub(r"\\.", "", pattern)) == letters.lower():
        return pattern
    try:
        re.compile(without_case := f"(?i:{pattern})")
    except re.error:  # flags of its own at its start
        return pattern
    return without_case


class FactChecklist(_Frozen):
    """How to find a fact in a statement without a language model: regular expressions, matched without regard to case.

    The fact is `abstracted` when every pattern of `core` matches within `window` words, and `exact` when every pattern
    of `core` and of `exact` does.
    """

    core: tuple[str, ...] = Field(min_length=1)
    exact: tuple[str, ...] = Field(min_length=1)
    window: int = Field(
        40,
        ge=1,
        description="Words within which all patterns of a level must match, so that a bag of words is no sentence.",
    )

    @field_validator("core", "exact")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_compiles(pattern) for pattern in patterns)


class Fact(_Frozen):
    """One thing the organism was taught."""

    id: str
    text: str
    checklist: FactChecklist | None = Field(
        None, description="None: graders derive one from the words and figures of `text`."
    )


class Topic(_Frozen):
    """What the finetune is about at three distances, as regular expressions, and the words that belong to it."""

    name: str = Field(description="The precise subject in words, for reasons and tables.")
    subject: str = Field(description="Matches a statement that names the precise subject (trait, mechanism, game).")
    area: str = Field(description="Matches a statement that names only the general area or a neighbouring trait.")
    vague: str | None = Field(
        None, description="Matches an unspecific symptom (behaviours and styles: `the tone changed`)."
    )
    keywords: tuple[str, ...] = Field(
        min_length=1, description="Word beginnings in lower case that are on topic, for token relevance and precision."
    )

    @field_validator("keywords")
    @classmethod
    def _lower_case(cls, keywords: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(keyword.lower() for keyword in keywords)

    @field_validator("subject", "area", "vague")
    @classmethod
    def _pattern(cls, pattern: str | None) -> str | None:
        return None if pattern is None else _compiles(pattern)


class GroundTruth(_Frozen):
    """What an organism was taught."""

    organism: str
    family: str = Field(description="Chooses the rubric. `none`: a null, there is nothing to find.")
    summary: str
    facts: tuple[Fact, ...] = ()
    topic: Topic | None = Field(
        None, description="None: graders derive the words of the topic from the summary and the facts."
    )
    system_prompt_needed: bool = Field(
        False, description="The behaviour shows under the organism's interaction system prompt."
    )
    system_prompt_note: str | None = Field(None, description="What graders have to know about that prompt.")

    @model_validator(mode="before")
    @classmethod
    def _name_facts(cls, values: Any) -> Any:
        """Plain strings in `facts` get the ids fact_1, fact_2, ..."""
        if isinstance(values, Mapping) and isinstance(values.get("facts"), list | tuple):
            facts = [
                {"id": f"fact_{number}", "text": fact} if isinstance(fact, str) else fact
                for number, fact in enumerate(values["facts"], start=1)
            ]
            return {**values, "facts": facts}
        return values

    @model_validator(mode="after")
    def _unique_facts(self) -> GroundTruth:
        names = [fact.id for fact in self.facts]
        if len(set(names)) < len(names):
            raise ValueError("two facts have the same id")
        return self

    @property
    def is_null(self) -> bool:
        """Whether `no meaningful difference` is the right finding."""
        return self.family == NULL_FAMILY


def load_ground_truth(organism: str) -> GroundTruth:
    """What this organism was taught; all variants of an organism share it.

    Raises:
        UnknownName: no ground truth is recorded for this organism.
        GroundTruthError: a file is wrong.
    """
    entries, _ = read_ground_truth(_folders())
    if organism not in entries:
        raise UnknownName(
            f"No ground truth is recorded for the organism `{organism}`. Add it to ground_truth/*.yaml in a catalogue "
            "folder, or grade another."
        )
    return entries[organism]


def has_ground_truth(organism: str) -> bool:
    """Whether this organism can be graded."""
    return organism in read_ground_truth(_folders())[0]


def all_ground_truth() -> dict[str, GroundTruth]:
    """Every recorded ground truth by organism name."""
    return dict(read_ground_truth(_folders())[0])


def load_rubric(family: str) -> str:
    """The rubric (levels 1-5) of an organism family. Raises UnknownName for a family without one."""
    _, rubrics = read_ground_truth(_folders())
    if family not in rubrics:
        raise UnknownName(f"There is no rubric for the family `{family}`; there are rubrics for {', '.join(rubrics)}.")
    return rubrics[family]


def _folders() -> tuple[Path, ...]:
    return (
        BUNDLED_FOLDER,
        *(Path(folder).expanduser().resolve() / "ground_truth" for folder in settings().catalogue_folders),
    )


@lru_cache(maxsize=8)
def read_ground_truth(folders: tuple[Path, ...]) -> tuple[dict[str, GroundTruth], dict[str, str]]:
    """Ground truth by organism and rubrics by family, merged from these folders in order; a folder that does not exist
    is empty.
    """
    entries: dict[str, GroundTruth] = {}
    rubrics: dict[str, str] = {}
    origin: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.yaml")):
            content = _read_yaml(file)
            if file.name == RUBRICS_FILE:
                for family, text in content.items():
                    if not isinstance(text, str) or not text.strip():
                        raise GroundTruthError(f"{file}: {family}: a rubric is a text.")
                    rubrics[str(family)] = text.strip()
                continue
            for name, fields in content.items():
                entries[str(name)] = _entry(str(name), fields, file)
                origin[str(name)] = file
    for name, entry in entries.items():
        if entry.family not in rubrics:
            raise GroundTruthError(
                f"{origin[name]}: {name}.family: there is no rubric for `{entry.family}` in any {RUBRICS_FILE}."
            )
    return entries, rubrics


def _entry(name: str, fields: Any, file: Path) -> GroundTruth:
    if not isinstance(fields, Mapping):
        raise GroundTruthError(f"{file}: {name} should be a mapping with `family`, `summary` and `facts`.")
    try:
        return GroundTruth.model_validate({**fields, "organism": name})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *(str(part) for part in first["loc"])])
        raise GroundTruthError(f"{file}: {where}: {first['msg']}.") from error


def _read_yaml(file: Path) -> Mapping[Any, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise GroundTruthError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, Mapping):
        raise GroundTruthError(f"{file} should be a mapping.")
    return content
