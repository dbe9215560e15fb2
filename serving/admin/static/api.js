// Calls of /admin/api. Holds no secret: the session is a cookie that scripts cannot read.

const TIMEOUT_MS = 8000;
export const API = "admin/api/"; // relative, so that a proxy may serve the page under a prefix

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

export async function call(path, body, timeoutMs = TIMEOUT_MS) {
  const answer = await request(path, body, AbortSignal.timeout(timeoutMs));
  return answer.status === 204 ? null : answer.json();
}

/** The answer itself, for who reads it as it comes. */
export async function request(path, body, signal) {
  const options = { headers: { "X-OSD-Admin": "1" }, signal, credentials: "same-origin" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(API + path, options);
  if (answer.ok) return answer;
  const error = await answer.json().catch(() => null);
  throw new Refused(answer.status, error?.error?.message ?? `HTTP ${answer.status}`);
}
