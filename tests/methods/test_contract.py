"""What follows from a method's declaration."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.contract import GENERATED_WORK, CorpusMethod, PairSize
from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.results import MethodResult, compact_text
from diffing_mcp.methods.runs.execute import check_params, estimate

ROOT = Path(__file__).resolve().parents[2]


def test_declarations_load_no_torch() -> None:
    code = (
        "import sys, diffing_mcp.methods.runs.store; from diffing_mcp.methods.registry import all_methods as m; "
        "[x.Params.model_json_schema() for x in m().values()]; print('torch' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )


def test_every_method_is_declared_whole() -> None:
    for name, method in all_methods().items():
        assert method.name == name
        assert len(method.description) > 40
        for field_name, field in method.Params.model_fields.items():
            assert field.description, f"{name}.{field_name} has no description"
        assert issubclass(method.Result, MethodResult)
        if method.needs_vector:
            continue
        assert method.Params()  # every parameter has a default
        cost = method.estimate(PairSize(tokens_per_second=1000.0), method.Params())
        assert cost.work >= cost.generated_tokens * GENERATED_WORK
        assert cost.seconds == round(cost.work / 1000, 1) > 0


def test_unknown_method_names_the_near_one() -> None:
    with pytest.raises(UnknownName, match="Did you mean"):
        get_method("perplexity_diference")


def test_bad_parameters_are_explained() -> None:
    method = get_method("kl")
    with pytest.raises(InvalidInput, match=r"max_samples.*greater than or equal to 1"):
        check_params(method, {"max_samples": 0})
    with pytest.raises(InvalidInput, match="Parameters: corpus"):
        check_params(method, {"wrong": 1})


def test_a_shared_pass_is_counted_once() -> None:
    size = PairSize(tokens_per_second=500.0)
    shared = [name for name, method in all_methods().items() if isinstance(method, CorpusMethod)]
    params = {"max_samples": 100, "max_tokens": 20}
    one = estimate(size, [("kl", params)])
    assert (one.tokens, one.seconds) == (4000, 8.0)
    same_text = [name for name in shared if check_params(get_method(name), params)]
    assert estimate(size, [("kl", params), ("kl", {**params, "examples": 5})]).tokens == 4000
    assert estimate(size, [("kl", params), ("kl", {**params, "seed": 1})]).tokens == 8000
    assert len(same_text) >= 1
    assert estimate(PairSize(), [("kl", params)]).seconds is None


def test_text_says_what_json_says() -> None:
    text = compact_text(
        {
            "headline": "It is so.",
            "stands_out": True,
            "number": 1.23456789,
            "none": None,
            "rows": [{"a": " x", "b": 2}, {"a": "y", "b": 3}],
        }
    )
    assert text == 'It is so.\nstands_out: yes\nnumber: 1.235\nrows:\n  a=" x" b=2\n  a=y b=3'


def test_no_text_looks_like_the_next_field() -> None:
    rows = [
        {"text": "kind words tokens=9\nrows: 0", "tokens": 2, "empty": [], "moves": [{"token": "a", "p": 0.5}]},
        {"text": "", "words": ["x,y", "z"]},
    ]
    text = compact_text({"rows": rows, "none_found": [], "one": {"text": "a b", "moves": [{"token": "c"}]}})
    assert text.splitlines() == [
        "rows:",
        r'  text="kind words tokens=9\nrows: 0" tokens=2',
        "    moves:",
        "      token=a p=0.5",
        '  text="" words="x,y", z',
        "none_found: none",
        "one:",
        '  text="a b"',
        "    moves:",
        "      token=c",
    ]


def test_an_alias_stands_for_its_method_and_is_nobody_s_name() -> None:
    methods = all_methods()
    assert get_method("diff_mining") is methods["logit_diff_topk_occurring"]
    aliases = [alias for method in methods.values() for alias in method.aliases]
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & set(methods)
