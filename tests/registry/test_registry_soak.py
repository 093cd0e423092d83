"""Nothing that was answered is lost: to a collector in an endless loop, or to kill -9. Both for a short
while; `tests/registry/soak.py` is the program that runs for as long as one likes."""

from __future__ import annotations

from registry import soak


def test_gc_in_an_endless_loop_loses_nothing(tmp_path):
    report = soak.race(15, str(tmp_path / "store"))
    assert report["lost"] == []
    assert report["whole"]
    assert report["images"] > 20
    assert report["gc"] > 5
    assert report["reused"] + report["mounted"] > 3
    assert report["leaked uploads"] == 0


def test_a_server_that_is_killed_loses_nothing_and_clients_resume(tmp_path):
    report = soak.kill(10, str(tmp_path / "store"))
    assert report["lost"] == []
    assert report["whole"]
    assert report["killed"] == 10
    assert report["resumed"] > 0
    assert report["begun anew"] == 0
