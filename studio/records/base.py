"""What every record shares."""

from __future__ import annotations

from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict


class Record(PydanticModel):
    """A frozen record that refuses unknown fields. Times are seconds since the epoch (UTC), durations seconds, sizes bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)


class Deleted(Record):
    """What was deleted, with its files."""

    id: str
    name: str
    deleted: bool = True
