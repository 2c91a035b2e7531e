"""One wording for wrong values."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from diffing_mcp.core.validation_messages import complaints


class Values(BaseModel):
    model_config = ConfigDict(extra="forbid")

    needed: int = Field(ge=1)
    texts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(("a",), min_length=1, max_length=3)

    @model_validator(mode="after")
    def _fit(self) -> Values:
        if self.needed == 13:
            raise ValueError("13 is taken.")
        return self


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"needed": 0}, "`needed`: must be greater than or equal to 1, not 0"),
        ({"needed": "many" * 20}, "`needed`: must be a whole number"),
        ({}, "`needed` is missing"),
        ({"needed": 1, "text": "a"}, "`text` is unknown (did you mean `texts`?)"),
        ({"needed": 1, "texts": [""]}, "`texts.0`: must not be empty"),
        ({"needed": 1, "texts": []}, "`texts`: must not be empty"),
        ({"needed": 1, "texts": ["a"] * 4}, "`texts`: must have at most 3 items, not 4"),
        ({"needed": 1, "texts": [5]}, "`texts.0`: must be a text, not 5"),
        ({"needed": 1, "texts": 5}, "`texts`: must be a list, not 5"),
        ({"needed": 1.5}, "`needed`: must be a whole number, not 1.5"),
        ({"needed": 13}, "13 is taken"),
        (
            {"needed": 1, **dict.fromkeys("pqruvwx", 1)},
            "; ".join(f"`{name}` is unknown" for name in "pqruv") + "; 2 more",
        ),
    ],
)
def test_each_wrong_value_is_named_once(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Values.model_validate(values)
    assert complaints(caught.value, Values.model_fields) == said
