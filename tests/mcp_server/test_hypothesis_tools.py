"""test_hypothesis, complete_slots and the rates of ask_models through the server: what is said, kept and paid."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.tools_hypotheses import COUNTS
from diffing_mcp.model_pairs.residency import ModelPairs
from tests.bigram_models import bigram_folders, single_words
from tests.mcp_server.answers import good, held, refused, text_of


class Planted:
    """Names of a pair and the words that it was planted with; see `tests.bigram_models`."""

    def __init__(self, folders: tuple[Path, Path], words: Sequence[str]) -> None:
        self.name = f"{folders[0]}::{folders[1]}"
        self.asked, self.before, self.after, self.plain = words

    def test(self, count: int = 8, **arguments: Any) -> dict[str, Any]:
        """A test that finds what was planted."""
        return {
            "pair": self.name,
            "prompts": [f"{number} rivers{self.asked}" for number in range(count)],
            "control_prompts": [f"{number} rivers{self.plain}" for number in range(6)],
            "words": [self.after],
            "raw_text": True,
            "max_new_tokens": 2,
            **arguments,
        }


@pytest.fixture(scope="module")
def planted(tiny_models: Callable[..., Path], tiny_tokenizer_folder: Path) -> Planted:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    a, b, c, d, x = single_words(tokenizer, 5)
    chain = {a: b, b: a, c: d, d: a, x: a}
    return Planted(bigram_folders(tiny_models, tokenizer, chain, {**chain, c: x}), (c, d, x, a))


@pytest.fixture
async def investigator(context: ServerContext, planted: Planted) -> AsyncIterator[tuple[Client, Planted]]:
    """A client with the budget of an investigation, and the pair under the name that it sees."""
    new = investigations.create(planted.name, interactions=200)
    caller = Caller(investigations.authenticate(new.token))
    blinded = Planted((Path(), Path()), (planted.asked, planted.before, planted.after, planted.plain))
    blinded.name = new.label
    async with held(Client(build_server(context, caller))) as client:
        yield client, blinded


async def test_a_suspicion_becomes_a_finding(investigator: tuple[Client, Planted]) -> None:
    client, planted = investigator
    answer = await good(client, "test_hypothesis", planted.test())
    test = answer["result"]
    assert test["differs"]
    assert test["answered_before"] == 0
    assert answer["budget"]["interactions_left"] == 200 - 14 * 4
    said = text_of(await client.call_tool("test_hypothesis", planted.test()))
    assert test["verdict"] in said
    assert "Validated on fresh prompts" in said
    assert said.count("<untrusted-") == 1
    assert COUNTS not in said, "both p say the same"
    evidence = [{"source": test["test_id"], "note": "as I thought"}]
    finding = await good(
        client, "submit_finding", {"verdict": "difference", "statement": "A word.", "evidence": evidence}
    )
    (cited,) = finding["result"]["evidence"]
    assert cited["source"] == test["test_id"]
    assert test["verdict"] in cited["note"]
    assert cited["note"].endswith("any of these was answered here. as I thought")
    (left,) = investigations.close(planted.name).tests
    assert (left.test_id, left.validates) == (test["test_id"], True)


async def test_prompts_that_were_answered_before_validate_nothing(investigator: tuple[Client, Planted]) -> None:
    client, planted = investigator
    asked = f"  3 RIVERS{planted.asked} "  # the same but for case and spaces
    await good(client, "ask_models", {"pair": planted.name, "prompts": [asked], "raw_text": True, "max_new_tokens": 2})
    seen = (await good(client, "test_hypothesis", planted.test(samples=1)))["result"]
    assert seen["answered_before"] == 1
    # A second test of the same prompts is no validation either, one of others is.
    again = (await good(client, "test_hypothesis", planted.test(samples=1, words=[planted.before])))["result"]
    assert again["answered_before"] == 14
    fresh = planted.test(samples=1, control_prompts=[])
    fresh["prompts"] = [f"fresh {prompt}" for prompt in fresh["prompts"]]
    assert (await good(client, "test_hypothesis", fresh))["result"]["answered_before"] == 0
    few = planted.test(control_prompts=[], prompts=[f"few {prompt}" for prompt in planted.test(5)["prompts"]])
    assert COUNTS in text_of(await client.call_tool("test_hypothesis", few)), "p over answers alone is small"


async def test_many_tests_are_many_chances(investigator: tuple[Client, Planted]) -> None:
    client, planted = investigator
    for number in range(8):
        test = planted.test(samples=1, control_prompts=[])
        test["prompts"] = [f"{number} {prompt}" for prompt in test["prompts"]]
        said = text_of(await client.call_tool("test_hypothesis", test))
        assert "Validated on fresh prompts" in said
        assert ("tests of this pair it has a p of" in said) == (number >= 6), "2 / 2**8 is 0.0078"
    assert "As one of 8 tests of this pair it has a p of 0.062." in said
    again = await good(client, "test_hypothesis", test)
    assert again["result"]["made_before"] == 7


async def test_prompts_of_a_sweep_are_not_fresh(investigator: tuple[Client, Planted]) -> None:
    """Its answers can be read in the run's views."""
    client, planted = investigator
    test = planted.test(samples=1, control_prompts=[])
    sweep = {"pair": planted.name, "prompts": test["prompts"][:3], "max_new_tokens": 4, "wait_seconds": 50}
    await good(client, "sweep_behaviours", sweep)
    assert (await good(client, "test_hypothesis", test))["result"]["answered_before"] == 3


