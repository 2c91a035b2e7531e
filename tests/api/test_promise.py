"""What `import diffing_mcp` promises: its names, what it does not import, versions."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import tomllib

import pytest

import diffing_mcp as dm
from diffing_mcp.core.paths import IMPORT_FOLDER
from diffing_mcp.core.version import version
from diffing_mcp.methods.registry import all_methods


def outcome_of(program: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=IMPORT_FOLDER, capture_output=True, text=True, check=True
    )
    return finished.stdout.strip()


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "('torch', 'transformers', 'pandas', 'plotly', 'pydantic', 'numpy')"
    program = f"import sys, diffing_mcp\nprint([name for name in {heavy} if name in sys.modules])"
    assert outcome_of(program) == "[]"


def test_threads_of_torch_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, diffing_mcp\nprint(os.environ['OMP_WAIT_POLICY'])"
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert outcome_of(program) == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert outcome_of(program) == "ACTIVE"


def test_names_parameters_and_stored_runs_need_no_torch() -> None:
    program = (
        "import sys, diffing_mcp as dm\n"
        "from diffing_mcp import *\n"
        "import inspect\n"
        "assert 'max_samples' in inspect.signature(dm.kl).parameters\n"
        "dm.load_pair('cake_bake'); dm.list_pairs()\n"
        "print('torch' in sys.modules)"
    )
    assert outcome_of(program) == "False"


def test_every_promised_name_is_there_and_listed() -> None:
    assert set(dm.__all__) <= set(dir(dm))
    for name in dm.__all__:
        assert getattr(dm, name) is getattr(importlib.import_module("diffing_mcp"), name)
    assert set(all_methods()) <= set(dm.__all__)


def test_what_a_type_checker_sees_is_what_there_is() -> None:
    source = (IMPORT_FOLDER / "diffing_mcp" / "__init__.py").read_text(encoding="utf-8")
    seen = re.search(r"if TYPE_CHECKING:\n(.*?)\n__all__", source, flags=re.DOTALL)
    assert seen is not None
    assert all(re.search(rf"\b{name}\b", seen[1]) for name in dm.__all__)


@pytest.mark.parametrize("name", ["no_such_thing", "_private", "methodz"])
def test_other_names_are_no_attributes(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(dm, name)


def test_everything_public_explains_itself() -> None:
    for name in dm.__all__:
        value = getattr(dm, name)
        if name != "__version__":
            assert inspect.getdoc(value), name
        if inspect.isclass(value):
            for member, part in inspect.getmembers(value):
                if not member.startswith("_") and member in vars(value):
                    assert inspect.getdoc(part), f"{name}.{member}"


@pytest.mark.parametrize("name", list(all_methods()))
def test_a_method_is_a_function_with_its_parameters(name: str) -> None:
    method, function = all_methods()[name], getattr(dm, name)
    parameters = inspect.signature(function).parameters
    assert next(iter(parameters)) == "pair"
    assert set(parameters) == {"pair", "progress", *method.Params.model_fields}
    for field, declared in method.Params.model_fields.items():
        required = parameters[field].default is inspect.Parameter.empty
        assert required == declared.is_required()
        if not required:
            assert parameters[field].default == declared.get_default(call_default_factory=True)
        assert f"\n    {field} (" in function.__doc__
    assert (function.Params, function.Result) == (method.Params, method.Result)
    assert inspect.signature(function).return_annotation == dm.Run[method.Result]  # type: ignore[name-defined]
    assert "FieldInfo" not in str(inspect.signature(function))


def test_the_version_is_the_project_s(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = tomllib.loads((IMPORT_FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    monkeypatch.setattr("diffing_mcp.core.version.DISTRIBUTION", "not-installed-anywhere")
    assert version() == stated
    monkeypatch.undo()
    assert dm.__version__ == version()
