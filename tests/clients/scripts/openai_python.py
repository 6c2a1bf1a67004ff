"""openai for Python: chat, streams, tools, forms, responses, embeddings, errors."""

import json

import openai
from common import MODEL, QUESTION, TOOL, URL

client = openai.OpenAI(base_url=URL, api_key="any", max_retries=0)
whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=8)
stream = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=8, stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == whole.choices[0].message.content
forced = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=[TOOL], tool_choice="required", max_tokens=60)
(call,) = forced.choices[0].message.tool_calls
assert call.function.name == "book" and isinstance(json.loads(call.function.arguments)["seat"], int)
flat = {"type": "function", **TOOL["function"]}
response = client.responses.create(model=MODEL, input="Book seat 7.", tools=[flat], tool_choice="required", max_output_tokens=60)
(item,) = response.output
assert item.type == "function_call" and isinstance(json.loads(item.arguments)["seat"], int)
with client.responses.stream(model=MODEL, input="Book seat 7.", tools=[flat], tool_choice="required", max_output_tokens=60) as events:
    kinds = [event.type for event in events]
assert kinds.count("response.function_call_arguments.done") == 1 and kinds[-1] == "response.completed", kinds
vectors = client.embeddings.create(model=MODEL, input=["a", "b"]).data
assert len(vectors) == 2 and len(vectors[0].embedding) == len(vectors[1].embedding) > 8
try:
    client.chat.completions.create(model="nobody", messages=QUESTION)
except openai.NotFoundError as error:
    assert error.code == "model_not_found"
else:
    raise AssertionError("a model that is not there has answered")
