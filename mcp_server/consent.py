"""Asking the user before something is deleted or a long training starts, in hosts that say that they put questions to
users. Others go on as before: agents in evaluations have no user.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mcp.server.elicitation import AcceptedElicitation
from mcp.server.mcpserver import Context
from mcp.types import ClientCapabilities, ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from mcp.types.version import is_version_at_least
from pydantic import BaseModel

from diffing_mcp.core.errors import DiffingError

STATELESS_SINCE = "2026-07-28"
"""Revision from which on a question is an answer, and the reply another call."""
KEY = "consent"


class Declined(DiffingError):
    """The user does not want it."""

    code = "declined"


class QuestionPut(Exception):
    """Not an error: the call ends with a question, and the client calls again with the user's answer."""

    def __init__(self, result: InputRequiredResult) -> None:
        self.result = result


class Nothing(BaseModel):
    """What a user fills in: to accept is all there is."""


def consent_of(context: Context[Any, Any] | None, tool: str) -> Callable[[str], Awaitable[None]] | None:
    """What puts a question about a call to the user and returns when it is accepted; None: this client asks no users.

    It raises `Declined`, or `QuestionPut` where the protocol has the client call again.
    """
    if context is None or not asks_users(context.client_capabilities):
        return None

    async def ask(question: str) -> None:
        if not is_stateless(context.protocol_version):
            accepted = isinstance(await context.elicit(question, Nothing), AcceptedElicitation)
        else:
            accepted = _answered(context, question)
        if not accepted:
            raise Declined(f"The user declined, so {tool} did nothing. Ask what they want instead.")

    return ask


def is_stateless(protocol_version: str | None) -> bool:
    """Whether questions are answers and replies are calls in this revision."""
    return is_version_at_least(protocol_version or "", STATELESS_SINCE)


def asks_users(capabilities: ClientCapabilities | None) -> bool:
    """Whether a client puts forms to its user."""
    elicitation = capabilities.elicitation if capabilities is not None else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def _answered(context: Context[Any, Any], question: str) -> bool:
    answer = (context.input_responses or {}).get(KEY)
    # The state is sealed by the SDK for this tool and these arguments: no answer counts for another call.
    if isinstance(answer, ElicitResult) and context.request_state == KEY:
        return answer.action == "accept"
    form = ElicitRequestFormParams(message=question, requested_schema={"type": "object", "properties": {}})
    raise QuestionPut(InputRequiredResult(input_requests={KEY: ElicitRequest(params=form)}, request_state=KEY))
