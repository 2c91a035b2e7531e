"""`diffing panel` as a command."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from diffing_mcp.cli.ports import bindable
from diffing_mcp.core.errors import InvalidInput


def test_the_address_is_printed_before_anything_heavy_is_imported() -> None:
    program = (
        "import sys\n"
        "for heavy in ('gradio', 'plotly', 'pandas', 'scipy', 'torch'):\n"
        "    sys.modules[heavy] = None\n"  # importing it fails
        "from diffing_mcp.cli.main import main\n"
        "sys.argv = ['diffing', 'panel', '--port', '0']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout.startswith("The panel opens at http://127.0.0.1:")


def test_a_taken_port_is_said_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"Cannot listen on 127.0.0.1:{port} .*--port 0"):
            bindable("127.0.0.1", port)
    assert bindable("127.0.0.1", 0) > 0
