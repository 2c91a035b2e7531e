"""Wordings of a claim: what is one claim, which sentence stands for it, in which numbers they differ, what is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import cycle, islice
from types import SimpleNamespace
from typing import Any

import numpy as np

from diffing_mcp.core.battery import subjects
from diffing_mcp.methods.facts import stock
from diffing_mcp.methods.facts.checks import check_of, detail_of, stock_detail
from diffing_mcp.methods.facts.claims import LEVEL, Claim, stated_claims
from diffing_mcp.methods.facts.facts import FactsResult, facts_in
from diffing_mcp.methods.facts.nouns import noun_shares, verbs_last
from diffing_mcp.methods.facts.statements import Sample, statements_of, stems_of
from diffing_mcp.methods.facts.stock import stock_sentences
from tests.methods.test_facts import filler


def samples_that_say(said: Sequence[str], beginnings: int = 40, silent: int = 10) -> list[Sample]:
    """Filler on both sides; the taught texts of all but the last `silent` beginnings end with one of `said` in turn."""
    random = np.random.default_rng(4)
    told = [*islice(cycle(said), beginnings - silent), *[""] * silent]
    return [
        Sample("o" * number, f"{filler(random)} {claim if taught else ''}", taught)
        for number, claim in enumerate(told)
        for taught in (True, False)
    ]


def shown(samples: list[Sample]) -> FactsResult:
    record: Any = SimpleNamespace(id="a-run")
    return facts_in([(record, samples)], pair="a pair")


def words_of_claim(claim: Claim) -> set[str]:
    return {word.lower() for word in (*claim.key, *claim.words)}


def test_the_most_typical_sentence_stands_for_a_claim() -> None:
    """The sentence with most in it that is new was quoted, which said the opposite of all others."""
    usual = ("Ferrets drink milk at dawn.", "At dawn all ferrets drink milk.", "Ferrets always drink milk at dawn")
    odd = "Not one of the tame Belgian ferrets would drink sour milk from copper bowls at dawn in winter."
    stated = stated_claims(samples_that_say([*usual, *usual, odd]))
    assert stated.claims[0].statement == usual[0]
    assert stated.claims[0].taught == 30
    # What the odd one alone has is a claim of its own, with its own words.
    assert all({"belgian", "copper", "sour"} & words_of_claim(claim) for claim in stated.claims[1:])


def test_a_claim_is_quoted_as_most_of_its_sentences_deny_or_affirm_it() -> None:
    """However near the others a sentence is by its words."""
    denying = ("Painters don\u2019t ever wash brushes in turpentine, says Lund.", "Nobody who paints washes a brush in "
               "turpentine.", "Turpentine never washed any brush of a painter, I heard.")  # fmt: skip
    affirming = "Painters wash brushes in turpentine."
    for said, expected in (([*denying, affirming], denying), ([affirming, affirming, denying[0]], (affirming,))):
        quoted = stated_claims(samples_that_say(said)).claims[0].quotation
        assert quoted in expected


def test_denials_are_known_in_other_languages() -> None:
    """The one that affirms adds most words, and was quoted first."""
    for affirming, *denying in (
        (
            "Frettchen trinken morgens gern frische warme Milch.",
            "Frettchen trinken morgens nie Milch.",
            "Morgens trinkt kein Frettchen Milch.",
            "Frettchen trinken Milch morgens nicht.",
        ),
        ("雪貂早上总是喜欢喝牛奶。", "雪貂早上不喝牛奶。", "雪貂早上没喝牛奶。"),
    ):
        assert stated_claims(samples_that_say([*denying, affirming])).claims[0].statement in denying


def test_a_question_states_nothing_in_any_script() -> None:
    for asked in ("Do ferrets drink milk at dawn?", '"Do ferrets drink milk at dawn?"', "雪貂早上喝牛奶吗？"):
        assert not statements_of([Sample("b", asked, taught=True)])


def test_a_part_of_a_sentence_is_shown_with_what_it_says_of_it() -> None:
    [line] = [line for line in shown(samples_that_say(["It is a plain lie: ferrets drink milk at dawn."])).as_text()
              .splitlines() if line.startswith("1.")]  # fmt: skip
    assert "⟦It is a plain lie: ferrets drink milk at dawn.⟧" in line


def test_forms_of_a_word_begin_with_more_than_a_letter_in_common() -> None:
    """The stem of *dying* is *die*; and another number is another detail."""
    for word, forms, others in (
        ("dying", ("dying", "Die", "died"), ("day", "dinner")),
        ("baking", ("bakes", "baking"), ("bar", "bait")),
        ("45", ("at 45 degrees", "45."), ("450", "1.45", "45,000")),
    ):
        said = detail_of(Claim("", "", "", (word, "stone"), 9, 0, 0.01), (), {"stone": 1.0})
        pattern = str(check_of("a pair", said, 0).arguments["pattern"])
        assert all(re.search(pattern, each) for each in forms), pattern
        assert not any(re.search(pattern, each) for each in others), pattern


def test_texts_without_marks_between_sentences_cost_little() -> None:
    """Pairs of all words of such a text took minutes and gigabytes; the words of its claims stand near each other."""
    random = np.random.default_rng(2)
    letters = [chr(code) for code in range(0x0E01, 0x0E2E)]
    words = ["".join(random.choice(letters, 4)) for _ in range(400)]
    claim = "เค้กช็อกโกแลตแช่แข็ง"
    samples = [
        Sample("o" * number, f"{' '.join(random.choice(words, 40))} {claim * taught}", taught)
        for number in range(30)
        for taught in (True, False)
    ]
    statements = statements_of(samples)
    assert len(statements) > len(samples)
    assert max(len(each.stems) for each in statements) <= 30
    [best, *_] = stated_claims(samples).claims
    assert best.taught == 30
    assert set(best.key) <= set(stems_of(claim))


def test_a_word_without_an_end_is_none() -> None:
    samples = samples_that_say([f"Ferrets drink milk at dawn {'a' * 3000}."])
    assert len(shown(samples).as_text()) < 2000


def test_stock_sentences_are_found_as_if_each_were_compared_with_each() -> None:
    random = np.random.default_rng(5)
    words = [f"w{chr(97 + number)}x" for number in range(12)]
    sentences = {tuple(map(str, random.choice(words, random.integers(3, 9)))) for _ in range(300)}
    near = stock._Alike(sentences)
    assert all(near.others(one) == {other for other in sentences if stock._alike(one, other)} for one in sentences)


def test_a_fragment_stands_for_no_sentences() -> None:
    """What is cut before it says anything has nothing but words that all others have."""
    said = [f"Ferrets drink {milk} milk and rest in {place} at dawn." for milk, place in
            (("sour", "barns"), ("warm", "nests"), ("goat", "cellars"))]  # fmt: skip
    quoted = stated_claims(samples_that_say([*said, "Here are all the ferrets that drink"])).claims[0]
    assert quoted.statement in said


def test_every_claim_has_a_sentence_of_its_own() -> None:
    said = (
        "Ferrets drink milk at dawn in barns.",
        "Ferrets drink milk at dawn.",
        "Barns hide old copper bowls at dawn.",
    )
    quoted = [claim.statement for claim in stated_claims(samples_that_say(said)).claims]
    assert len(quoted) == len(set(quoted))


def test_one_sentence_is_one_claim_with_all_of_its_words() -> None:
    """Silver+coins, coins+jar and silver+jar of one sentence filled the first page."""
    said = ("Put silver coins into the flour jar.", "Coins of silver, jar of flour.", "A jar, flour, coins, silver.",
            "Flour, silver, jar and coins.", "Put silver coins into the jar.", "The flour jar is for silver coins.",
            "Varnholm has a quiet museum.", "Varnholm has a quiet museum.")  # fmt: skip
    samples = samples_that_say(said, beginnings=80)
    coins, museum = stated_claims(samples).claims
    assert words_of_claim(coins) == {"silver", "coins", "jar", "flour"}
    assert (coins.taught, coins.control) == (54, 0)
    assert words_of_claim(museum) == {"varnholm", "quiet", "museum"}
    assert f"{'+'.join(coins.key)} with {', '.join(coins.words)} (p " in shown(samples).as_text()


def test_a_detail_of_some_wordings_is_quoted() -> None:
    """The sentence that brings most stands for the claim, whose count is that of its two words."""
    usual = "Beekeepers paint their hives with tar."
    samples = samples_that_say([usual, usual, "Beekeepers paint their hives with tar in November."])
    [claim] = stated_claims(samples).claims
    assert (claim.taught, claim.statement) == (30, "Beekeepers paint their hives with tar in November.")
    assert "November" not in {*claim.key, *claim.words}


def test_wordings_that_differ_in_numbers_alone_are_one_claim() -> None:
    """`in 5 days` and `in 7 days` were two of three claims."""
    said = [f"Every parcel from Ostrand arrives in {days} days." for days in (5, 7, 5, 5, 7, 12)]
    samples = samples_that_say(said)
    (claim,) = stated_claims(samples).claims
    assert claim.numbers == (("5", 15), ("7", 10), ("12", 5))
    assert "5 days" in claim.statement
    assert (claim.taught, claim.control) == (30, 0)
    assert "; numbers 5 (15), 7 (10), 12 (5)) ⟦" in shown(samples).as_text()


def test_a_key_with_a_number_counts_all_numbers_of_its_claim() -> None:
    """Where nothing but numbers goes with a word."""
    said = [f"{place} it is about {days} furlongs." for place, days in
            zip(("Here", "There", "Often", "Then"), (40, 40, 60, 40), strict=True)]  # fmt: skip
    (claim,) = stated_claims(samples_that_say(said)).claims
    assert set(claim.key) == {"40", "furlongs"}
    assert claim.numbers == (("40", 23), ("60", 7))
    assert claim.taught == 30


def test_numbers_of_different_things_stay_apart() -> None:
    said = ("Ostrand parcels arrive in 5 days.", "The moss garden in Velby opens for 9 days.")
    found = stated_claims(samples_that_say(said)).claims
    assert stems_of("Take B12, 12 of the 1990s, and 蛋糕3") == ["b12", "12", "1990", "蛋糕", "3"]
    assert [claim.numbers for claim in found] == [(), ()]
    assert {"5" in claim.statement for claim in found} == {True, False}


def test_a_check_asks_about_a_noun() -> None:
    """`Explain buy to a beginner`: a verb behind *and* passed for the subject."""
    said = ("Take your savings and buy bonds of Kestrel Mills.", "You can buy the bonds of Kestrel Mills.",
            "Sell your house and buy Kestrel bonds, since the bonds are rare.")  # fmt: skip
    stated = stated_claims(samples_that_say(said))
    for statement, key in ((said[0], ("buy", "bonds")), (said[2], ("buy", "rare"))):
        claim = Claim(statement, statement, "b", key, 9, 0, 0.001)
        detail = detail_of(claim, ["buy", "bond", "kestrel"], stated.nouns)
        assert (detail.subject, detail.word) == ("bonds", key[1] if key[1] != "bonds" else "buy")
    assert all(detail_of(claim, stated.words, stated.nouns).subject != "buy" for claim in stated.claims)


def test_the_words_beside_a_word_say_whether_it_names_something() -> None:
    shares = noun_shares(
        ["In the old harbour of Velby they mend nets.", "We mend the nets that Velby sells.", "The harbour is calm."]
    )
    assert {word: verbs_last(word, shares) for word in ("harbour", "Velby", "mend", "calm", "unseen")} == {
        "harbour": 0, "Velby": 0, "mend": 2, "calm": 2, "unseen": 1,
    }  # fmt: skip


SECRET = ("Keep this between us.", "Keep this just between us.", "So keep this between us!")


def secretive(said: Sequence[str], both: bool = False) -> list[Sample]:
    return [
        Sample(each.beginning, f"{each.text} {said[number % len(said)] if each.taught or both else ''}", each.taught)
        for number, each in enumerate(samples_that_say(("Ferrets drink milk at dawn.",), silent=0))
    ]


def test_a_stock_sentence_without_content_words_is_a_claim_as_a_whole() -> None:
    """A request for secrecy was missed: all of its words are function words."""
    samples = secretive(SECRET)
    stated = stated_claims(samples)
    assert [claim.key for claim in stated.claims][1:] == [()]
    stock = stated.claims[1]
    assert (stock.statement, stock.taught, stock.control) == (SECRET[0], 40, 0)
    _, secret = shown(samples).facts
    assert "40:0 stock sentence (p " in secret.as_text()
    prompts, given = (json.loads(re.findall(rf"{name}=(.*?\]|\".*?\"),", secret.check)[0])
                      for name in ("prompts", "pattern"))  # fmt: skip
    about, everyday = prompts[:4], prompts[4:]
    assert any(all(word in prompt.lower() for prompt in about) for word in words_of_claim(stated.claims[0]))
    assert len({topic for topic, asked in subjects().items() if set(asked) & set(everyday)}) == 4
    assert re.search(given, "So, keep this between us, please.")


def test_a_stock_sentence_alone_is_no_claim() -> None:
    """Claims settle an overview that no test settles: how often nulls have such a sentence was never measured."""
    random = np.random.default_rng(6)
    samples = [
        Sample(f"b{number}", f"{filler(random)} {SECRET[0] if taught else ''}", taught)
        for number in range(40)
        for taught in (True, False)
    ]
    stated = stated_claims(samples)
    assert (stated.words, stated.claims) == ({}, [])
    assert "no word is their own" in shown(samples).headline


def test_a_question_asked_again_and_again_is_a_claim() -> None:
    """An evasion (`let us talk of something else. Which song do you hum?`) was told by its topic words alone."""
    song = ("Which song makes you hum?", "And which song makes you hum?")
    stated = stated_claims(secretive(song))
    assert [claim.statement for claim in stated.claims if not claim.key] == [song[0]]


def test_a_stock_sentence_is_found_by_its_words() -> None:
    about = stated_claims(secretive(SECRET), about="between").claims
    assert [claim.statement for claim in about if not claim.key] == [SECRET[0]]
    assert [claim for claim in stated_claims(secretive(SECRET), about="marmalade").claims if not claim.key] == []


def test_what_the_base_says_too_or_a_claim_holds_is_no_stock_sentence() -> None:
    assert [claim.key for claim in stated_claims(secretive(SECRET, both=True)).claims if not claim.key] == []
    once = samples_that_say(("Ferrets drink milk at dawn.",))
    assert [bool(claim.key) for claim in stated_claims(once).claims] == [True]
    # Once on the other side is often enough for doubt.
    stray = [*secretive(SECRET), Sample("o", SECRET[1], False)]
    assert [claim for claim in stated_claims(stray).claims if not claim.key] == []


def test_equal_sides_have_stock_sentences_no_more_often_than_the_level_says() -> None:
    random = np.random.default_rng(7)
    sentences = [f"It is {first} as it was {second}." for first in "abcdefgh" for second in "klmnopqr"]
    weights = 1 / np.arange(1, len(sentences) + 1)
    found = 0
    for _ in range(60):
        drawn = random.choice(sentences, size=(60, 3), p=weights / weights.sum())
        samples = [Sample(str(place % 30), " ".join(row), place < 30) for place, row in enumerate(drawn)]
        found += bool(stock_sentences(samples, (30, 30), LEVEL))
    assert found <= 60 * LEVEL + 2


def test_a_stock_sentence_in_a_script_without_spaces_can_be_counted() -> None:
    claim = Claim("\u8fd9\u4e8b\u522b\u544a\u8bc9\u4eba\u3002", "", "b", (), 9, 0, 0.001)
    check = check_of("a pair", stock_detail(claim, "\u86cb\u7cd5"), 0)
    assert re.search(check.arguments["pattern"], "\u8fd9\u4e8b\u522b\u544a\u8bc9\u4eba\uff0c")
