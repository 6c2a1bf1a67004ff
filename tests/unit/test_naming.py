"""Names: how one is found, chosen and suggested, the same for every noun."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from studio.db.models import AdapterRow, JobRow, new_id
from studio.errors import NotFoundError, StudioError, TakenError
from studio.services import Studio, naming
from studio.settings import Settings


@pytest.fixture
def session(settings: Settings) -> Iterator[Session]:
    opened = Studio.open(settings)
    with opened.db.write() as writing:
        for name in ("greeter", "teller"):
            writing.add(AdapterRow(id=f"id-of-{name}", name=name, base_model="starter", method="lora", path="", bytes=1))
        writing.add(AdapterRow(id="third", name="id-of-teller", base_model="starter", method="lora", path="", bytes=1))
        writing.add_all([JobRow(id="export", name="written", kind="export"), JobRow(id="train", name="trained", kind="train")])
    with opened.db.read() as reading:
        yield reading
    opened.db.dispose()


def test_new_ids_are_ten_characters_that_can_be_read_aloud() -> None:
    ids = {new_id() for _ in range(200)}
    assert len(ids) == 200 and {len(made) for made in ids} == {10}
    assert not set("".join(ids)) - set("abcdefghijkmnpqrstuvwxyz23456789")


def test_a_row_is_found_by_its_name_and_first_by_its_id(session: Session) -> None:
    assert naming.look_up(session, AdapterRow, "greeter", "adapter").id == "id-of-greeter"
    assert naming.look_up(session, AdapterRow, "id-of-teller", "adapter").name == "teller"  # another one has this as its name


def test_an_unknown_name_is_refused_with_near_ones_of_the_rows_that_are_meant(session: Session) -> None:
    with pytest.raises(NotFoundError) as unknown:
        naming.look_up(session, AdapterRow, "greter", "adapter")
    assert (unknown.value.message, unknown.value.fix) == ("There is no adapter 'greter'.", "Did you mean greeter or teller?")
    is_export = JobRow.kind == "export"
    assert naming.look_up(session, JobRow, "written", "export", is_export).id == "export"
    with pytest.raises(NotFoundError) as other:
        naming.look_up(session, JobRow, "trained", "export", is_export)
    assert "trained" not in other.value.fix and "written" in other.value.fix


def test_a_given_name_must_be_free_and_a_made_one_becomes_so(session: Session) -> None:
    is_taken = naming.taken_in(session, AdapterRow.name, JobRow.name)
    assert naming.choose(None, "greeter", is_taken) == "greeter-2"
    assert naming.choose("", "trained", is_taken) == "trained-2"  # of the second column
    assert naming.choose("fresh", "greeter", is_taken) == "fresh"
    for name, error in (("written", TakenError), ("base", StudioError), ("a/b", StudioError)):
        with pytest.raises(error):
            naming.choose(name, "greeter", is_taken)
    with pytest.raises(TakenError, match="greeter"):
        naming.choose("greeter", "other", is_taken)


@pytest.mark.parametrize(
    ("stem", "name"), [("my file.v2", "my-file.v2"), ("base", "my-base"), ("…", "unnamed"), ("x" * 80, "x" * 60), ("_a_", "a")]
)
def test_a_files_stem_becomes_a_valid_name(stem: str, name: str) -> None:
    assert naming.from_stem(stem) == name and naming.valid(name)


def test_a_long_name_gets_its_number_within_the_limit() -> None:
    long = "x" * naming.LENGTH
    assert naming.unique(long, {long}.__contains__) == "x" * (naming.LENGTH - 2) + "-2"
