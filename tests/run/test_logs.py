"""The logs of a run: half and damaged lines, checksums, where a run goes on."""

import json

import numpy as np
import pytest

from errors import UserError
from run import logs


def lines(workdir):
    return logs.read_lines(workdir / "metrics.jsonl")


def test_half_lines_and_lines_after_the_checkpoint_are_dropped(tmp_path):
    whole = [{"step": 2, "split": "train"}, {"step": 4, "split": "train"}]
    text = "".join(json.dumps(line) + "\n" for line in [*whole, {"step": 6, "split": "train"}])
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "split": "validation"}')
    log = logs.RunLog(tmp_path, 4, tensorboard=False)
    log.metrics(4, "train", {})
    log.close()
    assert lines(tmp_path) == whole


def test_lines_that_are_missing_are_said(tmp_path, caplog):
    log = logs.RunLog(tmp_path, 0, tensorboard=False)
    for step in (2, 4, 8):
        log.metrics(step, "train", {})
    log.metrics(6, "validation", {})
    log.close()
    log = logs.RunLog(tmp_path, 8, tensorboard=False)
    log.warn_of_gaps({"train": range(2, 5, 2), "validation": range(6, 7, 6)})
    assert not caplog.text
    log.warn_of_gaps({"train": range(2, 9, 2), "validation": range(6, 13, 6)})
    log.close()
    assert "1 train line(s) are missing, the first of step 6" in caplog.text
    assert "1 validation line(s) are missing, the first of step 12" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        *("null", "3", "{}", "[1]", '{"step": "x"}', "\0", "[" * 9999),
        *('{"step": 3, "split": [1]}', '{"step": 3, "loss": "x"}'),
        *('{"step": 3, "masked_records": 5}', '{"step": 3, "masked_records": [[]]}'),
    ],
)
def test_a_damaged_line_is_named_and_kept_aside_and_nothing_after_it_is_lost(
    tmp_path, line, caplog
):
    """Without checksums, as older code wrote it; from then on it has them."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 2, "split": "train"}}\n{line}\n{{"step": 4, "final": true}}\n')
    kept = [{"step": 2, "split": "train"}, {"step": 4, "final": True}]
    assert logs.final_line(tmp_path) == kept[1]
    assert f"{path}: line 2 is damaged" in caplog.text
    logs.RunLog(tmp_path, 4, tensorboard=False).close()
    assert lines(tmp_path) == kept and path.read_text().count('"crc32": ') == 2
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == f"{line}\n"


def test_any_flipped_bit_of_a_log_is_named_or_changes_nothing(tmp_path, caplog):
    """Of 300 bits, those of line breaks among them."""
    log = logs.RunLog(tmp_path, 0, tensorboard=False)
    for step in range(1, 11):
        log.metrics(step, "train", {"loss": 1 / step, "names": ['}x{"step": 3}'], "none": None})
    log.close()
    path = tmp_path / "metrics.jsonl"
    whole, before = path.read_bytes(), lines(tmp_path)
    breaks = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    random = np.random.default_rng(0)
    for at in [*(i for i in breaks for _ in range(8)), *random.integers(len(whole), size=220)]:
        caplog.clear()
        damaged = bytearray(whole)
        damaged[at] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        found = lines(tmp_path)
        assert found == before or ("is damaged" in caplog.text and len(found) == 9), at
        assert all(line in before for line in found)
        if at in breaks:
            assert found == before


def test_a_log_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read"):
        logs.final_line(tmp_path)
