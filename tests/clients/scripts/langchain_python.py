"""langchain-openai: invoke, stream, bound tools, structured output both ways, embeddings, the Responses API."""

from common import MODEL, URL
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field


class Booking(BaseModel):
    """A booked seat."""

    seat: int = Field(ge=0, le=99)


@tool
def book(seat: int) -> str:
    """Book a seat."""
    return str(seat)


chat = ChatOpenAI(base_url=URL, api_key="any", model=MODEL, temperature=0, max_tokens=60, max_retries=0)
assert chat.invoke("Hi").content == "".join(chunk.content for chunk in chat.stream("Hi"))
assert chat.bind_tools([book], tool_choice="any").invoke("Book seat 7.").tool_calls[0]["name"] == "book"
for method in ("function_calling", "json_schema"):
    assert isinstance(chat.with_structured_output(Booking, method=method).invoke("Book seat 7."), Booking), method
# check_embedding_ctx_length fetches tiktoken's file: the client's own matter
vectors = OpenAIEmbeddings(base_url=URL, api_key="any", model=MODEL, check_embedding_ctx_length=False).embed_documents(["a", "b"])
assert len(vectors) == 2 and vectors[0] != vectors[1]
responding = ChatOpenAI(base_url=URL, api_key="any", model=MODEL, temperature=0, max_tokens=60, max_retries=0, use_responses_api=True)
assert responding.invoke("Hi").text
assert responding.bind_tools([book], tool_choice="any").invoke("Book seat 7.").tool_calls[0]["name"] == "book"
