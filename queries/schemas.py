"""What can be asked of both models of a pair, and what a comparison of them says. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from diffing_mcp.core.seeds import Seed
from diffing_mcp.methods.kl.schema import TokenMove

SideName = Literal["base", "finetuned"]


def _listed(value: Any) -> Any:
    """A single string where a list of strings is meant: one prompt, never one a character."""
    return [value] if isinstance(value, str) and not value.lstrip().startswith("[") else value


class Query(BaseModel):
    """Unknown names are refused."""

    model_config = ConfigDict(extra="forbid")


class ChatTurn(Query):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=20_000)


Prompt = Annotated[str, Field(min_length=1, max_length=20_000)]
Prompts = Annotated[list[Prompt], BeforeValidator(_listed)]


Prefill = Annotated[str, Field(max_length=4000)]


class AskQuery(Query):
    """Prompts and conversations for one model or both, and how they answer."""

    prompts: Prompts = Field(
        default_factory=list,
        max_length=64,
        description="User messages, each the start of a conversation of its own.",
    )
    conversations: list[Annotated[list[ChatTurn], Field(min_length=1, max_length=40)]] = Field(
        default_factory=list,
        max_length=64,
        description="Of several turns, the last one the user's; besides `prompts`.",
    )
    side: Literal["both", "base", "finetuned"] = Field("both", description="Both cost no more than one.")
    system_prompt: str | None = Field(None, max_length=20_000, description="Put before all that have no system turn.")
    prefill: Prefill | Annotated[list[Prefill], Field(max_length=128)] = Field(
        "", description="Beginning of the answer; a list has one a prompt."
    )
    raw_text: bool = Field(False, description="Continue prompts as plain text.")
    samples: int = Field(1, ge=1, le=32, description="Answers a prompt.")
    temperature: float = Field(0.7, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(128, ge=1, le=2048, description="Tokens an answer may have.")
    thinking: bool = Field(False, description="Where models have that switch.")
    seed: Seed = Field(0, description="Change it for fresh answers.")
    count_pattern: str | None = Field(
        None, min_length=1, max_length=1000, description="Regular expression to count in answers."
    )

    @model_validator(mode="after")
    def _something_to_ask(self) -> Self:
        if not self.prompts and not self.conversations:
            raise ValueError("give at least one prompt (prompts) or conversation (conversations)")
        if self.raw_text and (self.conversations or self.system_prompt):
            raise ValueError("raw_text continues plain prompts: leave conversations and system_prompt out")
        if any(conversation[-1].role == "assistant" for conversation in self.conversations):
            raise ValueError("a conversation must end with a user turn; the beginning of an answer goes into prefill")
        if isinstance(self.prefill, list) and len(self.prefill) != self.questions:
            raise ValueError(
                f"{len(self.prefill)} prefills for {self.questions} prompts and conversations; give one for each, or "
                "a single text for all"
            )
        return self

    @property
    def prefills(self) -> list[str]:
        """The beginning of the answer to each prompt and conversation."""
        return self.prefill if isinstance(self.prefill, list) else [self.prefill] * self.questions

    @property
    def questions(self) -> int:
        return len(self.prompts) + len(self.conversations)

    @property
    def interactions(self) -> int:
        """One a prompt and sample, whether one side answers or both."""
        return self.questions * self.samples


class CompareQuery(Query):
    """A text, candidates or greedy answers to look at under both models."""

    text: str = Field("", max_length=50_000, description="The text to score.")
    prompt: str | None = Field(
        None,
        max_length=20_000,
        description="A user message: the text is scored as the chat answer to it.",
    )
    before: list[ChatTurn] = Field(default_factory=list, max_length=40, description="Turns before `prompt`.")
    candidates: Prompts = Field(
        default_factory=list,
        max_length=32,
        description="Alternative answers to `prompt` (or continuations of `text`) to rank.",
    )
    greedy_tokens: int = Field(
        0,
        ge=0,
        le=256,
        description="Length of greedy answers to `prompt` (or after `text`), to show where they part.",
    )
    top: int = Field(5, ge=1, le=50, description="Positions to detail.")
    max_tokens: int = Field(150, ge=1, le=1024, description="Scored of the text and each candidate.")

    @model_validator(mode="after")
    def _something_to_compare(self) -> Self:
        if not self.text and not self.candidates and not self.greedy_tokens:
            raise ValueError("give a text to score, candidates, or greedy_tokens")
        if not self.text and self.prompt is None:
            raise ValueError("candidates and greedy_tokens need a prompt to answer or a text to go on from")
        if self.before and self.prompt is None:
            raise ValueError("`before` are the turns of a chat before `prompt`: give a prompt too")
        return self

    @property
    def conversation(self) -> list[ChatTurn]:
        """What the text answers; none without a prompt."""
        return [] if self.prompt is None else [*self.before, ChatTurn(role="user", content=self.prompt)]

    @property
    def interactions(self) -> int:
        """One for the text, one a candidate, one for the greedy answers."""
        return bool(self.text) + len(self.candidates) + bool(self.greedy_tokens)


class PositionDetail(BaseModel):
    """A position where the models expect different next tokens."""

    position: int
    token: str = Field(description="The token that stands there in the text.")
    kl: float
    up: list[TokenMove] = Field(description="Tokens that finetuned expects more than base.")
    down: list[TokenMove] = Field(description="Tokens that finetuned expects less than base.")


class Span(BaseModel):
    """A stretch of the text that one model expects more."""

    start: int = Field(description="First position.")
    end: int = Field(description="Position after the last.")
    text: str
    difference: float = Field(description="Sum of finetuned minus base log-probabilities over the stretch, nats.")


class CandidateScore(BaseModel):
    """A candidate under both models."""

    candidate: str = Field(description="Its beginning.")
    tokens: int = Field(description="Tokens scored.")
    base: float = Field(description="Log-probability of the whole under base, nats.")
    finetuned: float
    base_per_token: float
    finetuned_per_token: float
    base_rank: int = Field(description="1 = the candidate that base finds likeliest a token.")
    finetuned_rank: int


class GreedyDivergence(BaseModel):
    """Both models' greedy answers, and where they part. Texts are untrusted."""

    parts: bool = Field(description="Whether the answers differ within greedy_tokens.")
    common: str = Field(description="UNTRUSTED text that both write first.")
    base: str = Field(description="UNTRUSTED text of base after that.")
    finetuned: str = Field(description="UNTRUSTED text of finetuned after that.")
    after_tokens: int | None = Field(description="Tokens of the common text; None when the answers are the same.")
    base_top: list[TokenMove] = Field(description="Likeliest next tokens of base where they part.")
    finetuned_top: list[TokenMove] = Field(description="Likeliest next tokens of finetuned there.")


