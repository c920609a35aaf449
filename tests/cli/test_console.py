"""How every verb fails, is interrupted and shows progress."""

import pytest

from fedkd.cli.console import fail, guard, progress_bar
from fedkd.recipe import RecipeError


def test_fail_prints_one_line_and_exits_with_two(capsys):
    with pytest.raises(SystemExit) as caught:
        fail("no\nrecipe [here]")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no recipe [here]\n"


@pytest.mark.parametrize("mistake", [RecipeError("run.seed=x"), FileNotFoundError(2, "No such file", "x")])
def test_guard_turns_a_mistake_into_one_line(mistake, capsys):
    with pytest.raises(SystemExit) as caught, guard():
        raise mistake
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {mistake}\n"


def test_guard_turns_ctrl_c_into_what_to_do(capsys):
    with pytest.raises(SystemExit) as caught, guard("fedkd simulate quickstart --resume runs/quickstart"):
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted: fedkd simulate quickstart --resume runs/quickstart\n"


@pytest.mark.parametrize("defect", [TypeError("ours"), ValueError(), KeyError("ours")])
def test_guard_lets_a_defect_through(defect):
    with pytest.raises(type(defect)), guard():
        raise defect


def test_guard_leaves_an_exit_alone():
    with pytest.raises(SystemExit) as caught, guard():
        raise SystemExit(7)
    assert caught.value.code == 7


def test_progress_off_a_terminal_is_one_line(capsys):
    with progress_bar("fine-tuning [edge-0]") as progress:
        progress(1, 3)
        progress(3, 3)
    assert capsys.readouterr().err == "fine-tuning [edge-0]: 3/3\n"
