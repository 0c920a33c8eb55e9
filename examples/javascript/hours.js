// What office-hours decides. Knows neither the host nor WebAssembly, so node can test it.

/** Why it decides, in the order of the numbers that decisions carry. */
export const reasons = ["small", "after_hours", "exempt", "batch_job", "too_large_in_hours"];

const MICROS_A_MINUTE = 60e6;
const MINUTES_A_DAY = 24 * 60;
const defaults = { from: 8, to: 18, utc_offset_minutes: 0, tokens_max: 8000, exempt: [] };

/** The settings, whole and checked. Throws a sentence that names the key and the value. */
export function read(text) {
  const given = JSON.parse(text);
  for (const key of Object.keys(given)) {
    if (!Object.hasOwn(defaults, key)) {
      throw `${key} is no setting of this policy; there are ${Object.keys(defaults).join(", ")}`;
    }
  }
  const settings = { ...defaults, ...given };
  const whole = (key, least, most) => {
    const value = settings[key];
    if (!Number.isInteger(value) || value < least || value > most) {
      throw `${key} must be a whole number from ${least} to ${most}, got ${JSON.stringify(value)}`;
    }
  };
  whole("from", 0, 23);
  whole("to", settings.from + 1, 24);
  whole("utc_offset_minutes", -14 * 60, 14 * 60);
  whole("tokens_max", 1, 2 ** 32 - 1);
  const { exempt } = settings;
  if (!Array.isArray(exempt) || !exempt.every((tenant) => typeof tenant === "string")) {
    throw `exempt must be a list of tenants, got ${JSON.stringify(exempt)}`;
  }
  return settings;
}

/** Minutes until the office closes, or 0 when it is closed: at night and on weekends. */
export function openFor(settings, arrivedAt) {
  const local = Math.floor(arrivedAt / MICROS_A_MINUTE) + settings.utc_offset_minutes;
  const day = Math.floor(local / MINUTES_A_DAY);
  const minute = local - day * MINUTES_A_DAY;
  const weekday = (day + 4) % 7; // the epoch began on a Thursday; 0 is Sunday
  const workday = weekday !== 0 && weekday !== 6;
  const open = workday && minute >= settings.from * 60 && minute < settings.to * 60;
  return open ? settings.to * 60 - minute : 0;
}

/** Does its client say that nobody waits for it? */
const isBatch = (request) =>
  request.headers.some(({ name, value }) => name === "x-job" && value === "batch");

/** Decides: `{ reason }`, with a priority for those let in or with minutes for those turned away. */
export function decide(settings, request) {
  if (isBatch(request)) return { reason: "batch_job", priority: "batch" };
  if (settings.exempt.includes(request.tenant)) return { reason: "exempt" };
  const tokens = request.promptTokens + (request.maxTokensAsked ? request.maxTokens : 0);
  if (tokens <= settings.tokens_max) return { reason: "small" };
  const minutes = openFor(settings, request.arrivedAt);
  if (minutes === 0) return { reason: "after_hours" };
  return { reason: "too_large_in_hours", tokens, minutes };
}
