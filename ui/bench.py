"""What the buttons of the page "Ask" do: put a turn to both models, stop, score an answer, keep evidence. Every
outcome, errors too, is something to show.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.ui.connection import ServerConnection
from diffing_mcp.ui.conversation import SIDES, Conversation, Side
from diffing_mcp.ui.conversation_view import Waiting
from diffing_mcp.ui.html import alert, div, element, join, preformatted
from diffing_mcp.ui.jobs_view import share_bar
from diffing_mcp.ui.saved_evidence import EvidenceFolder, SavedEvidence


class Action(BaseModel):
    """A button inside of the conversation, as the browser sends it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    do: Literal["edit", "again", "save", "heat", "choose"]
    turn: int
    side: Side = "finetuned"
    sample: int = 0

    def fits(self, conversation: Conversation) -> bool:
        """Whether the conversation has what the button stood at."""
        if not 0 <= self.turn < len(conversation.turns):
            return False
        answers = conversation.turns[self.turn].answers
        return all(side in answers for side in SIDES) and 0 <= self.sample < len(answers[self.side])


class Bench:
    """Questions to the models of the server. One per panel; `session` tells browsers apart."""

    def __init__(self, connection: ServerConnection, saved: EvidenceFolder) -> None:
        self.connection = connection
        self.saved = saved
        self._live: dict[str, str] = {}
        self._stopped: set[str] = set()

    async def answer(
        self, conversation: Conversation, otherwise: Conversation, session: str
    ) -> AsyncIterator[tuple[Conversation, Waiting, Markup]]:
        """The last turn put to one side and then to the other: (conversation so far, what stands for the answers that
        are still missing, an alert). When it fails or is stopped, the conversation is what it was `otherwise`.
        """
        self._stopped.discard(session)
        waiting: dict[Side, Markup] = dict.fromkeys(SIDES, element("em", "waiting for the model"))
        yield conversation, waiting, Markup("")
        last = len(conversation.turns) - 1
        try:
            for side in SIDES:
                async for reply in self.connection.follow("ask_models", conversation.question(last, side)):
                    if reply.get("status") == "running":
                        self._live[session] = reply["job"]["job_id"]
                        if session in self._stopped:
                            await self._cancel(session)
                        how = conversation.turns[last].how
                        yield conversation, waiting | {side: writing_html(reply["job"], how.prefill)}, Markup("")
                    else:
                        conversation = conversation.answered(side, reply["result"]["answers"][0][side])
                        yield conversation, waiting, Markup("")
                if session in self._stopped:
                    raise Stopped
        except (DiffingError, Stopped) as error:
            stopped = session in self._stopped
            yield otherwise, {}, alert("Stopped.", "warn") if stopped else failed(error)
        finally:
            self._live.pop(session, None)

    async def stop(self, session: str) -> None:
        """Stop what is being written for this browser."""
        self._stopped.add(session)
        await self._cancel(session)

    async def _cancel(self, session: str) -> None:
        if (job := self._live.get(session)) is not None:
            await self.connection.begin("cancel_job", {"job_id": job})

    async def score(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any] | None, Markup]:
        """The result of `compare_text`, or why there is none."""
        try:
            return await self.connection.call("compare_text", {"max_tokens": 1024, "top": 8, **arguments}), Markup("")
        except DiffingError as error:
            return None, failed(error)

    async def keep(
        self, pair: str, note: str, conversation: Conversation | None = None, heat_map: dict[str, Any] | None = None
    ) -> Markup:
        """Add evidence to the pair's report; says so."""
        from diffing_mcp.model_pairs.fingerprint import pair_identity

        try:
            spec = resolve_pair(pair)
            identity = await asyncio.to_thread(pair_identity, spec)
        except DiffingError as error:
            return failed(error)
        evidence = SavedEvidence(
            pair_name=spec.name, pair=identity, note=note.strip(), conversation=conversation, heat_map=heat_map
        )
        await asyncio.to_thread(self.saved.add, evidence)
        return alert(f"Added to the report on {spec.name}.", "good")


class Stopped(Exception):
    """Whoever asked does not want the other side's answer any more."""


def waiting_html(job: Mapping[str, Any]) -> Markup:
    """How far an answer is."""
    if job.get("state") == "queued":
        return element("em", f"queued, {job.get('queued_before') or 0} before it")
    said = job.get("message") or "working"
    share = job.get("progress")
    return join([element("em", said), share_bar(share) if share is not None else ""])


def writing_html(job: Mapping[str, Any], prefill: str) -> Markup:
    """The answers of one side as far as they are written, and how far that is. UNTRUSTED text of a model."""
    texts = [
        preformatted(join([element("u", prefill) if prefill else "", each["model_text"]]))
        for each in sorted(job.get("unfinished") or (), key=lambda each: each["sample"])
    ]
    return join([*texts, waiting_html(job)])


def failed(error: BaseException) -> Markup:
    """What went wrong."""
    return alert(error.message if isinstance(error, DiffingError) else f"{type(error).__name__}: {error}")


def status_html(connection: ServerConnection, running: bool) -> Markup:
    """Whether a model server runs, and how there will be one."""
    if running:
        where = " (started by this panel)" if connection.started_here else ""
        return div(
            Markup("<i class='on'></i>"),
            element("span", "Model server at ", element("code", connection.url), where),
            classes="d-status",
        )
    said: tuple[Any, ...] = ("No model server runs yet; the first question starts one.",)
    if connection.fixed:
        where, command = element("code", connection.url), element("code", "diffing serve --http")
        said = ("No model server of this data folder answers at ", where, ". Start it there: ", command)
    return div(Markup("<i></i>"), element("span", *said), classes="d-status")
