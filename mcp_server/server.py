"""The MCP server: which tools a caller sees, and what happens around every call (validation, budget, log, redaction,
rendering).
"""

from __future__ import annotations

import base64
import difflib
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    GetPromptResult,
    ImageContent,
    InputRequiredResult,
    ListToolsResult,
    PaginatedRequestParams,
    Prompt,
    Resource,
    ResourceTemplate,
    TextContent,
    Tool,
)
from pydantic import BaseModel, ValidationError

from diffing_mcp.core.errors import DiffingError, InvalidInput, UnknownName
from diffing_mcp.core.validation_messages import complaints
from diffing_mcp.core.version import version
from diffing_mcp.core.wire import APP, IMAGES, JOB, RUN, STRUCTURED
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.access_tokens import record_call
from diffing_mcp.mcp_server.app_data import app_data, run_pictures
from diffing_mcp.mcp_server.apps import PAGE, apps, renders, with_page
from diffing_mcp.mcp_server.arguments import coerced, cuts
from diffing_mcp.mcp_server.auth import Caller, current_caller
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.changes import Updates, advertise_what_is_sent, tell_that_tools_changed
from diffing_mcp.mcp_server.consent import QuestionPut, consent_of
from diffing_mcp.mcp_server.declarations import AnswerEnvelope, Reply, ToolDeclaration
from diffing_mcp.mcp_server.findings import list_findings
from diffing_mcp.mcp_server.instructions import INSTRUCTIONS
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.mcp_server.ledger import BudgetState
from diffing_mcp.mcp_server.monitoring import Metrics
from diffing_mcp.mcp_server.offer import Offer, Selection
from diffing_mcp.mcp_server.prompts import OPERATOR_PROMPTS, add_completions, add_prompts
from diffing_mcp.mcp_server.redaction import redactor_of
from diffing_mcp.mcp_server.render import rounded
from diffing_mcp.mcp_server.resources import RUNS, add_resources, run_uri
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.shown_errors import presentable
from diffing_mcp.mcp_server.tasks import WAIT_SECONDS as TASK_WAIT_SECONDS
from diffing_mcp.mcp_server.tasks import Tasks, has_tasks
from diffing_mcp.mcp_server.tool_mentions import without_missing
from diffing_mcp.mcp_server.tools_jobs import job_of
from diffing_mcp.mcp_server.tools_more import MoreToolsArguments
from diffing_mcp.mcp_server.toolset import toolset, toolsets
from diffing_mcp.methods.registry import canonical_name

logger = logging.getLogger(__name__)

# What may still be called after submit_finding.
AFTER_THE_END = ("list_pairs", "describe_pair", "list_hypotheses", "submit_finding", "get_job", "cancel_job")


