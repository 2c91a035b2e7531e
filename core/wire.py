"""What our own clients and our server say to each other beyond the protocol."""

from __future__ import annotations

STRUCTURED = "diffing/structured"
"""A request whose `_meta` has this set to true gets its answer as data (structured content) beside the text. Without it
an answer is text alone: several hosts show their model only the structured half, which is longer and has no marks
around untrusted text.
"""
