"""The commands around Kafka, as a user types them."""

from __future__ import annotations

import gzip
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner, Result

from mlops_assets.cli.kafka import kafka
from mlops_assets.cli.produce import produce
from mlops_assets.cli.watch import Watch, watch
from mlops_assets.inference.config import Settings
from mlops_assets.resources.kafka import LocalBroker
from mlops_assets_tests.integration.conftest import NewStream
from mlops_assets_tests.integration.kafka_harness import Stream, click_lines

pytestmark = pytest.mark.kafka
HEADER = b"click_id,ip,app,device,os,channel,click_time\n"


def produced(stream: Stream, *arguments: str) -> Result:
    return CliRunner().invoke(produce, [*arguments, "--topic", stream.topics[0]], env=stream.environment())


def test_a_gzipped_test_file_is_sent_line_by_line_keyed_by_ip(stream: NewStream, tmp_path: Path) -> None:
    clicks, lines = stream(), click_lines(3_000)
    file = tmp_path / "test.csv.gz"
    file.write_bytes(gzip.compress(HEADER + b"\r\n".join(line or b"" for _, line in lines)))
    result = produced(clicks, str(file), "--clicks", "2000")
    assert result.exit_code == 0, result.output
    assert "2,000 clicks in" in result.output
    assert produced(clicks, str(file), "--skip", "2000", "--rate", "5000").exit_code == 0
    messages = clicks.read(clicks.topics[0])
    assert sorted((m.key(), m.value()) for m in messages) == sorted(lines)
    partitions = {(m.key(), m.partition()) for m in messages}
    assert len(partitions) == len({key for key, _ in partitions}), "an ip's clicks are all in one partition"


def test_generated_clicks_are_answered_and_watched(stream: NewStream) -> None:
    clicks = stream(secure=True)
    clicks.worker().wait_ready()
    result = produced(clicks, "generate", "--clicks", "3000")
    assert result.exit_code == 0, result.output
    clicks.judge()
    with mock.patch("mlops_assets.cli.watch.Watch._end", return_value=0):  # so that it begins with the first answer
        result = CliRunner().invoke(watch, ["--seconds", "3"], env={**clicks.environment(), "COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "3,000" in result.output
    assert "tiny-1" in result.output


def test_the_watcher_counts_dead_letters_and_not_the_ends_of_their_transactions(stream: NewStream) -> None:
    clicks = stream()
    clicks.worker().wait_ready()
    lines = click_lines(60)
    for start in (0, 20, 40):  # a transaction each
        clicks.produce([*lines[start : start + 20], (b"no", b"click")])
        clicks.read(clicks.topics[2], start // 20 + 1)
    with mock.patch("mlops_assets.cli.watch.Watch._end", return_value=0):
        watching = Watch(Settings.from_environment(clicks.environment()))
    try:
        watching.read(3)
        assert (watching.clicks, watching.dead) == (60, 3)
    finally:
        watching.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"ip,app\n1,2\n", "the header lacks the column"),
        (b"", "the file is empty"),
        (b"ip,click_id,app,device,os,channel,click_time\n", "must stand in the order click_id,ip"),
    ],
)
def test_a_file_of_another_kind_is_refused(stream: NewStream, tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "test.csv"
    file.write_bytes(content)
    result = produced(stream(), str(file))
    assert result.exit_code == 1
    assert reason in result.output


def test_a_delivery_error_is_reported_with_where_to_go_on(stream: NewStream, tmp_path: Path) -> None:
    clicks, file = stream(), tmp_path / "test.csv"
    file.write_bytes(HEADER + b"\n".join(line or b"" for _, line in click_lines(10)) + b"\n" + b"x" * 1_000_500)
    result = produced(clicks, str(file))
    assert result.exit_code == 1
    assert "Message size too large" in result.output
    assert "Go on with --skip 0" in result.output


def test_a_missing_topic_is_named(stream: NewStream) -> None:
    result = CliRunner().invoke(produce, ["generate", "--topic", "nowhere"], env=stream().environment())
    assert result.exit_code == 1
    assert "the topic 'nowhere' does not exist" in result.output


def test_the_broker_goes_up_and_down_and_keeps_its_data(tmp_path: Path, broker: LocalBroker) -> None:
    assert broker.pid is not None  # fetched already
    home = ["--home", str(tmp_path)]
    try:
        result = CliRunner().invoke(kafka, ["up", *home])
        assert result.exit_code == 0, result.output
        own = LocalBroker(tmp_path / "kafka")
        assert f"export KAFKA_BOOTSTRAP_SERVERS={own.bootstrap_servers}" in result.output
        assert own.pid is not None
        assert own.password_file.stat().st_mode & 0o077 == 0
        assert CliRunner().invoke(kafka, ["up", *home]).output == result.output, "it runs already"
    finally:
        result = CliRunner().invoke(kafka, ["down", *home])
    assert result.output == "Kafka is stopped.\n"
    assert LocalBroker(tmp_path / "kafka").pid is None
    assert CliRunner().invoke(kafka, ["down", *home]).output == "No Kafka was running.\n"
