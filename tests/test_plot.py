from lit_reason.plot import draw_curve
from lit_reason.run_log import RunLogger

PNG = b"\x89PNG\r\n\x1a\n"


def test_reward_accuracy_and_length_become_a_png(tmp_path):
    logger = RunLogger(tmp_path)
    logger.write(0, {"val/accuracy": 0.1, "val/accuracy_low": 0.05, "val/accuracy_high": 0.2, "val/length": 20.0})
    for step in range(1, 5):
        logger.write(step, {"train/reward": 0.1 * step, "train/accuracy": 0.1, "train/length": 20.0 + step})
    assert draw_curve(tmp_path / "metrics.csv", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)


def test_a_run_that_only_learns_from_examples_still_gets_a_picture(tmp_path):
    RunLogger(tmp_path).write(1, {"train/loss": 2.0, "train/length": 31.0})
    assert draw_curve(tmp_path / "metrics.csv", tmp_path / "curve.png")


def test_nothing_to_draw_gives_no_picture(tmp_path):
    assert not draw_curve(tmp_path / "metrics.csv", tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
