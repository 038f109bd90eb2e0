"""TensorBoard's sections hold every number of the table."""

import pytest

from worldloom_dist.metrics.names import METRICS
from worldloom_dist.metrics.tags import OTHER, SECTIONS, tag_of


@pytest.mark.parametrize(
    ("path", "tag"),
    [
        ("loss/total", "loss/total"),
        ("episode_return_mean/train", "return/episode_return_mean/train"),
        ("eval_return_mean", "return/eval_return_mean"),
        ("env_steps_per_s", "speed/env_steps_per_s"),
        ("env_steps_total", "progress/env_steps_total"),
        ("env_step_seconds/p99", "acting/env_step_seconds/p99"),
        ("policy_lag_updates", "weights/policy_lag_updates"),
        ("my_own_number", "other/my_own_number"),
    ],
)
def test_a_number_is_in_the_section_that_people_look_for(path, tag):
    assert tag_of(path) == tag


def test_every_metric_has_a_section_and_every_section_a_metric():
    names = [*METRICS, "env_steps_per_s", "updates_per_s"]
    found = {tag_of(name).partition("/")[0] for name in names}
    assert OTHER not in found
    assert found == {section for section, _ in SECTIONS}
