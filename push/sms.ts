import type { JsonValue } from '@trellis/protocol/event.ts';
import type { SendVerification, Verification } from '@trellis/users/threepid-sessions.ts';

export interface SmsConfig {
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  /** What is sent; `{number}` and `{text}` in its texts are filled in. */
  readonly body: Readonly<Record<string, JsonValue>>;
  /** As a form, not as JSON. */
  readonly form: boolean;
}

const TIMEOUT_MS = 15_000;

/** Sends text messages by the HTTP gateway of the configuration. */
export function smsSender(config: SmsConfig, serverName: string): SendVerification {
  return async (verification) => {
    const text = textOf(verification, serverName);
    if (text === undefined) return;
    const body = fill({ ...config.body }, { number: `+${verification.address}`, text });
    const response = await fetch(config.url, {
      method: 'POST',
      headers: {
        'content-type': config.form ? 'application/x-www-form-urlencoded' : 'application/json',
        ...config.headers,
      },
      body: config.form ? formOf(body as Record<string, JsonValue>) : JSON.stringify(body),
      redirect: 'error',
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    await response.body?.cancel();
    if (!response.ok) throw new Error(`the gateway for text messages answered ${response.status}`);
  };
}

/** Whoever types in numbers of others is not to make text messages go there: strangers get none. */
function textOf(verification: Verification, serverName: string): string | undefined {
  switch (verification.kind) {
    case 'confirm':
      return `${verification.token} is your code for ${serverName}. If you did not ask for it, take no notice.`;
    case 'in-use':
      return `An account on ${serverName} has this number already. If you forgot its password, have your app set a new one.`;
    case 'unknown':
      return undefined;
  }
}

function fill(value: JsonValue, values: Readonly<Record<string, string>>): JsonValue {
  if (typeof value === 'string')
    return value.replace(/\{(number|text)\}/g, (_all, name: string) => values[name]!);
  if (Array.isArray(value)) return value.map((item) => fill(item, values));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, fill(item, values)]));
}

function formOf(body: Record<string, JsonValue>): string {
  return new URLSearchParams(Object.entries(body).map(([key, value]) => [key, String(value)])).toString();
}
