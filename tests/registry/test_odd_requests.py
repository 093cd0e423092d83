"""A few of the odd requests in every run; `python -m tests.registry.odd_requests` sends any number."""

from __future__ import annotations

import asyncio
from pathlib import Path

from registry.odd_requests import to_application, to_server
from registry.test_registry_server import serving_with

COUNT = 2000


def test_odd_requests_end_in_answers(fast_path: Path):
    seen = asyncio.run(to_application(COUNT, 5, str(fast_path / "store")))
    assert {200, 201, 202, 204, 206, 400, 403, 404, 405} <= set(seen)


def test_odd_bytes_do_not_disturb_a_server(fast_path: Path):
    with serving_with(fast_path, '[limits]\nheader_time = "5s"\n') as (_, url, said):
        host, _, port = url.rpartition("//")[2].rpartition(":")
        seen = to_server(500, 5, (host, int(port)))
    assert {b"400", b"404", b"405"} <= set(seen)
    assert "Traceback" not in said.read_text()
