"""How a registry is to be spoken to: what the user says beside its name."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """`creds`: `USER:PASSWORD`, before anything that files say; an empty text means: ask as nobody.
    `authfile`: read this file only. `tls_verify` False: certificates are not checked, and a registry
    that speaks no TLS is spoken to in plain HTTP, which else is done on loopback only. `cert_dir`:
    `*.crt` are further authorities, `*.cert` with `*.key` the client's certificate. `timeout`: seconds
    that a connection may be silent; `slowest`: bytes a second below which one that is waited for counts
    as silent, too (0: none). `tries`: how often a request is made that fails for reasons which may
    pass."""

    creds: str | None = field(default=None, repr=False)
    authfile: str | None = None
    tls_verify: bool = True
    cert_dir: str | None = None
    timeout: float = 60.0
    slowest: int = 0
    tries: int = 6
