import { readFileSync } from 'node:fs';
import { dirname, isAbsolute, resolve } from 'node:path';
import { ROLES } from '@trellis/cluster/cluster.ts';
import { MAX_OBJECT_BYTES } from '@trellis/media/s3-limits.ts';
import { knownRoomVersions } from '@trellis/protocol/room-versions.ts';
import { Value } from 'typebox/value';
import { parse, YAMLParseError } from 'yaml';
import { type Config, configSchema } from './schema.ts';

/** What is wrong with a configuration, in words for whoever wrote it. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
}

/** Reads a configuration file; relative paths in it are meant from its folder. */
export function loadConfig(file: string): Config {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new ConfigError(`cannot read the configuration: ${(error as Error).message}`);
  }
  return readConfig(text, dirname(resolve(file)), file);
}

/**
 * @param folder what relative paths are meant from
 * @param name of the file, for messages
 * @throws ConfigError with the path of each wrong option, what is wrong with it, and an example
 */
export function readConfig(text: string, folder: string, name = 'configuration'): Config {
  let value: unknown;
  try {
    value = parse(text) ?? {};
  } catch (error) {
    if (error instanceof YAMLParseError) throw new ConfigError(`${name}: this is not YAML: ${error.message}`);
    throw error;
  }
  const config = Value.Default(configSchema, value) as Config;
  const problems = problemsOf(config);
  if (problems.length > 0)
    throw new ConfigError(`${name}:\n${problems.map((line) => `  ${line}`).join('\n')}`);
  return withPaths(config, folder);
}

interface SchemaNode {
  readonly properties?: Record<string, SchemaNode>;
  readonly items?: SchemaNode;
  readonly examples?: readonly unknown[];
  /** What it may be, where it may be of several kinds. */
  readonly description?: string;
}

function problemsOf(config: Config): string[] {
  const problems: string[] = [];
  for (const error of Value.Errors(configSchema, config)) {
    const path = error.instancePath.split('/').slice(1);
    // Said once for each option that is too many; the object that has it says it again.
    if (error.keyword === 'additionalProperties') continue;
    // What is wrong by each of the alternatives; that none of them holds is told once.
    if (error.schemaPath.includes('/anyOf/')) continue;
    if (error.keyword === 'boolean') {
      const known = Object.keys(nodeAt(path.slice(0, -1))?.properties ?? {});
      problems.push(`${path.join('.')}: there is no such option; known here: ${known.join(', ')}`);
      continue;
    }
    problems.push(`${path.join('.') || 'the file'}: ${reasonOf(error, path)}${exampleFor(path)}`);
  }
  if (problems.length === 0 && !knownRoomVersions().some(({ id }) => id === config.rooms.default_version))
    problems.push(
      `rooms.default_version: "${config.rooms.default_version}" is no room version that Trellis knows; for example: "12"`,
    );
  if (problems.length === 0) problems.push(...unmetNeeds(config));
  return problems;
}

function unmetNeeds(config: Config): string[] {
  const { registration, email, sms, media } = config;
  const problems = unmetNeedsOfProcesses(config);
  if (registration.require_email && !email)
    problems.push('registration.require_email: without the section email no mail can be sent');
  if (registration.require_phone && !sms)
    problems.push('registration.require_phone: without the section sms no text message can be sent');
  for (const option of ['max_upload_bytes', 'max_remote_bytes'] as const)
    if (media.s3 && media[option] > MAX_OBJECT_BYTES)
      problems.push(`media.${option}: S3 takes no more than ${MAX_OBJECT_BYTES} bytes in one piece`);
  return problems;
}

function unmetNeedsOfProcesses({ redis, database, cluster }: Config): string[] {
  const problems: string[] = [];
  if (redis && !redis.url && !redis.sentinels && !redis.nodes)
    problems.push('redis: one of url, sentinels and nodes is missing');
  if (redis && !database.url)
    problems.push('redis: processes that meet there need one database: database.url is missing');
  if (redis && !cluster.secret)
    problems.push(
      'redis: its processes know each other by a text that nobody else knows: cluster.secret is missing',
    );
  const missing = ROLES.filter((role) => !cluster.roles.includes(role));
  if (!redis && missing.length > 0)
    problems.push(`cluster.roles: without the section redis nobody else could be ${missing.join(', ')}`);
  return problems;
}

function reasonOf(
  error: { keyword: string; message: string; params: object },
  path: readonly string[],
): string {
  if (error.keyword === 'anyOf') return `must be ${nodeAt(path)?.description ?? 'something else'}`;
  if (error.keyword === 'enum')
    return `must be one of ${(error.params as { allowedValues: unknown[] }).allowedValues.join(', ')}`;
  if (error.keyword === 'required')
    return `${(error.params as { requiredProperties: string[] }).requiredProperties.join(', ')} is missing`;
  return error.message;
}

function exampleFor(path: readonly string[]): string {
  const example = nodeAt(path)?.examples?.[0];
  return example === undefined ? '' : `; for example: ${path.at(-1)}: ${JSON.stringify(example)}`;
}

function nodeAt(path: readonly string[]): SchemaNode | undefined {
  let node: SchemaNode | undefined = configSchema as unknown as SchemaNode;
  for (const step of path) node = node?.properties?.[step] ?? (/^\d+$/.test(step) ? node?.items : undefined);
  return node;
}

function withPaths(config: Config, folder: string): Config {
  const absolute = (path: string) => (isAbsolute(path) ? path : resolve(folder, path));
  const { tls, passwords, federation } = config;
  return {
    ...config,
    data_dir: absolute(config.data_dir),
    signing_key: config.signing_key && absolute(config.signing_key),
    tls: tls && { ...tls, certificate: absolute(tls.certificate), key: absolute(tls.key) },
    passwords: { ...passwords, pepper_file: passwords.pepper_file && absolute(passwords.pepper_file) },
    federation: { ...federation, ca_file: federation.ca_file && absolute(federation.ca_file) },
    application_services: config.application_services.map(absolute),
  };
}
