"""The ledger on disk: restarts, crashes, broken files, full disks."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tiermesh.edge import ledgers
from tiermesh.edge.drift import Standing
from tiermesh.edge.ledger import ALLOWANCE, Account, Cause
from tiermesh.edge.ledgers import MAX_ACCOUNTS, Ledgers
from tiermesh.edge.tab import Tab
from tiermesh.edge.units import UNIT_TOKENS


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


@asynccontextmanager
async def kept(folder: Path, edge: str = "edge", crash: bool = False) -> AsyncIterator[Ledgers]:
    """Books that are written while the block runs. A crash writes no last word."""
    books = Ledgers(folder, edge)
    books.restore()
    task = asyncio.create_task(books.run())
    try:
        yield books
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not crash:
            books.close()


def account_of(books: Ledgers, tenant: str = "demo", delta: float = 0.05) -> Account:
    account = books.tab(tenant, "cloud", delta).account
    assert account is not None
    return account


def prove(tab: Tab) -> None:
    """Units that are asked about and stand, until the account has its allowance."""
    for _ in range(300):
        tab.verified(UNIT_TOKENS, UNIT_TOKENS)


def show(tab: Tab, units: int, right: bool | None = True) -> None:
    """Units one after the other, each labelled unless `right` is None."""
    for unit in range(units):
        assert not tab.refuses(UNIT_TOKENS)
        tab.show(unit * UNIT_TOKENS, UNIT_TOKENS)
        if right is not None:
            tab.label(unit * UNIT_TOKENS, [0] * UNIT_TOKENS, [int(not right)] * UNIT_TOKENS)


def may_show(account: Account) -> bool:
    """Whether what the account may come to is on disk, or it has lost its standing."""
    return account.ceiling > account.shown or account.watch.standing is not Standing.GOOD


async def earned(folder: Path) -> None:
    """A file with one account that has its allowance and 1,600 tokens' experience."""
    async with kept(folder) as books:
        tab = books.tab("demo", "cloud", 0.05)
        assert tab.refuses(1), "kept books begin at zero"
        prove(tab)
        for _ in range(10):
            assert tab.account is not None
            await until(lambda: tab.account.ceiling >= tab.account.shown + UNIT_TOKENS)
            show(tab, 1)


async def test_books_survive_a_clean_stop(tmp_path: Path) -> None:
    await earned(tmp_path)
    assert stat.S_IMODE((tmp_path / "ledger.json").stat().st_mode) == 0o600
    async with kept(tmp_path) as books:
        account = account_of(books)
        assert (account.shown, account.right, account.forfeited) == (160, 160, 0)
        assert account.allowance == pytest.approx(ALLOWANCE)
        assert account.refuses(1) is Cause.LEDGER, "until this start is on disk"
        await until(lambda: account.refuses(UNIT_TOKENS) is None)


async def test_a_crash_forfeits_what_it_may_have_shown(tmp_path: Path) -> None:
    await earned(tmp_path)
    async with kept(tmp_path, crash=True) as books:
        tab = books.tab("demo", "cloud", 0.05)
        assert tab.account is not None
        await until(lambda: tab.refuses(UNIT_TOKENS) is False)
        show(tab, 1, right=None)
        before = tab.account.room
    async with kept(tmp_path) as books:
        account = account_of(books)
        assert account.forfeited >= UNIT_TOKENS
        assert account.room <= before + 0.05 * UNIT_TOKENS
        assert account.pending == 0


