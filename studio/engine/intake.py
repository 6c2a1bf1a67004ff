"""From a checked request to answers in the making: prompt rendered and counted, stop tokens and grammar ready.

Reads model folders through their tokenizer and config only; knows no torch.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from studio.catalogue import rope
from studio.catalogue.models import ModelFacts, inspect_folder
from studio.datasets.rendering import RenderedPrompt, Renderer
from studio.datasets.template_limits import REQUEST_CPU_S, budget
from studio.engine.answer import GeneratedAnswer
from studio.engine.calling import Calling, calling_of
from studio.engine.embedded import EmbeddedTexts
from studio.engine.grammar import GrammarVocabulary, Matcher
from studio.engine.limits import longest_answer
from studio.engine.protocol import Event, GenerationRequest, bad_request
from studio.engine.text import AnswerText
from studio.errors import DatasetError, EngineError, ModelError
from studio.records import PromptPreview

UNKNOWN_CONTEXT = 2048  # tokens, where config.json does not say


def prepare(request: GenerationRequest, deliver: Callable[[Event], None]) -> list[GeneratedAnswer]:
    """All answers of `request`, prompt by prompt. Raises EngineError 400 or 404 when the request can't be answered."""
    with _as_refusals(request, _field(request)):
        facts, renderer = _facts(request.base.path), _renderer(request)
        prompts = _prompt_ids(request, renderer)
        vocabulary = _vocabulary(request, renderer)
        _check_assistant(request, renderer)
    if request.is_embedding:
        return [_embedded(request, renderer, facts, prompts, deliver)]
    matcher = vocabulary.matcher(request.grammar) if vocabulary and request.grammar else None
    calling = _calling(request, renderer, vocabulary)
    seed = secrets.randbits(62) if request.params.seed is None else request.params.seed
    rows = [ids for ids in prompts for _ in range(request.n)]
    return [_answer(request, renderer, facts, ids, index, seed, deliver, vocabulary, matcher, calling) for index, ids in enumerate(rows)]


class TokenizedPrompt(NamedTuple):
    """What a text or a conversation becomes; `context`: tokens that the model reads at once."""

    ids: list[int]
    context: int
    vocabulary: Tokenizer

    @property
    def strings(self) -> list[str]:
        """Each token as the vocabulary writes it, which need not be text."""
        return [self.vocabulary.id_to_token(token_id) or "" for token_id in self.ids]


def tokens_of_text(request: GenerationRequest, with_special: bool) -> TokenizedPrompt:
    """`with_special`: as /v1/completions reads it, else the text alone. Raises EngineError."""
    with _as_refusals(request, "prompt"):
        facts, renderer = _facts(request.base.path), _renderer(request)
        (text,) = request.prompts
        assert isinstance(text, str)
        ids = renderer.completion_prompt(text) if with_special else renderer.encoded(text)
    return TokenizedPrompt(ids, _context(request, facts), renderer.tokenizer)


def tokens_of_chat(request: GenerationRequest, *, opens_answer: bool, with_special: bool) -> TokenizedPrompt:
    """`opens_answer`: with the beginning of the assistant's turn, as /v1/chat/completions reads it. Raises EngineError."""
    with _as_refusals(request):
        facts, renderer = _facts(request.base.path), _renderer(request)
        if opens_answer or request.goes_on:
            text = _chat_prompt(request, renderer).text
        else:
            turns, tools = renderer.turns(request.messages, _definitions(request))
            text = renderer.dialogue.text(turns, tools, add_generation_prompt=False)
        ids = renderer.encoded(text, with_special)
    return TokenizedPrompt(ids, _context(request, facts), renderer.tokenizer)


def text_of(request: GenerationRequest, ids: Sequence[int]) -> str:
    """Raises EngineError where one of `ids` is no token."""
    with _as_refusals(request):
        renderer = _renderer(request)
        _check_ids(ids, renderer, "tokens")
    return renderer.decode(ids, skip_special_tokens=False)


def preview(request: GenerationRequest) -> PromptPreview:
    """The exact prompt of a chat request. Raises EngineError."""
    with _as_refusals(request):
        facts, renderer = _facts(request.base.path), _renderer(request)
        prompt = _chat_prompt(request, renderer)
    pieces = [renderer.tokenizer.decode([token_id], skip_special_tokens=False) for token_id in prompt.ids]
    return PromptPreview(
        text=prompt.text,
        ids=prompt.ids,
        tokens=pieces,
        context=_context(request, facts),
        template=renderer.template_name,
    )


