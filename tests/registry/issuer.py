"""A token server as Docker's token protocol has it: JWTs signed by a library that is not ours.

Ann may do everything; whoever says nothing may pull what is under `open/`; a wrong password gets
nothing. Its certificate is its own authority, as docker-registry wants it (`x5c` in the header).
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from remote import upstream as servers

SERVICE, ISSUER = "registry.test", "issuer.test"
USER, PASSWORD = "ann", "a-word"


@dataclass
class Issuer:
    """`certificate`: the file that a registry has to know; `asked`: scopes, by who asked for them."""

    certificate: Path
    key: ec.EllipticCurvePrivateKey
    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self.port}/token"

    def token(self, user: str, scopes: list[str]) -> str:
        der = base64.b64encode(
            x509.load_pem_x509_certificate(self.certificate.read_bytes()).public_bytes(
                serialization.Encoding.DER
            )
        )
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = set(actions.split(","))
            if user != USER:
                allowed &= {"pull"} if name.startswith("open/") else set()
            access.append({"type": kind, "name": name, "actions": sorted(allowed)})
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": user,
            "jti": uuid.uuid4().hex,
            "iat": now,
            "nbf": now - 5,
            "exp": now + 300,
            "access": access,
        }
        return jwt.encode(claims, self.key, "ES256", headers={"x5c": [der.decode()]})


def _certificate(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key


@contextlib.contextmanager
def issuing(where: Path) -> Iterator[Issuer]:
    """One that runs."""
    file = where / "issuer.pem"
    state = Issuer(file, _certificate(file))

    class Token(servers.Handler):
        def handle_any(self) -> None:
            data = self.body()
            query = parse_qs(data.decode() if data else urlsplit(self.path).query)
            user = ""
            if data:
                who = (query.get("username", [""])[0], query.get("password", [""])[0])
                user = who[0] if who == (USER, PASSWORD) else "?"
            elif text := self.headers.get("Authorization", "").removeprefix("Basic "):
                pair = base64.b64decode(text).decode()
                user = USER if pair == f"{USER}:{PASSWORD}" else "" if pair == ":" else "?"
            scopes = [one for value in query.get("scope", []) for one in value.split()]
            state.asked += [(user, scope) for scope in scopes]
            if user == "?" or query.get("service") != [SERVICE]:
                return self.answer(401)
            token = state.token(user, scopes)
            value = {"token": token, "access_token": token, "expires_in": 300}
            return self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        do_GET = do_POST = handle_any

    with servers.running(Token) as port:
        state.port = port
        yield state
