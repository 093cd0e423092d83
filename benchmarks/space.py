"""Sections on bytes: what stores keep of the same tars, what a rebuild adds, what gc gives back."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import call, du, lengths
from benchmarks.report import Figure
from benchmarks.setting import Setting, installed


def _restic(s: Setting) -> int:
    repo = s.fresh("restic")
    call(["restic", "-r", repo, "init", "--repository-version", "2"], s.env)
    call(["restic", "-r", repo, "backup", "-q", s.plain.path / "blobs"], s.env)
    return lengths(repo)


def _borg(s: Setting) -> int:
    repo = s.fresh("borg")
    call(["borg", "init", "-e", "none", repo], s.env)
    call(["borg", "create", "-C", "zstd,3", f"{repo}::all", s.plain.path / "blobs"], s.env)
    return lengths(repo)


def _casync(s: Setting) -> int:
    repo = s.fresh("casync")
    repo.mkdir()
    for layer in s.plain.layers():
        index = repo / f"{layer.diff_id[7:19]}.caibx"
        blob = s.plain.blob(layer.digest)
        call(["casync", "make", f"--store={repo / 'chunks.castr'}", index, blob], s.env)
    return lengths(repo)


# A peer's bytes are the lengths of its files, ours what du counts: rounding is on our account.
PEERS = {"restic": (_restic, 0.66), "casync": (_casync, 0.76), "borg": (_borg, None)}


def space(s: Setting) -> list[Figure]:
    """Everything that each store keeps for the same tars."""
    kept = du(s.full_store())
    out = [Figure("store of all tars", kept, "bytes")]
    for peer, (measure, bound) in PEERS.items():
        if not installed(peer):
            continue
        theirs = measure(s)
        limit = s.bound(bound) if bound is not None else None
        detail = {"layerstore": kept, peer: theirs}
        out.append(Figure(f"space: of {peer}", kept / theirs, bound=limit, detail=detail))
        s.fresh(peer)
    blobs = du(*(s.gzip.blob(layer.digest) for layer in s.gzip.layers()))
    detail = {"layerstore": kept, "gzip blobs": blobs}
    out.append(Figure("space: of the gzip blobs", kept / blobs, detail=detail))
    return out


def rebuild(s: Setting) -> list[Figure]:
    """What the store grows by when an image is built again with the same content."""
    store = s.fresh("rebuild")
    before, after = s.rebuilt
    call(s.ours(store, "import", f"oci:{s.plain.path}:{before}", "app:1"))
    size = du(store)
    call(s.ours(store, "import", f"oci:{s.plain.path}:{after}", "app:2"))
    grown = du(store) - size
    new = sum(path.stat().st_size for path in s.new_in_rebuilt())
    detail = {"grown": grown, "new layers": new}
    name = f"rebuild: {after} after {before}, growth of its new layers"
    return [Figure(name, 100 * grown / new, "%", s.bound(0.15), detail=detail)]


def _content(store: Path) -> int:
    """Bytes of packs and raw files, by du. The index and the reserve for a full disk have sizes of
    their own, which move with the store's and not with an image's."""
    return du(*(path for path in (store / "packs", store / "raw") if path.exists()))


def gc(s: Setting) -> list[Figure]:
    """The dead bytes that come back, at once and by compaction, after images are untagged."""
    store = s.copy_of(s.full_store(), "gc")
    dropped = {s.image(tag).digest for tag in s.drop}
    for image in s.ask(store, "images")["images"]:
        if image["digest"] in dropped:
            call(s.ours(store, "untag", image["name"]))
    dead = s.ask(store, "stats")["dead_bytes"]
    start = _content(store)
    first = s.ask(store, "gc")
    once = start - _content(store)
    last = s.ask(store, "gc", "--aggressive")
    both = start - _content(store)
    ok = s.ask(store, "check", "--full")["ok"]
    detail = {"dead": dead, "freed": once, "seconds": first["seconds"], "packs": start}
    again = {"dead": dead, "freed": both, "seconds": last["seconds"], "check --full": ok}
    at_once, bound = "gc: dead bytes back at once", s.bound(85.0)
    whole, whole_bound = "gc --aggressive: dead bytes back", s.bound(99.0)
    return [
        Figure(at_once, 100 * once / dead, "%", bound, at_least=True, detail=detail),
        Figure(whole, 100 * both / dead, "%", whole_bound, at_least=True, detail=again),
    ]


def accounting(s: Setting) -> list[Figure]:
    """`stats` against du: the total, the parts, and what each image gives back when it goes."""
    full = s.full_store()
    stats = s.ask(full, "stats", "--images")
    on_disk = du(full)
    total = abs(stats["stored"]["total"] - on_disk) / on_disk
    parts = stats["alone"] + stats["shared"] + stats["stored"]["index"] + stats["dead_bytes"]
    worst, worst_name = 0.0, ""
    for image in stats["per_image"]:
        store = s.copy_of(full, "accounting")
        before = _content(store)
        call(s.ours(store, "untag", image["name"]))
        call(s.ours(store, "gc", "--aggressive"))
        freed, said = before - _content(store), image["freed_if_removed"]
        off = abs(freed - said) / max(freed, said, 1 << 20)
        if off >= worst:
            worst, worst_name = off, f"{image['name']} said {said} freed {freed}"
    sums = {"du": on_disk, "stored.total": stats["stored"]["total"], "parts": parts}
    off_parts = 100 * abs(parts - on_disk) / on_disk
    return [
        Figure("stats: stored.total off du", 100 * total, "%", 1.0, detail=sums),
        Figure("stats: alone + shared + index + dead off du", off_parts, "%", 1.0, detail=sums),
        Figure(
            "stats: freed_if_removed off what was freed, worst image",
            100 * worst,
            "%",
            2.0,
            detail={"image": worst_name},
        ),
    ]
