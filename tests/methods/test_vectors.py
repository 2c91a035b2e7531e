"""Vector sources: handles, tokens and contrasts as parameters; what they mean; what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from diffing_mcp.core.errors import InvalidInput, NotTheSame, UnknownName
from diffing_mcp.core.validation_messages import complaints
from diffing_mcp.methods.contract import MethodParams
from diffing_mcp.methods.directions.vector_sources import resolve
from diffing_mcp.methods.directions.vectors import (
    ContrastSource,
    ResidualVector,
    TokenSource,
    VectorHandle,
    VectorSource,
    handles,
    split_handle,
    vector_key_parts,
)
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore

LENS = "activation_difference_lens"
SOURCE: TypeAdapter[Any] = TypeAdapter(VectorSource)
PARAMS = {"max_samples": 12, "max_tokens": 12, "layers": [1]}


class Params(MethodParams):
    vectors: tuple[VectorSource, ...] = ()
    more: dict[str, VectorSource] = {}


def lens_run(pairs: Any, spec: Any, store: RunStore) -> Any:
    return run_methods(pairs, spec, [(LENS, PARAMS)], store)[0]


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_a_handle_is_run_and_name(run: str, name: str) -> None:
    whole = f"{run}/{name}"
    try:
        assert split_handle(whole) == (whole.strip().partition("/")[0], whole.strip().partition("/")[2])
    except InvalidInput:
        run_part, _, name_part = whole.strip().partition("/")
        assert not run_part or not name_part


def test_a_parameter_takes_all_three_sources() -> None:
    params = Params.model_validate(
        {
            "vectors": [
                "kl-12ab/14:all:difference",
                {"token": " cake"},
                {"positive": ["a"], "negative": ["b"], "layer": 2, "side": "base"},
            ],
            "more": {"x": "pca-34cd/component3"},
        }
    )
    handle, token, contrast = params.vectors
    assert isinstance(handle, VectorHandle)
    assert (handle.run, handle.name) == ("kl-12ab", "14:all:difference")
    assert isinstance(token, TokenSource)
    assert isinstance(contrast, ContrastSource)
    assert list(handles(params)) == ["kl-12ab/14:all:difference", "pca-34cd/component3"]
    assert Params.model_validate(params.model_dump(mode="json")) == params
    assert params.model_dump(mode="json")["vectors"][0] == "kl-12ab/14:all:difference"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("no slash", "RUN/NAME"),
        ("/name", "RUN/NAME"),
        ("run/", "RUN/NAME"),
        ({"token": ""}, "`token.token`: must not be empty"),
        ({"positive": [], "negative": ["a"]}, "`contrast.positive`: must not be empty"),
        ({"tokens": "a"}, 'A direction is "RUN/NAME", {"token": " cake"}, or '),
        (3, 'A direction is "RUN/NAME", {"token": " cake"}, or '),
    ],
)
def test_of_other_forms_only_what_is_wrong_is_said(wrong: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SOURCE.validate_python(wrong)
    assert caught.value.error_count() == 1
    assert said in complaints(caught.value)


def test_a_run_gives_its_vector_and_its_whole_key(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    record = lens_run(pairs, tiny_pair.spec, store)
    handle = SOURCE.validate_python(f"{record.id}/1:all:difference")
    vector = resolve(handle, tiny_pair, store)
    np.testing.assert_array_equal(vector.values, get_method(LENS).vector(record, "1:all:difference").values)
    assert vector.norm > 0
    assert vector.note == ""
    assert vector_key_parts(Params(vectors=(handle,)), store) == {handle: record.manifest.key}
    with pytest.raises(UnknownName):
        resolve(VectorHandle(f"{record.id}/1:99:difference"), tiny_pair, store)
    with pytest.raises(UnknownName):
        vector_key_parts(Params(vectors=(VectorHandle("kl-00ff00/x"),)), store)


def test_a_vector_of_another_pair_is_noted_or_refused(
    tiny_pair: Any, identical_pair: Any, tiny_models: Any, make_pair: Any, pairs: Any, store: RunStore
) -> None:
    record = lens_run(pairs, tiny_pair.spec, store)
    handle = VectorHandle(f"{record.id}/1:all:difference")
    assert "another pair" in resolve(handle, identical_pair, store).note
    narrow = tiny_models(width=16)
    with (
        pairs.use(make_pair(narrow, declared_identical=True, name="narrow")) as pair,
        pytest.raises(NotTheSame, match=r"32 dimensions.*16 dimensions"),
    ):
        resolve(handle, pair, store)


def test_a_token_is_its_unembedding_row(tiny_models: Any, make_pair: Any, pairs: Any, store: RunStore) -> None:
    spec = make_pair(tiny_models(tie_word_embeddings=False), declared_identical=True, name="untied")
    with pairs.use(spec) as pair:
        token = pair.tokenizer.decode([300])
        output = resolve(TokenSource(token=token, layer=1), pair, store)
        # At the last layer the lens of the row (without the final norm's gain, which is 1 here) has that token first.
        assert int(pair.logit_lens("base", torch.from_numpy(output.values)).argmax()) == 300
        read = resolve(TokenSource(token=token, layer=1, embedding="input"), pair, store)
        assert output.layer == 1
        assert output.scale > 0
        assert not np.allclose(read.values, output.values)
        with pytest.raises(InvalidInput, match="not one token"):
            resolve(TokenSource(token="The quick brown"), pair, store)
        with pytest.raises(InvalidInput, match="layers 0 to 2"):
            resolve(TokenSource(token=token, layer=9), pair, store)


@pytest.mark.parametrize("average", ["last_token", "all_tokens"])
def test_a_contrast_is_a_difference_of_means(average: Any, tiny_pair: Any, store: RunStore) -> None:
    positive, negative = ("Bake the cake.", "A hot oven"), ("Rivers run to the sea.",)
    vector = resolve(
        ContrastSource(positive=positive, negative=negative, layer=1, side="finetuned", average=average),
        tiny_pair,
        store,
    )

    def mean(text: str) -> Any:
        ids = torch.tensor([tiny_pair.tokenizer(text)["input_ids"]])
        rows = tiny_pair.forward("finetuned", ids, torch.ones_like(ids), layers=[1], logits=False).hidden[1][0].double()
        return (rows[-1] if average == "last_token" else rows[1:].mean(0)).numpy()

    expected = np.mean([mean(text) for text in positive], axis=0) - mean(negative[0])
    np.testing.assert_allclose(vector.values, expected, atol=1e-4)


def test_strength_is_a_length() -> None:
    vector = ResidualVector(np.array([3.0, 4.0], dtype=np.float32), 0, 10.0, "v")
    np.testing.assert_allclose(vector.at_strength(-0.5), [-3.0, -4.0], rtol=1e-6)
    assert not np.any(ResidualVector(np.zeros(2, dtype=np.float32), 0, 10.0, "zero").at_strength(5.0))


def test_the_schema_names_the_three_forms() -> None:
    class Holder(BaseModel):
        vector: VectorSource

    options = Holder.model_json_schema()["properties"]["vector"]["anyOf"]
    assert options[0]["type"] == "string"
    assert len(options) == 3
