"""What stages took here, told by the digests of outputs; tests/tracking/test_run.py has how it is noted."""

from pipeline_lib import tracking
from pipeline_lib.tracking import times
from tests.tracked_project import make_project


def test_what_was_not_made_here_is_not_told(tmp_path):
    assert tracking.time_taken(make_project(tmp_path, store=False), {"refine": "abc"}) == ""


def test_the_last_line_of_an_output_counts_and_a_torn_one_does_not(tmp_path):
    params = make_project(tmp_path, store=False)
    rows = [("base", "b", 6, "", False), ("refine", "r", 6, "cpu, 1 threads", False)]
    rows += [("refine", "r", 90, "cpu, 2 threads", True)]
    for stage, output, seconds, machine, resumed in rows:
        times.note(tmp_path, stage=stage, output=output, seconds=seconds, machine=machine, resumed=resumed)
    with (tmp_path / times.FILE).open("a") as file:
        file.write('{"stage": "refine", "outp')
    told = tracking.time_taken(params, {"base": "b", "refine": "r"})
    assert told == "cpu, 2 threads; base 0.1 min, refine 1.5 min since it was resumed"
