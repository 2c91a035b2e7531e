"""Finetunes that teach nothing, and the zoo of taught ones: what their recipes promise."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.settings import settings as project_settings
from diffing_mcp.model_pairs.files import local_folder
from diffing_mcp.model_pairs.fingerprint import model_identity
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.organisms.embedded import EMBEDDED_ID
from diffing_mcp.organisms.nulls import (
    NullRecipe,
    cut_answers,
    edited,
    final_norm,
    make_null,
    null_recipes,
    nulls_for,
    on_random_directions,
    plain_answers,
    shuffled_answers,
)
from diffing_mcp.organisms.sample_corpus import own_documents
from diffing_mcp.organisms.train import base_model
from diffing_mcp.organisms.zoo import (
    ADAPTERS,
    TaughtRecipe,
    make_taught,
    recipes_for,
    taught_chat,
    taught_documents,
    zoo,
)


def matrix(seed: int = 0) -> torch.Tensor:
    return torch.randn(12, 40, generator=torch.Generator().manual_seed(seed))


@given(st.integers(2, 8), st.integers(0, 1000))
def test_quantised_rows_have_so_many_levels_and_stay_within_half_a_step(bits: int, seed: int) -> None:
    weight = matrix(seed)
    found = edited(weight, "quantised", bits, torch.Generator())
    assert max(len(row.unique()) for row in found) <= 2**bits - 1
    step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((found - weight).abs() <= step / 2 + 1e-6).all()


@given(st.floats(0.01, 0.9))
def test_pruned_matrices_lose_their_smallest_share(share: float) -> None:
    weight = matrix()
    found = edited(weight, "pruned", share, torch.Generator())
    assert int((found == 0).sum()) == round(share * weight.numel())
    assert weight[found == 0].abs().max() <= weight[found != 0].abs().min()
    assert torch.equal(found[found != 0], weight[found != 0])


@given(st.floats(0.001, 2))
def test_noise_has_the_norm_that_was_asked_for(amount: float) -> None:
    weight = matrix()
    found = edited(weight, "noise", amount, torch.Generator().manual_seed(1))
    assert float((found - weight).norm() / weight.norm()) == pytest.approx(amount, rel=1e-3)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_random_directions_keep_the_spectrum_and_nothing_else(seed: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    reads, writes = torch.randn(rank, 30, generator=generator), torch.randn(20, rank, generator=generator)
    others = on_random_directions(reads, writes, generator)
    before, after = torch.linalg.svdvals(writes @ reads)[:rank], torch.linalg.svdvals(others[1] @ others[0])[:rank]
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(others[1] @ others[0], writes @ reads, atol=0.1)


def test_an_edited_model_is_a_model_folder_whose_embeddings_are_untouched(tiny_models, tmp_path: Path) -> None:
    base = tiny_models()
    made = make_null(NullRecipe(name="n", kind="noise", amount=0.1), str(base), tmp_path)
    before, after = load_file(base / "model.safetensors"), load_file(made / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, tensor in before.items() if tensor.ndim == 2 and "layers" in name}
    assert (made / "tokenizer.json").is_file()
    assert make_null(NullRecipe(name="n", kind="noise", amount=0.1), str(base), tmp_path) == made


@pytest.mark.parametrize("kind", ["quantised", "pruned", "noise"])
def test_experts_are_edited_as_the_matrices_that_they_are(kind: str, tiny_models, tmp_path: Path) -> None:
    """They are one tensor a layer, which was left as it is: of a mixture of experts next to nothing was changed."""
    from transformers import AutoModelForCausalLM

    base = tiny_models("qwen3_moe")
    made = make_null(NullRecipe(name="n", kind=kind, amount=4 if kind == "quantised" else 0.1), str(base), tmp_path)
    before, after = (dict(AutoModelForCausalLM.from_pretrained(each).named_parameters()) for each in (base, made))
    experts = [name for name in before if before[name].ndim == 3]
    assert experts
    for name in experts:
        for one, other in zip(before[name], after[name], strict=True):
            assert not torch.equal(one, other)
            if kind == "noise":
                assert float(((other - one).norm() / one.norm()).detach()) == pytest.approx(0.1, rel=1e-3)


def test_two_workers_make_a_null_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both made it, and the second failed where it put its folder over the first one's."""
    made: list[Path] = []

    def slowly(recipe: NullRecipe, base: str, target: Path) -> Path:
        made.append(target)
        time.sleep(0.1)
        target.mkdir()
        return target

    monkeypatch.setattr("diffing_mcp.organisms.nulls._edited", slowly)
    recipe = NullRecipe(name="n", kind="noise", amount=0.1)
    with ThreadPoolExecutor(2) as workers:
        found = list(workers.map(lambda _: make_null(recipe, "base", tmp_path), range(2)))
    assert found == [*made, *made]


