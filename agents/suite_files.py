"""Suites: a YAML file that names pairs x arms x budgets x investigators x repeats, and the evaluations it stands for.

`agents/suites/*.yaml` are the presets, among them the published protocols; `diffing evaluate NAME_OR_FILE` runs one.
Each combination of investigator and budget is an evaluation of its own, with a folder and records like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from diffing_mcp.agents.arms import Arm
from diffing_mcp.agents.cells import BASELINE, plan_identifier
from diffing_mcp.agents.grading import truth_of
from diffing_mcp.agents.names import as_identifier
from diffing_mcp.agents.records import EvaluationPlan, TokenUsage
from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.validation_messages import complaints

PRESETS = Path(__file__).parent / "suites"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Price(_Strict):
    """What a language model costs, in the suite's currency per million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_read: float | None = Field(None, ge=0, description="Input that the provider's cache had; none: as input.")
    cache_write: float | None = Field(None, ge=0, description="Input that is put into the cache; none: as input.")

    def of(self, usage: TokenUsage) -> float:
        """What these tokens cost."""
        read = self.input if self.cache_read is None else self.cache_read
        write = self.input if self.cache_write is None else self.cache_write
        paid = usage.input_tokens * self.input + usage.output_tokens * self.output
        return (paid + usage.cache_read_tokens * read + usage.cache_write_tokens * write) / 1e6


class Limits(_Strict):
    """Where an LLM investigation ends."""

    message_limit: int = Field(100, ge=1)
    token_limit: int = Field(500_000, ge=1)
    time_limit: int = Field(3600, ge=1, description="Seconds.")
    max_samples: int = Field(4, ge=1, description="Investigations at a time.")

    def changed(self) -> dict[str, int]:
        """Those that decide what an investigation comes to and are not their defaults."""
        return {name: value for name, value in self.model_dump(exclude_defaults=True).items() if name != "max_samples"}


class Cap(_Strict):
    """What the whole suite may spend; no further investigation is opened once one of these is reached."""

    tokens: int | None = Field(None, ge=1, description="Tokens of the investigators and their models, all together.")
    money: float | None = Field(None, gt=0, description="In the suite's currency; needs a price for each model.")
    hours: float | None = Field(None, gt=0, description="Wall-clock hours of investigations, added up.")


class SuiteFile(_Strict):
    """The contents of a suite's file."""

    description: str = ""
    organisms: tuple[str, ...] = Field(min_length=1, description="Pair references with ground truth.")
    arms: tuple[Arm, ...] = Field(("blackbox", "method"), min_length=1)
    investigators: tuple[str, ...] = Field(("baseline",), min_length=1, description="`baseline` or Inspect models.")
    interactions: tuple[int, ...] = Field((10,), min_length=1, description="Budgets of model interactions.")
    repeats: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    grader: str | None = Field(None, description="Inspect model that reads findings; none: fact recall alone.")
    grader_repeats: int = Field(3, ge=1)
    limits: Limits = Limits()
    currency: str = "USD"
    prices: dict[str, Price] = Field(default_factory=dict, description="Model -> price.")
    cap: Cap = Cap()

    @field_validator("organisms", "arms", "investigators", "interactions")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(values))


def presets() -> dict[str, SuiteFile]:
    """The suites that come with the package, by name."""
    return {file.stem: _read(file) for file in sorted(PRESETS.glob("*.yaml"))}


def read_suite(name: str) -> tuple[str, SuiteFile]:
    """A preset by name or a file by path: the suite's name and contents.

    Raises:
        UnknownName: neither a preset nor a file, or a pair without ground truth.
        InvalidInput: the file is not a suite; each wrong field is named.
    """
    known = {file.stem: file for file in PRESETS.glob("*.yaml")}
    file = known.get(name, Path(name).expanduser())
    if not file.is_file():
        raise UnknownName(f"There is no suite {name!r}. Presets: {', '.join(sorted(known))}; or give a YAML file.")
    suite = _read(file)
    for organism in suite.organisms:
        truth_of(organism)
    if suite.cap.money is not None:
        models = [*suite.investigators, *([suite.grader] if suite.grader is not None else [])]
        unpriced = [each for each in models if each != BASELINE and each not in suite.prices]
        if unpriced:
            raise InvalidInput(f"{file.name} caps money, so it needs `prices` for {', '.join(unpriced)}.")
    return file.stem, suite


def settings_of(investigator: str, limits: Limits, overview_samples: int | None) -> dict[str, int]:
    """What decides the investigations of an investigator beside the fields of a plan, where it is not the default."""
    if investigator != BASELINE:
        return limits.changed()
    return {} if overview_samples is None else {"overview_samples": overview_samples}


def plans_of(name: str, suite: SuiteFile, overview_samples: int | None = None) -> list[EvaluationPlan]:
    """The evaluations of a suite: each investigator with each budget. Pairs, arms and repeats may grow under one id."""
    plans = []
    for investigator in suite.investigators:
        for interactions in suite.interactions:
            settings = settings_of(investigator, suite.limits, overview_samples)
            values = {
                "organisms": list(suite.organisms),
                "arms": list(suite.arms),
                "investigator": investigator,
                "grader": suite.grader,
                "repeats": suite.repeats,
                "interactions": interactions,
                "seed": suite.seed,
            }
            # Pairs and arms may be added later, as repeats may: what is finished stays.
            fixed = {key: values[key] for key in ("investigator", "grader", "interactions", "seed")} | settings
            plans.append(
                EvaluationPlan.model_validate(
                    {
                        "id": as_identifier(f"{name}-{plan_identifier(fixed)}"),
                        "suite": name,
                        "settings": settings,
                        **values,
                    }
                )
            )
    return plans


def _read(file: Path) -> SuiteFile:
    try:
        return SuiteFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        fields = list(SuiteFile.model_fields)
        raise InvalidInput(f"{file.name}: {complaints(error, fields)}. Fields: {', '.join(fields)}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file.name} is not a YAML file: {' '.join(str(error).split())}") from None
