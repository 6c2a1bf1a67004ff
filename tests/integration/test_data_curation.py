"""Report, fix, split, merge, pick and edit as a person does them: real files, a real database, child processes, CLI and HTTP."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from studio import cli
from studio.errors import NotFoundError, StudioError, TakenError
from studio.records import DatasetReport
from studio.services import Studio
from studio.settings import PACKAGE_ROOT, Settings
from studio.types import Example
from tests import plants
from tests.servers import clean_environment, web

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def studio(settings: Settings) -> Studio:
    return Studio.open(settings, at_terminal=True)


def add(studio: Studio, tmp_path: Path, rows: list[plants.Row], name: str) -> dict[str, Any]:
    return studio.datasets.add(plants.write(tmp_path / f"{name}.jsonl", rows))


def texts(studio: Studio, dataset: str) -> list[bytes]:
    return studio.datasets.path(dataset).read_bytes().splitlines()


def counts(report: DatasetReport) -> dict[str, int]:
    return {finding.check: finding.count for finding in report.findings}


def test_a_report_is_kept_and_fixes_make_a_clean_version(studio: Studio, tmp_path: Path) -> None:
    rows, where = plants.planted(60)
    added = add(studio, tmp_path, rows, "faulty")
    before = texts(studio, "faulty")
    stages: list[str] = []
    assert studio.curation.cached_report("faulty") is None
    report = studio.curation.report("faulty", progress=lambda stage, share: stages.append(stage))
    assert counts(report) == {check: len(found) for check, found in where.items()} and report.dataset == added.id
    assert "all_rows" not in report and stages[-1] == "Done"
    assert studio.curation.cached_report("faulty") == studio.curation.report(added.id) == report
    assert studio.curation.cached_report("faulty", max_length=99) == report  # without a model it changes nothing

    fixed = studio.curation.fix("faulty", ["all"])
    assert (fixed.name, fixed.parent, fixed.kind) == ("faulty-v2", added.id, "sft")
    made = fixed.provenance
    assert made["made_by"] == "fix" and made["found"] == counts(report) and made["parents"] == [added.id]
    assert fixed.rows == added.rows - made["dropped"] and made["changed"] == sum(
        len(where[check]) for check in ("pii", "control_characters", "control_tokens")
    )
    clean = studio.curation.cached_report("faulty-v2")  # made while it was fixed
    assert clean is not None and clean.findings == [] and clean.dataset == fixed.id
    assert texts(studio, "faulty") == before and studio.datasets.show("faulty") == added
    with pytest.raises(StudioError, match="nothing to fix"):
        studio.curation.fix("faulty-v2", ["all"])
    assert [version.name for version in studio.curation.versions("faulty-v2")] == ["faulty", "faulty-v2"]


def test_a_fix_goes_on_until_nothing_more_is_found(studio: Studio, tmp_path: Path) -> None:
    """Two rows that differ in an e-mail address only are the same once it is masked."""
    rows = plants.rows(20)
    question = "Whom shall I write to about the broken lantern in the old harbor, and what shall I say?"
    twins = [
        plants.chat(question, f"Write to {name}@example.org and be polite about it.")
        for name in ("ada.lovelace", "charles.babbage-the-elder")
    ]
    add(studio, tmp_path, [*rows, *twins], "twins")
    fixed = studio.curation.fix("twins", ["pii", "exact_duplicates"])
    assert fixed.rows == 21 and fixed.provenance["changed"] == 2 and fixed.provenance["dropped"] == 1
    assert "[EMAIL]" in texts(studio, fixed.id)[-1].decode()


def test_a_split_shares_nothing_and_moved_rows_stay_moved(studio: Studio, tmp_path: Path) -> None:
    rows = plants.rows(60)
    rows += [plants.nearly(rows[n], n) for n in range(30)]
    add(studio, tmp_path, rows, "all")
    halves = studio.curation.split("all", test_size=0.3, seed=5)
    train, held_out = halves.train, halves.eval
    assert (train.name, held_out.name) == ("all-train", "all-eval") and held_out.rows == 27
    assert sorted(texts(studio, train.id) + texts(studio, held_out.id)) == sorted(texts(studio, "all"))
    assert train.provenance["sibling"] == held_out.id and held_out.provenance["side"] == "eval"
    assert "leakage" not in counts(studio.curation.report("all-eval"))
    with pytest.raises(TakenError):
        studio.curation.split("all", name="all")

    leaking = studio.curation.edit_row("all-eval", 1, studio.datasets.rows("all-train", limit=1)[0].as_json())
    found = studio.curation.report(leaking.id)  # the other side counts without being named
    assert [(f.check, f.rows) for f in found.findings if f.check == "leakage"] == [("leakage", [1])]
    moved = studio.curation.fix(leaking.id, ["leakage"])
    assert (leaking.name, moved.name, moved.rows) == ("all-eval-v2", "all-eval-v3", 26)
    assert texts(studio, moved.id) == texts(studio, leaking.id)[1:]
    names = [version.name for version in studio.curation.versions("all-eval-v2")]
    assert names == ["all", "all-eval", "all-eval-v2", "all-eval-v3"]
    studio.datasets.delete("all-train")
    assert "leakage" not in counts(studio.curation.report("all-eval-v2"))  # nothing is left to share rows with


def test_merge_pick_edit_and_delete(studio: Studio, tmp_path: Path) -> None:
    one, two = add(studio, tmp_path, plants.rows(12), "one"), add(studio, tmp_path, plants.rows(8, seed=2), "two")
    merged = studio.curation.merge(["one", two.id])
    assert texts(studio, merged.id) == texts(studio, "one") + texts(studio, "two")
    assert merged.name == "one-merged" and merged.provenance["parents"] == [one.id, two.id]
    picked = studio.curation.pick("one-merged", 7, seed=3, name="few")
    again = studio.curation.pick("one-merged", 7, seed=3)
    assert picked.rows == 7 and texts(studio, "few") == texts(studio, again.id) and again.name == "one-merged-best-7"
    assert "TF-IDF" in picked.provenance["how"] and set(texts(studio, "few")) <= set(texts(studio, "one-merged"))
    deleted = studio.curation.delete_rows("one", [1, 12, 1])
    assert texts(studio, deleted.id) == texts(studio, "one")[1:-1] and deleted.provenance["dropped"] == 2
    studio.curation.edit_row("one", 2, plants.chat("New?", "Yes, new."), name="edited")
    assert studio.datasets.rows("edited", offset=1, limit=1) == [Example.model_validate(plants.chat("New?", "Yes, new."))]
    assert texts(studio, "edited")[2:] == texts(studio, "one")[2:]
    names = {version.name for version in studio.curation.versions("two")}
    assert names == {"two", "one-merged", "few", "one-merged-best-7"}
    studio.datasets.delete("one-merged")
    assert [version.name for version in studio.curation.versions("few")] == ["few"]


def refused(match: str, call: Callable[[], Any], error: type[StudioError] = StudioError) -> None:
    with pytest.raises(error, match=match):
        call()


def test_what_can_not_be_done_is_said(studio: Studio, tmp_path: Path) -> None:
    add(studio, tmp_path, plants.rows(4), "four")
    studio.datasets.add_text("A thought.\n\nAnother one.", name="thoughts")
    curation = studio.curation
    refused("Did you mean pii", lambda: curation.fix("four", ["pi"]), NotFoundError)
    refused("No check is named", lambda: curation.fix("four", []))
    refused("no dataset 'nine'", lambda: curation.report("nine"), NotFoundError)
    refused("no dataset 'nine'", lambda: curation.report("four", against=["nine"]), NotFoundError)
    refused("itself", lambda: curation.report("four", against=["four"]))
    refused("no base model", lambda: curation.report("four", base_model="nobody"), NotFoundError)
    refused("taken", lambda: curation.delete_rows("four", [1], name="thoughts"), TakenError)
    refused("taken", lambda: curation.fix("four", ["pii"], name="thoughts"), TakenError)
    refused("no row 5", lambda: curation.delete_rows("four", [1, 5]))
    refused("No row is named", lambda: curation.delete_rows("four", []))
    refused("No row would be left", lambda: curation.delete_rows("four", [1, 2, 3, 4]))
    refused("has messages", lambda: curation.edit_row("four", 1, {"text": "x"}))
    refused("no row: messages", lambda: curation.edit_row("four", 1, {"messages": [{"role": "king", "content": "x"}]}))
    refused("surrogate", lambda: curation.edit_row("four", 1, plants.chat("\ud800", "x")))
    refused("sft rows, and thoughts text rows", lambda: curation.merge(["four", "thoughts"]))
    refused("at least two", lambda: curation.merge(["four"]))
    refused("5 rows can't be picked of 4", lambda: curation.pick("four", 5))
    for size in (0, -1, 4, 9.5):
        refused("test_size", lambda size=size: curation.split("four", test_size=size))
    assert [each.name for each in studio.datasets.list()] == ["thoughts", "four"]
    assert len([path for path in studio.settings.datasets.iterdir() if path.is_dir()]) == 2  # nothing is left of what failed


def test_the_child_imports_nothing_heavy(tmp_path: Path) -> None:
    path = plants.write(tmp_path / "rows.jsonl", plants.rows(5))
    (tmp_path / "options.json").write_text(
        json.dumps({"path": str(path), "kind": "sft", "model_folder": str(PACKAGE_ROOT / "static/starter")})
    )
    script = (
        "import sys, runpy; sys.argv[1:] = ['options.json', 'out.json']\n"
        "try: runpy.run_module('studio.datasets.report', run_name='__main__')\n"
        "except SystemExit as left: assert left.code == 0\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'sqlalchemy', 'gradio') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert json.loads((tmp_path / "out.json").read_bytes())["lengths"]["unit"] == "tokens"


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["studio", "data", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capfd.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return call


def test_the_command_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def document(*arguments: str) -> Any:
        code, out, err = run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    rows = plants.rows(20)
    rows[4] = plants.with_words("(write to jane.doe@example.org)")(rows[4], 0)
    added = document("add", str(plants.write(tmp_path / "rows.jsonl", [*rows, rows[0]])))
    report = document("report", "rows", "--base-model", "starter", "--max-length", "2048")
    assert [(f["check"], f["count"], f["rows"]) for f in report["findings"]] == [("exact_duplicates", 1, [21]), ("pii", 1, [5])]
    assert report["lengths"]["unit"] == "tokens" and report["lengths"]["p99"] > report["lengths"]["p50"] > 0
    code, out, _ = run("report", "rows")
    assert code == 0 and "exact_duplicates  1" in out and "jane.doe" not in out and "Rows in words: p50" in out
    fixed = document("fix", "rows", "--check", "pii", "--check", "exact_duplicates", "--name", "clean")
    assert (fixed["name"], fixed["rows"], fixed["parent"]) == ("clean", 20, added["id"])
    code, out, err = run("fix", "rows", "--check", "pij")
    assert (code, out, err) == (1, "", "There is no check 'pij'. Did you mean pii?\n")
    assert document("split", "clean", "--test-size", "5", "--seed", "3")["eval"]["rows"] == 5
    assert document("merge", "clean", "rows", "--name", "both")["rows"] == 41
    assert document("pick", "clean", "--rows", "4")["rows"] == 4
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(plants.chat("a", "b"))))
    assert document("edit", "clean", "--row", "1", "--to", "-")["name"] == "clean-v2"
    assert document("drop", "clean-v2", "--row", "1", "--row", "2")["rows"] == 18
    code, _, err = run("edit", "clean", "--row", "1", "--to", "{")
    assert code == 1 and err.startswith("--to is not valid JSON")
    code, out, _ = run("versions", "clean-v2")
    assert [line.split()[1:5] for line in out.splitlines()[1:]][:2] == [["rows", "21", "add", "-"], ["clean", "20", "fix", "rows"]]
    assert len(document("versions", "rows")) == 8


def test_commands_find_exactly_what_is_planted(settings: Settings, tmp_path: Path) -> None:
    """As a person runs them: a process each, the truth read from what they print."""
    rows, where = plants.planted(60, seed=11)
    path = plants.write(tmp_path / "faulty.jsonl", rows)

    def told(*args: str | Path) -> dict[str, Any]:
        command = [sys.executable, "-m", "studio", "data", *map(str, args), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(settings.home), timeout=300, cwd=PACKAGE_ROOT)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    added = told("add", path)
    assert (added["rows"], added["skipped"], added["problems"]) == (len(rows), 0, [])
    found = {finding["check"]: (finding["count"], finding["rows"]) for finding in told("report", "faulty")["findings"]}
    assert found == {check: (len(planted), planted[: len(found[check][1])]) for check, planted in where.items()}
    assert all(shown for _, shown in found.values())


def test_over_http(settings: Settings, tmp_path: Path) -> None:
    rows = [*plants.rows(12), plants.chat("Who wrote it?", "")]
    with web(settings.home) as server, httpx.Client(base_url=f"{server.url}/api/datasets", trust_env=False, timeout=120) as client:

        def post(path: str, body: Any, status: int = 201) -> Any:
            answer = client.post(path, json=body)
            assert answer.status_code == status, answer.text
            return answer.json()

        post("/text", {"text": "\n".join(json.dumps(row) for row in rows), "name": "rows"})
        report = client.get("/rows/report", params={"base_model": "starter"}).json()
        assert counts(DatasetReport.model_validate(report)) == {"empty_answers": 1}
        assert post("/rows/fix", {"checks": ["all"]})["name"] == "rows-v2"
        assert "Did you mean" in post("/rows/fix", {"checks": ["pij"]}, 404)["error"]["fix"]
        assert post("/rows/split", {"test_size": 3})["eval"]["rows"] == 3
        assert post("/merge", {"datasets": ["rows", "rows-v2"]})["rows"] == 25
        assert post("/rows/pick", {"rows": 2})["rows"] == 2
        assert post("/rows/rows/13", {"example": plants.chat("Who wrote it?", "She did.")})["rows"] == 13
        assert post("/rows/drop", {"rows": [13]})["rows"] == 12
        assert post("/rows/drop", {"rows": [14]}, 400)["error"]["message"] == "rows has no row 14."
        assert post("/rows/fix", {"checks": ["all"], "chat_template": "x.jinja"}, 400)
        assert len(client.get("/rows/versions").json()) == 8
