"""litellm: completion, streams, forced tools, embeddings, responses, errors."""

import json

import litellm
from common import MODEL, QUESTION, TOOL, URL

asked = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": "any"}
whole = litellm.completion(messages=QUESTION, temperature=0, max_tokens=8, **asked)
stream = litellm.completion(messages=QUESTION, temperature=0, max_tokens=8, stream=True, **asked)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content
named = {"type": "function", "function": {"name": "book"}}
(call,) = litellm.completion(messages=QUESTION, tools=[TOOL], tool_choice=named, max_tokens=60, **asked).choices[0].message.tool_calls
assert isinstance(json.loads(call.function.arguments)["seat"], int)
assert len(litellm.embedding(input=["a", "b"], **asked).data) == 2
response = litellm.responses(input="Say something.", max_output_tokens=8, **asked)
assert response.output[0].content[0].text
try:
    litellm.completion(**{**asked, "model": "openai/nobody"}, messages=QUESTION)
except litellm.exceptions.NotFoundError:
    pass
else:
    raise AssertionError("a model that is not there has answered")
