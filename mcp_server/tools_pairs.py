"""Tools about pairs: which there are, what is known of one, loading and unloading it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Arguments, PairArguments, Reply, ToolDeclaration, WaitArguments
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.methods.contract import PairSize


class ListPairsArguments(Arguments):
    """Arguments of list_pairs."""

    containing: str = Field("", max_length=200, description="Only names that contain this.")
    offset: int = Field(0, ge=0, description="Pairs to skip.")
    limit: int = Field(40, ge=1, le=200, description="Pairs to list at most.")


class PairRow(BaseModel):
    """One pair. Only `name` is known in an investigation."""

    name: str
    available_offline: bool | None = Field(None, description="Whether all files are on this machine.")


class ResidentRow(BaseModel):
    """A model in memory."""

    label: str
    megabytes: float
    in_use: bool


class ListPairsResult(BaseModel):
    """Pairs by name."""

    pairs: list[PairRow]
    total: int
    next_offset: int | None = None
    resident: list[ResidentRow] = Field(default_factory=list, description="Models in memory now (operators only).")


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
        result = ListPairsResult(pairs=[PairRow(name=investigation.label)], total=1)
        return Reply(result, f"This investigation is about one pair: {investigation.label}")
    from diffing_mcp.model_pairs.resolve import list_pairs as all_pairs

    found = [pair for pair in all_pairs() if arguments.containing.lower() in pair.name.lower()]
    shown = found[arguments.offset : arguments.offset + arguments.limit]
    end = arguments.offset + len(shown)
    result = ListPairsResult(
        pairs=[PairRow(name=pair.name, available_offline=pair.available_offline) for pair in shown],
        total=len(found),
        next_offset=end if end < len(found) else None,
        resident=_resident(call),
    )
    lines = [
        (
            f"{len(found)} pairs{f', showing {arguments.offset + 1} to {end}' if len(shown) < len(found) else ''} "
            "(offline = all files are here):"
        )
    ]
    lines += [f"  {pair.name}{' (offline)' if pair.available_offline else ''}" for pair in shown]
    lines += [
        f"in memory: {row.label}, {row.megabytes:.0f} MB{', in use' if row.in_use else ''}" for row in result.resident
    ]
    lines.append(
        "Any other pair can be named as BASE::FINETUNED (catalogue names, hub ids or local folders; `#model` or "
        "`#adapter` after one that holds both)."
    )
    return Reply(result, "\n".join(lines), next_step=f"Pass offset={end} for more." if result.next_offset else None)


async def describe_pair(call: Call, arguments: PairArguments) -> Reply:
    from diffing_mcp.preprocessing.corpora import BUNDLED

    spec = call.pair(arguments.pair)
    size = call.context.size(spec)
    prices = [
        ToolPrice(tool=tool.name, tool_calls=tool.tool_calls, interactions=tool.price or "0")
        for tool in call.toolset.values()
        if call.caller.may_use(tool.name, tool.operator_only)
    ]
    result = DescribePairResult(
        name=call.shown_name(spec),
        loaded=size.num_layers is not None,
        **size.model_dump(include={"num_layers", "d_model", "vocab_size"}),
        corpora=list(BUNDLED),
        prices=prices,
        sources={"base": spec.base.model_dump(mode="json"), "finetuned": spec.finetuned.model_dump(mode="json")}
        if call.caller.operator
        else None,
    )
    lines = [f"pair {result.name}: {_size_text(size)}"]
    if call.caller.operator:
        lines += [
            f"{side}: {_source_text(source)}" for side, source in (("base", spec.base), ("finetuned", spec.finetuned))
        ]
    lines.append(f"corpora: {', '.join(result.corpora)}")
    lines.append("costs a call (tool calls; model interactions):")
    lines += [f"  {price.tool}: {price.tool_calls}; {price.interactions}" for price in prices]
    return Reply(result, "\n".join(lines))


async def load_pair(call: Call, arguments: LoadPairArguments) -> Reply:
    spec = call.pair(arguments.pair)

    def work(job: Job) -> LoadPairResult:
        job(0, None, "loading")
        with call.context.pairs.use(spec, job) as pair:
            size = call.context.note_size(spec, pair)
            return LoadPairResult(
                name=call.shown_name(spec),
                num_layers=size.num_layers or 0,
                d_model=size.d_model or 0,
                vocab_size=size.vocab_size or 0,
                context_length=pair.context_length,
                seconds=round(job.seconds, 2),
            )

    return await call.run_job(await call.identity(spec), work, _present_loaded, spec=spec)


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
    pairs.unload(spec.name)
    resident = _resident(call)
    left = ", ".join(f"{row.label} {row.megabytes:.0f} MB" for row in resident) or "nothing"
    return Reply(UnloadPairResult(unloaded=spec.name, resident=resident), f"{spec.name} is unloaded; in memory: {left}")


def _resident(call: Call) -> list[ResidentRow]:
    return [
        ResidentRow(label=model.label, megabytes=round(model.bytes / 1e6, 1), in_use=bool(model.in_use))
        for model in call.context.status()
    ]


def _size_text(size: PairSize) -> str:
    if size.num_layers is None:
        return "not loaded yet (load_pair tells its sizes; every other tool loads it by itself)"
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
                "List the pairs of models that can be compared, by name. Call this first; every other tool takes one "
                "of these names. In an investigation there is one."
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
            read_only=False,
        ),
    ]
    return {tool.name: tool for tool in tools}
