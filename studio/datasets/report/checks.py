"""What the report looks for: each check's name, how it is said to a person, and what would mend it. Knows no rows."""

from __future__ import annotations

from dataclasses import dataclass

from studio.records import FixAction, Severity

CHANGES = frozenset({FixAction.MASK, FixAction.CLEAN, FixAction.BREAK_UP})  # texts; other fixes take rows out or turn them


@dataclass(frozen=True)
class Check:
    """`action` is what `fix` does to the rows: take them out, or change them."""

    name: str
    title: str
    explanation: str
    fix: str
    action: FixAction
    severity: Severity

    @property
    def changes_rows(self) -> bool:
        return self.action in CHANGES


CHECKS = (
    Check(
        "exact_duplicates",
        "The same row again",
        "Rows that are the same as an earlier one, letter by letter. Training sees them as often as they stand there.",
        "Keep the first of each.",
        FixAction.DEDUPLICATE,
        Severity.BAD,
    ),
    Check(
        "near_duplicates",
        "Almost the same row again",
        "Without case and punctuation, at least 80 % of their five-letter pieces are those of an earlier row (also without the phrases "
        "that a tenth of all rows share: 80 %, or 70 % where 90 % of all are), half of the answer's are, and their numbers are the same.",
        "Keep the first of each.",
        FixAction.DEDUPLICATE,
        Severity.CHECK,
    ),
    Check(
        "leakage",
        "Rows that are in the other dataset too",
        "The other side of the split, or a dataset you compare with, has the same row, almost the same, or the same question: what is "
        "trained on it can't be measured on it.",
        "Leave them to the other dataset.",
        FixAction.MOVE,
        Severity.BAD,
    ),
    Check(
        "identical_pairs",
        "Two answers that are the same",
        "The chosen and the rejected answer are equal but for white space at their ends: there is nothing to prefer.",
        "Drop these rows.",
        FixAction.DROP,
        Severity.BAD,
    ),
    Check(
        "single_class",
        "Only one kind of label",
        "Every answer is marked the same way. A training on marked answers compares good ones with bad ones, and has nothing to compare.",
        "Turn the answers marked good into rows to imitate. Where all are marked bad, merge with rows that are marked good.",
        FixAction.IMITATE,
        Severity.BAD,
    ),
    Check(
        "control_tokens",
        "Control tokens written as text",
        "What the tokenizer or the chat template reads as a mark of its own, such as the end of a turn, stands in a message. The model "
        "reads the mark, in training as in a chat, and learns to write it in the middle of an answer.",
        "Remove it at either end of a text, and break it up with a space inside of one, so that it is read as text.",
        FixAction.BREAK_UP,
        Severity.BAD,
    ),
    Check(
        "placeholders",
        "Placeholders that nobody filled in",
        "Places such as {{name}}, [YOUR NAME] or ${city} that were to be filled in. The model learns to write them as they are.",
        "Fill in a value for each (`data fix … --fill NAME=VALUE`); without values these rows are dropped.",
        FixAction.FILL,
        Severity.CHECK,
    ),
    Check(
        "empty_answers",
        "Empty answers",
        "There is nothing to learn from them but to say nothing.",
        "Drop these rows.",
        FixAction.DROP,
        Severity.BAD,
    ),
    Check(
        "one_token_answers",
        "Answers of one word",
        "A single word or sign where most rows answer at length, and neither a label nor a choice that the question offers.",
        "Drop these rows, or edit their answers.",
        FixAction.DROP,
        Severity.CHECK,
    ),
    Check(
        "refusals",
        "Refusals and boilerplate",
        'Answers that refuse ("I\'m sorry, but I can\'t …") or say "as an AI language model". A model learns to refuse from few of them.',
        "Drop these rows, unless refusing is what you teach.",
        FixAction.DROP,
        Severity.CHECK,
    ),
    Check(
        "role_order",
        "Messages out of order",
        "A conversation has at most one system message, first, then user and assistant by turns, and ends with the assistant.",
        "Drop these rows, or edit them.",
        FixAction.DROP,
        Severity.BAD,
    ),
    Check(
        "truncation",
        "Answers that are cut off",
        "Longer than max_length, so that tokens to be learned are cut off at the end.",
        "Raise max_length, or drop these rows.",
        FixAction.DROP,
        Severity.BAD,
    ),
    Check(
        "no_learned_tokens",
        "Nothing to learn",
        "No token of the row is learned: its answer begins behind max_length or is marked not to be trained, or the chat template refuses "
        "the row or leaves the answer out.",
        "Raise max_length or choose another chat template, or drop these rows.",
        FixAction.DROP,
        Severity.BAD,
    ),
    Check(
        "left_out",
        "Left out by the chat template",
        "The chat template does not write a system message or reasoning of these rows: they are trained without it.",
        "Set system_message=fold, learned_turns=last or another chat_template, or drop these rows.",
        FixAction.DROP,
        Severity.BAD,
    ),
    Check(
        "empty_reasoning",
        "Empty reasoning that is learned",
        "The chat template writes an empty block of reasoning before the answer, and learning it teaches the model not to think.",
        "Set reasoning=context, which writes the block without teaching it, or drop these rows.",
        FixAction.DROP,
        Severity.CHECK,
    ),
    Check(
        "language_mix",
        "Another language",
        "Rows that are surely in another language than most of the dataset.",
        "Drop these rows, unless the mix is meant.",
        FixAction.DROP,
        Severity.CHECK,
    ),
    Check(
        "very_long",
        "Very long rows",
        "At least 6,000 characters, and more than ten times as long as the middle row.",
        "Drop these rows, or split them by hand.",
        FixAction.DROP,
        Severity.CHECK,
    ),
    Check(
        "repeated_text",
        "Text that repeats itself",
        "Half of what an answer says (three quarters of a question), it has said before in the same words; or one letter stands twenty "
        "times in a row.",
        "Drop these rows.",
        FixAction.DROP,
        Severity.BAD,
    ),
    Check(
        "pii",
        "Personal data and keys",
        "E-mail addresses, phone numbers, card numbers with a right checksum, API keys and tokens. A model can repeat them word by word.",
        "Put [EMAIL], [PHONE], [CARD] or [KEY] in their place.",
        FixAction.MASK,
        Severity.BAD,
    ),
    Check(
        "control_characters",
        "Control characters",
        "Invisible characters that no text needs, such as NUL, escape sequences of a terminal or marks that reverse the reading order.",
        "Remove the characters.",
        FixAction.CLEAN,
        Severity.CHECK,
    ),
    Check(
        "replacement_characters",
        "Broken characters",
        "The sign � stands where a letter was lost when the file was read in a wrong encoding.",
        "Drop these rows, or export the file again as UTF-8.",
        FixAction.DROP,
        Severity.BAD,
    ),
)

BY_NAME = {check.name: check for check in CHECKS}
