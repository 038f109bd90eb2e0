#!/usr/bin/env bash
# Exercises deploy/ray/local.yml for real, without other machines: three hosts are network, process and mount namespaces of this one,
# joined by a bridge, each with an sshd. Then: ray up, submit, train across the three, cut a link, the run goes on, ray down.
#   usage (root, about 8 minutes): tests/deploy/ray_up_for_real.sh FOLDER
# needs iproute2, openssh-server, rsync, and a virtual environment of this repository (VENV, default .venv).
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
WORK=$(realpath -m "$1")
VENV=$(realpath "${VENV:-$ROOT/.venv}")
TAG=wl$$
NET=10.77.0
HEAD=$NET.11
declare -A INIT
mkdir -p "$WORK"

clean() {
  for pid in "${INIT[@]}"; do kill -9 "$pid" 2> /dev/null || true; done  # the init of a process namespace takes all of it along
  for name in sw 1 2 3 4; do ip netns delete "$TAG$name" 2> /dev/null || true; done
}
trap clean EXIT

make_keys() {
  rm -f "$WORK"/id* "$WORK"/hostkey*
  ssh-keygen -q -t ed25519 -N '' -f "$WORK/id"
  ssh-keygen -q -t ed25519 -N '' -f "$WORK/hostkey"
  cp "$WORK/id.pub" "$WORK/authorized"
  printf 'Port 22\nHostKey %s/hostkey\nAuthorizedKeysFile %s/authorized\nPermitRootLogin yes\nUsePAM no\nStrictModes no\nSubsystem sftp internal-sftp\n' "$WORK" "$WORK" > "$WORK/sshd_config"
  printf '127.0.0.1 localhost\n' > "$WORK/hosts"
  printf 'options timeout:1 attempts:1\n' > "$WORK/resolv.conf"  # no name server: a host that cannot resolve must not wait
  for i in 1 2 3 4; do echo "$NET.1$i host$i" >> "$WORK/hosts"; done
}

make_host() {  # make_host I: a host with address NET.1I, a home of its own, an empty /tmp/ray, and sshd; 4 is the person's laptop
  local i=$1 home=$WORK/home$1
  ip netns add "$TAG$i"
  ip link add "v$i" netns "${TAG}sw" type veth peer name eth0 netns "$TAG$i"
  ip -n "${TAG}sw" link set "v$i" master br0 up
  ip -n "$TAG$i" addr add "$NET.1$i/24" dev eth0
  ip -n "$TAG$i" link set eth0 up
  ip -n "$TAG$i" link set lo up
  ip -n "$TAG$i" route add default via "$NET.1"
  rm -rf "$home"
  mkdir -p "$home/.ray" "$home/.ssh"
  printf 'export PYTHONPATH=%s OMP_NUM_THREADS=1\nexport PATH=%s/bin:$PATH\n' "$ROOT" "$VENV" > "$home/.bashrc"
  cp "$home/.bashrc" "$home/.profile"
  sed "s|^root:.*|root:x:0:0:root:$home:/bin/bash|" /etc/passwd > "$WORK/passwd$i"
  ip netns exec "$TAG$i" unshare -p -m -u -f --mount-proc --kill-child bash -c "
    hostname host$i; mount --bind $WORK/hosts /etc/hosts; mount --bind $WORK/passwd$i /etc/passwd; mount --bind $WORK/resolv.conf /etc/resolv.conf; mkdir -p /run/sshd /tmp/ray
    mount -t tmpfs tmpfs /tmp/ray; /usr/sbin/sshd -D -f $WORK/sshd_config & trap '' TERM; while :; do sleep 1000 & wait \$!; done" \
    > "$WORK/host$i.log" 2>&1 &
  local parent=$!
  until INIT[$i]=$(pgrep -P "$parent"); do sleep 0.1; done
}

on() { local i=$1; shift; nsenter -t "${INIT[$i]}" -n -p -m -u env -i HOME="$WORK/home$i" USER=root TERM=dumb "$@"; }
laptop() { on 4 bash -c "source ~/.bashrc; export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_UP_enable_autoscaler_v2=0; cd $ROOT; $*"; }

