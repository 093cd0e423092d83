"""Who may do what: rules, passwords, tokens, and that nobody learns what they may not read."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import bcrypt
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from registry.asgi import Client
from registry.test_registry import digest_of, image, push, put

import layerstore
from layerstore.registry import Config, Registry
from layerstore.registry.access import Policy
from layerstore.registry.config import AccessConfig, Rule, TokenConfig
from layerstore.registry.passwords import Passwords, TooManyLogins, read
from layerstore.registry.tokens import TokenRefused, Tokens
from layerstore.registry.tokens import read as read_keys
from layerstore.storage.index import Snapshot

ALL = frozenset(("pull", "create", "overwrite", "delete"))


def rule(users: str, repositories: str, *rights: str) -> Rule:
    return Rule(tuple(users.split()), tuple(repositories.split()), frozenset(rights) or ALL)


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def htpasswd(path, **users: str) -> str:
    lines = [
        f"{name}:{bcrypt.hashpw(word.encode(), bcrypt.gensalt(4)).decode()}\n"
        for name, word in users.items()
    ]
    path.write_text("# who\n\n" + "".join(lines))
    return str(path)


@pytest.fixture
def full(store):
    """A client who may do everything, to make what others may not see."""
    return Client(Registry(store))


class As:
    """A client with credentials."""

    def __init__(self, application, headers=None) -> None:
        self._client, self._headers = Client(application), headers or {}

    def __call__(self, method, path, body=b"", headers=None, **more):
        return self._client(method, path, body, {**self._headers, **(headers or {})}, **more)


@pytest.fixture
def registry(store, tmp_path):
    users = htpasswd(tmp_path / "users", ann="a-word", bob="b-word", eve="e-word")
    rules = (
        rule("@anyone", "public/**", "pull"),
        rule("@users", "shared/*", "pull"),
        rule("ann", "**"),
        rule("bob", "bob/**", "pull", "create"),
        rule("eve", "bob/**", "overwrite"),
    )
    return Registry(store, Config(access=AccessConfig(htpasswd=users, rules=rules)))


@pytest.fixture
def anybody(registry):
    return As(registry)


@pytest.fixture
def ann(registry):
    return As(registry, basic("ann", "a-word"))


@pytest.fixture
def bob(registry):
    return As(registry, basic("bob", "b-word"))


@pytest.fixture
def eve(registry):
    return As(registry, basic("eve", "e-word"))


# ---- rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("a", "x/a", False),
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("a/*", "a", False),
        ("a/**", "a/b/c", True),
        ("*", "a", True),
        ("*", "a/b", False),
        ("**", "a/b/c", True),
        ("**/web", "a/b/web", True),
        ("a.b", "axb", False),
        ("team-*/app", "team-1/app", True),
    ],
)
def test_patterns(pattern, name, fits):
    policy = Policy.of(AccessConfig(rules=(rule("@anyone", pattern, "pull"),)))
    assert (policy.rights(None, name) == {"pull"}) == fits


def test_nothing_is_allowed_that_no_rule_allows(store):
    client = Client(Registry(store, Config(access=AccessConfig())))
    for method, path in EVERYTHING:
        answer = client(method, path.format(name="a/b"))
        assert (answer.status, answer.code) == (403, "DENIED"), (method, path)
    assert client("GET", "/v2/").status == 200
    assert client("GET", "/v2/_catalog").json() == {"repositories": []}


UPLOAD = "0123456789abcdef" + "0" * 32
EVERYTHING = [
    ("GET", "/v2/{name}/tags/list"),
    ("GET", "/v2/{name}/manifests/v1"),
    ("HEAD", "/v2/{name}/manifests/v1"),
    ("PUT", "/v2/{name}/manifests/v1"),
    ("DELETE", "/v2/{name}/manifests/v1"),
    ("GET", "/v2/{name}/blobs/" + digest_of(b"x")),
    ("HEAD", "/v2/{name}/blobs/" + digest_of(b"x")),
    ("DELETE", "/v2/{name}/blobs/" + digest_of(b"x")),
    ("POST", "/v2/{name}/blobs/uploads/"),
    ("GET", "/v2/{name}/blobs/uploads/" + UPLOAD),
    ("PATCH", "/v2/{name}/blobs/uploads/" + UPLOAD),
    ("PUT", "/v2/{name}/blobs/uploads/" + UPLOAD + "?digest=" + digest_of(b"x")),
    ("DELETE", "/v2/{name}/blobs/uploads/" + UPLOAD),
    ("GET", "/v2/{name}/referrers/" + digest_of(b"x")),
]
EVERYTHING = [one for one in EVERYTHING if one[0] != "HEAD"]  # no body to tell the code from


@pytest.mark.parametrize(("method", "path"), EVERYTHING)
def test_who_says_nothing_is_asked_and_who_may_not_is_denied(registry, anybody, bob, method, path):
    asked = anybody(method, path.format(name="private/one"))
    assert (asked.status, asked.code) == (401, "UNAUTHORIZED")
    assert asked.headers["www-authenticate"] == 'Basic realm="layerstore", charset="UTF-8"'
    denied = bob(method, path.format(name="private/one"))
    assert (denied.status, denied.code) == (403, "DENIED")
    assert "www-authenticate" not in denied.headers


def test_rights_are_apart(ann, bob, eve, anybody):
    first, second = image(), image(b"layer")
    config, layer = push(bob, b"{}", "bob/app"), push(bob, b"layer", "bob/app")
    assert put(bob, first, "v1", "bob/app").status == 201
    assert put(bob, first, "v1", "bob/app").status == 201  # nothing changes
    assert put(bob, second, "v2", "bob/app").status == 201
    refused = put(bob, second, "v1", "bob/app")
    assert (refused.status, refused.code) == (403, "DENIED")
    refused = put(bob, second, f"{digest_of(second)}?tag=v3&tag=v1", "bob/app")
    assert refused.status == 403
    assert bob("GET", "/v2/bob/app/tags/list").json()["tags"] == ["v1", "v2"]
    for path in (
        "manifests/v1",
        f"manifests/{digest_of(first)}",
        f"blobs/{config}",
    ):
        assert bob("DELETE", f"/v2/bob/app/{path}").status == 403
    # Who may only overwrite adds no tag, and reads nothing.
    assert put(eve, second, "v9", "bob/app").status == 403
    assert put(eve, second, "v1", "bob/app").status == 201
    assert put(eve, image(b"layer", b"layer"), "v1", "bob/app").status == 403
    assert eve("GET", "/v2/bob/app/manifests/v1").status == 403
    assert ann("GET", "/v2/bob/app/manifests/v1").body == second
    assert ann("DELETE", f"/v2/bob/app/blobs/{layer}").status == 202
    assert anybody("GET", "/v2/bob/app/manifests/v1").status == 401


def test_a_manifest_changes_its_type_by_overwriting_only(ann, bob):
    push(bob, b"{}", "bob/app")
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    data = json.loads(image())
    del data["mediaType"]
    data = json.dumps(data).encode()
    assert put(bob, data, digest_of(data), "bob/app").status == 201
    again = put(bob, data, digest_of(data), "bob/app", kind=docker)
    assert again.status in (400, 403)
    got = bob("GET", f"/v2/bob/app/manifests/{digest_of(data)}")
    assert got.headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"


def test_the_catalog_lists_what_may_be_pulled(full, anybody, ann, bob):
    names = ["bob/x", "public/a", "public/b", "secret/s", "shared/one", "shared/one/deep"]
    for name in names:
        push(full, b"{}", name)
    assert ann("GET", "/v2/_catalog").json()["repositories"] == names
    assert anybody("GET", "/v2/_catalog").json()["repositories"] == ["public/a", "public/b"]
    seen, path = [], "/v2/_catalog?n=1"
    while path:
        answer = bob("GET", path)
        seen += answer.json()["repositories"]
        path = answer.headers.get("link", "").partition(">")[0].lstrip("<")
    assert seen == ["bob/x", "public/a", "public/b", "shared/one"]
    assert bob("GET", "/v2/_catalog?last=" + "z" * 300).code == "NAME_INVALID"


NAMES = sorted(f"{space}/{n:03}" for space in ("a", "a-b", "a/b", "m", "z") for n in range(60))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A store with many repositories."""
    with layerstore.open(tmp_path_factory.mktemp("many") / "store") as opened:
        digest = opened.repository(NAMES[0]).put_blob(b"x").digest
        for name in NAMES[1:]:
            opened.repository(name).mount(digest, opened.repository(NAMES[0]))
        yield opened


