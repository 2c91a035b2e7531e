"""What a pair is made of: two sources of a model each. Frozen pydantic, no torch, nothing is loaded here.

A side of a pair is a model (hub id, local folder or the embedded one), with an adapter on it, or with a steering
vector, or bare. `fingerprint.pair_identity` states everything that decides what the pair computes and is what runs are
keyed by.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.model_pairs.endpoints import is_endpoint

Side = Literal["base", "finetuned"]
SIDES: tuple[Side, Side] = ("base", "finetuned")

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelFiles(_Frozen):
    """The weights and the tokenizer of one complete model."""

    id: str = Field(min_length=1, description="Hub id, local folder, `embedded:smollm2-135m-instruct`, or an endpoint.")
    revision: str | None = Field(None, description="Hub branch, tag or commit; none: the default branch.")
    subfolder: str | None = Field(None, description="Folder of the weights inside the repository or folder.")
    tokenizer_id: str | None = Field(
        None, description="Hub id or folder of the tokenizer when it is not with the weights."
    )
    chat_template: str | None = Field(None, description="Jinja template that replaces the tokenizer's.")
    end_of_turn_token: str | None = Field(
        None, description="Token that ends a chat turn when it is not the end-of-sequence token."
    )
    dtype: DtypeName = Field(
        "auto",
        description=(
            "`auto`: as stored in the checkpoint (16 bits become float32 on a CPU that has no instructions for them). "
            "The two sides of a pair run in one type, float32 when theirs are unequal."
        ),
    )
    attn_implementation: str | None = None
    thinking_switch: bool = Field(False, description="The chat template knows `enable_thinking`.")
    trust_remote_code: bool = False


class AdapterFiles(_Frozen):
    """A peft LoRA adapter: hub id or local folder with adapter_config.json and adapter_model.safetensors."""

    id: str = Field(min_length=1)
    revision: str | None = None
    subfolder: str | None = None


class SteeringFiles(_Frozen):
    """A vector added to the residual stream after one layer, at every token."""

    path: str = Field(min_length=1, description="safetensors file holding exactly one vector [d_model].")
    layer: int | float = Field(description="Absolute layer (int) or relative depth in [0, 1] (float).")
    strength: float = Field(1.0, description="Factor on the stored vector.")


class ModelSource(_Frozen):
    """One side of a pair: complete model, then at most an adapter, then at most a steering vector."""

    files: ModelFiles
    adapter: AdapterFiles | None = None
    merge: bool = Field(
        False,
        description="Merge the adapter into a full model of its own at load, instead of switching it on a shared base.",
    )
    steering: SteeringFiles | None = None

    @property
    def remote(self) -> bool:
        """Whether it is reachable by URL alone: see `diffing_mcp.model_pairs.endpoints`."""
        return is_endpoint(self.files.id)


class PairSpec(_Frozen):
    """Two sources to compare."""

    name: str
    base: ModelSource
    finetuned: ModelSource
    declared_identical: bool = Field(
        False, description="The two sides are known to be the same (a null): no error when they are."
    )
    organism: str | None = None
    variant: str | None = None
    model: str | None = Field(None, description="Catalogue name of the base model.")

    @property
    def remote(self) -> bool:
        """Whether a side is reachable by URL alone, so that only texts can be had of the pair."""
        return self.base.remote or self.finetuned.remote


class PairSummary(_Frozen):
    """One line of the list of pairs."""

    name: str
    organism: str
    variant: str
    model: str
    available_offline: bool = Field(description="All its files are on this machine; else loading it downloads them.")
