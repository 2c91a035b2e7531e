"""Tools for operators about levels of verdicts: measuring them for a base model, and listing them."""

from __future__ import annotations

from collections.abc import Mapping

import anyio.to_thread
from pydantic import BaseModel, Field

from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Arguments, Reply, ToolDeclaration, WaitArguments
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.methods.calibration.detection import Detection, detection
from diffing_mcp.methods.calibration.schema import Calibration
from diffing_mcp.methods.calibration.store import calibration_named, stored_calibrations
from diffing_mcp.methods.calibration.summary import CalibrationSummary, summary


class CalibrateArguments(WaitArguments):
    """Arguments of calibrate."""

    base: str = Field(min_length=1, max_length=1000, description="A base model: catalogue name, hub id or folder.")
    taught: bool = Field(
        False, description="Also measure the zoo of taught finetunes, which gives probabilities and powers."
    )
    most: int | None = Field(None, ge=1, le=1000, description="Finetunes measured by this call at most; null: all.")


class ListCalibrationsResult(BaseModel):
    """What verdicts are calibrated for, those made here first."""

    calibrations: list[CalibrationSummary]


class DescribeCalibrationArguments(Arguments):
    """Arguments of describe_calibration."""

    base: str = Field(min_length=1, max_length=1000, description="A base of list_calibrations.")


async def calibrate(call: Call, arguments: CalibrateArguments) -> Reply:
    def work(job: Job) -> Calibration:
        from diffing_mcp.methods.calibration.calibrate import calibrate as measure

        pairs = call.context.pairs
        return measure(pairs, arguments.base, taught=arguments.taught, most=arguments.most, progress=job)

    def present(_: Call, calibration: Calibration) -> Reply:
        found = summary(calibration)
        return Reply(found, found.as_text())

    # An equal call measures the next ones.
    key = [arguments.base, arguments.taught, arguments.most]
    return await call.run_job(key, work, present, still=lambda _: False)


async def list_calibrations(call: Call, arguments: Arguments) -> Reply:
    found = [summary(each) for each in await anyio.to_thread.run_sync(stored_calibrations)]
    return Reply(ListCalibrationsResult(calibrations=found), "\n".join(each.as_text() for each in found) or "none")


async def describe_calibration(call: Call, arguments: DescribeCalibrationArguments) -> Reply:
    calibration = await anyio.to_thread.run_sync(calibration_named, arguments.base)
    found = await anyio.to_thread.run_sync(detection, calibration)
    return Reply(found, found.as_text())


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tools of this module."""
    tools = [
        ToolDeclaration(
            "calibrate",
            "Calibrate verdicts",
            (
                "Makes finetunes of a base model that teach nothing, of several kinds and sizes, and measures what the "
                "methods show of them, so that findings on finetunes of this base come with a p-value and a "
                "probability. Goes on where an earlier call stopped. Minutes to hours."
            ),
            CalibrateArguments,
            CalibrationSummary,
            calibrate,
            tool_calls=0,
            operator_only=True,
            lasting=True,
        ),
        ToolDeclaration(
            "describe_calibration",
            "What methods can tell",
            (
                "Figures of one calibration: how well each method tells taught finetunes from nulls (area under the "
                "ROC, power, false positives, also on finetunes set aside), at which dilution each kind is seen, and "
                "whether stated probabilities are right."
            ),
            DescribeCalibrationArguments,
            Detection,
            describe_calibration,
            tool_calls=0,
            operator_only=True,
        ),
        ToolDeclaration(
            "list_calibrations",
            "List calibrations",
            "List the base models that verdicts are calibrated for, and what each calibration rests on.",
            Arguments,
            ListCalibrationsResult,
            list_calibrations,
            tool_calls=0,
            operator_only=True,
        ),
    ]
    return {tool.name: tool for tool in tools}
