"""Which tokens are read and which are compared."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling, new_text, prompt_ids
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.preprocessing.activation_rows import kept_text
from diffing_mcp.preprocessing.activation_sources import ActivationTextParams, read_text
from diffing_mcp.preprocessing.corpora import Corpus, CorpusParams
from diffing_mcp.preprocessing.tokenize import PRE_ASSISTANT, going_on, tokenize
from tests.word_pairs import save_pair, tiny_tokenizer


def corpus(*documents: object) -> Corpus:
    return Corpus("test", "0", "text" if isinstance(documents[0], str) else "chat", tuple(documents))


@pytest.mark.parametrize("bos", [True, False])
def test_text_positions_start_after_bos(tmp_path: Path, bos: bool) -> None:
    spec = save_pair(tmp_path, None, bos=bos)
    with ModelPairs().use(spec) as pair:
        tokens = tokenize(corpus("w1 w2 w3 w4", "w1", "w5 w6 w7 w8 w9 w10"), pair, CorpusParams(max_tokens=5))
    assert tokens.has_bos is bos
    assert tokens.content_start == [int(bos)] * 2
    assert [len(ids) - int(bos) for ids in tokens.ids] == [4, 5]
    assert tokens.tokens == 9
    assert tokens.dropped.count == 1
    assert ("BOS" in tokens.position_origin) is True


def test_long_documents_are_cut_without_changing_their_tokens(tmp_path: Path) -> None:
    """Also where a few tokens take very many characters."""
    spec = save_pair(tmp_path, None)
    spaced = (" " * 500).join(f"w{index}" for index in range(20))
    with ModelPairs().use(spec) as pair:
        tokens = tokenize(
            corpus(spaced, " ".join(f"w{index}" for index in range(290)) * 50), pair, CorpusParams(max_tokens=10)
        )
        assert (
            tokens.ids[0] == tokens.ids[1] == pair.tokenizer(" ".join(f"w{index}" for index in range(10)))["input_ids"]
        )


def test_chats_compare_the_answer(tmp_path: Path) -> None:
    spec = save_pair(tmp_path, None)
    chat = [
        {"role": "user", "content": "w1 w2 w3"},
        {"role": "assistant", "content": "w4 w5 w6"},
        {"role": "user", "content": "w7"},
    ]
    with ModelPairs().use(spec) as pair:
        tokens = tokenize(
            corpus(chat, [{"role": "user", "content": "w1"}], [chat[1]], [{"role": "tool", "content": "x"}, chat[1]]),
            pair,
            CorpusParams(max_tokens=5),
        )
        start = tokens.assistant_start[0]
        assert start is not None
        assert pair.tokenizer.decode(tokens.ids[0][start:]).split() == ["w4", "w5"]
        assert tokens.ids[0][start - 1] == pair.tokenizer.convert_tokens_to_ids("<a>")
    assert tokens.content_start == [start - PRE_ASSISTANT]
    assert tokens.dropped.count == 3
    assert tokens.tokens == 5


def test_nothing_left(tmp_path: Path) -> None:
    spec = save_pair(tmp_path, None)
    with ModelPairs().use(spec) as pair:
        with pytest.raises(InvalidInput, match="fewer than 4 tokens"):
            tokenize(corpus("w1 w2", "w3"), pair, CorpusParams(min_tokens=4))
        with pytest.raises(InvalidInput, match="context"):
            tokenize(corpus("w1 " * 2000), pair, CorpusParams(max_tokens=2000))


def test_token_ids_take_four_bytes_and_read_as_lists(tmp_path: Path) -> None:
    spec = save_pair(tmp_path, None)
    with ModelPairs().use(spec) as pair:
        tokens = tokenize(corpus("w1 w2 w3", "w4 w5", "w6 w7 w8 w9"), pair, CorpusParams())
        wanted = [pair.tokenizer(text)["input_ids"] for text in ("w1 w2 w3", "w4 w5", "w6 w7 w8 w9")]
    assert tokens.ids.flat.nbytes == 4 * sum(map(len, wanted))
    assert list(tokens.ids) == wanted
    assert tokens.ids[-1] == wanted[2]
    assert tokens.ids[1:] == wanted[1:]
    with pytest.raises(IndexError):
        tokens.ids[3]
    assert list(tokens.ids.part(1, 3)) == wanted[1:]
    assert list(tokens.ids.chosen([0, 2], {2: 3})) == [wanted[0], wanted[2][:3]]
    kept = kept_text(tokens, 1, 4)
    assert kept.token_ids.tolist() == [*wanted[0][2:], *wanted[1][2:], wanted[2][2]]
    assert list(kept.corpus.ids) == [wanted[0], wanted[1], wanted[2][:3]]
    assert list(kept.part(1, 3).corpus.ids) == [wanted[1], wanted[2][:3]]


@pytest.mark.parametrize("bos", [True, False])
def test_whole_chats_keep_every_turn_and_template_token(tmp_path: Path, bos: bool) -> None:
    roles = ("user", "assistant", "user", "assistant")
    chat = [{"role": role, "content": f"w{index}1 w{index}2"} for index, role in enumerate(roles, start=1)]
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"messages": chat}) for _ in range(3)))
    params = ActivationTextParams(corpus=str(file), chat_part="whole", max_tokens=64)
    with ModelPairs().use(save_pair(tmp_path, None)) as pair:
        if bos:
            pair.tokenizer.chat_template = "{{ bos_token }}" + pair.tokenizer.chat_template
        whole, answers = read_text(pair, params), read_text(pair, params.model_copy(update={"chat_part": "answer"}))
        kept, rendered = (
            pair.tokenizer.decode(whole.token_ids[: int(whole.starts[1])]),
            pair.tokenizer.decode(whole.corpus.ids[0]),
        )
        answer = pair.tokenizer.decode(answers.token_ids[: int(answers.starts[1])])
    assert [word for word in kept.split() if word.startswith("w")] == [
        f"w{index}{word}" for index in range(1, 5) for word in (1, 2)
    ]
    # The first token is an attention sink: the BOS where there is one, else the template's first. Nothing else is
    # dropped.
    assert rendered.startswith("<s>" if bos else "<u>")
    assert kept.split() == rendered.replace("<s>" if bos else "<u>", "", 1).split()
    assert ("BOS" in whole.corpus.position_origin, whole.skip_first) == (True, 0 if bos else 1)
    # An answer has its prompt in front; the tokens before it are kept.
    assert len(answers.token_ids[: int(answers.starts[1])]) == PRE_ASSISTANT + 2
    assert answer.split()[-2:] == ["w21", "w22"]
    assert answers.skip_first == 0


@pytest.mark.parametrize(("bos", "text"), [(True, "<s> w1 w2"), (True, "<u> w1 </u> <a>"), (False, "<u> w1 </u> <a>")])
def test_a_model_goes_on_from_the_tokens_that_were_read(bos: bool, text: str) -> None:
    """A chat template may write no BOS where the tokenizer puts one before every text."""
    tokenizer = tiny_tokenizer(bos)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    request = going_on(tokenizer, ids, has_bos=text.startswith("<s>"))
    assert prompt_ids(tokenizer, request, False, False) == ids


def test_a_model_goes_on_within_a_character(tiny_pair) -> None:
    """Half of the positions of Chinese text lie inside of characters, of which a text can end in no part: models went
    on from the mark of a broken one.
    """
    ids = tiny_pair.tokenizer("Bake 烤蛋糕")["input_ids"]
    cuts = [ids[:count] for count in range(1, len(ids) + 1)]
    requests = [going_on(tiny_pair.tokenizer, each, has_bos=False) for each in cuts]
    assert [prompt_ids(tiny_pair.tokenizer, each, False, False) for each in requests] == cuts
    sampling = Sampling(temperature=0, max_new_tokens=1)
    for cut, request in zip(cuts, requests, strict=True):
        logits = tiny_pair.forward("base", torch.tensor([cut]), torch.ones(1, len(cut), dtype=torch.long)).logits
        token = int(logits[0, -1].argmax())
        [[written]] = tiny_pair.generate("base", [request], sampling)
        expected = [] if token in tiny_pair.stop_ids("base") else [token]
        assert written.text == new_text(tiny_pair.tokenizer, cut, expected)


def test_no_tokenizer_ends_a_text(tmp_path: Path) -> None:
    """Tokenizers come out of training with `add_eos_token`: a prompt was over before its answer began."""
    spec = save_pair(tmp_path, None)
    ending = AutoTokenizer.from_pretrained(tmp_path / "base")
    before = ending("w1 w2")["input_ids"]
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    ending.save_pretrained(tmp_path / "base")
    assert AutoTokenizer.from_pretrained(tmp_path / "base")("w1 w2")["input_ids"] == [*before, 2]
    with ModelPairs().use(spec) as pair:
        tokens = tokenize(corpus("w1 w2", "w1 w2 w3"), pair, CorpusParams())
        assert prompt_ids(pair.tokenizer, GenerationRequest(text="w1 w2"), False, False) == before
        assert pair.tokenizer(["w1 w2"])["input_ids"] == tokens.ids[:1] == [before]
    assert tokens.has_bos
    assert [len(ids) for ids in tokens.ids] == [3, 4]
