"""No decision follows from the time of day: a clock may be set back, and two machines have two."""

import re

from tests.house.test_layers import SOURCES

WALL_CLOCK = re.compile(r"time\.time\(|time_ns\(|st_mtime|\bdatetime\b|strftime|localtime")
LABELS = {
    "worldloom_dist.learner.checkpointing": "when a checkpoint was written, for a metric",
    "worldloom_dist.learner.learner": "the age of rows, for a metric",
    "worldloom_dist.learner.process_group": "timedelta, which is no time of day",
    "worldloom_dist.learner.prediction_videos": "when a picture was drawn, in its record",
    "worldloom_dist.metrics.hub": "when a role was heard, for a metric",
    "worldloom_client.spool": "the order in which spools of earlier sessions are sent",
    "worldloom_dist.page.videos": "whether a video is still being written, for people",
    "worldloom_dist.page.state": "when a state was told, for people",
    "worldloom_dist.metrics.media": "whether a file has changed between two looks",
    "worldloom_dist.metrics.mlflow_sink": "when a number was written, for MLflow",
    "worldloom_dist.metrics.otlp": "when a number was written, for a collector",
    "worldloom_dist.replay.imports": "whether a file has changed between two looks",
    "worldloom_dist.replay.shard": "when a row was inserted, for a metric",
    "worldloom_dist.run.folder": "when the run was started, in command.txt",
    "worldloom_dist.run.listing": "when runs began and last wrote, for people",
    "worldloom_dist.run.report": "when a record was written",
    "worldloom_dist.run.slurm_command": "part of a script's name, which is random besides",
    "worldloom_dist.run.view": "how old the files of a run on another machine are, for people",
    "worldloom_dist.runs": "runs that wrote since a time that people name",
    "worldloom_dist.submit": "part of a job's name, which is random besides",
}
"""Modules that look at it, with the reason."""


def test_who_looks_at_the_time_of_day_says_what_for():
    found = {
        module
        for module, path in SOURCES.items()
        if WALL_CLOCK.search(re.sub(r"``[^`]*``", "", path.read_text()))
    }
    assert found == set(LABELS)
