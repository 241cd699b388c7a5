import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { parse } from 'yaml';
import type { Json } from './json.ts';

/** The specification's repository, or its folder `data` with what lies around it: OpenAPI documents and schemas. */
export const SPEC_FOLDER =
  process.env.TRELLIS_SPEC_DIR ?? new URL('../../../shared/matrix-spec', import.meta.url).pathname;
const DATA = join(SPEC_FOLDER, 'data');

const METHODS = ['get', 'put', 'post', 'delete', 'patch', 'head', 'options'];
const MAX_DOCUMENTS = 500;

export function hasSpec(): boolean {
  return existsSync(join(DATA, 'api', 'client-server'));
}

/** Whether the answers to tests are held to the specification: where it is there, and the server is our own. */
export function checksAnswers(): boolean {
  return process.env.TRELLIS_OPENAPI !== 'off' && !process.env.TRELLIS_TEST_SERVER && hasSpec();
}

/** A value with the file that it was read from, which relative references start at. */
interface Located {
  file: string;
  value: Json;
}

export interface Operation {
  method: string;
  /** With the base path of its document. */
  path: string;
  /** Whether it cannot be called without an access token. */
  authenticated: boolean;
  responses: Map<string, Located>;
}

const documents = new Map<string, Json>();

function documentOf(file: string): Json {
  let document = documents.get(file);
  if (document === undefined) {
    if (relative(DATA, file).startsWith('..')) throw new Error(`${file} is outside of ${DATA}`);
    if (documents.size >= MAX_DOCUMENTS) throw new Error(`more than ${MAX_DOCUMENTS} documents`);
    document = parse(readFileSync(file, 'utf8'));
    documents.set(file, document);
  }
  return document;
}

function follow(reference: string, from: string): Located {
  const [target = '', pointer = ''] = reference.trim().split('#');
  const file = target ? join(dirname(from), target) : from;
  const steps = pointer.split('/').slice(1);
  const value = steps.reduce(
    (at, step) => at?.[step.replaceAll('~1', '/').replaceAll('~0', '~')],
    documentOf(file),
  );
  if (value === undefined) throw new Error(`${reference} in ${from} leads nowhere`);
  return { file, value };
}

function resolved(located: Located): Located {
  const reference = located.value?.$ref;
  return typeof reference === 'string' ? resolved(follow(reference, located.file)) : located;
}

export const nameOf = (operation: Operation) => `${operation.method} ${operation.path}`;

/** The operations of one API: client-server, server-server, application-service… */
export function operationsOf(api: string): Operation[] {
  const folder = join(DATA, 'api', api);
  const files = readdirSync(folder).filter((name) => name.endsWith('.yaml'));
  const operations = files.flatMap((name) => operationsIn(join(folder, name)));
  return [...new Map(operations.map((operation) => [nameOf(operation), operation])).values()];
}

function operationsIn(file: string): Operation[] {
  const { paths, servers } = documentOf(file);
  const base = servers?.[0]?.variables?.basePath?.default ?? '';
  const operations: Operation[] = [];
  for (const [path, item] of Object.entries<Json>(paths ?? {})) {
    for (const method of METHODS.filter((name) => name in item)) {
      const security: Json[] = item[method].security ?? [];
      const responses = Object.entries<Json>(item[method].responses ?? {});
      operations.push({
        method: method.toUpperCase(),
        // Blanks at the end tell documents of the same path apart.
        path: base + path.trim(),
        authenticated:
          security.length > 0 && security.every((one) => /accessToken/i.test(Object.keys(one)[0] ?? '')),
        responses: new Map(responses.map(([status, value]) => [status, resolved({ file, value })])),
      });
    }
  }
  return operations;
}

/**
 * The schema of a response's JSON body, complete in itself: what it refers to is under `$defs`. Undefined where the
 * body is not JSON; an empty schema where the specification gives an example only.
 */
export function jsonSchemaOf(response: Located): Json | undefined {
  const media = response.value.content?.['application/json'];
  if (!media) return undefined;
  const definitions: Json = {};
  const names = new Map<string, string>();
  const schema = bundled({ file: response.file, value: media.schema ?? {} }, definitions, names);
  return { ...schema, $defs: definitions };
}

const ANNOTATIONS = new Set([
  '$schema',
  'description',
  'example',
  'examples',
  'default',
  'title',
  'deprecated',
]);

function bundled({ file, value }: Located, definitions: Json, names: Map<string, string>): Json {
  if (Array.isArray(value)) return value.map((item) => bundled({ file, value: item }, definitions, names));
  if (typeof value !== 'object' || value === null) return value;
  const copy: Json = {};
  for (const [key, inner] of Object.entries<Json>(value)) {
    if (key === '$ref' && typeof inner === 'string') {
      copy.$ref = `#/$defs/${definition(follow(inner, file), inner, definitions, names)}`;
    } else if (key === 'properties') {
      // The names in here are the fields' own, not keywords.
      copy[key] = Object.fromEntries(
        Object.entries<Json>(inner).map(([name, field]) => [
          name,
          bundled({ file, value: field }, definitions, names),
        ]),
      );
    } else if (!ANNOTATIONS.has(key)) {
      copy[key] = bundled({ file, value: inner }, definitions, names);
    }
  }
  return copy;
}

function definition(
  target: Located,
  reference: string,
  definitions: Json,
  names: Map<string, string>,
): string {
  const key = `${target.file}#${reference.split('#')[1] ?? ''}`;
  let name = names.get(key);
  if (name === undefined) {
    name = `d${names.size}`;
    names.set(key, name);
    definitions[name] = bundled(target, definitions, names);
  }
  return name;
}

/** Finds the operation that a request is for; a literal part of a path goes before a parameter. */
export class Operations {
  readonly all: readonly Operation[];
  readonly #byMethod = new Map<string, { operation: Operation; pattern: RegExp; literals: number }[]>();

  constructor(all: readonly Operation[]) {
    this.all = all;
    for (const operation of all) {
      const pattern = new RegExp(`^${operation.path.replace(/\{\w+\}/g, '[^/]*')}$`);
      const literals = operation.path.split('/').filter((part) => !part.includes('{')).length;
      const list = this.#byMethod.get(operation.method) ?? [];
      list.push({ operation, pattern, literals });
      this.#byMethod.set(
        operation.method,
        list.sort((a, b) => b.literals - a.literals),
      );
    }
  }

  find(method: string, path: string): Operation | undefined {
    return this.#byMethod.get(method)?.find(({ pattern }) => pattern.test(path))?.operation;
  }
}
