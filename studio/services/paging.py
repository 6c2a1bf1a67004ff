"""Parts of long lists: which part is wanted, and the part with the length of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema
from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

EntryT = TypeVar("EntryT")
NewT = TypeVar("NewT")


@dataclass(frozen=True)
class Page:
    """`limit` entries from `offset` on; None: all that follow."""

    limit: int | None = None
    offset: int = 0

    def of(self, entries: Sequence[EntryT]) -> Listed[EntryT]:
        """This part of what is in memory."""
        end = None if self.limit is None else self.offset + self.limit
        return Listed(entries[self.offset : end], len(entries))

    def read(
        self,
        session: Session,
        query: Select[*tuple[Any, ...]],
        is_wanted: Callable[[Row[*tuple[Any, ...]]], bool] | None = None,
    ) -> Listed[Row[*tuple[Any, ...]]]:
        """This part of what the database has, or of those of its rows that are wanted."""
        if self == ALL or is_wanted is not None:
            return self.of([row for row in session.execute(query) if is_wanted is None or is_wanted(row)])
        total = session.scalar(select(func.count()).select_from(query.order_by(None).subquery())) or 0
        part = query.offset(self.offset)
        if self.limit is not None:
            part = part.limit(self.limit)
        return Listed(session.execute(part).all(), total)


class Listed(list[EntryT]):
    """Some entries of a list; `total`: how many there are in all."""

    def __init__(self, entries: Iterable[EntryT], total: int) -> None:
        super().__init__(entries)
        self.total = total

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As JSON it is a list of its entries."""
        return handler.generate_schema(list[get_args(source)[0]])  # type: ignore[misc]

    def as_are(self, entries: Iterable[NewT]) -> Listed[NewT]:
        """The same part, its entries in another form."""
        return Listed(entries, self.total)


ALL = Page()
