"""Tools for operators about stored activations: collecting, listing, describing and deleting them. Collections name
real models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio.to_thread
from pydantic import BaseModel, Field

from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Arguments, Deleted, Reply, ToolDeclaration, with_arguments
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.mcp_server.tools_methods import check_corpus
from diffing_mcp.methods.contract import CostEstimate
from diffing_mcp.preprocessing.activation_collection import CollectionParams
from diffing_mcp.preprocessing.activation_store import CollectionIndex, default_activation_store
from diffing_mcp.preprocessing.activation_summary import (
    CollectionDescription,
    CollectionRow,
    broken_rows,
    collection_row,
    describe,
    exactly,
    row_of,
)

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.specs import PairSpec

CollectArguments = with_arguments("collect_activations", CollectionParams)


class ListActivationsArguments(Arguments):
    """Arguments of list_activations."""

    pair: str | None = Field(None, max_length=1000, description="Only of this pair.")
    offset: int = Field(0, ge=0)
    limit: int = Field(20, ge=1, le=100)


class CollectionArguments(Arguments):
    """Arguments of delete_activations."""

    id: str = Field(min_length=2, max_length=100, description="The whole id, from list_activations.")


class DescribeActivationsArguments(CollectionArguments):
    """Arguments of describe_activations."""

    check: bool = Field(False, description="Read all files and compare them with their hashes.")


class ListActivationsResult(BaseModel):
    """Collections, newest first."""

    collections: list[CollectionRow]
    total: int
    next_offset: int | None = None


async def collect_activations(call: Call, arguments: BaseModel) -> Reply:
    """Collect as a job; what is there is a lookup, what was cut off goes on at its last finished shard."""
    from diffing_mcp.preprocessing.activation_collection import collect, find_collection
    from diffing_mcp.preprocessing.activation_estimate import estimate_collection

    params = CollectionParams.model_validate({name: getattr(arguments, name) for name in CollectionParams.model_fields})
    spec: PairSpec = call.pair(arguments.pair)  # type: ignore[attr-defined]
    check_corpus(call, params)
    store = default_activation_store()

    def look() -> tuple[CollectionIndex | None, CostEstimate]:
        size = estimate_collection(spec, params, store.folder)
        read = params.max_samples * params.max_tokens
        cost = call.context.size(spec).cost(2 * read, 2 * -(-read // _batch_tokens()), bytes=size.bytes)
        return find_collection(store, spec, params), cost

    finished, estimate = await anyio.to_thread.run_sync(look)
    if finished is not None and not arguments.estimate_only:  # type: ignore[attr-defined]
        return _present_collected(call, finished)

    def work(job: Job) -> CollectionIndex:
        with call.context.loaded(spec, job) as pair:
            return collect(store, pair, params, job)

    key = [await call.identity(spec), params.model_dump(mode="json")]
    # It has just been looked for and is not there: a finished job made one that was deleted.
    return await call.run_job(
        key, work, _present_collected, spec=spec, estimate=estimate, still=lambda _: finished is not None
    )


def _batch_tokens() -> int:
    from diffing_mcp.core.settings import settings

    return settings().batch_tokens


def _present_collected(call: Call, index: CollectionIndex) -> Reply:
    row = collection_row(index)
    return Reply(row, row.as_text(), next_step=f'Pass activations="{row.id}" to a method that learns from activations.')


async def list_activations(call: Call, arguments: ListActivationsArguments) -> Reply:
    store = default_activation_store()
    identity = await call.identity(call.pair(arguments.pair)) if arguments.pair is not None else None
    found = [collection_row(index) for index in store.list() if identity in (None, index.pair)]
    if identity is None:
        found += await anyio.to_thread.run_sync(broken_rows, store)
    rows = found[arguments.offset : arguments.offset + arguments.limit]
    end = arguments.offset + len(rows)
    result = ListActivationsResult(collections=rows, total=len(found), next_offset=end if end < len(found) else None)
    lines = [f"{len(found)} collections", *(f"  {row.as_text()}" for row in rows)]
    return Reply(result, "\n".join(lines), next_step=f"Pass offset={end} for more." if result.next_offset else None)


async def describe_activations(call: Call, arguments: DescribeActivationsArguments) -> Reply:
    store = default_activation_store()
    index = store.get(exactly(store, arguments.id))

    def read() -> CollectionDescription:
        return describe(store, index, arguments.check)

    result = await anyio.to_thread.run_sync(read)
    return Reply(result, result.as_text())


async def delete_activations(call: Call, arguments: CollectionArguments) -> Reply:
    store = default_activation_store()
    row = row_of(store, exactly(store, arguments.id))
    deleted = await anyio.to_thread.run_sync(store.delete, row.id)
    return Reply(Deleted(deleted=deleted, megabytes=row.megabytes), f"{deleted} is deleted ({row.megabytes:.1f} MB).")


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tools of this module."""
    tools = [
        ToolDeclaration(
            "collect_activations",
            "Collect activations",
            (
                "Store both models' activations on a text corpus, for methods that learn from them "
                "(`activations=ID`). Resumable: an equal call goes on at the last finished shard."
            ),
            CollectArguments,
            CollectionRow,
            collect_activations,
            operator_only=True,
            lasting=True,
        ),
        ToolDeclaration(
            "list_activations",
            "List activations",
            "List stored collections of activations.",
            ListActivationsArguments,
            ListActivationsResult,
            list_activations,
            tool_calls=0,
            operator_only=True,
        ),
        ToolDeclaration(
            "describe_activations",
            "Describe activations",
            (
                "What a collection of activations holds: parameters, sizes by layer; with check=true whether its "
                "files are whole."
            ),
            DescribeActivationsArguments,
            CollectionDescription,
            describe_activations,
            tool_calls=0,
            operator_only=True,
        ),
        ToolDeclaration(
            "delete_activations",
            "Delete activations",
            "Delete a collection of activations from the disk.",
            CollectionArguments,
            Deleted,
            delete_activations,
            tool_calls=0,
            operator_only=True,
            lasting=True,
            destructive=True,
        ),
    ]
    return {tool.name: tool for tool in tools}
