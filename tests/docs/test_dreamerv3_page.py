"""The page on DreamerV3's numbers names every scalar that an update emits, and none that it does
not.
"""

import re
from pathlib import Path

from tests.worldloom.algorithms.dreamerv3.dreamer_cases import env_of, random_batch, tiny
from worldloom.algorithms.registry import make_agent

PAGE = Path(__file__).parents[2] / "docs" / "dreamerv3.md"


def page_rows() -> dict[str, dict[str, str]]:
    """Scalar -> its row as column title -> cell; losses are named ``loss/...``, norms as the page
    writes their series.
    """
    rows = {}
    for title, prefix in (("## Losses", "loss/"), ("## Other scalars", "")):
        table = [
            line
            for line in PAGE.read_text().split(title)[1].split("\n## ")[0].splitlines()
            if line.startswith("|")
        ]
        head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
        for first, *cells in body:
            rows |= {
                prefix + name: dict(zip(head[1:], cells, strict=True))
                for name in re.findall(r"`([^`]+)`", first)
            }
    return rows


def emitted() -> set[str]:
    """Every scalar of an update, keys of the spaces written as KEY."""
    env = env_of("two images and a vector", "Dict")
    agent = make_agent(tiny(), env)
    keys = "|".join([*env.obs, *env.action])
    names = (
        re.sub(rf"/({keys})$", "/KEY", name)
        for name in agent.train_step(random_batch(agent, env)).metrics
    )
    return {re.sub(r"^grad_norm/(\w+)$", r"grad_norm{name=\1}", name) for name in names}


def test_every_scalar_has_a_row_with_meaning_and_normal_range():
    rows = page_rows()
    assert set(rows) == emitted()
    for name, row in rows.items():
        assert row["What it is"], name
        assert row["Healthy"], name
