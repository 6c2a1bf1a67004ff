"""Lists of /api in parts: `limit` and `offset` are asked for, the header X-Total-Count says how many entries there are in all."""

from __future__ import annotations

from typing import Annotated, TypeVar

from fastapi import Depends, Query, Response

from studio.services.paging import Listed, Page

EntryT = TypeVar("EntryT")
MOST = 1000
TOTAL = "X-Total-Count"
LIMIT = "How many entries; left out: all. The header X-Total-Count says how many there are."


class ListPart:
    """The part of a list that a request asks for."""

    def __init__(
        self,
        response: Response,
        limit: Annotated[int | None, Query(ge=1, le=MOST, description=LIMIT)] = None,
        offset: Annotated[int, Query(ge=0, le=2**53, description="Entries to leave out at the beginning.")] = 0,
    ) -> None:
        self._response = response
        self.page = Page(limit, offset)

    def told(self, entries: Listed[EntryT]) -> list[EntryT]:
        """The entries, with how many there are in the header."""
        self._response.headers[TOTAL] = str(entries.total)
        return entries

    def of(self, entries: list[EntryT]) -> list[EntryT]:
        """As `told`, the asked part of a list that is short by nature."""
        return self.told(self.page.of(entries))


AskedPart = Annotated[ListPart, Depends()]
