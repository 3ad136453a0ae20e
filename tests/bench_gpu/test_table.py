"""A row that fails, or outlasts the time, is a row that says so, and the files are whole after each."""

import json
import time

from tests.bench_gpu.table import Table


def fail():
    raise ValueError("not here")


def outlast():
    try:
        time.sleep(30)
    except Exception:  # what decodes an image catches as much
        return {"rate": 0.0}


def read(path):
    return json.loads(path.with_suffix(".json").read_text())["rows"]


def test_an_error_is_its_rows_and_the_next_one_goes_on(tmp_path):
    table = Table(tmp_path / "found", {"device": "none"}, seconds=60)
    table.measure("broken", fail)
    assert read(tmp_path / "found")["broken"]["error"] == "ValueError: not here"
    table.measure("whole", lambda: {"pairs_per_s": 12.5, "curve": [1.0, 2.0]})
    row = read(tmp_path / "found")["whole"]
    assert row == {"pairs_per_s": 12.5, "curve": [1.0, 2.0], "seconds": row["seconds"]}
    lines = (tmp_path / "found.md").read_text().splitlines()
    assert lines[-2].startswith("| broken | error ValueError: not here |")
    assert lines[-1].startswith("| whole | pairs per s 12.5 |")


def test_the_time_ends_a_row_and_no_other_is_begun(tmp_path):
    table = Table(tmp_path / "found", {}, seconds=0.3)
    began = time.monotonic()
    table.measure("long", outlast)
    table.measure("late", lambda: {"rate": 1.0})
    assert time.monotonic() - began < 10
    said = [row.get("error", "").split(":")[0] for row in read(tmp_path / "found").values()]
    assert said == ["Deadline", "not begun"]
