"""The documents hold what is true: commands parse, code runs, links lead somewhere, the method reference is current."""

from __future__ import annotations

import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from diffing_mcp.cli.common_options import COMMON, common_first
from diffing_mcp.cli.main import app
from diffing_mcp.cli.python_reference import python_reference
from diffing_mcp.cli.reference import PAGE, PYTHON_PAGE, TOOLS_PAGE, reference, tools_reference
from diffing_mcp.core.settings import settings
from diffing_mcp.methods import registry

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )


def commands() -> Iterator[tuple[str, list[str]]]:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
        lines += re.findall(r"`(diffing [^`]+)`", text)
        for line in lines:
            words = shlex.split(line.strip().rstrip("&"), comments=True)
            # A name in capitals stands for a value.
            if words[:1] == ["diffing"] and "..." not in words:
                yield f"{document.name}: {' '.join(words)}", words[1:]


@pytest.fixture(scope="module")
def everything() -> Any:
    """All commands, as one tree."""
    return typer.main.get_command(app)


@pytest.mark.parametrize(
    ("title", "words"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_in_the_documents_exists_with_its_options(title: str, words: list[str], everything: Any) -> None:
    words = common_first(["claude-code" if word == "HOST" else word for word in words])
    while words and words[0] in COMMON:
        words = words[2:]
    command = everything
    if len(words) == 1 and words[0].startswith("--"):
        assert any(words[0] in (*option.opts, "--help") for option in command.params), title
        return
    context = click.Context(command, info_name="diffing")
    while hasattr(command, "commands"):
        assert words, f"{title} names no command"
        if words[0].isupper():
            return
        assert words[0] in command.commands, title
        command = command.commands[words.pop(0)]
        if not words and hasattr(command, "commands"):
            return
    # Named without its arguments, a command is only mentioned.
    if words:
        command.make_context(command.name, words, parent=context)


def test_the_method_reference_is_current() -> None:
    assert PAGE.exists()
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: make reference"


def test_the_tools_reference_is_current_and_describes_the_model_queries() -> None:
    assert TOOLS_PAGE.read_text(encoding="utf-8") == tools_reference(), "run: make reference"
    assert "| `greedy_tokens` |" in tools_reference()
    assert "docs/tools.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_reference_is_current() -> None:
    assert PYTHON_PAGE.read_text(encoding="utf-8") == python_reference(), "run: make reference"


def test_the_method_reference_can_be_checked_from_the_command_line() -> None:
    assert (
        subprocess.run([sys.executable, "-m", "diffing_mcp.cli.reference", "--check"], cwd=ROOT, check=False).returncode
        == 0
    )


def test_the_reference_describes_every_parameter() -> None:
    for method in registry.all_methods().values():
        for name, field in method.Params.model_fields.items():
            assert field.description, f"{method.name}.{name} has no description"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_named_by_its_import_is_there(document: Path) -> None:
    for name in set(re.findall(r"\bdiffing_mcp(?:\.\w+)+", document.read_text(encoding="utf-8"))):
        pkgutil.resolve_name(name)


def test_every_method_and_every_set_of_tools_is_named() -> None:
    from diffing_mcp.mcp_server.toolset import toolsets

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)`", readme, flags=re.MULTILINE)) == set(registry.all_methods())
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    [listed] = re.findall(r"lists more sets \(([^;]*);", page)
    # `more` holds what leads to all others.
    assert set(re.findall(r"`(\w+)`", listed)) == set(toolsets()) - {"default", "more"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    [named] = re.findall(r"Extras: (.*?)`eval` and", page, flags=re.DOTALL)
    assert set(re.findall(r"`(\w+)`", named)) == set(extras)


def test_what_the_citation_file_sends_readers_to_is_there() -> None:
    assert "docs/methods.md names them" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for method in registry.all_methods().values():
        section = page.partition(f"\n`{method.name}` (version")[2].partition("\n## ")[0]
        assert all(number in section for paper in method.papers for number in re.findall(r"\d{4}\.\d{5}", paper))
        assert ("\nCite: " in section) == bool(method.papers), method.name
    for name in ("activation_oracle", "crosscoder", "patchscope", "logit_diff_topk_occurring"):
        assert registry.get_method(name).papers


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_page_is_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for document in DOCUMENTS[1:]:
        assert f" {document.relative_to(ROOT / 'docs').as_posix()}\n" in site, (
            f"mkdocs.yml does not list {document.name}"
        )


def test_the_catalogue_example_is_a_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffing_mcp.model_pairs.resolve import resolve_pair

    [example] = blocks(ROOT / "docs" / "getting-started.md", "yaml")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    monkeypatch.setenv("DIFFING_CATALOGUE_FOLDERS", f'["{tmp_path}"]')
    settings.cache_clear()
    try:
        spec = resolve_pair("my-finetune")
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert spec.finetuned.adapter is not None
    assert Path(spec.finetuned.adapter.id) == tmp_path / "adapter"


def test_the_suite_example_is_a_suite_within_its_cap(tmp_path: Path) -> None:
    from diffing_mcp.agents.suite_files import plans_of, read_suite

    [example] = blocks(ROOT / "docs" / "evaluation.md", "yaml")
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    name, suite = read_suite(str(tmp_path / "mine.yaml"))
    assert [plan.investigator for plan in plans_of(name, suite)] == ["baseline", "anthropic/NAME"]


def test_the_example_of_ground_truth_can_be_graded_on(tmp_path: Path) -> None:
    from diffing_mcp.organisms.ground_truth import BUNDLED_FOLDER, read_ground_truth

    [example] = blocks(ROOT / "docs" / "organisms.md", "yaml")
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    entries, _ = read_ground_truth((BUNDLED_FOLDER, tmp_path))
    assert (len(entries["my-finetune"].facts), entries["my-finetune"].is_null) == (2, False)


def test_the_amplification_example_is_a_configuration() -> None:
    from diffing_mcp.model_pairs.amplification_config import adapter_files, load_amplification_config

    [example] = blocks(ROOT / "docs" / "amplification.md", "yaml")
    own, organism, custom = load_amplification_config(example).adapters
    assert (own.own, own.layer_amplifications[0].chosen(10)) == (True, frozenset(range(4, 10)))
    assert adapter_files(organism, "smollm2-135m").id.endswith("roman_concrete/default")
    assert adapter_files(custom).model_dump() == {"id": "account/adapters", "revision": "v2", "subfolder": "sub/folder"}


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example of docs/adding-a-method.md as an installed distribution with its entry point."""
    page = ROOT / "docs" / "adding-a-method.md"
    code = "\n".join(blocks(page, "python"))
    [entry] = blocks(page, "toml")
    group, line = re.findall(r'\[project\.entry-points\."(.+)"\]\n(.+)', entry)[0]
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "cosine.py").write_text(code, encoding="utf-8")
    information = tmp_path / "my_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._registry.cache_clear()
    yield
    registry._registry.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.mark.usefixtures("third_party")
def test_the_example_of_a_view_and_a_figure_reads_stored_rows() -> None:
    registry.get_method("residual_cosine")
    method = sys.modules["my_package.cosine"].CosineOfTexts()
    stored = [
        {"text": "Cold oven", "cosine": 0.5},
        {"text": "hot OVEN", "cosine": 0.75},
        {"text": "rain", "cosine": 1.0},
    ]
    record = types.SimpleNamespace(rows=lambda name: stored)
    view = method.views["texts"]
    page = view(record, view.Params(contains="oven", limit=1))
    assert (page.total, page.next_offset, page.rows[0].text) == (2, 1, "hot OVEN")
    [bars] = method.figures[0].build(record)["data"]
    assert bars["y"] == [0.5, 0.75, 1.0]


@pytest.mark.usefixtures("third_party")
def test_the_example_method_is_found_and_computes_what_it_says() -> None:
    import torch

    method = registry.get_method("residual_cosine")
    assert isinstance(sys.modules["my_package.cosine"], types.ModuleType)
    params = method.Params.model_validate({"depth": 1.0})
    accumulator = method.accumulator(types.SimpleNamespace(num_layers=3), params, None)  # type: ignore[attr-defined]
    assert accumulator.layers == (2,)
    base = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [5.0, 5.0]]])
    finetuned = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    # The third position is not compared.
    batch = types.SimpleNamespace(
        positions=torch.tensor([[0, 1, -1]]), base_hidden={2: base}, finetuned_hidden={2: finetuned}
    )
    accumulator.update(batch)
    written: dict[str, object] = {}
    run = types.SimpleNamespace(add_array=written.__setitem__)
    result = method.summarise(accumulator, None, params, run)  # type: ignore[attr-defined]
    assert result.mean_cosine == pytest.approx(0.5)
    assert result.layer == 2
    assert written == {"mean_cosine": [pytest.approx(0.5)]}


def test_the_example_of_stored_activations_runs(
    tiny_models: Callable[..., Path],
    tiny_adapters: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [code] = blocks(ROOT / "docs" / "activations.md", "python")
    model = tiny_models()
    monkeypatch.setenv("DIFFING_DATA_FOLDER", str(tmp_path))
    settings.cache_clear()
    try:
        names: dict[str, Any] = {}
        exec(code.replace('"cake_bake"', repr(f"{model}::{tiny_adapters(model)}")), names)
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert sum(len(part) for part in names["norms"]) == names["index"].tokens > 0
