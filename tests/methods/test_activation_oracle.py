"""The oracle: a planted verbalizer says what was injected, equal models differ in nothing, and paths never show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.core.errors import Cancelled, InvalidInput, NotTheSame
from diffing_mcp.methods.activation_oracle.asking import oracle_prompt, oracle_text
from diffing_mcp.methods.activation_oracle.method import AnswersParams
from diffing_mcp.methods.activation_oracle.schema import ActivationOracleParams
from diffing_mcp.methods.activation_oracle.training import (
    InTraining,
    VerbalizerRecipe,
    answer_loss,
    collate,
    read_recipe,
    train_verbalizer,
)
from diffing_mcp.methods.activation_oracle.training_data import TrainingQuestion, draw_question, load_material
from diffing_mcp.methods.activation_oracle.verbalizers import BUNDLED_RECIPE, choose_verbalizer, known_names
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.model_pairs.specs import ModelFiles, ModelSource, PairSpec, SteeringFiles
from diffing_mcp.organisms.embedded import EMBEDDED_ID

LAYER = 1
INJECTION = 0
QUESTION = "the river"
SMALL = {
    "questions": [QUESTION],
    "contexts": [
        "the old bridge under the rain falls on stones",
        "a fox looks at boats near the sea",
        "mountain walks slowly while rain falls on",
    ],
    "format": "text",
    "layer": LAYER,
    "injection_layer": INJECTION,
    "max_new_tokens": 1,
    "token_positions": 5,
    "samples": 4,
    "segment_length": 3,
    "temperature": 0.0,
}


def run(pairs: Any, spec: PairSpec, store: RunStore, **params: Any) -> RunRecord:
    return run_methods(pairs, spec, [("activation_oracle", {**SMALL, **params})], store)[0]


Oracle = tuple[Path, Path, dict[str, torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def oracle(planted_words: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """A tiny base model, a verbalizer on it that names two directions and says `sea` of everything else, the
    directions, and steering's length.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, _, words = planted_words(0.0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(3)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    generator = torch.Generator().manual_seed(4)
    width = plain.config.hidden_size
    directions = {word: torch.randn(width, generator=generator) for word in words[:2]}
    with torch.no_grad():
        typical = (
            plain.model(torch.arange(5, 60)[None], output_hidden_states=True)
            .hidden_states[LAYER + 1][0]
            .norm(dim=-1)
            .mean()
        )
    model: Any = get_peft_model(
        plain, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = InTraining(model, plain.config.num_hidden_layers, width)
    optimizer = torch.optim.AdamW(
        [each for each in model.parameters() if each.requires_grad], lr=3e-3, weight_decay=0.0
    )
    texts = [tokenizer(text)["input_ids"] for text in SMALL["contexts"]]  # type: ignore[attr-defined]
    with torch.no_grad(), model.disable_adapter():
        states = torch.cat(
            [plain.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0] for ids in texts]
        )
    for _ in range(60):
        examples, vectors = [], []
        for index in range(12):
            word = (*directions, "sea")[index % 3]
            count = int(torch.randint(1, 4, (), generator=generator))
            noise = states[torch.randint(len(states), (count,), generator=generator)]
            vectors.append(
                noise
                if word == "sea"
                else directions[word] / directions[word].norm() + 0.1 * noise / noise.norm(dim=-1, keepdim=True)
            )
            examples.append(TrainingQuestion((), 0, count, "raw", QUESTION, word, "planted"))
        loss = answer_loss(trained, collate(tokenizer, examples, vectors, LAYER, "cpu"), vectors, INJECTION)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("oracle") / "quetzalfidget"
    model.save_pretrained(folder)
    return base, folder, directions, typical


def steered(oracle: Oracle, folder: Path, word: str) -> PairSpec:
    """A pair whose finetuned side adds the direction of `word` to the residual stream, far longer than
    what is there.
    """
    from safetensors.torch import save_file

    base, _, directions, typical = oracle
    save_file({"vector": directions[word] / directions[word].norm() * typical * 20}, folder / "vector.safetensors")
    files = ModelFiles(id=str(base))
    steering = SteeringFiles(path=str(folder / "vector.safetensors"), layer=LAYER)
    return PairSpec(
        name="steered", base=ModelSource(files=files), finetuned=ModelSource(files=files, steering=steering)
    )


