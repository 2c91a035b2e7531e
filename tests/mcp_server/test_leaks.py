"""Nothing an investigation can reach names the organism: every tool is called with good and bad arguments and
everything that comes back is searched.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.redaction import Redactor
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.methods.registry import all_methods
from diffing_mcp.model_pairs.resolve import resolve_pair
from tests.mcp_server.answers import answered


class Everything:
    """Collects all that a client sees."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.seen: list[str] = []

    async def __call__(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        async def watch(progress: float, total: float | None, message: str | None) -> None:
            self.seen.append(str(message))

        result = await answered(self.client, tool, arguments, progress_callback=watch)
        self.seen.append(json.dumps(result.model_dump(mode="json"), ensure_ascii=False))
        answer = result.structured_content or {}
        while not result.is_error and answer.get("status") == "running":
            result = await answered(
                self.client, "get_job", {"job_id": answer["job"]["job_id"]}, progress_callback=watch
            )
            self.seen.append(json.dumps(result.model_dump(mode="json"), ensure_ascii=False))
            answer = result.structured_content or {}
        return answer


def secrets_of(pair: str, data_folder: Path) -> list[str]:
    """What must not be seen: the rare word in the pair's name and folders, and every local path."""
    return ["quetzalfidget", pair, str(data_folder), str(Path.cwd()), "site-packages", str(Path.home()) + "/"]


async def test_no_tool_leaks_the_pair(
    context: ServerContext,
    rare_pair: str,
    data_folder: Path,
    small_params: Callable[[str], dict[str, Any]],
) -> None:
    new = investigations.create(rare_pair, "method", interactions=1000, tool_calls=1000, note="quetzalfidget")
    pair = {"pair": new.label}
    async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
        call = Everything(client)
        call.seen.append(json.dumps([tool.model_dump(mode="json") for tool in (await client.list_tools()).tools]))
        call.seen.append(str(client.instructions))
        runs = []
        for method in all_methods():
            answer = await call(method, {**pair, **small_params(method)})
            assert answer.get("run_id"), (method, call.seen[-1])
            runs.append(answer["run_id"])
            await call(method, {**pair, "estimate_only": True})
            for wrong in (
                {"corpus": "/no/such/file.txt"},
                {"max_samples": -1},
                {"layers": [9.5, 99]},
                {"nonsense": 1},
                {"corpus": "hub:x"},
            ):
                await call(method, {**pair, **wrong})
            await call(method, {"pair": "somebody_elses"})
        for run in [*runs, "kl-ffffff", "../../etc", runs[0][:4]]:
            opened = await call("view_run", {"run": run})
            for view in [row["name"] for row in (opened.get("result") or {}).get("views") or []] + ["no_such_view"]:
                await call("view_run", {"run": run, "view": view})
                await call("view_run", {"run": run, "view": view, "params": {"nonsense": 1}})
        await call("overview", {**pair, "max_samples": 16, "max_tokens": 8, "budget": 12_000})
        await call("overview", {**pair, "methods": ["nonsense"]})
        await call("ask_models", {**pair, "prompts": ["What are you?"], "max_new_tokens": 4, "raw_text": True})
        await call(
            "ask_models", {**pair, "prompts": ["What are you?"], "max_new_tokens": 4, "system_prompt": "Be brief"}
        )
        await call("ask_models", {**pair, "prompts": ["long " * 4000]})
        await call("ask_models", {**pair, "prompts": [], "conversations": [[{"role": "assistant", "content": "x"}]]})
        await call("compare_text", {**pair, "text": "some words to score", "prompt": "say something"})
        await call("compare_text", {**pair, "text": "x"})
        for tool in ("list_pairs", "list_hypotheses", "get_job"):
            await call(tool, {})
        for tool in ("describe_pair", "load_pair", "unload_pair", "list_runs"):
            await call(tool, pair)
            await call(tool, {"pair": "BASE::FINETUNED"})
            await call(tool, {"pair": "../../x"})
        for tool in (
            "collect_activations",
            "list_activations",
            "describe_activations",
            "delete_activations",
            "list_dictionaries",
            "delete_dictionary",
        ):
            await call(tool, {**pair, "id": "activations-00"})
        await call("get_job", {"job_id": "nobody"})
        await call("cancel_job", {"job_id": "nobody"})
        await call("record_hypothesis", {"statement": "it is about something", "likelihood": 0.3})
        await call("no_such_tool", {})
        for uri in (
            "diffing://runs",
            f"diffing://runs/{runs[0]}",
            f"diffing://investigations/{new.id}",
            "file:///etc/passwd",
        ):
            with pytest.raises(Exception) as refused:
                await client.read_resource(uri)
            call.seen.append(str(refused.value))
        call.seen.append(
            json.dumps([prompt.model_dump(mode="json") for prompt in (await client.list_prompts()).prompts])
        )
        call.seen.append(str(await client.get_prompt("audit_pair", pair)))
        await call("submit_finding", {"verdict": "difference", "statement": "something", "likelihood": 0.5})
    everything = "\n".join(call.seen)
    assert len(everything) > 20_000
    for secret in secrets_of(rare_pair, data_folder):
        assert secret.lower() not in everything.lower(), next(
            text for text in call.seen if secret.lower() in text.lower()
        )[:2000]


async def test_broken_files_do_not_name_themselves(
    context: ServerContext, rare_pair: str, rare_folder: Path, data_folder: Path
) -> None:
    """An adapter that cannot be read is the moment at which libraries print paths."""
    new = investigations.create(rare_pair, "method", interactions=10, tool_calls=10)
    weights = next(rare_folder.rglob("adapter_model.safetensors"))
    kept = weights.read_bytes()
    try:
        async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
            call = Everything(client)
            weights.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00 garbage")
            await call("ask_models", {"pair": new.label, "prompts": ["x"], "raw_text": True})
            await call("load_pair", {"pair": new.label})
            weights.unlink()
            await call("kl", {"pair": new.label, "max_samples": 10, "max_tokens": 6})
            await call("describe_pair", {"pair": new.label})
    finally:
        weights.write_bytes(kept)
    everything = "\n".join(call.seen)
    assert "isError" in everything or "is_error" in everything
    for secret in secrets_of(rare_pair, data_folder):
        assert secret.lower() not in everything.lower(), everything[:3000]


def test_the_redactor_covers_names_and_paths_in_messages(rare_pair: str, rare_folder: Path, data_folder: Path) -> None:
    redactor = Redactor({rare_pair: resolve_pair(rare_pair)}, "pair-7f3a")
    for text in (
        f"cannot open {rare_folder}/adapter_model.safetensors",
        f"the pair {rare_pair} is broken",
        "Quetzalfidget is not loaded",
        "see /home/somebody/models/thing.bin and C:\\models\\thing\\x.bin",
    ):
        said = redactor.message(text)
        assert "quetzalfidget" not in said.lower()
        assert "/home" not in said
        assert "models" not in said
    assert redactor.message("ask for fewer prompts (at most 64)") == "ask for fewer prompts (at most 64)"


def test_words_in_a_models_own_answers_stay(rare_pair: str, data_folder: Path) -> None:
    """Taking a word out of the evidence would falsify it and give it away."""
    redactor = Redactor({rare_pair: resolve_pair(rare_pair)}, "pair-7f3a")
    assert redactor.result({"model_text": ["a quetzalfidget bird", 3, None]}) == {
        "model_text": ["a quetzalfidget bird", 3, None]
    }
    assert "quetzalfidget" not in json.dumps(redactor.result({"where": f"x {rare_pair} y"}))


def test_calls_of_operators_are_not_redacted(context: ServerContext, rare_pair: str) -> None:
    declaration = build_server(context).offer.tools["list_pairs"]
    call = Call(context, Caller(), declaration, declaration.Arguments(), build_server(context).offer)
    assert call.message(rare_pair) == rare_pair
