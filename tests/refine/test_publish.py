"""What is written beside the refined weights."""

import csv
import json

from pipeline_lib.refine.publish import write_csv


def test_a_term_that_some_steps_leave_out_has_its_column(tmp_path):
    """A weight of 0 leaves a term out, and a weight may decay to it: not every row has the columns of the first."""
    rows = [{"step": 0, "a_loss": 1.5}, {"step": 1, "a_loss": 1.25, "b_loss": 0.5}, {"step": 2, "b_loss": 0.25}]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_csv(tmp_path / "history.jsonl", tmp_path / "history.csv")
    with (tmp_path / "history.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert found == [
        {"step": "0", "a_loss": "1.5", "b_loss": ""},
        {"step": "1", "a_loss": "1.25", "b_loss": "0.5"},
        {"step": "2", "a_loss": "", "b_loss": "0.25"},
    ]
