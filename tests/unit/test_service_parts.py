"""Small decisions of the services: rows spread over a dataset, archives of strangers, cards of bundles, what a cache can compress."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from studio.catalogue import hub_cache
from studio.compress import models as kinds
from studio.errors import ModelError, NotFoundError, StudioError
from studio.records import Probe
from studio.services import Studio, archives, bundle_card, bundles, compressors, hub_models, probes
from studio.services.archives import open_archive, write_archive
from studio.services.bundle_card import BundleCard, BundledData, BundledJob, BundledModel, RunEnvironment
from studio.services.dataset_files import disk_errors

# datasets


def test_rows_are_spread_evenly_from_the_first(studio: Studio) -> None:
    rows = "\n".join(json.dumps({"prompt": f"q{n}", "completion": f"a{n}"}) for n in range(1, 11))
    record = studio.datasets.add_text(rows, name="ten")

    def numbers(rows: int) -> list[int]:
        found = list(studio.datasets._spread(record, rows))
        assert all(str(n) in example.model_dump_json() for n, example in found)
        return [n for n, _ in found]

    assert numbers(1) == [1] and numbers(2) == [1, 6] and numbers(3) == [1, 4, 7] and numbers(9) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert numbers(10) == numbers(11) == numbers(0) == list(range(1, 11))


def test_a_dataset_is_known_by_its_file_and_an_upload_by_the_name_it_had(studio: Studio, tmp_path: Path) -> None:
    for name, row in (("rows.jsonl", "one"), ("upload-7", "two")):
        (tmp_path / name).write_text(json.dumps({"prompt": row, "completion": row}))
    kept = studio.datasets.add(tmp_path / "rows.jsonl")
    uploaded = studio.datasets.add(tmp_path / "upload-7", filename="songs.jsonl")
    assert [(one.name, one.source) for one in (kept, uploaded)] == [("rows", "rows.jsonl"), ("songs", "songs.jsonl")]


def test_rows_end_at_the_length_that_is_asked_for_or_where_a_training_ends_them(studio: Studio) -> None:
    studio.datasets.add_text(json.dumps({"prompt": "cats", "completion": "cats and dogs " * 20}), name="long")
    for given, used in ((None, 512), (0, 0), (40, 40), (4096, 4096)):  # the starter reads no more than 512
        found = studio.datasets.render("long", base_model="starter", max_length=given)
        assert (found.max_length, bool(found.length_notice)) == (used, given is None)
        assert len(found.rows[0].ids) <= used and bool(found.rows[0].cut) == (used < 50)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "There is no space left on the disk of {}."),
        (errno.EDQUOT, "There is no space left on the disk of {}."),
        (errno.EROFS, "{} can't be written to."),
        (errno.EACCES, "{} can't be written to."),
        (errno.EPERM, "{} can't be written to."),
    ],
)
def test_a_disk_that_takes_nothing_more_is_one_line(tmp_path: Path, number: int, said: str) -> None:
    with pytest.raises(StudioError) as refused, disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    assert refused.value.message == said.format(tmp_path)


def test_other_troubles_of_a_disk_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), disk_errors(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


# archives


def packed(path: Path, *entries: tuple[str, bytes], **attributes: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(entry, key, value)
            file.writestr(entry, content)
    return path


def test_an_archive_gives_its_files_and_its_json(tmp_path: Path) -> None:
    path = packed(
        tmp_path / "a.zip", ("folder/", b""), ("folder/card.json", b'{"a": [1]}'), ("bad.json", b"{"), ("deep.json", b"[" * 99_999)
    )
    with open_archive(path, tmp_path) as archive:
        assert archive.names == ["folder/card.json", "bad.json", "deep.json"]
        assert archive.json("folder/card.json") == {"a": [1]}
        archive.extract("folder/card.json", tmp_path / "new" / "card.json")
        assert (tmp_path / "new" / "card.json").read_bytes() == b'{"a": [1]}'
        for name, why in (("bad.json", "bad.json is no JSON"), ("deep.json", "it is damaged"), ("gone.json", "it has no gone.json")):
            with pytest.raises(StudioError, match=why):
                archive.json(name)


@pytest.mark.parametrize("limit", [9, 10])
def test_json_is_read_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(archives, "MAX_JSON_BYTES", limit)
    with open_archive(packed(tmp_path / "a.zip", ("a.json", b'{"a": [1]}')), tmp_path) as archive:
        if limit == 10:
            assert archive.json("a.json") == {"a": [1]}
            return
        with pytest.raises(StudioError, match=r"a\.json is too large"):
            archive.json("a.json")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\\b", "C:x", "a\x07b"])
def test_entries_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudioError, match="no studio writes"), open_archive(packed(tmp_path / "a.zip", (name, b"x")), tmp_path):
        pass


def test_entries_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for kind in (stat.S_IFREG, stat.S_IFDIR, 0):
        with open_archive(packed(tmp_path / "a.zip", ("a", b"x"), external_attr=(kind | 0o644) << 16), tmp_path) as archive:
            assert archive.names == ["a"]
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
        path = packed(tmp_path / "a.zip", ("a", b"x"), external_attr=(kind | 0o644) << 16)
        with pytest.raises(StudioError, match="no studio writes"), open_archive(path, tmp_path):
            pass
    with pytest.raises(StudioError, match="no studio writes"), open_archive(packed(tmp_path / "a.zip", ("a", b"x"), ("A", b"y")), tmp_path):
        pass
    for path, why in ((tmp_path, "is a folder"), (tmp_path / "gone", "is not there"), (tmp_path / "text", "is no zip file")):
        (tmp_path / "text").write_text("text")
        with pytest.raises(StudioError, match=why), open_archive(path, tmp_path):
            pass


def entry(size: int, name: str = "a") -> Any:
    return SimpleNamespace(filename=name, external_attr=0, flag_bits=0, file_size=size)


def test_an_archive_unpacks_to_a_hundred_times_its_size_and_into_the_room_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"x" * 1_000_000)
    archives._check(path, [entry(100_000_000)], 10**12)
    with pytest.raises(StudioError, match=r"would unpack to 100 MB from 1\.0"):
        archives._check(path, [entry(60_000_000), entry(40_000_001, "b")], 10**12)
    os.truncate(path, 1)
    archives._check(path, [entry(64_000_000)], 64_000_000)
    with pytest.raises(StudioError, match="would unpack to 64 MB"):
        archives._check(path, [entry(64_000_001)], 10**12)
    with pytest.raises(StudioError, match=r"unpacks to 5 MB; there are 4 MB left"):
        archives._check(path, [entry(5_000_000)], 4_000_000)
    with pytest.raises(StudioError, match="no studio writes"):  # the same name again; not too many
        archives._check(path, [entry(0)] * 200_000, 1)
    with pytest.raises(StudioError, match="it holds 200001 files"):
        archives._check(path, [entry(0)] * 200_001, 1)
    with pytest.raises(StudioError, match="no studio writes"):
        archives._check(path, [SimpleNamespace(filename="a", external_attr=0, flag_bits=1, file_size=1)], 1)  # type: ignore[list-item]


def test_an_archive_is_whole_or_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "a.zip"
    weights, text = tmp_path / "w.safetensors", tmp_path / "t.txt"
    weights.write_bytes(b"x" * 1000)
    text.write_bytes(b"x" * 1000)

    def fill(file: zipfile.ZipFile) -> None:
        archives.add_file(file, weights, "w")
        archives.add_file(file, text, "t")

    write_archive(target, fill)
    with zipfile.ZipFile(target) as file:
        assert [one.compress_type for one in file.infolist()] == [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]
    before = target.read_bytes()

    def breaks(file: zipfile.ZipFile) -> None:
        file.writestr("half", b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        write_archive(target, breaks)
    assert target.read_bytes() == before and sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "t.txt", "w.safetensors"]
    for place, why in ((tmp_path, "is a folder"), (tmp_path / "gone" / "a.zip", "There is no folder")):
        with pytest.raises(StudioError, match=why):
            write_archive(place, fill)


# cards of bundles


def card(**values: Any) -> bundle_card.BundleCard:
    given = {
        "format": bundle_card.FORMAT, "job": BundledJob(name="mine"), "config": {}, "base_model": BundledModel(name="starter"),
        "adapter_sha256": "abc", "files": {"a": {"bytes": 1, "sha256": "def"}}, **values,
    }  # fmt: skip
    return bundle_card.BundleCard.model_validate(given)


def test_a_bundle_tells_a_person_what_it_holds() -> None:
    bare = bundle_card.as_markdown(card())
    assert "recipe -, seed None; data without a name (? rows, sha256 -)" in bare and "Made with unknown versions." in bare
    whole = bundle_card.as_markdown(
        card(
            job=BundledJob(name="mine", recipe="dpo", notes="Look here."), seed=0, dataset=BundledData(name="d", sha256="x", rows=0),
            environment=RunEnvironment(versions={"torch": "2.13"}), result={"loss": 1.23456789, "steps": 7},
        )
    )  # fmt: skip
    assert "recipe dpo, seed 0; data d (0 rows, sha256 x)" in whole and "| loss | 1.23457 |\n| steps | 7 |" in whole
    assert "Made with torch 2.13." in whole and whole.endswith("\nLook here.\n")
    assert (card().digest("a"), card().digest("b")) == ("def", "")


def test_what_differs_between_two_machines_is_named() -> None:
    there = RunEnvironment(versions={"torch": "2.13", "peft": "1"}, hardware={"threads": 2})
    here = RunEnvironment(versions={"torch": "2.14", "peft": "1"}, hardware={"threads": 2, "device": "cpu"})
    assert bundle_card.differences(there, here) == {"torch": ["2.13", "2.14"], "device": [None, "cpu"]}
    threads = [RunEnvironment(hardware={"threads": value}).threads for value in (2, 0, 1024, 1025, -1, "2", None)]
    assert threads == [2, 0, 1024, 0, 0, 0, 0] and RunEnvironment().threads == 0


@pytest.mark.parametrize(
    ("file", "content", "is_same"),
    [
        ("config.json", b"CONFIG", False),
        ("tokenizer.json", b"0123456x89abcdef", False),  # whole, however large
        ("tokenizer.json", None, False),
        ("model.safetensors", b"012x456789ab", False),  # the last byte of its beginning
        ("model.safetensors", b"0123xxxx89ab", True),  # what lies between beginning and end is not read
        ("model.safetensors", b"01234567x9ab", False),  # the first byte of its end
        ("model.safetensors", b"01234567889ab", False),  # longer
        ("small.safetensors", b"0x23456", False),
        ("small.safetensors", b"012345x", False),
        ("more.safetensors", b"", False),
        ("README.md", b"another", True),
    ],
)
def test_a_fingerprint_tells_models_apart_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: bytes | None, is_same: bool
) -> None:
    monkeypatch.setattr(bundles, "EDGE_BYTES", 4)
    files = {
        "config.json": b"config",
        "tokenizer.json": b"0123456789abcdef",
        "model.safetensors": b"0123456789ab",
        "small.safetensors": b"0123456",
        "README.md": b"a model",
    }

    def found(folder: Path, files: dict[str, bytes | None]) -> str:
        folder.mkdir()
        for name, content in files.items():
            if content is not None:
                (folder / name).write_bytes(content)
        return bundles.fingerprint(folder)

    whole = found(tmp_path / "one", {**files})
    assert whole == found(tmp_path / "elsewhere", {**files})
    assert (whole == found(tmp_path / "other", {**files, file: content})) == is_same


def test_every_file_of_a_bundle_is_held_against_its_card(tmp_path: Path) -> None:
    sums = {name: {"bytes": 1, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("a", bundles.WEIGHTS)}
    weights = sums[bundles.WEIGHTS]["sha256"]

    def check(held: BundleCard, **changed: str) -> None:
        path = packed(tmp_path / "a.zip", *((name, changed.get(name, name).encode()) for name in sums if changed.get(name) != ""))
        with open_archive(path, tmp_path) as archive:
            bundles._check_files(archive, held, tmp_path)

    whole = card(files=sums, adapter_sha256=weights)
    check(whole)
    for changed, said in (({"a": ""}, "'a' is missing"), ({"a": "b"}, "a has changed")):
        with pytest.raises(StudioError, match=said):
            check(whole, **changed)
    with pytest.raises(StudioError, match="its adapter is not the one that its card names"):
        check(card(files=sums))


def test_a_row_of_a_bundle_that_is_none_is_named_by_its_line(tmp_path: Path) -> None:
    rows = tmp_path / "train.jsonl"
    rows.write_text('{"text": "a"}\n{"text": "b"}\n')
    bundles._check_rows(tmp_path / "a.zip", rows)
    rows.write_text('{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(StudioError, match="line 2 is no row of the studio"):
        bundles._check_rows(tmp_path / "a.zip", rows)


# compressors and probes


def test_what_of_the_cache_can_compress_is_offered_by_its_last_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cached = {"org/Small_Model": [tmp_path / "half", kinds.WORDS_FOLDER], "org/none": [tmp_path / "half"]}
    monkeypatch.setattr(hub_cache, "repositories", lambda: list(cached))
    monkeypatch.setattr(hub_cache, "snapshots", cached.__getitem__)
    (found,) = compressors._cached()
    assert found[1] == kinds.WORDS_FOLDER and found[0].lower().startswith("small")
    assert [compressors.default_for(method) for method in (None, "llmlingua2", "llmlingua")] == [
        "starter-words",
        "starter-words",
        "starter",
    ]


def test_a_download_tells_how_far_it_is_and_where_the_model_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    # red when a line that a library prints, such as a warning or a number, ends the download
    noise = ["Fetching 2 files", "7", "null", "[1]", "{}"]
    said = [*noise, '{"done": 1, "total": 4}', *noise, '{"done": 4, "total": 4}', '{"error": null, "folder": "/cache/m"}', *noise]
    heard: list[tuple[int, int]] = []

    def fetched(*lines: str) -> Path:
        monkeypatch.setattr(hub_models.processes, "module_command", lambda *_: ["printf", "%s\\n", *lines])
        return hub_models.fetch("some/model", progress=lambda now: heard.append((now.done, now.total)))

    assert fetched(*said) == Path("/cache/m") and heard == [(1, 4), (4, 4)]
    with pytest.raises(ModelError, match="of some/model ended without an answer"):
        fetched(*noise)
    with pytest.raises(ModelError, match="No such model") as refused:
        fetched('{"error": {"message": "No such model.", "fix": "Look."}}')
    assert refused.value.fix == "Look."


def test_the_shipped_classifier_comes_first_and_unknown_names_are_refused(studio: Studio) -> None:
    found = studio.compression.catalogue.list().compressors if hasattr(studio.compression, "catalogue") else None
    catalogue = compressors.CompressorCatalogue(studio.settings, studio.models)
    listed = catalogue.list().compressors
    assert (listed[0].name, listed[0].methods) == ("starter-words", ["llmlingua2", "structured"])
    assert found is None or [one.name for one in found] == [one.name for one in listed]
    assert catalogue.resolve("starter-words") == kinds.WORDS_FOLDER
    with pytest.raises(NotFoundError, match="no compressor or model 'starter-word'"):
        catalogue.resolve("starter-word")


def test_a_probe_is_told_in_sentences(studio: Studio) -> None:
    starter = studio.models.show("starter").probe
    assert isinstance(starter, Probe)
    usual = probes.behaviour(starter.model_copy(update={"mixable": True, "padding": "left"}))
    assert len(usual) == 1
    alone = probes.behaviour(starter.model_copy(update={"mixable": False, "mixable_reason": "it flattens", "padding": ""}))
    assert alone == [usual[0], "The base and several adapters answer one after another: it flattens.",
        "Prompts of different lengths are read one after another: padding changes its answers."]  # fmt: skip
    refused = starter.targets.model_copy(update={"accepted": False, "reason": "no layers"})
    assert probes.reach(starter.model_copy(update={"targets": refused})) == "LoRA can't be trained on it: no layers."
    assert len(probes.described(starter)) == 1 + len(probes.behaviour(starter)) + bool(starter.text_prefix)
    assert "Its text model is inner" in probes.described(starter.model_copy(update={"text_prefix": "inner"}))[1]
