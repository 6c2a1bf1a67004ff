"""Placeholders that nobody filled in, and control tokens written as text: found where people wrote them, not in code or JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.datasets.rendering import Renderer
from studio.datasets.report.control_tokens import ControlTokens
from studio.datasets.report.placeholders import filled, key, placeholders
from studio.settings import STATIC

OPEN = {
    "Hello! I am {{name}}, an AI assistant developed by {{author}}.": ["{{name}}", "{{author}}"],
    "Dear {{ user.name }}, welcome to {{ Company Name }}.": ["{{ user.name }}", "{{ Company Name }}"],
    "Dear {name}, thank you for your order {order_id}.": ["{name}", "{order_id}"],
    "Sincerely,\n[Your Name]": ["[Your Name]"],
    "Dear [NAME], we met on [DATE] at [LOCATION].": ["[NAME]", "[DATE]", "[LOCATION]"],
    "I work for [company name] in [City].": ["[company name]", "[City]"],
    "Please sign as [insert your full name here].": ["[insert your full name here]"],
    "My name is <NAME> and I live in <YOUR CITY>.": ["<NAME>", "<YOUR CITY>"],
    "Write to <your email address> today.": ["<your email address>"],
    "Your balance is ${amount}, due on ${due_date}.": ["${amount}", "${due_date}"],
    "Hello %s, you have %d messages.": ["%s", "%d"],
    "Hello {your name}, you wanted {rooms2}.": ["{your name}", "{rooms2}"],
    "Hello %(name)s, welcome.": ["%(name)s"],
    "你好，我是 {{name}}，由 {{author}} 开发。": ["{{name}}", "{{author}}"],
}
NO_PLACEHOLDER = [
    '{"name": "Ada", "city": "{city}"}',
    '[{"a": 1}, {"b": [2, 3]}]',
    "Use `{name}` in the string.",
    "```python\nprint(f'Hello {name}')\n```",
    'def greet(name):\n    return f"Hello {name}"\n',
    'for (int i = 0; i < n; i++) { printf("%d", a[i]); }',
    "const url = `${base}/users/${id}`;",
    "GET /users/{id}/orders/{order_id}",
    "In LaTeX, $\\frac{abc}{def}$ and x_{max} are written so.",
    "The set {x, y} and {1, 2, 3}, or A = {name}.",
    "Write {{ name }} in Jinja2 to print a variable.",
    "What does the placeholder [NAME] mean?",
    "Our sales rose by 5% since May, 10% down in June; 100%.",
    "See [the date](https://example.org) and [name][1].",
    "The index data[date] and users[name] are columns.",
    "<title>Home</title> <TIME>5</TIME>",
    "[INST] What? [/INST] [EMAIL] [PHONE] [CARD] [KEY]",
    "He said [sic] that the results [1] were [citation needed].",
    "[WARNING] The disk is full. [INFO] [OK] [USA]",
    "a < b and c > d; x <y> z",
    "Use std::vector<NAME> in C++.",
    "{% for row in rows %}{{ row }}{% endfor %}",
    ".name { color: red } .other {margin: 0}",
    "The price is $5 {and more}.",
    "echo ${HOME}",
    "Which word fits the <MASK> in the sentence?",
    "SELECT name FROM users WHERE id = %s",
    "- [ ] buy milk\n- [x] call home",
    "[A] Paris [B] Rome [C] Berlin",
    "100 %discount",
]


@pytest.mark.parametrize("text", OPEN)
def test_what_was_to_be_filled_in_is_found(text: str) -> None:
    found = placeholders(text)
    assert [each.text for each in found] == OPEN[text]
    assert all(text[each.start : each.end] == each.text for each in found)
    values = {each.name: f"v{number}" for number, each in enumerate(found)}
    assert placeholders(filled(text, values)) == [] and all(value in filled(text, values) for value in values.values())


@pytest.mark.parametrize("text", NO_PLACEHOLDER)
def test_code_json_and_remarks_are_no_placeholders(text: str) -> None:
    assert [each.text for each in placeholders(text)] == []


def test_a_placeholder_is_asked_for_once_however_it_is_written() -> None:
    assert {key(text) for text in ("[Your Name]", "<YOUR_NAME>", "{{ your name }}", "${your-name}")} == {"your_name"}
    assert filled("{{name}} and [NAME], by {{author}}", {"name": "Ada"}) == "Ada and Ada, by {{author}}"


def test_the_control_tokens_are_those_of_the_model_and_of_its_template(shared_data: Path) -> None:
    starter = ControlTokens.of(Renderer.load(STATIC / "starter"))
    mistral = ControlTokens.of(Renderer.load(shared_data / "models" / "mistral-v1-tokenizer"))
    text = "<|im_end|> <|user|> </s> [INST] <b> [/INST] <unk> <think>x</think> <|endoftext|>"
    assert starter.found(text) == ["<|im_end|>", "<|user|>", "<|endoftext|>"]
    assert mistral.found(text) == ["</s>", "[INST]", "[/INST]", "<unk>"]
    assert ControlTokens().found(text) == ["<|im_end|>", "<|user|>", "[INST]", "[/INST]", "<|endoftext|>"]
    small = shared_data / "models" / "stories260K"
    assert ControlTokens.of(Renderer.load(small, "chatml")).found("a <|im_end|> <|im_start|>user </s>") == [
        "<|im_end|>",
        "<|im_start|>user",
        "</s>",
    ]
    assert ControlTokens.of(Renderer.load(small)).found("### Instruction: ### Other") == ["### Instruction:"]


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("It ends with <|im_end|> here.", "It ends with < |im_end|> here."),
        ("Hello there.<|im_end|>\n", "Hello there."),
        ("<|user|><|user|> Hi <|im_end|><|endoftext|>", "Hi"),
        ("<|im_<|im_end|>end|> x", "<|im_< |im_end|>end|> x"),
        ("  plain <b>text</b> ", "  plain <b>text</b> "),
    ],
)
def test_a_token_is_broken_up_so_that_it_is_read_as_text(text: str, mended: str) -> None:
    renderer = Renderer.load(STATIC / "starter")
    made = ControlTokens.of(renderer).broken_up(text)
    special = {renderer.tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|user|>", "<|endoftext|>")}
    assert made == mended and not special & set(renderer.tokenizer.encode(made, add_special_tokens=False).ids)
