"""What one answer owes its account: which of its tokens were shown alone and have no label yet. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from .ledger import Account, Cause


class Tab:
    """The account as one answer sees it."""

    def __init__(
        self, account: Account | None, cloud: str = "", changed: Callable[[Account], None] = lambda _: None
    ) -> None:
        """Without an account nothing may be shown alone; `changed` hears of every entry."""
        self.account = account
        self.cloud = cloud
        """Digest of the cloud model whose choices are the labels."""
        self.shown = 0
        """Tokens shown alone under the bound, an id that ended the answer among them."""
        self.labelled = 0
        self.wrong = 0
        """Of the labelled."""
        self.withheld: Counter[Cause] = Counter()
        """Trusted units that were asked about, by why."""
        self._changed = changed
        self._open: set[int] = set()

    def refuses(self, tokens: int) -> bool:
        """Whether a trusted unit of so many tokens has to be asked about."""
        cause = Cause.LEDGER if self.account is None else self.account.refuses(tokens)
        if cause is not None:
            self.withheld[cause] += 1
        return cause is not None

    def show(self, position: int, tokens: int) -> None:
        """Tokens from this answer index on were shown alone."""
        if self.account is not None and tokens:
            self._open.update(range(position, position + tokens))
            self.shown += tokens
            self.account.show(tokens)
            self.touch()

    def label(self, position: int, given: Sequence[int], choices: Sequence[int]) -> None:
        """The cloud's choices for ids from this answer index on; those not shown alone under the bound don't count."""
        pairs = zip(range(position, position + len(given)), given, choices, strict=False)
        agrees = [mine == theirs for index, mine, theirs in pairs if index in self._open]
        if self.account is not None and agrees:
            self._open.difference_update(range(position, position + len(choices)))
            wrong = agrees.count(False)
            self.labelled += len(agrees)
            self.wrong += wrong
            self.account.label(wrong, len(agrees))
            self.touch()

    def verified(self, drafted: int, stands: int) -> None:
        """The cloud's verdict on a withheld unit."""
        if self.account is not None:
            self.account.verified(drafted, stands)
            self.touch()

    def touch(self) -> None:
        """Somebody else made an entry in the account for this answer."""
        if self.account is not None:
            self._changed(self.account)

    def close(self) -> tuple[int, ...]:
        """The answer has ended: the indices that no visit labelled. They are the caller's now."""
        left, self._open = tuple(sorted(self._open)), set()
        return left
