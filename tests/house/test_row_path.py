"""The table of the files that a row passes (``docs/architecture.md``) is true, and short."""

import ast
import re
from pathlib import Path

from tests.row_path import ENV, ROOT, Tracer
from tests.worldloom_dist.local_runs import start
from tests.worldloom_dist.tiny_runs import TINY

PAGE = (ROOT / "docs/architecture.md").read_text()
SECTION = PAGE.partition("## The path of a row\n")[2].partition("\n## ")[0]
FILES = {
    name: (ray == "x", local == "x")
    for name, ray, local in re.findall(
        r"^\| `(worldloom\S+)` \| (x?) ?\| (x?) ?\|", SECTION, re.MULTILINE
    )
}
TYPES = dict(re.findall(r"^\| `(\w+)` \| `(worldloom\S+)` \|", SECTION, re.MULTILINE))
AGENTS = ("worldloom/algorithms/", "worldloom/nn/")
"""What an agent does with its batch, and with an observation that it acts on."""
ROOMS = ("worldloom_dist/gateway/",)
"""Folders that are on no path as a whole."""
READERS = {
    "worldloom/core/protocol.py": "says what an agent is given",
    "worldloom/envs/check.py": "looks at a user's env",
    "worldloom/envs/gym_vector.py": "in the place of envs/local.py",
    "worldloom/envs/supervised.py": "in the place of envs/local.py",
    "worldloom/testing/noise.py": "makes rows for the check of an agent",
    "worldloom/training/collect.py": "makes episodes for offline training",
    "worldloom/training/data.py": "offline training",
    "worldloom_dist/actors/acting.py": "acts on observations",
    "worldloom_dist/actors/evaluation.py": "stores no rows",
    "worldloom/evaluation/trust.py": "compares predictions with them",
    "worldloom_dist/actors/videos.py": "stores no rows",
    "worldloom_dist/actors/probes.py": "keeps some of an evaluation",
    "worldloom_dist/gateway/": "rows of clients, which enter as those of workers do",
    "worldloom_dist/replay/identity.py": "reads streams of journals, at a start",
    "worldloom_dist/replay/seams.py": "compares chunks on disk, for verify",
    "worldloom_dist/learner/guard.py": "keeps a batch that was not finite",
    "worldloom_dist/learner/held_out.py": "measures on windows of files",
    "worldloom_dist/learner/prediction_videos.py": "draws a batch",
    "worldloom_dist/learner/step.py": "runs the agent",
    "worldloom_dist/runtime/gateway_role.py": "hands chunks of clients on",
    "worldloom_dist/serve.py": "stores no rows",
    "worldloom_dist/lockstep/gateway.py": "hands chunks of clients on",
    "worldloom_dist/ports.py": "says what roles are given",
    "worldloom_dist/interfaces.py": "says what roles are given",
    "worldloom_dist/run/rehearsal.py": "tries a run out",
    "worldloom_dist/replay/budget.py": "counts the bytes of columns",
    "worldloom_dist/replay/history.py": "export",
    "worldloom_dist/replay/imports.py": "rows of files",
    "worldloom_dist/replay/recovery.py": "rows of a journal",
    "worldloom_dist/replay/plain_chunks.py": "chunks of a journal, at a restart",
    "worldloom/data/chunk_runs.py": "chunks of a journal, at a restart",
    "worldloom_dist/replay/verify_shard.py": "reads a journal",
    "worldloom_dist/reproduce/record.py": "adds up rewards of a journal, after a run",
}
"""Files that have rows in hand, or name their types, and are not on the path, with the reason."""


def test_a_row_passes_at_most_28_files_in_at_most_7_types() -> None:
    assert all((ROOT / name).exists() for name in FILES)
    ray, local = (sum(row[way] for row in FILES.values()) for way in (0, 1))
    assert f"{ray} on Ray, {local} in a local run" in SECTION.replace("\n", " ")
    assert 20 < len(FILES) <= 28
    assert all(any(row) for row in FILES.values()), "each file is on one way at least"
    assert 3 < len(TYPES) <= 6, "and the agent's batch"
    for name, home in TYPES.items():
        tree = ast.parse((ROOT / home).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        assert home in FILES


def test_what_handles_rows_is_on_the_path_or_says_why_it_is_not() -> None:
    named = re.compile(r"\b(" + "|".join(TYPES) + r")\b")
    for package in ("worldloom", "worldloom_dist"):
        for path in (ROOT / package).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            name = ROOMS[0] if name.startswith(ROOMS) else name
            if named.search(path.read_text()) and not name.startswith(AGENTS):
                assert name in FILES or name in READERS, f"{name} handles rows: say where it stands"
    assert not FILES.keys() & READERS.keys()


def test_a_marked_row_of_a_local_run_passes_the_files_of_the_table(tmp_path: Path) -> None:
    words = [*TINY["tdmpc2:ci"], "--env", ENV, "--workers", "1", "--env-steps", "30"]
    run = start(tmp_path / "run", *words)
    tracer = Tracer()
    tracer.start()
    try:
        run.run()
    finally:
        tracer.stop()
    found = {name for name in tracer.files if not name.startswith(AGENTS)}
    assert found - READERS.keys() == {name for name, (_, local) in FILES.items() if local}
