"""The table of reasons in the documentation is that of the code."""

import pytest

from libs.trading.reasons import Reason
from tools.reasons_table import BEGIN, END, PAGE, table, with_table


def test_the_page_has_the_table_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run `make fix`"


def test_every_reason_stands_in_a_row_of_its_own() -> None:
    rows = table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [reason.value for reason in Reason]
    assert all(row.count("|") == 4 for row in rows)


def test_an_old_table_is_replaced_and_nothing_else() -> None:
    page = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    assert with_table(page) == f"above\n{BEGIN}\n{table()}\n{END}\nbelow\n"
    with pytest.raises(ValueError, match="must hold the lines"):
        with_table("no place")
