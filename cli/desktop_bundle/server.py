"""Entry point of the bundle: a server of its own, or a bridge to one that is running, as the host's form says.

Copied into the bundle, where the host starts it in an environment that holds the package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from diffing_mcp.cli.main import main


def filled_in(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without our variables that the form left empty: hosts pass those as nothing or as the
    placeholder itself.
    """
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("DIFFING_") or (value.strip() and not value.startswith("${"))
    }


def arguments(environment: Mapping[str, str]) -> list[str]:
    """What `diffing` is called with."""
    url = environment.get("DIFFING_URL")
    return ["connect", url] if url else ["serve"]


if __name__ == "__main__":
    chosen = filled_in(os.environ)
    for name in os.environ.keys() - chosen.keys():
        del os.environ[name]
    sys.argv = ["diffing", *arguments(chosen)]
    main()
