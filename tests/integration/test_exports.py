"""Exports from an adapter that was trained on a 4-bit base: each format passes its proof, a wrong merge fails it, nothing stays half."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors import safe_open

from jobs.exporters.config import CALIBRATION, CALIBRATION_ROWS, ExportConfig, check_space, expected_bytes, unfinished
from jobs.rundir import RunDir
from studio.catalogue import gguf
from studio.commands.exports import _text
from studio.db.models import AdapterRow, JobRow
from studio.errors import ModelError, NotFoundError, StudioError
from studio.records import Adapter, ExportFormat, ExportProof, JobStatus, Outtype
from studio.services import Studio
from studio.services.exports import ExportService
from studio.settings import STATIC, Settings
from studio.ui import exports
from tests import servers
from tests.export_runs import TRAINED, exported
from tests.upload_server import UploadHub

FORMATS: list[dict[str, Any]] = [
    {"format": "adapter"},
    {"format": "merged"},
    {"format": "gguf"},
    {"format": "gguf", "outtype": "q8_0"},
    {"format": "gguf-lora"},
]
PACKED = [{"format": "merged", "packed": False}, {"format": "merged", "packed": True}]
WRONG = [{"format": "merged", "doubled": 0}, {"format": "gguf", "doubled": 20}, {"format": "merged", "doubled": 14}]


@pytest.fixture(scope="module")
def made(stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An NF4-trained adapter in every form, and wrong ones."""
    case = {"name": "stories", "model": str(stories260k), "options": TRAINED, "exports": [*FORMATS, *WRONG]}
    return exported(tmp_path_factory.mktemp("exports"), [case])


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The starter: another kind of tokenizer, and a template with generation tags."""
    starter = {
        "name": "starter",
        "model": str(STATIC / "starter"),
        "options": TRAINED | {"learning_rate": 3e-3},
        "exports": [*FORMATS[1:], *PACKED],
    }
    return exported(tmp_path_factory.mktemp("others"), [starter])


@pytest.fixture
def studio(settings: Settings, stories260k: Path) -> Studio:
    opened = Studio.open(settings, at_terminal=True)
    opened.models.add(stories260k, "stories")
    return opened


def imported(studio: Studio, made: dict[str, Any], name: str = "greeter") -> Adapter:
    """The trained adapter as one of this studio's."""
    return studio.adapters.add(made["folder"] / "stories" / "adapter", name, base_model="stories")


@pytest.mark.parametrize("number", range(len(FORMATS)), ids=lambda n: "-".join(FORMATS[n].values()))
def test_every_format_of_a_qlora_adapter_passes_its_proof(made: dict[str, Any], number: int) -> None:
    """Wrong rotary order, scores, scaling, template or a quantised base would each show as other logits or ids."""
    found = made["stories"][number]
    verified = found["verified"]
    assert verified["passed"], verified
    assert verified["effect"] > 1 and verified["max_logit_diff"] < 0.05 * verified["effect"] and verified["worst_share"] < 0.05
    assert verified["prompts"] == 6 and verified["clear_tokens"] > 10 and verified["same_template_ids"]
    if importlib.util.find_spec("llama_cpp") and found["format"].startswith("gguf"):
        assert verified["readers"]["llama.cpp"]["passed"], verified
    assert found["bytes"] == sum(file.stat().st_size for file in Path(found["path"]).iterdir())


@pytest.mark.long
def test_the_starter_with_its_own_template_passes_too(others: dict[str, Any]) -> None:
    assert [found["verified"]["passed"] for found in others["starter"][:4]] == [True] * 4
    modelfile = (Path(others["starter"][1]["path"]) / "Modelfile").read_text(encoding="utf-8")
    assert "<|user|>{{ .Prompt }}<|im_end|><|assistant|>" in modelfile and 'PARAMETER stop "<|im_end|>"' in modelfile


def test_a_merge_with_one_scale_doubled_fails(made: dict[str, Any]) -> None:
    for found in made["stories"][len(FORMATS) :]:
        assert not found["verified"]["passed"] and found["verified"]["reason"], found["verified"]


@pytest.mark.long
def test_a_merge_into_a_4_bit_base_that_has_answered_fails(others: dict[str, Any]) -> None:
    """Where a processor has avx512_bf16, bitsandbytes repacks 4-bit weights in place as soon as they answer: they merge into garbage."""
    fresh, packed = (found["verified"] for found in others["starter"][4:])
    assert not fresh["passed"] and not packed["passed"], (fresh, packed)  # a quantised base is none to merge into in any case
    if has_packing():
        assert packed["worst_share"] > 2 * fresh["worst_share"], (fresh["worst_share"], packed["worst_share"])


