"""Names of pairs and layers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.model_pairs.layers import resolve_layer, resolve_layers
from diffing_mcp.model_pairs.resolve import list_pairs, resolve_pair


def test_every_pair_of_the_catalogue_resolves_under_its_name():
    summaries = list_pairs()
    assert summaries[0].model == "smollm2-135m"
    for summary in summaries:
        spec = resolve_pair(summary.name)
        assert (spec.organism, spec.variant, spec.model, spec.name) == (
            summary.organism,
            summary.variant,
            summary.model,
            summary.name,
        )
        if not spec.declared_identical:
            assert spec.base != spec.finetuned


def test_kinds_of_the_bundled_organisms():
    cake = resolve_pair("cake_bake")
    assert cake.name == "cake_bake/default@smollm2-135m"
    assert cake.base.adapter is None
    assert cake.finetuned.adapter is not None
    assert resolve_pair("cake_bake/full").finetuned.merge
    assert resolve_pair("identical").declared_identical
    reseed = resolve_pair("reseed")
    assert reseed.base.adapter is not None
    assert reseed.base.adapter != reseed.finetuned.adapter


def test_ad_hoc_pairs(tiny_models, tiny_adapters):
    folder = tiny_models()
    adapter = tiny_adapters(folder)
    spec = resolve_pair(f"{folder}::{adapter}")
    assert spec.base.files.id == str(folder)
    assert spec.finetuned.files == spec.base.files
    assert spec.finetuned.adapter is not None
    both = resolve_pair(f"{adapter}::{tiny_adapters(folder, seed=2)}")
    assert both.base.adapter is not None
    assert both.base.files.id == str(folder)
    assert resolve_pair(f"smollm2-135m::{adapter}").finetuned.files.id.startswith("embedded:")
    assert resolve_pair("cake_bake/seed2::cake_bake").base.adapter is not None
    full = resolve_pair(f"{folder}::{tiny_models(seed=1)}")
    assert full.finetuned.files.id == str(tiny_models(seed=1))
    hub = resolve_pair("some/model::other/thing//sub/folder")
    assert hub.finetuned.files.id == "other/thing"
    assert hub.finetuned.files.subfolder == "sub/folder"


def test_adapter_without_a_base(tiny_models, tiny_adapters, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(InvalidInput, match="does not say"):
        resolve_pair(f"{tmp_path}::{tmp_path}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="neither a model"):
        resolve_pair(f"{tmp_path / 'empty'}::{tmp_path}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cake_bakee", "Did you mean cake_bake"),
        ("cake_bake/ful", "full"),
        ("cake_bake@gpt3", "gpt2"),
        ("taboo_smile@gpt2", "exists on"),
        ("nowhere", "list_pairs"),
        ("smollm2-135m::nowhere", "nowhere"),
        ("smollm2-135m::/no/such/folder", "no folder"),
        ("org/a--b::org/finetune", "no pair or model 'org/a--b'"),
        (f"org/{'a' * 97}::org/finetune", "no pair or model"),
    ],
)
def test_unknown_names_say_what_there_is(text, words):
    with pytest.raises(UnknownName, match=words):
        resolve_pair(text)


@pytest.mark.parametrize("text", ["::", "a::", "a::b::c"])
def test_malformed_references(text):
    with pytest.raises(InvalidInput, match="BASE::FINETUNED"):
        resolve_pair(text)


@given(st.text(max_size=40))
def test_any_text_is_a_pair_or_a_clear_error(text):
    with contextlib.suppress(UnknownName, InvalidInput):
        assert resolve_pair(text).name


@given(st.integers(1, 200), st.floats(0, 1))
def test_relative_layers(num_layers, relative):
    reference = resolve_layer(relative, num_layers)
    assert reference.absolute == round(relative * (num_layers - 1))
    assert resolve_layer(reference.absolute, num_layers) == reference


def test_layers_out_of_range():
    assert [each.absolute for each in resolve_layers([0, 0.5, 1.0, 29, 15], 30)] == [0, 14, 29, 15]
    for wrong in (30, -1, 1.5, -0.1, float("nan"), True):
        with pytest.raises(InvalidInput):
            resolve_layer(wrong, 30)


def test_resolving_does_not_import_torch():
    code = (
        "import sys; from diffing_mcp.model_pairs.resolve import resolve_pair, list_pairs; resolve_pair('cake_bake'); "
        "list_pairs(); print('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
