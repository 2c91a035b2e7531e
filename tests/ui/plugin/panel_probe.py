"""A third party's method, declared through the entry-point group: the panel shows it from its declaration alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import DiffingMethod, Figure, MethodParams, MethodResult, TextGroup, View
from diffing_mcp.methods.texts.words import EvidenceWord


class ProbeParams(MethodParams):
    """Parameters of the probe."""

    max_samples: int = Field(64, ge=1, description="Texts.")


class ProbeResult(MethodResult):
    """What the probe says."""

    tokens: int = Field(description="Tokens read.")
    spread: dict[str, float] = Field(description="Nats.")
    rose: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    def evidence_words(self) -> list[EvidenceWord]:
        """Its words, beyond the null level when it stands out."""
        return [EvidenceWord(word=word, score=4.0 if self.stands_out else 0.5) for word in ("vanilla", "oven")]


class TokensParams(BaseModel):
    """Parameters of the view."""

    limit: int = Field(10, ge=1, le=50, description="Rows.")
    offset: int = Field(0, ge=0)
    contains: str | None = Field(None, description="Only rows with this in them.")


class TokensPage(BaseModel):
    """Rows of the view."""

    total: int
    rows: list[dict[str, Any]] = Field(description="Tokens of the run, the most different first.")


def tokens(record: Any, params: TokensParams) -> TokensPage:
    """A page of the stored tokens."""
    rows = [row for row in record.table("tokens").to_pylist() if not params.contains or params.contains in row["token"]]
    return TokensPage(total=len(rows), rows=rows[params.offset : params.offset + params.limit])


def curve(record: Any) -> dict[str, Any]:
    """The stored curve, labelled with model text."""
    label = record.table("tokens").to_pylist()[0]["token"]
    return {
        "data": [{"type": "scatter", "y": record.array("kl").tolist(), "text": [label] * 64, "name": label}],
        "layout": {"title": {"text": "Curve"}, "showlegend": True},
    }


def broken(record: Any) -> dict[str, Any]:
    """A plot that fails."""
    raise KeyError("no such array")


def nothing(record: Any) -> dict[str, Any]:
    """A plot of what was not found."""
    return {"data": [{"type": "bar", "x": [], "y": []}], "layout": {}}


class PanelProbe(DiffingMethod[ProbeParams, ProbeResult]):
    """A method for the tests of the panel."""

    name: ClassVar[str] = "panel_probe"
    title: ClassVar[str] = "Panel probe"
    Params: ClassVar[type[BaseModel]] = ProbeParams
    Result: ClassVar[type[MethodResult]] = ProbeResult
    views: ClassVar[Mapping[str, View]] = {"tokens": View("tokens", "Tokens by divergence.", TokensParams, tokens)}
    figures: ClassVar[Sequence[Figure]] = (
        Figure("curve", "Divergence", curve),
        Figure("broken", "Broken", broken),
        Figure("nothing", "Nothing", nothing),
    )

    def text_groups(self, record: Any) -> Sequence[TextGroup]:
        """The completions of either model."""
        rows = record.table("completions").to_pylist()
        return [
            TextGroup(
                name=writer,
                role="finetuned" if writer == "finetuned" else "control",
                prompts=[row["prefill"] for row in rows if row["writer"] == writer],
                texts=[row["text"] for row in rows if row["writer"] == writer],
            )
            for writer in ("base", "finetuned")
        ]
