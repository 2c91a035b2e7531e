"""Waiting for jobs and stopping them."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.call import Call, JobPayload
from diffing_mcp.mcp_server.declarations import DEFAULT_WAIT_SECONDS, Arguments, JobState, Reply, ToolDeclaration
from diffing_mcp.mcp_server.jobs import LIVE, Job, Jobs


class GetJobArguments(Arguments):
    """Arguments of get_job."""

    job_id: str | None = Field(None, min_length=1, max_length=200, description="Left out: a list of the jobs.")
    wait_seconds: float = Field(DEFAULT_WAIT_SECONDS, ge=0, le=50, description="Seconds.")
    cancel: bool = Field(False, description="Stop it; what it had reserved is given back.")
    everything: bool = Field(False, description="All that is finished, not only what is new since you looked.")


class CancelJobArguments(Arguments):
    """Arguments of cancel_job."""

    job_id: str = Field(min_length=1, max_length=200)


class JobResult(BaseModel):
    """The result of the tool that started the job, as that tool gives it; or the list of jobs."""

    model_config = ConfigDict(extra="allow")


class JobList(BaseModel):
    """All jobs of this caller."""

    jobs: list[JobState]


def job_of(jobs: Jobs, caller: Caller, identifier: str) -> Job:
    """A job that the caller may see: of a token with tools of its own, those of these tools.

    Raises:
        UnknownName: there is no such job for this caller.
    """
    job = jobs.get(identifier, caller.job_scope)
    if not caller.may_use(job.kind):
        raise UnknownName(f"unknown job {identifier!r}. get_job without job_id lists the jobs there are.")
    return job


async def get_job(call: Call, arguments: GetJobArguments) -> Reply:
    if arguments.job_id is None:
        if arguments.cancel:
            raise InvalidInput("say which job to cancel: job_id. Without arguments get_job lists the jobs.")
        jobs = [job for job in call.context.jobs.list(call.caller.job_scope) if call.caller.may_use(job.kind)][-20:]
        for job in jobs:
            job.handed_out = True
        lines = [call.job_line(job) if job.state in LIVE else f"{job.id}: {job.state}" for job in jobs]
        return Reply(JobList(jobs=[call.job_state(job) for job in jobs]), "\n".join(lines) or "No jobs.")
    if arguments.cancel:
        return await cancel_job(call, CancelJobArguments(job_id=arguments.job_id))
    job = job_of(call.context.jobs, call.caller, arguments.job_id)
    await call.context.jobs.wait(job, arguments.wait_seconds, call.report)
    payload: JobPayload = job.payload
    return call.reply_of(job, payload.present, everything=arguments.everything)


async def cancel_job(call: Call, arguments: CancelJobArguments) -> Reply:
    job = job_of(call.context.jobs, call.caller, arguments.job_id)
    if job.state in ("completed", "failed", "cancelled"):
        return Reply(JobList(jobs=[call.job_state(job)]), f"{job.id} is {job.state} already; nothing to cancel.")
    call.context.jobs.cancel(job)
    # Long enough for most batches, so that the answer can say that the device is free again.
    await call.context.jobs.wait(job, 10, call.report)
    said = (
        "is cancelled; what it had reserved was given back"
        if job.state == "cancelled"
        else f"is {job.state}; it stops at its next batch"
    )
    return Reply(JobList(jobs=[call.job_state(job)]), f"{job.id} {said}.")


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tools of this module."""
    tools = [
        ToolDeclaration(
            "get_job",
            "Wait for a job",
            (
                "Wait for work that another tool has started and get its result, or stop it with cancel=true. Returns "
                "early when the job ends; otherwise tells its progress, and you call again. Without job_id it lists "
                "the jobs."
            ),
            GetJobArguments,
            JobResult,
            get_job,
            tool_calls=0,
        ),
        ToolDeclaration(
            "cancel_job",
            "Cancel a job",
            "Stop a job at its next batch and get back what it had reserved. Finished runs stay.",
            CancelJobArguments,
            JobList,
            cancel_job,
            tool_calls=0,
            read_only=False,
        ),
    ]
    return {tool.name: tool for tool in tools}
