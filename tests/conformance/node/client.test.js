// The official client for Node, unchanged, against a gateway at GATEWAY_URL (which ends in /v1).
//
// Its models: Lexi is well and says EXPECTED_TEXT, desk/tiny-1 is too; cut, garbled, endless and stalling break off,
// busy answers 429 and failing 500, slow does not answer, nothing listens at away.

import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import OpenAI from 'openai';

const need = (name) => process.env[name] ?? assert.fail(`set ${name}`);
const baseURL = need('GATEWAY_URL');
const text = need('EXPECTED_TEXT');
const connect = (key, more = {}) => new OpenAI({ baseURL, apiKey: need(key), maxRetries: 0, timeout: 30_000, ...more });
const messages = [{ role: 'user', content: 'How is the desk?' }];
const price = {
  type: 'function',
  function: { name: 'price', parameters: { type: 'object', properties: { ticker: { type: 'string' } } } },
};

let client;
before(() => {
  client = connect('GATEWAY_API_KEY');
});

const collect = async (stream) => {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
};

const refusal = async (promise, kind) => {
  let caught;
  await assert.rejects(promise, (error) => {
    caught = error;
    return true;
  });
  assert.equal(caught.constructor, kind, `${caught}`);
  return caught;
};

describe('chat', () => {
  it('answers whole', async () => {
    const answer = await client.chat.completions.create({ model: 'Lexi', messages, seed: 7 });
    assert.equal(answer.choices[0].message.content, text);
    assert.equal(answer.choices[0].finish_reason, 'stop');
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert.equal(answer.system_fingerprint, 'seed-7');
    assert.ok(answer._request_id);
  });

  it('answers as a stream', async () => {
    const chunks = await collect(await client.chat.completions.create({ model: 'desk/tiny-1', messages, stream: true }));
    assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? '').join(''), text);
    assert.equal(chunks.at(-1).choices[0].finish_reason, 'stop');
  });

  it('counts the tokens of a stream where asked', async () => {
    const stream_options = { include_usage: true };
    const chunks = await collect(await client.chat.completions.create({ model: 'Lexi', messages, stream: true, stream_options }));
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.ok(chunks.at(-1).usage.completion_tokens > 0);
  });

  it('works with the stream helper', async () => {
    const pieces = [];
    const runner = client.chat.completions.stream({ model: 'Lexi', messages }).on('content', (piece) => pieces.push(piece));
    const final = await runner.finalChatCompletion();
    assert.equal(pieces.join(''), text);
    assert.equal(final.choices[0].message.content, text);
  });

  it('gives the raw answer with its headers', async () => {
    const headers = { 'X-Request-Id': 'node-1' };
    const { data, response, request_id } = await client.chat.completions
      .create({ model: 'Lexi', messages }, { headers })
      .withResponse();
    assert.equal(data.choices[0].message.content, text);
    assert.equal(request_id, 'node-1');
    assert.equal(response.headers.get('x-lexi-upstream'), 'lexi');
    assert.equal(response.headers.get('x-lexi-cache'), 'bypass');
    assert.match(response.headers.get('server-timing'), /upstream;dur=/);
  });

  it('gives two choices', async () => {
    const whole = await client.chat.completions.create({ model: 'Lexi', messages, n: 2 });
    assert.deepEqual(whole.choices.map((choice) => choice.index), [0, 1]);
    const chunks = await collect(await client.chat.completions.create({ model: 'Lexi', messages, n: 2, stream: true }));
    const finished = chunks.flatMap((chunk) => chunk.choices).filter((choice) => choice.finish_reason);
    assert.deepEqual(finished.map((choice) => choice.index).sort(), [0, 1]);
  });

  it('calls tools', async () => {
    const asked = { model: 'Lexi', messages, tools: [price] };
    const whole = await client.chat.completions.create(asked);
    assert.equal(whole.choices[0].finish_reason, 'tool_calls');
    const streamed = await client.chat.completions.stream(asked).finalChatCompletion();
    for (const answer of [whole, streamed]) {
      const [call] = answer.choices[0].message.tool_calls;
      assert.equal(call.function.name, 'price');
      assert.deepEqual(JSON.parse(call.function.arguments), { ticker: 'AAPL' });
    }
  });

  it('gives log probabilities', async () => {
    const answer = await client.chat.completions.create({ model: 'Lexi', messages, logprobs: true, top_logprobs: 2 });
    assert.ok(answer.choices[0].logprobs.content.every((token) => token.logprob < 0 && token.top_logprobs.length === 2));
  });

  it('parses an answer within a schema', async () => {
    const schema = { type: 'object', properties: { allow: { type: 'boolean' } }, required: ['allow'] };
    const response_format = { type: 'json_schema', json_schema: { name: 'verdict', strict: true, schema } };
    const answer = await client.chat.completions.parse({ model: 'Lexi', messages, response_format });
    assert.deepEqual(JSON.parse(answer.choices[0].message.content), { allow: true });
  });

  it("passes on the engine's own fields", async () => {
    const own = { structured_outputs: { choice: ['OK', 'NO'] }, top_k: 20 };
    const answer = await client.chat.completions.create({ model: 'Lexi', messages, ...own });
    assert.equal(answer.choices[0].message.content, 'OK');
  });
});

