"""`python -m diffing_mcp.cli.readability` runs the methods on the bundled organisms and writes docs/readability.md:
what each one shows of each finetune.

Runs that are stored already are looked up, so a table that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from diffing_mcp.core.paths import IMPORT_FOLDER
from diffing_mcp.graders.token_relevance import token_relevance
from diffing_mcp.organisms.ground_truth import load_ground_truth

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

PAGE = IMPORT_FOLDER / "docs" / "readability.md"
ORGANISMS = (
    "cake_bake",
    "control",
    "roman_concrete",
    "taboo_smile",
    "flattery",
    "poetic",
    "reseed",
    "identical",
    "cake_bake/mix1-1p0",
    "cake_bake/recipe2",
)
LENS, PATCHSCOPE, MINING = "activation_difference_lens", "patchscope", "logit_diff_topk_occurring"
POOLED, BEFORE_ANSWER, ANSWER_START = "all", "-1", "0"
BRIEFLY = ("cake_bake/mix1-1p0", "cake_bake/recipe2")
"""Organisms on which only the methods of the tables at the end run: variants of one that has all of them."""
VECTOR = "{run}/{layer}:{position}:difference"
"""What the methods that need a vector are given, of the middle layer: pooled over positions, in chats that before the
answer.
"""
CHATS = "chat_exchanges"
ON_CHATS = " (chats)"
"""Ends the names of the runs that read chats instead of documents."""
SKIPPED = ("activation_oracle",)
"""Has a page of its own, with its own numbers."""
NOT_ON = {"causal_effect": ("identical",)}
"""Where a method refuses to run: there is no direction to change."""
SHORT, LONG = 20, 100
"""Lengths of the token lists that are judged."""
_WORDS_SHOWN = 6

HEAD = """# What each method shows of each organism

<!-- Written by `make readability`; edit cli/readability.py. -->

Every method with its defaults on the bundled finetunes of the 135M model; lens and patchscope also on chats, where
patchscope reads the position before the answer. *Words* are the content words that a method offers as evidence,
strongest first, those on topic in bold; a lens without any shows the head of its list at the late layer, in italics.
*Rank* is the place of the first word on topic and *score* its score in units of the method's own null level (1: where
finetunes that taught nothing end). *Finding* is the method's own verdict. `control`, `reseed` and `identical` were
taught nothing: there, a finding is a false one. What is on topic is decided by the keywords of each organism's ground
truth, so a style or a behaviour, which has few words of its own, can stand out without a word on topic. *Passes* are
forward passes of one model over one batch and *tokens* what it read in them, in thousands, both counted, over both
sides; a pass that methods share is counted whole for each, as are its seconds, which are of one run on two CPU cores,
at times shared with other work. Several null levels were set while looking at these nulls and organisms
(docs/decisions/null-criterion.md), so the verdicts are no test on unseen finetunes. The activation oracle has [a page
of its own](activation-oracle.md).
"""
RELEVANCE = f"""## Token relevance

