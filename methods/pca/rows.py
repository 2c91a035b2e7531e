"""Rows of PCA's result and views. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, Field

from diffing_mcp.methods.directions.lens_words import LensToken

ENDS = ("positive", "negative")


def feature_name(layer: int, component: int, end: str) -> str:
    """Name of one end of a component in the run's examples."""
    return f"{layer}:component{component}:{end}"


class ProjectionExample(BaseModel):
    """A token whose activation lies far out on a component. Text of the corpus."""

    projection: float = Field(description="On the unit component, mean removed, in units of the residual stream.")
    context: str = Field(description="The text around it, the token between » and «.")


class ComponentRow(BaseModel):
    """One principal component at one layer."""

    layer: int
    component: int = Field(description="Counted from 1, largest variance first.")
    explained: float = Field(description="Share of the variance.")
    null_explained: float = Field(
        description="The share that this place has under shuffled pairing (`difference`), or in the other model."
    )
    stability: float = Field(
        description="Least |cosine| with the nearest component of either half of the samples; 1: the same direction."
    )
    mean_projection: float = Field(description="Of the mean on the component, over the standard deviation along it.")
    vector: str = Field(description="Name within the run for patchscope, steering and causal_effect.")
    promoted: list[LensToken] = Field(description="Lens of the component (the end on which the mean lies).")
    suppressed: list[LensToken] = Field(description="Lens of its negative.")
    positive: list[ProjectionExample]
    negative: list[ProjectionExample]

    def as_text(self) -> str:
        """Figures, lens and the first example of each end."""
        lists = " | ".join(
            " ".join(f"{token.token!r} {token.z:.1f}" for token in tokens)
            for tokens in (self.promoted, self.suppressed)
        )
        ends = " | ".join(rows[0].context for rows in (self.positive, self.negative) if rows)
        return (
            f"{self.layer}:{self.component} {100 * self.explained:.1f} % (null {100 * self.null_explained:.1f} %) "
            f"stable {self.stability:.2f} mean {self.mean_projection:+.1f} sd | {lists}\n"
            f"    {ends}"
        )
