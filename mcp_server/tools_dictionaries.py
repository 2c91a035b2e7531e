"""Tools for operators about trained dictionaries: listing and deleting them. They are trained by `sae_difference` and
`crosscoder`.
"""

from __future__ import annotations

from collections.abc import Mapping

import anyio.to_thread
from pydantic import BaseModel, Field

from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Arguments, Deleted, Reply, ToolDeclaration
from diffing_mcp.methods.dictionaries.stored import Leftover, StoredDictionary, delete, listing


class ListDictionariesArguments(Arguments):
    """Arguments of list_dictionaries."""

    offset: int = Field(0, ge=0)
    limit: int = Field(20, ge=1, le=100)


class DictionaryArguments(Arguments):
    """Arguments of delete_dictionary."""

    id: str = Field(min_length=1, max_length=100, description="The whole id, from list_dictionaries.")


class ListDictionariesResult(BaseModel):
    """Dictionaries, newest first, then what else lies among them."""

    dictionaries: list[StoredDictionary]
    leftovers: list[Leftover]
    total: int
    next_offset: int | None = None


async def list_dictionaries(call: Call, arguments: ListDictionariesArguments) -> Reply:
    found = await anyio.to_thread.run_sync(listing)
    everything: list[StoredDictionary | Leftover] = [*found.dictionaries, *found.leftovers]
    shown = everything[arguments.offset : arguments.offset + arguments.limit]
    end = arguments.offset + len(shown)
    result = ListDictionariesResult(
        dictionaries=[each for each in shown if isinstance(each, StoredDictionary)],
        leftovers=[each for each in shown if isinstance(each, Leftover)],
        total=len(everything),
        next_offset=end if end < len(everything) else None,
    )
    lines = [f"{len(everything)} dictionaries"]
    for each in result.dictionaries:
        explained = (
            "" if each.variance_explained is None else f", {each.variance_explained:.3f} of the variance explained"
        )
        lines.append(
            f"  {each.id}: {each.kind}, layer {each.layer}, {each.latents} latents, k {each.k}{explained}, "
            f"{each.megabytes:.1f} MB"
        )
    lines += [f"  {each.id}: {each.state}, {each.megabytes:.1f} MB. {each.problem}" for each in result.leftovers]
    return Reply(result, "\n".join(lines), next_step=f"Pass offset={end} for more." if result.next_offset else None)


async def delete_dictionary(call: Call, arguments: DictionaryArguments) -> Reply:
    megabytes = await anyio.to_thread.run_sync(delete, arguments.id)
    return Reply(Deleted(deleted=arguments.id, megabytes=megabytes), f"{arguments.id} is deleted ({megabytes:.1f} MB).")


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tools of this module."""
    tools = [
        ToolDeclaration(
            "list_dictionaries",
            "List dictionaries",
            "List trained SAEs and crosscoders, trainings that were cut off, and folders that cannot be read.",
            ListDictionariesArguments,
            ListDictionariesResult,
            list_dictionaries,
            tool_calls=0,
            operator_only=True,
        ),
        ToolDeclaration(
            "delete_dictionary",
            "Delete a dictionary",
            (
                "Delete one of list_dictionaries from the disk. Results of runs that used it stay. Refused while it "
                "is being trained."
            ),
            DictionaryArguments,
            Deleted,
            delete_dictionary,
            tool_calls=0,
            operator_only=True,
            lasting=True,
            destructive=True,
        ),
    ]
    return {tool.name: tool for tool in tools}
