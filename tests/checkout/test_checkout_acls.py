"""POSIX access control lists: from the words that tar writes, and from the kernel's own xattrs, as
setfacl made them and getfacl sees them."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest
import stores
from checkout_trees import DIR, Item, checkout, put_layers, snapshot, tar
from hypothesis import given, settings
from hypothesis import strategies as st

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
TAGS = {"user": (1, 2), "group": (4, 8), "mask": (16, 16), "other": (32, 32)}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    with stores.opened(str(tmp_path_factory.mktemp("acls") / "store")) as opened:
        yield opened


def binary(*entries: tuple[str, int | None, str]) -> bytes:
    """As linux/posix_acl_xattr.h has it."""
    out = struct.pack("<I", 2)
    for tag, who, perms in entries:
        number = TAGS[tag][who is not None]
        bits = sum(4 >> i for i, c in enumerate(perms) if c != "-")
        out += struct.pack("<HHI", number, bits, 0xFFFFFFFF if who is None else who)
    return out


def acl(path: Path, name: str = ACCESS) -> bytes:
    return os.getxattr(path, name)


@pytest.mark.needs("setfacl")
@pytest.mark.parametrize(
    "command",
    [
        ["tar", "--format=posix", "--acls", "--numeric-owner"],
        ["tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner"],
        ["bsdtar", "--acls", "--numeric-owner", "--format=pax"],
    ],
    ids=["gnu", "gnu-xattrs", "bsdtar"],
)
def test_lists_that_setfacl_makes_come_back(content, tmp_path, command):
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "f").write_text("x")
    (tree / "plain").write_text("x")
    for arguments in (
        ["-m", "u:1234:rw-,g:4321:r-x,g::r--", "f"],
        ["-m", "u:1234:rwx,u:70005:---", "d"],
        ["-m", "d:u:1234:r-x,d:g:70007:-w-", "d"],
    ):
        subprocess.run(["setfacl", *arguments], cwd=tree, check=True)
    made = tmp_path / "made.tar"
    subprocess.run([*command, "-C", tree, "-cf", made, "."], check=True)
    checkout(content, put_layers(content, [made.read_bytes()]), tmp_path / "out")
    expected = snapshot(tree, times=False)
    assert expected["f"].xattrs
    assert len(expected["d"].xattrs) == 2
    assert snapshot(tmp_path / "out", times=False) == expected


perms = st.tuples(*(st.sampled_from((c, "-")) for c in "rwx")).map("".join)
ids = st.integers(0, (1 << 32) - 2)


@settings(max_examples=150, deadline=None)
@given(
    base=st.tuples(perms, perms, perms),
    mask=perms,
    users=st.dictionaries(ids, perms, max_size=4),
    groups=st.dictionaries(ids, perms, min_size=1, max_size=4),
    named=st.booleans(),
    comma=st.booleans(),
    shuffle=st.randoms(use_true_random=False),
)
def test_words_are_the_list_that_they_mean(
    content, tmp_path_factory, base, mask, users, groups, named, comma, shuffle
):
    entries: list[tuple[str, int | None, str]] = [("user", None, base[0])]
    entries += [("user", who, p) for who, p in users.items()]
    entries.append(("group", None, base[1]))
    entries += [("group", who, p) for who, p in groups.items()]
    entries += [("mask", None, mask), ("other", None, base[2])]
    words = []
    for tag, who, p in entries:
        name = "" if who is None else f"someone:{p}:{who}" if named else f"{who}:{p}"
        words.append(f"{tag}:{name}" if who is not None else f"{tag}::{p}")
    in_order = list(words)
    by_tag = {w: i for i, w in enumerate(in_order)}
    shuffle.shuffle(words)
    # Of one kind they stay in the order in which they are written.
    order = sorted(range(len(words)), key=lambda i: _rank(entries[by_tag[words[i]]]))
    expected = binary(*(entries[by_tag[words[i]]] for i in order))
    text = ("," if comma else "\n").join(words)
    out = tmp_path_factory.mktemp("acl") / "out"
    items = [
        Item("f", pax={"SCHILY.acl.access": text}, mode=0o640),
        Item("d", DIR, pax={"SCHILY.acl.default": text}, mode=0o750),
    ]
    checkout(content, put_layers(content, [tar(items)]), out)
    assert acl(out / "f") == expected
    assert acl(out / "d", DEFAULT) == expected


def _rank(entry: tuple[str, int | None, str]) -> int:
    return TAGS[entry[0]][entry[1] is not None]


def test_a_name_without_its_number_is_a_note_and_gives_nobody_more(content, tmp_path):
    words = "user::rwx,user:somebody:rwx,group::r--,mask::rwx,other::---"
    items = [Item("f", pax={"SCHILY.acl.access": words}, mode=0o770), Item("g", mode=0o770)]
    report = checkout(content, put_layers(content, [tar(items)]), tmp_path / "out")
    found = snapshot(tmp_path / "out")
    assert (found["f"].mode, found["f"].xattrs) == (0o740, ())
    assert found["g"].mode == 0o770
    assert [n for n in report.notes if "access control" in n and n.endswith(": f")]


@pytest.mark.parametrize(
    "words",
    [
        "user::rw",
        "user::rwz",
        "nobody::rwx",
        "mask:5:rwx",
        "user:1:rwx",
        "x",
        ":::",
        "user::r--",
        "mask::rwx,mask::rwx",
        "other::---",
        "user:4294967295:rwx,mask::rwx",
    ],
)
def test_what_is_no_list_is_a_note(content, tmp_path, words):
    items = [Item("f", pax={"SCHILY.acl.access": f"user::rw-,group::---,{words},other::r--"})]
    report = checkout(content, put_layers(content, [tar(items)]), tmp_path / "out")
    assert len(report.notes) == 1
    assert snapshot(tmp_path / "out")["f"].xattrs == ()


def test_a_list_that_the_filesystem_cannot_keep_gives_nobody_more(content, tmp_path):
    words = "user::rwx,user:5:rwx,group::r--,mask::rwx,other::---"
    raw = binary(
        ("user", None, "rwx"), ("user", 5, "rwx"), ("group", None, "r--"), ("mask", None, "rwx"),
        ("other", None, "---"),
    ).decode("utf-8", "surrogateescape")  # fmt: skip
    items = [
        Item("f", pax={"SCHILY.acl.access": words}, mode=0o770),
        Item("g", pax={f"SCHILY.xattr.{ACCESS}": raw}, mode=0o770),
    ]
    digests = put_layers(content, [tar(items)])
    where = tmp_path / "ramfs"
    where.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", where], check=True)
    try:
        with pytest.raises(OSError, match="not supported"):
            checkout(content, digests, where / "out")
        report = checkout(content, digests, where / "out", ownership="try")
        found = snapshot(where / "out")
    finally:
        subprocess.run(["umount", where], check=True)
    assert (found["f"].mode, found["g"].mode) == (0o740, 0o740)
    assert [n for n in report.notes if "extended attributes" in n]


def test_ids_in_lists_are_mapped_like_owners(content, tmp_path):
    words = "user::rwx,user:5:rwx,group::r--,group:6:r-x,mask::rwx,other::---"
    digests = put_layers(content, [tar([Item("f", pax={"SCHILY.acl.access": words})])])
    maps = {"uid_map": ((0, 100_000, 100),), "gid_map": ((0, 200_000, 100),)}
    checkout(content, digests, tmp_path / "out", **maps)
    assert acl(tmp_path / "out/f") == binary(
        ("user", None, "rwx"), ("user", 100_005, "rwx"), ("group", None, "r--"),
        ("group", 200_006, "r-x"), ("mask", None, "rwx"), ("other", None, "---"),
    )  # fmt: skip
    few = {"uid_map": ((0, 100_000, 5),), "gid_map": ((0, 200_000, 100),)}
    with pytest.raises(OSError, match="Invalid argument"):
        checkout(content, digests, tmp_path / "few", **few)
    report = checkout(content, digests, tmp_path / "few", ownership="try", **few)
    assert [n for n in report.notes if "extended attributes" in n]
