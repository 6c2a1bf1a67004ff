"""llama-index's openai-like: complete, chat, streams, function calling."""

from common import MODEL, URL
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


def book(seat: int) -> str:
    """Book a seat."""
    return str(seat)


llm = OpenAILike(
    model=MODEL,
    api_base=URL,
    api_key="any",
    is_chat_model=True,
    is_function_calling_model=True,
    max_tokens=60,
    temperature=0,
    max_retries=0,
)
assert llm.complete("Hi").text == "".join(chunk.delta for chunk in llm.stream_complete("Hi"))
assert llm.chat([ChatMessage(role="user", content="Hi")]).message.content
booked = llm.chat_with_tools([FunctionTool.from_defaults(fn=book)], user_msg="Book seat 7.", tool_required=True)
assert llm.get_tool_calls_from_response(booked)[0].tool_name == "book"