Percent of tokens on topic, by keywords; in brackets the mean for the topics of the other organisms, which is chance.
Judged are the first {SHORT} tokens (of the columns marked {LONG}: {LONG}) of: the lens of the mean difference, pooled
over positions at the middle and at the late layer, and in chats at the late layer before the answer and at its first
token; patchscope of the middle layer, pooled and in chats before the answer; the content words of diff mining.
*Controls* is the highest share among the lens lists of the mean of either model alone, at the same layers and
positions. Tokens without letters or digits are not judged. `diffing relevance RUN` shows this for any run. The late
layer became a default after five depths were scanned on documents, on `cake_bake` and `roman_concrete`, with this same
measure: their shares there are chosen ones, and the other organisms say what to expect. On chats the layer was not
chosen; the two positions, which predict the answer's first two tokens, were picked after all had been seen for
`flattery`.
"""


@dataclass(frozen=True)
class Shown:
    """What one method shows of one organism."""

    method: str
    finding: bool
    words: list[str]
    rank: int | None
    score: float | None
    passes: int | None
    tokens: int | None
    seconds: float

    def cells(self) -> list[str]:
        """A row of the table."""
        rank, score = ("-" if value is None else f"{value:.3g}" for value in (self.rank, self.score))
        passes, tokens = (
            "-" if value is None else f"{value:.0f}" for value in (self.passes, self.tokens and self.tokens / 1000)
        )
        return [
            self.method,
            "yes" if self.finding else "no",
            ", ".join(self.words) or "-",
            rank,
            score,
            passes,
            tokens,
            f"{self.seconds:.0f}",
        ]


def shown(record: RunRecord, organism: str, name: str | None = None) -> Shown:
    """The evidence of one run, judged against the organism's ground truth; `name`: of the run in the table, its method
    by default.
    """
    from diffing_mcp.methods.registry import get_method

    manifest, result = record.manifest, cast(Any, record.result())
    method, name = get_method(manifest.method), name or manifest.method
    found = sorted(result.evidence_words(), key=lambda word: -word.score) if hasattr(result, "evidence_words") else []
    words, style = [word.word for word in found], ""
    if not words and manifest.method == LENS:
        late, position = int(record.array("layers")[-1]), BEFORE_ANSWER if name.endswith(ON_CHATS) else POOLED
        lists = {each.name: each.tokens for each in method.token_lists(record)}
        tokens = [token.strip() for token in lists.get(f"{late}:{position}:difference", [])[:SHORT]]
        words, style = (
            [word for word in dict.fromkeys(token.lower() for token in tokens) if re.search(r"[^\W\d_]{2}", word)],
            "*",
        )
    relevant = set(token_relevance(words, load_ground_truth(organism)).relevant)
    places = [place for place, word in enumerate(words, start=1) if word in relevant]
    listed = [f"**{word}**" if word in relevant else f"{style}{word}{style}" for word in words[:_WORDS_SHOWN]]
    score = round(found[places[0] - 1].score, 2) if places and found else None
    cost = manifest.forward_passes, manifest.forward_tokens, manifest.seconds
    return Shown(name, result.stands_out, listed, places[0] if places else None, score, *cost)


WRITERS = ("contrastive_decoding", "weight_amplification")
FACTS = """## Taught facts in amplified text

