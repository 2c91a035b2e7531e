"""Equal questions to one base are answered once for all its finetunes, as it would answer anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffing_mcp.core.progress import silent
from diffing_mcp.model_pairs.generation import Completion
from diffing_mcp.queries.answer_memory import AnswerMemory
from diffing_mcp.queries.asking import answers
from diffing_mcp.queries.schemas import AskQuery

SIDES = ("base", "finetuned")


def query(**values: Any) -> AskQuery:
    return AskQuery.model_validate(
        {"prompts": ["one river", "two roads"], "raw_text": True, "max_new_tokens": 5, "seed": 3, **values}
    )


def test_one_base_answers_once_for_two_finetunes(tiny_models: Callable[..., Path], make_pair: Any, pairs: Any) -> None:
    base, first, second = tiny_models(), tiny_models(seed=1), tiny_models(seed=2)
    memory = AnswerMemory()
    written, generated, anew = [], [], []
    for place, finetuned in enumerate((first, second)):
        with pairs.use(make_pair(base, finetuned, name=f"pair {place}")) as pair:
            anew.append(answers(pair, query(), SIDES, silent))
            before = pair.forwards.copy()
            written.append(answers(pair, query(), SIDES, silent, memory=memory))
            generated.append((pair.forwards - before).generated)
            if place == 1:
                before = pair.forwards.copy()
                assert answers(pair, query(), SIDES, silent, memory=memory) == written[-1]
                assert (pair.forwards - before).passes == 0
                for other in (query(seed=4), query(temperature=0), query(prompts=["two roads", "one river"])):
                    before = pair.forwards.copy()
                    answers(pair, other, ("base",), silent, memory=memory)
                    assert (pair.forwards - before).passes > 0
    assert written == anew
    assert written[0]["finetuned"] != written[1]["finetuned"]
    assert 0 < generated[1] < generated[0]


def test_the_same_weights_under_another_configuration_answer_anew(
    tiny_models: Callable[..., Path], make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    """As models that were given a longer context by their configuration alone."""
    base, first = tiny_models(), tiny_models(seed=1)
    second = Path(shutil.copytree(first, tmp_path / "longer"))
    config = json.loads((second / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 2.0
    (second / "config.json").write_text(json.dumps(config))
    memory = AnswerMemory()
    for finetuned in (first, second):
        with pairs.use(make_pair(base, finetuned)) as pair:
            asked = query(max_new_tokens=20)
            found = answers(pair, asked, ("finetuned",), silent, memory=memory)
            assert found == answers(pair, asked, ("finetuned",), silent)


def test_the_oldest_calls_are_forgotten_first() -> None:
    memory = AnswerMemory(most=4)
    row = [[Completion(text="a", finish="eos", tokens=1), Completion(text="b", finish="eos", tokens=1)]]
    for name in ("first", "second"):
        memory.keep(name, row)
    assert memory.get("first") == row
    memory.keep("third", row)
    assert (memory.get("first"), memory.get("second"), memory.get("third")) == (row, None, row)
    memory.keep("large", row * 3)
    assert memory.get("large") is None