def pages(client, size: int) -> list[list[str]]:
    out, path = [], f"/v2/_catalog?n={size}"
    while path:
        answer = client("GET", path)
        out.append(answer.json()["repositories"])
        path = answer.headers.get("link", "").partition(">")[0].lstrip("<")
    return out


PATTERNS = ("**", "*", "a/*", "a/**", "a*/0**", "a-b/*", "a/b/01*", "*/059", "m/001", "m/**", "q/*")


@given(st.lists(st.sampled_from(PATTERNS), max_size=4), st.sampled_from((1, 7, 60, 1000)))
def test_pages_of_the_catalog_are_all_that_may_be_pulled(many, patterns, size):
    policy = AccessConfig(rules=tuple(rule("@anyone", one, "pull") for one in patterns))
    client = Client(Registry(many, Config(access=policy)))
    allowed = Policy.of(policy)
    found = pages(client, size)
    listed = [name for page in found for name in page]
    assert listed == [name for name in NAMES if allowed.rights(None, name)]
    assert all(len(page) == size for page in found[:-1])


@pytest.mark.parametrize("pattern", ["**", "z/*", "m/05*"])
def test_a_page_of_the_catalog_reads_what_it_shows(many, pattern, monkeypatch):
    """Neither the names before it, nor all behind it, nor those that its caller must not see."""
    client = Client(
        Registry(many, Config(access=AccessConfig(rules=(rule("@anyone", pattern, "pull"),))))
    )
    read = []
    real = Snapshot.items

    def watched(self, table, *words, **more):
        for row in real(self, table, *words, **more):
            read.append(row)
            yield row

    monkeypatch.setattr(Snapshot, "items", watched)
    last = "m/049" if pattern == "m/05*" else "z/029"
    assert client("GET", f"/v2/_catalog?n=2&last={last}").json()["repositories"] == [
        f"{last[:2]}{int(last[2:]) + n:03}" for n in (1, 2)
    ]
    assert len(read) <= 3


