from worldloom_dist.metrics.totals import RunTotals


def test_counters_go_on_from_the_last_record_and_over_a_hub_that_counts_from_0():
    earlier = {
        "kind": "train",
        "env_steps": 9,
        "weights_published_total": 10.0,
        "episodes_total{reason=error}": 2.0,
        "replay_steps": 5.0,
    }
    totals = RunTotals(earlier)
    seen = []
    for published in (0.0, 3.0, 4.0, 1.0, 2.0):
        totals.update({"weights_published_total": published, "replay_steps": 99.0})
        seen.append(totals.values["weights_published_total"])
    assert seen == [10, 13, 14, 15, 16]
    assert totals.values["episodes_total{reason=error}"] == 2
    assert "replay_steps" not in totals.values
    assert totals.grown("weights_published_total") == 6
    assert totals.grown("episodes_total") == 0


def test_what_is_no_number_in_an_earlier_record_counts_as_not_there():
    totals = RunTotals(
        {"weights_published_total": None, "episodes_total{reason=error}": float("nan")}
    )
    assert totals.values == {}


def test_a_hub_that_began_again_and_counted_as_far_is_told_by_the_cpu_time():
    totals = RunTotals({})
    snapshots = (
        {"process_cpu_seconds_total": 10.0, "env_errors_total{reason=hung}": 2.0},
        {"env_errors_total{reason=hung}": 1.0},  # a new one, which few have told anything
        {"process_cpu_seconds_total": 3.0, "env_errors_total{reason=hung}": 1.0},
        {"process_cpu_seconds_total": 1.0, "env_errors_total{reason=hung}": 1.0},
        {"process_cpu_seconds_total": 5.0, "env_errors_total{reason=hung}": 4.0},
    )
    seen = []
    for snapshot in snapshots:
        totals.update(snapshot)
        seen.append(totals.grown("env_errors_total"))
    assert seen == [2, 3, 3, 4, 7]
    assert totals.values["process_cpu_seconds_total"] == 18.0


def test_a_version_stays_where_it_was_over_a_resume_and_over_a_hub_that_begins_again():
    totals = RunTotals({"policy_version": 5.0, "loss{name=total}": 9.0})
    assert totals.values == {"policy_version": 5.0}
    seen = []
    for version in (3.0, 7.0, 6.0, 8.0):
        totals.update({"policy_version": version, "policy_version{which=newest}": version + 1})
        seen.append(
            (totals.values["policy_version"], totals.values["policy_version{which=newest}"])
        )
    assert seen == [(5, 4), (7, 8), (7, 8), (8, 9)]
    assert totals.grown("policy_lag_updates") == 0