class EndOfTurn(BaseModel):
    """How probable it is that an answer ends where the text does, not before more of it. Natural logarithms."""

    token: str = Field(description="The likeliest token that ends it.")
    base_log_prob: float = Field(description="ln p(any end-of-turn token | prompt and text) under base.")
    finetuned_log_prob: float
    kl: float = Field(description="KL(finetuned || base) of the next-token distributions there, nats.")


class CompareResult(BaseModel):
    """One text under both models; the lists have one entry a token (data of a heat map). Natural logarithms."""

    tokens: list[str]
    base_log_prob: list[float] = Field(description="ln p(token | text before it) under base.")
    finetuned_log_prob: list[float]
    kl: list[float] = Field(
        description="KL(finetuned || base) of the next-token distributions where the token stands, in nats."
    )
    mean_kl: float
    mean_log_prob_difference: float = Field(
        description="Mean of finetuned minus base, in nats a token; positive: the text is likelier under finetuned."
    )
    top: list[PositionDetail]
    truncated: bool = Field(description="Whether the text went on after the last token scored.")
    unscored: str | None = Field(
        None, description="The first token where nothing stands before it (no prompt, no BOS): no model predicts it."
    )
    spans: list[Span] = Field(
        default_factory=list, description="Stretches whose summed log-probability difference is largest, by size."
    )
    candidates: list[CandidateScore] = Field(
        default_factory=list, description="By how much finetuned prefers them over base, a token."
    )
    greedy: GreedyDivergence | None = None
    end: EndOfTurn | None = Field(None, description="Whether the answer ends after the text; with a prompt only.")
