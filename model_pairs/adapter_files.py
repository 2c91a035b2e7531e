"""What an adapter's folder holds, read before anything is loaded: its configuration, its tensors, and how it has to be
put on a model.

Any kind that peft itself loads for a causal language model is taken. A LoRA without special options is switched on and
off on a base that it shares with others (`PLAIN_OPTIONS`); everything else becomes a model of its own, made by peft
(`diffing_mcp.model_pairs.adapted_model`), so that no option of a configuration is ever ignored and no base is ever
changed. Torch is imported when tensors are read.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.fingerprint import adapter_hash

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
OWN_ADAPTER = "default"
"""Name of the adapter inside a model that it has to itself."""
PREFIX = "base_model.model."
"""What peft puts in front of a module's name in its files."""

PLAIN_OPTIONS = frozenset(
    (
        "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r "
        "target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out use_rslora init_lora_weights "
        "layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_core qalora_group_size loftq_config "
        "eva_config use_dora velora_config runtime_config lora_bias"
    ).split()
)
"""Options of a LoRA that decide no more than which matrices are added where: only these may differ from their defaults
on a shared base.
"""

_BEYOND_ONE_SCALING = frozenset("rank_pattern alpha_pattern fan_in_fan_out use_dora lora_bias".split())
_KEEPING_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base's weights alone."""
_REBUILT_INITS = ("pissa", "olora", "mica")
"""Initialisations made from the base's weights; peft makes the same again when it loads the adapter, on a base of its
own.
"""

_CAUSAL = ("CAUSAL_LM", None, "")
_BY_TEXT = {
    "XLORA": "mixes several other adapters by a classifier",
    "POLY": "needs a task id with every text",
    "MULTITASK_PROMPT_TUNING": "needs a task id with every text",
}


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter in its folder.

    Attributes:
        config: adapter_config.json as it is.
        shapes: of the tensors in the file, by peft's names.
    """

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def kind(self) -> str:
        """peft's name of the method: `LORA`, `IA3`, `PROMPT_TUNING` and so on."""
        return str(self.config.get("peft_type"))

    @property
    def declared_base(self) -> str | None:
        """The model that it was trained on, as the configuration says."""
        return self.config.get("base_model_name_or_path") or None

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, on the CPU as stored."""
        from safetensors.torch import load_file

        return load_file(self.folder / WEIGHTS)

    @property
    def changes_nothing(self) -> bool:
        """Whether it is certain to leave every model as it is: LoRA alone of which every B or every A is zero."""
        names = list(self.shapes)
        if self.kind != "LORA" or self.initialisation not in _KEEPING_INITS or not names:
            return False
        if any(
            name.endswith(".bias") or not any(part in name for part in (".lora_A", ".lora_B", ".lora_embedding_"))
            for name in names
        ):
            return False  # a bias acts whatever the matrices are
        return any(
            not any(
                bool(self.tensors[name].any())
                for name in names
                if f".lora_{part}" in name or f".lora_embedding_{part}" in name
            )
            for part in ("A", "B")
        )

    @property
    def initialisation(self) -> Any:
        """`init_lora_weights` of a LoRA, in lower case when it is a name."""
        value = self.config.get("init_lora_weights", True)
        return value.lower() if isinstance(value, str) else value

    def own_model_reason(self, vocabulary: int) -> str | None:
        """Why it cannot be switched on a shared base of `vocabulary` rows, in a few words; None: it can."""
        if self.kind != "LORA":
            return f"it is of the kind {self.kind}"
        special = sorted(name for name in self._set_options() if name not in PLAIN_OPTIONS)
        if special:
            return f"it uses {', '.join(special)}"
        if self.initialisation not in _KEEPING_INITS:
            return f"init_lora_weights={self.initialisation} is made from the base's weights"
        if any(".experts." in name for name in self.shapes):
            return "it changes experts"
        if (rows := self.vocabulary_rows) is not None and rows != vocabulary:
            return f"it has {rows} rows in its vocabulary"
        if self._whole_weights():
            return "it holds base weights of its own"
        if self.shapes and not any(
            f".lora_{part}" in name or "lora_embedding_" in name for name in self.shapes for part in ("A.", "B.")
        ):
            return "it holds no LoRA matrices"
        return None

    @property
    def has_one_scaling(self) -> bool:
        """Whether it is a LoRA of which A, B, `r`, `lora_alpha` and `use_rslora` say all: an engine that takes adapters
        reads no more, and applies any other wrongly without a word.
        """
        return (
            self.kind == "LORA"
            and not _BEYOND_ONE_SCALING.intersection(self._set_options())
            and all(".lora_A." in name or ".lora_B." in name for name in self.shapes)
        )

    @property
    def vocabulary_rows(self) -> int | None:
        """Rows of the embedding or unembedding that it brings whole, or changes; None: it touches neither."""
        for name, shape in self.shapes.items():
            module = name.removeprefix(PREFIX)
            last = [
                piece
                for piece in module.split(".")
                if piece in ("embed_tokens", "wte", "embed_in", "lm_head", "embed_out", "tok_embeddings")
            ]
            if not last or len(shape) != 2:
                continue
            if "lora_embedding_A" in name:
                return shape[1]
            if ".lora_B" in name and last[-1] in ("lm_head", "embed_out"):
                return shape[0]
            if name.endswith((f"{last[-1]}.weight", f"{last[-1]}.base_layer.weight")):
                return shape[0]
        return None

    @property
    def brings_all_rows(self) -> bool:
        """Whether it holds the whole input embedding, so that rows beyond the base's are known."""
        inputs = ("embed_tokens", "wte", "embed_in", "tok_embeddings")
        return any(
            name.endswith(tuple(f"{each}{middle}.weight" for each in inputs for middle in ("", ".base_layer")))
            for name in self.shapes
        )

    def _whole_weights(self) -> list[str]:
        """Names of weights that are not LoRA's."""
        return [name for name in self.shapes if ".lora_" not in name]

    def _set_options(self) -> list[str]:
        """Options that differ from their defaults."""
        defaults = _defaults(self.kind)
        return [
            name
            for name, value in self.config.items()
            if value not in (None, False, {}, [], "", "none") and value != defaults.get(name, None)
        ]


