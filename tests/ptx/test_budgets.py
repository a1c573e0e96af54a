"""Every kernel keeps to what budgets.csv lets it cost."""

import pytest

from tests.ptx import budgets
from tests.ptx.cases import Case
from tests.ptx.device import Device
from tests.ptx.report import measure

ROWS = budgets.read()


@pytest.mark.long
@pytest.mark.parametrize(
    "row", [pytest.param(r, id=r.command, marks=[] if r.always else pytest.mark.slow) for r in ROWS]
)
def test_within_its_budget(row: budgets.Row, project: Device) -> None:
    prediction = measure(project, row.case, budgets.BLOCKS)
    assert not row.exceeded_by(budgets.measured(prediction))
    assert all(launch.stack == 0 for launch in prediction.launches), "spills, or a stack frame"


def test_every_missed_aim_has_a_reason() -> None:
    for row in ROWS:
        reasons = [part.partition(":")[0] for part in row.reason.split("; ") if part]
        assert reasons == budgets.missed_aims(row.case, row.limits), row.command


def test_the_page_shows_the_budgets() -> None:
    assert budgets.table(ROWS) in budgets.PAGE.read_text()


def test_every_operator_has_budgets() -> None:
    covered = {name for row in ROWS for name, _ in small(row.case).calls()}
    assert covered >= {"interp", "interp_backward", "interp_concat", "interp_concat_backward"}
    assert covered >= {"interp_shift_add", "interp_shift_add_backward"}
    assert covered >= {"scale_merge", "scale_merge_backward", "scale_average", "scale_average_backward", "scale_max"}
    assert covered >= {"scale_max_backward", "segment"}


def small(case: Case) -> Case:
    """The same operator on maps of one pixel."""
    return Case(case.op, [(1, 2, 1, 1)] * len(case.maps), (1, 1), backward=case.backward)


def test_an_exceeded_budget_is_named() -> None:
    row = ROWS[0]
    worse = budgets.Limits(**{**vars(row.limits), "instructions": row.limits.instructions * 1.1})
    assert row.exceeded_by(row.limits) == []
    assert row.exceeded_by(worse) == [f"instructions is {worse.instructions}, its budget {row.limits.instructions}"]
