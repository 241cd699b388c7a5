import type { Config } from './schema.ts';

const SECRETS = new Set(['shared_secret', 'password', 'private_key', 'secret_key', 'secret']);
const HIDDEN = '(set)';

/** Of URLs, which may name several hosts. */
const PASSWORD = /^([a-z][a-z0-9+.-]*:\/\/[^:/?#]*:)[^/?#]*(?=@)/i;
const PASSWORD_OPTION = /([?&]password=)[^&#]*/g;
const MORE_HOSTS = /,[^/?#]*/;

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
  if (typeof value !== 'string') return value;
  const shown = value.replace(PASSWORD, `$1${HIDDEN}`).replace(PASSWORD_OPTION, `$1${HIDDEN}`);
  // What is no URL after all may have its password anywhere.
  return name === 'url' && shown === value && !URL.parse(value.replace(MORE_HOSTS, '')) ? HIDDEN : shown;
}

function hideAll(values: Readonly<Record<string, unknown>>): Record<string, string> {
  return Object.fromEntries(Object.keys(values).map((name) => [name, HIDDEN]));
}