class DiffingServer(MCPServer):
    """`MCPServer` whose tools are `ToolDeclaration`s and depend on the caller."""

    def __init__(
        self, context: ServerContext, default_caller: Caller | None, selection: Selection | None = None
    ) -> None:
        super().__init__(
            "diffing",
            title="Model diffing",
            version=version(),
            instructions=INSTRUCTIONS,
            extensions=[apps(), Tasks(context.jobs, self._job_of, self._shown_message, self._job_result)],
            log_level="WARNING",
        )
        advertise_what_is_sent(self._lowlevel_server, resources=True)
        self.context = context
        self.default_caller = default_caller
        self.updates = Updates(self._subscriptions, lambda: self.caller().operator)
        self.updates.serve(self._lowlevel_server)
        context.jobs.on_end.append(lambda job: self.updates.tell_from_thread(RUNS))
        self.metrics = Metrics(context)
        self.offer = Offer(toolset(), toolsets(), selection or Selection.from_settings())
        add_resources(self, context, self.caller)
        add_prompts(self)
        add_completions(self, context, self.caller)

    def _job_of(self, identifier: str) -> Job:
        return job_of(self.context.jobs, self.caller(), identifier)

    def _shown_message(self, text: str) -> str:
        caller = self.caller()
        return redactor_of(caller.investigation, self.offer.words).message(text) if caller.investigation else text

    async def _job_result(self, request: ServerRequestContext[Any, Any], job: str) -> Any:
        arguments = {"job_id": job, "wait_seconds": 0}
        return await self._handle_call_tool(request, CallToolRequestParams(name="get_job", arguments=arguments))

    def caller(self) -> Caller:
        """Who sent the request being served."""
        return current_caller(self.default_caller)

    async def list_tools(self) -> list[Tool]:
        """The tools this caller is shown, always in the same order. They have no output schemas: an answer is text,
        the same in every host, unless a program asks for more (`core.wire.STRUCTURED`).
        """
        caller = self.caller()
        missing = self.offer.missing(caller)
        return [
            Tool(
                name=tool.name,
                title=tool.title,
                description=without_missing(tool.description, missing, keep=1),
                input_schema=tool.input_schema,
                annotations=tool.annotations(caller.operator),
            )
            for tool in self.offer.listed(caller).values()
        ]

    async def _handle_list_tools(
        self, ctx: ServerRequestContext[Any], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        tools = await self.list_tools()
        return ListToolsResult(tools=[with_page(tool) for tool in tools] if renders(ctx) else tools)

    async def list_resources(self) -> list[Resource]:
        """The resources, which are for operators only. Hosts find the page of the apps by the tools."""
        listed = await super().list_resources() if self.caller().operator else []
        return [resource for resource in listed if resource.uri != PAGE]

    async def list_resource_templates(self) -> list[ResourceTemplate]:
        """Their templates, for operators only."""
        return await super().list_resource_templates() if self.caller().operator else []

    async def list_prompts(self) -> list[Prompt]:
        """The prompts that this caller can follow."""
        operator = self.caller().operator
        return [prompt for prompt in await super().list_prompts() if operator or prompt.name not in OPERATOR_PROMPTS]

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[Any, Any] | None = None
    ) -> GetPromptResult | InputRequiredResult:
        """A prompt with its arguments filled in.

        Raises:
            MCPError: invalid params, for an unknown prompt or wrong arguments.
        """
        known = {
            prompt.name: [argument.name for argument in prompt.arguments or ()] for prompt in await self.list_prompts()
        }
        if name not in known:
            raise MCPError(INVALID_PARAMS, f"There is no prompt {name!r}. Prompts: {', '.join(known)}.")
        try:
            return await super().get_prompt(name, arguments, context)
        except ValueError:
            raise MCPError(
                INVALID_PARAMS, f"Wrong arguments of the prompt {name}. It takes texts: {', '.join(known[name])}."
            ) from None

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Answer one call, or ask the user first.

        Raises:
            ToolError: for every failure, with the text the caller shall read.
        """
        caller = self.caller()
        started = time.monotonic()
        call: Call | None = None
        outcome = "abandoned"
        logged: Any = None
        reservation: str | None = None
        try:
            try:
                tool = self._tool(name, caller)
                given = _validated(tool, arguments)
                if isinstance(given, MoreToolsArguments) and given.tool is not None and given.arguments is not None:
                    name, arguments = given.tool, given.arguments
                    tool = self._tool(name, caller)
                    given = _validated(tool, arguments)
                if context is not None and has_tasks(context.request_context) and name != "get_job":
                    given = _sooner_a_task(given)
                call = Call(
                    self.context,
                    caller,
                    tool,
                    given,
                    self.offer,
                    structured=_asks(context, STRUCTURED),
                    notes=cuts(tool.input_schema, arguments),
                )
                reservation = self._reserve(caller, tool)
                call.report = _reporter(context, call)
                call.consent = consent_of(context, name)
                if tool.destructive and call.consent is not None:
                    await call.consent(f"{tool.title}: {_named(given)}. It cannot be had back. Go on?")
                reply = await tool.handler(call, call.arguments)
                if call.list_changed and context is not None:
                    await tell_that_tools_changed(context.session, self._subscriptions)
                if reservation is not None and reply.estimate is None:
                    self.context.ledger.commit(reservation)
                answer, text = self._answer(call, reply)
                content, meta = await self._beside(call, reply, answer, context)
            except QuestionPut as question:
                return question.result
            except Exception as error:
                outcome = "error"
                shown = presentable(name, error)
                logged = self._redacted(caller, [name, arguments], shown.message)
                if not shown.names_tools:
                    logged = without_missing(logged, self.offer.missing(caller), keep=1)
                raise ToolError(self._with_budget(caller, reservation, logged)) from None
            outcome, logged = ("running" if answer["status"] == "running" else "completed"), answer
            return CallToolResult(
                content=[TextContent(type="text", text=text), *content],
                structured_content=answer if call.structured else None,
                _meta=meta or None,
            )
        finally:
            # Runs also when the client hung up. All of it is synchronous, so the cancellation cannot cut it short.
            self._give_back(reservation)
            self._record(caller, name, arguments, outcome, logged, time.monotonic() - started)

    def _record(
        self, caller: Caller, name: str, arguments: dict[str, Any], outcome: str, logged: Any, seconds: float
    ) -> None:
        """Count a call, keep who made it, and of an investigation the whole of it."""
        # What is no tool may be any text.
        known = name if name in self.offer.tools else "unknown"
        self.metrics.called(known, outcome, seconds)
        try:
            record_call(caller.name, known, outcome, seconds)
            if caller.investigation is not None:
                investigations.log_call(
                    caller.investigation.id, name, arguments, outcome, logged, seconds, self._budget(caller)
                )
        except Exception:
            logger.exception("a call of %s could not be recorded", caller.scope)

    def _tool(self, name: str, caller: Caller) -> ToolDeclaration:
        usable, name = self.offer.usable(caller), canonical_name(name)
        if name not in usable:
            close = difflib.get_close_matches(name, usable, n=1)
            withheld = self.offer.read_only and name in self.offer.tools and self.offer.tools[name].lasting
            raise UnknownName(
                f"there is no tool {name!r} here{', as this server is read-only' if withheld else ''}."
                f"{f' Did you mean {close[0]}?' if close else ''} Tools: {', '.join(usable)}."
            )
        if caller.investigation is not None and name not in AFTER_THE_END and list_findings(caller.scope):
            raise InvalidInput(
                "the finding of this investigation has been submitted, so it is over; nothing more is needed"
            )
        return usable[name]

    def _reserve(self, caller: Caller, tool: ToolDeclaration) -> str | None:
        if caller.investigation is None or tool.tool_calls == 0:
            return None
        return self.context.ledger.reserve(caller.investigation.id, "tool_calls", tool.tool_calls, tool.name)

    def _budget(self, caller: Caller) -> BudgetState | None:
        return self.context.ledger.state(caller.investigation.id) if caller.investigation else None

    def _give_back(self, reservation: str | None) -> None:
        """Refund what was not spent. A disk that is full must not take the answer with it: what is still reserved comes
        back when the server ends.
        """
        if reservation is None:
            return
        try:
            self.context.ledger.refund(reservation)
        except sqlite3.Error:
            logger.exception("a reservation could not be given back")

    def _with_budget(self, caller: Caller, reservation: str | None, text: str) -> str:
        self._give_back(reservation)
        budget = self._budget(caller)
        return f"{text}\n{budget.as_text()}" if budget else text

    def _redacted(self, caller: Caller, given: Any, text: str) -> str:
        """An error as the caller, who has `given` this, may read it, also when the call never came to be."""
        if caller.investigation is None:
            return text
        try:
            return redactor_of(caller.investigation, self.offer.words, given).message(text)
        except Exception as error:
            return (
                presentable("redaction", error).message
                if not isinstance(error, DiffingError)
                else "the pair of this investigation cannot be read; tell the operator"
            )

    async def _beside(
        self, call: Call, reply: Reply, answer: dict[str, Any], request: Context[Any, Any] | None
    ) -> tuple[list[ImageContent], dict[str, Any]]:
        """What an answer has beside its text: pictures where the request asks for them, data of the page where the
        host renders one.
        """
        meta: dict[str, Any] = {}
        if reply.run_id is not None and call.caller.operator and call.caller.may_use("view_run"):
            meta[RUN] = run_uri(reply.run_id)
        drawn, pictured = request is not None and renders(request.request_context), _asks(request, IMAGES)
        if request is not None and answer["status"] == "running" and has_tasks(request.request_context):
            meta[JOB] = answer["job"]["job_id"]
        if reply.result is None or not (drawn or pictured):
            return [], meta
        run = self.context.store.get(reply.run_id) if reply.run_id is not None else None
        pictures: list[ImageContent] = []
        if pictured and run is not None:
            for _, picture in await anyio.to_thread.run_sync(lambda: list(run_pictures(run, call.redactor))):
                encoded = base64.b64encode(picture).decode()
                pictures.append(ImageContent(type="image", data=encoded, mime_type="image/png"))
        if drawn:
            meta[APP] = await anyio.to_thread.run_sync(app_data, reply.result, answer, run, call.redactor)
        return pictures, meta

    def _answer(self, call: Call, reply: Reply) -> tuple[dict[str, Any], str]:
        """The structured answer and the text that says the same."""
        job = reply.job
        status = "estimate" if reply.estimate else "completed"
        if reply.result is None and job is not None and job.state in ("queued", "running"):
            status = "running"
        if reply.result is None and job is not None and job.state == "cancelled":
            status = "cancelled"
        budget = self._budget(call.caller)
        reply.next_step = without_missing(reply.next_step or "", self.offer.missing(call.caller)) or None
        remarks = list(reply.remarks) if call.caller.operator else []
        answer: dict[str, Any] = AnswerEnvelope(
            status=status,
            run_id=reply.run_id,
            job=call.job_state(job) if job is not None else None,
            estimate=reply.estimate,
            budget=budget,
            next_step=reply.next_step,
            remarks=remarks or None,
        ).model_dump(mode="json")
        answer = {name: value for name, value in answer.items() if value is not None}
        if reply.result is not None:
            answer["result"] = rounded(reply.result.model_dump(mode="json"))
        notice = self.context.lost_work(call.caller.scope) if call.caller.investigation else ""
        lines = [notice, *(f"Remark: {remark}" for remark in remarks), *call.notes, reply.text]
        if reply.run_id is not None:
            lines.append(f"run: {reply.run_id}")
        elif job is not None and status == "completed":
            lines.append(f"job: {job.id}")  # what an investigator cites as evidence
        if reply.next_step:
            lines.append(reply.next_step)
        if budget is not None:
            lines.append(budget.as_text())
        text = "\n".join(line for line in lines if line)
        if call.redactor is not None:
            answer, text = call.redactor.result(answer), call.redactor.result(text)
        return answer, text


def _asks(request: Context[Any, Any] | None, key: str) -> bool:
    """Whether a request's `_meta` has this set to true."""
    return request is not None and bool(dict(request.request_context.meta or {}).get(key))


