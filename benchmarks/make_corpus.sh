#!/usr/bin/env bash
# Makes the corpus of `make bench`: 18 related images in one OCI layout, as a registry would hold
# them. Needs root, Debian 12 with a deb822 debian.sources, the network, mmdebstrap, buildah, skopeo,
# jq; about 15 minutes and 15 GB while it runs (the layout itself has 1.9 GB).
#
#   benchmarks/make_corpus.sh WORKDIR       ->  WORKDIR/layout
#
# Eight families (base, py, sci, gcc, jre, node, nodeapp, data), each in version 1 (the release as it
# was) and 2 (with all updates); py and sci also in version 3: version 2 built again, nothing
# changed but time, which is what a CI job does every night.
set -euo pipefail
work=${1:?usage: make_corpus.sh WORKDIR}
mkdir -p "$work/layout.tmp"
work=$(cd "$work" && pwd)
export BUILDAH_ISOLATION=chroot TMPDIR="$work/layout.tmp"
build() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver overlay "$@"; }
have() { build inspect -t image "localhost/$1" >/dev/null 2>&1; }

sources=/etc/apt/sources.list.d/debian.sources
awk 'BEGIN { RS = "" } NR == 1' "$sources" | sed 's/ bookworm-updates//' >"$work/1.sources"
cp "$sources" "$work/2.sources"

base() { # base VERSION: a minimal Debian of that date
  have "base:$1" && return
  mmdebstrap --variant=minbase --components=main bookworm "$work/base.tar" "$work/$1.sources"
  local c
  c=$(build from scratch)
  build add -q "$c" "$work/base.tar" /
  build copy -q "$c" "$work/$1.sources" "$sources"
  build commit -q --rm "$c" "localhost/base:$1" >/dev/null
  rm "$work/base.tar"
}

run() { # run FROM TO COMMAND: one layer more
  have "$2" && return
  local c
  c=$(build from "localhost/$1")
  build run --network host -v /etc/ssl/certs:/etc/ssl/certs:ro -e DEBIAN_FRONTEND=noninteractive \
    -e PIP_BREAK_SYSTEM_PACKAGES=1 -e PIP_ROOT_USER_ACTION=ignore "$c" -- sh -ec "$3"
  build commit -q --rm "$c" "localhost/$2" >/dev/null
}

copy() { # copy FROM TO DIR TARGET: a layer of local files
  have "$2" && return
  local c
  c=$(build from "localhost/$1")
  build copy -q "$c" "$3" "$4"
  build commit -q --rm "$c" "localhost/$2" >/dev/null
}

apt() { # the command that installs packages and leaves no lists behind
  echo "apt-get update -qq; apt-get install -y --no-install-recommends $*;" \
    "rm -rf /var/lib/apt/lists/*; apt-get clean"
}

app() { # forty small modules, one of which differs
  mkdir -p "$work/app$1"
  for n in $(seq 40); do echo "VALUE = $((n == 7 ? $1 : 0))" >"$work/app$1/module$n.py"; done
}

data() { # data VERSION: three large files; version 2 has insertions and updates in place
  python3 - "$work/data$1" "$1" <<'PY'
import array, json, pathlib, random, sys
out, version = pathlib.Path(sys.argv[1]), int(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
r = random.Random(1)
lines = [json.dumps({"id": n, "name": f"item {r.randrange(5000)}", "value": r.gauss(0, 1)}) for n in range(2_500_000)]
weights = array.array("f", (r.gauss(0, 1) for _ in range(25_000_000)))
image = bytearray(b"".join(r.randbytes(1 << 15) + bytes(1 << 15) for _ in range(3800)))
if version == 2:
    lines.insert(0, '{"v":2}')
    lines[len(lines) // 2] = json.dumps({"changed": r.random()})
    for at in range(0, len(weights), 2 << 20):
        weights[at] += 1
    image[1024:1040] = r.randbytes(16)
(out / "text.ndjson").write_text("\n".join(lines))
(out / "weights.f32").write_bytes(weights.tobytes())
(out / "rootfs.img").write_bytes(image)
PY
}

python_1='numpy==1.26.4 pandas==2.1.4 scipy==1.11.4 requests==2.31.0 flask==2.3.3 sqlalchemy==2.0.25'
python_2='numpy==1.26.4 pandas==2.2.2 scipy==1.11.4 requests==2.32.3 flask==3.0.3 sqlalchemy==2.0.25'
node_1='@mui/icons-material@5.15.15 @mui/material@5.15.15 react@18.2.0 react-dom@18.2.0 date-fns@3.6.0
  lodash@4.17.21 rxjs@7.8.1 webpack@5.91.0 jest@29.7.0 eslint@8.57.0 typescript@5.4.5 next@14.2.1
  aws-sdk@2.1600.0 core-js@3.36.1 ramda@0.29.1 @tabler/icons@3.1.0 express@4.19.2'
node_2="${node_1/express@4.19.2/express@4.21.2} dayjs@1.11.10"

base 1
base 2
for pair in 1:1 2:2 3:2; do
  v=${pair%:*} from=${pair#*:}
  packages=$python_2
  [ "$v" = 1 ] && packages=$python_1
  run "base:$from" "tls:$v" "$(apt ca-certificates netbase tzdata)"
  run "tls:$v" "py:$v" "$(apt python3 python3-pip python3-venv)"
  run "py:$v" "deps:$v" "pip3 install --no-cache-dir $packages"
  app "$v"
  copy "deps:$v" "sci:$v" "$work/app$v" /srv/app
done
for v in 1 2; do
  packages=$node_2
  [ "$v" = 1 ] && packages=$node_1
  run "base:$v" "gcc:$v" "$(apt build-essential pkg-config)"
  run "tls:$v" "jre:$v" "mkdir -p /usr/share/man/man1; $(apt openjdk-17-jre-headless)"
  run "base:$v" "node:$v" "$(apt nodejs npm)"
  run "node:$v" "nodeapp:$v" "mkdir -p /app; cd /app; npm init -y; npm install --ignore-scripts \
    --no-audit --no-fund --legacy-peer-deps $(echo $packages); rm -rf /root/.npm"
  data "$v"
  copy base:1 "data:$v" "$work/data$v" /srv/data
done

for image in base:{1,2} py:{1,2,3} sci:{1,2,3} gcc:{1,2} jre:{1,2} node:{1,2} nodeapp:{1,2} data:{1,2}; do
  build push -q --format oci "localhost/$image" "oci:$work/layout:${image/:/-}"
done
rm -rf "$work/layout.tmp"
echo "$work/layout"
