// office-hours: large requests wait for the evening. The shell around hours.js that speaks to
// the host, in the shapes of the WIT: records are objects with names in camel case, variants are
// { tag, val }, `none` is null, and the error of a `result` is thrown.

import log from "interlock:policy/log@0.2.0";
import { decide, read, reasons } from "./hours.js";

const MICROS_A_MINUTE = 60e6;
const no_timeouts = { queue: null, firstToken: null, interToken: null, total: null };

let settings;

export const lifecycle = {
  init(config) {
    settings = read(config);
    return {
      name: "office-hours",
      version: "0.1.0",
      reasons,
      metrics: [],
      needs: ["headers:x-job"],
      watch: { events: {}, stalledAfter: null, guarding: { tag: "off" } },
      settingsSchema: "",
    };
  },
};

// What is thrown outside `init` is a trap without a message: say it before.
function aloud(decision) {
  try {
    return decision();
  } catch (error) {
    log.write("error", `${error}\n${error.stack ?? ""}`);
    throw error;
  }
}

export const admit = {
  admit: (request, _load) => aloud(() => {
    const { reason, priority, tokens, minutes } = decide(settings, request);
    const because = reasons.indexOf(reason);
    if (minutes === undefined) {
      return {
        tag: "admit",
        val: {
          plan: {
            priority: priority ?? null,
            timeouts: no_timeouts,
            onDisconnect: null,
            maxTokens: null,
          },
          watch: null,
          note: "",
          headers: [],
          reason: because,
        },
      };
    }
    log.write("info", `${request.tenant || "someone"} asked for ${tokens} tokens in office hours`);
    return {
      tag: "reject",
      val: {
        status: 429,
        reason: because,
        detail:
          `This needs ${tokens} tokens; until ${settings.to}:00 at most ${settings.tokens_max} ` +
          "may be asked for at once. Come back later, or send `x-job: batch`.",
        retryAfter: minutes * MICROS_A_MINUTE,
        headers: [],
      },
    };
  }),
};
