"""What our own clients and our server say to each other beyond the protocol."""

from __future__ import annotations

import logging

STRUCTURED = "diffing/structured"
"""A request whose `_meta` has this set to true gets its answer as data (structured content) beside the text. Without it
an answer is text alone: several hosts show their model only the structured half, which is longer and has no marks
around untrusted text.
"""

RUN = "diffing/run"
"""In the `_meta` of an operator's answer: the address of the resource that holds the run behind it. There it costs a
model no tokens, and no host refuses it as some do a `resource_link`.
"""

APP = "diffing/app"
"""In the `_meta` of an answer to a host that renders MCP Apps: what the page beside it draws. No model reads it."""

JOB = "diffing/job"
"""In the `_meta` of an answer to a client that has the tasks extension, while its work goes on: the job's id."""

IMAGES = "diffing/images"
"""A request whose `_meta` has this set to true gets the figures of the run behind the answer as pictures after the
text.
"""


def expect_unlisted_tools() -> None:
    """Keep the SDK's client from warning at every call of a tool that the server serves without listing it."""
    logging.getLogger("client").setLevel(logging.ERROR)
