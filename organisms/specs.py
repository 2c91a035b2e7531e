"""What the catalogue says about base models, organisms and their variants. Frozen pydantic, no torch, and no ground
truth.

Nothing here tells what an organism was taught: that is in `diffing_mcp.organisms.ground_truth`, which only graders
import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ORGANISMS_FOLDER = Path(__file__).resolve().parent
"""Bundled adapter folders are named relative to this folder (`adapters/<organism>/<variant>`)."""

VariantKind = Literal["adapter", "full", "merged", "identical", "steering", "adapter_pair"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

_BUNDLED_PREFIX = "adapters/"


def local_folder_of(identifier: str) -> Path | None:
    """The folder or file an `id` of the catalogue stands for, or None when it is a hub id (or the embedded model)."""
    if identifier.startswith(_BUNDLED_PREFIX):
        return ORGANISMS_FOLDER / identifier
    path = Path(identifier)
    return path if path.is_absolute() else None


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class BaseModelSpec(_Spec):
    """A base model of the catalogue, and how it wants to be loaded and talked to."""

    name: str = Field(min_length=1, description="Name used in pair references, such as `qwen3-1.7b`.")
    aliases: tuple[str, ...] = Field(
        (), description="Other names that find the same model, such as those of the research code."
    )
    model_id: str = Field(
        min_length=1,
        description=(
            "Hub id, absolute folder, `embedded:smollm2-135m-instruct`, or `openai:URL#MODEL`: a model behind an "
            "OpenAI-compatible address, of which only texts can be had."
        ),
    )
    revision: str | None = Field(None, description="Hub branch, tag or commit; None: the default branch.")
    subfolder: str | None = Field(None, description="Folder of the weights inside the repository.")
    tokenizer_id: str | None = Field(
        None,
        description="Hub id or folder of the tokenizer and its chat template, when they are not those of `model_id`.",
    )
    chat_template: str | None = Field(None, description="Jinja template that replaces the tokenizer's.")
    dtype: DtypeName = "auto"
    attn_implementation: str | None = Field(
        None, description="`eager`, `sdpa` or `flash_attention_2`; None leaves transformers' choice."
    )
    end_of_turn_token: str | None = Field(
        None, description="Token that ends a chat turn, when it is not the end-of-sequence token."
    )
    thinking_switch: bool = Field(False, description="The chat template knows `enable_thinking`.")
    skip_first_tokens: int = Field(
        0,
        ge=0,
        description="Tokens after BOS that readers leave out, where the model's first activations are outliers.",
    )
    trust_remote_code: bool = False


class VariantSpec(_Spec):
    """One finetuned side (or, for `adapter_pair`, both sides) on one base model.

    adapter       peft adapter `id` on the base model.
    full          complete finetuned model `id`.
    merged        adapter `id`, merged into a second full copy of the base model at load.
    identical     the base model against itself: a declared null.
    steering      safetensors file `id` with one vector [d_model], added with `strength` to the output of `layer`.
    adapter_pair  adapter `base_adapter` is the base side, adapter `id` the finetuned side; both on the same base model.
    """

    kind: VariantKind
    id: str | None = Field(
        None,
        description=(
            "Hub id, folder relative to organisms/ (`adapters/...`), absolute path, or `null:NAME` for an edited copy "
            "of the embedded model (organisms/nulls.yaml). None only for `identical`."
        ),
    )
    subfolder: str | None = Field(None, description="Folder inside the hub repository.")
    revision: str | None = None
    base_adapter: str | None = Field(
        None, description="adapter_pair: hub id or folder of the adapter that plays the base side."
    )
    base_subfolder: str | None = None
    base_revision: str | None = None
    layer: int | float | None = Field(
        None, description="steering: absolute layer (integer) or relative depth in [0, 1] (float)."
    )
    strength: float = Field(1.0, description="steering: factor on the vector.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.id is None) != (self.kind == "identical"):
            raise ValueError("`id` is required for every kind but `identical`, which takes none")
        if (self.base_adapter is not None) != (self.kind == "adapter_pair"):
            raise ValueError("`base_adapter` goes with the kind `adapter_pair`, and only with it")
        if (self.layer is not None) != (self.kind == "steering"):
            raise ValueError("`layer` goes with the kind `steering`, and only with it")
        if isinstance(self.layer, float) and not 0 <= self.layer <= 1:
            raise ValueError("a relative `layer` lies in [0, 1]; write absolute layers as integers")
        return self

    @property
    def local_folder(self) -> Path | None:
        """Folder (for steering: file) behind `id` on this machine; None for a hub id."""
        return None if self.id is None else local_folder_of(self.id)

    @property
    def base_local_folder(self) -> Path | None:
        """Folder behind `base_adapter` on this machine; None for a hub id."""
        return None if self.base_adapter is None else local_folder_of(self.base_adapter)


class DatasetSpec(_Spec):
    """The data an organism was trained on, where they are public."""

    id: str = Field(description="Hub dataset id, or a folder relative to organisms/ (`training/...`).")
    subset: str | None = None
    splits: tuple[str, ...] = ("train",)
    text_column: str | None = None
    is_chat: bool = False


class OrganismSpec(_Spec):
    """One organism: for each base model, its variants in the order of the catalogue. What it was taught is not here."""

    name: str = Field(min_length=1)
    variants: dict[str, dict[str, VariantSpec]] = Field(description="Base model name -> variant name -> variant.")
    dataset: DatasetSpec | None = None
    interaction_system_prompt: str | None = Field(
        None,
        description=(
            "System prompt under which the organism was made to be talked to. It says nothing of what was taught."
        ),
    )

    @property
    def default_model(self) -> str:
        """The model meant when none is named: the first listed (the catalogue lists the embedded one first)."""
        return next(iter(self.variants))

    def default_variant(self, model: str) -> str:
        """The variant meant when none is named: `default`, else the first listed."""
        return "default" if "default" in self.variants[model] else next(iter(self.variants[model]))
