"""Page "Ask": a conversation with base and finetuned side by side, and any text shaded by where they disagree. Goes
through the MCP server, which is started by the first question.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from markupsafe import Markup
from pydantic import ValidationError

from diffing_mcp.ui.addresses import show_in_address
from diffing_mcp.ui.bench import Action, Bench, status_html
from diffing_mcp.ui.connection import ServerConnection
from diffing_mcp.ui.conversation import Conversation, How
from diffing_mcp.ui.conversation_view import Waiting, conversation_html
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.heatmap import METRICS, heat_map
from diffing_mcp.ui.html import alert, empty, heading
from diffing_mcp.ui.saved_evidence import EvidenceFolder
from diffing_mcp.ui.widgets import acting, pair_choices, picker

Changes = dict[Any, Any]
"""Component -> its new value; others stay as they are."""

_READY = gr.update(interactive=True, value="Ask both models")
_NOTHING = empty("No answers yet", "Both models get the same message, template, sampling and seed.")
_SEND_ON_CTRL_ENTER = """() => document.querySelector('#ask-prompt').addEventListener('keydown', event => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) document.querySelector('#ask-button').click();
})"""
_TO_HEAT_MAP = "() => document.querySelector('#heat').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


def how_of(
    system: str | None,
    prefill: str | None,
    samples: float | None,
    temperature: float | None,
    tokens: float | None,
    seed: float | None,
    follows: str | None,
) -> How:
    """What the form says; a field in a part of the page that was never opened arrives as None."""
    return How.model_validate(
        {
            "system_prompt": system or "",
            "prefill": prefill or "",
            "samples": int(samples or 1),
            "temperature": float(temperature or 0),
            "max_new_tokens": int(tokens or 128),
            "seed": int(seed or 0),
            "follows": follows or "own",
        }
    )


def score_arguments(
    pair: str | None, text: str | None, prompt: str | None, candidates: str | None, greedy_tokens: float | None
) -> dict[str, Any] | None:
    """Arguments of `compare_text` for a text, candidates (one a line) and greedy answers; None when there is nothing to
    compare.
    """
    alternatives = [line for line in (candidates or "").splitlines() if line.strip()]
    greedy = int(greedy_tokens or 0)
    written, asked = bool(text and text.strip()), bool(prompt and prompt.strip())
    if not pair or not (written or (asked and (alternatives or greedy))):
        return None
    arguments: dict[str, Any] = {"pair": pair}
    arguments |= {"text": text} if written else {}
    arguments |= {"prompt": prompt} if asked else {}
    arguments |= {"candidates": alternatives} if alternatives else {}
    return arguments | ({"greedy_tokens": greedy} if greedy else {})


class AskPage:
    """The page's components, what their events do, and which event does what."""

    def __init__(self, files: PanelFiles, connection: ServerConnection) -> None:
        self.files, self.connection = files, connection
        self.bench = Bench(connection, EvidenceFolder(files.runs))
        gr.HTML(heading("Ask", "Chat with both models at once, and see token by token where they disagree."))
        with gr.Row(elem_classes="d-controls"):
            self.status = gr.HTML(elem_id="server-status")
            self.end_server = gr.Button("End the server", scale=0, min_width=130, visible=False)
        with gr.Row(elem_classes="d-controls"):
            self.pair = picker(
                [], label="Pair", info="organism[/variant][@model], or BASE::FINETUNED", elem_id="ask-pair", scale=4
            )
            self.anew = gr.Button("New conversation", scale=0, min_width=170)
        self.turns = acting("answers")
        self.said = gr.HTML(elem_id="ask-said")
        self.prompt, self.ask, self.stop, self.how = _composer()
        self.texts, self.metric, self.note, self.compare, self.keep, self.heat = _heat_map()
        self.conversation, self.editing, self.compared = gr.State(Conversation()), gr.State(None), gr.State(None)

    def connect(self, demo: gr.Blocks) -> None:
        """Which event does what."""
        private: dict[str, Any] = {"api_visibility": "private"}
        quiet: dict[str, Any] = {**private, "show_progress": "hidden"}
        texts, serving = self.texts, [self.status, self.end_server]
        demo.load(self.opened, None, [self.pair, self.prompt, texts[0], self.turns], **quiet)
        demo.load(None, None, None, js=_SEND_ON_CTRL_ENTER, **private)
        demo.load(self.server, None, serving, **quiet)
        self.end_server.click(self.end, None, serving, **private)
        chat: list[Any] = [self.conversation, self.turns, self.said, self.prompt, self.editing, self.ask, self.stop]
        entered: list[Any] = [self.pair, self.prompt, self.conversation, self.editing, *self.how]
        asked = self.ask.click(self.send, entered, chat, concurrency_limit=8, **quiet)
        done = self.turns.acted(
            self.act,
            [self.conversation, self.metric, self.note],
            [*chat, self.heat, self.compared, self.note],
            concurrency_limit=8,
            **quiet,
        )
        self.stop.click(self.stop_asking, None, None, **quiet)
        self.anew.click(self.begin_anew, None, chat, **quiet)
        scoring = self.compare.click(
            self.score,
            [self.pair, self.metric, *texts],
            [self.heat, self.compared],
            show_progress_on=[self.heat],
            **private,
        )
        for button in (self.ask, self.compare):
            in_address = show_in_address("pair", "prompt", "text")
            button.click(None, [self.pair, self.prompt, texts[0]], None, js=in_address, **private)
        self.keep.click(self.keep_heat, [self.pair, self.note, self.compared], [self.said, self.note], **quiet)
        self.compared.change(None, None, None, js=_TO_HEAT_MAP, **private)
        for event in (asked, done, scoring):
            event.then(self.server, None, serving, **quiet)
        self.metric.input(
            lambda result, shade: heat_map(result, shade) if result else gr.skip(),
            [self.compared, self.metric],
            [self.heat],
            **quiet,
        )

    def opened(self, request: gr.Request) -> Changes:
        query, choices = request.query_params, pair_choices()
        pair = query.get("pair") or self.files.newest_pair() or choices[0][1]
        return {
            self.pair: gr.update(choices=choices, value=pair),
            self.turns: _NOTHING,
            # What somebody typed before the page was ready stays.
            **({self.prompt: query["prompt"]} if "prompt" in query else {}),
            **({self.texts[0]: query["text"]} if "text" in query else {}),
        }

    async def server(self) -> tuple[Any, Any]:
        """Whether a server runs, and the button that ends one of the panel's own."""
        running = await asyncio.to_thread(self.connection.answers)
        return status_html(self.connection, running), gr.update(visible=running and self.connection.started_here)

    async def end(self) -> tuple[Any, Any]:
        await asyncio.to_thread(self.connection.close)
        return await self.server()

    async def send(
        self,
        request: gr.Request,
        pair: str | None,
        message: str | None,
        before: Conversation,
        place: int | None,
        *how: Any,
    ) -> AsyncIterator[Changes]:
        """The message as a new turn, or in place of the turn that is edited and those after it."""
        if not (pair and message and message.strip()):
            yield {self.said: alert("Choose a pair and write a message.", "warn")}
            return
        known = before if before.pair == pair else Conversation(pair=pair)
        kept = known if place is None else known.upto(place)
        async for change in self._answer(kept.asking(message, how_of(*how)), known, message, request):
            yield change

    async def act(
        self, before: Conversation, shade: str, note: str | None, event: gr.EventData, request: gr.Request
    ) -> AsyncIterator[Changes]:
        """A button inside of the conversation."""
        try:
            action = Action.model_validate(event._data)
        except ValidationError:
            return
        if not action.fits(before):
            return
        turn = before.turns[action.turn]
        if action.do == "edit":
            reask = gr.update(value=f"Ask turn {action.turn + 1} anew")
            yield {self.prompt: turn.message, self.editing: action.turn, self.ask: reask}
        elif action.do == "choose":
            yield self._shown(before.choosing(action.turn, action.side, action.sample))
        elif action.do == "save":
            said = await self.bench.keep(before.pair, note or "", before.upto(action.turn + 1))
            yield {self.said: said, self.note: ""}
        elif action.do == "heat":
            yield {self.heat: alert("Scoring the answer under both models …", "good")}
            title = f"{action.side.capitalize()} answer {action.sample + 1} of turn {action.turn + 1}: {turn.message}"
            yield await self._scored(shade, before.scoring(action.turn, action.side, action.sample), title)
        elif not turn.how.temperature:
            yield {self.said: alert("A greedy answer is the same with every seed: raise the temperature.", "warn")}
        else:
            how = turn.how.model_copy(update={"seed": turn.how.seed + 1})
            again = before.upto(action.turn).asking(turn.message, how)
            async for change in self._answer(again, before, "", request):
                yield change

    async def stop_asking(self, request: gr.Request) -> None:
        await self.bench.stop(str(request.session_hash))

    def begin_anew(self) -> Changes:
        return {**self._shown(Conversation()), self.editing: None, self.said: "", self.ask: _READY}

    async def score(self, pair: str | None, shade: str, *entries: Any) -> Changes:
        """The heat map of a text from the form."""
        if (arguments := score_arguments(pair, *entries)) is None:
            told = "Choose a pair and write a text to score, or a message with candidates or greedy tokens."
            return {self.heat: alert(told, "warn"), self.compared: None}
        return await self._scored(shade, arguments, str(arguments.get("prompt", "")))

    async def keep_heat(self, pair: str | None, note: str | None, result: dict[str, Any] | None) -> Changes:
        if not (pair and result):
            return {self.said: alert("There is no heat map to keep yet.", "warn")}
        return {self.said: await self.bench.keep(pair, note or "", heat_map=result), self.note: ""}

    async def _scored(self, shade: str, arguments: dict[str, Any], title: str) -> Changes:
        result, wrong = await self.bench.score(arguments)
        result = {**result, "title": title} if result else None
        return {self.compared: result, self.heat: heat_map(result, shade) if result else wrong}

    def _shown(self, now: Conversation, waiting: Waiting | None = None) -> Changes:
        return {self.conversation: now, self.turns: conversation_html(now, waiting) if now.turns else _NOTHING}

    async def _answer(
        self, asked: Conversation, otherwise: Conversation, message: str, request: gr.Request
    ) -> AsyncIterator[Changes]:
        """The last turn as it is answered. When it is not, the message comes back into its box."""
        yield {
            self.ask: gr.update(interactive=False),
            self.stop: gr.update(visible=True),
            self.prompt: "",
            self.editing: None,
            self.said: "",
        }
        said: Markup | str = ""
        async for now, waiting, wrong in self.bench.answer(asked, otherwise, str(request.session_hash)):
            said = wrong
            yield self._shown(now, waiting)
        back = {self.prompt: message} if said and message else {}
        yield {self.ask: _READY, self.stop: gr.update(visible=False), self.said: said, **back}