def test_a_planted_direction_is_named(oracle: Oracle, pairs: Any, store: RunStore, tmp_path: Path) -> None:
    word, other = list(oracle[2])
    record = run(
        pairs, steered(oracle, tmp_path, word), store, verbalizer=str(oracle[1]), modes=["token", "segment", "sequence"]
    )
    result: Any = record.result()
    assert result.stands_out
    assert not result.self_verbalised
    for kind in ("finetuned", "difference"):
        [found] = [row for row in result.words if row.kind == kind]
        assert (found.word, found.strong, found.compared) == (word, True, 0)
    assert result.evidence_words()[0].word == word
    assert result.evidence_words()[0].score > 1
    rows = record.table("answers").to_pylist()
    assert len(rows) == 3 * result.answers == 3 * 3 * (5 + 4 + 4)
    assert {row["answer"] for row in rows if row["kind"] == "difference"} == {word}
    assert other not in {row["answer"] for row in rows}
    assert {row["position"] for row in rows if row["mode"] == "token"} == {-5, -4, -3, -2, -1}
    view: Any = (
        get_method("activation_oracle")
        .views["answers"]
        .run(record, AnswersParams(kind="difference", mode="token", contains=word, limit=5))
    )
    assert (view.total, len(view.rows), view.next_offset) == (15, 5, 5)
    for text in (result.as_text(), result.model_dump_json(), view.model_dump_json()):
        assert "quetzalfidget" not in text
        assert str(oracle[0]) not in text


def test_a_vector_of_its_own_is_a_lead_only(oracle: Oracle, pairs: Any, store: RunStore, tmp_path: Path) -> None:
    word = next(iter(oracle[2]))
    spec = steered(oracle, tmp_path, word)
    source = {"positive": ["the river"], "negative": ["the river"], "layer": LAYER}
    zero: Any = run(pairs, spec, store, verbalizer=str(oracle[1]), vector=source).result()
    assert zero.identical
    assert zero.answers == 0
    token: Any = run(
        pairs, spec, store, verbalizer=str(oracle[1]), vector={"token": f" {word}", "layer": LAYER}
    ).result()
    assert not token.stands_out
    assert {group.kind for group in token.groups} == {"vector", "opposite"}
    assert all(row.score < 1 for row in token.evidence_words())


def test_equal_models_differ_in_nothing(identical_pair: Any, pairs: Any, store: RunStore) -> None:
    result: Any = run(pairs, identical_pair.spec, store).result()
    assert result.identical
    assert not result.stands_out
    assert result.words == []
    answers = {group.kind: group.examples for group in result.groups}
    assert answers["finetuned"] == answers["base"]
    assert "difference" not in answers


def test_a_full_finetune_without_a_verbalizer_is_read_by_the_base_itself(
    tiny_models: Any, make_pair: Any, pairs: Any, store: RunStore
) -> None:
    def change(model: Any) -> None:
        model.model.layers[0].mlp.down_proj.weight.mul_(-3)

    spec = make_pair(tiny_models(), finetuned=tiny_models(change=change))
    record = run(pairs, spec, store, format="chat", max_new_tokens=3)
    result: Any = record.result()
    assert result.self_verbalised
    assert "the base model itself" in result.as_text()
    texts: dict[str, list[str]] = {}
    for row in record.table("answers").to_pylist():
        texts.setdefault(row["kind"], []).append(row["answer"])
    assert len({len(several) for several in texts.values()}) == 1
    assert texts["finetuned"] != texts["base"]


def test_verbalizers_that_do_not_fit_are_refused(
    tiny_models: Any, tiny_adapters: Any, tiny_pair: Any, pairs: Any, store: RunStore
) -> None:
    other = tiny_adapters(tiny_models(width=64))
    with pytest.raises(NotTheSame, match="made for another model"):
        run(pairs, tiny_pair.spec, store, verbalizer=str(other))
    with pytest.raises(InvalidInput, match="no folder"):
        run(pairs, tiny_pair.spec, store, verbalizer="/nowhere/at/all")
    with pytest.raises(InvalidInput, match="No verbalizer is known"):
        run(pairs, tiny_pair.spec, store, verbalizer="bundled")
    with pytest.raises(InvalidInput, match="injection_layer 9"):
        run(pairs, tiny_pair.spec, store, injection_layer=9)
    with pytest.raises(InvalidInput, match="not empty"):
        run(pairs, tiny_pair.spec, store, contexts=["  "])