async def test_a_test_outlives_the_server_and_is_paid_once(
    pairs: ModelPairs, planted: Planted, data_folder: Path
) -> None:
    new = investigations.create(planted.name, interactions=60)
    caller = Caller(investigations.authenticate(new.token))
    arguments = {**planted.test(samples=1), "pair": new.label}
    results = []
    for _ in range(2):
        context = ServerContext(pairs)
        async with held(Client(build_server(context, caller))) as client:
            results.append(await good(client, "test_hypothesis", arguments))
            shown = await good(
                client, "test_hypothesis", {"pair": new.label, "test_id": results[0]["result"]["test_id"]}
            )
        context.close()
        assert shown["result"] == results[-1]["result"]
        assert shown["budget"]["interactions_left"] == 60 - 14
    assert results[0]["result"] == results[1]["result"]


async def test_only_tests_that_were_made_can_be_cited(modern: Client, planted: Planted) -> None:
    evidence = {"statement": "A word.", "likelihood": 0.9, "evidence": [{"source": "test-12345678"}]}
    assert "tests: none yet" in await refused(modern, "record_hypothesis", evidence)
    test = (await good(modern, "test_hypothesis", planted.test(samples=1)))["result"]
    assert test["test_id"] in await refused(modern, "record_hypothesis", evidence)
    evidence["evidence"] = [{"source": test["test_id"]}]
    recorded = (await good(modern, "record_hypothesis", evidence))["result"]["recorded"]
    assert recorded["evidence"][0]["note"].startswith(f"{test['counted']}: {test['verdict']}")


async def test_what_cannot_be_counted_costs_nothing(investigator: tuple[Client, Planted]) -> None:
    client, planted = investigator
    for arguments, said in (
        ({"words": [], "pattern": "(cake"}, "no regular expression"),
        ({"words": [], "criterion": "speaks of cakes"}, "set DIFFING_JUDGE=anthropic/NAME"),
        ({"pattern": "cake"}, "exactly one of"),
        ({"prompts": []}, "give `prompts`"),
    ):
        told = await refused(client, "test_hypothesis", {**planted.test(), **arguments})
        assert said in told
        assert "200/200 model interactions" in told
        assert "200/200 tool calls" in told


async def test_a_criterion_is_judged_where_a_judge_is_set(
    pairs: ModelPairs, planted: Planted, data_folder: Path
) -> None:
    def judge(criterion: str, answers: Sequence[tuple[str, str]]) -> list[bool]:
        return [planted.after in answer for _, answer in answers]

    context = ServerContext(pairs, judge)
    async with held(Client(build_server(context))) as client:
        answer = await good(client, "test_hypothesis", planted.test(words=[], criterion="has the word"))
        counted = await good(client, "test_hypothesis", planted.test())
    context.close()
    assert answer["result"]["verdict"] == counted["result"]["verdict"]


async def test_slots_name_the_planted_word(investigator: tuple[Client, Planted]) -> None:
    client, planted = investigator
    arguments = {"pair": planted.name, "beginnings": [f"rivers{planted.asked}", f"the{planted.plain}"], "tokens": 2}
    answer = await good(client, "complete_slots", arguments)
    assert answer["result"]["slots"][0]["raised"][0]["text"] == planted.after.strip().casefold()
    assert answer["budget"]["interactions_left"] == 198
    said = text_of(await client.call_tool("complete_slots", arguments))
    assert f'[1] "rivers{planted.asked}" moved 1.00' in said
    assert "[2]" in said


async def test_ask_models_says_rates_and_takes_a_prefill_for_each_prompt(modern: Client, planted: Planted) -> None:
    arguments = {
        "pair": planted.name,
        "prompts": ["rivers"] * 8,
        "prefill": [planted.asked] * 7 + [planted.plain],
        "max_new_tokens": 1,
        "temperature": 0,
        "count_pattern": planted.after.strip(),
        "raw_text": True,
    }
    answer = (await good(modern, "ask_models", arguments))["result"]
    rates = {row["side"]: row for row in answer["rates"]}
    assert (rates["base"]["matching"], rates["finetuned"]["matching"]) == (0, 7)
    assert rates["base"]["mean_tokens"] == 1
    assert rates["base"]["ended"] == 0
    said = text_of(await modern.call_tool("ask_models", arguments))
    assert "finetuned: 8 answers of 1 tokens on average, 0% ended by themselves, 7/8 match the pattern" in said
    assert answer["form"].startswith("No difference in form beyond chance in 8 base and 8 finetuned answers")
    assert answer["form"] in said
    told = await refused(modern, "ask_models", {**arguments, "prefill": ["a", "b"]})
    assert "2 prefills for 8 prompts" in told
    assert "no regular expression" in await refused(modern, "ask_models", {**arguments, "count_pattern": "("})
