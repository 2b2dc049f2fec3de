"""A scoring run that goes on after another one."""

import pytest

from cmgcli import model
from cmgcli.images import find_images
from cmgcli.rows import Row
from cmgcli.scoring import score_files


@pytest.mark.parametrize("done", [0, 1, 3, 4, 6, 12])
def test_a_resumed_run_has_the_batches_of_an_undisturbed_one(small_model, small_line, monkeypatch, done):
    """So it gives its rows to the last digit, which depends on what shares a batch."""
    files = find_images([str(small_line / "images")])[:12]
    batches, decoded = [], model.decoded
    monkeypatch.setattr(model, "decoded", lambda *given, **options: (batches.append([name for name, _ in batch]) or batch for batch in decoded(*given, **options)))
    earlier = [Row(file) for file in files[:done]]
    rows = list(score_files(small_model, files[done:], done=earlier, batch_size=4))
    assert [row.file for row in rows] == files[done:]
    assert batches == [files[i : i + 4] for i in range(max(0, done - 1) // 4 * 4, 12, 4)]
