"""Page "Steer": a direction added to the activations, or weights of finetunes turned up and down, on prompts of one's
own. Each try is a run of `steering` or `weight_amplification`, so the same try again is a lookup.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from markupsafe import Markup

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.ui.addresses import show_in_address
from diffing_mcp.ui.bench import failed, waiting_html
from diffing_mcp.ui.connection import ServerConnection
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.html import alert, div, element, empty, heading, number
from diffing_mcp.ui.steering import (
    LAYERS,
    MODULES,
    OWN,
    Row,
    amplification_arguments,
    answers_html,
    finetune_choices,
    prompts_of,
    stack_text,
    steering_arguments,
    vector_choices,
)
from diffing_mcp.ui.widgets import pair_choices, picker

_STACK = 4
_WEIGHTS = (
    "0 is the base, 1 the finetune, 2 twice its change. Changes of several finetunes add up; of several rows of one "
    "finetune the later counts where they meet. A row without a finetune does nothing."
)
_PROMPTS = "Tell me something interesting.\nWhat should I do this weekend?"
# A slider that is moved by the keyboard fires no event of Gradio's at its end, so the button of its tab is pressed.
_KEYS_MOVE_SLIDERS = """() => { let soon; document.addEventListener('keyup', event => {
  if (event.target.type !== 'range' || !/^(Arrow|Page|Home|End)/.test(event.key)) return;
  clearTimeout(soon);
  const button = event.target.closest('[role=tabpanel]')?.querySelector('#steer-button, #amplify-button');
  soon = setTimeout(() => button?.click(), 600);
}) }"""


class SteerPage:
    """The page's components, what their events do, and which event does what."""

    def __init__(self, files: PanelFiles, connection: ServerConnection) -> None:
        self.files, self.connection = files, connection
        gr.HTML(heading("Steer", "Turn a direction or a finetune up and down, and read what the model says then."))
        self.pair = picker(
            [], label="Pair", info="organism[/variant][@model], or BASE::FINETUNED", elem_id="steer-pair"
        )
        with gr.Row(equal_height=False):
            self.prompts = gr.Textbox(
                _PROMPTS, label="Prompts, one a line", lines=3, scale=4, min_width=300, elem_id="steer-prompts"
            )
            self.tokens = gr.Number(
                32, label="Tokens at most", precision=0, minimum=1, maximum=512, scale=1, min_width=140
            )
        with gr.Tabs() as self.tabs:
            with gr.Tab("A direction", id="direction"):
                self._direction()
            with gr.Tab("Finetunes", id="weights"):
                self._weights()
        self.shown = gr.HTML(
            empty("Nothing tried yet", "Move the slider or press the button; the first try loads the models."),
            elem_id="steer-answers",
        )

    def _direction(self) -> None:
        with gr.Row(elem_classes="d-controls"):
            self.vector = picker(
                [], label="Direction", info="RUN/NAME of a finished run", scale=4, elem_id="steer-vector"
            )
            self.side = gr.Radio(["finetuned", "base"], value="finetuned", label="Steered model", scale=2)
        with gr.Row(elem_classes="d-controls"):
            self.strength = gr.Slider(
                -4, 4, 1, step=0.125, label="Strength: 1 adds a vector as long as typical activations", scale=5
            )
            self.steer = gr.Button("Steer", variant="primary", scale=0, min_width=140, elem_id="steer-button")

    def _weights(self) -> None:
        self.rows: list[gr.Row] = []
        self.stack: list[Any] = []
        for place in range(_STACK):
            with gr.Row(elem_classes="d-controls", visible=place == 0) as row:
                label = f"Finetune {place + 1}"
                first = place == 0
                pair = picker([OWN], value=OWN if first else None, label=label, scale=3, min_width=240)
                layers = gr.Dropdown(list(LAYERS), value="all layers", label=f"Layers of {place + 1}", scale=1)
                modules = gr.Dropdown(list(MODULES), value="all", label=f"Modules of {place + 1}", scale=1)
                weight = gr.Slider(
                    -8, 8, 2 if first else 1, step=0.25, label=f"Weight of {place + 1}", scale=3, min_width=240
                )
            self.rows.append(row)
            self.stack += [pair, layers, modules, weight]
        self.used = gr.State(1)
        with gr.Row(elem_classes="d-controls"):
            self.more = gr.Button("Add a finetune", scale=0, min_width=160)
            self.fewer = gr.Button("Remove the last", scale=0, min_width=160, interactive=False)
            self.amplify = gr.Button("Amplify", variant="primary", scale=0, min_width=140, elem_id="amplify-button")
        gr.HTML(div(_WEIGHTS, classes="d-note"))

    def connect(self, demo: gr.Blocks) -> None:
        """Which event does what."""
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        others = self.stack[::4]
        demo.load(self.opened, None, [self.pair, self.vector, *others], **quiet)
        demo.load(None, None, None, js=_KEYS_MOVE_SLIDERS, api_visibility="private")
        self.pair.input(self.picked, [self.pair], [self.vector, *others], **quiet)
        for choice in (self.pair, self.vector):
            choice.input(None, [self.pair, self.vector], None, js=show_in_address("pair", "vector"), **quiet)
        direction: list[Any] = [self.pair, self.vector, self.strength, self.side, self.prompts, self.tokens]
        for event in (self.steer.click, self.strength.release):
            event(self.steered, direction, [self.shown], trigger_mode="always_last", **quiet)
        weights: list[Any] = [self.pair, self.prompts, self.tokens, self.used, *self.stack]
        for event in (self.amplify.click, *(slider.release for slider in self.stack[3::4])):
            event(self.amplified, weights, [self.shown], trigger_mode="always_last", **quiet)
        stacked: list[Any] = [self.used, *self.rows, self.fewer, self.more]
        self.more.click(lambda used: self.sized(used + 1), [self.used], stacked, **quiet)
        self.fewer.click(lambda used: self.sized(used - 1), [self.used], stacked, **quiet)

    def opened(self, request: gr.Request) -> tuple[Any, ...]:
        query, choices = request.query_params, pair_choices()
        pair = query.get("pair") or self.files.newest_pair() or choices[0][1]
        known, *others = self.picked(pair)
        if wanted := query.get("vector"):
            known["value"] = wanted
        return gr.update(choices=choices, value=pair), known, *others

    def picked(self, pair: str | None) -> tuple[Any, ...]:
        """The directions and the finetunes that a pair can be changed with."""
        known = vector_choices(pair, self.files.runs) if pair else []
        directions = gr.update(choices=known, value=known[0] if known else None)
        return directions, *[gr.update(choices=finetune_choices(pair, pair_choices()))] * _STACK

    def sized(self, used: int) -> tuple[Any, ...]:
        """A stack of so many finetunes."""
        used = min(max(used, 1), _STACK)
        rows = [gr.update(visible=place < used) for place in range(_STACK)]
        return used, *rows, gr.update(interactive=used > 1), gr.update(interactive=used < _STACK)

    async def steered(
        self, pair: str | None, vector: str | None, strength: float, side: str, prompts: str | None, tokens: float
    ) -> AsyncIterator[Markup]:
        asked = prompts_of(prompts)
        if not (pair and asked):
            yield alert("Choose a pair and write at least one prompt.", "warn")
        elif not vector:
            yield alert(
                "Choose a direction. Runs of the activation difference lens, PCA and others offer some.", "warn"
            )
        else:
            arguments = steering_arguments(vector, strength, side, asked, int(tokens or 32))
            tried = f"{number(strength)} × {vector} on the {side} model"
            async for shown in self._run("steering", pair, arguments, tried):
                yield shown

    async def amplified(
        self, pair: str | None, prompts: str | None, tokens: float, used: int, *stack: Any
    ) -> AsyncIterator[Markup]:
        asked = prompts_of(prompts)
        if not (pair and asked):
            yield alert("Choose a pair and write at least one prompt.", "warn")
            return
        rows: list[Row] = [row for place in range(used) if (row := tuple(stack[4 * place : 4 * place + 4]))[0]]
        if not rows:
            yield alert("Choose at least one finetune.", "warn")
            return
        arguments = amplification_arguments(rows, asked, int(tokens or 32))
        async for shown in self._run("weight_amplification", pair, arguments, stack_text(rows)):
            yield shown

    async def _run(self, method: str, pair: str, arguments: dict[str, Any], tried: str) -> AsyncIterator[Markup]:
        """Progress, then the answers of a run, or why there are none."""
        yield div(element("b", tried), ": waiting for the model server", classes="d-note")
        try:
            async for reply in self.connection.follow(method, {"pair": pair, **arguments}):
                running = reply.get("status") == "running"
                yield _progress(tried, reply["job"]) if running else answers_html(reply, tried)
        except DiffingError as error:
            yield failed(error)


def _progress(tried: str, job: dict[str, Any]) -> Markup:
    return div(element("b", tried), ": ", waiting_html(job), classes="d-note")


def build(files: PanelFiles, connection: ServerConnection, demo: gr.Blocks) -> None:
    """Lay out the page and connect it."""
    SteerPage(files, connection).connect(demo)
