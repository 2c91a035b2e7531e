"""One wording for wrong values."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from diffing_mcp.core.validation_messages import complaints


class Values(BaseModel):
    model_config = ConfigDict(extra="forbid")

    needed: int = Field(ge=1)
    texts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(("a",), min_length=1)

    @model_validator(mode="after")
    def _fit(self) -> Values:
        if self.needed == 13:
            raise ValueError("13 is taken.")
        return self


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"needed": 0}, "`needed`: Input should be greater than or equal to 1, not 0"),
        ({"needed": "many" * 20}, "`needed`: Input should be a valid integer, unable to parse string as an integer"),
        ({}, "`needed` is missing"),
        ({"needed": 1, "text": "a"}, "`text` is unknown (did you mean `texts`?)"),
        ({"needed": 1, "texts": [""]}, "`texts.0`: String should have at least 1 character, not ''"),
        ({"needed": 1, "texts": []}, "`texts`: Tuple should have at least 1 item after validation, not 0"),
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
