"""Answers that must fit a JSON schema, a GBNF grammar or a regular expression: the one seam to llguidance.

Knows token ids and masks; nothing of models or torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from studio.engine import grammar_limits
from studio.engine.protocol import Grammar, bad_request
from studio.errors import listed

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from tokenizers import Tokenizer

# of each kind: the request's field, and what people call it
NAMES = {
    "gbnf": ("grammar", "The grammar"),
    "regex": ("regex", "The regular expression"),
    "json_schema": ("response_format", "The JSON schema"),
    "calls": ("tools", "What the tools take"),
}


SLACK = 8  # tokens: ends differ in length, such as the values of an enum
# what a JSON value of each type begins and ends with
BRACKETS = {"object": "{}", "array": "[]", "string": '"'}
FORCED = re.compile(r"forced bytes: got '(.)'")
LITERAL = re.compile(r'"((?:[^"\\\n]|\\.)*)"')


class GrammarVocabulary:
    """The bytes of every token of one model. Ids above `size` (padding of the embedding) stand for nothing."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        from llguidance import LLTokenizer

        whole = type(tokenizer).from_str(tokenizer.to_str())
        whole.no_padding()
        whole.no_truncation()
        self.size = whole.get_vocab_size(with_added_tokens=True)
        self._tokens = LLTokenizer(whole.to_str(), n_vocab=self.size, eos_token=list(stop_ids) or None)
        self._stop_ids = tuple(stop_ids)
        added = {token.content: token_id for token_id, token in whole.get_added_tokens_decoder().items() if token.content}
        self._added = {text: token_id for text, token_id in added.items() if self._tokens.is_special_token(token_id)}

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that the token stands for."""
        return bytes(self._tokens.decode_bytes([token_id])) if token_id < self.size else b""

    @cached_property
    def _bytes(self) -> frozenset[int]:
        """Every byte that some token holds."""
        return frozenset(byte for token_id in range(self.size) for byte in self.token_bytes(token_id))

    def lacking(self, text: str) -> list[str]:
        """The characters of `text` that no answer of this model can hold, in their order."""
        return [sign for sign in dict.fromkeys(text) if not self._bytes.issuperset(sign.encode("utf-8", "replace"))]

    def literal(self, text: str) -> str:
        """`text` in Lark's syntax; what the model has a token of its own for, such as <tool_call>, as that token."""
        if not text or not self._added:
            return json.dumps(text) if text else ""
        longest_first = sorted(self._added, key=len, reverse=True)
        pieces = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
        return " ".join(f"<[{self._added[piece]}]>" if piece in self._added else json.dumps(piece) for piece in pieces if piece)

    def tokens(self, text: str) -> list[int]:
        """Tokens of `text`, added ones among them."""
        return list(self._tokens.tokenize_str(text))

    @cached_property
    def ends(self) -> Ends:
        """The tokens that take a text of JSON to its end."""
        pieces = [self.token_bytes(token_id) for token_id in range(self.size)]

        def packed(is_one: Callable[[bytes], bool]) -> NDArray[np.uint8]:
            return np.packbits([bool(piece) and is_one(piece) for piece in pieces], bitorder="little")

        stops = np.zeros(self.size, dtype=bool)
        stops[[token_id for token_id in self._stop_ids if 0 <= token_id < self.size]] = True
        return Ends(
            np.packbits(stops, bitorder="little"),
            packed(lambda piece: piece[:1].isalpha() and piece[:1] not in b"tfn"),
            packed(lambda piece: piece.startswith(b'"') and not piece.strip(b'"}]')),
            packed(lambda piece: piece.startswith(b'"')),
            packed(lambda piece: piece[:1] in (b"}", b"]")),
            packed(lambda piece: piece[:1] in (b",", b":")),
        )

    def matcher(self, grammar: Grammar) -> Matcher:
        """A fresh matcher. Raises EngineError 400 with the library's line and reason when the grammar can't be used."""
        from llguidance import LLMatcher

        if reason := grammar_limits.excess(grammar):
            raise _too_large(grammar, reason)
        source = _compile(grammar)
        if missing := self.lacking(_certain(grammar)):
            raise _unwritable(grammar, missing)
        problem = LLMatcher.validate_grammar(source, self._tokens)
        if problem and not problem.startswith("WARNING"):
            raise _refusal(grammar, problem)
        matcher = Matcher(LLMatcher(self._tokens, source, log_level=0), grammar, self)
        matcher.bits(self.size)  # a grammar that nothing can fit passes the check above
        return matcher


