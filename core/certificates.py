"""The certificates that clients of web servers trust. Imports httpx2 when it is asked."""

from __future__ import annotations

import ssl
from functools import cache


@cache
def trusted_certificates(environment: bool) -> ssl.SSLContext:
    """Those of the system, or, where the environment is heeded (`through_proxies`), of its `SSL_CERT_FILE` and
    `SSL_CERT_DIR`. Read once: a client that reads them itself takes tens of milliseconds of a processor to do so, which
    the bridge did three times for every call of a host.
    """
    import httpx2

    return httpx2.create_ssl_context(trust_env=environment)
