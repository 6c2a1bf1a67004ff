"""Programs that people use with /v1, each in an environment of its own, against a real studio: `python -m tests.clients.real FOLDER [NAME…]`.

FOLDER holds the environments, which are made where they are not there yet. Prints a line per client; exit 1 where one fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.settings import STATIC
from tests.engines import KEY, engine
from tests.servers import web

SCRIPTS = Path(__file__).with_name("scripts")
STARTER = STATIC / "starter"
CLOSE = 1e-3  # of a sum of log-probabilities


@dataclass(frozen=True)
class RealClient:
    """`packages`: of PyPI, or of npm for a script of node. `check`: what its last line must say."""

    script: str
    packages: tuple[str, ...]
    check: Callable[[str], str] = lambda line: ""


def lm_eval_figures(line: str) -> str:
    """Log-probabilities as lm-eval has counted them, beside what transformers computes."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(STARTER)
    model = transformers.AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    worst = 0.0
    told = json.loads(line)
    for question, choice, found, is_greedy in told:
        ids = tokenizer(question + choice, return_tensors="pt").input_ids
        begun = len(tokenizer(question).input_ids)
        with torch.no_grad():
            values = torch.log_softmax(model(ids).logits[0].float(), -1)[begun - 1 : -1]
        own = values.gather(1, ids[0, begun:, None])[:, 0]
        worst = max(worst, abs(float(own.sum()) - found))
        if is_greedy != bool((values.argmax(-1) == ids[0, begun:]).all()):
            raise AssertionError(f"{question!r} {choice!r}: lm-eval says greedy {is_greedy}, transformers does not")
    if worst > CLOSE:
        raise AssertionError(f"log-probabilities differ from transformers' by {worst}")
    return f", {len(told)} log-likelihoods within {worst:.0e} of transformers'"


CLIENTS = {
    "openai": RealClient("openai_python.py", ("openai>=3,<4",)),
    "litellm": RealClient("litellm_python.py", ("litellm>=1.110,<2",)),
    "langchain-openai": RealClient("langchain_python.py", ("langchain-openai>=1.7,<2",)),
    "llama-index": RealClient("llama_index_python.py", ("llama-index-llms-openai-like>=0.8,<0.9",)),
    "instructor": RealClient("instructor_python.py", ("instructor>=1.17,<2",)),
    "lm-eval": RealClient("lm_eval_python.py", ("lm_eval[api]>=0.4.13,<0.5", "transformers>=5"), lm_eval_figures),
    "node": RealClient("node.mjs", ("openai@6", "ai@5", "@ai-sdk/openai@2", "@ai-sdk/openai-compatible@1", "zod@3")),
}


def prepare(client: RealClient, folder: Path) -> list[str]:
    """Make its environment unless it is there; the command that runs its script."""
    ready = folder / ".ready"
    wanted = "\n".join(client.packages)
    if client.script.endswith(".mjs"):
        if not ready.is_file() or ready.read_text() != wanted:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text('{"private": true}')
            subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *client.packages], cwd=folder, check=True)
            ready.write_text(wanted)
        script = shutil.copy(SCRIPTS / client.script, folder)  # node looks for packages beside the script
        return ["node", str(script)]
    python = folder / "bin" / "python"
    if not ready.is_file() or ready.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *client.packages], check=True)
        ready.write_text(wanted)
    return [str(python), str(SCRIPTS / client.script)]


@contextlib.contextmanager
def studio(folder: Path) -> Iterator[str]:
    """A web process beside an engine; the address of its /v1."""
    with engine(folder / "engine") as running, web(folder / "home", STUDIO_ENGINE_URL=running.url, STUDIO_ENGINE_KEY=KEY) as server:
        yield f"{server.url}/v1"


def tried(client: RealClient, command: Sequence[str], url: str) -> tuple[bool, str]:
    """Whether it holds, and what is to be said of it."""
    surroundings = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with tempfile.TemporaryDirectory() as scratch:
        surroundings |= {"TOKENIZER": str(STARTER), "HF_HOME": f"{scratch}/hf", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        asked = [*command, url, "starter", scratch]
        done = subprocess.run(asked, env=surroundings, cwd=scratch, capture_output=True, text=True, timeout=300)
    if done.returncode:
        return False, "fails\n" + "\n".join((done.stdout + done.stderr).splitlines()[-25:])
    try:
        return True, f"works{client.check((done.stdout.strip().splitlines() or [''])[-1])}"
    except AssertionError as exc:
        return False, f"fails: {exc}"


def main(folder: Path, wanted: Sequence[str]) -> int:
    chosen = {name: client for name, client in CLIENTS.items() if name in (wanted or CLIENTS)}
    commands = {}
    for name, client in chosen.items():
        if client.script.endswith(".mjs") and not (shutil.which("node") and shutil.which("npm")):
            print(f"{name}: left out, there is no node on this machine", flush=True)
        else:
            commands[name] = prepare(client, folder / name)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch, studio(Path(scratch)) as url:
        for name, command in commands.items():
            holds, said = tried(chosen[name], command, url)
            failed += not holds
            print(f"{name}: {said}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