def _reporter(request: Context[Any, Any] | None, call: Call) -> Callable[[Job], Awaitable[None]] | None:
    if request is None:
        return None

    async def report(job: Job) -> None:
        await request.report_progress(*call.progress_of(job))

    return report


def _sooner_a_task(given: BaseModel) -> BaseModel:
    """The arguments with a short wait, unless they say how long."""
    if "wait_seconds" not in type(given).model_fields or "wait_seconds" in given.model_fields_set:
        return given
    return given.model_copy(update={"wait_seconds": TASK_WAIT_SECONDS})


def _named(arguments: BaseModel) -> str:
    """What a call is about, for its question to the user."""
    return ", ".join(str(value) for value in arguments.model_dump(mode="json", exclude_none=True).values())


def _validated(tool: ToolDeclaration, arguments: dict[str, Any]) -> BaseModel:
    """The arguments as the tool declares them.

    Raises:
        InvalidInput: each wrong argument with what is allowed.
    """
    try:
        return tool.Arguments.model_validate(coerced(tool.Arguments, tool.input_schema, arguments))
    except ValidationError as error:
        fields = list(tool.Arguments.model_fields)
        raise InvalidInput(f"{tool.name}: {complaints(error, fields)}. Arguments: {', '.join(fields)}.") from None
