// Drives a gateway with OpenAI's own library for Node and prints, as JSON, what it understood.
// BASE_URL, API_KEY, MODEL, OBLIGING (a model that does what it is asked), EMBEDDER and POOR_KEY (a customer without
// credit) come from the environment.

import OpenAI from "openai";
import { makeParseableResponseFormat, makeParseableTextFormat } from "openai/lib/parser";

const { BASE_URL, API_KEY, POOR_KEY, MODEL, OBLIGING, EMBEDDER } = process.env;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY });
const messages = [{ role: "user", content: "Tell me of trees." }];
const told = {};

async function refusal(action) {
  let requests = 0;
  const counting = (...args) => { requests += 1; return fetch(...args); };
  try {
    await action((key) => new OpenAI({ baseURL: BASE_URL, apiKey: key, fetch: counting }));
  } catch (error) {
    const { status, code, param } = error;
    return { name: error.constructor.name, status, code, param, requests, id: error.requestID ?? null };
  }
  return null;
}

async function collected(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return {
    text: chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? chunk.choices[0]?.text ?? "").join(""),
    usages: chunks.map((chunk) => chunk.usage).filter(Boolean),
    finish: chunks.map((chunk) => chunk.choices[0]?.finish_reason).filter(Boolean),
  };
}

const chat = (options, extra) => client.chat.completions.create({ model: MODEL, messages, max_tokens: 8, ...options }, extra);

const plain = await chat({});
told.plain = { text: plain.choices[0].message.content, usage: plain.usage, id: plain._request_id };
told.streamed = await collected(await chat({ stream: true }));
told.streamed_with_usage = await collected(await chat({ stream: true, stream_options: { include_usage: true } }));
const raw = await chat({}).withResponse();
told.raw = { entry: raw.response.headers.get("x-darktree-entry-id"), usage: raw.data.usage };
told.completion = (await client.completions.create({ model: MODEL, prompt: "Once", max_tokens: 5 })).usage;
told.completion_streamed = await collected(
  await client.completions.create({ model: MODEL, prompt: "Once", max_tokens: 5, stream: true }),
);
const runner = client.chat.completions.stream({ model: MODEL, messages, max_tokens: 8, stream_options: { include_usage: true } });
told.assembled = { usage: await runner.totalUsage(), text: await runner.finalContent() };
told.two = (await chat({ n: 2 })).choices.map((choice) => choice.index);
told.logprobs = (await chat({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content.length;
told.models = [];
for await (const model of client.models.list()) told.models.push(model.id);
told.model = (await client.models.retrieve(MODEL)).id;
told.count = (await client.post("/tokenize", { body: { model: MODEL, messages } })).count;

const obliging = { model: OBLIGING, messages };
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const form = { name: "place", strict: true, schema };
told.parsed = (
  await client.chat.completions.parse({
    ...obliging,
    response_format: makeParseableResponseFormat({ type: "json_schema", json_schema: form }, JSON.parse),
  })
).choices[0].message.parsed;
const ran = [];
const runs = client.chat.completions.runTools({
  ...obliging,
  tools: [
    {
      type: "function",
      function: {
        name: "weather",
        description: "Tells the weather.",
        parameters: schema,
        parse: JSON.parse,
        function: (place) => { ran.push(place); return "Dry."; },
      },
    },
  ],
});
told.tools = { text: await runs.finalContent(), ran };

const response = await client.responses.create({ model: OBLIGING, input: "Which city?" });
told.response = { text: response.output_text, usage: response.usage };
const streaming = client.responses.stream({ model: OBLIGING, input: "Which city?" });
const deltas = [];
streaming.on("response.output_text.delta", (event) => deltas.push(event.delta));
const final = await streaming.finalResponse();
told.response_streamed = { text: final.output_text, usage: final.usage, deltas };
told.response_parsed = (
  await client.responses.parse({
    model: OBLIGING,
    input: "Which city?",
    text: { format: makeParseableTextFormat({ type: "json_schema", ...form }, JSON.parse) },
  })
).output_parsed;

const embedded = await client.embeddings.create({ model: EMBEDDER, input: ["a", "bc"] });
told.vectors = embedded.data.map((row) => row.embedding.length);

let requests = 0;
const counting = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, fetch: (...args) => { requests += 1; return fetch(...args); } });
const fails = [{ role: "user", content: "fail once, Node" }];
const repeated = await counting.chat.completions.create({ model: OBLIGING, messages: fails });
told.repeated = { text: repeated.choices[0].message.content, requests };
try {
  const waits = [{ role: "user", content: "wait" }];
  await client.chat.completions.create({ model: OBLIGING, messages: waits }, { timeout: 300, maxRetries: 0 });
} catch (error) {
  told.late = error.constructor.name;
}

const left = await chat({ stream: true, max_tokens: 4000, ignore_eos: true });
for await (const _ of left) break; // aborts the request

told.refusals = {
  key: await refusal((as) => as("sk-nobody").models.list()),
  model: await refusal((as) => as(API_KEY).chat.completions.create({ model: "nothing", messages })),
  field: await refusal((as) => as(API_KEY).chat.completions.create({ model: MODEL, messages, temperature: 9 })),
  image: await refusal((as) =>
    as(API_KEY).chat.completions.create({
      model: MODEL,
      messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "data:image/png;base64,AA==" } }] }],
    }),
  ),
  path: await refusal((as) => as(API_KEY).moderations.create({ input: "x" })),
  credit: await refusal((as) => as(POOR_KEY).chat.completions.create({ model: MODEL, messages })),
};
console.log(JSON.stringify(told));
