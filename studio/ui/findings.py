"""A report in words: findings with their buttons, what was checked, lengths and languages as drawings. Knows nothing of services."""

from __future__ import annotations

from typing import Any

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
    "drop": "Drop {count}",
    "deduplicate": "Keep one of each",
    "move": "Leave out {count}",
    "mask": "Mask in {count}",
    "clean": "Clean {count}",
}


def card(dataset: dict[str, Any], report: dict[str, Any] | None, check: PendingReport | None, options: Options) -> str:
    """What is wrong with the rows; or how far the check is, or why it failed."""
    running = None
    if check is not None and check.error is None:
        running = {"step": check.step, "part": check.part, "seconds": check.seconds}
    findings = [_finding(finding, report["rows"]) for finding in report["findings"]] if report else []
    return pieces.piece(
        "findings",
        total=dataset["rows"],
        check=running,
        error=check.error if check else None,
        report=report,
        findings=findings,
        fixable=sum(bool(finding["action"]) for finding in findings),
        told=told(report, options) if report else "",
    )


def fixable(report: dict[str, Any]) -> list[str]:
    return [finding["check"] for finding in report["findings"] if finding["action"]]


def statistics(report: dict[str, Any] | None, options: Options) -> str:
    if report is None:
        return pieces.piece("statistics", report=None)
    drawn = [
        histogram.lengths(report[key], report[key]["unit"], f"Length of the {label} in {report[key]['unit']}")
        for key, label in (("lengths", "rows"), ("answers", "answers"))
        if report.get(key) and report[key].get("histogram")
    ]
    languages = histogram.shares([(LANGUAGES.get(row["language"], row["language"]), row["share"]) for row in report["languages"]])
    return pieces.piece(
        "statistics", report=report, drawings=[drawing for drawing in drawn if drawing], languages=languages, told=told(report, options)
    )


def told(report: dict[str, Any], options: Options) -> str:
    """What the report looked at, in one line."""
    parts = [f"{words.count(report['rows'], 'row')} checked in {words.duration(report['seconds'])}"]
    if options["base_model"]:
        parts.append(f"for {options['base_model']}, up to {options['max_length']:,} tokens a row")
    sampled = report.get("sampled") or {}
    parts += [f"{check.replace('_', ' ')} in a sample of {rows:,}" for check, rows in sampled.items() if isinstance(rows, int)]
    return "; ".join(parts) + "."


def _finding(finding: dict[str, Any], total: int) -> dict[str, Any]:
    count = words.count(finding["count"], "row")
    return {
        **finding,
        "rows": finding["rows"][:SHOWN_NUMBERS],
        "more": max(0, finding["count"] - SHOWN_NUMBERS),
        "share": finding["count"] / max(1, total),
        "button": BUTTONS.get(finding["action"] or "", "Fix {count}").format(count=count),
    }
