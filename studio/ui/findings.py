"""A report in words: findings with their buttons, what was checked, lengths and languages as drawings."""

from __future__ import annotations

from typing import Any

from studio.datasets.report.placeholders import key
from studio.records import Dataset, DatasetReport, Finding, FixAction
from studio.ui import histogram, pieces, words
from studio.ui.checks import Options, PendingReport

LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fi": "Finnish",
    "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sv": "Swedish", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
SHOWN_NUMBERS = 24  # of a finding's rows
BUTTONS = {
    FixAction.DROP: "Drop {count}",
    FixAction.DEDUPLICATE: "Keep one of each",
    FixAction.MOVE: "Leave out {count}",
    FixAction.MASK: "Mask in {count}",
    FixAction.CLEAN: "Clean {count}",
    FixAction.BREAK_UP: "Break up in {count}",
    FixAction.FILL: "Drop {count}",
    FixAction.IMITATE: "Imitate the good",
}


def card(dataset: Dataset, report: DatasetReport | None, check: PendingReport | None, options: Options) -> str:
    """What is wrong with the rows; or how far the check is, or why it failed."""
    running, error = None, check and check.error
    if check is not None and error is None:
        running = {"step": check.step, "part": check.part, "seconds": check.seconds}
    findings, looked_at = [], ""
    if report is not None:
        findings = [_finding(finding, report.rows) for finding in report.findings]
        looked_at = told(report, options)
    return pieces.piece(
        "findings",
        total=dataset.rows,
        check=running,
        error=error,
        report=report,
        findings=findings,
        fixable=len(findings),
        told=looked_at,
    )


def fixable(report: DatasetReport) -> list[str]:
    return [finding.check for finding in report.findings]


def statistics(report: DatasetReport | None, options: Options) -> str:
    if report is None:
        return pieces.piece("statistics", report=None)
    drawn = [
        histogram.lengths(figures, figures.unit, f"Length of the {what} in {figures.unit}")
        for figures, what in ((report.lengths, "rows"), (report.answers, "answers"))
    ]
    languages = histogram.shares([(LANGUAGES.get(row.language, row.language), row.share) for row in report.languages])
    return pieces.piece(
        "statistics", report=report, drawings=[drawing for drawing in drawn if drawing], languages=languages, told=told(report, options)
    )


def told(report: DatasetReport, options: Options) -> str:
    """What the report looked at, in one line."""
    parts = [f"{words.count(report.rows, 'row')} checked in {words.duration(report.seconds)}"]
    if options["base_model"]:
        length = "up to the length that a training takes"
        if options["max_length"]:
            length = f"up to {options['max_length']:,} tokens a row"
        parts.append(f"for {options['base_model']}, {length}")
    parts += [f"{check.replace('_', ' ')} in a sample of {rows:,}" for check, rows in (report.sampled or {}).items()]
    return "; ".join(parts) + "."


def _finding(finding: Finding, total: int) -> dict[str, Any]:
    return {
        **dict(finding),
        "rows": finding.rows[:SHOWN_NUMBERS],
        "more": max(0, finding.count - SHOWN_NUMBERS),
        "share": finding.count / max(1, total),
        "button": BUTTONS[finding.action].format(count=words.count(finding.count, "row")),
        "found": [{"name": name, "rows": rows} for name, rows in finding.names.items()],
        "blanks": _blanks(finding),
    }


def _blanks(finding: Finding) -> list[dict[str, str]]:
    """Of placeholders: what each asks for, and how it is written; once, however often it is written otherwise."""
    if finding.action != FixAction.FILL:
        return []
    written = {key(name): name for name in reversed(finding.names)}
    return [{"key": asked, "name": name} for asked, name in reversed(written.items())]
