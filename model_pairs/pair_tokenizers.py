"""Which tokenizer a pair is read with: prompts must mean the same to both sides, and an adapter may bring a tokenizer
or a chat template of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffing_mcp.core.chat import ChatMessage, has_chat_template, render_conversation
from diffing_mcp.core.errors import InvalidInput, NotTheSame
from diffing_mcp.model_pairs.checks import added_tokens, check_tokenizers
from diffing_mcp.model_pairs.files import brings_tokenizer, local_folder
from diffing_mcp.model_pairs.specs import ModelFiles, ModelSource

_TEMPLATE = "chat_template.jinja"
_ANSWER = "Forty-two."


@dataclass(frozen=True)
class PairTokenizers:
    """How the two sides of a pair are read and written.

    Attributes:
        prompts: makes the prompts of both sides.
        answers: reads what the finetuned side says, when it knows more tokens; else None.
        new_tokens: token ids that only the finetuned side's tokenizer knows, and their text.
        compared: each side brought a tokenizer, and the ids that both know mean the same.
        known: one more than the highest id that the base's tokenizer knows.
        stops: ends of sequence and of a turn by the tokenizers that are used: they end the answers of both sides.
        remarks: what a reader of results should know of the choice.
    """

    prompts: Any
    answers: Any = None
    new_tokens: Mapping[int, str] = field(default_factory=dict)
    compared: bool = False
    known: int = 0
    stops: frozenset[int] = frozenset()
    remarks: tuple[str, ...] = ()


def tokenizer_files(source: ModelSource) -> ModelFiles:
    """Where one side's tokenizer and chat template are: in the adapter's folder when they are there, else with the
    model.
    """
    if source.adapter is None:
        return source.files
    folder = local_folder(source.adapter.id, source.adapter.revision, source.adapter.subfolder)
    changes: dict[str, Any] = {}
    if brings_tokenizer(folder):
        changes["tokenizer_id"] = str(folder.resolve())
    template = folder / _TEMPLATE
    if source.files.chat_template is None and template.is_file():
        changes["chat_template"] = template.read_text(encoding="utf-8")
    return source.files.model_copy(update=changes) if changes else source.files


def choose_tokenizers(base: Any | None, finetuned: Any | None, rows: Sequence[int], of_adapter: bool) -> PairTokenizers:
    """The tokenizers of a pair whose sides bring these (None: none); the same object for both when they share one.
    `rows`: each side's vocabulary rows.

    The base's makes the prompts, with the finetuned side's chat template when the base has none. An adapter whose
    tokenizer cuts text otherwise than its base's is read with the base's, and a remark says so; for a full model that
    is an error.

    Raises:
        InvalidInput: neither side brings a tokenizer.
        NotTheSame: two full models whose ids mean different texts.
    """
    given = [each for each in (base, finetuned) if each is not None]
    if not given:
        raise InvalidInput(
            "Neither side of this pair brings a tokenizer. Name one with `tokenizer_id`, or put it in the model's "
            "folder."
        )
    first = given[0]
    known = 1 + max(index for index in first.get_vocab().values() if index < rows[0])
    if base is None or finetuned is None or base is finetuned:
        return PairTokenizers(first, known=known, stops=ends_of(first))
    remarks: list[str] = []
    try:
        check_tokenizers(base, finetuned)
        compared = True
    except NotTheSame as error:
        if not of_adapter:
            raise
        compared = False
        remarks.append(
            f"The adapter brings a tokenizer that does not fit its base's, which was used instead. {error.message}"
        )
    new_tokens = (
        {index: text for index, text in added_tokens(base, finetuned).items() if index < rows[1]} if compared else {}
    )
    prompts = base
    if not base.chat_template and finetuned.chat_template:
        # Made without the new tokens, so that prompts mean the same to both sides.
        prompts = finetuned if compared and not new_tokens else _with_template(base, finetuned.chat_template)
        remarks.append("Chats are rendered with the chat template of the finetuned side; the base model has none.")
        if torn := [repr(token) for token in new_tokens.values() if token in str(finetuned.chat_template)]:
            remarks.append(
                f"The template writes tokens that the base does not know ({', '.join(torn[:5])}): both models read "
                "them in pieces, which is not what the finetune was trained on."
            )
    elif finetuned.chat_template and finetuned.chat_template != base.chat_template:
        remarks.append("The sides have different chat templates; chats are rendered with the base model's for both.")
    starts = [_before_texts(each) for each in (base, finetuned)] if compared else []
    if len(set(starts)) > 1:
        remarks.append(
            f"The base's tokenizer puts {starts[0]} before every text, the finetuned side's {starts[1]}; texts are "
            "read with the base's by both."
        )
    if new_tokens and of_adapter:
        shown = ", ".join(repr(token) for token in list(new_tokens.values())[:5])
        remarks.append(
            f"The adapter's tokenizer knows {len(new_tokens)} more tokens than the base model's ({shown}); it reads "
            "the finetuned answers."
        )
    answers = finetuned if new_tokens else None
    stops = ends_of(prompts, base, *([finetuned] if compared else []))
    return PairTokenizers(prompts, answers, new_tokens, compared, known, stops, tuple(remarks))


def ends_of(*tokenizers: Any) -> frozenset[int]:
    """What ends an answer: ends of sequence, and the tokens that chat templates end an assistant's turn with.

    A finetune often ends its turns with a token that is no end of sequence to its base, and says so in its tokenizer
    alone; or nowhere but in the template, where a base that knows chats (Qwen 2.5) was taught some more.
    """
    found = {each.eos_token_id for each in tokenizers} | {_turn_end(each) for each in tokenizers}
    return frozenset(index for index in found if index is not None)


def _before_texts(tokenizer: Any) -> str:
    """What a tokenizer puts before every text, quoted."""
    whole, bare = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    return repr(tokenizer.decode(whole[: len(whole) - len(bare)])) if len(whole) > len(bare) else "nothing"


def _turn_end(tokenizer: Any) -> int | None:
    """The special token that stands behind an answer in the chat template; None: no template, or plain text there."""
    if not has_chat_template(tokenizer):
        return None
    turns = [ChatMessage(role="user", content="question"), ChatMessage(role="assistant", content=_ANSWER)]
    try:
        _, answer, behind = render_conversation(tokenizer, turns).rpartition(_ANSWER)
    except InvalidInput:  # whoever asks in this template is told
        return None
    if not answer:  # a template that writes answers in another way
        return None
    first = next(iter(tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"]), None)
    known = tokenizer.added_tokens_decoder.get(first)
    return first if known is not None and known.special else None


def _with_template(tokenizer: Any, template: Any) -> Any:
    """A copy of a tokenizer with another chat template."""
    result = copy.deepcopy(tokenizer)
    result.chat_template = template
    return result
