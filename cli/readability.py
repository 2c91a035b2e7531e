"""`python -m cli.readability` runs the methods on the bundled organisms and writes docs/readability.md: what each one shows of each finetune.

Runs that are stored already are looked up, so a table that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.runs import RunRecord

PAGE = Path(__file__).resolve().parent.parent / "docs" / "readability.md"
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
VECTOR = "{run}/{layer}:all:difference"
"""What the methods that need a vector are given: the pooled mean difference of the middle layer."""
SKIPPED = ("activation_oracle",)
"""Has a page of its own, with its own numbers."""
RUN_ON = {
    "sae_difference": ("cake_bake", "control"),
    "crosscoder": ("cake_bake", "control"),
    "causal_effect": ("cake_bake", "control", "roman_concrete"),
}
"""The organisms on which the slowest methods run: they take as long as all others together."""
RELEVANCE_METHODS = ("activation_difference_lens", "patchscope", "logit_diff_topk_occurring")
LENS_SOURCES = ("difference", "base", "finetuned")
LENS_TOKENS, MINED_TOKENS = 20, 100
_WORDS_SHOWN = 6

HEAD = f"""# What each method shows of each organism

<!-- Written by `make readability`; edit cli/readability.py. -->

Every method with its defaults on the bundled finetunes of the 135M model. *Words* are the content words that a method offers as evidence, strongest
first, those on topic in bold; *rank* is the place of the first one on topic and *score* its score in units of the method's own null level (1: where
finetunes that taught nothing end). *Finding* is the method's own verdict. `control` and `reseed` (and `identical`) were taught nothing: there, a finding is a false
one. What is on topic is decided by the keywords of each organism's ground truth, so a style or a behaviour, which has few words of its own, can stand out
without a word on topic. Seconds are those of one run on two CPU cores, at times shared with other work, a shared pass counted whole.
Several null levels were set while looking at these nulls and organisms (docs/decisions/null-criterion.md), so the verdicts are no test on unseen finetunes.
The slowest methods ran on few: {"; ".join(f"{method} on {', '.join(f'`{name}`' for name in names)}" for method, names in RUN_ON.items())}.
"""
RELEVANCE = f"""## Token relevance

Percent of tokens on topic, by keywords; in brackets the mean for the topics of the other organisms, which is chance. Judged are the first {LENS_TOKENS} tokens of the lens
of the pooled mean difference at the middle and at the late layer (as controls, of the mean of either model at the late layer), the first {LENS_TOKENS} that patchscope
reads out of the middle one, and the first {LENS_TOKENS} and {MINED_TOKENS} content words of diff mining. Tokens without letters or digits are not judged. `diffing relevance RUN`
shows this for any run.
The late layer became a default after five depths were scanned on `cake_bake` and `roman_concrete` with this same measure: their shares there are chosen ones, and the
other organisms say what to expect.
"""


@dataclass(frozen=True)
class Shown:
    """What one method shows of one organism."""

    method: str
    finding: bool
    words: list[str]
    rank: int | None
    score: float | None
    seconds: float

    def cells(self) -> list[str]:
        """A row of the table."""
        rank, score = ("-" if value is None else f"{value:.3g}" for value in (self.rank, self.score))
        return [self.method, "yes" if self.finding else "no", ", ".join(self.words) or "-", rank, score, f"{self.seconds:.0f}"]


def shown(record: RunRecord, organism: str) -> Shown:
    """The evidence of one run, judged against the organism's ground truth."""
    from graders.token_relevance import token_relevance
    from organisms.ground_truth import load_ground_truth

    result: Any = record.result()
    words = sorted(result.evidence_words(), key=lambda word: -word.score) if hasattr(result, "evidence_words") else []
    relevant = set(token_relevance([word.word for word in words], load_ground_truth(organism)).relevant)
    places = [place for place, word in enumerate(words, start=1) if word.word in relevant]
    listed = [f"**{word.word}**" if word.word in relevant else word.word for word in words[:_WORDS_SHOWN]]
    score = round(words[places[0] - 1].score, 2) if places else None
    return Shown(record.manifest.method, result.stands_out, listed, places[0] if places else None, score, record.manifest.seconds)


def relevance_row(records: dict[str, RunRecord], organism: str) -> list[str]:
    """Shares of token lists on topic, each with the mean share for the topics of other organisms."""
    from cli.relevance import judge

    lens, patchscope, mined = (records[name] for name in RELEVANCE_METHODS)
    middle, *_, late = (int(layer) for layer in lens.array("layers"))
    lists = {row.name: row for row in judge(lens, organism, k=LENS_TOKENS)}
    mined_lists = [next((row for row in judge(mined, organism, k=k) if row.name == "top_k_occurring"), None) for k in (LENS_TOKENS, MINED_TOKENS)]
    read = judge(patchscope, organism, k=LENS_TOKENS) if patchscope.result_json()["scale"] is not None else []
    chosen = [lists.get(f"{layer}:all:{source}") for layer, source in ((middle, "difference"), *((late, source) for source in LENS_SOURCES))]
    chosen += [read[0] if read else None, *mined_lists]
    return ["-" if row is None else f"{100 * row.share:.0f} ({100 * row.chance:.0f})" for row in chosen]


def run_all(organism: str, methods: Sequence[str]) -> dict[str, RunRecord]:
    """The methods' runs on one organism, by method; those that need a vector come last."""
    from cli.methods import run_records
    from methods.registry import get_method

    methods = [name for name in methods if organism in RUN_ON.get(name, (organism,))]
    plain = [name for name in methods if not get_method(name).needs_vector]
    records = {record.manifest.method: record for record in run_records(plain, organism, [])}
    lens = records.get("activation_difference_lens")
    if lens is not None:
        vector = VECTOR.format(run=lens.id, layer=int(lens.array("layers")[0]))
        for name in methods:
            if get_method(name).needs_vector:
                parameter = "vector" if "vector" in get_method(name).Params.model_fields else "vectors"
                records |= {record.manifest.method: record for record in run_records([name], organism, [f"{parameter}={vector}"])}
    return records


def page(organisms: Sequence[str], methods: Sequence[str]) -> Iterator[str]:
    """The page in Markdown as far as it goes, after every organism."""
    sections = [HEAD.strip()]
    relevance = [
        [
            "organism",
            "lens, middle layer",
            "lens, late layer",
            "of base",
            "of finetuned",
            "patchscope",
            f"diff mining, {LENS_TOKENS}",
            f"diff mining, {MINED_TOKENS}",
        ]
    ]
    for organism in organisms:
        name = re.split(r"[/@]", organism)[0]
        records = run_all(organism, methods)
        rows = [["method", "finding", "words", "rank", "score", "seconds"]]
        rows += [shown(records[method], name).cells() for method in methods if method in records]
        sections += [f"## `{organism}`", _table(rows)]
        if set(RELEVANCE_METHODS) <= set(records):
            relevance.append([f"`{organism}`", *relevance_row(records, name)])
        end = [RELEVANCE.strip(), _table(relevance)] if len(relevance) > 1 else []
        yield "\n\n".join([*sections, *end]) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and write."""
    from methods.registry import all_methods

    parser = argparse.ArgumentParser(prog="python -m cli.readability", description=__doc__)
    parser.add_argument("--organisms", default=",".join(ORGANISMS), help="comma-separated, `organism[/variant]`")
    parser.add_argument("--methods", default=",".join(name for name in all_methods() if name not in SKIPPED), help="comma-separated")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    chosen = parser.parse_args(arguments)
    for text in page(chosen.organisms.split(","), chosen.methods.split(",")):
        chosen.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
