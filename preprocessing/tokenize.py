"""Documents to token ids: which tokens both models read, and which of them are compared.

Text: the document from its start, with the tokenizer's own special tokens. Position 0 is the first content token after
BOS. Chat: the messages up to the first answer, rendered with the pair's chat template, then the answer's own tokens.
The prompt is context that is read but not compared; comparison starts `PRE_ASSISTANT` tokens before the answer (the
template's header of the answer, whose last token predicts the answer's first), so in a chat position 0 is that token
and the answer starts at position `PRE_ASSISTANT`. Whole chat: all messages as the template renders them, with what it
writes after the last one, every token compared; position 0 is the first token after BOS.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
from pydantic import ValidationError

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.preprocessing.corpora import Corpus, CorpusParams
from diffing_mcp.preprocessing.corpus_rows import Dropped, Message

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.generation import GenerationRequest
    from diffing_mcp.model_pairs.pair import LoadedPair

PRE_ASSISTANT = 3
"""Tokens before a chat's answer that are compared as well."""

ANSWER_ORIGIN = f"{PRE_ASSISTANT} tokens before the answer's first token"
BOS_ORIGIN = "first token after BOS"
NO_BOS_ORIGIN = "first token (this tokenizer adds no BOS)"
"""What position 0 is, in words: results and stored collections say it."""

MAX_PROMPT_TOKENS = 512
"""Chats with a longer prompt are dropped and counted."""

ChatPart = Literal["answer", "whole"]

_ROLES = get_args(ChatMessage.model_fields["role"].annotation)
_CHARACTERS_PER_TOKEN = 8
_SPARE = 32
_LONGEST_WORD = 4096
_WORD_END = re.compile(r"\w(?=\s)")
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
        ends = [
            min(int(self.starts[sample + 1]), int(self.starts[sample]) + cuts.get(sample, 2**62)) for sample in samples
        ]
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
    dropped: Dropped
    """What was left out: rows of the corpus that are no document, and documents that are too short, have no answer, too
    long a prompt, ...
    """
    sha: str
    """sha256 of all token ids and starts."""
    first_position: int = 0
    """Position of each sample's first compared token; above 0 in stored activations that leave out the first ones."""
    stored: str | None = None
    """Which stored activations these tokens are of and what they leave out, in words; None: the models read the text
    now.
    """

    @property
    def tokens(self) -> int:
        """Tokens compared."""
        return int(self.ids.starts[-1]) - sum(self.content_start)

    def split_after(self, sample: int, position: int) -> tuple[list[int], list[int]]:
        """The ids of a sample up to and with a compared position, and those after it."""
        ids, end = self.ids[sample], self.content_start[sample] + position + 1
        return ids[:end], ids[end:]

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
        return {**read, "position_origin": self.position_origin, **self.dropped.notes}

    def skipped(self, skip_first: int) -> int:
        """How many compared tokens to drop at the start of each sample so that its first `skip_first` tokens are left
        out, as attention sinks.

        In a text these are content tokens, a BOS is left out besides. The answer of a chat has its prompt in front:
        nothing is dropped. Of a whole chat no token of the template is dropped in the place of a BOS.
        """
        if self.kind == "text":
            return skip_first
        return 0 if self.before_answer else max(0, skip_first - self.has_bos)


def tokenize(corpus: Corpus, pair: LoadedPair, params: CorpusParams, chat_part: ChatPart = "answer") -> TokenizedCorpus:
    """Token ids of up to `max_samples` documents that have at least `min_tokens` tokens, each cut after `max_tokens`
    compared tokens.

    Args:
        chat_part: of a chat, its first answer with `PRE_ASSISTANT` tokens before it, or all of it.

    Raises:
        InvalidInput: no document can be compared; it says what became of them.
    """
    if corpus.kind == "chat" and not pair.has_chat_template:
        raise InvalidInput(
            f"{corpus.id!r} holds chats, but this pair's tokenizer has no chat template. Give a corpus of plain text."
        )
    rows_of = _text_rows if corpus.kind == "text" else _answer_rows if chat_part == "answer" else _whole_chat_rows
    flat, starts = array("i"), array("q", [0])
    content_start: list[int] = []
    assistant_start: list[int | None] = []
    dropped = Dropped(corpus.dropped.source or corpus.id, corpus.dropped.unit)
    digest = hashlib.sha256()
    for begin in range(0, len(corpus.documents), _TOKENIZE_AT_ONCE):
        if len(content_start) >= params.max_samples:
            break
        rows = rows_of(corpus.documents[begin : begin + _TOKENIZE_AT_ONCE], pair, params)
        for index, row in enumerate(rows, start=begin):
            if len(content_start) >= params.max_samples:
                break
            if (reason := _unfit(row, params.shortest, pair.context_length)) is not None:
                dropped.add(reason, corpus.number(index))
                continue
            flat.extend(row.ids)
            starts.append(len(flat))
            digest.update(np.asarray([row.start, len(row.ids), *row.ids], dtype=np.int64).tobytes())
            content_start.append(row.start)
            assistant_start.append(row.answer)
    if not content_start:
        raise InvalidInput(
            f"No document of {corpus.id!r} can be compared: {'; '.join(dropped.lines())}. Lower min_tokens or "
            "max_tokens, or give another corpus."
        )
    bos = getattr(pair.tokenizer, "bos_token_id", None)
    ids = TokenIds(np.frombuffer(flat, dtype=np.intc), np.frombuffer(starts, dtype=np.int64))
    has_bos = bos is not None and ids[0][0] == bos and (corpus.kind == "chat" or content_start[0] == 1)
    return TokenizedCorpus(
        corpus.id,
        corpus.kind,
        ids,
        content_start,
        assistant_start,
        has_bos,
        corpus.dropped.and_then(dropped),
        digest.hexdigest(),
    )