def test_the_base_says_whether_credentials_are_right(anybody, bob, registry):
    assert anybody("GET", "/v2/").status == 401
    assert bob("GET", "/v2/").status == 200
    for headers in (
        basic("bob", "wrong"),
        basic("nobody", "b-word"),
        basic("bob", ""),
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe:x").decode()},
        {"Authorization": "Bearer abc"},
        {"Authorization": "Digest x"},
        {"Authorization": ""},
    ):
        wrong = As(registry, headers)
        for path in ("/v2/", "/v2/public/a/tags/list"):
            answer = wrong("GET", path)
            assert (answer.status, answer.code) == (401, "UNAUTHORIZED"), headers
    empty = As(registry, basic("", ""))  # what containers/image sends without credentials
    assert empty("GET", "/v2/public/a/tags/list").status == 404


def test_absent_and_not_yours_answer_alike(full, ann, bob):
    digest = push(full, b"secret", "secret/s")
    absent = digest_of(b"nowhere")
    answers = [
        [
            (answer.status, answer.body, sorted(answer.headers.items()))
            for answer in (
                bob("GET", f"/v2/bob/app/blobs/{one}"),
                bob("HEAD", f"/v2/bob/app/blobs/{one}"),
                bob("GET", f"/v2/bob/app/manifests/{one}"),
                bob("GET", f"/v2/bob/app/referrers/{one}"),
                ann("DELETE", f"/v2/bob/app/blobs/{one}"),
            )
        ]
        for one in (digest, absent)
    ]
    assert answers[0] == answers[1]
    denied = [bob("GET", f"/v2/{name}/blobs/{digest}") for name in ("secret/s", "no/such")]
    assert [one.status for one in denied] == [403, 403]
    assert denied[0].body == denied[1].body


def test_a_mount_needs_pull_on_the_source(full, bob, ann):
    digest = push(full, b"secret", "secret/s")
    for query in (f"mount={digest}&from=secret/s", f"mount={digest}"):
        answer = bob("POST", f"/v2/bob/app/blobs/uploads/?{query}")
        assert answer.status == 202
        assert bob("HEAD", f"/v2/bob/app/blobs/{digest}").status == 404
    push(full, b"secret", "shared/one")
    assert bob("POST", f"/v2/bob/app/blobs/uploads/?mount={digest}").status == 201
    assert bob("HEAD", f"/v2/bob/app/blobs/{digest}").status == 200
    assert ann("POST", f"/v2/x/y/blobs/uploads/?mount={digest}&from=secret/s").status == 201


