"""Certificates are read once, and a wrong setting of them stops no client of this machine."""

from __future__ import annotations

import pytest

from diffing_mcp.core.certificates import trusted_certificates


def test_certificates_are_read_once_and_heed_the_environment_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    trusted_certificates.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    assert trusted_certificates(False) is trusted_certificates(False)
    with pytest.raises(OSError, match="No such file"):
        trusted_certificates(True)
