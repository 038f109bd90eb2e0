#!/usr/bin/env bash
# Brings docker-compose.yml up for real with podman and podman-compose, without any registry: the image is this machine's Python
# environment on a debootstrap system, Prometheus is Debian's. Then: training runs, Prometheus scrapes it, a node that is killed
# comes back and its workers with it, the run is stopped with a checkpoint.
#   usage (root, about 15 minutes): tests/deploy/compose_for_real.sh FOLDER
# needs: podman netavark aardvark-dns debootstrap prometheus (Debian), podman-compose (PyPI) and a virtual environment of this
# repository, both named by PODMAN_COMPOSE and VENV (default .venv), with the Python version of Debian bookworm, 3.11.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
WORK=$(realpath -m "$1")
VENV=$(realpath "${VENV:-$ROOT/.venv}")
export CONTAINERS_STORAGE_CONF=$WORK/storage.conf CONTAINERS_CONF=$WORK/containers.conf
mkdir -p "$WORK"

if [ "${2:-}" != inside ]; then  # a mount and network namespace of our own, gone with the script
  exec unshare --mount --net --propagation private "$0" "$WORK" inside
fi

configure() {
  printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$WORK" "$WORK" > "$CONTAINERS_STORAGE_CONF"
  printf '[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "%s/networks"\n[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n' "$WORK" > "$CONTAINERS_CONF"
  rm -rf "$WORK/run"  # the state of containers that an interrupted run left
  for folder in /run/containers /run/libpod /run/netns; do  # what podman and its name server know of other namespaces is wrong here
    mkdir -p "$folder"
    mount -t tmpfs tmpfs "$folder"
  done
  ip link set lo up
  umount /sys/fs/cgroup/unified 2> /dev/null || true  # podman 4.3 takes a hybrid hierarchy for v2
}

build_images() {
  local rootfs=$WORK/rootfs
  local packages=$rootfs/opt/venv/lib/python3.11/site-packages
  if [ ! -x "$rootfs/opt/venv/bin/python" ]; then
    debootstrap --variant=minbase --include=python3,python3-venv,procps,ca-certificates bookworm "$rootfs"
    chroot "$rootfs" python3 -m venv /opt/venv
    chroot "$rootfs" useradd --create-home --uid 1000 worldloom
    install -d -o 1000 -g 1000 "$rootfs/runs" "$rootfs/secrets" "$rootfs/opt/worldloom"
  fi
  rsync -a --exclude '_editable*' --exclude 'worldloom*' --exclude ray/jars "$VENV/lib/python3.11/site-packages/" "$packages/"
  sed '1s|.*|#!/opt/venv/bin/python3|' "$VENV/bin/ray" > "$rootfs/opt/venv/bin/ray"
  chmod +x "$rootfs/opt/venv/bin/ray"
  rsync -a --delete "$ROOT/worldloom" "$ROOT/worldloom_dist" "$packages/"
  install -m 0755 "$ROOT/deploy/entrypoint.sh" "$rootfs/usr/local/bin/worldloom-entrypoint"
  local path=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  tar -C "$rootfs" -c . | podman import --change "ENV PATH=$path" --change 'ENV WORLDLOOM_RUNS=/runs' --change 'USER worldloom' \
    --change 'WORKDIR /opt/worldloom' --change 'ENTRYPOINT ["worldloom-entrypoint"]' - worldloom:cpu
  install -D "$(realpath "$(command -v prometheus)")" "$rootfs/usr/bin/prometheus"
  local image
  image=$(sed -n 's/^ *image: \(prom.*\)/\1/p' "$ROOT/docker-compose.yml")
  tar -C "$rootfs" --exclude ./opt/venv -c . | podman import --change 'ENTRYPOINT ["prometheus"]' --change 'USER nobody' \
    --change 'WORKDIR /' - "docker.io/$image"
}

compose() { (cd "$ROOT" && "${PODMAN_COMPOSE:-podman-compose}" -f docker-compose.yml -f tests/deploy/compose_sandbox.yml "$@"); }

wait_for() {  # wait_for SECONDS WHAT COMMAND...
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $deadline ] || { echo "FAILED: $what"; podman ps --all; podman logs --tail 30 worldloom_train_1 || true; return 1; }
    sleep 2
  done
  echo "ok: $what ($SECONDS s)"
}

summary() { podman exec worldloom_head_1 python -c "import json; d = json.load(open('/runs/run-1/summary.json')); print($1)" 2> /dev/null; }
query() { podman exec worldloom_head_1 python -c "
import json, sys, urllib.parse, urllib.request
url = 'http://prometheus:9090/api/v1/query?query=' + urllib.parse.quote(sys.argv[1])
print(sum(float(r['value'][1]) for r in json.load(urllib.request.urlopen(url, timeout=10))['data']['result']))" "$1" 2> /dev/null; }
nodes_alive() { podman exec worldloom_head_1 python -c "
import ray
ray.init(address='auto', logging_level='error', log_to_driver=False)
print(sum(node['Alive'] for node in ray.nodes()))" 2> /dev/null; }
above() { local value; value=$("$1" "$2") && awk "BEGIN { exit !($value > $3) }"; }

down() { podman rm --all --force --time 2 > /dev/null 2>&1 || true; podman volume rm --all --force > /dev/null 2>&1 || true; }
clean() { down; kill "$(cat /run/containers/networks/aardvark-dns/aardvark.pid 2> /dev/null)" 2> /dev/null || true; }

configure
podman image exists worldloom:cpu && [ "${REBUILD:-1}" = 0 ] || build_images
trap clean EXIT
down
export WORLDLOOM_NODES=2 WORLDLOOM_CPUS=3
export WORLDLOOM_FLAGS="--preset debug --env toy:counting --eval-episodes 0 --env-steps 100000000 --workers 5 --train-ratio 2 --learner.checkpoint-every-s 5"
compose up --detach --scale node=2 secrets head node train prometheus
wait_for 600 "the run trains" above summary 'd["train_steps"]' 20
wait_for 240 "Prometheus scrapes the run" above query 'worldloom_env_steps_total' 0
wait_for 240 "all five workers are alive" above query 'worldloom_workers{state="alive"}' 4
user=$(podman exec worldloom_head_1 id -u)
[ "$user" = 1000 ] || { echo "FAILED: the head runs as $user"; exit 1; }
answer=$(podman exec --env RAY_AUTH_MODE=disabled --env RAY_AUTH_TOKEN_PATH= worldloom_head_1 \
  python -m worldloom_dist.submit --working-dir none -- 2>&1) && { echo "FAILED: taken without a token"; exit 1; }
[[ $answer = *"refuses the token"* ]] || { echo "FAILED: $answer"; exit 1; }
echo "ok: without the token the job interface refuses"
before=$(summary 'd["env_steps"]')
podman exec worldloom_node_2 pkill -9 raylet
wait_for 200 "workers of the killed node were started again" above summary 'd["restarts"]["worker"]' 0
wait_for 200 "the killed node is back: three nodes are alive" above nodes_alive '' 2
wait_for 200 "all five workers are alive again" above query 'worldloom_workers{state="alive"}' 4
wait_for 200 "the run went on" above summary 'd["env_steps"]' "$before"
podman stop --time 120 worldloom_train_1 > /dev/null
wait_for 60 "the run was stopped with a checkpoint, no acknowledged row is lost" above summary '(d["status"] == "stopped") * (d["rows"]["lost_acked"] == 0)' 0
echo "compose: everything holds"
