"""Which files of a repository of the hub are fetched, what is said of one that is no model, and files that the catalogue writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

from jobs.exporters import folders
from jobs.trainers.failures import DivergedError
from jobs.trainers.scaling import SkippedSteps, scale_on_a_processor
from studio.catalogue import hub, probed
from studio.errors import ModelError


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["adapter_config.json"], "holds an adapter, not a base model."),
        (["a.gguf"], "holds GGUF files only"),
        (["README.md"], "holds no config.json, so it is no model."),
        (["config.json", "README.md", "x.jinja", "a/vocab.txt", "modeling.py", "tokenizer.json", "a.bin", "images.png"], ""),
    ],
)
def test_what_goes_with_the_weights(names: list[str], said: str) -> None:
    sizes = dict.fromkeys(names, 1)
    if not said:
        assert hub._beside("a/b", sizes) == ["config.json", "README.md", "x.jinja", "tokenizer.json"]
        return
    with pytest.raises(ModelError, match=said):
        hub._beside("a/b", sizes)


def test_which_weights_are_fetched(tmp_path: Path) -> None:
    one, index = "model.safetensors", "model.safetensors.index.json"
    assert hub._weights("a/b", {one: 1, index: 1, "consolidated.safetensors": 1}, tmp_path) == [one]
    (tmp_path / index).write_text(json.dumps({"weight_map": {"x": "m-1.safetensors", "y": "m-2.safetensors"}}))
    assert sorted(hub._weights("a/b", {index: 1, "m-1.safetensors": 1, "m-2.safetensors": 1}, tmp_path)) == [
        "m-1.safetensors",
        "m-2.safetensors",
    ]
    for names, said in (
        ([index, "m-1.safetensors"], "lacks m-2"),
        (["pytorch_model.bin"], "as pytorch_model.bin, a format"),
        ([], "holds no model"),
    ):
        with pytest.raises(ModelError, match=said):
            hub._weights("a/b", dict.fromkeys(names, 1), tmp_path)


@pytest.mark.parametrize(("needed", "is_enough"), [(1_000_000_000, True), (1_000_000_001, False)])
def test_a_twentieth_of_the_disk_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: int, is_enough: bool) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_050_000_000))
    if is_enough:
        hub._check_space("a/b", needed, tmp_path)
        return
    with pytest.raises(ModelError, match=r"needs 1\.0 GB and .* has 1\.1 GB free|needs 1\.0 GB and .* has 1\.0 GB free"):
        hub._check_space("a/b", needed, tmp_path)


def test_progress_counts_what_is_here_and_what_arrives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "EVERY_S", 60.0)
    folder, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    for place in (folder, blobs):
        place.mkdir(parents=True)
    (folder / "a").write_bytes(b"xx")
    (blobs / "old.incomplete").write_bytes(b"xxxxx")
    with hub._progress(folder, {"a": 2, "b": 4}):
        (blobs / "new.incomplete").write_bytes(b"xxx")
    with hub._progress(folder, {"a": 2, "b": 4}):
        pass
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"done": 2, "total": 6}, {"done": 5, "total": 6}, {"done": 2, "total": 6},
    ]  # fmt: skip


def test_a_search_is_told_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []

    class Hub:
        def list_models(self, **options: Any) -> Any:
            asked.append(options)
            if options["search"] == "x":
                raise ConnectionError("no")
            return [SimpleNamespace(id="a/b", downloads=None, gated="auto"), SimpleNamespace(id="c", downloads=3, gated=False)]

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(hub.lifeline, "end_with_parent", lambda: None)
    for words in ("q", "x"):
        monkeypatch.setattr(sys, "argv", ["hub", "--search", words])
        hub.main()
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good["error"] is None and [(one["repository"], one["downloads"], one["gated"]) for one in good["models"]] == [
        ("a/b", 0, True),
        ("c", 3, False),
    ]
    assert (
        bad["error"]["message"] == "The hub can't be reached (ConnectionError)."
        and asked[0]["limit"] == 20
        and asked[0]["sort"] == "downloads"
    )


@pytest.mark.parametrize("arguments", [[], ["--compressor"]])
@pytest.mark.parametrize(
    ("raised", "said"), [(None, None), (ModelError("m", "f"), "m"), (ValueError("v"), "so a/b was not fetched (ValueError)")]
)
def test_a_download_is_told_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: Any, said: str | None, arguments: list[str]
) -> None:
    asked: list[bool] = []

    def fetch(repository: str, is_compressor: bool) -> Path:
        asked.append(is_compressor)
        if raised:
            raise raised
        return tmp_path

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub.os, "umask", lambda mask: 0)
    monkeypatch.setattr(hub.lifeline, "end_with_parent", lambda: None)
    monkeypatch.setattr(sys, "argv", ["hub", "a/b", *arguments])
    hub.main()
    answer = json.loads(capsys.readouterr().out)
    assert asked == [bool(arguments)]
    if said is None:
        assert answer == {"error": None, "folder": str(tmp_path)}
    else:
        assert said in answer["error"]["message"]


def test_long_parts_have_a_line_for_each_key() -> None:
    values = {"a": 1, "b": {"c": "x" * 80}, "d": {"e": "y" * 120, "f": {"g": 2}}}
    text = probed.written(values)
    assert json.loads(text) == values and len(text.splitlines()) == 3 + 5


def test_the_stored_probes_are_compared_or_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "stored"
    known = [SimpleNamespace(name=name, repository=f"r/{name}", config={}) for name in ("one", "two")]
    monkeypatch.setattr(probed, "STORED", stored)
    monkeypatch.setattr(probed, "CONFIGS", tmp_path / "none")
    monkeypatch.setattr(probed, "known_models", lambda: known)
    monkeypatch.setattr(probed, "made", lambda model: {"name": model.name})
    monkeypatch.setattr(probed, "_starter_differs", lambda is_check: False)

    def run(*arguments: str) -> tuple[int, list[str]]:
        status = probed.main(arguments)
        return status, capsys.readouterr().out.splitlines()

    assert run("r/three") == (1, ["no entry of models.toml: r/three"])
    assert run("--check") == (1, ["differs r/one", "differs r/two"]) and list(stored.iterdir()) == []
    assert run("r/one") == (0, ["made r/one"]) and run("--check", "r/one") == (0, [])
    assert run() == (0, ["made r/two"]) and run("--check") == (0, [])
    (stored / "stray.json").touch()
    assert run("--check") == (0, ["belongs to no entry: stored/stray.json"])
    monkeypatch.setattr(probed, "_starter_differs", lambda is_check: True)
    assert run("--check")[0] == 1 and run("--check", "r/one")[0] == 0


def test_skipped_steps_are_counted_told_and_end_a_run_that_diverged() -> None:
    told: list[str] = []
    scaler = SimpleNamespace(get_scale=lambda: scale[0])
    accelerator = SimpleNamespace(scaler=None, optimizer_step_was_skipped=True)
    scale = [1.0]
    steps = SkippedSteps(accelerator, SimpleNamespace(notice=told.append))  # type: ignore[arg-type]
    steps.see(1)
    assert (steps.is_scaled, steps.count, steps.figures()) == (False, 0, {})
    accelerator.scaler = scaler
    for number in range(19):
        steps.see(number)
    assert told == [] and steps.as_json() == {"count": 19, "in_a_row": 19}
    steps.see(20)
    steps.see(21)
    assert len(told) == 1 and "The last 20 steps, up to step 20, were skipped" in told[0]
    accelerator.optimizer_step_was_skipped = False
    steps.see(22)
    assert steps.as_json() == {"count": 21, "in_a_row": 0} and steps.figures() == {"skipped_steps": 21}
    steps.restore(3, 2)
    assert steps.as_json() == {"count": 3, "in_a_row": 2}
    accelerator.optimizer_step_was_skipped, scale[0] = True, 0.5
    with pytest.raises(DivergedError):
        steps.see(23)


@pytest.mark.parametrize(("precision", "scaler", "is_made"), [("fp16", None, True), ("fp16", "own", False), ("bf16", None, False)])
def test_float16_on_a_processor_is_scaled_as_on_a_gpu(precision: str, scaler: Any, is_made: bool) -> None:
    accelerator = SimpleNamespace(mixed_precision=precision, scaler=scaler, native_amp=False)
    scale_on_a_processor(accelerator)
    assert accelerator.native_amp is is_made and isinstance(accelerator.scaler, torch.amp.GradScaler) is is_made


def test_an_exported_adapter_names_its_base_and_brings_its_template(tmp_path: Path) -> None:
    adapter, to = tmp_path / "adapter", tmp_path / "to"
    for place in (adapter, to):
        place.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"auto_mapping": 1, "r": 4, "base_model_name_or_path": "/private"}))
    (adapter / "adapter_model.safetensors").write_text("w")
    (adapter / "optimizer.pt").touch()
    folders.write_adapter(to, adapter, SimpleNamespace(template="t"), "owner/base")  # type: ignore[arg-type]
    assert json.loads((to / "adapter_config.json").read_text()) == {"base_model_name_or_path": "owner/base", "r": 4}
    assert sorted(one.name for one in to.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]


def test_a_merged_model_has_one_template(tmp_path: Path) -> None:
    base, to = tmp_path / "base", tmp_path / "to"
    for place in (base, to):
        place.mkdir()
    (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old", "a": "é"}))
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").touch()
    saved: list[Any] = []
    model: Any = SimpleNamespace(config=SimpleNamespace(), save_pretrained=saved.append)
    model.to = lambda dtype: saved.append(dtype) or model
    folders.write_merged(to, model, base, SimpleNamespace(template="new"), torch.float16, "name")  # type: ignore[arg-type]
    assert saved == [torch.float16, str(to)] and model.config.name_or_path == "name"
    assert json.loads((to / "tokenizer_config.json").read_text()) == {"a": "é"} and (to / "chat_template.jinja").read_text() == "new"
    assert not (to / "model.safetensors").exists()
