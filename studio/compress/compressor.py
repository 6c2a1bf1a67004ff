"""A loaded compressor: a text and a rate in; shorter text, what was kept, and honest figures out.

Knows folders and texts; no names of models, no database, no UI.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.compress import checks, methods, models, spans
from studio.compress.calibration import Calibration
from studio.compress.checks import MustKeep
from studio.compress.importance import Importance
from studio.compress.information import Information
from studio.compress.llmlingua import Backend, Counter
from studio.compress.request import Request
from studio.errors import StudioError
from studio.records import Compression

MOST_CAUSAL = 1_000_000  # characters: the causal methods copy the whole text at every window


class Compressor:
    """Made by `studio.compress.load`. Calls from several threads wait for each other."""

    def __init__(self, backend: Backend, counter: Path) -> None:
        self.backend = backend
        self.counter = counter
        self.name = str(backend.folder)
        self.information = Information(backend)
        self.importance = Importance(backend)

    @classmethod
    def load(cls, compressor: str | Path, counter: str | Path | None = None, **options: Any) -> Compressor:
        folder = Path(compressor).expanduser()
        models.inspect(folder)
        return cls(Backend(folder, Path(counter or folder).expanduser(), **options), Path(counter or folder))

    def recount(self, counter: str | Path) -> None:
        """Count with another model's tokenizer from now on."""
        if Path(counter) != self.counter:
            self.backend.oai_tokenizer, self.counter = Counter(Path(counter)), Path(counter)

    def compress(
        self,
        contexts: str | Sequence[str],
        *,
        method: str | None = None,
        rate: float | None = None,
        target_token: float | None = None,
        instruction: str = "",
        question: str = "",
        force_tokens: Sequence[str] = (),
        force_digits: bool = False,
        drop_consecutive: bool = False,
        calibrate: bool = True,
        must_keep: Sequence[str] = (),
        keep_patterns: Sequence[str] = (),
        **options: Any,
    ) -> Compression:
        """Shorten `contexts` to `rate` of their tokens (0 < rate <= 1), or to `target_token` tokens, instruction and question included.

        With `calibrate` the rate is met by search, numbers stay whole, `must_keep` (kinds of studio.compress.checks.KINDS),
        `keep_patterns` and force_tokens stay, and the result is never longer than the original. Without, it is llmlingua's own
        result, bit for bit, its own default where neither rate nor target is given. `options` are llmlingua's, by its names.
        Raises StudioError for what can't be done.
        """
        started = time.monotonic()
        if target_token == -1:  # the library's word for none
            target_token = None
        usual = {True: "llmlingua2", False: "llmlingua"}[self.backend.use_llmlingua2]
        chosen = methods.method(method or usual)
        asked = Request(
            contexts=[contexts] if isinstance(contexts, str) else list(contexts),
            method=chosen,
            rate=rate,
            target_token=target_token,
            instruction=instruction,
            question=question,
            force_tokens=list(force_tokens),
            force_digits=force_digits or bool(options.pop("force_reserve_digit", False)),
            drop_consecutive=drop_consecutive,
            must_keep=MustKeep([*must_keep, *["numbers"][: int(force_digits)]], force_tokens, keep_patterns),
            options=options,
            calibrate=calibrate,
        )
        asked.check(self.backend)
        run = self._calibrated if calibrate else self._plain
        done = run(asked)
        seconds = round(time.monotonic() - started, 3)
        return done.model_copy(update={"compressor": self.name, "counter": str(self.counter), "seconds": seconds})

    # the library as it is

    def _plain(self, asked: Request) -> Compression:
        arguments = {"context": asked.contexts, **asked.method.sets, **asked.options}
        given = {name: getattr(asked, name) for name in ("rate", "target_token", "instruction", "question")}
        arguments |= {name: value for name, value in given.items() if value not in (None, "")}
        if asked.method.kind == models.CLASSIFIER:
            forced = {
                "force_tokens": asked.force_tokens,
                "force_reserve_digit": asked.force_digits,
                "drop_consecutive": asked.drop_consecutive,
            }
            arguments |= {name: value for name, value in forced.items() if value}
        out, trace = self.backend.run(asked.method.call, arguments, as_published=True)
        before, after = int(out["origin_tokens"]), int(out["compressed_tokens"])
        masks = trace.masks(asked.contexts) if asked.method.call == "compress_prompt" else None
        warnings = []
        if masks is None:
            warnings.append("Which words were kept can't be told for this call of the library.")
        kept = [pair for text, mask in zip(asked.contexts, masks or [], strict=False) for pair in spans.words(text, mask)]
        done = self._result(asked, out["compressed_prompt"], before, after, kept, warnings)
        return done.model_copy(update={"fn_labeled_original_prompt": out.get("fn_labeled_original_prompt")})

    # the rate that was asked for

    def _calibrated(self, asked: Request) -> Compression:
        if asked.method.kind == models.CAUSAL and sum(map(len, asked.contexts)) > MOST_CAUSAL:
            fix = "Use llmlingua2, or compress it in parts."
            raise StudioError(f"{asked.method.name} takes at most {MOST_CAUSAL:,} characters.", fix)
        job = Calibration(self.backend, self.information, self.importance, asked)
        before = self._count(job.original)
        wanted = float(asked.target_token or 0)
        if asked.rate is not None:
            wanted = before * asked.rate
        masks, inner, notes = [spans.full(text) for text in job.contexts], None, []
        text, after = job.original, before
        if asked.target_token is not None and wanted >= before:
            notes = [f"The prompt has {before:,} tokens already, no more than the {wanted:,.0f} allowed."]
        elif asked.rate != 1:
            text, masks, inner = job.meet(round(wanted), before)
            after = self._count(text)
            notes = job.warnings(text, after, before, wanted)
        keeps_nothing = not any(any(mask) for mask in masks)
        if (after >= before or keeps_nothing) and text != job.original:
            text, after, masks = job.original, before, [spans.full(context) for context in job.contexts]
            notes = [*job.warnings(text, after, before, wanted), "Nothing could be saved, so the original is returned."]
        done = self._result(asked, text, before, after, job.words(masks), notes)
        lost = checks.lost(job.original, text, tuple(checks.KINDS))
        share = job.achieved_compressible(after, before)
        found = {"original": job.original, "lost": lost, "inner_rate": inner, "achieved_compressible": share}
        return done.model_copy(update=found)

    def _result(self, asked: Request, text: str, before: int, after: int, kept: list[tuple[str, bool]], warnings: list[str]) -> Compression:
        if asked.target_token is not None:
            requested = min(1.0, float(asked.target_token) / max(1, before))
        else:
            requested = asked.rate or methods.LIBRARY_RATE
        return Compression(
            text=text,
            tokens_before=before,
            tokens_after=after,
            requested=round(requested, 4),
            achieved=spans.share(after, before),
            counter=str(self.counter),
            method=asked.method.name,
            seconds=0.0,
            warnings=warnings,
            kept=kept,
            original=asked.original(),
        )

    def _count(self, text: str) -> int:
        return self.backend.oai_tokenizer.count(text)
