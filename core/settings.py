"""All settings of the project: environment variables `DIFFING_*`, else a TOML profile named by `DIFFING_PROFILE`, else
these defaults.
"""

from __future__ import annotations

import json
import os
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.validation_messages import complaints

PREFIX = "DIFFING_"


def _listed(separator: str) -> BeforeValidator:
    """Reads a list from the text of an environment variable: a JSON list, or parts between separators."""

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError as error:
                raise ValueError(f"starts like a JSON list but is none: {error}") from error
        return [part.strip() for part in value.split(separator) if part.strip()]

    return BeforeValidator(read)


def _whole(folder: Path) -> Path:
    """The same folder from wherever a process is started. Hosts expand no `~` in the environment that they pass."""
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{folder}: {error}") from error


Folder = Annotated[Path, AfterValidator(_whole)]


class Settings(BaseSettings):
    """Read once a process by `settings()`; in a notebook again when a variable has changed (`read_again`)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    data_folder: Folder = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("diffing-mcp")),
        description="Runs, investigations and evaluation logs. Every path an MCP client names is confined to it.",
    )
    cache_folder: Folder = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("diffing-mcp")),
        description="Things that can be made again, such as the converted embedded model.",
    )
    catalogue_folders: Annotated[list[Folder], NoDecode, _listed(os.pathsep)] = Field(
        default_factory=list,
        description=("Further catalogue folders (any *.yaml in them), read after the bundled one; several as in PATH."),
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
    allowed_hosts: Annotated[list[str], NoDecode, _listed(",")] = Field(
        default_factory=list, description="Host headers accepted besides localhost, comma-separated."
    )
    operator_token: SecretStr | None = Field(
        None,
        description=(
            "Bearer token of an operator who sees real names and has no budget. None: without a token, loopback "
            "clients are operators."
        ),
    )
    oauth_issuer: str | None = Field(
        None,
        description=(
            "Issuer of OAuth tokens (JWT) that are accepted beside our own; the scope `diffing` makes an operator, "
            "`diffing:read` one who changes nothing."
        ),
    )
    oauth_audience: str | None = Field(
        None, description="Audience that such tokens must name; the public address, where none is set."
    )
    oauth_keys_url: str | None = Field(
        None, description="Where the issuer publishes its keys, when not at /.well-known/jwks.json."
    )
    log_format: Literal["text", "json"] = Field("text", description="Of the server's log on stderr.")
    traces: str | None = Field(
        None,
        description="OTLP address (http://HOST:4318/v1/traces) that the server sends traces to; none: none are sent.",
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
    endpoint_requests: int = Field(
        8, ge=1, le=256, description="Requests sent at a time to a model that is reachable by URL alone."
    )
    endpoint_seconds: float = Field(120.0, gt=0, description="Seconds that such a request may take.")

    @field_validator("data_folder", "cache_folder", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if value == "":  # would be the folder that the process happens to be started in
            raise ValueError("must not be empty; leave it out for the usual folder")
        return value

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
        if profile := os.environ.get(f"{PREFIX}PROFILE"):
            sources.append(TomlConfigSettingsSource(settings_cls, toml_file=_profile(profile)))
        return tuple(sources)


def _profile(place: str) -> Path:
    path = Path(place).expanduser()
    if not path.is_file():
        raise InvalidInput(
            f"{PREFIX}PROFILE names {place}, which is no file. Name a TOML file of settings, or unset it."
        )
    return path


_read_from: dict[str, str] = {}
"""The variables that the settings were read from."""


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}


def read_again() -> None:
    """Forget the settings when a variable is another than when they were read. A notebook sets variables at any time,
    as messages tell it to; a server and a command are started with theirs.
    """
    if settings.cache_info().currsize and _variables() != _read_from:
        settings.cache_clear()


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings. Tests that change the environment call `settings.cache_clear()`.

    Raises:
        InvalidInput: a variable or a line of the profile that cannot be read, by its name, with what is allowed.
    """
    _read_from.clear()
    _read_from.update(_variables())
    try:
        return Settings()
    except ValidationError as error:
        names = sorted({f"{PREFIX}{str(each['loc'][0]).upper()}" for each in error.errors()})
        raise InvalidInput(
            f"Wrong settings: {complaints(error)}. Correct {', '.join(names)} in the environment, or the line of that "
            f"name in the file that {PREFIX}PROFILE names."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"The file that {PREFIX}PROFILE names is no TOML: {error}.") from error
