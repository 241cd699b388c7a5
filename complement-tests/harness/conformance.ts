import { appendFileSync, mkdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { after } from 'node:test';
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js';
import type { Answer } from './client.ts';
import type { Json } from './json.ts';
import { checksAnswers, jsonSchemaOf, nameOf, type Operation, Operations, operationsOf } from './openapi.ts';

/**
 * Checks the answers of servers under test against the specification's OpenAPI documents while other tests run: the
 * status is one that the operation may answer with, the body fits its schema, every error has an errcode. What does
 * not fit fails the test file at its end. On where the specification is there (TRELLIS_SPEC_DIR) and the server is
 * our own; TRELLIS_OPENAPI=off turns it off.
 */

type Checked = Pick<Answer, 'status' | 'body'>;

interface Exception {
  operation: string;
  /** Matches the place in the body, and the keyword of the schema that fails there. */
  at: RegExp;
  /** Only for bodies like this. */
  body?: (body: Json) => boolean;
  reason: string;
}

/** Where the specification's data is not followed, and why. At most ten. */
export const EXCEPTIONS: readonly Exception[] = [
  {
    operation: 'GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}',
    at: /^ oneOf$/,
    reason: 'says "one of": an object, or an event; every event is an object, so that none would fit',
  },
  {
    operation: 'GET /_matrix/client/v3/rooms/{roomId}/joined_members',
    at: /^\/joined\/[^/]+\/(display_name|avatar_url) type$/,
    reason: 'Complement (TestPartialStateJoin) wants the keys of members without name or picture, as null',
  },
  {
    operation: 'GET /_matrix/client/v3/voip/turnServer',
    at: /^ required$/,
    body: (body) => Object.keys(body).length === 0,
    reason: 'without a TURN server: clients take {} for that, and browsers refuse an empty list of addresses',
  },
];

const MAX_DEVIATIONS = 100;
const enabled = checksAnswers();
const watched = new Set<string>();
const deviations = new Set<string>();
const succeeded = new Set<string>();
const validators = new Map<string, ValidateFunction | undefined>();
let ajv: Ajv2020 | undefined;
let operations: Operations | undefined;

/** From here on answers of this server are checked. */
export function watch(baseUrl: string): void {
  if (enabled) watched.add(baseUrl);
}

// Here, outside of any suite, so that it comes after the last test of the process.
if (enabled) after(report);

/** `fetch` for clients that bring their own requests. */
export const checkedFetch: typeof fetch = async (input, init) => {
  const response = await fetch(input, init);
  const request = input instanceof Request ? input : { url: String(input), method: init?.method ?? 'GET' };
  const url = new URL(request.url);
  if (!watched.has(url.origin)) return response;
  const bytes = Buffer.from(await response.clone().arrayBuffer());
  const isJson = response.headers.get('content-type')?.startsWith('application/json');
  const body = isJson ? JSON.parse(bytes.toString()) : bytes;
  checkAnswer(url, request.method.toUpperCase(), { status: response.status, body });
  return response;
};

export function checkAnswer(url: URL, method: string, answer: Checked): void {
  if (!watched.has(url.origin) || deviations.size >= MAX_DEVIATIONS) return;
  const operation = operationOf(url, method);
  if (operation && answer.status < 300) succeeded.add(nameOf(operation));
  const wrong = deviationOf(url, method, answer);
  const name = operation ? nameOf(operation) : `${method} ${url.pathname}`;
  if (wrong !== undefined) deviations.add(`${name}, ${answer.status}: ${wrong}`);
}

/** What is wrong with an answer by the specification. */
export function deviationOf(url: URL, method: string, answer: Checked): string | undefined {
  const operation = operationOf(url, method);
  return operation ? operationDeviation(operation, answer) : errorDeviation(url.pathname, answer);
}

function operationOf(url: URL, method: string): Operation | undefined {
  operations ??= new Operations(operationsOf('client-server'));
  const path = url.pathname.replace(/^\/_matrix\/(\w+)\/r0\//, '/_matrix/$1/v3/');
  return isUnstable(url) ? undefined : operations.find(method, path);
}

/** A parameter of a proposal may ask for another answer than the specification's. */
const isUnstable = (url: URL) => [...url.searchParams.keys()].some((name) => /\bmsc\d/.test(name));

function errorDeviation(pathname: string, { status, body }: Checked) {
  const isMatrix = /^\/_matrix\/(client|media)\//.test(pathname);
  return !isMatrix || status < 400 || isError(body) ? undefined : `no errcode: ${shortened(body)}`;
}

const isError = (body: Json) =>
  typeof body?.errcode === 'string' && ['string', 'undefined'].includes(typeof body.error);

function operationDeviation(operation: Operation, answer: Checked): string | undefined {
  // A part of a body, for who asks for a part, is HTTP's own.
  if (answer.status === 206) return undefined;
  const status = String(answer.status);
  const listed = operation.responses.has(status);
  if (!listed && answer.status < 400) return 'not a status of this operation';
  // A step of user-interactive authentication is no error until one has been tried.
  const isFlow = answer.status === 401 && Array.isArray(answer.body?.flows);
  if (answer.status >= 400 && !isFlow && !isError(answer.body)) {
    return `no errcode: ${shortened(answer.body)}`;
  }
  if (!listed || (answer.status === 401 && !isFlow)) return undefined;
  const validate = validatorOf(operation, status);
  if (!validate || validate(answer.body)) return undefined;
  if (answer.body instanceof Uint8Array) return 'the body is not JSON';
  const exceptions = EXCEPTIONS.filter(
    (exception) => exception.operation === nameOf(operation) && (exception.body?.(answer.body) ?? true),
  );
  const errors = validate
    .errors!.filter((e) => !exceptions.some(({ at }) => at.test(`${e.instancePath} ${e.keyword}`)))
    .slice(0, 5)
    .map((e) => `${e.instancePath || 'body'} ${e.message}`);
  if (errors.length === 0) return undefined;
  return `${errors.join('; ')}: ${shortened(answer.body)}`;
}

function validatorOf(operation: Operation, status: string): ValidateFunction | undefined {
  const key = `${nameOf(operation)} ${status}`;
  if (!validators.has(key)) {
    ajv ??= new Ajv2020({ strict: false, validateFormats: false, allErrors: true });
    const schema = jsonSchemaOf(operation.responses.get(status)!);
    validators.set(key, schema && ajv.compile(schema));
  }
  return validators.get(key);
}

const shortened = (body: Json) => JSON.stringify(body)?.slice(0, 300);

function report(): void {
  const folder = process.env.TRELLIS_OPENAPI_SEEN;
  if (folder) {
    mkdirSync(folder, { recursive: true });
    appendFileSync(join(folder, String(process.pid)), [...succeeded, ''].join('\n'));
  }
  if (deviations.size === 0) return;
  const tests = basename(process.argv[1] ?? '');
  throw new Error(`${tests}: answers that the specification does not know:\n${[...deviations].join('\n')}`);
}