def has_packing() -> bool:
    command = [sys.executable, "-c", "import torch; print(torch.cpu._is_avx512_bf16_supported())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "True"


def test_a_merged_model_is_in_16_bit_and_names_no_path(made: dict[str, Any], stories260k: Path) -> None:
    folder = Path(made["stories"][1]["path"])
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {str(file.get_slice(name).get_dtype()) for name in file.keys()} == {"F16"}  # noqa: SIM118 - no mapping
    for file_ in folder.glob("*.json"):
        assert str(stories260k.parent) not in file_.read_text(encoding="utf-8"), file_.name
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nbase_model: stories-base\n") and "Passed: on 6 prompts" in card and "- r: 8" in card


@pytest.mark.long
def test_the_template_in_a_gguf_has_no_generation_tags(others: dict[str, Any]) -> None:
    content = (Path(others["starter"][1]["path"]) / "starter-f16.gguf").read_bytes()
    assert b"generation -%}" not in content and b"<|assistant|>" in content and b"if true" in content


@pytest.mark.long
def test_from_the_command_line_to_the_hub_and_over_http(studio: Studio, made: dict[str, Any], tmp_path: Path) -> None:
    """The whole path: queue, worker, child, proof in the row and in the JSON, upload, download."""
    imported(studio, made)
    with UploadHub("good") as hub:
        environment = servers.clean_environment(studio.settings.home, HF_ENDPOINT=hub.url, HF_TOKEN="good")
        environment.pop("HF_HUB_OFFLINE")
        command = [
            sys.executable,
            "-m",
            "studio",
            "export",
            "greeter",
            "--format",
            "gguf",
            "--verify",
            "3",
            "--push",
            "me/greeter",
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["verified"]["passed"] and told["verified"]["prompts"] == 3 and told["bytes"] > 500_000
    assert hub.created["me/greeter"]["visibility"] == "private"
    assert set(hub.files["me/greeter"]) == {"README.md", "Modelfile", "greeter-f16.gguf", "proof.json", "manifest.json"}
    (row,) = studio.exports.list()
    assert row.model_dump(mode="json")["verified"] == told["verified"] and "Proof passed" in studio.jobs.logs(row.id)
    with servers.web(studio.settings.home) as server, httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
        (listed,) = client.get("/api/exports").json()
        fetched = client.get(f"/api/exports/{listed['id']}/files/greeter-f16.gguf")
        assert fetched.content == (Path(told["path"]) / "greeter-f16.gguf").read_bytes()
        assert client.get(f"/api/exports/{listed['id']}/files/nothing").status_code == 404
        assert client.post("/api/exports", json={"adapter": "greeter", "format": "gguf", "to": "/tmp/x"}).status_code == 422
        summed = client.post("/api/adapters/merge", json={"weights": {"greeter": 0.5}, "name": "half"})
        assert summed.status_code == 201 and summed.json()["base_model"] == "stories"
    for name in ("../../studio.db", "/etc/passwd", ".."):
        with pytest.raises(NotFoundError):
            studio.exports.file(row.id, name)
    studio.exports.delete(row.id)
    kept = studio.exports.show(row.id)
    assert not Path(told["path"]).exists() and kept.verified is not None and kept.verified.passed
    assert (kept.files, kept.bytes) == ([], 0)


def test_a_killed_export_leaves_nothing_half(made: dict[str, Any], stories260k: Path, tmp_path: Path) -> None:
    run = next(
        RunDir(path) for path in made["folder"].glob("stories-*") if json.loads((path / "config.json").read_text())["format"] == "merged"
    )
    config = ExportConfig.model_validate(run.read_config()).model_copy(update={"to": str(tmp_path / "out")})
    mine = RunDir(tmp_path / "run")
    mine.path.mkdir()
    mine.config.write_text(config.model_dump_json())
    (mine.path / "prompts.jsonl").write_text((run.path / "prompts.jsonl").read_text())
    part = unfinished(tmp_path / "out", mine)
    with subprocess.Popen([sys.executable, "-m", "jobs.export", str(mine.path)], stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 120
        while not part.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
    assert part.exists() and not (tmp_path / "out").exists()


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    assert expected_bytes(ExportFormat.MERGED, Outtype.F16, 8_000_000_000, 0) > expected_bytes(
        ExportFormat.GGUF, Outtype.Q8_0, 8_000_000_000, 0
    )
    with pytest.raises(StudioError, match="MB free"):
        check_space(10**17, tmp_path)


@pytest.mark.parametrize("method", ["linear", "ties", "dare"])
def test_weights_of_one_and_zero_give_the_single_adapter_to_the_bit(studio: Studio, made: dict[str, Any], method: str) -> None:
    first, _ = imported(studio, made), imported(studio, made, "other")
    merged = studio.merging.merge({"greeter": 1, "other": 0}, method, f"only-{method}")
    for name in ("adapter_model.safetensors", "chat_template.jinja"):
        assert (Path(merged.path) / name).read_bytes() == (Path(first.path) / name).read_bytes()
    half = studio.merging.merge({"greeter": 0.5, "other": 0.5}, method)
    assert half.name == "greeter-other" and Path(half.path).parent == studio.settings.adapters


def test_what_cannot_be_exported_is_refused_before_anything_is_queued(studio: Studio, made: dict[str, Any], tmp_path: Path) -> None:
    adapter = imported(studio, made)
    (tmp_path / "file").write_text("")
    for options, reason in (
        ({"format": "onnx"}, "onnx"),
        ({"format": "gguf", "outtype": "q2_k"}, "q2_k"),
        ({"format": "merged", "verify": 0}, "verify 0"),
        ({"format": "merged", "to": tmp_path / "file"}, "is a file"),
        ({"format": "merged", "to": tmp_path / "file" / "below"}, "can't be made"),
    ):
        with pytest.raises(StudioError, match=reason):
            studio.exports.create(adapter.name, **options)
    config = Path(adapter.path) / "adapter_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    for change, format, reason in (
        ({"peft_type": "PREFIX_TUNING"}, "merged", "puts learned tokens before the text"),
        ({"peft_type": "BOTTLENECK"}, "gguf", "layers of its own"),
        ({"use_dora": True}, "gguf-lora", "DoRA"),
        ({"peft_type": "IA3"}, "gguf-lora", "reads LoRA only"),
    ):
        config.write_text(json.dumps({**values, **change}), encoding="utf-8")
        with pytest.raises(ModelError, match=reason):
            studio.exports.create(adapter.name, format)
    assert studio.jobs.list() == [] and not any(studio.settings.exports.iterdir())


def test_a_k_quant_needs_llama_cpps_quantizer_and_takes_training_rows_along(
    studio: Studio, made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = imported(studio, made)
    monkeypatch.setattr(gguf, "has_quantizer", lambda: False)
    with pytest.raises(StudioError, match=r"q4_k_m is made by llama\.cpp's quantizer, which is not installed here.*choose f16, bf16"):
        studio.exports.create(adapter.name, "gguf", outtype="q4_k_m")
    assert studio.jobs.list() == []
    monkeypatch.setattr(gguf, "has_quantizer", lambda: True)
    unknown = studio.exports.create(adapter.name, "gguf", outtype="q4_k_m")
    assert (run_of(studio, unknown.id).path / CALIBRATION).read_text() == ""  # it was brought from elsewhere
    training = RunDir(tmp_path / "training")
    training.path.mkdir()
    lines = [json.dumps({"text": f"Row {number}.\u2028"}, ensure_ascii=False) + "\n" for number in range(CALIBRATION_ROWS + 5)]
    training.train.write_text("".join(lines), encoding="utf-8")
    with studio.db.write() as session:
        row = session.get(AdapterRow, adapter.id)
        assert row is not None
        session.add(
            JobRow(id="trained", kind="train", queue="gpu", name="trained", config={}, base_model="stories", run_dir=str(training.path))
        )
        session.flush()
        row.job_id = "trained"
    known = studio.exports.create(adapter.name, "gguf", outtype="q5_k_m")
    assert (run_of(studio, known.id).path / CALIBRATION).read_text(encoding="utf-8") == "".join(lines[:CALIBRATION_ROWS])
    assert known.outtype == Outtype.Q5_K_M and run_of(studio, known.id).read_config()["importance"] is True
    without = studio.exports.create(adapter.name, "gguf", outtype="q6_k", importance=False)
    assert not (run_of(studio, without.id).path / CALIBRATION).exists()
    assert not (run_of(studio, studio.exports.create(adapter.name, "gguf").id).path / CALIBRATION).exists()


def run_of(studio: Studio, job: str) -> RunDir:
    return RunDir(Path(studio.jobs.show(job).run_dir))


def test_what_is_not_proved_is_not_pushed(studio: Studio, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExportService, "check_push", lambda *_: None)  # the hub is switched off in tests
    export = studio.exports.create(imported(studio, made).name, "merged")
    unproved = ExportProof(prompts=3, passed=None, reason="No reader knows it.")
    row = export.model_copy(update={"status": JobStatus.SUCCEEDED, "files": ["a.gguf"], "verified": unproved})
    monkeypatch.setattr(studio.exports, "show", lambda _: row)
    with pytest.raises(StudioError, match=r"is not proved: No reader knows it\..*passed its proof"):
        studio.exports.push(export.id, "me/greeter")
    assert exports.proof(unproved) == "Not proved. No reader knows it."
    assert _text(row).splitlines()[-1] == "Not proved: No reader knows it."