@contextmanager
def _as_refusals(request: GenerationRequest, param: str = "messages") -> Iterator[None]:
    try:
        with budget.within(REQUEST_CPU_S):
            yield
    except ModelError as exc:
        status = 400 if request.base.path.is_dir() else 404
        raise EngineError(exc.message, exc.fix, status=status, code="model_not_loadable") from None
    except DatasetError as exc:  # the template refuses these messages
        raise bad_request(exc.message, exc.fix, param=param) from None


def _answer(
    request: GenerationRequest,
    renderer: Renderer,
    facts: ModelFacts,
    ids: list[int],
    index: int,
    seed: int,
    deliver: Callable[[Event], None],
    vocabulary: GrammarVocabulary | None,
    matcher: Matcher | None,
    calling: Calling | None,
) -> GeneratedAnswer:
    stops, room = request.params.stop, _room(request, renderer, ids, facts)
    if request.is_chat and not request.ending.ignore_eos:
        stops = (*stops, *renderer.stop_strings)
    answer = GeneratedAnswer(
        base=request.base,
        adapter=request.adapter,
        prompt_ids=ids,
        limit=min(_wanted(request), room),
        params=request.params,
        seed=seed + index,
        stop_ids=_stop_ids(renderer) | request.ending.stop_token_ids,
        ending=request.ending,
        text=AnswerText(calling.decode if calling else renderer.decode, ids, stops, request.ending.min_tokens),
        deliver=deliver,
        index=index,
        top_logprobs=request.top_logprobs,
        vocabulary=vocabulary,
        matcher=matcher.copy() if matcher else None,
        lane=request.lane,
        speculation=request.speculation,
        echo=_echo(request, renderer, ids, index),
    )
    if calling is not None:
        calling.give(answer)
    return answer


