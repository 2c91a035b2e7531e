"""All settings of the project: environment variables `DIFFING_*`, else a TOML profile named by `DIFFING_PROFILE`, else
these defaults.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource


class Settings(BaseSettings):
    """Read once a process by `settings()`."""

    model_config = SettingsConfigDict(env_prefix="DIFFING_", extra="ignore")

    data_folder: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("diffing-mcp")),
        description="Runs, investigations and evaluation logs. Every path an MCP client names is confined to it.",
    )
    cache_folder: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("diffing-mcp")),
        description="Things that can be made again, such as the converted embedded model.",
    )
    catalogue_folders: list[Path] = Field(
        default_factory=list,
        description="Further catalogue folders (models.yaml, organisms.yaml), read after the bundled one.",
    )
    device: str = Field(
        "auto",
        description=(
            "`auto`, `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the GPUs there are (device_map), else the CPU."
        ),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description=(
            "`auto`: the catalogue's dtype, else the checkpoint's; float32 on a CPU without instructions for 16-bit "
            "floats."
        ),
    )
    memory_share: float = Field(
        0.85, gt=0, le=1, description="Share of the device's memory that resident models may take."
    )
    batch_tokens: int = Field(2048, ge=64, description="Tokens in one forward batch of the corpus pass.")
    threads: int | None = Field(None, description="CPU threads for torch; none leaves torch's choice.")
    host: str = "127.0.0.1"
    port: int = 8931
    public_url: str | None = Field(
        None, description="Address under which clients reach the server when it is not http://host:port."
    )
    allowed_hosts: list[str] = Field(default_factory=list, description="Host headers accepted besides localhost.")
    operator_token: SecretStr | None = Field(
        None,
        description=(
            "Bearer token of an operator who sees real names and has no budget. None: without a token, loopback "
            "clients are operators."
        ),
    )
    judge: str | None = Field(
        None,
        description="LLM judge of test_hypothesis's `criterion`, as Inspect names models: anthropic/NAME, openai/NAME.",
    )
    judge_url: str | None = Field(None, description="Address of the judge when it is not its provider's own.")
    toolsets: str = Field(
        "default",
        description=(
            "Sets of tools that clients of the server list, comma-separated: `default` (those of an investigation), "
            "`all`, or names such as `methods`, `runs`, `pairs`. All others are found by `more_tools`."
        ),
    )
    tools: str = Field("", description="Single tools that they list besides, comma-separated, such as `kl,pca`.")
    read_only: bool = Field(
        False, description="Serve no tool that trains, stores, deletes or unloads; finished runs are still kept."
    )
    generation_backend: Literal["transformers", "vllm"] = "transformers"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if profile := os.environ.get("DIFFING_PROFILE"):
            sources.append(TomlConfigSettingsSource(settings_cls, toml_file=Path(profile)))
        return tuple(sources)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings. Tests that change the environment call `settings.cache_clear()`."""
    return Settings()
