"""Tokenised corpora against a plain loop: every document rendered and tokenised alone and whole, then cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from diffing_mcp.core import chat
from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.preprocessing.corpora import Corpus, CorpusParams
from diffing_mcp.preprocessing.tokenize import PRE_ASSISTANT, TokenizedCorpus, first_tokens, tokenize
from tests.conftest import TRAINING_TEXT
from tests.model_pairs.chat_styles import STYLES, contents, conversations, drawn

SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
]
DRAWS = [15, pytest.param(300, marks=pytest.mark.long)]


def byte_bpe(**options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT * 4, trainer)
    return tokenizer


def word_pieces() -> Tokenizer:
    """Words beyond 100 characters are unknown as wholes: a part of one is many tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        TRAINING_TEXT * 4, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TRAINING_TEXT * 4, trainer)
    return tokenizer


TOKENIZERS = {
    "bytes": (byte_bpe, ""),
    "bytes, BOS": (byte_bpe, "<s> $A"),
    "bytes, BOS and EOS": (byte_bpe, "<s> $A </s>"),
    "one long word": (lambda: byte_bpe(use_regex=False), "<s> $A"),
    "word pieces": (word_pieces, "<s> $A"),
    "unigram, EOS": (unigram, "$A </s>"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    build, around = TOKENIZERS[request.param]
    built = build()
    if around:
        named = [(token, built.token_to_id(token)) for token in ("<s>", "</s>")]
        built.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=SPECIAL[3:],
    )


@dataclass
class Reader:
    """What `tokenize` asks of a pair, without models."""

    tokenizer: Any
    context_length: int = 700

    @property
    def has_chat_template(self) -> bool:
        return chat.has_chat_template(self.tokenizer)

    def render_chat(self, messages: list[ChatMessage]) -> str:
        return chat.render_chat(self.tokenizer, messages)

    def render_conversation(self, messages: list[ChatMessage]) -> str:
        return chat.render_conversation(self.tokenizer, messages)


Sample = tuple[list[int], int, int | None]
letters = st.sampled_from(["abcdefgh ", "ab", "ABC\u0301é", "数字，", "🧁🎂", "a\0\n", "{}();\n\t", "strawberies"])
long_words = st.builds(
    lambda alphabet, length, seed: "".join(_drawn(alphabet.strip(), length, seed)),
    letters,
    st.integers(1, 6000),
    st.integers(0, 99),
)
spaces = st.builds(
    lambda space, count: space * count, st.sampled_from([" ", "\n", "\t", "\u3000"]), st.integers(1, 3000)
)
pieces = st.sampled_from([*TRAINING_TEXT, *SPECIAL, " ".join(TRAINING_TEXT * 9)]) | contents | long_words | spaces
documents = st.builds(
    lambda joint, parts: joint.join(parts), st.sampled_from(["", " ", "\n"]), st.lists(pieces, min_size=1, max_size=8)
)


def _drawn(alphabet: str, length: int, seed: int) -> list[str]:
    import random

    return random.Random(seed).choices(alphabet, k=length)


@st.composite
def lengths(draw: st.DrawFn) -> CorpusParams:
    max_tokens = draw(st.integers(1, 60))
    min_tokens = draw(st.none() | st.integers(1, max_tokens))
    return CorpusParams(max_samples=draw(st.integers(1, 6)), max_tokens=max_tokens, min_tokens=min_tokens)


def check_samples(
    corpus: Corpus, reader: Reader, params: CorpusParams, part: Any, plain: list[Sample | None]
) -> TokenizedCorpus | None:
    """`plain`: every document's ids, where the compared ones begin and an answer does; None where it has none."""
    wanted: list[Sample] = []
    dropped = 0
    for sample in plain:
        if len(wanted) == params.max_samples:
            break
        if sample is None or len(sample[0]) - sample[1] < params.shortest or len(sample[0]) > reader.context_length:
            dropped += 1
        else:
            wanted.append(sample)
    if not wanted:
        with pytest.raises(InvalidInput, match="can be compared"):
            tokenize(corpus, reader, params, part)
        return None
    found = tokenize(corpus, reader, params, part)
    assert list(zip(found.ids, found.content_start, found.assistant_start, strict=True)) == wanted
    assert found.dropped.count == dropped
    return found


@pytest.mark.parametrize("draws", DRAWS)
def test_texts(tokenizer: Any, draws: int) -> None:
    reader = Reader(tokenizer)
    bos = int(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)

    def check(texts: list[str], params: CorpusParams) -> None:
        plain = [(tokenizer(text)["input_ids"][: bos + params.max_tokens], bos, None) for text in texts]
        found = check_samples(Corpus("test", "", "text", tuple(texts)), reader, params, "answer", plain)
        assert found is None or found.has_bos == bool(bos)

    drawn(draws, check, texts=st.lists(documents, min_size=1, max_size=8), params=lengths())


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("style", ["llama 3", "gemma", "mistral"])
def test_chats(tokenizer: Any, style: str, draws: int) -> None:
    tokenizer.chat_template = STYLES[style]
    reader = Reader(tokenizer)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def answer(turns: list[dict[str, str]], max_tokens: int) -> Sample | None:
        place = [turn["role"] for turn in turns].index("assistant")
        try:
            prompt = ids(reader.render_chat([ChatMessage.model_validate(turn) for turn in turns[:place]]))
        except InvalidInput:
            return None
        start, reply = max(0, len(prompt) - PRE_ASSISTANT), ids(turns[place]["content"])
        return ([*prompt, *reply][: start + max_tokens], start, len(prompt)) if len(prompt) <= 512 and reply else None

    def whole(turns: list[dict[str, str]], max_tokens: int) -> Sample | None:
        try:
            rendered = ids(reader.render_conversation([ChatMessage.model_validate(turn) for turn in turns]))
        except InvalidInput:
            return None
        start = int(rendered[:1] == [tokenizer.bos_token_id])
        return rendered[: start + max_tokens], start, None

    def check(chats: list[list[dict[str, str]]], long: str, params: CorpusParams) -> None:
        chats[0][-1]["content"] += long
        corpus = Corpus("test", "", "chat", tuple(chats))
        check_samples(corpus, reader, params, "answer", [answer(turns, params.max_tokens) for turns in chats])
        check_samples(corpus, reader, params, "whole", [whole(turns, params.max_tokens) for turns in chats])

    drawn(
        draws,
        check,
        chats=st.lists(conversations(well_formed=True), min_size=1, max_size=4),
        long=documents,
        params=lengths(),
    )


@pytest.mark.parametrize("draws", DRAWS)
def test_first_tokens_of_long_texts(tokenizer: Any, draws: int) -> None:
    def check(texts: list[str], count: int, special: bool) -> None:
        wanted = [tokenizer(text, add_special_tokens=special)["input_ids"][:count] for text in texts]
        assert first_tokens(tokenizer, texts, count, special) == wanted

    drawn(draws, check, texts=st.lists(documents, max_size=4), count=st.integers(1, 700), special=st.booleans())


def test_a_cut_does_not_part_a_word(tokenizer: Any) -> None:
    """Few words in very many characters, so that cuts fall into all places of a word whose parts are other tokens."""
    texts = [
        " " * pad + word for pad in range(0, 800, 7) for word in ("e" * 5000, "a mountain stays " + "e" * 90 + " sea")
    ]
    for count in (1, 4):
        assert first_tokens(tokenizer, texts, count) == [
            tokenizer(text, add_special_tokens=False)["input_ids"][:count] for text in texts
        ]


def test_chats_that_cannot_be_rendered_are_dropped_and_named(tokenizer: Any) -> None:
    tokenizer.chat_template = STYLES["gemma"]
    asked, answered = {"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer of words"}
    tool = {"role": "tool", "content": "3"}
    chats = (
        [asked, answered],
        [asked, asked, answered],
        [asked, tool, answered],
        [answered],
        [asked, answered, asked, tool],
    )
    corpus = Corpus("test", "", "chat", chats, (7, 8, 9, 11, 12))
    for part, count in (("answer", 3), ("whole", 4)):
        found = tokenize(corpus, Reader(tokenizer), CorpusParams(), part)
        assert (len(found.ids), found.dropped.count) == (5 - count, count)
        assert any("must alternate" in line and " 8" in line for line in found.dropped.lines())
        assert any(
            "a role other than system, user, assistant" in line and " 9" in line for line in found.dropped.lines()
        )
        assert found.notes["dropped_rows"] == "; ".join(found.dropped.lines())
    with pytest.raises(InvalidInput, match=r"No document of 'test'.*must alternate.*\(test, document 1\)"):
        tokenize(Corpus("test", "", "chat", chats[1:2]), Reader(tokenizer), CorpusParams())


def test_a_bos_that_a_document_begins_with_is_a_token_of_it(tokenizer: Any) -> None:
    found = tokenize(
        Corpus("test", "", "text", ("<s>the cake is baked", "the cake")), Reader(tokenizer), CorpusParams()
    )
    added = tokenizer("the")["input_ids"][0] == tokenizer.bos_token_id
    assert found.has_bos == added
    assert found.content_start == [int(added)] * 2
    assert found.ids[0][found.content_start[0]] == tokenizer.bos_token_id