def adapter_name(folder: Path) -> str:
    """Name of an adapter inside a model: from its content, so equal adapters share one and different ones
    never clash.
    """
    return "adapter_" + adapter_hash(folder).split(":")[1][:16]


def read_adapter(folder: Path) -> StoredAdapter:
    """The adapter in a folder, checked as far as that is possible without a model.

    Raises:
        InvalidInput: files that are missing or damaged, a kind or an option that peft does not know, or one that cannot
            be compared with a base.
    """
    from safetensors import SafetensorError, safe_open

    adapter_hash(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no iterator of its own)
    except (ValueError, SafetensorError, OSError) as error:
        raise InvalidInput(
            f"The adapter's files cannot be read ({type(error).__name__}): they are damaged or incomplete."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise InvalidInput(
            "The adapter's adapter_config.json names no peft_type, so nobody can tell what its tensors mean."
        )
    stored = StoredAdapter(folder, config, shapes)
    check_supported(stored)
    return stored


def check_supported(stored: StoredAdapter) -> None:
    """Raise InvalidInput for what cannot be compared with its base, or not exactly: one sentence that says
    what to do.
    """
    config, kind = stored.config, stored.kind
    known = _defaults(kind)
    if not known:
        raise InvalidInput(
            f"peft has no adapters of the kind {kind}. Upgrade peft, or merge the adapter into a full model and name "
            "that."
        )
    if kind in _BY_TEXT:
        raise InvalidInput(
            f"An adapter of the kind {kind} {_BY_TEXT[kind]}, so it is no model that could be compared with its base."
        )
    if config.get("task_type") not in _CAUSAL:
        raise InvalidInput(
            f"The adapter was trained for {config['task_type']}; adapters of causal language models (CAUSAL_LM) can be "
            "compared."
        )
    unknown = sorted(
        name for name, value in config.items() if name not in known and value not in (None, False, {}, [], "", "none")
    )
    if unknown:
        raise InvalidInput(
            "The adapter's configuration has options that the installed peft does not know, so its effect would not be "
            f"the trained one: {', '.join(f'{name}={config[name]!r:.60}' for name in unknown)}. Upgrade peft, or merge "
            "the adapter and name the full model."
        )
    if config.get("alora_invocation_tokens"):
        raise InvalidInput(
            "This is an activated LoRA (alora_invocation_tokens): it acts only after its invocation tokens, so on most "
            "text it equals its base, and it cannot be merged. Train or save it without alora_invocation_tokens to "
            "compare it."
        )
    if config.get("layer_replication"):
        raise InvalidInput(
            f"The adapter builds another stack of layers (layer_replication={config['layer_replication']}): base and "
            "finetune have no layers in common that could be compared. Name a base model with that stack, saved in "
            "full."
        )
    init = stored.initialisation
    if kind == "LORA" and init not in (*_KEEPING_INITS, *_REBUILT_INITS):
        raise InvalidInput(
            f"The adapter was initialised with init_lora_weights={init!r}, which takes a part out of the base's "
            "weights that its files do not hold, so the trained model cannot be rebuilt exactly. Save it with peft's "
            "`path_initial_model_for_weight_conversion`, or merge it and name the full model."
        )


def _defaults(kind: str) -> dict[str, Any]:
    """Options of a kind of adapter with their default values; empty for a kind that peft does not know."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    found = next((config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if name.value == kind), None)
    if found is None:
        return {}
    values = {}
    for field in dataclasses.fields(found):
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        else:
            values[field.name] = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
    return values
