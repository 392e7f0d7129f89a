import pytest

from lit_reason.run_log import RunLogger, keep_lines, read_metrics


def test_training_and_validation_of_a_step_share_a_row_and_row_0_is_the_base_policy(tmp_path):
    logger = RunLogger(tmp_path)
    logger.write(0, {"val/accuracy": 0.05})
    logger.log_metrics({"train/reward": 0.1}, step=0)
    logger.log_metrics({"train/reward": 0.2}, step=1)
    logger.log_metrics({"val/accuracy": 0.25}, step=1)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,val/accuracy,train/reward",
        "0,0.05,",
        "1,,0.1",
        "2,0.25,0.2",
    ]


def test_the_file_is_complete_after_every_step(tmp_path):
    logger = RunLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"loss": float(step)}, step=step)
        assert read_metrics(tmp_path / "metrics.csv")[step + 1] == {"loss": float(step)}


def test_a_metric_that_appears_late_gets_a_column(tmp_path):
    logger = RunLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_metrics({"loss": 0.5, "late": 7.0}, step=1)
    assert read_metrics(tmp_path / "metrics.csv") == {1: {"loss": 1.0}, 2: {"loss": 0.5, "late": 7.0}}


def test_a_resumed_run_keeps_the_rows_before_and_overwrites_the_ones_it_repeats(tmp_path):
    first = RunLogger(tmp_path)
    for step in range(3):
        first.log_metrics({"loss": 1.0}, step=step)
    second = RunLogger(tmp_path)
    second.log_metrics({"loss": 2.0}, step=2)
    second.log_metrics({"loss": 2.0}, step=3)
    assert {step: row["loss"] for step, row in read_metrics(tmp_path / "metrics.csv").items()} == {
        1: 1.0,
        2: 1.0,
        3: 2.0,
        4: 2.0,
    }


def test_damaged_lines_are_left_out_and_a_run_goes_on(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,loss\n1,1.0\nx,2.0\n2,oops\n\x00\x00\n\xff,1\n3,3.0,7\n4,4.0\n5,5")
    with pytest.warns(UserWarning, match=r"metrics\.csv.*left out"):
        assert {step: row["loss"] for step, row in read_metrics(path).items()} == {1: 1.0, 4: 4.0}
    samples = tmp_path / "samples.jsonl"
    samples.write_bytes(b'{"step": 1}\n\n\x00\n{"no": 1}\n[]\n{"step": 2}\n{"step": 9}\n{"st')
    keep_lines(tmp_path, "samples.jsonl", "step", 3)
    assert samples.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_the_step_is_asked_for_when_someone_knows_it(tmp_path):
    logger = RunLogger(tmp_path)
    logger.steps_done = lambda: 41
    logger.log_metrics({"loss": 1.0}, step=3)
    assert read_metrics(tmp_path / "metrics.csv") == {41: {"loss": 1.0}}


def test_no_file_is_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == {}
