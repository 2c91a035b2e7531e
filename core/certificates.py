"""The certificates that clients of web servers trust. Imports httpx2 when it is asked."""

from __future__ import annotations

import ssl
from functools import cache


@cache
def trusted_certificates() -> ssl.SSLContext:
    """Those of the system, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`, read once: a client that reads them itself takes
    tens of milliseconds of a processor to do so, which the bridge did three times for every call of a host.
    """
    import httpx2

    return httpx2.create_ssl_context()
