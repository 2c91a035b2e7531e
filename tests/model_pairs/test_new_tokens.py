"""Finetunes that added tokens: the common part is compared, the new tokens are there for whoever asks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.preprocessing.batches import Accumulator
from diffing_mcp.preprocessing.corpora import CorpusParams, load_corpus
from diffing_mcp.preprocessing.corpus_pass import run_corpus_pass
from diffing_mcp.preprocessing.tokenize import tokenize
from tests.conftest import TinyModels

NEW = [" cake", " oven", "<scratch>", " frosting"]
TOKENS = torch.tensor([[5, 40, 90, 260]])
ONES = torch.ones_like(TOKENS)


@pytest.fixture(scope="module")
def grown(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Base folder (320 tokens), and a finetune whose 4 new tokens take logits near 40 and whose other weights are the
    base's.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny_models(tie_word_embeddings=False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.add_tokens(NEW) == 4
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(324, mean_resizing=False)
    with torch.no_grad():
        states = model.model(torch.arange(5, 300).unsqueeze(0)).last_hidden_state[0]
        mean = states.mean(0)
        model.lm_head.weight[320:] = 40 * mean / mean.square().sum()
    folder = tmp_path_factory.mktemp("grown")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return base, folder


def test_common_part_and_extra_logits(grown, make_pair, pairs):
    base, finetuned = grown
    with pairs.use(make_pair(base, finetuned=finetuned)) as pair:
        assert pair.vocab_size == 320
        assert dict(pair.new_tokens) == dict(zip(range(320, 324), NEW, strict=True))
        there, here = pair.forward("base", TOKENS, ONES), pair.forward("finetuned", TOKENS, ONES)
        assert torch.equal(there.logits, here.logits)
        assert there.extra_logits is None
        assert here.extra_logits.shape == (1, 4, 4)
        assert pair.logit_lens("finetuned", torch.randn(3, 32)).shape == (3, 320)
        assert torch.equal(pair.token_log_probs("base", TOKENS, ONES), pair.token_log_probs("finetuned", TOKENS, ONES))


def test_gradients_are_of_the_common_part(grown, make_pair, pairs):
    base, finetuned = grown
    with pairs.use(make_pair(base, finetuned=finetuned)) as pair:
        rows = [(TOKENS[0, :3].tolist(), [260])]
        there, here = (pair.answer_gradients(side, rows)[0] for side in ("base", "finetuned"))
    assert torch.allclose(there, here, atol=1e-6)
    assert there.abs().max() > 1e-3


def test_the_finetuned_side_writes_its_new_tokens(grown, make_pair, pairs):
    base, finetuned = grown
    with pairs.use(make_pair(base, finetuned=finetuned)) as pair:
        request, sampling = [GenerationRequest(text="rivers run")], Sampling(temperature=0, max_new_tokens=6)
        (written,) = pair.generate("finetuned", request, sampling)[0]
        assert any(token.strip() in written.text for token in NEW)
        (written,) = pair.generate("base", request, sampling)[0]
        assert not any(token.strip() in written.text for token in NEW)


@pytest.mark.parametrize("together", [True, False])
def test_the_pass_gives_the_probability_of_new_tokens(together, grown, make_pair, pairs, tmp_path):
    class Collect(Accumulator):
        needs_logits = True

        def __init__(self) -> None:
            self.probs: dict[tuple[int, int], torch.Tensor] = {}
            self.moved = 0.0

        def update_logits(self, chunk) -> None:
            for index in range(len(chunk)):
                self.probs[int(chunk.sample_indices[index]), int(chunk.positions[index])] = chunk.new_token_probs[
                    index
                ].clone()
            self.moved += float(chunk.difference.abs().sum())

    base, finetuned = grown
    text = tmp_path / "text.txt"
    text.write_text("the lazy dog runs to the sea\na model is cake one token\nrivers stay")
    params = CorpusParams(corpus=str(text))
    # With room for one model only, the sides are read in turn through a file.
    holder = pairs if together else ModelPairs(memory_limit=230_000)
    with holder.use(make_pair(base, finetuned=finetuned)) as pair:
        assert pair.sequential is not together
        corpus = tokenize(load_corpus(params), pair, params)
        collect = Collect()
        run_corpus_pass(pair, corpus, [collect])
        assert collect.moved == 0
        assert len(collect.probs) == corpus.tokens
        for sample, ids in enumerate(corpus.ids):
            assert max(ids) < 320
            output = pair.forward("finetuned", torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
            assert output.logits is not None
            assert output.extra_logits is not None
            expected = torch.cat([output.logits, output.extra_logits], -1)[0].float().softmax(-1)[:, 320:]
            got = torch.stack([collect.probs[sample, position] for position in range(len(ids))])
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-3)


def test_padding_rows_are_no_new_tokens(tiny_models, make_pair, pairs):
    with pairs.use(make_pair(tiny_models(), finetuned=tiny_models(vocabulary=384))) as pair:
        assert pair.vocab_size == 320
        assert not pair.new_tokens
        assert pair.forward("finetuned", TOKENS, ONES).extra_logits.shape[-1] == 64


def test_new_tokens_in_the_base_models_padding(grown, tiny_models, make_pair, pairs, tmp_path):
    """The usual case of models with a padded vocabulary: the unembedding does not grow."""
    finetuned = shutil.copytree(tiny_models(vocabulary=384, seed=4), tmp_path / "padded")
    for file in grown[1].glob("tokenizer*"):
        shutil.copy(file, finetuned)
    with pairs.use(make_pair(tiny_models(vocabulary=384), finetuned=finetuned)) as pair:
        assert pair.vocab_size == 384
        assert list(pair.new_tokens) == [320, 321, 322, 323]
        assert pair.forward("finetuned", TOKENS, ONES).extra_logits is None
