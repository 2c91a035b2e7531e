"""Page "Ask": one prompt answered by base and finetuned, and one text shaded by where they disagree. Goes through the
MCP server, which is started by the first question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import gradio as gr
from markupsafe import Markup

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.ui.addresses import show_in_address
from diffing_mcp.ui.connection import ServerConnection
from diffing_mcp.ui.heatmap import METRICS, heat_map
from diffing_mcp.ui.html import alert, div, element, empty, heading, join, preformatted
from diffing_mcp.ui.widgets import pair_choices, picker

_SIDES = ("base", "finetuned")
_CHARACTERS = 200_000


def answers_html(result: Mapping[str, Any]) -> Markup:
    """The answer of `ask_models` as two columns. The text is shown as it came, never interpreted."""
    blocks = []
    for answer in result["answers"]:
        columns = [
            div(
                element("h3", side.capitalize()),
                *(_sample(sample) for sample in answer.get(side) or []),
                classes=f"d-side {side}",
            )
            for side in _SIDES
        ]
        blocks.append(div(*columns, classes="d-sides"))
    return join(blocks)


def _sample(sample: Mapping[str, Any]) -> Markup:
    notes = ["stopped at the token limit"] if sample.get("finish") == "length" else []
    notes += ["shortened for display"] if sample.get("cut") else []
    text = str(sample["model_text"])
    return div(
        preformatted(text) if text.strip() else element("em", "(empty answer)"),
        element("p", ", ".join(notes), classes="d-remark") if notes else "",
        classes="d-sample",
    )


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


def _failed(error: BaseException) -> Markup:
    return alert(error.message if isinstance(error, DiffingError) else f"{type(error).__name__}: {error}")


class Handlers:
    """What the buttons of the page do. Every outcome, errors too, is something to show."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection

    async def status(self) -> tuple[Markup, Any]:
        """Whether a server runs, and the button that stops one of the panel's own."""
        running = await asyncio.to_thread(self.connection.answers)
        return status_html(self.connection, running), gr.update(visible=running and self.connection.started_here)

    async def stop(self) -> tuple[Markup, Any]:
        """Stop the server that the panel started, then as `status`."""
        await asyncio.to_thread(self.connection.close)
        return await self.status()

    async def ask(
        self,
        pair: str,
        prompt: str,
        system: str | None,
        prefill: str | None,
        samples: float,
        temperature: float,
        tokens: float,
        seed: float,
    ) -> tuple[Markup, dict[str, Any] | None]:
        """Both models' answers as HTML, and what was asked."""
        # A field in a part of the page that was never opened arrives as None.
        if not (pair and prompt and prompt.strip()):
            return alert("Choose a pair and write a prompt.", "warn"), None
        arguments: dict[str, Any] = {
            "pair": pair,
            "prompts": [prompt],
            "samples": int(samples or 1),
            "temperature": float(temperature or 0),
            "max_new_tokens": int(tokens or 128),
            "seed": int(seed or 0),
            "prefill": prefill or "",
            "max_characters": _CHARACTERS,
        }
        if system and system.strip():
            arguments["system_prompt"] = system
        try:
            result = await self.connection.call("ask_models", arguments)
        except DiffingError as error:
            return _failed(error), None
        return answers_html(result), {"prompt": prompt, "answers": result["answers"]}

    async def compare(
        self,
        pair: str,
        text: str | None,
        prompt: str | None,
        candidates: str | None,
        greedy_tokens: float | None,
        metric: str,
    ) -> tuple[Markup, dict[str, Any] | None]:
        """The heat map of a text, its stretches, candidates (one a line) and greedy answers, and the data
        behind them.
        """
        alternatives = [line for line in (candidates or "").splitlines() if line.strip()]
        greedy = int(greedy_tokens or 0)
        written, asked = bool(text and text.strip()), bool(prompt and prompt.strip())
        if not pair or not (written or (asked and (alternatives or greedy))):
            return alert(
                "Choose a pair and write a text to score, or a message with candidates or greedy tokens.", "warn"
            ), None
        arguments: dict[str, Any] = {"pair": pair, "max_tokens": 1024, "top": 8}
        if written:
            arguments["text"] = text
        if asked:
            arguments["prompt"] = prompt
        if alternatives:
            arguments["candidates"] = alternatives
        if greedy:
            arguments["greedy_tokens"] = greedy
        try:
            result = await self.connection.call("compare_text", arguments)
        except DiffingError as error:
            return _failed(error), None
        return heat_map(result, metric), result


def reuse(asked: dict[str, Any] | None) -> tuple[Any, Any]:
    """The first finetuned answer as the text to score."""
    for answer in (asked or {}).get("answers", []):
        for sample in answer.get("finetuned") or []:
            return sample["model_text"], (asked or {})["prompt"]
    return gr.skip(), gr.skip()


