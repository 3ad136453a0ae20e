"""Every fault once on two stages: none is a finding. `python -m tests.faults` tries all of them, on all stages."""

import pytest

from tests.faults import table


@pytest.mark.slow
def test_faults_are_survived_or_refused(tmp_path):
    project = table.make(tmp_path / "project")
    for name in ("refine", "shard"):
        for row in table.Stage(name, project, tmp_path / "trial").rows(times=1):
            assert row.findings == []
            assert row.counts.total() > 0
