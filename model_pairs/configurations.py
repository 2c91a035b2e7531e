"""What the configurations of two models make them compute differently, whatever their weights are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from diffing_mcp.core.text import clip

_MEANINGLESS = frozenset(
    (
        "transformers_version architectures auto_map name_or_path dtype torch_dtype use_cache bos_token_id "
        "eos_token_id pad_token_id sep_token_id decoder_start_token_id initializer_range embedding_initializer_range "
        "router_aux_loss_coef router_z_loss_coef router_jitter_noise output_router_logits output_attentions "
        "output_hidden_states return_dict chunk_size_feed_forward problem_type id2label label2id num_labels "
        "task_specific_params finetuning_task pretraining_tp tokenizer_class vocab_size"
    ).split()
)
"""Fields that no forward pass reads, that sampling alone reads, or that are checked elsewhere (how large the vocabulary
is)."""
_MEANINGLESS_ENDS = ("dropout", "dropout_prob", "_drop", "_pdrop", "dropout_rate")
"""Of fields that are read in training alone."""
_SHOWN, _CHARACTERS = 6, 60


def config_differences(base: Any, finetuned: Any) -> tuple[str, ...]:
    """Fields of two transformers configurations that may make equal weights compute differently, with both values.

    Fields that nobody here knows count: better to say too much than to call two models identical.
    """
    one, other = (dict(_fields(config.get_text_config().to_dict(), "")) for config in (base, finetuned))
    return tuple(
        f"{name} is {_shown(one, name)} in the base model, {_shown(other, name)} in the finetuned one"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    )


def config_remarks(differences: Sequence[str]) -> list[str]:
    """What is to be said of them beside every result."""
    if not differences:
        return []
    more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return [
        f"The models' configurations differ, which shows in no weight: {'; '.join(differences[:_SHOWN])}{more}. Each "
        "side runs by its own; amplified finetunes run by the base model's."
    ]


def _fields(values: dict[Any, Any], within: str) -> Iterator[tuple[str, Any]]:
    """Every field that may mean something, those of nested objects by their path. What is empty is as if it were not
    there.
    """
    for key, value in values.items():
        name = str(key)
        plain = name.startswith(("_", "unsloth")) or name in _MEANINGLESS or name.endswith(_MEANINGLESS_ENDS)
        if plain or value is None:
            continue
        if isinstance(value, dict):
            yield from _fields(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def _shown(fields: dict[str, Any], name: str) -> str:
    return clip(str(fields[name]), _CHARACTERS)[0] if name in fields else "not set"