def build(connection: ServerConnection, demo: gr.Blocks) -> None:
    """Lay out the page and connect it."""
    does = Handlers(connection)

    def opened(request: gr.Request) -> tuple[Any, ...]:
        query, choices = request.query_params, pair_choices()
        return (
            gr.update(choices=choices, value=query.get("pair") or choices[0][1]),
            query.get("prompt", ""),
            query.get("text", ""),
        )

    gr.HTML(
        heading(
            "Ask",
            (
                "Put one prompt to both models, or see token by token where they disagree about a text. Nothing here "
                "counts against a budget."
            ),
        )
    )
    with gr.Row(elem_classes="d-controls"):
        status = gr.HTML(elem_id="server-status")
        stop_button = gr.Button("Stop it", scale=0, min_width=110, visible=False)
    ask_button, pair, asking = _question()
    answers = gr.HTML(
        empty("No answers yet", "Both models get the same prompt, template, sampling and seed."), elem_id="answers"
    )
    asked, compared = gr.State(None), gr.State(None)

    comparing, metric, reuse_button, compare_button = _text_to_score()
    heat = gr.HTML(elem_id="heat")

    prompt, text = asking[1], comparing[0]
    server: list[Any] = [status, stop_button]
    demo.load(opened, None, [pair, prompt, text], api_visibility="private", show_progress="hidden")
    demo.load(does.status, None, server, api_visibility="private", show_progress="hidden")
    stop_button.click(does.stop, None, server, api_visibility="private")
    answered = [
        ask_button.click(does.ask, asking, [answers, asked], api_visibility="private", show_progress_on=[answers]),
        compare_button.click(
            does.compare,
            [pair, *comparing, metric],
            [heat, compared],
            api_visibility="private",
            show_progress_on=[heat],
        ),
    ]
    for event in answered:
        event.then(does.status, None, server, api_visibility="private", show_progress="hidden")
    for button in (ask_button, compare_button):
        button.click(
            None, [pair, prompt, text], None, js=show_in_address("pair", "prompt", "text"), api_visibility="private"
        )
    metric.input(
        lambda result, name: heat_map(result, name) if result else gr.skip(),
        [compared, metric],
        [heat],
        api_visibility="private",
        show_progress="hidden",
    )
    reuse_button.click(reuse, [asked], comparing[:2], api_visibility="private")


def _question() -> tuple[gr.Button, gr.Dropdown, list[Any]]:
    """The form of a question: its button, the pair, and all inputs in the order of `Handlers.ask`."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            pair = picker(
                [],
                label="Pair",
                info="organism[/variant][@model], or BASE::FINETUNED",
                elem_id="ask-pair",
            )
            prompt = gr.Textbox(
                label="Prompt",
                lines=4,
                max_lines=14,
                placeholder="The same words go to both models.",
                elem_id="ask-prompt",
            )
            ask_button = gr.Button("Ask both models", variant="primary", elem_id="ask-button")
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                samples = gr.Number(1, label="Samples", precision=0, minimum=1, maximum=32, min_width=140)
                temperature = gr.Number(
                    0.7, label="Temperature (0 is greedy)", minimum=0, maximum=2, step=0.1, min_width=140
                )
            with gr.Row():
                tokens = gr.Number(128, label="Tokens at most", precision=0, minimum=1, maximum=2048, min_width=140)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, min_width=140)
            with gr.Accordion("System prompt and prefill", open=False):
                system = gr.Textbox(label="System prompt", lines=2)
                prefill = gr.Textbox(label="Prefill", info="The beginning of the answer; both models go on from there.")
    return ask_button, pair, [pair, prompt, system, prefill, samples, temperature, tokens, seed]


def _text_to_score() -> tuple[list[Any], gr.Radio, gr.Button, gr.Button]:
    """The form of the heat map: the inputs in the order of `Handlers.compare` (the metric apart), metric, the two
    buttons.
    """
    gr.HTML(heading("Token heat map", "The probability of every token of a text under both models."))
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            text = gr.Textbox(label="Text to score", lines=3, max_lines=12, elem_id="compare-text")
        with gr.Column(scale=2, min_width=320):
            as_answer = gr.Textbox(
                label="As the answer to (optional)",
                info="Scored inside the chat template after this user message.",
                lines=2,
            )
            with gr.Accordion("Candidates and greedy answers", open=False):
                candidates = gr.Textbox(
                    label="Candidates",
                    info="Alternative answers (or continuations of the text), one a line, scored whole under both.",
                    lines=3,
                )
                greedy = gr.Number(
                    0,
                    label="Greedy tokens",
                    info="How far both go on greedily, to see where they part.",
                    precision=0,
                    minimum=0,
                    maximum=256,
                )
    with gr.Row(elem_classes="d-controls"):
        metric = gr.Radio(
            [(label, name) for name, label in METRICS.items()], value="difference", label="Shade by", scale=3
        )
        reuse_button = gr.Button("Use the finetuned answer above", scale=2, min_width=260)
        compare_button = gr.Button("Compare", variant="primary", scale=1, min_width=140, elem_id="compare-button")
    return [text, as_answer, candidates, greedy], metric, reuse_button, compare_button