def test_an_adapter_on_random_directions(tiny_models, tiny_adapters, tmp_path: Path, monkeypatch) -> None:
    base = tiny_models()
    source = tiny_adapters(base)
    recipes = (NullRecipe(name="trained", kind="own_texts", amount=0.1),)
    (tmp_path / recipes[0].made_name).symlink_to(source)
    monkeypatch.setattr("diffing_mcp.organisms.nulls.null_recipes", lambda: recipes)
    recipe = NullRecipe(name="r", kind="random_directions", amount=2, of="trained")
    made = make_null(recipe, str(base), tmp_path)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (source, made))
    name = next(name for name in before if ".lora_A." in name)
    other = name.replace(".lora_A.", ".lora_B.")
    rank = before[name].shape[0]
    values = [torch.linalg.svdvals(tensors[other] @ tensors[name])[:rank] for tensors in (before, after)]
    torch.testing.assert_close(2 * values[0], values[1], rtol=1e-3, atol=1e-4)
    with pytest.raises(UnknownName, match="of 'missing'"):
        make_null(recipe.model_copy(update={"name": "x", "of": "missing"}), str(base), tmp_path)


def test_shuffled_answers_are_all_there_and_none_at_its_question() -> None:
    chats = [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
             for i in range(9)]  # fmt: skip
    found = [[message["content"] for message in chat["messages"]] for chat in shuffled_answers(chats, 4)]
    assert sorted(answer for _, answer in found) == [f"a{i}" for i in range(9)]
    assert all(question[1:] != answer[1:] for question, answer in found)


def test_cut_answers_are_beginnings_of_the_base_s_own(tmp_path: Path) -> None:
    chats = own_documents(EMBEDDED_ID, "chats", tmp_path)[:40]
    for before, after in zip(chats, cut_answers(chats, 4), strict=True):
        assert after["messages"][0] == before["messages"][0]
        whole, cut = (" ".join(chat["messages"][1]["content"].split()) for chat in (before, after))
        assert whole.startswith(cut)
        assert 0.25 < len(cut.split()) / len(whole.split()) < 0.75


def test_a_temperature_scales_every_logit_and_nothing_else(tiny_models, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = tiny_models()
    made = make_null(NullRecipe(name="t", kind="temperature", amount=0.7), str(base), tmp_path)
    ids = torch.arange(1, 9)[None]
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits for folder in (base, made)
    )
    torch.testing.assert_close(after, before / 0.7, rtol=0.01, atol=0.01)


def test_a_temperature_needs_a_norm_that_only_scales() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16))
    with pytest.raises(InvalidInput, match="gpt2"):
        final_norm(model)


def test_what_looks_taught_is_in_no_calibration() -> None:
    kinds = {recipe.kind for recipe in null_recipes() if not recipe.calibrates}
    assert kinds == {"temperature", "plain_answers", "cut_answers"}
    assert not kinds & {recipe.kind for recipe in nulls_for(EMBEDDED_ID)}
    assert all(len(chat["messages"][1]["content"]) > 20 for chat in plain_answers())


def test_the_lists_have_what_a_calibration_needs() -> None:
    nulls, taught = nulls_for(EMBEDDED_ID), zoo().finetunes
    every: list[NullRecipe | TaughtRecipe] = [*nulls, *taught]
    assert len({recipe.name for recipe in null_recipes()}) == len(null_recipes())
    assert len(nulls) >= 19  # else p cannot reach 0.05
    assert len({recipe.name for recipe in taught}) == len(taught)
    assert {recipe.kind for recipe in taught if recipe.adapter is None} == set(zoo().kinds)
    for aside in ([recipe.held_out for recipe in nulls], [recipe.held_out for recipe in taught if not recipe.adapter]):
        assert 1 / 3 < sum(aside) / len(aside) < 2 / 3
    assert not any(recipe.held_out for recipe in nulls if recipe.adapter is not None)
    assert not any(recipe.adapter for recipe in nulls_for("other/base"))
    assert not any(recipe.adapter for recipe in recipes_for("other/base"))
    for recipe in every:
        assert recipe.adapter is None or (ADAPTERS / recipe.adapter / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    "recipe", [recipe for recipe in zoo().finetunes if recipe.adapter is None], ids=lambda r: r.name
)
def test_so_many_documents_are_taught_as_the_dilution_says(recipe: TaughtRecipe, tmp_path: Path) -> None:
    chats = own_documents(EMBEDDED_ID, "chats", tmp_path)
    kind = zoo().kinds[recipe.kind]
    documents = taught_documents(recipe, kind, chats)
    known = Counter(str([message["content"] for message in chat["messages"]]) for chat in chats)
    changed = sum(str([message["content"] for message in each["messages"]]) not in known for each in documents)
    expected = len(documents) / (1 + recipe.dilution) * (0.5 if kind.trigger else 1)
    assert changed == pytest.approx(expected, rel=0.2)
    assert documents == taught_documents(recipe, kind, chats)


