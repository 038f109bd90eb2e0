
# Below this line nothing depends on the run. The time limit's warning (SIGUSR1) becomes a
# checkpoint and a requeue, and the next start goes on with the run in the same folder.

STATE=$(mktemp -d)
cleanup() {
    if [ -n "$SYMMETRIC" ] && [ "$NODES" -gt 1 ]; then  # Ray's folder is on every node
        timeout 30 srun --ntasks="$NODES" --ntasks-per-node=1 rm -rf "/tmp/ray-$SLURM_JOB_ID"
    fi
    rm -rf "$STATE" "${TOKEN:-}" "/tmp/ray-$SLURM_JOB_ID"
}
trap cleanup EXIT

train() {  # the launcher, on the first node: its process and how it ended are told by files
    "$PYTHON" -m worldloom_dist.launch "$@" &
    echo $! >"$STATE/pid"
    trap '' TERM  # scancel tells this process too, and the launcher needs its time
    if [ -e "$STATE/warned" ]; then
        kill -USR1 "$(cat "$STATE/pid")"
    fi
    wait $!
    local status=$?
    echo "$status" >"$STATE/status"
    return "$status"
}

warn() {  # 138 = 128 + SIGUSR1: the launcher had not yet begun to listen
    touch "$STATE/warned"
    if [ -s "$STATE/pid" ]; then
        kill -USR1 "$(cat "$STATE/pid")" 2>/dev/null
    fi
}

stop() {  # scancel tells every process of the job, but with --batch only this one: a launcher that
          # knows already takes no notice of SIGHUP, while a second SIGTERM would end it at once
    sleep 1
    if [ -s "$STATE/pid" ]; then
        kill -HUP "$(cat "$STATE/pid")" 2>/dev/null
    fi
}

if [ -n "$SYMMETRIC" ]; then
    # one Ray over all nodes, which only this job can join; ray stop ends every Ray of the user
    TOKEN="$RUNS/.slurm-$SLURM_JOB_ID.token"
    (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$TOKEN")
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$TOKEN" RAY_USAGE_STATS_ENABLED=0
    export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT="${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}"
    PORT=$((20000 + SLURM_JOB_ID % 10000))
    ADDRESS="${RAY_HEAD_IP:-$(hostname -I | cut -d' ' -f1)}:$PORT"
    FLAGS+=(--address "$ADDRESS")
    RAY=(--address "$ADDRESS" --min-nodes "$NODES" --include-dashboard=False)
    RAY+=(--temp-dir "/tmp/ray-$SLURM_JOB_ID")
    [ -n "${SLURM_CPUS_PER_TASK:-}" ] && RAY+=(--num-cpus "$SLURM_CPUS_PER_TASK")
    [ -n "$GPUS" ] && RAY+=(--num-gpus "$GPUS")
    export -f train
    export STATE PYTHON
    PATH="$(dirname "$PYTHON"):$PATH" srun --ntasks="$NODES" --ntasks-per-node=1 \
        --kill-on-bad-exit=1 --wait=30 \
        "$PYTHON" -m ray.scripts.scripts symmetric-run "${RAY[@]}" -- \
        bash -c 'train "$@"' train "${FLAGS[@]}" &
else
    train "${FLAGS[@]}" &  # with a Ray of its own
fi
JOB=$!
trap warn USR1
trap stop TERM
while kill -0 "$JOB" 2>/dev/null; do
    wait "$JOB"  # a signal ends it early
done

STATUS=$(cat "$STATE/status" 2>/dev/null || echo 1)
if [ "$STATUS" = 75 ] || { [ "$STATUS" = 138 ] && [ -e "$STATE/warned" ]; }; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_REQUEUES" ]; then
        echo "the job was requeued $MAX_REQUEUES times already; submit it again to go on" >&2
    else
        echo "the time is over: requeueing job $SLURM_JOB_ID, which goes on with $RUN_DIR"
        scontrol requeue "$SLURM_JOB_ID" && exit 0
        echo "the job could not be requeued; submit it again to go on with $RUN_DIR" >&2
    fi
fi
exit "$STATUS"
