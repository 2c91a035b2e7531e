"""Documents to token ids: which tokens both models read, and which of them are compared.

Text: the document from its start, with the tokenizer's own special tokens. Position 0 is the first content token after BOS.
Chat: the messages up to the first answer, rendered with the pair's chat template, then the answer's own tokens. The prompt is context that is
read but not compared; comparison starts `PRE_ASSISTANT` tokens before the answer (the template's header of the answer, whose last token predicts
the answer's first), so in a chat position 0 is that token and the answer starts at position `PRE_ASSISTANT`.
Whole chat: all messages as the template renders them, every token compared, position 0 is the first token after BOS.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from model_pairs.chat import ChatMessage
from organisms.errors import InvalidInput
from preprocessing.corpora import Corpus, CorpusParams, Message

if TYPE_CHECKING:
    from model_pairs.pair import LoadedPair

PRE_ASSISTANT = 3
"""Tokens before a chat's answer that are compared as well."""

ANSWER_ORIGIN = f"{PRE_ASSISTANT} tokens before the answer's first token"
BOS_ORIGIN = "first token after BOS"
NO_BOS_ORIGIN = "first token (this tokenizer adds no BOS)"
"""What position 0 is, in words: results and stored collections say it."""

MAX_PROMPT_TOKENS = 512
"""Chats with a longer prompt are dropped and counted."""

ChatPart = Literal["answer", "whole"]

_ROLES = ("system", "user", "assistant")
_CHARACTERS_PER_TOKEN = 16
_TOKENIZE_AT_ONCE = 256


class TokenIds(Sequence[list[int]]):
    """The token ids of many samples in four bytes each; sample `i` is a list made when asked for.

    Args:
        flat: [T] int32, sample after sample.
        starts: [S + 1] int64, where each sample starts in `flat`, and its length.
    """

    def __init__(self, flat: np.ndarray, starts: np.ndarray) -> None:
        self.flat = flat
        self.starts = starts

    @property
    def lengths(self) -> np.ndarray:
        """[S] int64, tokens of each sample."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> list[int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...

    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        ids: list[int] = self.flat[self.starts[place] : self.starts[place + 1]].tolist()
        return ids

    def part(self, first: int, last: int) -> TokenIds:
        """Samples [first, last), without a copy."""
        starts = self.starts[first : last + 1]
        return TokenIds(self.flat[starts[0] : starts[-1]], starts - starts[0])

    def chosen(self, samples: Sequence[int], cuts: Mapping[int, int]) -> TokenIds:
        """These samples, one at least, those in `cuts` (sample -> tokens) cut after that many tokens."""
        ends = [min(int(self.starts[sample + 1]), int(self.starts[sample]) + cuts.get(sample, 2**62)) for sample in samples]
        parts = [self.flat[self.starts[sample] : end] for sample, end in zip(samples, ends, strict=True)]
        return TokenIds(np.concatenate(parts), np.cumsum([0, *map(len, parts)]))


@dataclass(frozen=True)
class TokenizedCorpus:
    """Token ids of the samples, in the order in which the documents were drawn; sample `i` is `ids[i]`."""

    corpus_id: str
    kind: Literal["text", "chat"]
    ids: TokenIds
    content_start: list[int]
    """Index, in each sample's ids, of the token at position 0."""
    assistant_start: list[int | None]
    """Index, in each sample's ids, of the answer's first token; None for text and for whole chats."""
    has_bos: bool
    dropped_short: int
    """Documents dropped because they have fewer than `min_tokens` tokens to compare (or no answer, or too long a prompt)."""
    sha: str
    """sha256 of all token ids and starts."""
    first_position: int = 0
    """Position of each sample's first compared token; above 0 in stored activations that leave out the first ones."""
    stored: str | None = None
    """Which stored activations these tokens are of and what they leave out, in words; None: the models read the text now."""

    @property
    def tokens(self) -> int:
        """Tokens compared."""
        return int(self.ids.starts[-1]) - sum(self.content_start)

    @property
    def position_origin(self) -> str:
        """What position 0 is, for answers."""
        if self.before_answer:
            return ANSWER_ORIGIN
        return BOS_ORIGIN if self.has_bos else NO_BOS_ORIGIN

    @property
    def before_answer(self) -> int:
        """Compared positions before the answer's first token; 0 in texts and whole chats."""
        return PRE_ASSISTANT if self.assistant_start[0] is not None else 0

    @property
    def notes(self) -> dict[str, Any]:
        """What a run's manifest says of the text."""
        read = {"has_bos": self.has_bos} if self.stored is None else {"stored": self.stored}
        return {**read, "position_origin": self.position_origin, "dropped": self.dropped_short}

    def skipped(self, skip_first: int) -> int:
        """How many compared tokens to drop at the start of each sample so that its first `skip_first` tokens are left out, as attention sinks.

        In a text these are content tokens, a BOS is left out besides. The answer of a chat has its prompt in front: nothing is dropped. Of a whole
        chat no token of the template is dropped in the place of a BOS.
        """
        if self.kind == "text":
            return skip_first
        return 0 if self.before_answer else max(0, skip_first - self.has_bos)


