import pytest
from rich.console import Console

from lit_reason.console import metrics_table, percent, prompt_text, visible
from lit_reason.types import Problem


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a \u21b5 b"),
        ("[bold red]x[/]", "[bold red]x[/]"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\rb\x07\x00", r"a\rb\x07\x00"),
        ("\u202eevil", r"\u202eevil"),  # right-to-left override
        ("\udc80", r"\udc80"),  # a lone surrogate, which no encoding can print
        ("  caf\u00e9 42  ", "caf\u00e9 42"),
    ],
)
def test_text_from_a_model_cannot_move_the_cursor_or_carry_markup(text, shown):
    assert visible(text).plain == shown
    assert visible(text).spans == []


def test_a_rate_is_shown_in_percent_with_its_interval_where_there_is_one():
    metrics = {"accuracy": 0.43, "accuracy_low": 0.3629, "accuracy_high": 0.4991, "format": 1.0}
    assert percent(metrics, "accuracy") == "43.0 % (36.3-49.9)"
    assert percent(metrics, "format") == "100.0 %"


def test_the_table_has_a_row_a_metric_and_its_interval_beside_it():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123 - lives as long as the test
    metrics = {"accuracy": 0.5, "length": 12.25, "accuracy_low": 0.25, "accuracy_high": 0.75, "problems": 8.0}
    console.print(metrics_table(metrics))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert rows == [
        ["metric", "value", "95", "%", "interval"],
        ["accuracy", "50.0", "%", "25.0-75.0"],
        ["length", "12.2", "tokens"],
        ["problems", "8"],
    ]


def test_a_prompt_of_one_message_is_shown_without_its_role():
    assert prompt_text(Problem(prompt=[{"role": "user", "content": "2 + 2"}])) == "2 + 2"
    both = Problem(prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2"}])
    assert prompt_text(both) == "system: Be brief.\nuser: 2 + 2"