write_config() {  # the repository's file, with these hosts, and nothing to install because the hosts share this machine's disk
  "$VENV/bin/python" - "$ROOT/deploy/ray/local.yml" "$WORK/local.yml" "$WORK/id" "$NET" << 'PYTHON'
import sys
import yaml
source, target, key, net = sys.argv[1:]
config = yaml.safe_load(open(source))
config["provider"] |= {"head_ip": f"{net}.11", "worker_ips": [f"{net}.12", f"{net}.13"]}
config["auth"] = {"ssh_user": "root", "ssh_private_key": key}
del config["file_mounts"]["~/worldloom"]
config["setup_commands"] = [line for line in config["setup_commands"] if "venv/bin/p" not in line or "bashrc" in line]
yaml.safe_dump(config, open(target, "w"))
PYTHON
}

wait_for() {  # wait_for SECONDS WHAT COMMAND...
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $deadline ] || { echo "FAILED: $what"; tail -20 "$WORK/job.log" || true; return 1; }
    sleep 2
  done
  echo "ok: $what ($SECONDS s)"
}
summary() { "$VENV/bin/python" -c "import json; d = json.load(open('$WORK/home1/runs/run-1/summary.json')); print($1)" 2> /dev/null; }
above() { local value; value=$("$1" "$2") && awk "BEGIN { exit !($value > $3) }"; }
nodes() { on 1 bash -c "source ~/.bashrc; RAY_AUTH_MODE=token python -c \"
import ray
ray.init(address='auto', logging_level='error', log_to_driver=False)
print(sum(n['Alive'] for n in ray.nodes()))\"" 2> /dev/null; }

make_keys
ip netns add "${TAG}sw"
ip -n "${TAG}sw" link add br0 type bridge
ip -n "${TAG}sw" addr add "$NET.1/24" dev br0
ip -n "${TAG}sw" link set br0 up
ip -n "${TAG}sw" link set lo up
for i in 1 2 3 4; do make_host $i; done
"$VENV/bin/python" -c "import secrets; print(secrets.token_hex(32), end='')" > "$WORK/home4/.ray/auth_token"
chmod 600 "$WORK/home4/.ray/auth_token"
write_config
wait_for 30 "the laptop reaches a host by ssh" laptop "ssh -i $WORK/id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@$HEAD true" 2> /dev/null
laptop "ray up $WORK/local.yml --yes --no-config-cache" > "$WORK/up.log" 2>&1 || { tail -40 "$WORK/up.log"; exit 1; }
echo "ok: ray up ($SECONDS s)"
wait_for 180 "three hosts are in the cluster" above nodes '' 2
[ "$(stat -c %a "$WORK/home2/.ray/auth_token")" = 600 ] || { echo "FAILED: the token of a worker is not private"; exit 1; }
laptop "ssh -f -N -L 8265:127.0.0.1:8265 -i $WORK/id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@$HEAD" > /dev/null 2>&1
laptop "python -m worldloom_dist.submit --connect-timeout 60 --working-dir none --job-id run-1 -- --preset debug --env toy:counting \
  --eval-episodes 0 --env-steps 100000000 --workers 3 --placement.worker-cpus 0.8 --train-ratio 2 --metrics-port 0" > "$WORK/job.log" 2>&1 &
JOB=$!
wait_for 240 "the run trains" above summary 'd["train_steps"]' 20
ip -n "${TAG}sw" link set v3 down
echo "the link of host3 is cut"
wait_for 180 "roles that were there started elsewhere" above summary 'sum(d["restarts"].values())' 0
before=$(summary 'd["env_steps"]')
wait_for 180 "the run went on" above summary 'd["env_steps"]' "$before + 200"
laptop "python -m worldloom_dist.submit --stop run-1" > "$WORK/summary.json" 2>> "$WORK/job.log"
wait $JOB || { echo "FAILED: the submitting side"; tail "$WORK/job.log"; exit 1; }
above summary '(d["status"] == "stopped") * (d["rows"]["lost_acked"] == 0)' 0 || { echo "FAILED: counters"; cat "$WORK/summary.json"; exit 1; }
echo "ok: stopped with a checkpoint, its summary came back, no acknowledged row is lost"
laptop "ray down $WORK/local.yml --yes" > "$WORK/down.log" 2>&1 || { tail -20 "$WORK/down.log"; exit 1; }
gone() { ! on 1 pgrep -x gcs_server > /dev/null; }
wait_for 60 "ray down stopped the head" gone
echo "ray up: everything holds"
