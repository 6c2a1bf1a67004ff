"""Calls whose arguments stand one by one (KeyedFormat), taken out of an answer's text as it comes."""

from __future__ import annotations

import json
from dataclasses import dataclass

from studio.datasets.keyed_format import CallEnds, KeyedFormat
from studio.engine.call_text import At, CallsInText, call_id
from studio.engine.keyed_values import NoCallError, end_of_value, typed
from studio.engine.protocol import CallDelta, Tools

LONGEST_KEY = 256


@dataclass
class _Call:
    name: str
    arguments: dict[str, str]  # as written
    length: int  # of its text
    ends: CallEnds


class KeyedReader(CallsInText):
    """Holds a call back until it is whole, and then tells of it at once: its values are typed by the tool's schema.

    A text that only looks like a call, or a call that is cut, stays content.
    """

    def __init__(self, form: KeyedFormat, tools: Tools) -> None:
        self._form, self._tools = form, tools
        start = form.opening[form.opening.find(form.mark) :]
        after = [text for text in (form.head, form.bare.link, form.bare.closing) if text]
        self._named = [name + text for name in tools.names for text in after]
        super().__init__(form.opening, form.mark, [form.mark] if form.mark else [start + named for named in self._named], is_forced=False)

    @property
    def _is_in_call(self) -> bool:
        return self._at is At.END

    def _begin_call(self) -> None:
        self._at = At.SLOT

    def _read_slot(self) -> bool:
        try:
            call = self._call()
        except NoCallError:
            self._give_up()
            return False
        if call is None:
            return False
        schema = self._tools.parameters(call.name).get("properties") or {}
        values = {key: typed(self._form, written, schema.get(key)) for key, written in call.arguments.items()}
        self._deltas += [CallDelta(self.count, call_id(), call.name), CallDelta(self.count, arguments=json.dumps(values))]
        self.count += 1
        self._link, self._closing = call.ends.link, call.ends.closing
        self._rest, self._undone, self._at = self._rest[call.length :], "", At.END
        return True

    def _call(self) -> _Call | None:
        """The call that the rest begins with; None where it has not come to its end."""
        form, text = self._form, self._rest
        bare = [end for end in (form.bare.link, form.bare.closing) if end]
        for name in self._tools.names:
            if any(text.startswith(name + end) for end in bare):
                return _Call(name, {}, len(name), form.bare)
            if text.startswith(name + form.head) and not any((name + end).startswith(text) for end in bare):
                return self._with_arguments(name)
        if any(named.startswith(text) for named in self._named):
            return None
        raise NoCallError

    def _with_arguments(self, name: str) -> _Call | None:
        form, text, start = self._form, self._rest, len(name + self._form.head)
        arguments: dict[str, str] = {}
        while True:
            end_of_key = text.find(form.assign, start, start + LONGEST_KEY + len(form.assign))
            if end_of_key < 0:
                if len(text) - start > LONGEST_KEY:
                    raise NoCallError
                return None
            value = end_of_key + len(form.assign)
            end = end_of_value(form, text, value)
            if end is None:
                return None
            arguments[text[start:end_of_key]] = text[value:end]
            if not text.startswith(form.following, end):
                return _Call(name, arguments, end, form.ends)
            start = end + len(form.following)
