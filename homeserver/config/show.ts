import type { Config } from './schema.ts';

const SECRETS = new Set(['shared_secret', 'password', 'private_key', 'secret_key', 'secret']);
const HIDDEN = '(set)';

/** A configuration as JSON without its secrets: what is shown may be pasted where others read it. */
export function showConfig(config: Config): string {
  const { sms } = config;
  return JSON.stringify(
    // The gateway for text messages is sent its credentials in places that no one can foresee.
    {
      ...config,
      sms: sms && { ...sms, url: HIDDEN, headers: hideAll(sms.headers), body: hideAll(sms.body) },
    },
    hideSecret,
    2,
  );
}

function hideSecret(name: string, value: unknown): unknown {
  if (SECRETS.has(name)) return HIDDEN;
  if (name === 'url' && typeof value === 'string') return withoutPassword(value);
  return value;
}

function hideAll(values: Readonly<Record<string, unknown>>): Record<string, string> {
  return Object.fromEntries(Object.keys(values).map((name) => [name, HIDDEN]));
}

function withoutPassword(text: string): string {
  const url = URL.parse(text);
  if (!url) return HIDDEN;
  if (url.password === '' && !url.searchParams.has('password')) return text;
  if (url.password !== '') url.password = HIDDEN;
  if (url.searchParams.has('password')) url.searchParams.set('password', HIDDEN);
  return decodeURI(url.href);
}