@dataclass(frozen=True)
class Ends:
    """Of each kind which tokens are it: one bit for each, as in Matcher.bits."""

    stops: NDArray[np.uint8]
    letters: NDArray[np.uint8]  # that no value but a string begins with
    bare_quotes: NDArray[np.uint8]
    quotes: NDArray[np.uint8]
    brackets: NDArray[np.uint8]
    separators: NDArray[np.uint8]

    def among(self, allowed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Those of the allowed tokens that end the text soonest; all of them where none is known to."""
        size = self.stops.size

        def both(one: NDArray[np.uint8]) -> NDArray[np.uint8]:
            found = np.zeros_like(allowed)
            length = min(size, allowed.size)
            found[:length] = allowed[:length] & one[:length]
            return found

        in_string = both(self.letters).any()
        order = [self.bare_quotes, self.quotes, self.brackets] if in_string else [self.brackets, self.bare_quotes, self.quotes]
        for kind in (self.stops, *order, self.separators):
            found = both(kind)
            if found.any():
                return found
        return allowed


class Matcher:
    """Follows one answer and says which tokens may come next."""

    def __init__(self, matcher: LLMatcher, grammar: Grammar, vocabulary: GrammarVocabulary) -> None:
        self._matcher = matcher
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._is_closing = False
        self._watched = grammar.room  # tokens left, from which on the way to the end is measured next

    def leave(self, tokens: int) -> None:
        """So many tokens are left. Once the way to the end takes them all, only what leads there may come next.

        Where they are too few for any end, nothing changes: the answer is cut in any case.
        """
        if self._is_closing or tokens > self._grammar.room:
            return
        if self._matcher.is_accepting():  # it could end here: only with room for all that would follow it goes on
            self._is_closing = tokens <= SLACK + self._again
        if tokens > self._watched:
            return
        needed = self._way_to_end(tokens)
        if needed is not None and needed + self._step + SLACK >= tokens:
            self._is_closing = True
        spare = 0 if needed is None else tokens - needed
        self._watched = tokens - max(1, (spare - SLACK) // (self._step + 1))

    @cached_property
    def _step(self) -> int:
        """Tokens by which one token may lengthen the way to the end."""
        return self._most_tokens(self._grammar.steps)

    @cached_property
    def _again(self) -> int:
        """Tokens of what may follow where the text could end."""
        return self._most_tokens(self._grammar.again)

    def _most_tokens(self, texts: Sequence[str]) -> int:
        return max((len(self._vocabulary.tokens(text)) for text in texts), default=0)

    def _way_to_end(self, most: int) -> int | None:
        """Tokens that about the shortest end takes; None where it takes more than `most`."""
        ahead = self._matcher.deep_copy()
        for number in range(most + 1):
            if ahead.is_stopped() or ahead.is_accepting():
                return number
            mask = np.frombuffer(ahead.compute_bitmask(), dtype=np.uint8)
            found = np.flatnonzero(np.unpackbits(self._vocabulary.ends.among(mask), bitorder="little"))
            if not found.size or not ahead.consume_token(int(found[0])):
                return None
        return None

    def follow(self, text: str) -> bool:
        """Take a text that was written without a grammar; False where it does not fit, and then this is of no use any more."""
        tokens = self._vocabulary.tokens(text)
        return bool(self._matcher.try_consume_tokens(tokens) == len(tokens))

    def copy(self) -> Matcher:
        """A matcher in the same state, for another answer."""
        return Matcher(self._matcher.deep_copy(), self._grammar, self._vocabulary)

    def bits(self, size: int) -> NDArray[np.uint8]:
        """May this token come next? One bit for each of `size` tokens, the lowest bit of a byte first; [size / 8, rounded up]."""
        found = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise self._stuck(self._matcher.get_error())
        mask = np.zeros((size + 7) // 8, dtype=np.uint8)
        mask[: found.size] = found[: mask.size]
        if size % 8:
            mask[-1] &= (1 << size % 8) - 1
        if not mask.any():
            raise self._stuck("no token of this model fits what must come next")
        return self._vocabulary.ends.among(mask) if self._is_closing else mask

    def take(self, token_id: int) -> None:
        """The token was chosen."""
        if not self._matcher.consume_token(token_id):
            raise self._stuck(self._matcher.get_error())

    def _stuck(self, reason: str) -> Exception:
        """Why the answer can't go on: in plain words where the model can't write what the grammar asks for."""
        forced = FORCED.search(reason)
        missing = self._vocabulary.lacking(forced[1] if forced else _possible(self._grammar))
        return _unwritable(self._grammar, missing) if missing else _refusal(self._grammar, reason)

    @property
    def is_complete(self) -> bool:
        """Nothing may follow."""
        return self._matcher.is_stopped()


def _compile(grammar: Grammar) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        if grammar.kind == "json_schema":
            # without this a small model fills its whole answer with blanks between the brackets
            return LLMatcher.grammar_from_json_schema(json.loads(grammar.source), overrides={"whitespace_flexible": False})
        if grammar.kind == "regex":
            return LLMatcher.grammar_from_regex(grammar.source)
        if grammar.kind == "calls":
            return LLMatcher.grammar_from_lark(grammar.source)
        return LLMatcher.grammar_from_lark(any_to_lark(grammar.source))
    except Exception as exc:  # noqa: BLE001  (the converter of GBNF raises bare Exception, that of schemas for numbers and texts it can't take)
        raise _refusal(grammar, str(exc)) from None


def _certain(grammar: Grammar) -> str:
    """Characters that every answer has, as far as that is plain: of a JSON schema its outermost value."""
    if grammar.kind != "json_schema":
        return ""
    schema = json.loads(grammar.source)
    signs = BRACKETS.get(str(schema.get("type")), "")
    required = schema.get("required")
    if schema.get("type") == "object" and isinstance(required, list):
        names = [name for name in required if isinstance(name, str)]
        signs += "".join(json.dumps(name, ensure_ascii=False) + ":" for name in names)
    return signs


def _possible(grammar: Grammar) -> str:
    """Characters that an answer may have to hold."""
    if grammar.kind == "gbnf":
        return "".join(LITERAL.findall(grammar.source))
    signs = "".join(grammar.source.split())
    return "".join(BRACKETS.values()) + signs if grammar.kind == "json_schema" else signs


def _unwritable(grammar: Grammar, missing: Sequence[str]) -> Exception:
    param, name = NAMES[grammar.kind]
    signs = listed(missing)
    return bad_request(
        f"{name} can't be used with this model: its vocabulary has no {signs}, so it can't write what is asked for.",
        "Choose a model whose vocabulary has it, or ask without a grammar.",
        param=param,
        code="invalid_grammar",
    )


def _too_large(grammar: Grammar, reason: str) -> Exception:
    param, name = NAMES[grammar.kind]
    return bad_request(f"{name} can't be used: {reason}.", "Ask for less at once.", param=param, code="invalid_grammar")


def _refusal(grammar: Grammar, reason: str) -> Exception:
    """One line: which rule, which line, why."""
    param, name = NAMES[grammar.kind]
    text = " ".join(reason.split("<state>")[0].split())
    text = re.sub(r"^at (\d+)\((\d+)\): ", r"line \1, column \2: ", text).replace("NoExtensionBias", "nothing can fit it")
    fix = "Correct it at that place."
    unknown = re.fullmatch(r"Rule '([^']+)' not found", text)
    if unknown:  # the library names the rule but not the place
        lines = grammar.source.splitlines()
        line = next((n for n, content in enumerate(lines, 1) if re.search(rf"(?<![\w-]){re.escape(unknown[1])}(?![\w-])", content)), 1)
        text = f"line {line}: {text}"
    return bad_request(f"{name} can't be used: {text.rstrip('.')}.", fix, param=param, code="invalid_grammar")