describe('other endpoints', () => {
  it('completes', async () => {
    const whole = await client.completions.create({ model: 'Lexi', prompt: 'The desk is' });
    assert.equal(whole.choices[0].text, text);
    const pieces = await collect(await client.completions.create({ model: 'Lexi', prompt: 'The desk is', stream: true }));
    assert.equal(pieces.map((piece) => piece.choices[0].text).join(''), text);
  });

  it('embeds, in the format the client asks for of its own accord and in floats', async () => {
    const asked = { model: 'Lexi', input: ['a limit order', 'a market order'] };
    const packed = await client.embeddings.create(asked);
    const plain = await client.embeddings.create({ ...asked, encoding_format: 'float' });
    assert.deepEqual(packed.data.map((vector) => vector.embedding.length), [8, 8]);
    packed.data.forEach((vector, index) =>
      vector.embedding.forEach((value, at) => assert.ok(Math.abs(value - plain.data[index].embedding[at]) < 1e-6)),
    );
  });

  it('responds', async () => {
    const whole = await client.responses.create({ model: 'Lexi', input: 'How is the desk?' });
    assert.equal(whole.status, 'completed');
    assert.equal(whole.output_text, text);
    const events = await collect(await client.responses.create({ model: 'Lexi', input: 'How is the desk?', stream: true }));
    assert.equal(events.at(-1).type, 'response.completed');
    const deltas = events.filter((event) => event.type === 'response.output_text.delta');
    assert.equal(deltas.map((event) => event.delta).join(''), text);
    const final = await client.responses.stream({ model: 'Lexi', input: 'How is the desk?' }).finalResponse();
    assert.equal(final.output_text, text);
  });

  it('lists the models', async () => {
    const ids = (await collect(client.models.list())).map((model) => model.id);
    assert.ok(ids.includes('Lexi') && ids.includes('desk/tiny-1'));
    assert.equal((await client.models.retrieve('desk/tiny-1')).id, 'desk/tiny-1');
  });
});

describe('errors', () => {
  const ask = (model = 'Lexi', more = {}, by = client) => by.chat.completions.create({ model, messages, ...more });

  it('are those of the status', async () => {
    const wrong = new OpenAI({ baseURL, apiKey: 'wrong', maxRetries: 0 });
    assert.equal((await refusal(ask('Lexi', {}, wrong), OpenAI.AuthenticationError)).code, 'invalid_api_key');
    const reader = await refusal(ask('Lexi', {}, connect('GATEWAY_READER_KEY')), OpenAI.PermissionDeniedError);
    assert.equal(reader.code, 'insufficient_scope');
    const narrow = await refusal(ask('Lexi', {}, connect('GATEWAY_NARROW_KEY')), OpenAI.PermissionDeniedError);
    assert.equal(narrow.code, 'model_not_allowed');
    assert.equal((await refusal(ask('gpt-99'), OpenAI.NotFoundError)).code, 'model_not_found');
    const refused = await refusal(ask('Lexi', { base_url: 'http://127.0.0.1:1' }), OpenAI.BadRequestError);
    assert.deepEqual([refused.code, refused.param], ['field_refused', 'base_url']);
    assert.equal((await refusal(ask('failing'), OpenAI.InternalServerError)).status, 500);
    assert.equal((await refusal(ask('away'), OpenAI.InternalServerError)).status, 503);
  });

  it('of a limit name the time to wait', async () => {
    const hasty = connect('GATEWAY_HASTY_KEY');
    await ask('Lexi', {}, hasty);
    const limited = await refusal(ask('Lexi', {}, hasty), OpenAI.RateLimitError);
    assert.equal(limited.code, 'rate_limit_exceeded');
    assert.ok(Number(limited.headers.get('retry-after')) >= 1);
    const busy = await refusal(ask('busy'), OpenAI.RateLimitError);
    assert.deepEqual([busy.code, busy.headers.get('retry-after')], ['upstream_busy', '1']);
  });

  it('of a deadline are not tried again', async () => {
    const headers = { 'X-Deadline-Ms': '300' };
    const stubborn = connect('GATEWAY_API_KEY', { maxRetries: 2 });
    const late = await refusal(
      stubborn.chat.completions.create({ model: 'slow', messages }, { headers }),
      OpenAI.InternalServerError,
    );
    assert.deepEqual([late.status, late.code], [504, 'deadline_exceeded']);
    assert.equal(late.headers.get('x-should-retry'), 'false');
  });

  it('of patience are the timeout', async () => {
    const hurried = connect('GATEWAY_API_KEY', { timeout: 300 });
    await refusal(hurried.chat.completions.create({ model: 'slow', messages }), OpenAI.APIConnectionTimeoutError);
  });

  for (const [model, code] of [
    ['cut', 'broken_stream'],
    ['garbled', 'broken_stream'],
    ['endless', 'broken_stream'],
    ['stalling', 'idle_timeout'],
  ]) {
    it(`end a stream that breaks off (${model})`, async () => {
      const stream = await client.chat.completions.create({ model, messages, stream: true });
      const error = await refusal(collect(stream), OpenAI.APIError);
      assert.equal(error.code, code);
    });
  }

  it('end a response that breaks off', async () => {
    const stream = await client.responses.create({ model: 'cut', input: 'How is the desk?', stream: true });
    const error = await refusal(collect(stream), OpenAI.APIError);
    assert.equal(error.code, 'broken_stream');
  });
});
