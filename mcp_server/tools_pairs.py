"""Tools about pairs: which there are, what is known of one, loading and unloading it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.text import clip
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Arguments, PairArguments, Reply, ToolDeclaration, WaitArguments
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.methods.contract import PairSize
from diffing_mcp.model_pairs.specs import PairSpec, PairSummary

_RESIDENT_SHOWN = 3
"""Models in memory that the list of pairs names; a server may hold many small ones under long names."""
_LABEL_CHARACTERS = 120


class ListPairsArguments(Arguments):
    """Arguments of list_pairs."""

    pair: str | None = Field(None, max_length=1000, description="Describe this pair only: sizes, corpora, budget.")
    containing: str = Field("", max_length=200, description="Only names that contain this.")
    offset: int = Field(0, ge=0)
    limit: int = Field(40, ge=1, le=80)


class PairRow(BaseModel):
    """One pair. Only `name` is known in an investigation."""

    name: str
    available_offline: bool | None = Field(None, description="Whether all files are on this machine.")


class ResidentRow(BaseModel):
    """A model in memory."""

    label: str
    megabytes: float
    in_use: bool


class ToolPrice(BaseModel):
    """What a call costs."""

    tool: str
    tool_calls: int
    interactions: str = Field(description="Model interactions, in words.")


class DescribePairResult(BaseModel):
    """What is known of a pair before comparing anything."""

    name: str
    loaded: bool
    num_layers: int | None = Field(None, description="null until the pair was loaded once (load_pair).")
    d_model: int | None = None
    vocab_size: int | None = None
    corpora: list[str] = Field(description="Corpora the methods can read.")
    prices: list[ToolPrice]
    sources: dict[str, Any] | None = Field(
        None, description="Models, adapters and revisions of both sides (operators only)."
    )


class ListPairsResult(BaseModel):
    """Pairs by name."""

    pairs: list[PairRow]
    total: int
    next_offset: int | None = None
    resident: list[ResidentRow] = Field(default_factory=list, description="Models in memory now (operators only).")
    described: DescribePairResult | None = Field(None, description="The pair, when it is the only one.")


class LoadPairResult(BaseModel):
    """A pair in memory."""

    name: str
    num_layers: int
    d_model: int
    vocab_size: int
    context_length: int | None = Field(None, description="Tokens a prompt and its answer may have together.")
    seconds: float


class UnloadPairResult(BaseModel):
    """What is still in memory."""

    unloaded: str
    resident: list[ResidentRow]


class LoadPairArguments(PairArguments, WaitArguments):
    """Arguments of load_pair."""


async def list_pairs(call: Call, arguments: ListPairsArguments) -> Reply:
    investigation = call.caller.investigation
    if investigation is not None:
        return _only(call, PairRow(name=investigation.label), call.pair(arguments.pair or investigation.label))
    if arguments.pair is not None:
        spec = call.pair(arguments.pair)
        return _only(call, PairRow(name=spec.name), spec)
    from diffing_mcp.model_pairs.resolve import list_pairs as all_pairs

    found = [pair for pair in all_pairs() if arguments.containing.lower() in pair.name.lower()]
    if len(found) == 1:
        row = PairRow(name=found[0].name, available_offline=found[0].available_offline)
        return _only(call, row, call.pair(row.name))
    shown = found[arguments.offset : arguments.offset + arguments.limit]
    end = arguments.offset + len(shown)
    result = ListPairsResult(
        pairs=[PairRow(name=pair.name, available_offline=pair.available_offline) for pair in shown],
        total=len(found),
        next_offset=end if end < len(found) else None,
        resident=_resident(call),
    )
    part = f", showing {arguments.offset + 1}-{end}" if 0 < len(shown) < len(found) else ", none here" * (not shown)
    lines = [f"{len(found)} pairs{part}; `pair` describes one. A name is ORGANISM@MODEL or ORGANISM/VARIANT@MODEL:"]
    lines += _by_model(shown)
    lines += _in_memory(result.resident)
    lines.append(
        "Any other pair can be named as BASE::FINETUNED (catalogue names, hub ids or local folders; `#model` or "
        "`#adapter` after one that holds both)."
    )
    return Reply(result, "\n".join(lines), next_step=f"Pass offset={end} for more." if result.next_offset else None)


def _by_model(pairs: Sequence[PairSummary]) -> list[str]:
    """A line for each model, those that are here first: its organisms, with their variants where there are others than
    `default`.
    """
    models: dict[tuple[bool, str], dict[str, list[str]]] = {}
    for pair in sorted(pairs, key=lambda pair: not pair.available_offline):
        of_model = models.setdefault((pair.available_offline, pair.model), {})
        of_model.setdefault(pair.organism, []).append(pair.variant)
    return [
        f"@{model} ({'all files are here' if here else 'to be downloaded'}): "
        + ", ".join(
            organism if variants == ["default"] else f"{organism} ({', '.join(variants)})"
            for organism, variants in organisms.items()
        )
        for (here, model), organisms in models.items()
    ]


def _in_memory(resident: Sequence[ResidentRow]) -> list[str]:
    """Models in memory, a line each; of many those in use first, and the rest as a sum."""
    ordered = sorted(resident, key=lambda row: not row.in_use)
    shown, rest = ordered[:_RESIDENT_SHOWN], ordered[_RESIDENT_SHOWN:]
    lines = [
        f"in memory: {clip(row.label, _LABEL_CHARACTERS)[0]}, {row.megabytes:.0f} MB{', in use' if row.in_use else ''}"
        for row in shown
    ]
    if rest:
        lines.append(f"in memory besides: {len(rest)} more, {sum(row.megabytes for row in rest):.0f} MB")
    return lines


def _only(call: Call, row: PairRow, spec: PairSpec) -> Reply:
    """The list of one pair, with what is known of it."""
    described = _described(call, spec)
    result = ListPairsResult(pairs=[row], total=1, resident=_resident(call), described=described)
    return Reply(result, _description_text(call, spec, described))


async def describe_pair(call: Call, arguments: PairArguments) -> Reply:
    spec = call.pair(arguments.pair)
    result = _described(call, spec)
    return Reply(result, _description_text(call, spec, result))


def _described(call: Call, spec: PairSpec) -> DescribePairResult:
    from diffing_mcp.preprocessing.corpora import BUNDLED

    size = call.context.size(spec)
    prices = [
        ToolPrice(tool=tool.name, tool_calls=tool.tool_calls, interactions=tool.price or "0")
        for tool in call.offer.usable(call.caller).values()
    ]
    return DescribePairResult(
        name=call.shown_name(spec),
        loaded=size.num_layers is not None,
        **size.model_dump(include={"num_layers", "d_model", "vocab_size"}),
        corpora=list(BUNDLED),
        prices=prices,
        sources={"base": spec.base.model_dump(mode="json"), "finetuned": spec.finetuned.model_dump(mode="json")}
        if call.caller.operator
        else None,
    )


def _description_text(call: Call, spec: PairSpec, result: DescribePairResult) -> str:
    lines = [f"pair {result.name}: {_size_text(result)}"]
    if call.caller.operator:
        lines += [
            f"{side}: {_source_text(source)}" for side, source in (("base", spec.base), ("finetuned", spec.finetuned))
        ]
    lines.append(f"corpora: {', '.join(result.corpora)}")
    if call.caller.operator:
        lines.append("no budget; `estimate_only` tells what a call costs")
    else:
        free = [price.tool for price in result.prices if price.tool_calls == 0]
        paid = [f"{price.tool} {price.interactions}" for price in result.prices if price.interactions != "0"]
        lines.append(f"tool calls: 0 for {', '.join(free)}; 1 for every other tool")
        lines.append(f"model interactions: {'; '.join(paid)}; 0 for every other tool")
    return "\n".join(lines)


async def load_pair(call: Call, arguments: LoadPairArguments) -> Reply:
    spec = call.pair(arguments.pair)

    def work(job: Job) -> LoadPairResult:
        with call.context.loaded(spec, job) as pair:
            return LoadPairResult(
                name=call.shown_name(spec),
                num_layers=pair.num_layers,
                d_model=pair.d_model,
                vocab_size=pair.vocab_size,
                context_length=pair.context_length,
                seconds=round(job.seconds, 2),
            )

    # It may have been unloaded since, or have gone to make room; what is in memory is found at once.
    return await call.run_job(await call.identity(spec), work, _present_loaded, spec=spec, still=lambda _: False)


def _present_loaded(call: Call, result: LoadPairResult) -> Reply:
    sizes = (
        f"{result.num_layers} layers, d_model {result.d_model}, vocabulary {result.vocab_size}, context "
        f"{result.context_length} tokens"
    )
    text = f"{result.name} is loaded: {sizes}"
    return Reply(result, text)


async def unload_pair(call: Call, arguments: PairArguments) -> Reply:
    pairs = call.context.pairs_if_any
    if pairs is None:
        raise UnknownName("no pair is in memory")
    spec = call.pair(arguments.pair)
    pairs.models.unload(spec.name)
    resident = _resident(call)
    left = ", ".join(f"{row.label} {row.megabytes:.0f} MB" for row in resident) or "nothing"
    return Reply(UnloadPairResult(unloaded=spec.name, resident=resident), f"{spec.name} is unloaded; in memory: {left}")


def _resident(call: Call) -> list[ResidentRow]:
    if not call.caller.operator:  # models of others too, by paths that hold what they were taught
        return []
    return [
        ResidentRow(label=model.label, megabytes=round(model.bytes / 1e6, 1), in_use=bool(model.in_use))
        for model in call.context.status()
    ]


def _size_text(size: PairSize | DescribePairResult) -> str:
    if size.num_layers is None:
        return "not loaded yet; the first tool that needs it loads it"
    return f"{size.num_layers} layers, d_model {size.d_model}, vocabulary {size.vocab_size}"


def _source_text(source: Any) -> str:
    parts = [source.files.id]
    if source.adapter is not None:
        parts.append(f"adapter {source.adapter.id}{' merged' if source.merge else ''}")
    if source.steering is not None:
        parts.append(f"steering at layer {source.steering.layer}, strength {source.steering.strength}")
    return ", ".join(parts)


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tools of this module."""
    tools = [
        ToolDeclaration(
            "list_pairs",
            "List pairs",
            (
                "List the pairs of models (base and finetuned) that can be compared. Call this first: every other "
                "tool takes one of these names. A single pair is described too: sizes, corpora, costs, budget left."
            ),
            ListPairsArguments,
            ListPairsResult,
            list_pairs,
            tool_calls=0,
        ),
        ToolDeclaration(
            "describe_pair",
            "Describe a pair",
            (
                "Sizes of a pair of models, the corpora the methods can read, and what every tool costs (tool calls "
                "and model interactions). Loads nothing."
            ),
            PairArguments,
            DescribePairResult,
            describe_pair,
            tool_calls=0,
        ),
        ToolDeclaration(
            "load_pair",
            "Load a pair",
            (
                "Load a pair of models into memory and return its sizes and context length. Not needed before other "
                "tools, which load by themselves; useful to pay the waiting time first."
            ),
            LoadPairArguments,
            LoadPairResult,
            load_pair,
            tool_calls=0,
            read_only=False,
        ),
        ToolDeclaration(
            "unload_pair",
            "Unload a pair",
            (
                "Free the memory of a pair. Refused while it is in use. The least recently used pair goes by itself "
                "when room is needed, so this is rarely called."
            ),
            PairArguments,
            UnloadPairResult,
            unload_pair,
            tool_calls=0,
            operator_only=True,
            lasting=True,
        ),
    ]
    return {tool.name: tool for tool in tools}