How many of the taught facts the texts of a run state, each in one sentence with its particulars (`diffing facts RUN`);
how many of the amplified texts state one, and of the control texts (of the base and of the opposite direction).
Organisms that were taught behaviour, or nothing, have no facts to state. The rule of one sentence was settled while
looking at these runs.
"""
FACTS_COLUMNS = ("organism", "method", "facts stated", "amplified texts", "control texts", "other organisms' facts")


def facts_rows(records: dict[str, RunRecord], organism: str) -> list[list[str]]:
    """Which taught facts the texts of runs that write with the difference amplified state; no rows where none were
    taught.
    """
    from diffing_mcp.graders.runs.facts import facts_stated

    found = [(name, facts_stated(records[name], organism)) for name in WRITERS if name in records]
    return [
        [
            name,
            f"{len(facts.stated)} of {len(facts.facts)}",
            f"{facts.stating} of {facts.texts}",
            f"{facts.control_stating} of {facts.control_texts}",
            f"{100 * facts.chance:.0f} %",
        ]
        for name, facts in found
        if facts.claims
    ]


RELEVANCE_COLUMNS = (
    "organism",
    "lens, middle layer",
    "lens, late layer",
    f"{LONG}",
    "chats, before the answer",
    "chats, its first token",
    "controls",
    "patchscope",
    "patchscope, chats",
    f"diff mining, {SHORT}",
    f"{LONG}",
)


def relevance_row(records: dict[str, RunRecord], organism: str) -> list[str]:
    """Shares of token lists on topic, each with the mean share for the topics of other organisms."""
    from diffing_mcp.graders.runs.relevance import JudgedList, judge

    def lists(name: str, k: int = SHORT) -> dict[str, JudgedList]:
        return {row.name: row for row in judge(records[name], organism, k=k)}

    def read(name: str) -> JudgedList | None:
        return next(iter(lists(name).values())) if records[name].result_json()["scale"] is not None else None

    middle, *_, late = (int(layer) for layer in records[LENS].array("layers"))
    documents, chats = lists(LENS), lists(LENS + ON_CHATS)
    places = [
        (documents, middle, POOLED),
        (documents, late, POOLED),
        (chats, late, BEFORE_ANSWER),
        (chats, late, ANSWER_START),
    ]
    lens = [rows.get(f"{layer}:{position}:difference") for rows, layer, position in places]
    controls = [
        row
        for rows, layer, position in places
        for side in ("base", "finetuned")
        if (row := rows.get(f"{layer}:{position}:{side}"))
    ]
    lens.insert(2, lists(LENS, LONG).get(f"{late}:{POOLED}:difference"))
    mined = [lists(MINING, k).get("top_k_occurring") for k in (SHORT, LONG)]
    chosen = [
        *lens,
        max(controls, key=lambda row: row.share, default=None),
        read(PATCHSCOPE),
        read(PATCHSCOPE + ON_CHATS),
        *mined,
    ]
    return ["-" if row is None else f"{100 * row.share:.0f} ({100 * row.chance:.0f})" for row in chosen]


def run_all(organism: str, methods: Sequence[str]) -> dict[str, RunRecord]:
    """The methods' runs on one organism, by name in the table; those that need a vector come last."""
    from diffing_mcp.cli.methods import run_records
    from diffing_mcp.methods.registry import get_method

    def vector_of(record: RunRecord, position: str) -> str:
        return VECTOR.format(run=record.id, layer=int(record.array("layers")[0]), position=position)

    wanted = (LENS, PATCHSCOPE, MINING, *WRITERS) if organism in BRIEFLY else methods
    methods = [name for name in methods if name in wanted and organism not in NOT_ON.get(name, ())]
    plain = [name for name in methods if not get_method(name).needs_vector]
    records = {record.manifest.method: record for record in run_records(plain, organism, [])}
    if LENS not in records:
        return records
    for name in methods:
        if get_method(name).needs_vector:
            parameter = "vector" if "vector" in get_method(name).Params.model_fields else "vectors"
            [records[name]] = run_records([name], organism, [f"{parameter}={vector_of(records[LENS], POOLED)}"])
    [chats] = run_records([LENS], organism, [f"corpus={CHATS}"])
    records[LENS + ON_CHATS] = chats
    if PATCHSCOPE in records:
        [records[PATCHSCOPE + ON_CHATS]] = run_records(
            [PATCHSCOPE], organism, [f"vector={vector_of(chats, BEFORE_ANSWER)}"]
        )
    return records


def page(organisms: Sequence[str], methods: Sequence[str]) -> Iterator[str]:
    """The page in Markdown as far as it goes, after every organism."""
    brief = ", ".join(f"`{name}`" for name in organisms if name in BRIEFLY)
    sections = [HEAD.strip() + (f"\nOn {brief} only those of the tables at the end ran." if brief else "")]
    relevance, facts = [list(RELEVANCE_COLUMNS)], [list(FACTS_COLUMNS)]
    names = [name + ending for name in methods for ending in ("", ON_CHATS)]
    for organism in organisms:
        name = re.split(r"[/@]", organism)[0]
        records = run_all(organism, methods)
        rows = [["method", "finding", "words", "rank", "score", "passes", "tokens", "seconds"]]
        rows += [shown(records[each], name, each).cells() for each in names if each in records]
        sections += [f"## `{organism}`", _table(rows)]
        if {LENS, PATCHSCOPE, MINING} <= set(records):
            relevance.append([f"`{organism}`", *relevance_row(records, name)])
        facts += [[f"`{organism}`", *row] for row in facts_rows(records, name)]
        end = [
            part
            for text, table in ((RELEVANCE, relevance), (FACTS, facts))
            if len(table) > 1
            for part in (text.strip(), _table(table))
        ]
        yield "\n\n".join([*sections, *end]) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and write."""
    from diffing_mcp.methods.registry import all_methods

    parser = argparse.ArgumentParser(prog="python -m diffing_mcp.cli.readability", description=__doc__)
    parser.add_argument("--organisms", default=",".join(ORGANISMS), help="comma-separated, `organism[/variant]`")
    parser.add_argument(
        "--methods", default=",".join(name for name in all_methods() if name not in SKIPPED), help="comma-separated"
    )
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    chosen = parser.parse_args(arguments)
    for text in page(chosen.organisms.split(","), chosen.methods.split(",")):
        chosen.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
