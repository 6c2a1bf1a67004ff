"""instructor in its default mode, TOOLS, and in TOOLS_STRICT and JSON_SCHEMA."""

import instructor
import openai
from common import MODEL, QUESTION, URL
from pydantic import BaseModel, Field


class Booking(BaseModel, extra="forbid"):  # a model as small as the starter would not stop adding fields
    """A booked seat."""

    seat: int = Field(ge=0, le=99)


def client() -> openai.OpenAI:
    return openai.OpenAI(base_url=URL, api_key="any", max_retries=0)


for made in (
    instructor.from_openai(client()),
    instructor.from_openai(client(), mode=instructor.Mode.TOOLS_STRICT),
    instructor.from_openai(client(), mode=instructor.Mode.JSON_SCHEMA),
):
    booking = made.chat.completions.create(
        model=MODEL, messages=QUESTION, response_model=Booking, max_retries=1, max_tokens=60, temperature=0
    )
    assert isinstance(booking, Booking)