def tokenize(corpus: Corpus, pair: LoadedPair, params: CorpusParams, chat_part: ChatPart = "answer") -> TokenizedCorpus:
    """Token ids of up to `max_samples` documents that have at least `min_tokens` tokens, each cut after `max_tokens` compared tokens.

    Args:
        chat_part: of a chat, its first answer with `PRE_ASSISTANT` tokens before it, or all of it.

    Raises:
        InvalidInput: every document was too short, or the samples do not fit into the pair's context.
    """
    if corpus.kind == "chat" and not pair.has_chat_template:
        raise InvalidInput(f"{corpus.id!r} holds chats, but this pair's tokenizer has no chat template. Give a corpus of plain text.")
    chat_row = _chat_row if chat_part == "answer" else _whole_chat_row
    flat, starts = array("i"), array("q", [0])
    content_start: list[int] = []
    assistant_start: list[int | None] = []
    dropped = 0
    digest = hashlib.sha256()
    for begin in range(0, len(corpus.documents), _TOKENIZE_AT_ONCE):
        if len(content_start) >= params.max_samples:
            break
        documents = corpus.documents[begin : begin + _TOKENIZE_AT_ONCE]
        rows = (
            _text_rows(documents, pair.tokenizer, params) if corpus.kind == "text" else [chat_row(document, pair, params) for document in documents]
        )
        for row in rows:
            if len(content_start) >= params.max_samples:
                break
            if row is None or len(row[0]) - row[1] < params.shortest or len(row[0]) > pair.context_length:
                dropped += 1
                continue
            flat.extend(row[0])
            starts.append(len(flat))
            digest.update(np.asarray([row[1], len(row[0]), *row[0]], dtype=np.int64).tobytes())
            content_start.append(row[1])
            assistant_start.append(row[2])
    if not content_start:
        raise InvalidInput(
            f"No document of {corpus.id!r} can be compared: all {dropped} have fewer than {params.shortest} tokens, no answer, "
            f"or do not fit into the context of {pair.context_length} tokens. Lower min_tokens or max_tokens, or give another corpus."
        )
    bos = getattr(pair.tokenizer, "bos_token_id", None)
    ids = TokenIds(np.frombuffer(flat, dtype=np.intc), np.frombuffer(starts, dtype=np.int64))
    has_bos = bos is not None and ids[0][0] == bos and (corpus.kind == "chat" or content_start[0] == 1)
    return TokenizedCorpus(corpus.id, corpus.kind, ids, content_start, assistant_start, has_bos, dropped, digest.hexdigest())


Row = tuple[list[int], int, int | None]


def _text_rows(documents: tuple[str, ...], tokenizer: Any, params: CorpusParams) -> list[Row | None]:
    bos = getattr(tokenizer, "bos_token_id", None)
    # Long documents are cut by characters first: only their first tokens are wanted. The cut is generous, and undone where it was not enough.
    limit = _CHARACTERS_PER_TOKEN * (params.max_tokens + 2)
    encoded = tokenizer([document[:limit] for document in documents], add_special_tokens=True)["input_ids"]
    rows: list[Row | None] = []
    for document, cut_ids in zip(documents, encoded, strict=True):
        token_ids = list(cut_ids)
        if len(document) > limit and len(token_ids) < params.max_tokens + 2:
            token_ids = list(tokenizer(document, add_special_tokens=True)["input_ids"])
        start = 1 if bos is not None and token_ids and token_ids[0] == bos else 0
        rows.append((token_ids[: start + params.max_tokens], start, None))
    return rows


def _whole_chat_row(messages: list[Message], pair: LoadedPair, params: CorpusParams) -> Row | None:
    if any(message["role"] not in _ROLES for message in messages):
        return None
    try:
        rendered = pair.render_chat([ChatMessage.model_validate(message) for message in messages])
    except InvalidInput:  # an order of turns that the template does not know
        return None
    ids = pair.tokenizer(rendered[: _CHARACTERS_PER_TOKEN * (params.max_tokens + 2)], add_special_tokens=False)["input_ids"]
    start = 1 if ids and ids[0] == getattr(pair.tokenizer, "bos_token_id", None) else 0
    return list(ids[: start + params.max_tokens]), start, None


def _chat_row(messages: list[Message], pair: LoadedPair, params: CorpusParams) -> Row | None:
    answer = next((index for index, message in enumerate(messages) if message["role"] == "assistant"), None)
    if not answer or any(message["role"] not in _ROLES for message in messages[:answer]):
        return None
    turns = [ChatMessage.model_validate(message) for message in messages[:answer]]
    prompt = pair.tokenizer(pair.render_chat(turns), add_special_tokens=False)["input_ids"]
    if len(prompt) > MAX_PROMPT_TOKENS:
        return None
    content = messages[answer]["content"][: _CHARACTERS_PER_TOKEN * (params.max_tokens + 2)]
    reply = pair.tokenizer(content, add_special_tokens=False)["input_ids"]
    if not reply:
        return None
    start = max(0, len(prompt) - PRE_ASSISTANT)
    return [*prompt, *reply][: start + params.max_tokens], start, len(prompt)
