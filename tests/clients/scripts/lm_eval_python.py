"""lm-eval: one task that generates and one of log-likelihoods, over rows of our own; the figures go to the last line as JSON."""

import json
import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import lm_eval
from common import MODEL, SCRATCH, URL
from lm_eval.tasks import TaskManager

ROWS = [
    {"question": "Once upon a time, there was a", "answer": " little girl", "choices": [" little girl", " purple dragon"], "gold": 0},
    {"question": "She loved to", "answer": " play", "choices": [" sing loudly", " play outside"], "gold": 1},
    {"question": "The dog was very", "answer": " happy", "choices": [" happy", " orange"], "gold": 0},
]
COMMON = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: question
target_delimiter: ""
{more}
"""
MORE = {
    "generate_until": "doc_to_target: answer\ngeneration_kwargs: {until: ['.'], max_gen_toks: 6, do_sample: false}\nmetric_list: [{metric: exact_match}]",
    "multiple_choice": "doc_to_target: gold\ndoc_to_choice: choices\nmetric_list: [{metric: acc}]",
}
folder = Path(SCRATCH, "tasks")
folder.mkdir()
rows = folder / "rows.jsonl"
rows.write_text("\n".join(map(json.dumps, ROWS)))
for kind, more in MORE.items():
    (folder / f"{kind}.yaml").write_text(COMMON.format(name=f"own_{kind}", rows=rows, kind=kind, more=more))
tokenizer = os.environ["TOKENIZER"]
found = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": MODEL,
        "base_url": f"{URL}/completions",
        "tokenizer": tokenizer,
        "tokenizer_backend": "huggingface",
        "num_concurrent": 1,
    },
    tasks=[f"own_{kind}" for kind in MORE],
    task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    log_samples=True,
    bootstrap_iters=0,
)
samples = found["samples"]["own_multiple_choice"]
assert len(found["samples"]["own_generate_until"]) == 3
print(
    json.dumps(
        [
            [row["question"], choice, *response[0]]
            for sample, row in zip(samples, ROWS, strict=True)
            for choice, response in zip(row["choices"], sample["resps"], strict=True)
        ]
    )
)