def _echo(request: GenerationRequest, renderer: Renderer, ids: list[int], index: int) -> str | None:
    """The prompt's text where the answer begins with it."""
    if not request.echoes:
        return None
    prompt = request.prompts[index // request.n]
    return prompt if isinstance(prompt, str) else renderer.decode(ids, skip_special_tokens=False)


def _embedded(
    request: GenerationRequest,
    renderer: Renderer,
    facts: ModelFacts,
    texts: list[list[int]],
    deliver: Callable[[Event], None],
) -> EmbeddedTexts:
    for ids in texts:
        _room(request, renderer, ids, facts)
    return EmbeddedTexts(
        base=request.base,
        adapter=request.adapter,
        prompt_ids=max(texts, key=len),
        limit=0,
        params=request.params,
        seed=0,
        stop_ids=frozenset(),
        text=AnswerText(renderer.decode, []),
        deliver=deliver,
        lane=request.lane,
        texts=texts,
    )


def _calling(request: GenerationRequest, renderer: Renderer, vocabulary: GrammarVocabulary | None) -> Calling | None:
    """How this answer may call tools. Raises EngineError 400 where it can't."""
    if request.tools is None or vocabulary is None:
        return None
    return calling_of(request, renderer, vocabulary)


def _wanted(request: GenerationRequest) -> int:
    """Tokens asked for; without a limit of the caller's own, as many as the longest text of the schema may take."""
    if not request.writes:
        return 0
    longest = None if request.has_limit or request.grammar is None else longest_answer(request.grammar)
    return longest or request.params.max_new_tokens


def _check_assistant(request: GenerationRequest, renderer: Renderer) -> None:
    """Drafts are token ids, so both models must mean the same by them."""
    assistant = request.speculation.assistant if request.speculation else None
    if assistant is None:
        return
    _facts(assistant.path)
    theirs = _load_renderer(assistant.path, None, _stamp(assistant.path, None)).tokenizer
    if theirs.get_vocab(with_added_tokens=True) != renderer.tokenizer.get_vocab(with_added_tokens=True):
        raise bad_request(
            f"{assistant.name} has another vocabulary than {request.base.name}, so it can't draft for it.",
            "Choose a smaller model of the same family, or prompt_lookup.",
            param="assistant_model",
        )


def _prompt_ids(request: GenerationRequest, renderer: Renderer) -> list[list[int]]:
    if request.is_chat:
        return [_chat_prompt(request, renderer).ids]
    found = []
    for prompt in request.prompts:
        ids = renderer.completion_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise bad_request("The prompt is empty and this model has no token to start from.", "Write one.", param="prompt")
        _check_ids(ids, renderer, _field(request))
        found.append(ids)
    return found


def _check_ids(ids: Sequence[int], renderer: Renderer, param: str) -> None:
    size = renderer.tokenizer.get_vocab_size(with_added_tokens=True)
    if any(not 0 <= token_id < size for token_id in ids):
        said = f"The {param} has a token id that is not between 0 and {size - 1}."
        raise bad_request(said, "Tokenise it with this model's tokenizer.", param=param)


def _field(request: GenerationRequest) -> str:
    """The field that holds what is read."""
    if request.is_chat:
        return "messages"
    return "input" if request.is_embedding else "prompt"


def _definitions(request: GenerationRequest) -> list[dict[str, Any]] | None:
    return list(request.tools.definitions) if request.tools else None


def _chat_prompt(request: GenerationRequest, renderer: Renderer) -> RenderedPrompt:
    """The conversation as the template writes it; an answer that goes on stands at its end, unclosed."""
    tools = _definitions(request)
    if not request.goes_on:
        return renderer.prompt(request.messages, tools)
    text = renderer.prompt(request.messages[:-1], tools).text + request.messages[-1].content
    return RenderedPrompt(text, renderer.tokenizer.encode(text, add_special_tokens=False).ids)


def _room(request: GenerationRequest, renderer: Renderer, ids: list[int], facts: ModelFacts) -> int:
    """Tokens that the answer may have."""
    context = _context(request, facts)
    needed = len(ids) + int(request.writes and not request.is_embedding)
    if needed > context:
        excess = needed - context
        raise bad_request(
            f"This model's context is {context} tokens and the prompt has {len(ids)} tokens.",
            f"Shorten {_what_to_cut(request, renderer, excess)} by at least {excess} tokens.",
            param=_field(request),
            code="context_length_exceeded",
        )
    return context - len(ids)


def _context(request: GenerationRequest, facts: ModelFacts) -> int:
    """Tokens that the base reads at once, with the positions that the adapter was trained with."""
    return rope.context_beside(request.base.path, request.adapter and request.adapter.path, facts.context) or UNKNOWN_CONTEXT


def _what_to_cut(request: GenerationRequest, renderer: Renderer, excess: int) -> str:
    """ "the prompt", or of a conversation the part that holds enough: its oldest turns, else its longest message."""
    if not request.is_chat or len(request.messages) < 2:
        return "the prompt"
    sizes = [len(renderer.tokenizer.encode(message.content, add_special_tokens=False).ids) for message in request.messages]
    saved, last = 0, len(sizes) - 1
    for number, message in enumerate(request.messages[:last]):
        if message.role == "system":
            continue
        saved += sizes[number]
        if saved >= excess and request.messages[number + 1].role == "user":
            return f"the conversation (leave out its messages up to number {number + 1}, which have {saved} tokens)"
    longest = max(range(len(sizes)), key=sizes.__getitem__)
    return f"message {longest + 1} of {len(sizes)} ({request.messages[longest].role}, {sizes[longest]} tokens)"


def _stop_ids(renderer: Renderer) -> frozenset[int]:
    """What ends an answer. BOS does too: a model that writes it starts another text."""
    bos = renderer.bos_token_id
    return frozenset(renderer.stop_token_ids) | (frozenset() if bos is None else {bos})


def _renderer(request: GenerationRequest) -> Renderer:
    template = request.chat_template
    if template is None and request.adapter is not None:
        own = request.adapter.path / "chat_template.jinja"
        template = str(own) if own.is_file() else None
    return _load_renderer(request.base.path, template, _stamp(request.base.path, template))


def _vocabulary(request: GenerationRequest, renderer: Renderer) -> GrammarVocabulary | None:
    if request.grammar is None and request.top_logprobs is None and request.tools is None:
        return None
    return _load_vocabulary(request.base.path, _stamp(request.base.path, None), tuple(sorted(_stop_ids(renderer))))


def _facts(folder: Path) -> ModelFacts:
    facts = _inspect(folder, _stamp(folder, None))
    if not facts.loadable:
        raise ModelError(facts.reason, facts.fix)
    return facts


def _stamp(folder: Path, template: str | None) -> tuple[Any, ...]:
    """Changes when a file of `folder` or the template's file does, so that caches notice."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if template is not None and template.endswith(".jinja"):
        files.append(Path(template))
    return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.is_file())


@lru_cache(maxsize=32)
def _inspect(folder: Path, _stamp: tuple[Any, ...]) -> ModelFacts:
    return inspect_folder(folder)


@lru_cache(maxsize=32)
def _load_renderer(folder: Path, template: str | None, _stamp: tuple[Any, ...]) -> Renderer:
    return Renderer.load(folder, template)


@lru_cache(maxsize=4)
def _load_vocabulary(folder: Path, _stamp: tuple[Any, ...], stop_ids: tuple[int, ...]) -> GrammarVocabulary:
    return GrammarVocabulary(Renderer.load(folder).tokenizer, stop_ids)
