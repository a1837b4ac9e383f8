"""The ledger's table: append-only, in order, and nobody decides on what another has changed meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import polars as pl
import pytest

from mlops_assets.lake import catalog, store
from mlops_assets.lake.manifest import ConflictError
from mlops_assets.lake.store import LEDGER, Lake
from mlops_assets.modelling.ledger import Entry

VERDICT = Entry(
    day="2017-11-08",
    kind="verdict",
    decided_by="gate, run 1",
    reason="better by 0.01",
    model_version="a",
    run_id="r",
    promoted=True,
    champion_after="a",
    verdict={"candidate_auc": 0.9712345678901234, "interval": [0.001, 0.02], "p_ttest": None},
    gate={"alpha": 0.05},
    data_versions={"2017-11-07": "v"},
)


def decision(number: int) -> dict[str, Any]:
    return replace(VERDICT, time=f"2018-01-01T00:00:00.{number:06}+00:00", model_version=str(number)).as_dict()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path))


def test_decisions_come_back_as_they_were_and_in_order_however_many_there_are(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LEDGER_FILES", 4)
    assert lake.ledger().records == []
    for number in range(11):
        lake.append_decision(decision(number), lake.ledger())
        assert lake.ledger().records == [decision(each) for each in range(number + 1)]
        assert len(lake.ledger().files) <= 4
    assert Entry.from_dict(lake.ledger().records[3]).as_dict() == decision(3)
    table = catalog.load(lake.root, LEDGER)
    assert table
    assert pl.scan_iceberg(table).collect()["model_version"].sort().to_list() == sorted(map(str, range(11)))


def test_a_decision_that_rests_on_an_older_ledger_is_refused(lake: Lake) -> None:
    lake.append_decision(decision(0), lake.ledger())
    known = lake.ledger()
    lake.append_decision(decision(1), known)
    with pytest.raises(ConflictError, match="another job wrote to promotion_ledger meanwhile: run this one again"):
        lake.append_decision(decision(2), known)
    assert lake.ledger().records == [decision(0), decision(1)]


@pytest.mark.parametrize("there", [0, 1, 5])
def test_of_two_who_decide_at_once_one_is_refused(lake: Lake, there: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LEDGER_FILES", 5)
    for number in range(there):
        lake.append_decision(decision(number), lake.ledger())
    ready = Barrier(3)

    def decide(number: int) -> bool:
        known = lake.ledger()
        ready.wait(60)
        try:
            lake.append_decision(decision(number), known)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        won = list(pool.map(decide, (10, 11, 12)))
    assert won.count(True) == 1
    assert lake.ledger().records == [*map(decision, range(there)), decision(10 + won.index(True))]
    assert len(list(Path(lake.root, LEDGER).rglob("*.parquet"))) == there + 1, "nothing of the others is left"
