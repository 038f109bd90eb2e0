"""What README says of a curve is what the curve's file says."""

import json
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[2]


def test_the_swingup_row_quotes_its_file() -> None:
    lines = (ROOT / "benchmarks/results/tdmpc2_cartpole_swingup.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    at = {r["env_steps"] // 2: r["return"] for r in records if r["kind"] == "episode"}
    (evaluation,) = (record for record in records if record["kind"] == "eval")
    early = "{:.1f}, {:.1f}, {:.1f} and {:.1f}".format(*(at[n] for n in (3000, 3500, 4000, 4500)))
    late = f"{at[7500]:.1f} and {at[8000]:.1f} at 7,500 and 8,000"
    evaluated = f"at {evaluation['env_steps'] // 2:,}: {mean(evaluation['returns']):.1f}"
    readme = (ROOT / "README.md").read_text().splitlines()
    (row,) = (line for line in readme if line.startswith("| `tdmpc2:1m` on `dmc:cartpole-swingup`"))
    for claim in (early, late, evaluated):
        assert claim in row
