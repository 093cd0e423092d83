"""Bearer tokens (Docker's token protocol, "Token Authentication Implementation"): signed JWTs, verified
with keys of the configuration only.

What a token says of its own key (`jwk`, `jku`, `x5c`) counts for nothing. The kind of a key decides
the algorithm, never the token: RS256 for RSA, ES256 for P-256, EdDSA for Ed25519; so there is no
`none`, and a public key is never taken for a secret.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .. import InvalidInputError, UnsupportedError
from .access import ALL
from .config import TokenConfig

MIN_RSA = 2048
MAX_ENTRIES = 1000
"""Repositories that one token may name."""
MAX_FILE = 1 << 20
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


class TokenRefused(Exception):
    """A token that proves nothing; the message says why."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token that was verified says: its user, and the rights by repository."""

    subject: str
    rights: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class _Key:
    algorithm: str
    key: Any
    kid: str | None


class Tokens:
    """Verifies the tokens of one issuer. Raises InvalidInputError for a file that has no such keys,
    UnsupportedError where PyJWT is not installed."""

    def __init__(self, config: TokenConfig) -> None:
        try:
            import cryptography  # noqa: F401 - PyJWT verifies with it, and says so only when asked to
            import jwt
        except ImportError as e:
            raise UnsupportedError(
                "tokens need PyJWT and cryptography: pip install 'layerstore[registry]'"
            ) from e
        self._jwt = jwt
        self._config = config
        self._keys = tuple(key for path in config.keys for key in read(path))
        self._actions = {
            "*": ALL,
            "pull": frozenset(("pull",)),
            "push": config.push,
            **{right: frozenset((right,)) for right in ("create", "overwrite", "delete")},
        }

    def verify(self, text: str) -> Claims:
        """What the token says, if all of it is right. Raises TokenRefused."""
        header = _header(text)
        config = self._config
        kid = header.get("kid")
        fitting = [key for key in self._keys if key.algorithm == header.get("alg")]
        named = [key for key in fitting if key.kid is not None and key.kid == kid]
        reason = "no key of the configuration is for it"
        for key in named or [key for key in fitting if key.kid is None or kid is None]:
            try:
                claims = self._jwt.decode(
                    text,
                    key.key,
                    algorithms=[key.algorithm],
                    audience=config.service,
                    issuer=config.issuer,
                    leeway=config.leeway,
                    options={"require": ["exp", "iss", "aud"]},
                )
                return self._claims(claims)
            except self._jwt.InvalidSignatureError:
                reason = "the signature is not right"
            except self._jwt.PyJWTError as e:
                raise TokenRefused(str(e)) from e
            except (ValueError, TypeError, ArithmeticError, RecursionError) as e:
                raise TokenRefused("its claims cannot be read") from e
        raise TokenRefused(reason)

    def _claims(self, claims: Mapping[str, Any]) -> Claims:
        access = claims.get("access", [])
        subject = claims.get("sub", "")
        if not isinstance(access, list) or len(access) > MAX_ENTRIES:
            raise TokenRefused(f"`access` is no list of up to {MAX_ENTRIES}")
        if not isinstance(subject, str):
            raise TokenRefused("`sub` is no text")
        rights: dict[str, frozenset[str]] = {}
        for one in access:
            name = one.get("name") if isinstance(one, dict) else None
            actions = one.get("actions") if isinstance(one, dict) else None
            if not isinstance(name, str) or not isinstance(actions, list):
                raise TokenRefused("an entry of `access` has no name and actions")
            if one.get("type") != "repository":
                continue
            for action in actions:
                allowed = self._actions.get(action) if isinstance(action, str) else None
                if allowed is not None:
                    rights[name] = rights.get(name, frozenset()) | allowed
        return Claims(subject, rights)


def _header(text: str) -> dict[str, Any]:
    """The header, which is believed in nothing but in which key to try."""
    if not _TOKEN.fullmatch(text):
        raise TokenRefused("not three parts of base64url")
    part = text.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, binascii.Error, RecursionError) as e:
        raise TokenRefused("its header cannot be read") from e
    if not isinstance(header, dict) or "crit" in header:
        raise TokenRefused("its header is not understood")
    return header


def read(path: str) -> list[_Key]:
    """The public keys of a file: PEM keys and certificates, or a JWK set. Raises InvalidInputError."""
    with open(path, "rb") as f:
        data = f.read(MAX_FILE + 1)
    try:
        found = list(_jwks(data) if data.lstrip().startswith(b"{") else _pem(data))
    except Exception as e:  # whatever a parser makes of a file that is no key
        raise InvalidInputError(f"{path}: no public keys: {e}", path=path) from e
    if not found:
        raise InvalidInputError(f"{path}: there is no public key in it", path=path)
    return found


def _pem(data: bytes) -> Iterator[_Key]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    for match in _PEM.finditer(data):
        kind = match[1].decode()
        if "PRIVATE" in kind:
            raise ValueError("a private key is in it; the registry needs the public one")
        if kind == "CERTIFICATE":
            yield _key(x509.load_pem_x509_certificate(match[0]).public_key(), None)
        else:
            yield _key(load_pem_public_key(match[0]), None)


def _jwks(data: bytes) -> Iterator[_Key]:
    from jwt import PyJWK

    document = json.loads(data)
    for one in document.get("keys", [document]):
        if one.get("kty") == "oct" or "d" in one:
            raise ValueError("a secret key is in it; the registry needs public ones")
        yield _key(PyJWK(one).key, one.get("kid"))


def _key(key: Any, kid: str | None) -> _Key:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA:
        return _Key("RS256", key, kid)
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return _Key("ES256", key, kid)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return _Key("EdDSA", key, kid)
    raise ValueError(f"RSA of {MIN_RSA} bits or more, P-256 and Ed25519 are taken")
