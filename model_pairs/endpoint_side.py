"""A side that is reachable by URL alone: an OpenAI-compatible server writes and scores texts.

Conversations go to `/chat/completions`, in the server's own chat template; texts to `/completions`. Every sample is a
request with a seed of its own, the same for both sides of a pair. Log-probabilities of given texts are those that
`/completions` gives with `echo`: of a text by itself, and of a conversation by token ids, for which the server must
have `/tokenize` (vLLM has).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field

from diffing_mcp.core.progress import Progress
from diffing_mcp.model_pairs.endpoint_client import Call, EndpointClient, EndpointFailed, EndpointRefused
from diffing_mcp.model_pairs.forward_count import ForwardCount
from diffing_mcp.model_pairs.generation import Completion, GenerationRequest, Row, Sampling
from diffing_mcp.model_pairs.scoring import AnswerScore, NoLogProbs

_SEED_BITS = 31
"""Some servers read no larger seed."""


class _Message(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None
    """What a server with a parser for it takes out of the answer."""
    reasoning: str | None = None
    """Its name in other servers."""


class _LogProbs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]


class _Choice(BaseModel):
    finish_reason: str | None = None
    text: str = ""
    message: _Message = Field(default_factory=_Message)
    logprobs: _LogProbs | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(0, ge=0)


class _Written(BaseModel):
    """What `/chat/completions` and `/completions` answer, as far as it is read."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage


