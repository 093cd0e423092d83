"""The end of every help text: examples, exit statuses, variables. A test parses every example."""

from __future__ import annotations

# By program and verb, each a comment and a command.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "layerstore": (
        ("an image in, what it costs, and out again", "layerstore import oci:layout:v1 app:1"),
        ("", "layerstore stats --images"),
        ("", "layerstore export app:1 oci-archive:app.tar"),
    ),
    "layerstore import": (
        ("one image out of a layout directory", "layerstore import oci:layout:v1 app:1.2"),
        ("under the name that it carries", "layerstore import docker-archive:app.tar"),
        ("from a pipe", "docker save app:1.2 | layerstore import docker-archive:- app:1.2"),
        ("every image there, as mirror/TAG", "layerstore import --all oci:layout mirror/"),
        ("only if every layer is sound", "layerstore import --strict oci-archive:app.tar app:1.2"),
        ("from a registry", "layerstore import docker://docker.io/library/debian:12 debian:12"),
    ),
    "layerstore pull": (
        ("under its full name", "layerstore pull quay.io/team/app:1.2"),
        ("one platform of it", "layerstore pull --platform linux/arm64 quay.io/team/app:1.2 app:1"),
        ("every tag, as app:TAG", "layerstore pull --all quay.io/team/app app"),
        (
            "from a registry of one's own",
            "layerstore pull --cert-dir ./ca reg.lan:5000/app:1 app:1",
        ),
    ),
    "layerstore push": (
        ("where its name says", "layerstore push quay.io/team/app:1.2"),
        ("elsewhere, with its signatures", "layerstore push --referrers app:1 reg.lan/team/app:1"),
        ("to a server on this machine", "layerstore push app:1 localhost:5000/app:1"),
    ),
    "layerstore copy": (
        (
            "between registries",
            "layerstore copy docker://quay.io/team/app:1 docker://reg.lan/team/app:1",
        ),
        ("every tag", "layerstore copy --all docker://quay.io/team/app docker://reg.lan/team/app"),
        ("into a file", "layerstore copy docker://quay.io/team/app:1 oci-archive:app.tar"),
    ),
    "layerstore export": (
        ("to a layout, for skopeo or podman", "layerstore export app:1.2 oci:layout:1.2"),
        ("several into one layout", "layerstore export app:1.1 app:1.2 oci:layout"),
        (
            "its layers as gzip, for a registry that wants them so",
            "layerstore export --compression gzip:9 app:1.2 oci:layout",
        ),
        ("with its signatures", "layerstore export --referrers app:1.2 oci:layout"),
        ("to a registry", "layerstore export app:1.2 docker://quay.io/team/app:1.2"),
        ("into docker", "layerstore export app:1.2 docker-archive:- | docker load"),
    ),
    "layerstore images": (
        ("a table", "layerstore images"),
        ("names only", "layerstore images -q"),
        ("for scripts", "layerstore images --json | jq -r '.images[].digest'"),
    ),
    "layerstore inspect": (
        ("manifest, config and layers at a glance", "layerstore inspect app:1.2"),
        ("the digest, computed by somebody else", "layerstore inspect --raw app:1.2 | sha256sum"),
        ("what it runs", "layerstore inspect --config app:1.2 | jq .config.Cmd"),
    ),
    "layerstore history": (
        ("who made which layer", "layerstore history app:1.2"),
        ("by digest", "layerstore history 3f1c9a2b77d0"),
    ),
    "layerstore tag": (
        ("a second name", "layerstore tag app:1.2 app:stable"),
        ("give an image found by digest a name", "layerstore tag 3f1c9a2b77d0 app:rescued"),
    ),
    "layerstore untag": (
        ("one name", "layerstore untag app:1.1"),
        ("several, and their space back", "layerstore untag app:1.0 app:1.1 && layerstore gc"),
    ),
    "layerstore ls": (
        ("everything", "layerstore ls app:1.2"),
        ("a directory", "layerstore ls app:1.2 /etc"),
        ("what the lowest layer holds", "layerstore ls --layer 0 app:1.2 /usr/bin"),
        ("the largest files", "layerstore ls --json app:1.2 | jq -r '.entries|max_by(.size).path'"),
    ),
    "layerstore cat": (
        ("a file, as a container sees it", "layerstore cat app:1.2 /etc/os-release"),
        ("as one layer has it", "layerstore cat --layer 0 app:1.2 /etc/passwd"),
    ),
    "layerstore diff": (
        ("what a container changed", "layerstore diff --upper /run/c1/upper --lower /run/base"),
        ("between two trees, by content", "layerstore diff --content old new"),
        ("the tar alone", "layerstore diff --upper upper --tar - | zstd > layer.tar.zst"),
        ("the same digest everywhere", "SOURCE_DATE_EPOCH=1700000000 layerstore diff old new"),
    ),
    "layerstore checkout": (
        ("a root filesystem", "layerstore checkout app:1.2 rootfs"),
        (
            "for a container of an ordinary user",
            "layerstore checkout --ownership rootless app rootfs",
        ),
        (
            "with its root as uid 100000",
            "layerstore checkout --uid-map 0:100000:65536 --gid-map 0:100000:65536 app:1.2 rootfs",
        ),
    ),
    "layerstore serve": (
        ("a registry for this machine", "layerstore serve --listen 127.0.0.1:5000"),
        ("users, rights, TLS and limits from a file", "layerstore serve --config registry.toml"),
        ("a mirror of another", "layerstore serve --proxy docker://docker.io --proxy-ttl 10m"),
        ("its URL as JSON, on any free port", "layerstore --json serve --listen 127.0.0.1:0"),
    ),
    "layerstore commit": (
        (
            "an overlay's changes on top of a base",
            "layerstore commit app:1 app:2 --upper /run/b/upper",
        ),
        (
            "from nothing, one layer, a command",
            "layerstore commit scratch tool:1 --cmd /tool --layer "
            "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
        ),
        ("other settings only", "layerstore commit app:1 app:1-dev --env DEBUG=1 --user nobody"),
        ("one layer in all", "layerstore commit app:1 app:1-flat --squash-all"),
    ),
    "layerstore bundle": (
        ("for crun", "layerstore bundle app:1.2 ./app && crun run -b ./app app-1"),
        ("in milliseconds", "layerstore bundle app:1.2 ./app --snapshot app-1"),
    ),
    "layerstore snapshot": (
        ("a filesystem for a container", "layerstore snapshot prepare web-1 app:1.2"),
        ("", "layerstore snapshot mount web-1 /run/web-1/rootfs"),
        ("and away again", "layerstore snapshot unmount web-1 && layerstore snapshot rm web-1"),
    ),
    "layerstore snapshot prepare": (
        ("over an image", "layerstore snapshot prepare web-1 app:1.2"),
        (
            "for a user namespace",
            "layerstore snapshot prepare web-2 app:1.2 --uid-map 0:100000:65536",
        ),
        ("over nothing", "layerstore snapshot prepare new scratch"),
    ),
    "layerstore snapshot view": (("to look around", "layerstore snapshot view look app:1.2"),),
    "layerstore snapshot mount": (
        ("where a container's root is to be", "layerstore snapshot mount web-1 /run/web-1/rootfs"),
        ("without the kernel's overlay", "layerstore snapshot mount --driver fuse web-1 ./rootfs"),
    ),
    "layerstore snapshot unmount": (
        ("its changes stay", "layerstore snapshot unmount web-1"),
        ("although something works there", "layerstore snapshot unmount --lazy web-1"),
    ),
    "layerstore snapshot diff": (
        ("what web-1 has changed, as a layer", "layerstore snapshot diff web-1"),
    ),
    "layerstore snapshot commit": (
        ("as a new image", "layerstore snapshot commit web-1 app:1.3 --message 'by hand'"),
    ),
    "layerstore snapshot usage": (("what web-1 has changed", "layerstore snapshot usage web-1"),),
    "layerstore snapshot rm": (
        ("one, and its changes", "layerstore snapshot rm web-1"),
        ("several", "layerstore snapshot rm web-1 web-2"),
    ),
    "layerstore snapshot ls": (
        ("a table", "layerstore snapshot ls"),
        ("where each is", "layerstore snapshot ls --json | jq '.snapshots[]|{key,mounts}'"),
    ),
    "layerstore blob": (
        ("put something, get it back", "layerstore blob put notes.txt"),
        ("", "layerstore blob ls"),
    ),
    "layerstore blob cat": (
        (
            "verified on the way out",
            "layerstore blob cat "
            "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae > out",
        ),
    ),
    "layerstore blob put": (
        ("a file", "layerstore blob put notes.txt"),
        ("from a pipe", "tar -c . | layerstore blob put --media-type application/x-tar -"),
        ("under a lease of your own", "layerstore blob put --lease 8c1f notes.txt"),
    ),
    "layerstore blob stat": (
        (
            "how it is kept",
            "layerstore blob stat "
            "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
        ),
    ),
    "layerstore blob ls": (
        ("a table", "layerstore blob ls"),
        ("digests only", "layerstore blob ls -q"),
    ),
    "layerstore lease": (
        ("protect what a script puts", "export LAYERSTORE_LEASE=$(layerstore lease create)"),
        ("", "layerstore lease rm 8c1f"),
    ),
    "layerstore lease create": (
        ("for one hour after its last use", "layerstore lease create"),
        ("for a long build", "export LAYERSTORE_LEASE=$(layerstore lease create --ttl 12h)"),
    ),
    "layerstore lease ls": (("a table", "layerstore lease ls"),),
    "layerstore lease rm": (("one or more", "layerstore lease rm 8c1f 77d0"),),
    "layerstore optimize": (
        ("everything that came compressed", "layerstore optimize"),
        ("one image, for ten minutes at most", "layerstore optimize app:1.2 --max-time 10m"),
        ("nothing whose recipe is large", "layerstore optimize --max-corrections 0.1%"),
    ),
    "layerstore gc": (
        ("what would go", "layerstore gc --dry-run"),
        ("the nightly run", "layerstore gc --max-time 10m --max-repack-size 10G"),
        ("all of it, now", "layerstore gc --aggressive"),
        (
            "a builder's cache within bounds",
            "layerstore gc --max-used-space 50G --min-free-space 10G",
        ),
    ),
    "layerstore check": (
        ("quick", "layerstore check"),
        ("the weekly run, a bit further each time", "layerstore check --full --max-time 1h"),
        ("heal from a copy", "layerstore check --blocks --repair-from oci:/backup/layout"),
        ("from a registry", "layerstore check --full --repair-from docker://quay.io/team/app"),
        ("after index files were lost", "layerstore check --rebuild-index"),
    ),
    "layerstore stats": (
        ("the whole store", "layerstore stats"),
        ("which image is worth removing", "layerstore stats --images"),
        ("for monitoring", "layerstore stats --json | jq .stored.total"),
    ),
    "layerstore completion": (
        ("bash, now", "source <(layerstore completion bash)"),
        ("zsh", 'layerstore completion zsh > "${fpath[1]}/_layerstore"'),
        ("fish", "layerstore completion fish > ~/.config/fish/completions/layerstore.fish"),
    ),
    "layerstore version": (("for a bug report", "layerstore version"),),
}

_GENERAL = """
variables:
  LAYERSTORE_DIR    the store, where --store is not given (else $XDG_DATA_HOME/layerstore,
                    for root /var/lib/layerstore)
  LAYERSTORE_LEASE  the lease, where --lease is not given
  NO_COLOR          no colours
  SOURCE_DATE_EPOCH the time to write, where a time is written

exit status:
  0 done · 1 failed · 2 wrong usage · 3 damage, not repaired · 4 no such image, blob or store
  5 busy past --timeout · 6 no space, or a limit reached · 7 not allowed · 130 interrupted

`layerstore VERB --help` shows the options of a verb, and examples.
"""


def examples_of(program: str) -> str:
    """The examples of a verb, as help shows them."""
    lines = ["", "examples:"]
    for comment, command in EXAMPLES[program]:
        if comment:
            lines.append(f"  # {comment}")
        lines.append(f"  {command}")
    return "\n".join(lines) + "\n" + (_GENERAL if program == "layerstore" else "")
