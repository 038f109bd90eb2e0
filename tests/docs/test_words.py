"""Words that were replaced do not come back, and the architecture page names places that exist."""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
RETIRED = {
    "ALONE": "SINGLE_PROCESS",
    "AsyncLine": "AsyncRpcClient",
    "Door": "RpcServer",
    "FaultBook": "FailureTracker",
    "Fleet": "WorkerPool",
    "Gallery": "PredictionVideos",
    "Ledger": "ReplayCoordinator",
    "LedgerRole": "CoordinatorRole",
    "LocalCrew": "LocalWorkers",
    "LogRelay": "LogForwarder",
    "LoopShard": "InlineShard",
    "MarkFiles": "SnapshotStore",
    "OneRank": "SingleProcess",
    "RowBooks": "RowCounters",
    "ShardMark": "ShardSnapshot",
    "ShardReader": "ShardClient",
    "Tally": "HistogramBuilder",
    "TorchRanks": "TorchProcessGroup",
    "burst_positions": "pretrain_positions",
    "cold_chunks": "spilled_chunks",
    "declare_lost": "mark_lost",
    "fleet": "worker_pool",
    "ledger": "coordinator",
    "grant": "permit",
    "granted": "permitted",
    "grants": "permits",
    "kept_marks": "kept_snapshots",
    "lifeline": "run_forever",
    "settle": "normalize, resolve or finalize",
    "settled": "resolved or finalized",
    "somebodys_code": "foreign_code",
    "_surprise": "td_error",
    "surprises": "td_errors",
}
PROSE = {
    "anew": "again",
    "nobody": "no one, no role, no caller",
    "so many": "this many",
    "somebody": "a caller, a role, a thread",
    "whoever": "the caller, the role",
}
WORD = re.compile(
    rf"(?<!\w)({'|'.join(RETIRED)})(?!\w)|(?<!\w)((?i:{'|'.join(PROSE)}))(?![\w-]| that)"
)
TEXT = (".py", ".md", ".toml", ".yml")
EXEMPT = {"CHANGELOG.md", "tests/docs/test_words.py"}


def tracked() -> list[str]:
    """Files of the repository; without git (an unpacked archive) those that are there."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return [
            str(path.relative_to(ROOT))
            for path in ROOT.rglob("*")
            if path.is_file() and not {".venv", "runs", "build", "dist", "site"} & set(path.parts)
        ]
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


def test_no_retired_word_is_in_the_tree() -> None:
    found = []
    for name in tracked():
        path = ROOT / name
        if (
            name in EXEMPT
            or path.suffix not in (".py", ".md", ".toml", ".yml")
            or not path.exists()
        ):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for match in WORD.finditer(line):
                instead = RETIRED.get(match[0]) or PROSE[match[0].lower()]
                found.append(f"{name}:{number}: {match[0]}, say {instead}")
    assert not found, "\n".join(found)


def test_the_architecture_page_names_files_that_exist() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"`(worldloom(?:_dist)?/[\w/.{},<>]+)`", page)
    assert len(named) > 15
    for name in named:
        head, _, rest = name.partition("{")
        inside, _, tail = rest.partition("}")
        for choice in inside.split(",") if inside else [""]:
            path = (head + choice + tail).replace("<name>", "dreamerv3")
            assert (ROOT / path).exists(), path