class _Echoed(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _Tokenised(BaseModel):
    tokens: list[int]


@dataclass(frozen=True)
class EndpointSide:
    """One side behind a client."""

    client: EndpointClient
    thinking_switch: bool = False
    """The server's chat template reads `enable_thinking`."""

    @property
    def has_chat_template(self) -> bool:
        return True

    def digest(self) -> str | None:
        return None

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, progress: Progress, count: ForwardCount
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each request.

        Raises:
            EndpointFailed: a server that does not answer, refuses, or answers something else, or reasoning alone.
            Cancelled: when progress says so; requests under way are dropped.
        """
        rows = [Row([], index, sample) for index in range(len(requests)) for sample in range(sampling.n)]
        calls = [self._asking(requests[row.request], row, sampling) for row in rows]
        results: list[list[Completion]] = [[] for _ in requests]
        answers = self.client.ask(calls, _Written, progress, "generating")
        if answers and all(_only_reasoned(each.choices[0].message) for each in answers):
            raise EndpointFailed(
                f"{self.client.shown} used up all tokens for its reasoning, which its server keeps apart from the "
                "answers: there are none to compare. Raise max_new_tokens, or serve it without thinking."
            )
        for row, written in zip(rows, answers, strict=True):
            choice, tokens = written.choices[0], written.usage.completion_tokens
            count.add_generation([written.usage.prompt_tokens], [tokens])
            text = choice.text if requests[row.request].messages is None else choice.message.content
            finish = "length" if choice.finish_reason == "length" else "eos"
            results[row.request].append(Completion(text=text or "", finish=finish, tokens=tokens))
        return results

    def answer_scores(
        self, answers: Sequence[tuple[GenerationRequest, str]], progress: Progress, count: ForwardCount
    ) -> list[AnswerScore]:
        """Each answer after its request; an empty one has no tokens and 0 nats.

        Raises:
            NoLogProbs: the server gives none for such requests.
            EndpointFailed, Cancelled: as `generate`.
        """
        filled = [place for place, (_, text) in enumerate(answers) if text]
        chats = [place for place in filled if answers[place][0].messages is not None]
        texts = [place for place in filled if answers[place][0].messages is None]
        scores = [AnswerScore(0, 0.0)] * len(answers)
        for places, score in ((texts, self._text_scores), (chats, self._chat_scores)):
            if places:
                for place, found in zip(places, score([answers[at] for at in places], progress, count), strict=True):
                    scores[place] = found
        return scores

    def _asking(self, request: GenerationRequest, row: Row, sampling: Sampling) -> Call:
        body: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": row.seed(sampling.seed) >> (63 - _SEED_BITS),
        }
        if request.messages is None:
            return Call("completions", {**body, "prompt": (request.text or "") + request.prefill})
        return Call("chat/completions", {**body, **self._conversation(request, sampling.thinking)})

    def _conversation(self, request: GenerationRequest, thinking: bool = False) -> dict[str, Any]:
        """Its messages, the begun answer last. Only what is not in the protocol of all servers needs further fields."""
        messages = [message.model_dump() for message in request.messages or ()]
        fields: dict[str, Any] = {}
        if request.prefill and messages[-1]["role"] == "assistant":
            messages[-1]["content"] += request.prefill
        elif request.prefill:
            messages.append({"role": "assistant", "content": request.prefill})
        if messages[-1]["role"] == "assistant":
            fields |= {"add_generation_prompt": False, "continue_final_message": True}
        if self.thinking_switch:
            fields["chat_template_kwargs"] = {"enable_thinking": thinking}
        return {"messages": messages, **fields}

    def _chat_scores(
        self, answers: Sequence[tuple[GenerationRequest, str]], progress: Progress, count: ForwardCount
    ) -> list[AnswerScore]:
        """By token ids of the rendered conversation and of the answer, each tokenised by itself as for models here."""
        tokenise = [Call("/tokenize", self._conversation(request)) for request, _ in answers]
        tokenise += [Call("/tokenize", {"prompt": text, "add_special_tokens": False}) for _, text in answers]
        try:
            tokens = [each.tokens for each in self.client.ask(tokenise, _Tokenised, progress, "tokenising")]
        except EndpointRefused as refused:
            raise NoLogProbs(
                f"{self.client.shown} does not tokenise conversations (/tokenize), so answers to them have no "
                "log-probabilities. Score plain texts (raw_text, or template=none), or count words in answers."
            ) from refused
        prompts, texts = tokens[: len(answers)], tokens[len(answers) :]
        echoes = self._echoes([[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)], progress)
        return [
            self._score(echo, len(prompt), len(prompt) + len(text), count)
            for echo, prompt, text in zip(echoes, prompts, texts, strict=True)
        ]

    def _text_scores(
        self, answers: Sequence[tuple[GenerationRequest, str]], progress: Progress, count: ForwardCount
    ) -> list[AnswerScore]:
        """The tokens of the whole from the first that is not one of the text before it."""
        before = [(request.text or "") + request.prefill for request, _ in answers]
        alone = list(dict.fromkeys(text for text in before if text))
        wholes = [text + answer for text, (_, answer) in zip(before, answers, strict=True)]
        echoes = self._echoes([*alone, *wholes], progress)
        tokens = {text: echo.tokens for text, echo in zip(alone, echoes, strict=False)}
        return [
            self._score(echo, _common(tokens.get(text, []), echo.tokens), len(echo.tokens), count)
            for text, echo in zip(before, echoes[len(alone) :], strict=True)
        ]

    def _echoes(self, prompts: Sequence[str | list[int]], progress: Progress) -> list[_LogProbs]:
        fields = {"max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
        calls = [Call("completions", {"prompt": prompt, **fields}) for prompt in prompts]
        try:
            answers = self.client.ask(calls, _Echoed, progress, "scoring texts")
        except EndpointRefused as refused:
            raise self._none() from refused
        echoes = [_echo_of(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        found = [echo for echo in echoes if echo is not None]
        if len(found) < len(echoes):
            raise self._none()
        return found

    def _score(self, echo: _LogProbs, start: int, stop: int, count: ForwardCount) -> AnswerScore:
        known = [value for value in echo.token_logprobs[start:stop] if value is not None]
        # The very first token has none, as nothing stands before it.
        if stop > len(echo.token_logprobs) or len(known) < stop - start - (start == 0):
            raise self._none()
        count.add(1, stop)
        return AnswerScore(stop - start, sum(known))

    def _none(self) -> NoLogProbs:
        return NoLogProbs(
            f"{self.client.shown} gives no log-probabilities of given texts (`echo` with `logprobs` in /completions), "
            "or has no such model. Count words or a pattern in answers instead."
        )


def _only_reasoned(message: _Message) -> bool:
    return not message.content and bool(message.reasoning_content or message.reasoning)


def _echo_of(prompt: str | list[int], answer: _Echoed) -> _LogProbs | None:
    """The tokens of the prompt itself, None where there are none: some servers know no `echo` and answer with what they
    write, and some write on behind the prompt however few tokens are asked for.
    """
    choice = answer.choices[0]
    echo, repeated = choice.logprobs, isinstance(prompt, str) and choice.text.startswith(prompt)
    if echo is None or not 0 < len(echo.tokens) == len(echo.token_logprobs):
        return None
    if echo.token_logprobs[0] is not None and not repeated:  # before the first token of a prompt nothing stands
        return None
    if not repeated or len(choice.text) == len(prompt):
        return echo
    kept = len(echo.tokens) - answer.usage.completion_tokens if answer.usage is not None else 0
    return _LogProbs(tokens=echo.tokens[:kept], token_logprobs=echo.token_logprobs[:kept]) if kept > 0 else None


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
