"""What the service of exports decides by itself: questions of the proof, rows for rounding, what is there, what may be pushed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.exporters.config import ExportConfig
from studio.db.models import AdapterRow, DatasetRow, JobRow
from studio.errors import ModelError, NotFoundError, StudioError
from studio.records import ExportFormat, JobStatus
from studio.services import Studio, exports
from tests.stores import add


@pytest.fixture
def adapter(studio: Studio, tmp_path: Path) -> AdapterRow:
    """A LoRA of the starter by its files alone, and the run that made it."""
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "bias": "none"}))
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((2, 4), np.float32)}, folder / exports.WEIGHTS)
    data = DatasetRow(id="d", name="letters", kind="sft", format="messages", rows=7, sha256="abc")
    run = tmp_path / "run"
    run.mkdir()
    job = JobRow(id="t", kind="train", name="training", run_dir=str(run), dataset_id="d")
    add(studio, data)
    add(studio, job)
    row = AdapterRow(id="a", name="mine", base_model="starter", method="lora", path=str(folder), bytes=1000, job_id="t")
    add(studio, row)
    return row


def row_of(studio: Studio) -> AdapterRow:
    with studio.db.read() as session:
        return studio.adapters.find(session, "mine")


def asked(text: str, answer: str = "Yes.") -> str:
    return json.dumps({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}) + "\n"


@pytest.mark.parametrize(
    ("row", "messages", "text"),
    [
        ({"text": "x" * 201}, None, "x" * 200),
        ({"prompt": "Two and two are", "completion": " four"}, None, "Two and two are"),
        ({"prompt": [{"role": "user", "content": "Well?"}], "chosen": []}, ["Well?"], None),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be short."},
                    {"role": "user", "content": "One?"},
                    {"role": "assistant", "content": "1"},
                    {"role": "user", "content": "Two?"},
                    {"role": "assistant", "content": "2"},
                ]
            },
            ["Be short.", "One?", "1", "Two?"],
            None,
        ),
        ({"messages": [{"role": "user", "content": None}]}, [""], None),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, None, None),
        ({}, None, None),
    ],
)
def test_a_row_is_asked_without_its_last_answer(row: dict[str, Any], messages: list[str] | None, text: str | None) -> None:
    found = exports._prompt(json.dumps(row))
    if messages is text is None:
        assert found is None
        return
    assert found is not None and found.text == text
    contents: list[Any] = [message.content for message in found.messages or []]
    assert contents == (messages or [])


def test_the_proof_asks_held_out_rows_then_trained_ones_then_general_ones(studio: Studio, adapter: AdapterRow, tmp_path: Path) -> None:
    def questions(count: int) -> list[Any]:
        return [prompt.messages[-1].content for prompt in studio.exports._prompts(row_of(studio), count) if prompt.messages]

    assert questions(2) == list(exports.GENERAL[:2])
    (tmp_path / "run" / "train.jsonl").write_text(asked("t1") + asked("t2") + asked("t3"))
    (tmp_path / "run" / "eval.jsonl").write_text(asked("e1") + asked("e2"))
    assert questions(1) == ["e1"] and questions(4) == ["e1", "e2", "t1", "t2"]
    assert questions(7) == ["e1", "e2", "t1", "t2", "t3", *exports.GENERAL[:2]]
    many = questions(20)
    assert many[5:13] == list(exports.GENERAL) and many[13:] == [f"What comes after {n}?" for n in range(7)]
    assert len(set(questions(500))) == 500


def test_rows_for_rounding_and_words_for_the_card_come_from_the_run(studio: Studio, adapter: AdapterRow, tmp_path: Path) -> None:
    assert studio.exports._calibration(row_of(studio)) == []
    rows = [asked(str(n)) for n in range(130)]
    (tmp_path / "run" / "train.jsonl").write_text("".join(rows))
    assert studio.exports._calibration(row_of(studio)) == rows[:128]
    assert studio.exports._about(row_of(studio)) == {"data": "letters", "rows": 7, "kind": "sft", "sha256 of the rows": "abc"}
    with studio.db.write() as session:
        session.get_one(JobRow, "t").dataset_id = None
    assert studio.exports._about(row_of(studio)) == {}
    with studio.db.write() as session:
        session.get_one(JobRow, "t").run_dir = ""
    assert studio.exports._calibration(row_of(studio)) == []
    with studio.db.write() as session:
        session.get_one(AdapterRow, "a").job_id = None
    assert studio.exports._about(row_of(studio)) == {} and studio.exports._calibration(row_of(studio)) == []


def test_an_export_is_queued_with_what_its_process_needs(studio: Studio, adapter: AdapterRow, tmp_path: Path) -> None:
    made = studio.exports.create("mine", "merged", verify=3)
    assert (made.name, made.adapter, made.base_model, made.status, made.files, made.bytes) == (
        "mine-merged", "mine", "starter", JobStatus.QUEUED, [], 0,
    )  # fmt: skip
    assert made.outtype is None and Path(made.path) == studio.settings.exports / "mine-merged"
    with studio.db.read() as session:
        job = studio.exports.find(session, made.id)
        config, run = ExportConfig.model_validate(job.config), Path(job.run_dir)
    assert (config.verify, config.adapter_path, config.base_model) == (3, str(tmp_path / "lora"), "starter")
    assert len((run / "prompts.jsonl").read_text().splitlines()) == 3 and not (run / "calibration.jsonl").exists()
    again = studio.exports.create("mine", "gguf", outtype="bf16")
    assert again.name == "mine-gguf" and again.outtype == "bf16"
    assert studio.exports.create("mine", "merged").name != "mine-merged"
    assert {export.id for export in studio.exports.list()} >= {made.id, again.id}
    with pytest.raises(StudioError, match="is being written"):
        studio.exports.delete(made.id)


def test_a_person_names_a_folder_that_is_new_or_empty(studio: Studio, adapter: AdapterRow, tmp_path: Path) -> None:
    def target(to: Path | None) -> Path:
        return studio.exports._target(to, "mine-merged")

    place = tmp_path / "mine to give"
    assert target(None) == studio.settings.exports / "mine-merged"
    assert target(place / "new") == place / "new" and place.is_dir()
    assert target(place) == place
    (place / "file").touch()
    assert target(place) == place / "mine-merged"
    (place / "mine-merged").mkdir()
    with pytest.raises(StudioError, match="exists already"):
        target(place)
    with pytest.raises(StudioError, match="is a file"):
        target(place / "file")
    with pytest.raises(StudioError, match="can't be made"):
        target(place / "file" / "below")


def test_choices_are_named_where_one_is_not_known(studio: Studio, adapter: AdapterRow, monkeypatch: pytest.MonkeyPatch) -> None:
    for verify in (1, 500):
        exports._check_choices("merged", "f16", verify)
    for verify in (0, 501):
        with pytest.raises(StudioError, match=f"verify {verify} .*"):
            exports._check_choices("merged", "f16", verify)
    with pytest.raises(StudioError, match="format 'onnx' is not known") as caught:
        exports._check_choices("onnx", "f16", 8)
    assert "gguf-lora" in caught.value.fix
    with pytest.raises(StudioError, match="outtype 'q2' is not known"):
        exports._check_choices("merged", "q2", 8)
    monkeypatch.setattr(exports.gguf, "has_quantizer", lambda: False)
    exports._check_choices("merged", "q4_k_m", 8)
    exports._check_choices("gguf", "q8_0", 8)
    with pytest.raises(StudioError, match="not installed here"):
        exports._check_choices("gguf", "q4_k_m", 8)
    monkeypatch.setattr(exports.gguf, "has_quantizer", lambda: True)
    exports._check_choices("gguf", "q4_k_m", 8)


def test_every_format_says_whether_the_adapter_can_take_it(studio: Studio, adapter: AdapterRow, tmp_path: Path) -> None:
    assert studio.exports.formats("mine") == dict.fromkeys(ExportFormat, "")
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "IA3"}))
    found = studio.exports.formats("mine")
    assert [name for name, reason in found.items() if reason] == ["gguf-lora"] and "reads LoRA only" in found[ExportFormat.GGUF_LORA]
    config.write_text(json.dumps({"peft_type": "PREFIX_TUNING"}))
    assert [name for name, reason in studio.exports.formats("mine").items() if not reason] == ["adapter"]
    (tmp_path / "lora" / exports.WEIGHTS).unlink()
    assert all("are gone from" in reason for reason in studio.exports.formats("mine").values())
    with pytest.raises(ModelError, match="are gone"):
        studio.exports.create("mine", "adapter")


def done(studio: Studio, folder: Path, status: str = "SUCCEEDED", passed: bool | None = True, result: Any = None) -> str:
    written = {
        "path": str(folder), "bytes": 9, "format": "gguf", "files": ["a.gguf", "../secret", "gone"],
        "verified": {"prompts": 8, "passed": passed, "reason": "No reader." * (passed is None)},
    }  # fmt: skip
    config = {"adapter": "mine", "format": "gguf", "outtype": "f16", "to": str(folder)}
    job = JobRow(kind="export", name=f"e {folder.name}", status=status, config=config, result=written if result is None else result)
    (made,) = add(studio, job)
    return str(made)


def test_only_files_that_are_there_are_listed_and_handed_out(studio: Studio) -> None:
    folder = studio.settings.exports / "one"
    export_id = done(studio, folder)
    (studio.settings.exports / "secret").touch()
    assert (studio.exports.show(export_id).files, studio.exports.show(export_id).bytes) == ([], 0)
    folder.mkdir()
    (folder / "a.gguf").touch()
    shown = studio.exports.show(export_id)
    assert (shown.files, shown.bytes, shown.outtype) == (["a.gguf"], 9, "f16") and shown.verified is not None and shown.verified.passed
    assert studio.exports.file(export_id, "a.gguf") == folder / "a.gguf"
    for name in ("../secret", "gone"):
        with pytest.raises(NotFoundError, match="has no file"):
            studio.exports.file(export_id, name)
    running = done(studio, studio.settings.exports / "two", status="RUNNING")
    (studio.settings.exports / "two").mkdir()
    (studio.settings.exports / "two" / "a.gguf").touch()
    assert studio.exports.show(running).files == []
    strange = studio.exports.show(done(studio, studio.settings.exports / "three", result={"size": 1}))
    assert "Another version of the studio" in strange.reason and strange.verified is None


def test_files_of_the_studio_are_deleted_and_those_of_a_person_are_not(studio: Studio, tmp_path: Path) -> None:
    own, other = studio.settings.exports / "own", tmp_path / "elsewhere"
    for folder in (own, other):
        folder.mkdir()
    first, second = done(studio, own), done(studio, other)
    assert studio.exports.delete(first).id == first and not own.exists()
    assert studio.exports.show(first).verified is not None, "the proof stays"
    with pytest.raises(StudioError, match="not the studio's own"):
        studio.exports.delete(second)
    assert other.is_dir()


def test_only_what_is_proved_goes_to_a_repository_of_the_hub(studio: Studio) -> None:
    with pytest.raises(StudioError, match="hub is switched off"):
        studio.exports.check_push("me/model")
    studio.exports.settings = dataclasses.replace(studio.settings, hub_offline=False)
    for name in ("me/model", "a/b", f"{'a' * 96}/{'b' * 96}", "me/model-1.5_x"):
        studio.exports.check_push(name)
    for name in ("model", "me/", "/model", "me/model/x", "-me/model", "me/.model", f"{'a' * 97}/b", "me/mo del"):
        with pytest.raises(StudioError, match="is no repository"):
            studio.exports.check_push(name)
    folder = studio.settings.exports / "one"
    folder.mkdir()
    (folder / "a.gguf").touch()
    with pytest.raises(StudioError, match="is not proved: No reader"):
        studio.exports.push(done(studio, folder, passed=None), "me/model")
    empty = studio.settings.exports / "empty"
    empty.mkdir()
    for export_id in (done(studio, empty), done(studio, studio.settings.exports / "failed", status="FAILED")):
        with pytest.raises(StudioError, match="is not there, or not proved"):
            studio.exports.push(export_id, "me/model")
