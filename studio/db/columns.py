"""Column types whose values are paths: absolute for whoever uses a row, stored as studio.homepaths says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import JSON, Engine, String, TypeDecorator
from sqlalchemy.engine.interfaces import Dialect

from studio.homepaths import MARK_STEM, HomePaths

_PATHS: WeakKeyDictionary[Dialect, HomePaths] = WeakKeyDictionary()  # of its engine a column knows the dialect only


def use_home(engine: Engine, paths: HomePaths) -> None:
    """Have the path columns of this engine's sessions be relative to that home."""
    _PATHS[engine.dialect] = paths


class HomePath(TypeDecorator[str]):
    """An absolute path; relative in the database where it lies inside STUDIO_HOME."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value and _PATHS[dialect].stored(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return value and _PATHS[dialect].absolute(value)


class HomeJson(TypeDecorator[Any]):
    """JSON whose strings may be paths inside STUDIO_HOME."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return _PATHS[dialect].stored_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return _PATHS[dialect].absolute_json(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """A text without a mark holds no path to change: lists of thousands of rows are not walked value by value."""
        read = self.impl_instance.result_processor(dialect, coltype)

        def process(value: Any) -> Any:
            found = value
            if read is not None:
                found = read(value)
            if isinstance(value, str) and MARK_STEM not in value:
                return found
            return self.process_result_value(found, dialect)

        return process
