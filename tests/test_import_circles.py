"""No module of the package imports itself by way of others: not at the top, not inside a function, not for types."""

from __future__ import annotations

import grimp
import networkx
import pytest

from tests.test_packaging import ROOMS


@pytest.fixture(scope="module")
def circles() -> list[list[str]]:
    """Modules that reach one another, one sorted list a circle."""
    package = grimp.build_graph("diffing_mcp", exclude_type_checking_imports=False, cache_dir=None)
    graph = networkx.DiGraph(
        (importer, imported)
        for importer in package.modules
        for imported in package.find_modules_directly_imported_by(importer)
    )
    return [sorted(circle) for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_no_import_circle(room: str, circles: list[list[str]]) -> None:
    found = [circle for circle in circles if any(module.split(".")[1:2] == [room] for module in circle)]
    assert not found, "\n".join(" <-> ".join(circle) for circle in found)


def test_the_package_has_no_import_circle_across_its_rooms(circles: list[list[str]]) -> None:
    across = [circle for circle in circles if len({tuple(module.split(".")[1:2]) for module in circle}) > 1]
    assert not across, across