def test_what_an_index_merely_names_is_not_made_readable(full, store, ann, bob):
    """Neither at once, nor when an image of that name is taken over by a tag."""
    private = image(config=b"{}")
    push(full, b"{}", "secret/s")
    put(full, private, "v1", "secret/s")
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": digest_of(private),
                    "size": len(private),
                }
            ],
        }
    ).encode()
    kind = "application/vnd.oci.image.index.v1+json"
    assert put(bob, index, "v1", "bob/app", kind=kind).status == 201
    assert bob("GET", f"/v2/bob/app/manifests/{digest_of(private)}").status == 404
    store.tag("bob/app:v1", "shared/taken:v1")
    assert bob("GET", "/v2/shared/taken/manifests/v1").body == index
    assert bob("GET", f"/v2/shared/taken/manifests/{digest_of(private)}").status == 404
    assert bob("GET", f"/v2/shared/taken/blobs/{digest_of(b'{}')}").status == 404


def test_read_only(store, full):
    digest = push(full, b"{}")
    put(full, image(), "v1")
    client = Client(Registry(store, Config(readonly=True)))
    assert client("GET", f"/v2/a/b/blobs/{digest}").status == 200
    assert client("GET", "/v2/a/b/manifests/v1").status == 200
    for method, path in EVERYTHING:
        if method not in ("GET", "HEAD"):
            answer = client(method, path.format(name="a/b"))
            assert (answer.status, answer.code) == (405, "UNSUPPORTED"), (method, path)


# ---- passwords --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "ann",
        ":$2y$05$" + "a" * 53,
        "ann:plain",
        "ann:$apr1$x$" + "a" * 22,
        "ann:{SHA}" + "a" * 28,
        "ann:$2y$31$" + "a" * 53,
        "ann:$2y$03$" + "a" * 53,
        "@anyone:$2y$05$" + "a" * 53,
        "bob:$2y$05$" + "a" * 53,
    ],
)
def test_other_hashes_are_refused_with_their_line(tmp_path, line):
    path = tmp_path / "users"
    path.write_text(f"bob:$2y$05${'a' * 53}\n{line}\n")
    with pytest.raises(layerstore.InvalidInputError) as caught:
        read(str(path))
    assert f"{path}:2: " in caught.value.message


def test_a_password_is_checked_once(tmp_path, monkeypatch):
    path = tmp_path / "users"
    passwords = Passwords(htpasswd(path, ann="word"))
    checked = []
    real = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda *a: checked.append(a) or real(*a))
    assert passwords.remembered("ann", b"word") is None
    for _ in range(3):
        waiting = [passwords.check("ann", b"word") for _ in range(5)]
        assert [one.result() for one in waiting] == [True] * 5
    assert passwords.remembered("ann", b"word") is True
    assert len(checked) == 1
    # Who is not there costs a look of bcrypt's, too; a long password none less.
    for name, word in (("nobody", b"word"), ("ann", b"w" * 73), ("ann", b"wo\0rd"), ("ann", b"")):
        before = len(checked)
        assert passwords.check(name, word).result() is False
        assert len(checked) == before + 1
    htpasswd(path, ann="other")
    assert passwords.remembered("ann", b"word") is None
    assert passwords.check("ann", b"word").result() is False
    assert passwords.check("ann", b"other").result() is True
    path.write_text("nonsense")
    assert passwords.check("ann", b"other").result() is True  # as it was
    passwords.close()


def test_a_password_of_bcrypts_longest_is_right(tmp_path):
    passwords = Passwords(htpasswd(tmp_path / "users", ann="w" * 72))
    assert passwords.check("ann", b"w" * 72).result() is True
    assert passwords.check("ann", b"w" * 73).result() is False
    passwords.close()


def test_checks_do_not_pile_up(tmp_path, registry, monkeypatch):
    monkeypatch.setattr("layerstore.registry.passwords.WAITING", 0)
    passwords = Passwords(htpasswd(tmp_path / "users", ann="word"))
    with pytest.raises(TooManyLogins):
        passwords.check("ann", b"word")
    answer = As(registry, basic("ann", "a-word"))("GET", "/v2/")
    assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")


# ---- tokens -----------------------------------------------------------------------------------

RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def pem(private) -> bytes:
    return private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def claims(*access, **more) -> dict[str, object]:
    now = int(time.time())
    return {
        "iss": "auth.example",
        "aud": "registry.example",
        "sub": "ann",
        "exp": now + 300,
        "iat": now,
        "access": [
            {"type": "repository", "name": name, "actions": actions} for name, actions in access
        ],
        **more,
    }


@pytest.fixture
def bearer(store, tmp_path):
    """A registry that takes tokens of three keys."""
    path = tmp_path / "keys.pem"
    path.write_bytes(pem(RSA) + pem(EC) + pem(ED))
    token = TokenConfig(
        "https://auth.example/token", "registry.example", "auth.example", (str(path),)
    )
    rules = (rule("@anyone", "public/**", "pull"), rule("ann", "ann/**"))
    return Registry(store, Config(access=AccessConfig(token=token, rules=rules)))


def holding(registry, token: str) -> As:
    return As(registry, {"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA")])
def test_a_token_allows_what_it_says(bearer, key, algorithm):
    said = claims(("a/b", ["pull", "push"]), ("c/d", ["pull"]), ("e/f", ["*"]))
    client = holding(bearer, jwt.encode(said, key, algorithm))
    assert client("GET", "/v2/").status == 200
    push(client, b"{}", "a/b")
    assert put(client, image(), "v1", "a/b").status == 201
    assert client("GET", "/v2/a/b/manifests/v1").status == 200
    assert client("GET", "/v2/c/d/manifests/v1").status == 404
    assert client("GET", "/v2/public/x/manifests/v1").status == 404
    push(client, b"{}", "e/f")
    assert client("DELETE", f"/v2/e/f/blobs/{digest_of(b'{}')}").status == 202
    for method, path, scope in (
        ("DELETE", "/v2/a/b/manifests/v1", "repository:a/b:delete"),
        ("POST", "/v2/c/d/blobs/uploads/", "repository:c/d:pull,push"),
        ("GET", "/v2/g/h/tags/list", "repository:g/h:pull"),
        # The token's user has rights by the rules: a token is less than its user.
        ("GET", "/v2/ann/x/tags/list", "repository:ann/x:pull"),
        (
            "POST",
            f"/v2/g/h/blobs/uploads/?mount={digest_of(b'')}&from=a/b",
            "repository:g/h:pull,push repository:a/b:pull",
        ),
    ):
        answer = client(method, path)
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED"), path
        assert answer.headers["www-authenticate"] == (
            'Bearer realm="https://auth.example/token",service="registry.example",'
            f'scope="{scope}",error="insufficient_scope"'
        )


def test_a_token_s_push_may_mean_less(store, tmp_path):
    path = tmp_path / "keys.pem"
    path.write_bytes(pem(EC))
    token = TokenConfig(
        "r", "registry.example", "auth.example", (str(path),), push=frozenset(["create"])
    )
    registry = Registry(store, Config(access=AccessConfig(token=token)))
    client = holding(registry, jwt.encode(claims(("a/b", ["pull", "push"])), EC, "ES256"))
    push(client, b"{}")
    push(client, b"layer")
    assert put(client, image(), "v1").status == 201
    assert put(client, image(b"layer"), "v1").status == 403
    more = holding(registry, jwt.encode(claims(("a/b", ["push", "overwrite"])), EC, "ES256"))
    assert put(more, image(b"layer"), "v1").status == 201


def part(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: dict[str, object], body: dict[str, object], key: bytes) -> str:
    """Signed with HMAC, which no library would do with a public key."""
    text = f"{part(header)}.{part(body)}"
    return f"{text}.{part(hmac.new(key, text.encode(), hashlib.sha256).digest())}"


