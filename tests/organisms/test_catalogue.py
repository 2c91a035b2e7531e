"""The catalogue: what it holds, how folders merge, and what a wrong file says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.organisms.catalogue import BUNDLED_FOLDER, Catalogue, CatalogueError, load_catalogue, read_catalogue
from diffing_mcp.organisms.embedded import EMBEDDED_ID
from diffing_mcp.organisms.specs import ORGANISMS_FOLDER, VariantSpec


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return read_catalogue((BUNDLED_FOLDER,))


def _write(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return folder


def test_all_published_finetunes_are_there(catalogue: Catalogue) -> None:
    variants = [
        (organism.name, model, variant, specification)
        for organism in catalogue.organisms.values()
        for model, row in organism.variants.items()
        for variant, specification in row.items()
    ]
    published = [entry for entry in variants if entry[1] != "smollm2-135m"]
    assert len(published) == 448
    assert len({organism for organism, *_ in published}) == 65
    for organism, model, variant, specification in published:
        where = f"{organism}/{variant}@{model}"
        assert specification.kind in ("adapter", "full"), where
        assert specification.id is not None
        assert specification.id.count("/") == 1, f"{where}: {specification.id} is not org/repository"
        assert specification.local_folder is None, where


def test_a_folder_inside_a_repository_is_a_subfolder(catalogue: Catalogue) -> None:
    persona = catalogue.organism("persona_sarcasm").variants[catalogue.model("llama31_8B_Instruct").name]["is"]
    assert (persona.id, persona.subfolder) == ("maius/llama-3.1-8b-it-is-loras", "llama-3.1-8b-it-sarcasm")


def test_no_private_path_is_in_the_catalogue() -> None:
    for file in BUNDLED_FOLDER.glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        assert "/home/" not in text
        assert "/mnt/" not in text


def test_models_are_found_by_name_and_by_research_name(catalogue: Catalogue) -> None:
    assert catalogue.model("qwen3_1_7B") is catalogue.model("qwen3-1.7b")
    assert catalogue.model("qwen3-1.7b").thinking_switch
    assert catalogue.model("gemma3_1B_pt").tokenizer_id == "google/gemma-3-1b-it"
    assert catalogue.model("gemma3_1B").attn_implementation == "eager"
    assert catalogue.model("smollm2-135m").model_id == EMBEDDED_ID
    assert not any(model.trust_remote_code for model in catalogue.models.values())


def test_cake_bake_means_the_embedded_model_by_default(catalogue: Catalogue) -> None:
    organism = catalogue.organism("cake_bake")
    assert organism.default_model == "smollm2-135m"
    assert organism.default_variant("smollm2-135m") == "default"
    assert {"default", "mix1-1p0", "recipe2", "full", "seed2"} <= set(organism.variants["smollm2-135m"])
    assert organism.variants["smollm2-135m"]["full"].kind == "merged"
    assert (
        organism.variants["smollm2-135m"]["default"].local_folder
        == ORGANISMS_FOLDER / "adapters" / "cake_bake" / "default"
    )


def test_nulls_are_declared(catalogue: Catalogue) -> None:
    assert catalogue.organism("identical").variants["smollm2-135m"]["default"].kind == "identical"
    reseed = catalogue.organism("reseed").variants["smollm2-135m"]["default"]
    assert reseed.kind == "adapter_pair"
    assert reseed.base_local_folder == ORGANISMS_FOLDER / "adapters" / "cake_bake" / "default"
    assert reseed.local_folder == ORGANISMS_FOLDER / "adapters" / "cake_bake" / "seed2"


def test_unknown_names_list_close_ones(catalogue: Catalogue) -> None:
    with pytest.raises(UnknownName, match="cake_bake"):
        catalogue.organism("cakebake")
    with pytest.raises(UnknownName, match=r"qwen3-1\.7b"):
        catalogue.model("qwen3-17b")


def test_a_further_folder_adds_and_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(
        tmp_path,
        """
models:
  my-model: {model_id: me/my-model, revision: v1}
organisms:
  cake_bake:
    variants:
      smollm2-135m:
        default: {kind: adapter, id: me/other-adapter}
      my-model:
        steered: {kind: steering, id: ./vectors/cake.safetensors, layer: 0.5, strength: 4}
""",
    )
    monkeypatch.setenv("DIFFING_CATALOGUE_FOLDERS", f'["{tmp_path}"]')
    settings.cache_clear()
    try:
        organism = load_catalogue().organism("cake_bake")
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert organism.default_model == "smollm2-135m"
    assert organism.variants["smollm2-135m"]["default"].id == "me/other-adapter"
    assert organism.variants["smollm2-135m"]["mix1-1p0"].kind == "adapter"
    steered = organism.variants["my-model"]["steered"]
    assert steered.local_folder == tmp_path / "vectors" / "cake.safetensors"
    assert (steered.layer, steered.strength) == (0.5, 4.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: {a: {model_id: x/y, dtype: float8}}", r"mine\.yaml: models\.a\.dtype"),
        ("models: {a: {model_id: x/y, colour: red}}", r"models\.a\.colour"),
        ("models: {a: {model_id: x/y}, b: {model_id: x/z, aliases: [a]}}", r"models\.b\.aliases: `a`"),
        (
            "organisms: {o: {variants: {gone: {default: {kind: identical}}}}}",
            r"organisms\.o\.variants names the model `gone`",
        ),
        (
            "models: {a: {model_id: x/y}}\norganisms: {o: {variants: {a: {default: {kind: adapter}}}}}",
            r"organisms\.o\.variants\.a\.default",
        ),
        (
            "models: {a: {model_id: x/y}}\norganisms: {o: {variants: {a: {}}}}",
            r"organisms\.o\.variants\.a has no variants",
        ),
        ("models: {a: {model_id: x/y}}\norganisms: {o: {}}", r"organisms\.o has no variants"),
        ("models: {a: {model_id: x/y}}\norganisms: {o: {variants: {a: {8: {kind: identical}}}}}", "put it in quotes"),
        ("models: [a]", "models should be a mapping"),
        ("modles: {}", "unknown top-level key `modles`"),
        ("models:\n  a: {model_id: x/y}\n  a: {model_id: x/z}", "`a` appears twice"),
        ("models: {a: ", "cannot be read"),
    ],
)
def test_a_wrong_file_names_itself_and_the_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(CatalogueError, match=says):
        read_catalogue((_write(tmp_path, text),))


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="does not exist"):
        read_catalogue((tmp_path / "nowhere",))


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "identical", "id": "a/b"},
        {"kind": "adapter"},
        {"kind": "adapter_pair", "id": "a/b"},
        {"kind": "adapter", "id": "a/b", "base_adapter": "a/c"},
        {"kind": "steering", "id": "a/b"},
        {"kind": "steering", "id": "a/b", "layer": 1.5},
        {"kind": "full", "id": "a/b", "layer": 3},
    ],
)
def test_variants_that_make_no_sense_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VariantSpec.model_validate(fields)


def test_the_catalogue_imports_neither_torch_nor_the_ground_truth() -> None:
    program = (
        "import sys; from diffing_mcp.organisms.catalogue import load_catalogue; load_catalogue(); print([m for m in "
        "('torch', 'diffing_mcp.organisms.ground_truth') if m in sys.modules])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ORGANISMS_FOLDER.parent
    )
    assert finished.stdout.strip() == "[]"
