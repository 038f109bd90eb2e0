"""A learner whose capture failed dies once, and every later one of the run updates eagerly."""

from types import SimpleNamespace

import pytest

from worldloom_dist.learner.step import CaptureFailedError
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.runtime import learner_roles
from worldloom_dist.runtime.learner_roles import LearnerRole


def test_it_leaves_word_for_the_next_incarnation(monkeypatch, tmp_path):
    stopped = []
    config = SimpleNamespace(
        learner=SimpleNamespace(report_every_steps=1), replay=SimpleNamespace(selector="uniform")
    )
    plan = SimpleNamespace(config=config, spec=SimpleNamespace(writes_back=False))
    prefetcher = SimpleNamespace(stop=lambda: stopped.append(True))
    monkeypatch.setattr(learner_roles, "BatchPrefetcher", lambda *_, **__: prefetcher)
    monkeypatch.setattr(learner_roles, "PredictionVideos", lambda *_: None)
    monkeypatch.setattr(learner_roles, "keep_freed_memory", lambda **_: None)

    class Failing(LearnerRole):
        def _build(self):
            self._learner = SimpleNamespace(
                train_steps=0, replayed_steps=0, stager=SimpleNamespace(stage=None)
            )

        def _restore(self):
            pass

        def _env_steps(self):
            return 0

        def _loop(self):
            raise CaptureFailedError("an update could not be captured (for a test)")

    with pytest.raises(CaptureFailedError):
        Failing(plan, tmp_path, 1).run()
    assert stopped == [True]
    assert RunFolder(tmp_path).eager_reason == "an update could not be captured (for a test)"