async def test_crashes_in_a_row_give_nothing_back(tmp_path: Path) -> None:
    """A unit and a crash, again and again: the books run dry as if all had been wrong."""
    await earned(tmp_path)
    shown = 0
    for _ in range(12):
        async with kept(tmp_path, crash=True) as books:
            tab = books.tab("demo", "cloud", 0.05)
            account = tab.account
            assert account is not None
            await until(partial(may_show, account))
            if not tab.refuses(UNIT_TOKENS):
                tab.show(0, UNIT_TOKENS)
                shown += UNIT_TOKENS
    assert 2 * UNIT_TOKENS <= shown <= ALLOWANCE + 0.05 * (160 + shown)


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "format", "noise"])
async def test_broken_books_are_told_once_and_begin_at_zero(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await earned(tmp_path)
    path = tmp_path / "ledger.json"
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": content[: len(content) // 2],
            "changed": content.replace(b'"wrong": 0', b'"wrong": -9'),
            "format": ledgers._sealed({"format": 99, "accounts": []}),
            "noise": bytes(range(256)),
        }[damage]
    )
    capsys.readouterr()
    async with kept(tmp_path) as books:
        account = account_of(books)
        assert (account.allowance, account.shown, account.watch.standing) == (0.0, 0, Standing.UNPROVEN)
        assert account.refuses(1) is Cause.LEDGER
        told = capsys.readouterr()
        assert (told.out + told.err).count("ledger_unreadable") == 1
    async with kept(tmp_path) as books:
        assert account_of(books).allowance == 0.0, "the new file is sound, and as poor"


async def test_books_of_another_pair_do_not_count(tmp_path: Path) -> None:
    await earned(tmp_path)
    async with kept(tmp_path, edge="another edge") as books:
        assert account_of(books).allowance == 0.0
        assert books.tab("demo", "another cloud", 0.05).account.allowance == 0.0  # type: ignore[union-attr]
    async with kept(tmp_path) as books:
        assert account_of(books).shown == 160, "they are kept for the pair's return"


async def test_without_having_heard_of_the_cloud_the_last_pair_counts(tmp_path: Path) -> None:
    await earned(tmp_path)
    async with kept(tmp_path) as books:
        assert books.tab("demo", None, 0.05).account is account_of(books)
    fresh = Ledgers(None, "edge")
    assert fresh.tab("demo", None, 0.05).refuses(1), "nobody could ever label it"


async def test_an_alarm_survives_a_crash(tmp_path: Path) -> None:
    await earned(tmp_path)
    async with kept(tmp_path, crash=True) as books:
        tab = books.tab("demo", "cloud", 0.05)
        assert tab.account is not None
        for _ in range(20):
            tab.account.watch.shown(UNIT_TOKENS, UNIT_TOKENS)
        tab.touch()
        assert tab.account.watch.standing is Standing.DRIFTED
        await until(lambda: b"drifted" in (tmp_path / "ledger.json").read_bytes())
    async with kept(tmp_path) as books:
        assert account_of(books).refuses(1) is Cause.DRIFT


async def test_a_disk_that_can_not_be_written_stops_units_not_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await earned(tmp_path)
    folder = tmp_path / "file"
    folder.write_text("not a folder")
    monkeypatch.setattr(ledgers, "_RETRY_S", 0.001)
    books = Ledgers(tmp_path, "edge")
    books.restore()
    books._path = folder / "ledger.json"
    task = asyncio.create_task(books.run())
    printed = ""

    def told() -> bool:
        nonlocal printed
        read = capsys.readouterr()
        printed += read.out + read.err
        return "ledger_not_kept" in printed

    await until(told)
    tab = books.tab("demo", "cloud", 0.05)
    assert tab.refuses(1)
    assert tab.withheld == {Cause.LEDGER: 1}
    folder.unlink()
    await until(lambda: not tab.refuses(UNIT_TOKENS))
    told()
    assert printed.count("ledger_not_kept") == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_accounts_are_bounded_and_forgetting_one_pays_nothing() -> None:
    books = Ledgers(None, "edge")
    show(books.tab("first", "cloud", 0.05), 2, right=False)
    for number in range(2 * MAX_ACCOUNTS):
        books.tab(f"tenant {number}", "cloud", 0.05)
    assert len(list(books.accounts())) == MAX_ACCOUNTS
    again = account_of(books, "first")
    assert (again.shown, again.allowance) == (0, 0.0)


def test_books_that_are_not_kept_begin_with_the_allowance() -> None:
    books = Ledgers(None, "edge")
    books.restore()
    tab = books.tab("demo", "cloud", 0.0509)
    show(tab, 1)
    assert tab.account is not None
    assert (tab.account.delta, tab.account.right) == (0.05, UNIT_TOKENS)
    assert books.tab("demo", "cloud", 0.0005).refuses(1), "below the strictest bound nothing is shown alone"
