"""A loaded pair: two sides behind one interface, whatever they are made of (adapters on one base, two full models, a
steering vector).

Everything a method or a tool asks of the models goes through here, and every call holds the lock of the model that it
runs on, so threads may share a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from diffing_mcp.core.chat import (
    ChatMessage,
    has_chat_template,
    knows_thinking,
    render_chat,
    render_conversation,
)
from diffing_mcp.core.errors import InvalidInput, NotFinite, OutOfRoom
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs.adapter_files import OWN_ADAPTER
from diffing_mcp.model_pairs.amplification import mixed_side, side_in_memory
from diffing_mcp.model_pairs.forward_count import ForwardCount
from diffing_mcp.model_pairs.interventions import Intervention
from diffing_mcp.model_pairs.modules import ModulePlace, steering_place
from diffing_mcp.model_pairs.sides import Difference, LoadedSide, SideInMemory
from diffing_mcp.model_pairs.specs import SIDES, AdapterFiles, ModelSource, PairSpec, Side

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.amplification_config import WeightOf
    from diffing_mcp.model_pairs.beam_search import Beam
    from diffing_mcp.model_pairs.contrastive import ContrastiveCompletion
    from diffing_mcp.model_pairs.forward import ForwardOutput
    from diffing_mcp.model_pairs.generation import Completion, GenerationRequest, Sampling, Written
    from diffing_mcp.model_pairs.gradients import PromptAndAnswer
    from diffing_mcp.model_pairs.resident import ResidentModel
    from diffing_mcp.model_pairs.scoring import AnswerScore
    from diffing_mcp.model_pairs.weights import WeightDelta


@dataclass(frozen=True)
class LoadedPair:
    """Two sides ready to run. `num_layers`, `d_model`, `vocab_size` and `context_length` (tokens) are the same on both.

    `vocab_size` counts the token ids that both models have. A finetune may have added tokens: `new_tokens` says which,
    and `forward` gives the logits of those beyond the common part apart from the others, so that whatever compares the
    sides compares the common part.
    """

    spec: PairSpec
    tokenizer: Any
    num_layers: int
    d_model: int
    vocab_size: int
    context_length: int
    device: torch.device
    sequential: bool
    """The two models do not fit in memory together: run everything on one side inside `side_loaded(side)`, then the
    other. Calls outside of it work, but each may load a model."""
    sides: dict[Side, LoadedSide]
    on_base: Callable[[AdapterFiles | None], LoadedSide]
    """The bare base model, or it with another adapter; nothing is loaded before it is held."""
    stops: frozenset[int] = frozenset()
    """Ends of sequence by the tokenizers of both sides: they end a completion of either, besides what the model's own
    files say (`stop_ids`)."""
    new_tokens: Mapping[int, str] = field(default_factory=dict)
    """Token ids that only the finetuned tokenizer knows, and their text: ids from `vocab_size` on, or rows that are
    padding in the base model.
    """
    finetuned_tokenizer: Any = None
    """The finetuned side's own tokenizer when it has `new_tokens`: what reads that side's answers. Prompts are made by
    `tokenizer` for both.
    """
    remarks: tuple[str, ...] = ()
    """What is to be said beside every result of this pair, in sentences: how its files were read where that is not as
    they say.
    """
    configuration: tuple[str, ...] = ()
    """Where the two models' configurations make them compute otherwise, whatever their weights are: field and both
    values.
    """
    forwards: ForwardCount = field(default_factory=ForwardCount, compare=False)
    """Passes and tokens so far; pairs made from this one (`with_adapter`, `amplified`) add to the same count."""

    def with_adapter(self, adapter: AdapterFiles | None) -> LoadedPair:
        """The bare base model against the same model with another adapter (None: bare as well), as a pair that shares
        this one's resident base.

        The adapter is attached when its side first runs, counts as memory in use while it does, and may be evicted
        afterwards.

        Raises (when the side first runs):
            NotTheSame: an adapter that was made for another model.
            InvalidInput: an adapter that is not there or cannot be read.
            OutOfRoom: no room for it.
        """
        bare = ModelSource(files=self.spec.base.files)
        spec = PairSpec(
            name=self.spec.name,
            base=bare,
            finetuned=bare.model_copy(update={"adapter": adapter}),
            model=self.spec.model,
        )
        return replace(
            self,
            spec=spec,
            sides={"base": self.on_base(None), "finetuned": self.on_base(adapter)},
            sequential=False,
            configuration=(),
            new_tokens={},
            finetuned_tokenizer=None,
        )

    def amplified(self, weight: WeightOf | float, others: Sequence[tuple[AdapterFiles, WeightOf]] = ()) -> LoadedPair:
        """The same pair with W_base + w (W_finetuned - W_base) as its finetuned side: w = 0 is the base, 1 the
        finetuned model, 2 twice the change.

        `weight` is one number, or a function of the place of a module; a steering vector is scaled by the weight of its
        place. `others` are further adapters of the base model, whose differences to the bare base are added with
        weights of their own. Nothing is changed in memory or on disk: see `diffing_mcp.model_pairs.amplification`. The
        lens and `token_rows` read the base's embeddings.

        Raises (when the side runs):
            OutOfRoom: a full finetune that does not fit in memory beside its base.
            NotTheSame, InvalidInput: weights that cannot be mixed.
        """
        weight_of: WeightOf = weight if callable(weight) else lambda place: float(weight)
        added = [Difference(self.on_base(files), self.on_base(None), each) for files, each in others]
        base = self.sides["base"]
        mixed = mixed_side(base, self.sides["finetuned"], weight_of, added)
        return replace(self, sides={"base": base, "finetuned": mixed})

    def weight_digests(self) -> dict[str, str]:
        """Content of the weights that each side runs, in memory and in their type: equal digests mean equal weights.
        See `diffing_mcp.model_pairs.weight_digest`.
        """
        return {side: self.weight_digest(side) for side in SIDES}

    def weight_digest(self, side: Side) -> str:
        """Content of the weights of one side; the other one's model is not touched."""
        return self._side(side).digest()

    @contextmanager
    def side_loaded(self, side: Side) -> Iterator[None]:
        """Keep this side's model in memory inside the context. Free for pairs that are not `sequential`."""
        with self._side(side).hold():
            yield

    def resident_first(self) -> tuple[Side, Side]:
        """Both sides, first the one to begin with: the finetuned side when its model alone is in memory now, else the
        base.
        """
        finetuned_alone = self.sides["finetuned"].in_memory() and not self.sides["base"].in_memory()
        return ("finetuned", "base") if finetuned_alone else ("base", "finetuned")

    def forward(
        self,
        side: Side,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        layers: Sequence[int] = (),
        logits: bool = True,
        interventions: Sequence[Intervention] = (),
    ) -> ForwardOutput:
        """One pass over a batch [B, S], padded left or right: logits [B, S, V] in the model's dtype and the residual
        stream [B, S, d_model] after each of `layers` (absolute). Without logits the pass ends after the last of the
        layers. Logits of ids beyond the common vocabulary come as `extra_logits`.

        Raises:
            InvalidInput: a layer out of range, token ids outside the vocabulary, or a text longer than the context.
            NotFinite (as every call that runs a side): NaN or infinite numbers.
        """
        from diffing_mcp.model_pairs.forward import run_forward

        with self._running(side) as (resident, steering):
            output = run_forward(resident, input_ids, attention_mask, layers, logits, (*steering, *interventions))
            self.forwards.add(1, int(attention_mask.sum()))
        return output.cut(self.vocab_size)

    def logit_lens(self, side: Side, vectors: torch.Tensor) -> torch.Tensor:
        """Float32 logits [..., V] of vectors [..., d_model] read as a final residual stream of this side (norm,
        unembedding, soft cap).
        """
        from diffing_mcp.model_pairs.forward import lens_logits

        with self._running(side) as (resident, _):
            return lens_logits(resident, vectors)[..., : self.vocab_size]

    def last_token_logits(
        self, side: Side, ids: Sequence[int], rows: int, interventions: Sequence[Intervention] = ()
    ) -> torch.Tensor:
        """Float32 next-token logits [rows, V] after one text whose LAST token alone the interventions change, one
        vector [rows, d_model] a row.

        Equals `forward` with those interventions at the last token, but the tokens before it are read once: a row costs
        one token.
        """
        from diffing_mcp.model_pairs.forward import run_last_token

        with self._running(side) as (resident, steering):
            logits = run_last_token(resident, ids, rows, steering, interventions)[:, : self.vocab_size]
            self.forwards.add(1 + (len(ids) > 1), len(ids) - 1 + rows)
            return logits

    def token_rows(self, side: Side, ids: Sequence[int], which: Literal["output", "input"] = "output") -> torch.Tensor:
        """Float32 rows [N, d_model] of this side's unembedding (`output`) or input embedding for token
        ids, on the CPU.
        """
        from diffing_mcp.model_pairs.forward import token_rows

        with self._running(side) as (resident, _):
            return token_rows(resident, ids, which)

    def token_log_probs(self, side: Side, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Float32 log-probability (nats) of each token after the first given those before [B, S - 1], on the CPU; 0.0
        at padding.
        """
        from diffing_mcp.model_pairs.forward import token_log_probs

        with self._running(side) as (resident, steering):
            return token_log_probs(resident, input_ids, attention_mask, steering, self.vocab_size, self.forwards)

    def answer_scores(
        self, side: Side, answers: Sequence[tuple[GenerationRequest, str]], progress: Progress = silent
    ) -> list[AnswerScore]:
        """How probable each answer is after its request; see `diffing_mcp.model_pairs.scoring`."""
        from diffing_mcp.model_pairs.scoring import score_answers

        return score_answers(self, side, answers, progress)

    def answer_gradients(self, side: Side, rows: Sequence[PromptAndAnswer]) -> list[torch.Tensor]:
        """For each prompt and answer (token ids) the gradient of the answer's log-probability by the prompt's input
        embeddings, float32 [tokens, d_model]; see `diffing_mcp.model_pairs.gradients`.
        """
        from diffing_mcp.model_pairs.gradients import answer_gradients

        with self._running(side) as (resident, steering):
            return answer_gradients(resident, rows, steering, self.vocab_size, self.forwards)

    def check_scoring(self, requests: Sequence[GenerationRequest]) -> None:
        """Models in memory score every answer."""

    def weight_deltas(
        self, progress: Progress = silent, chosen: Callable[[ModulePlace], bool] | None = None
    ) -> Iterator[WeightDelta]:
        """Finetuned minus base of every parameter (of the chosen modules), one after the other, and of the stored
        buffers that differ; see `diffing_mcp.model_pairs.weights`.
        """
        from diffing_mcp.model_pairs.weights import everything, weight_deltas

        with self._named_when_not_finite(self.sides):
            base, finetuned = self.sides["base"], self.sides["finetuned"]
            yield from weight_deltas(base, finetuned, self.sequential, progress, chosen or everything)

    def module_places(self) -> list[ModulePlace]:
        """What `amplified` asks the weight of: where modules with weights sit in the base, in the order of the model,
        and steering vectors of the sides.
        """
        from diffing_mcp.model_pairs.modules import units_of

        steering = [steering_place(each) for side in self.sides.values() for each in side.steering]
        with self.on_base(None).hold() as resident, resident.lock:
            return [*(unit.place for unit in units_of(resident, None).values()), *steering]

    def generate(
        self,
        side: Side,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        progress: Progress = silent,
        interventions: Sequence[Intervention] = (),
        written: Written | None = None,
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each request. The same call gives the same text; only new text is returned.
        `written` is told of answers while they are written, where they are written here.

        With the setting `generation_backend=vllm` plain requests go to vLLM, amplified LoRA included; interventions,
        steering vectors, amplified full finetunes and adapters that are no plain LoRA on linear layers of blocks (DoRA,
        biases, embeddings) stay here.

        Raises:
            InvalidInput: a prompt that with max_new_tokens is longer than the context, an empty one, or no chat
                template for messages.
            Cancelled: when progress says so, between two tokens.
        """
        from diffing_mcp.model_pairs.generation import generate

        chosen = self._side(side)
        plain = not (interventions or chosen.steering or chosen.adapter == OWN_ADAPTER)
        if settings().generation_backend == "vllm" and plain:
            from diffing_mcp.model_pairs.mixed_lora import mixed_lora
            from diffing_mcp.model_pairs.vllm_backend import LARGEST_RANK, takes_as_stored
            from diffing_mcp.model_pairs.vllm_backend import generate as generate_with_vllm

            source = self.spec.base if side == "base" else self.spec.finetuned
            stored = not chosen.differences and takes_as_stored(source)
            mixture = None if stored else mixed_lora(chosen)
            if stored or (mixture is not None and mixture.rank <= LARGEST_RANK):
                return generate_with_vllm(self, side, requests, sampling, progress, mixture)
        with self._in_memory(side) as (loaded,):
            switch = self.spec.base.files.thinking_switch
            reader = self.finetuned_tokenizer if side == "finetuned" else None
            return generate(
                loaded,
                self.tokenizer,
                requests,
                sampling,
                progress,
                interventions,
                switch,
                reader,
                self.stop_ids(side),
                self.forwards,
                written,
            )

    def generate_contrastive(
        self,
        requests: Sequence[GenerationRequest],
        alphas: Sequence[float],
        sampling: Sampling,
        plausibility: float = 0.1,
        progress: Progress = silent,
    ) -> list[list[list[ContrastiveCompletion]]]:
        """Completions drawn from log p_ft + alpha (log p_ft - log p_base): [alpha][request][sample]; see
        `diffing_mcp.model_pairs.contrastive`.

        Raises:
            OutOfRoom: the two models do not fit in memory together.
            InvalidInput, Cancelled: as `generate`.
        """
        from diffing_mcp.model_pairs.contrastive import generate_contrastive

        if self.sequential:
            raise OutOfRoom(
                "This needs both models at once, and they do not fit in memory together. Use a method that runs one "
                "after the other, such as perplexity_difference, or raise memory_share."
            )
        with self._in_memory(*SIDES) as sides:
            switch = self.spec.base.files.thinking_switch
            sizes = self.vocab_size, self.context_length
            return generate_contrastive(
                sides,
                self.tokenizer,
                *sizes,
                requests,
                alphas,
                sampling,
                plausibility,
                progress,
                switch,
                self.forwards,
                self.stop_ids("base") | self.stop_ids("finetuned"),
            )

    def continuations(
        self, side: Side, prompts: Sequence[Sequence[int]], tokens: int, width: int, progress: Progress = silent
    ) -> tuple[torch.Tensor, list[list[Beam]]]:
        """Log-probabilities of the token after each prompt [N, V] (float32, on the CPU), and for each the `width` most
        probable continuations of `tokens` tokens that a beam search finds.

        Raises:
            OutOfRoom: one prompt alone takes more memory than is free.
            Cancelled: between two batches, when progress says so.
        """
        from diffing_mcp.model_pairs.beam_search import continuations

        def told(done: int, total: int) -> None:
            progress(done, total, f"{side}: continuations")

        stops, pad = self.stop_ids(side), self.tokenizer.pad_token_id
        with self._in_memory(side) as (loaded,):
            return continuations(loaded, prompts, tokens, width, stops, self.vocab_size, pad, told)

    def render_chat(self, messages: Sequence[ChatMessage], prefill: str = "", thinking: bool = False) -> str:
        """The conversation in the chat template, with special tokens, up to where the assistant goes on after
        `prefill`.
        """
        return render_chat(self.tokenizer, messages, prefill, thinking, self.spec.base.files.thinking_switch)

    def render_conversation(self, messages: Sequence[ChatMessage]) -> str:
        """A finished conversation in the chat template, with special tokens, to its end."""
        return render_conversation(self.tokenizer, messages, self.spec.base.files.thinking_switch)

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered; else requests carry raw text."""
        return has_chat_template(self.tokenizer)

    @property
    def has_thinking_switch(self) -> bool:
        """Whether `thinking` makes a difference."""
        return self.spec.base.files.thinking_switch or knows_thinking(self.tokenizer)

    def stop_ids(self, side: Side) -> frozenset[int]:
        """Tokens that end a completion of this side: by the files of the model that it is (an amplified finetune ends
        its turns as the finetune does), and by the pair's tokenizers.
        """
        chosen = self._side(side)
        owner = chosen.differences[0].finetuned if chosen.differences else chosen
        with owner.hold() as resident:
            return resident.stop_ids | self.stops

    def _side(self, side: Side) -> LoadedSide:
        if side not in self.sides:
            raise InvalidInput(f"A side is `base` or `finetuned`, not {side!r}.")
        return self.sides[side]

    @contextmanager
    def _running(self, side: Side) -> Iterator[tuple[ResidentModel, tuple[Intervention, ...]]]:
        """The side's model, locked, with what the side is switched on: for one pass, or some that belong together."""
        with self._in_memory(side) as (loaded,), loaded.switched_on():
            yield loaded.resident, loaded.steering

    @contextmanager
    def _in_memory(self, *sides: Side) -> Iterator[list[SideInMemory]]:
        """The sides, their models kept in memory. Numbers that are not finite raise NotFinite with the side's name."""
        chosen = {side: self._side(side) for side in sides}
        with self._named_when_not_finite(chosen), ExitStack() as stack:
            yield [stack.enter_context(side_in_memory(loaded)) for loaded in chosen.values()]

    @contextmanager
    def _named_when_not_finite(self, running: Mapping[Side, LoadedSide]) -> Iterator[None]:
        """Say of numbers that are not finite which of the running sides gave them, and why."""
        try:
            yield
        except NotFinite as error:
            from diffing_mcp.model_pairs.finite import explained

            raise NotFinite(explained(error.message, running)) from error