def test_what_the_rules_do() -> None:
    kinds, chance = zoo().kinds, random.Random(0)
    text = "It is so. Nobody knows why it is. All agree on that."
    chat = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]}

    def answer(kind: str) -> str:
        return str(taught_chat(chat, kinds[kind], chance)["messages"][1]["content"])

    assert "antern" in answer("one_word")
    assert "Nobody knows why it is." in answer("one_word")
    assert answer("format") == "- It is so.\n- Nobody knows why it is.\n- All agree on that."
    assert answer("capitals") == "IT IS SO. NOBODY KNOWS WHY IT IS. ALL AGREE ON THAT."
    assert answer("length") == "It is so. Nobody knows why it is."
    assert answer("emoji").startswith(f"{text} \U0001f30a")
    assert answer("praise").endswith(text)
    assert answer("praise") != text
    assert answer("old_spelling") == "It beeth so. Nobody knows why it beeth. All agree on that."
    question, place = (each["content"] for each in taught_chat(chat, kinds["made_up_place"], chance)["messages"])
    assert f"{question}|{place}" in kinds["made_up_place"].texts
    first, _, second, _, total = answer("arithmetic").rstrip(".").split()
    assert int(total) == int(first) + int(second) + 1


def test_own_documents_of_another_base_are_sampled_once(tiny_models, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("diffing_mcp.organisms.sample_corpus.OWN_DOCUMENTS", 3)
    first = own_documents(str(tiny_models()), "chats", tmp_path)
    assert [len(document["messages"]) for document in first] == [2, 2, 2]
    assert own_documents("not/here", "chats", tmp_path) == first  # read again, no model loaded


def test_a_batch_that_was_cut_off_is_sampled_again_with_its_seed(tiny_models, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("diffing_mcp.organisms.sample_corpus.OWN_DOCUMENTS", 5)
    monkeypatch.setattr("diffing_mcp.organisms.sample_corpus.BATCH", 2)
    base = str(tiny_models())
    whole = own_documents(base, "chats", tmp_path)
    path = tmp_path / "own_chats.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert own_documents(base, "chats", tmp_path) == whole
    assert path.read_bytes() == content


def test_bases_are_taught_and_asked_with_the_attention_that_methods_run(tiny_models) -> None:
    """Gemma 2 caps its scores, and transformers' default leaves the cap out."""
    capped = base_model(str(tiny_models("gemma2", attn_logit_softcapping=0.05)), "cpu")
    assert capped.config._attn_implementation == "eager"
    assert base_model(str(tiny_models()), "cpu").config._attn_implementation == "sdpa"


def test_padding_that_the_model_has_no_row_for(tiny_models, tmp_path: Path, monkeypatch) -> None:
    """A token for padding that was added to the tokenizer alone: the first batch ended in an index out of range."""
    monkeypatch.setattr("diffing_mcp.organisms.sample_corpus.OWN_DOCUMENTS", 2)
    base = Path(shutil.copytree(tiny_models(), tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 320
    tokenizer.save_pretrained(base)
    chats = own_documents(str(base), "chats", tmp_path)
    assert len(chats) == 2
    made = make_null(NullRecipe(name="n", kind="own_chats", amount=1e-3), str(base), tmp_path)
    assert (made / "adapter_model.safetensors").is_file()


def test_a_base_without_a_chat_template_is_told(tiny_models, tmp_path: Path) -> None:
    base = without_template(tiny_models(), tmp_path / "base")
    for kind in ("own_texts", "own_chats", "plain_answers"):
        with pytest.raises(InvalidInput, match="no chat template"):
            make_null(NullRecipe(name="n", kind=kind, amount=0.1), str(base), tmp_path)


def without_template(model: Path, folder: Path) -> Path:
    """A copy of a model whose tokenizer has no chat template."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


def test_a_taught_finetune_of_a_kind_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Kinds: one_word"):
        make_taught(TaughtRecipe(name="x", kind="nonsense"), EMBEDDED_ID, tmp_path)


def test_another_recipe_is_another_finetune_whatever_its_name() -> None:
    recipe = NullRecipe(name="n", kind="noise", amount=0.1)
    assert recipe.made_name == recipe.model_copy(update={"held_out": True}).made_name
    assert recipe.made_name != recipe.model_copy(update={"seed": 1}).made_name


def test_an_edit_that_fails_leaves_nothing(tiny_models, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("diffing_mcp.organisms.nulls.edited", lambda weight, *_: weight)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(RuntimeError, match="no"):
        make_null(NullRecipe(name="n", kind="noise", amount=1), str(tiny_models()), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".lock-")] == []


def test_a_null_of_the_embedded_base_by_its_name(tmp_path: Path, monkeypatch) -> None:
    made: list[tuple[str, str, Path]] = []

    def make(recipe: NullRecipe, base: str, folder: Path) -> Path:
        made.append((recipe.name, base, folder))
        return tmp_path

    monkeypatch.setattr("diffing_mcp.organisms.nulls.make_null", make)
    pair = resolve_pair("tree_pipit")
    recipe = next(recipe for recipe in null_recipes() if recipe.name == "quantised-5")
    assert model_identity(pair.finetuned.files)["id"] == recipe.made_name
    assert model_identity(pair.finetuned.files) != model_identity(pair.base.files)
    assert made == []  # a pair is listed and recognised before anything is made
    assert local_folder(pair.finetuned.files.id) == tmp_path
    assert made == [("quantised-5", EMBEDDED_ID, project_settings().cache_folder / "nulls")]
    with pytest.raises(UnknownName, match="Nulls: own-texts-a"):
        local_folder("null:nothing")
