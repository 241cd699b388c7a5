import { readFileSync } from 'node:fs';
import { isLocalpart } from '@trellis/protocol/identifiers.ts';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import { parse, YAMLParseError } from 'yaml';
import { compile, type Namespace } from './namespaces.ts';

/** What an application service's file says of it (Application Service API, "Registration"). */
export interface Registration {
  readonly id: string;
  /** Without a slash at the end. `undefined`: it makes requests but gets none. */
  readonly url: string | undefined;
  readonly asToken: string;
  readonly hsToken: string;
  readonly senderLocalpart: string;
  readonly users: readonly Namespace[];
  readonly aliases: readonly Namespace[];
  readonly rooms: readonly Namespace[];
  readonly rateLimited: boolean;
  readonly protocols: readonly string[];
  /** Ephemeral data is sent under its name in the specification. */
  readonly receiveEphemeral: boolean;
  /** It is sent under the name that it had in MSC2409. */
  readonly pushEphemeral: boolean;
  /** Changes of device lists and counts of one-time keys are sent (MSC3202). */
  readonly deviceNews: boolean;
}

/** What is wrong with a registration file, in words for whoever runs the server. */
export class RegistrationError extends Error {
  override readonly name = 'RegistrationError';
}

const text = Type.String({ minLength: 1 });
const flag = Type.Optional(Type.Union([Type.Boolean(), Type.Null()]));
/** YAML makes `null` of a name with nothing behind it. */
const list = <T extends ReturnType<typeof Type.Object> | typeof text>(items: T) =>
  Type.Optional(Type.Union([Type.Array(items), Type.Null()]));
const namespaces = list(Type.Object({ exclusive: flag, regex: text }));

const schema = Type.Object({
  id: text,
  url: Type.Union([Type.String(), Type.Null()]),
  as_token: text,
  hs_token: text,
  sender_localpart: text,
  namespaces: Type.Object({ users: namespaces, aliases: namespaces, rooms: namespaces }),
  rate_limited: flag,
  protocols: list(text),
  receive_ephemeral: flag,
  'de.sorunome.msc2409.push_ephemeral': flag,
  'org.matrix.msc3202': flag,
  // Application services may make devices for their users whether they say that they will or not.
  'io.element.msc4190': flag,
});
type RegistrationFile = Static<typeof schema>;

/**
 * Reads the files of all application services.
 *
 * @throws RegistrationError with the file, the option and what is wrong with it
 */
export function loadRegistrations(files: readonly string[]): Registration[] {
  const registrations = files.map(loadRegistration);
  for (const [option, valueIn] of [
    ['id', ({ id }: Registration) => id],
    ['as_token', ({ asToken }: Registration) => asToken],
  ] as const) {
    const seen = new Map<string, string>();
    for (const [i, registration] of registrations.entries()) {
      const other = seen.get(valueIn(registration));
      if (other !== undefined)
        throw new RegistrationError(`${files[i]}: ${option}: it is the same as in ${other}`);
      seen.set(valueIn(registration), files[i]!);
    }
  }
  return registrations;
}

function loadRegistration(file: string): Registration {
  let content: string;
  try {
    content = readFileSync(file, 'utf8');
  } catch (error) {
    throw new RegistrationError(
      `application_services: cannot read a registration: ${(error as Error).message}`,
    );
  }
  return readRegistration(content, file);
}

/** @param file for messages */
export function readRegistration(content: string, file: string): Registration {
  const value = parsed(content, file);
  const problems = problemsOf(value);
  if (problems.length > 0)
    throw new RegistrationError(`${file}:\n${problems.map((line) => `  ${line}`).join('\n')}`);
  const registration = value as RegistrationFile;
  const namespacesOf = (kind: 'users' | 'aliases' | 'rooms') =>
    (registration.namespaces[kind] ?? []).map(({ exclusive, regex }) => ({
      exclusive: exclusive ?? false,
      regex,
    }));
  return {
    id: registration.id,
    url: registration.url?.replace(/\/+$/, '') || undefined,
    asToken: registration.as_token,
    hsToken: registration.hs_token,
    senderLocalpart: registration.sender_localpart,
    users: namespacesOf('users'),
    aliases: namespacesOf('aliases'),
    rooms: namespacesOf('rooms'),
    rateLimited: registration.rate_limited ?? true,
    protocols: registration.protocols ?? [],
    receiveEphemeral: registration.receive_ephemeral ?? false,
    pushEphemeral: registration['de.sorunome.msc2409.push_ephemeral'] ?? false,
    deviceNews: registration['org.matrix.msc3202'] ?? false,
  };
}

function parsed(content: string, file: string): unknown {
  try {
    return parse(content) ?? {};
  } catch (error) {
    if (!(error instanceof YAMLParseError)) throw error;
    throw new RegistrationError(`${file}: this is not YAML: ${error.message}`);
  }
}

function problemsOf(value: unknown): string[] {
  const problems = new Map<string, string>();
  for (const { instancePath, keyword, message, params } of Value.Errors(schema, value)) {
    const path = instancePath.split('/').slice(1).join('.') || 'the file';
    const missing = keyword === 'required' && (params as { requiredProperties: string[] }).requiredProperties;
    // A value that may be of several kinds is said to be wrong once for each: the first will do.
    if (!problems.has(path)) problems.set(path, missing ? `${missing.join(', ')} is missing` : message);
  }
  const lines = [...problems].map(([path, problem]) => `${path}: ${problem}`);
  return lines.length > 0 ? lines : deeperProblems(value as RegistrationFile);
}

function deeperProblems({ url, sender_localpart: sender, ...file }: RegistrationFile): string[] {
  const problems: string[] = [];
  if (url && !isHttpUrl(url))
    problems.push(
      'url: must be an http or https URL without query, or null; for example: http://localhost:9000',
    );
  if (!isLocalpart(sender))
    problems.push('sender_localpart: can only contain a-z, 0-9, and ._=-/+; for example: _irc_bot');
  for (const option of ['as_token', 'hs_token'] as const)
    if (!/^[\x21-\x7e]+$/.test(file[option]))
      problems.push(`${option}: can only contain ASCII characters, and no spaces`);
  for (const [kind, entries] of Object.entries(file.namespaces))
    for (const [i, { regex }] of (entries ?? []).entries())
      try {
        compile(regex);
      } catch (error) {
        problems.push(`namespaces.${kind}.${i}.regex: ${(error as Error).message}`);
      }
  return problems;
}

function isHttpUrl(url: string): boolean {
  const parts = URL.parse(url);
  return parts !== null && /^https?:$/.test(parts.protocol) && parts.search === '' && parts.hash === '';
}
