"""The page "Steer": what it sends, and what it shows of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import gradio as gr
import pytest

from diffing_mcp.agents.mcp_session import ToolFailed
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.methods.steering.schema import SteeringParams
from diffing_mcp.methods.weight_amplification.schema import WeightAmplificationParams
from diffing_mcp.model_pairs.amplification_config import load_amplification_config
from diffing_mcp.ui.connection import ServerConnection
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.steer import SteerPage
from diffing_mcp.ui.steering import (
    OWN,
    amplification_arguments,
    answers_html,
    finetune_choices,
    prompts_of,
    stack_text,
    steering_arguments,
    vector_choices,
)
from tests.ui.conftest import Paths
from tests.ui.panel_data import EVIL


def test_a_stack_of_finetunes_is_a_configuration_of_weight_amplification() -> None:
    stack = [(OWN, "all layers", "all", 2.0), ("poetic/default@smollm2-135m", "second half", "mlp", -1.5)]
    arguments = amplification_arguments(stack, ["one", "two"], 16)
    params = WeightAmplificationParams.model_validate(arguments)
    stack.append((OWN, "first half", "attention", 0.0))
    [twice, _] = load_amplification_config(amplification_arguments(stack, ["one"], 16)["config"]).adapters
    assert len(twice.layer_amplifications) == 2, "rules of one finetune stand in one entry"
    own, other = load_amplification_config(str(params.config)).adapters
    assert own.own
    assert (other.organism_name, other.variant) == ("poetic", "default")
    [entry] = other.layer_amplifications
    assert min(entry.chosen(30) or ()) >= 14
    [rule] = entry.module_amplifications
    assert (rule.modules, rule.weight) == ("mlp", -1.5)
    assert params.prompts == ("one", "two")


def test_a_stack_takes_finetunes_of_the_pair_s_base_and_says_what_it_is() -> None:
    pairs = [("poetic/default@smollm2-135m", "poetic/default@smollm2-135m"), ("far (needs a download)", "far/x@qwen")]
    assert finetune_choices("cake_bake", pairs) == [OWN, "poetic/default@smollm2-135m"]
    assert finetune_choices("cake_bake/default@smollm2-135m", pairs) == finetune_choices("cake_bake", pairs)
    assert finetune_choices("./base::./finetuned", pairs) == [OWN, "poetic/default@smollm2-135m", "far/x@qwen"]
    stack = [(OWN, "all layers", "all", 2.0), ("poetic", "second half", "mlp", -1.5)]
    assert stack_text(stack) == f"2 × {OWN} + −1.5 × poetic (second half, mlp)"


def test_a_direction_is_steered_at_one_strength() -> None:
    arguments = steering_arguments(" pca-1f3a9c/14:component1 ", -0.5, "base", prompts_of("one\n\n two "), 16)
    params = SteeringParams.model_validate(arguments)
    assert params.strengths == (-0.5,)
    assert params.vector == "pca-1f3a9c/14:component1"
    assert params.prompts == ("one", "two")
    assert params.rows == 2


def test_answers_stand_beside_the_plain_ones_as_text() -> None:
    steered = {"prompt": EVIL, "side": "base", "strength": 2.0, "steered": EVIL, "unsteered": "plain"}
    markup = answers_html({"run_id": "steering-1f3a9c", "result": {"headline": "Words rose.", "answers": [steered]}})
    assert EVIL not in markup
    assert "Steered at 2" in markup
    assert markup.index("plain") < markup.index("Steered at 2")
    assert "run?run=steering-1f3a9c" in markup
    three = {"prompt": "p", "weight": 3.0, "amplified": "", "finetuned": "f", "base": "b"}
    stacked = answers_html({"result": {"answers": [three]}}, "2 × poetic")
    assert stacked.count("<h3>") == 4  # the prompt and three models
    assert "<b>2 × poetic</b>" in stacked
    assert "<h3>Amplified</h3>" in stacked
    assert "cannot steer" in answers_html({"result": {"headline": "A zero vector cannot steer.", "answers": []}})


def test_directions_are_those_of_the_pair_s_runs(filled: Paths) -> None:
    assert vector_choices("cake_bake", RunStore(filled.data_folder / "runs")) == [], "the probe offers none"


class Running:
    """A connection whose run is over after one step, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.sent = fails, []

    sent: list[tuple[str, dict[str, Any]]]

    async def follow(self, tool: str, arguments: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.sent.append((tool, arguments))
        yield {"status": "running", "job": {"job_id": "steering-1", "state": "running", "message": "steering"}}
        if self.fails:
            raise ToolFailed(tool, "There is no vector of that name.")
        answer = {"prompt": "one", "strength": 1.0, "steered": "changed", "unsteered": "plain"}
        yield {"status": "completed", "result": {"answers": [answer]}}


async def shown_by(steps: AsyncIterator[Any]) -> list[str]:
    return [str(step) async for step in steps]


@pytest.fixture
def page(filled: Paths) -> SteerPage:
    with gr.Blocks():
        return SteerPage(PanelFiles(filled.data_folder), cast(ServerConnection, Running()))


def test_a_try_shows_how_far_it_is_and_then_its_answers(page: SteerPage) -> None:
    steps = asyncio.run(shown_by(page.steered("identical", "pca-1f/14:component1", 1.0, "finetuned", "one", 8)))
    assert "steering" in steps[1]
    assert "changed" in steps[-1]
    page.connection = cast(ServerConnection, Running(fails=True))
    steps = asyncio.run(shown_by(page.amplified("identical", "one", 8, 1, OWN, "all layers", "all", 2.0)))
    assert "There is no vector of that name." in steps[-1]
    # A row that was added and left empty does nothing.
    rows = (OWN, "all layers", "all", 4.0, None, "all layers", "all", 1.0)
    asyncio.run(shown_by(page.amplified("identical", "one", 8, 2, *rows)))
    [own] = load_amplification_config(cast(Running, page.connection).sent[-1][1]["config"]).adapters
    assert own.layer_amplifications[0].module_amplifications[0].weight == 4


def test_what_is_missing_is_said_before_anything_runs(page: SteerPage) -> None:
    assert "at least one prompt" in asyncio.run(shown_by(page.steered("identical", "a/b", 1.0, "base", " ", 8)))[0]
    assert "Choose a direction" in asyncio.run(shown_by(page.steered("identical", None, 1.0, "base", "one", 8)))[0]
    assert "at least one prompt" in asyncio.run(shown_by(page.amplified(None, "one", 8, 1)))[0]
    alone = page.amplified("identical", "one", 8, 1, None, "all layers", "all", 1.0)
    assert "at least one finetune" in asyncio.run(shown_by(alone))[0]
    assert cast(Running, page.connection).sent == []


def test_a_stack_has_between_one_and_four_finetunes(page: SteerPage) -> None:
    assert page.sized(0)[0] == 1
    assert page.sized(9)[0] == 4
    assert page.sized(1)[-2]["interactive"] is False
    assert page.sized(4)[-1]["interactive"] is False
