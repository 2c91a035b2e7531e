"""Whether a port can be listened on, said before anything heavy is started."""

from __future__ import annotations

import socket

from diffing_mcp.core.errors import InvalidInput


def bindable(host: str, port: int) -> int:
    """The port to listen on; a free one for 0.

    Raises:
        InvalidInput: the port is taken or not allowed, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise InvalidInput(
            f"Cannot listen on {host}:{port} ({error.strerror}). Perhaps it runs there already; else choose another "
            "address: `--port 0` takes a free port."
        ) from error