def bad_tokens() -> dict[str, str]:
    good = claims(("a/b", ["pull"]))
    now = int(time.time())
    right = jwt.encode(good, RSA, "RS256")
    head, body, signature = right.split(".")
    own_key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER.public_key()))

    def without(name: str) -> dict[str, object]:
        return {key: value for key, value in good.items() if key != name}

    return {
        "expired": jwt.encode({**good, "exp": now - 3600}, RSA, "RS256"),
        "no end": jwt.encode(without("exp"), RSA, "RS256"),
        "not yet": jwt.encode({**good, "nbf": now + 3600}, RSA, "RS256"),
        "foreign key": jwt.encode(good, OTHER, "RS256"),
        "foreign key in the header": jwt.encode(good, OTHER, "RS256", headers={"jwk": own_key}),
        "key by address": jwt.encode(good, OTHER, "RS256", headers={"jku": "https://x/"}),
        "other audience": jwt.encode({**good, "aud": "other.example"}, RSA, "RS256"),
        "no audience": jwt.encode(without("aud"), RSA, "RS256"),
        "other issuer": jwt.encode({**good, "iss": "other"}, RSA, "RS256"),
        "no issuer": jwt.encode(without("iss"), RSA, "RS256"),
        "none": f"{part({'alg': 'none'})}.{part(good)}.",
        "none, with a signature": f"{part({'alg': 'none'})}.{part(good)}.{signature}",
        "None": f"{part({'alg': 'None'})}.{part(good)}.{part(b'')}x",
        "public key as secret": forged({"alg": "HS256"}, good, pem(RSA)),
        "public key as secret, said to be RSA": forged({"alg": "RS256"}, good, pem(RSA)),
        "empty secret": forged({"alg": "HS256"}, good, b""),
        "other algorithm": jwt.encode(good, RSA, "RS512"),
        "PSS": jwt.encode(good, RSA, "PS256"),
        "changed claims": f"{head}.{part({**good, 'sub': 'eve'})}.{signature}",
        "changed signature": f"{head}.{body}.{signature[:-6]}AAAAAA",
        "no signature": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "four parts": f"{right}.{signature}",
        "critical header": jwt.encode(good, RSA, "RS256", headers={"crit": ["x"], "x": 1}),
        "deep header": f"{part(b'[' * 9000)}.{body}.{signature}",
        "header no object": f"{part([1])}.{body}.{signature}",
        "algorithm no text": f"{part({'alg': ['RS256']})}.{body}.{signature}",
        "access no list": jwt.encode({**good, "access": {"a": 1}}, RSA, "RS256"),
        "access of texts": jwt.encode({**good, "access": ["a"]}, RSA, "RS256"),
        "endless": jwt.encode({**good, "exp": float("inf")}, RSA, "RS256"),
        "exp no number": jwt.encode({**good, "exp": "soon"}, RSA, "RS256"),
        "empty": "",
        "nonsense": "\xff\xfe",
    }


@pytest.mark.parametrize("name", sorted(bad_tokens()))
def test_a_token_that_proves_nothing_is_refused(bearer, name):
    client = holding(bearer, bad_tokens()[name])
    for path in ("/v2/", "/v2/public/x/tags/list", "/v2/a/b/tags/list"):
        answer = client("GET", path)
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED"), name
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_who_has_no_token_is_told_where_to_get_one(bearer):
    answer = As(bearer)("GET", "/v2/a/b/manifests/v1")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == (
        'Bearer realm="https://auth.example/token",service="registry.example",'
        'scope="repository:a/b:pull"'
    )
    assert As(bearer)("GET", "/v2/").headers["www-authenticate"] == (
        'Bearer realm="https://auth.example/token",service="registry.example"'
    )
    assert As(bearer, basic("ann", "x"))("GET", "/v2/").status == 401


def test_keys_of_a_jwk_set_are_chosen_by_their_id(tmp_path):
    one, two = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    keys = [
        {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())), "kid": kid}
        for key, kid in ((one, "1"), (two, "2"))
    ]
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": keys}))
    tokens = Tokens(TokenConfig("r", "registry.example", "auth.example", (str(path),)))
    for key, kid in ((one, "1"), (two, "2"), (one, None)):
        headers = {"kid": kid} if kid else None
        assert tokens.verify(jwt.encode(claims(), key, "ES256", headers=headers)).subject == "ann"
    for key, kid in ((one, "2"), (two, "3")):
        with pytest.raises(TokenRefused):
            tokens.verify(jwt.encode(claims(), key, "ES256", headers={"kid": kid}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        RSA.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        pem(rsa.generate_private_key(65537, 1024)),
        pem(ec.generate_private_key(ec.SECP384R1())),
        b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}',
        b'{"keys": []}',
        b'{"keys": 3}',
    ],
)
def test_other_keys_are_refused(tmp_path, data):
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(layerstore.InvalidInputError, match="key"):
        read_keys(str(path))
