from mlops_assets.cli.demo import stretches


def test_consecutive_days_share_a_run_and_a_gap_begins_another() -> None:
    days = ["2017-11-06", "2017-11-07", "2017-11-30", "2017-12-01", "2017-12-03"]
    assert stretches(days) == [
        ("2017-11-06", "2017-11-07"),
        ("2017-11-30", "2017-12-01"),
        ("2017-12-03", "2017-12-03"),
    ]
    assert stretches([]) == []