@dataclass(frozen=True)
class _Row:
    """One document: its ids, where the compared ones begin and where an answer does; or why it cannot be read."""

    ids: list[int]
    start: int = 0
    answer: int | None = None
    refused: str | None = None


def _unfit(row: _Row, shortest: int, context: int) -> str | None:
    if row.refused is not None:
        return row.refused
    if len(row.ids) - row.start < shortest:
        return f"fewer than {shortest} tokens"
    return f"longer than the context of {context} tokens" if len(row.ids) > context else None


def _text_rows(documents: Sequence[str], pair: LoadedPair, params: CorpusParams) -> list[_Row]:
    start = int(_adds_bos(pair.tokenizer))
    return [
        _Row(ids, start)
        for ids in first_tokens(pair.tokenizer, documents, start + params.max_tokens, add_special_tokens=True)
    ]


def _adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a BOS before every text. One that a document itself begins with is a token of the
    document.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    with_added, without = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    return bos is not None and with_added[:1] == [bos] and without[:1] != [bos]


def going_on(tokenizer: Any, ids: Sequence[int], has_bos: bool) -> GenerationRequest:
    """A request to go on from the tokens of a sample, from its first one on: their text, without the BOS of a corpus
    that has them, which most tokenizers put there again, and read without one where there are none (chats whose
    template writes none). Tokens that end within a character (of Chinese, or an emoji) are given as they are: as text
    they would end in the mark of a broken one, which no model has read.
    """
    from diffing_mcp.model_pairs.generation import GenerationRequest

    text = str(tokenizer.decode(ids[1:] if has_bos else ids))
    broken = tuple(ids) if text.endswith("\ufffd") else None
    return GenerationRequest(text=text, special=has_bos or not _adds_bos(tokenizer), ids=broken)


def _whole_chat_rows(documents: Sequence[list[Message]], pair: LoadedPair, params: CorpusParams) -> list[_Row]:
    return [_whole_chat_row(messages, pair, params) for messages in documents]


def _whole_chat_row(messages: list[Message], pair: LoadedPair, params: CorpusParams) -> _Row:
    try:
        rendered = pair.render_conversation(_turns(messages))
    except InvalidInput as error:
        return _Row([], refused=error.message)
    [ids] = first_tokens(pair.tokenizer, [rendered], params.max_tokens + 1)
    start = 1 if ids and ids[0] == getattr(pair.tokenizer, "bos_token_id", None) else 0
    return _Row(ids[: start + params.max_tokens], start)


def _answer_rows(documents: Sequence[list[Message]], pair: LoadedPair, params: CorpusParams) -> list[_Row]:
    return [_answer_row(messages, pair, params) for messages in documents]


def _answer_row(messages: list[Message], pair: LoadedPair, params: CorpusParams) -> _Row:
    answer = next((index for index, message in enumerate(messages) if message["role"] == "assistant"), None)
    if not answer:
        return _Row([], refused="no answer, or none after a question")
    try:
        rendered = pair.render_chat(_turns(messages[:answer]))
    except InvalidInput as error:
        return _Row([], refused=error.message)
    [prompt] = first_tokens(pair.tokenizer, [rendered], MAX_PROMPT_TOKENS + 1)
    if len(prompt) > MAX_PROMPT_TOKENS:
        return _Row([], refused=f"a prompt of more than {MAX_PROMPT_TOKENS} tokens")
    [reply] = first_tokens(pair.tokenizer, [messages[answer]["content"]], params.max_tokens)
    if not reply:
        return _Row([], refused="an empty answer")
    start = max(0, len(prompt) - PRE_ASSISTANT)
    return _Row([*prompt, *reply][: start + params.max_tokens], start, len(prompt))


def _turns(messages: Sequence[Message]) -> list[ChatMessage]:
    """Raises InvalidInput for a role that templates are not sure to know."""
    try:
        return [ChatMessage.model_validate(message) for message in messages]
    except ValidationError as error:
        raise InvalidInput(f"messages of a role other than {', '.join(_ROLES)}") from error


def first_tokens(tokenizer: Any, texts: Sequence[str], count: int, add_special_tokens: bool = False) -> list[list[int]]:
    """The first `count` ids of each text, as those of the whole text are, without tokenising long texts to their ends.

    A long text is cut where a word ends, so that no word is tokenised by half; only in one of more than `_LONGEST_WORD`
    characters the cut may fall. Tokens that may not be those of the whole text are the last ones then, so `_SPARE` more
    are wanted; where there are fewer, a longer part is tokenised.
    """
    found: list[list[int]] = [[] for _ in texts]
    left = list(range(len(texts)))
    limit = _CHARACTERS_PER_TOKEN * (count + _SPARE)
    while left:
        parts = [_begin(texts[index], limit) for index in left]
        encoded = tokenizer(parts, add_special_tokens=add_special_tokens)["input_ids"]
        again = []
        for index, part, ids in zip(left, parts, encoded, strict=True):
            if len(part) < len(texts[index]) and len(ids) < count + _SPARE:
                again.append(index)
            else:
                found[index] = list(ids[:count])
        left, limit = again, 8 * limit
    return found


def _begin(text: str, characters: int) -> str:
    """The text up to the end of the first word that ends at or behind `characters`, or `_LONGEST_WORD` characters
    further on.
    """
    if len(text) <= characters:
        return text
    end = _WORD_END.search(text, characters, characters + _LONGEST_WORD)
    return text[: end.end() if end else characters + _LONGEST_WORD]
