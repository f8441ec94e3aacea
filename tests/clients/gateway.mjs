// Where the gateway under test is, and what to do when something that a test needs is not there.

import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";

/** Base URL of the running gateway, without a slash at its end; empty if none was named. */
export const url = (process.env.SLUICEGATE_URL ?? "").replace(/\/+$/, "");

/** Base URL of its ops listener; empty if none was named. */
export const opsUrl = (process.env.SLUICEGATE_OPS_URL ?? "").replace(/\/+$/, "");

/** Base URL of its TLS listener, where QUIC is spoken, too; empty if none was named. */
export const tlsUrl = (process.env.SLUICEGATE_TLS_URL ?? "").replace(/\/+$/, "");

/** The file of that listener's certificate; empty if none was named. */
export const certificate = process.env.SLUICEGATE_CERT ?? "";

/**
 * Options for `node:test`: skips, with the reason, when what is needed is missing; in CI that is a
 * failure instead, because a test that never runs proves nothing.
 */
export function needs(...missing) {
  const reasons = [url ? null : "SLUICEGATE_URL names no gateway", ...missing].filter(Boolean);
  if (reasons.length && process.env.CI) throw new Error(`In CI nothing may be missing: ${reasons.join(", ")}.`);
  return { skip: reasons.length ? reasons.join(", ") : false, timeout: 60_000 };
}

/** `null` if `name` is on the PATH (or is a file), else what to say about it. */
export function missingProgram(name) {
  const places = name.includes("/") ? [name] : (process.env.PATH ?? "").split(delimiter).map((dir) => join(dir, name));
  return places.some(existsSync) ? null : `${name} is not installed`;
}
