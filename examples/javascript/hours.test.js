// node --test examples/javascript/hours.test.js

import assert from "node:assert/strict";
import { test } from "node:test";
import { decide, openFor, read, reasons } from "./hours.js";

const at = (date) => Date.parse(date) * 1000;
const monday = "2026-11-23T09:30:00Z";
const berlin = read('{"utc_offset_minutes": 60, "tokens_max": 1000, "exempt": ["board"]}');

function check(expected, facts = {}) {
  const request = {
    arrivedAt: at(monday),
    promptTokens: 2000,
    maxTokens: 4000,
    maxTokensAsked: false,
    tenant: "",
    headers: [],
    ...facts,
  };
  const decision = decide(berlin, request);
  assert.ok(reasons.includes(decision.reason));
  assert.deepEqual(decision, expected);
}

test("a large request waits for the evening", () => {
  check({ reason: "too_large_in_hours", tokens: 2000, minutes: 450 });
  check({ reason: "after_hours" }, { arrivedAt: at("2026-11-23T17:00:00Z") });
});

test("tokens to generate count when the client named them", () => {
  check({ reason: "small" }, { promptTokens: 1000 });
  const asked = { promptTokens: 1, maxTokens: 1000, maxTokensAsked: true };
  check({ reason: "too_large_in_hours", tokens: 1001, minutes: 450 }, asked);
});

test("who says that nobody waits gets in, behind the others", () => {
  check({ reason: "batch_job", priority: "batch" }, { headers: [{ name: "x-job", value: "batch" }] });
});

test("a tenant may be exempt", () => check({ reason: "exempt" }, { tenant: "board" }));

test("the office is closed on weekends and opens at eight where it stands", () => {
  assert.equal(openFor(berlin, at("2026-11-21T09:30:00Z")), 0);
  assert.equal(openFor(berlin, at("2026-11-22T09:30:00Z")), 0);
  assert.equal(openFor(berlin, at("2026-11-23T06:59:59Z")), 0);
  assert.equal(openFor(berlin, at("2026-11-23T07:00:00Z")), 600);
});

test("settings that make no sense are named", () => {
  const says = (text, sentence) => assert.throws(() => read(text), (thrown) => thrown === sentence);
  says('{"to": 7}', "to must be a whole number from 9 to 24, got 7");
  says('{"exempt": "board"}', 'exempt must be a list of tenants, got "board"');
  says(
    '{"tokens": 7}',
    "tokens is no setting of this policy; there are from, to, utc_offset_minutes, tokens_max, exempt",
  );
});