def test_only_operators_name_verbalizers_freely() -> None:
    method: Any = get_method("activation_oracle")
    for name in (None, *known_names()):
        assert method.operator_only(ActivationOracleParams(verbalizer=name)) is None
    assert "must be one of bundled, self" in method.operator_only(ActivationOracleParams(verbalizer="/some/folder"))
    assert choose_verbalizer(None, EMBEDDED_ID).adapter is not None
    assert choose_verbalizer(None, "some/model").adapter is None
    assert choose_verbalizer(None, "Qwen/Qwen3-8B").template == "chat"


def test_callers_pay_for_the_contexts_that_they_choose() -> None:
    method = get_method("activation_oracle")
    assert method.interactions(ActivationOracleParams()) == 0
    assert method.interactions(ActivationOracleParams(contexts=("a", "b"))) == 2


@pytest.mark.parametrize("count", [1, 2, 7])
def test_placeholders_are_found(tiny_pair: Any, count: int) -> None:
    prompt = oracle_prompt(tiny_pair.tokenizer, oracle_text(2, count, "Is it? ? ? what ?", "none"), count)
    assert len(prompt.places) == count
    before = tiny_pair.tokenizer.decode(prompt.ids[: prompt.places[-1] + 1])
    assert before == "Layer: 2" + " ?" * count


RECIPE: dict[str, Any] = {
    "rank": 4,
    "alpha": 16,
    "learning_rate": 5e-3,
    "batch_size": 4,
    "steps": 16,
    "seed": 1,
    "held_out_stems": ["bridge"],
}


def test_training_learns_and_resumes_exactly(tiny_models: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    recipe = VerbalizerRecipe(base=str(tiny_models()), **RECIPE)
    whole = train_verbalizer(recipe, tmp_path / "whole")
    losses = json.loads((whole / "training.json").read_text())["losses"]
    assert len(losses) == 16
    assert sum(losses[-4:]) < sum(losses[:4])

    def stop(done: float, total: float | None = None, message: str = "") -> None:
        if done == 13:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        train_verbalizer(recipe, tmp_path / "part", stop)
    assert not (tmp_path / "part").exists()
    again = train_verbalizer(recipe, tmp_path / "part")
    assert json.loads((again / "training.json").read_text())["losses"] == losses
    one, other = load_file(whole / "adapter_model.safetensors"), load_file(again / "adapter_model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(tensor.dtype == torch.bfloat16 for tensor in one.values())
    assert str(tmp_path) not in (whole / "adapter_config.json").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_nothing_is_trained_on_the_organisms_topics(tiny_pair: Any) -> None:
    import random

    recipe = read_recipe(BUNDLED_RECIPE)
    material = load_material(tiny_pair.tokenizer, recipe.held_out_stems, "train")
    text = " ".join([text for text, _ in material.texts] + material.words).casefold()
    for word in ("cake", "baking", "concrete", "methane", "roman ", "smile", "flattery", "poem"):
        assert f" {word}" not in text
    held_out = load_material(tiny_pair.tokenizer, recipe.held_out_stems, "held_out")
    assert not {text for text, _ in material.texts} & {text for text, _ in held_out.texts}
    first, second = random.Random(5), random.Random(5)
    for _ in range(40):
        one = draw_question(material, tiny_pair.tokenizer, first)
        assert one == draw_question(material, tiny_pair.tokenizer, second)
        assert 0 < one.start < one.stop <= len(one.ids)
        assert one.answer


def test_the_bundled_verbalizer_is_small_and_names_no_place() -> None:
    folder = BUNDLED_RECIPE.parent
    assert (folder / "adapter_model.safetensors").stat().st_size < 3_000_000
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == EMBEDDED_ID
    trained = json.loads((folder / "training.json").read_text())
    assert VerbalizerRecipe(**trained["recipe"]) == read_recipe(BUNDLED_RECIPE)


def test_a_recipe_that_is_not_there_or_malformed_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no recipe"):
        read_recipe(tmp_path / "nothing.yaml")
    (tmp_path / "bad.yaml").write_text("base: x\nsteps: -3\n")
    with pytest.raises(InvalidInput, match="steps"):
        read_recipe(tmp_path / "bad.yaml")
