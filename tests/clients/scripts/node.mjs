// openai for Node, and the Vercel AI SDK with its OpenAI-compatible and its own OpenAI provider (the Responses API)
import assert from "node:assert/strict";
import OpenAI from "openai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "Book seat 7, please." }];
const seat = z.object({ seat: z.number().int().min(0).max(99) });

const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const whole = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 8 });
let streamed = "";
for await (const chunk of await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 8, stream: true }))
  streamed += chunk.choices[0]?.delta?.content ?? "";
assert.equal(streamed, whole.choices[0].message.content);
const tools = [{ type: "function", function: { name: "book", parameters: z.toJSONSchema ? z.toJSONSchema(seat) : { type: "object", properties: { seat: { type: "integer" } }, required: ["seat"], additionalProperties: false } } }];
const forced = await client.chat.completions.create({ model, messages, tools, tool_choice: "required", max_tokens: 60 });
assert.equal(typeof JSON.parse(forced.choices[0].message.tool_calls[0].function.arguments).seat, "number");
const response = await client.responses.create({ model, input: "Hi", max_output_tokens: 8 });
assert.ok(response.output_text);
assert.equal((await client.embeddings.create({ model, input: ["a", "b"] })).data.length, 2);

for (const chosen of [createOpenAICompatible({ name: "studio", baseURL, apiKey: "any" })(model), createOpenAI({ baseURL, apiKey: "any" }).responses(model)]) {
  const options = { model: chosen, maxOutputTokens: 60, temperature: 0, maxRetries: 0 };
  const { text } = await generateText({ ...options, prompt: "Hi" });
  let said = "";
  for await (const part of streamText({ ...options, prompt: "Hi" }).textStream) said += part;
  assert.equal(said, text);
  const { toolCalls } = await generateText({ ...options, prompt: "Book seat 7.", tools: { book: tool({ inputSchema: seat }) }, toolChoice: "required" });
  assert.equal(typeof toolCalls[0].input.seat, "number");
}
const compatible = createOpenAICompatible({ name: "studio", baseURL, apiKey: "any", supportsStructuredOutputs: true });
const { object } = await generateObject({ model: compatible(model), schema: seat, prompt: "Book seat 7.", maxOutputTokens: 60 });
assert.equal(typeof object.seat, "number");
const { embedding } = await embed({ model: compatible.textEmbeddingModel(model), value: "a" });
assert.ok(embedding.length > 8);
