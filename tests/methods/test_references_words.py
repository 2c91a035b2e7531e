"""How differently words are represented, against words put together from the text itself; medians by numpy, the rank
among shuffles by draws of its own.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from tests.methods.reference_pairs import References

LAYER = 1


def words_of_tokens(pieces: list[str]) -> list[str]:
    """The word that each token belongs to: one begins at a token that begins with a space, and a lone space is part of
    none.
    """
    groups: list[list[str]] = []
    for place, piece in enumerate(pieces):
        if place == 0 or piece.startswith(" ") or pieces[place - 1] == " ":
            groups.append([])
        groups[-1].append(piece)
    return ["".join(group).strip() for group in groups for _ in group]


def test_words_against_the_usual_at_their_positions(references: References) -> None:
    record = references.on("lora", "many", "activation_analysis", layers=(LAYER,))
    plain = references.lora.plain
    relative, names = [], []
    at_position: dict[int, list[float]] = defaultdict(list)
    for text in references.texts("lora", "many"):
        _, hidden = plain.read(text)
        base, finetuned = (hidden[side][LAYER] for side in ("base", "finetuned"))
        relative.append(((finetuned - base).norm(dim=1) / (base.norm(dim=1) + finetuned.norm(dim=1))).numpy())
        names.append(words_of_tokens([plain.tokenizer.decode([token]) for token in text.ids]))
        for position, value in enumerate(relative[-1]):
            at_position[position].append(value)
    overall = np.median(np.concatenate(relative))
    usual = {position: np.median(values) if len(values) >= 20 else overall for position, values in at_position.items()}
    excess: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    single: dict[str, list[float]] = defaultdict(list)
    for sample, (values, words) in enumerate(zip(relative, names, strict=True)):
        for position, (value, word) in enumerate(zip(values, words, strict=True)):
            excess[word][sample].append(np.log((value + 1e-4) / (usual[position] + 1e-4)))
            single[word].append(value)
    by_document = {word: [float(np.mean(values)) for values in several.values()] for word, several in excess.items()}
    score = {word: float(np.median(values)) for word, values in by_document.items()}
    rows = {row["word"]: row for row in record.table("words").to_pylist()}
    checked = [word for word in rows if word in score and word.isalpha()]
    assert len(checked) > 30
    for word in checked:
        assert rows[word]["documents"] == len(by_document[word])
        assert rows[word]["relative_difference"] == pytest.approx(np.mean(single[word]), rel=1e-4)
        assert rows[word]["factor"] == pytest.approx(np.exp(score[word]), rel=1e-4)
    judged = [word for word in checked if rows[word]["content"] and len(by_document[word]) >= 3]
    assert len(judged) >= 20
    middle = np.median([score[word] for word in judged])
    spread = max(1.4826 * np.median([abs(score[word] - middle) for word in judged]), 0.1)
    for word in judged:
        assert rows[word]["z"] == pytest.approx((score[word] - middle) / spread, rel=1e-3, abs=1e-3)
    # The rank of a word among the highest medians of values that are dealt to the words anew.
    random, pool = np.random.default_rng(77), np.concatenate([by_document[word] for word in judged])
    edges = np.cumsum([len(by_document[word]) for word in judged])[:-1]
    highest = np.array([max(np.median(part) for part in np.split(random.permutation(pool), edges)) for _ in range(500)])
    for word in judged:
        chance: Any = (1 + (highest >= score[word]).sum()) / 501
        assert rows[word]["p"] == pytest.approx(chance, abs=0.12)
