"""A chat template that puts system messages before the question that follows, for templates that know no system message.

The change is made in the template's own text: it goes with the adapter, and every program that renders the template folds likewise.
"""

from __future__ import annotations

FOLD = (
    "{%- set folded = namespace(messages=[], system='') %}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}"
    "{%- set folded.system = folded.system ~ message['content'] ~ '\\n\\n' %}"
    "{%- elif message['role'] == 'user' and folded.system %}"
    "{%- set folded.messages = folded.messages + [{'role': 'user', 'content': folded.system ~ message['content']}] %}"
    "{%- set folded.system = '' %}"
    "{%- else %}"
    "{%- set folded.messages = folded.messages + [message] %}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if folded.system %}"
    "{%- set folded.messages = folded.messages + [{'role': 'user', 'content': folded.system[:-2]}] %}"
    "{%- endif %}"
    "{%- set messages = folded.messages %}\n"  # the line break is dropped: what follows begins a line, as it did
)


def folding(template: str) -> str:
    """The template with FOLD before it, once."""
    if template.startswith(FOLD):
        return template
    return FOLD + template