def build(files: PanelFiles, connection: ServerConnection, demo: gr.Blocks) -> None:
    """Lay out the page and connect it."""
    AskPage(files, connection).connect(demo)


def _composer() -> tuple[gr.Textbox, gr.Button, gr.Button, list[Any]]:
    """The message with its two buttons, and the inputs in the order of `how_of`."""
    prompt = gr.Textbox(
        label="Message",
        lines=3,
        max_lines=14,
        placeholder="The same words go to both models. Ctrl+Enter sends them.",
        elem_id="ask-prompt",
    )
    with gr.Row(elem_classes="d-controls"):
        ask_button = gr.Button("Ask both models", variant="primary", scale=0, min_width=190, elem_id="ask-button")
        stop_button = gr.Button("Stop", scale=0, min_width=110, visible=False, elem_id="ask-stop")
    with gr.Accordion("System prompt, prefill, sampling", open=False, elem_id="ask-how"):
        with gr.Row():
            system = gr.Textbox(label="System prompt", lines=2)
            prefill = gr.Textbox(
                label="Prefill", info="The beginning of the answer; both models go on from there.", lines=1
            )
        with gr.Row():
            samples = gr.Number(1, label="Samples", precision=0, minimum=1, maximum=32, min_width=140)
            temperature = gr.Number(
                0.7, label="Temperature (0 is greedy)", minimum=0, maximum=2, step=0.1, min_width=140
            )
            tokens = gr.Number(128, label="Tokens at most", precision=0, minimum=1, maximum=2048, min_width=140)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, min_width=140)
        follows = gr.Radio(
            [("its own", "own"), ("the base's", "base"), ("the finetuned model's", "finetuned")],
            value="own",
            label="In later turns each model reads as earlier answers",
        )
    return prompt, ask_button, stop_button, [system, prefill, samples, temperature, tokens, seed, follows]


