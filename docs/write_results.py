"""Write the tables of ``docs/results.md`` from the files in ``benchmarks/results``.

    python docs/write_results.py            # rewrites the page between its markers
    python docs/write_results.py --print    # prints the tables

A number that a page quotes comes from a file here; a test holds the page, and the sentence of the
README, equal to what this prints.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from worldloom_dist.reproduce import TARGETS, Target

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/results.md"
CURVES = ROOT / "docs/curves"
MARK = "<!-- {name} -->"
Row = tuple[str, str, str]
"""What was measured, what came out, and the file."""


def load(name: str) -> Any:
    """A result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def curve(name: str) -> list[dict[str, Any]]:
    """Records of a curve."""
    lines = (RESULTS / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def updates_of_tdmpc2() -> Row:
    """Beside the authors' code."""
    (entry,) = (e for e in load("tdmpc2_2threads")["entries"] if e["preset"] == "5m")
    update = entry["speedup_update"]["wall_ms_median"]
    plan = entry["speedup_plan_1"]["wall_ms_median"]
    said = f"{update:.2f}x its updates/s, {plan:.2f}x its plans/s"
    return "TD-MPC2 5m beside the authors' code, two threads, eager", said, "tdmpc2_2threads.json"


def shares_of_dreamerv3(size: str) -> tuple[float, float]:
    """Time of an update over the fastest peer's, from vectors and from pixels."""
    found = load("dreamerv3")
    shares = []
    for kind in ("vec", "img"):
        ours = found["results"][f"update {kind} {size}"]["wall_ms"]["median"]
        shares.append(ours / min(found["peers_median_ms"][f"update {kind} {size}"].values()))
    return shares[0], shares[1]


def updates_of_dreamerv3() -> Row:
    """Beside three other implementations."""
    small, large = shares_of_dreamerv3("size1m"), shares_of_dreamerv3("size12m")
    said = (
        f"{small[0]:.2f}x / {small[1]:.2f}x the time at size1m (vectors / pixels), "
        f"{large[0]:.2f}x / {large[1]:.2f}x at size12m"
    )
    what = "DreamerV3 update beside the fastest of three other implementations (of two for pixels), one thread"
    return what, said, "dreamerv3.json"


def acting() -> Row:
    """Beside the bare env."""
    found = load("actors")["rollout"]
    parts = []
    for name, label in (
        ("atari", "Atari"),
        ("half_cheetah", "HalfCheetah"),
        ("pendulum", "Pendulum"),
    ):
        turns = found[name]["share_of_bare_rate_in_turns"]
        parts.append(f"{label} {found[name]['share_of_bare_rate']:.2f} ({median(turns):.2f})")
    said = ", ".join(parts)
    what = "Env rows through the whole path into replay, share of the bare env's rate: best turn of each side (median of nine turns)"
    return what, said, "actors.json"


def sampling() -> Row:
    """Beside Sample Factory."""
    found = load("sampling")
    pong = found["pong"]
    said = (
        f"Pong {pong['over_sample_factory_pong']:.2f}x ({pong['over_sample_factory_pong_area']:.2f}x when its "
        f"images are shrunk in a cheaper way), HalfCheetah "
        f"{found['half_cheetah']['over_sample_factory_half_cheetah']:.1f}x"
    )
    what = "Rows per second beside Sample Factory's sampler, 16 envs, random actions, median of three turns"
    return what, said, "sampling.json"


def replay(windows: str, what: str) -> Row:
    """Beside dm-reverb."""
    found = load("replay_ray")["mixed"]
    parts = []
    for data, label in (("atari", "Atari frames"), ("noise", "noise")):
        few, many = (
            found[f"{data}_{pair}"][windows]["ours_over_reverb"]["both"]
            for pair in ("1_writers_1_samplers", "8_writers_2_samplers")
        )
        parts.append(f"{label} {few:.1f}x and {many:.1f}x")
    return what, "; ".join(parts), "replay_ray.json"


def shards() -> Row:
    """Four shards instead of one."""
    found = load("replay_shards")["shards"]
    writers = found["4_writers"]["4_over_1"]["insert_mb_per_s"]
    sampler = found["1_sampler"]["4_over_1"]["sample_mb_per_s"]
    beside = found["1_sampler_beside_20000_rows_per_s"]["4_over_1"]["sample_mb_per_s"]
    said = (
        f"writers {writers:.2f}x, a sampler {sampler:.2f}x, one beside writers of 20,000 rows/s "
        f"{beside:.2f}x"
    )
    return "Four shards on two cores instead of one, Atari frames", said, "replay_shards.json"


def central() -> Row:
    """What a request adds."""
    found = load("central")["overhead"]
    said = f"{found['added_ms_p50_without_model_and_max_wait']:.1f} ms at the median"
    what = (
        "What a central inference server adds to a decision, "
        f"{found['workers']} workers with {found['envs_per_worker']} envs each"
    )
    return what, said, "central.json"


def learner() -> Row:
    """Live beside staged."""
    found = load("learner")
    live = found["live"]
    turns = live["live_over_staged_in_turns"]
    said = (
        f"{live['live_over_staged']:.2f} ({min(turns):.2f} to {max(turns):.2f} in {len(turns)} turns); "
        f"waits for data {live['share_wait_data']:.1%} of its time, publishes "
        f"{live['share_publish']:.1%}; a checkpoint stops it for "
        f"{found['staged']['checkpoint_stall_ms_median']:.1f} ms"
    )
    what = "A learner beside live actors, share of the updates it makes on a batch that is ready"
    return what, said, "learner.json"


def shard_kills() -> Row:
    """A killed shard."""
    found = load("shard_recovery")
    pause, back = found["longest_pause_s"], found["back_after_s"]
    said = (
        f"a sampler waits {1000 * pause['median']:.0f} ms for its next batch (longest "
        f"{1000 * pause['longest']:.0f} ms), and draws from the shard again after "
        f"{back['median']:.1f} s (longest {back['longest']:.1f} s)"
    )
    what = f"A killed shard of two, {found['rows_per_shard']:,} rows each, {found['kills']} kills"
    return what, said, "shard_recovery.json"


def recovery(role: str) -> Row:
    """From the death of a role to the first work of its successor; a missed target is said."""
    found = load("recovery")["roles"][role]
    missed = "" if found["is_met"] else ", which is missed"
    said = (
        f"{in_seconds(found['median_s'])} (longest {in_seconds(found['longest_s'])}; wanted: at "
        f"most {found['target_s']:g} s{missed})"
    )
    return f"{role[0].upper()}{role[1:]}", said, "recovery.json"


def in_seconds(value: float, digits: int = 0) -> str:
    """For people; a short time in milliseconds, with ``digits`` of them after the point."""
    return f"{1000 * value:.{digits}f} ms" if value < 1 else f"{value:.1f} s"


def scale() -> Row:
    """64 workers."""
    found = load("scale")
    said = (
        f"all have stored rows after {found['all_workers_have_stored_rows_after_s']:.0f} s; "
        f"{found['worker_pss_mb']['median']:.0f} MB each (PSS)"
    )
    return f"{found['workers']} workers on {found['machine']['cores']} cores", said, "scale.json"


def mlp_acts() -> Row:
    """An act of the plain latent model, by way of choosing."""
    found = load("mlp_speed")
    ways = found["presets"]["small"]
    said = ", ".join(
        f"{way.removeprefix('act_')} {in_seconds(ways[way]['wall_ms_median'] / 1000, 1)}"
        for way in ways
        if way.startswith("act_")
    )
    what = (
        f"An act of `mlp:small` for {found['envs']} envs, one thread (wanted: at most 5 ms; the "
        f"default is actor-critic); an update takes {ways['update']['wall_ms_median']:.0f} ms"
    )
    return what, said, "mlp_speed.json"


def without_decoder() -> Row:
    """What R2-Dreamer saves."""
    cases = load("r2dreamer_speed")["cases"]
    images, vectors = cases["img size1m"], cases["vec size1m"]
    said = (
        f"images {images['wall_of_dreamerv3']:.2f}x (wanted: at most 0.85x; the decoder takes "
        f"{images['parts']['decoder_share_of_update']:.0%} of DreamerV3's update), vectors "
        f"{vectors['wall_of_dreamerv3']:.2f}x"
    )
    what = "An update of r2dreamer, as a share of DreamerV3's, size1m, one thread, in turn"
    return what, said, "r2dreamer_speed.json"


def calls() -> Row:
    """CPU of a call between two processes, all transports in turns."""
    found = load("rpc")
    ours, unary, stream = (
        found["transports"][name]["cpu_ms_per_call"]
        for name in ("sockets", "grpc_unary", "grpc_stream")
    )
    said = f"{ours:.2f} ms of CPU; by gRPC {unary:.2f} ms, by a stream of gRPC {stream:.2f} ms"
    what = f"A call between two processes, {found['clients']} clients that rest between calls"
    return what, said, "rpc.json"


def codes() -> Row:
    """What the codes on frames cost."""
    shares = [part["code_share"] for part in load("rpc")["codes"]]
    said = (
        f"{min(shares):.0%} to {max(shares):.0%} more CPU than without (wanted: at most 10%, which "
        "is missed)"
    )
    return "Codes on every frame, calls of 300 B to 1.5 MB without rests", said, "rpc.json"


def scale_of_tasks() -> Row:
    """64 workers on ten tasks beside 64 on one."""
    one, ten = load("scale_tasks")["runs"]
    started = [run["all_workers_have_stored_rows_after_s"] for run in (one, ten)]
    rates = [run["env_steps_per_s"] for run in (one, ten)]
    said = (
        f"all have stored rows after {started[1]:.0f} s (on one task {started[0]:.0f} s); "
        f"{rates[1]:.0f} env steps/s (on one task {rates[0]:.0f})"
    )
    what = f"{ten['workers']} workers on `{ten['env']}`, beside as many on `{one['env']}`, 2 cores"
    return what, said, "scale_tasks.json"


def soak() -> Row:
    """Hours with a full replay."""
    found = load("soak")
    grown = max(role["memory_mb_grown"] for role in found["growth"].values())
    said = f"no process grew by more than {grown:.1f} MB; {found['summary']['rows']['evicted']:,} rows evicted"
    what = f"{found['minutes']:.0f} minutes of {found['workers']} workers with a full replay"
    return what, said, "soak.json"


def swingup() -> Row:
    """One seed of a DMC task."""
    records = curve("tdmpc2_cartpole_swingup")
    at = {r["env_steps"] // 2: r["return"] for r in records if r["kind"] == "episode"}
    (evaluated,) = (record for record in records if record["kind"] == "eval")
    early = [at[decisions] for decisions in (3000, 3500, 4000, 4500)]
    said = (
        f"training episodes of {early[0]:.1f}, {early[1]:.1f}, {early[2]:.1f} and {early[3]:.1f} at 3,000 to "
        f"4,500 decisions, {at[7500]:.1f} and {at[8000]:.1f} at 7,500 and 8,000; one evaluation, at "
        f"{evaluated['env_steps'] // 2:,}: {mean(evaluated['returns']):.1f}"
    )
    what = "`tdmpc2:1m` on `dmc:cartpole-swingup`, one seed"
    return what, said, "tdmpc2_cartpole_swingup.jsonl"


def pair() -> Row:
    """TD-MPC2 beside its authors' code: when a reward was met, when the task was learnt."""
    records = curve("tdmpc2-cup-catch")

    def said(side: str) -> str:
        own = [r for r in records if r.get("by") == side]
        episodes = [r for r in own if r["kind"] == "episode"]
        first = next(r["env_steps"] for r in episodes if r["return"] > 0)
        learnt = next(r["env_steps"] for r in episodes if r["return"] >= 500)
        last = [mean(r["returns"]) for r in own if r["kind"] == "eval"]
        evaluated = f"{last[-1]:.1f}" if last else "not made"
        return f"first reward at {first:,}, first episode of at least 500 at {learnt:,}, evaluation at the end {evaluated}"

    what = "`tdmpc2:1m` on cup-catch to 40,000 env steps beside its authors' code at their size 1, one core each, seed 1"
    return what, f"{said('worldloom')}; theirs: {said('authors')}", "tdmpc2-cup-catch.jsonl"


def last_evaluation(name: str, what: str) -> Row:
    """The last evaluation of a curve."""
    evaluated = [record for record in curve(name) if record["kind"] == "eval"][-1]
    returns = evaluated["returns"]
    said = (
        f"{mean(returns):.1f} ({min(returns):.1f} to {max(returns):.1f}) over {len(returns)} episodes "
        f"at {evaluated['env_steps']:,} env steps"
    )
    return what, said, f"{name}.jsonl"


def gateway() -> Row:
    """Programs outside; targets that are missed are said."""
    rows = {
        row["name"]: row for stage in load("gateway")["stages"].values() for row in stage["rows"]
    }
    added = rows["added to a bare echo, p50, 4 envs per question"]["value"]
    late = rows["added to a bare echo, p99, 4 envs per question"]["value"]
    many = rows["rows per core-second, 16 envs per question"]["value"]
    push = rows["client / worker"]["value"]
    said = (
        f"{added:.1f} ms added to a decision at the median, {late:.1f} ms at p99; {many:,.0f} rows per core-second "
        f"with 16 envs in a question (wanted: 40,000); pushed chunks at {push:.2f} of a worker's rate (wanted: 0.6)"
    )
    return "A client of the gateway, 4 envs in a question", said, "gateway.json"


def named(target: Target) -> tuple[str, str, str, str]:
    """A row of the table of published results: name, published number, ours, command."""
    path = RESULTS / f"{target.name.replace('/', '-')}.jsonl"
    published = target.curve()
    theirs = "-"
    place = target.last_compared()
    if published is not None and place is not None:
        low = published.curve.low[place]  # type: ignore[index]
        mean_there = published.curve.values[place]
        spread = f" ± {mean_there - low:.1f}" if low == low else ""
        theirs = f"{mean_there:.1f}{spread} at {published.curve.steps[place]:,.0f}"
    elif target.goal is not None:
        theirs = f"solved at {target.goal:.0f}"
    own = f"not run here: {f'{target.hours:g} h a seed' if target.hours else 'needs a GPU'}"
    command = f"worldloom reproduce {target.name}"
    if path.exists():
        records = [json.loads(line) for line in path.read_text().splitlines()]
        own = said_of_named(records)
        if records[0]["env_steps"] != target.env_steps:
            command += f" --env-steps {records[0]['env_steps']}"
    return f"`{target.name}`", theirs, own, f"`{command}`"


def said_of_named(records: list[dict[str, Any]]) -> str:
    """What came out of a result that was run; says when it is not at its end."""
    head = records[0]
    assert head["kind"] == "result", head
    assert not head["is_smoke"], f"{head['name']}: a smoke run is no result"
    ran = [r for r in records if r["kind"] == "run" and r["by"] == "worldloom"]
    rows = [r for r in records if r["kind"] == "comparison" and r["worldloom"]]
    rows = [r for r in rows if r["measured"] == head["measured"]] or rows
    if not rows:
        return "begun"
    last = rows[-1]
    found = last["worldloom"]
    seeds = len(found["seeds"])
    spread = "" if found["std"] is None else f" ± {found['std']:.1f}"
    said = f"{found['mean']:.1f}{spread} at {last['env_steps']:,} ({last['measured']}), "
    said += f"{seeds} seed{'s' if seeds > 1 else ''}, {sum(r['hours'] for r in ran):.1f} h"
    if last["authors"]:
        theirs = last["authors"]
        spread = "" if theirs["std"] is None else f" ± {theirs['std']:.1f}"
        count = len(theirs["seeds"])
        said += f"; the authors' code here {theirs['mean']:.1f}{spread}, "
        said += f"{count} seed{'s' if count > 1 else ''}"
    begun = [r for r in records if r["kind"] == "run" and r["by"] == "authors"]
    if any(r["status"] != "completed" for r in begun):
        said += "; the authors' code is not at its end"
    reached = min(r["env_steps"] for r in ran)
    if reached < head["env_steps"]:
        said += f"; not at its end: {reached:,} of {head['env_steps']:,} env steps"
    return said


def named_table() -> str:
    """Every published result that has a name, as Markdown."""
    lines = [
        "| Name | Published, at env steps | Here | Command |",
        "|---|---|---|---|",
        *("| " + " | ".join(named(target)) + " |" for target in TARGETS.values()),
    ]
    return "\n".join(lines) + "\n"


SPEED: list[Callable[[], Row]] = [
    updates_of_tdmpc2,
    updates_of_dreamerv3,
    acting,
    sampling,
    lambda: replay(
        "never_overlapping",
        "Replay through Ray beside dm-reverb, MB/s in and out, windows that never overlap, journal "
        "on: 1 writer and 1 sampler, 8 and 2",
    ),
    lambda: replay("any_start", "the same, a window may begin at any row"),
    shards,
    central,
    gateway,
    learner,
    shard_kills,
    scale,
    scale_of_tasks,
    soak,
    mlp_acts,
    without_decoder,
    calls,
    codes,
]


def seeds_of(agent: str, name: str, task: str, wanted: str) -> Row:
    """An agent's runs in ``NAME_learn.json``: the last evaluation of every seed."""
    runs = [run for run in load(f"{name}_learn")["runs"] if run["task"] == task]
    last = [run["evaluations"][-1]["median"] for run in runs]
    steps = max(run["evaluations"][-1]["env_steps"] for run in runs)
    said = (
        f"medians of 20 episodes after {steps:,} env steps: {', '.join(f'{m:.0f}' for m in last)} "
        f"(median {median(last):.0f}; wanted: {wanted})"
    )
    plural = "s" if len(runs) > 1 else ""
    what = f"`{agent}` on {task.partition(':')[2]}, {len(runs)} seed{plural}"
    return what, said, f"{name}_learn.json"


def curiosity() -> Row:
    """A corridor with one reward, with the bonus for disagreement and without."""
    found = load("mlp_explore")
    parts = []
    for bonus in sorted({run["bonus"] for run in found["runs"]}, reverse=True):
        runs = [run for run in found["runs"] if run["bonus"] == bonus]
        met = [run["first_reward"] for run in runs if run["first_reward"] is not None]
        how = f"with a bonus of {bonus:g}:" if bonus else "without:"
        where = f", after {min(met)} to {max(met)} steps" if met else ""
        parts.append(f"{how} {len(met)} of {len(runs)} seeds find it{where}")
    what = (
        f"`mlp:{found['preset']}` in a corridor of {found['length']} steps with one reward, at its "
        f"far end, {found['steps']:,} agent steps"
    )
    return what, "; ".join(parts), "mlp_explore.json"


def several_tasks() -> Row:
    """Four tasks by one agent, and each by one of its own: last evaluations."""
    found = load("several_tasks")
    together = next(run for run in found["runs"] if run["kind"] == "together")
    beside = [run for run in found["runs"] if run["seed"] == together["seed"]]
    kinds = [kind for kind in ("alone", "long") if any(run["kind"] == kind for run in beside)]
    last = together["evaluations"][-1]["tasks"]

    def alone(kind: str, task: str) -> str:
        runs = [run for run in beside if run["kind"] == kind and run["tasks"] == [task]]
        return f"{runs[0]['evaluations'][-1]['median']:.0f}" if runs else "-"

    parts = [
        f"{task} {last[task]['median']:.0f} (alone {', '.join(alone(kind, task) for kind in kinds)})"
        for task in together["tasks"]
    ]
    updates = {"alone": "with as many updates in all", "long": "with as many each"}
    what = (
        f"One `{found['agent']}` on four dmc tasks, {found['env_steps']:,} env steps of each, beside "
        f"four agents of one task {' and '.join(updates[kind] for kind in kinds)}, one seed: median "
        "of the last evaluation"
    )
    return what, ", ".join(parts), "several_tasks.json"


RETURNS: list[Callable[[], Row]] = [
    lambda: seeds_of("mlp:small", "mlp", "gym:Pendulum-v1", "at least -200"),
    lambda: seeds_of("mlp:small", "mlp", "gym:CartPole-v1", "at least 400"),
    curiosity,
    lambda: seeds_of("r2dreamer:ci", "r2dreamer", "toy:pixel", "at least 12"),
    lambda: seeds_of("r2dreamer:ci", "r2dreamer", "gym:CartPole-v1", "at least 400"),
    lambda: last_evaluation("quick_pendulum_ray", "`--preset quick` (`tdmpc2:ci` on Pendulum-v1)"),
    lambda: last_evaluation("dreamerv3_cartpole", "`dreamerv3:ci` on CartPole-v1"),
    lambda: last_evaluation("dreamerv3_pixel_toy", "`dreamerv3:ci` on the pixel toy"),
    pair,
    swingup,
    several_tasks,
    lambda: last_evaluation("tdmpc2_cup_catch", "`tdmpc2:1m` on dmc:ball_in_cup-catch, seed 1"),
]
RECOVERY: list[Callable[[], Row]] = [partial(recovery, role) for role in load("recovery")["roles"]]
TABLES: dict[str, Callable[[], str]] = {
    "speed": lambda: table(SPEED),
    "returns": lambda: table(RETURNS),
    "recovery": lambda: table(RECOVERY),
    "named": named_table,
}


def machine(name: str) -> str:
    """CPU and load of a result, where its file has them; of runs that were made in parts the least
    and the highest load.
    """
    if not name.endswith(".json"):
        return ""
    found = load(name.removesuffix(".json"))
    first = next(iter(found.get("stages", {}).values()), {})
    of_runs = [run["context"]["machine"] for run in found.get("runs", []) if "context" in run]
    context = found.get("context") or first.get("context") or {}
    facts = found.get("machine") or context.get("machine") or next(iter(of_runs), {})
    cpu = re.sub(r"\(R\)| Processor", "", facts.get("cpu", ""))
    loads = [part.get("load", part.get("load_average", [None])[0]) for part in of_runs or [facts]]
    known = [f"{float(load):.1f}" for load in loads if load is not None]
    if not known:
        return cpu
    least, most = min(known, key=float), max(known, key=float)
    return f"{cpu}, load {least if least == most else f'{least} to {most}'}"


def table(rows: Iterable[Callable[[], Row]]) -> str:
    """As Markdown."""
    lines = ["| What | Result | File |", "|---|---|---|"]
    for row in rows:
        what, said, name = row()
        where = machine(name)
        lines.append(f"| {what} | {said} | `{name}`{f' ({where})' if where else ''} |")
    return "\n".join(lines) + "\n"


def readme_sentence() -> str:
    """What the README says of speed."""
    (entry,) = (e for e in load("tdmpc2_2threads")["entries"] if e["preset"] == "5m")
    vectors, pixels = shares_of_dreamerv3("size12m")
    return (
        f"With two threads TD-MPC2 5m makes {entry['speedup_update']['wall_ms_median']:.2f}x the updates/s and "
        f"{entry['speedup_plan_1']['wall_ms_median']:.2f}x the plans/s of its authors' code, and a DreamerV3 "
        f"update of one thread takes {vectors:.2f}x the time of the fastest of three other implementations for "
        f"vectors, and {pixels:.2f}x that of the faster of two for pixels, at size12m."
    )


def written(page: str) -> str:
    """The page with its tables as the files say."""
    for name, write in TABLES.items():
        mark = re.escape(MARK.format(name=name))
        end = re.escape(MARK.format(name=f"/{name}"))
        page, count = re.subn(
            rf"({mark}\n).*?({end})",
            lambda found, write=write: found[1] + write() + found[2],
            page,
            flags=re.DOTALL,
        )
        assert count == 1, name
    return page


def pictures(page: str) -> list[str]:
    """Curves that the page shows: copies, because a site holds only what lies below ``docs``."""
    return re.findall(r"\(curves/([\w.-]+)\)", page)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Write docs/results.md from benchmarks/results.")
    parser.add_argument("--print", action="store_true", help="print the tables only")
    if parser.parse_args().print:
        print("\n".join([*(write() for write in TABLES.values()), readme_sentence()]))
    else:
        PAGE.write_text(written(PAGE.read_text()))
        for name in pictures(PAGE.read_text()):
            shutil.copyfile(RESULTS / name, CURVES / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