def _heat_map() -> tuple[list[Any], gr.Radio, gr.Textbox, gr.Button, gr.Button, gr.HTML]:
    """The inputs in the order of `score_arguments` (but the pair), metric, note, the two buttons, the map."""
    gr.HTML(heading("Token heat map", "The probability of every token of an answer or text under both models."))
    with gr.Accordion("Score a text of your own", open=False, elem_id="compare-form"):
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                text = gr.Textbox(label="Text to score", lines=3, max_lines=12, elem_id="compare-text")
                candidates = gr.Textbox(
                    label="Candidates",
                    info="Alternative answers (or continuations of the text), one a line, scored whole under both.",
                    lines=3,
                )
            with gr.Column(scale=2, min_width=320):
                as_answer = gr.Textbox(
                    label="As the answer to (optional)",
                    info="Scored inside the chat template after this user message.",
                    lines=2,
                )
                greedy = gr.Number(
                    0,
                    label="Greedy tokens",
                    info="How far both go on greedily, to see where they part.",
                    precision=0,
                    minimum=0,
                    maximum=256,
                )
        compare_button = gr.Button("Compare", variant="primary", scale=0, min_width=140, elem_id="compare-button")
    heat = gr.HTML(
        empty("No heat map yet", "“Heat map” under an answer shades it; a text of your own goes into the form above."),
        elem_id="heat",
    )
    with gr.Row(elem_classes="d-controls"):
        metric = gr.Radio(
            [(label, name) for name, label in METRICS.items()], value="difference", label="Shade by", scale=2
        )
        note = gr.Textbox(label="Note for the report (optional)", scale=3, elem_id="ask-note")
        keep_button = gr.Button("Add the heat map to the report", scale=0, min_width=250, elem_id="heat-keep")
    return [text, as_answer, candidates, greedy], metric, note, compare_button, keep_button, heat
