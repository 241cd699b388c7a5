import assert from 'node:assert/strict';
import { checkAnswer } from './conformance.ts';
import type { Json } from './json.ts';

export interface Answer {
  status: number;
  headers: Headers;
  body: Json;
}

export interface RequestOptions {
  body?: unknown;
  query?: Record<string, string | number | boolean | string[] | undefined>;
  /** undefined: the client's own token; null: none. */
  token?: string | null;
  headers?: Record<string, string>;
  /** Sent as it is, in the place of a JSON body. */
  raw?: string | Uint8Array;
  signal?: AbortSignal;
}

/** Encodes what is put into a path: path`/v3/rooms/${roomId}/join`. */
export function path(parts: TemplateStringsArray, ...values: (string | number)[]): string {
  return parts.reduce((text, part, i) => text + encodeURIComponent(String(values[i - 1]!)) + part);
}

/** An answer that was not 200 where the test needed one. */
export class ApiError extends Error {
  override name = 'ApiError';
  readonly answer: Answer;

  constructor(what: string, answer: Answer) {
    super(`${what}: ${answer.status} ${JSON.stringify(answer.body)}`);
    this.answer = answer;
  }
}

export async function request(
  baseUrl: string,
  method: string,
  target: string,
  options: RequestOptions = {},
): Promise<Answer> {
  const url = new URL(baseUrl + target);
  for (const [key, value] of Object.entries(options.query ?? {})) {
    if (value === undefined) continue;
    for (const one of Array.isArray(value) ? value : [value]) url.searchParams.append(key, String(one));
  }
  const headers: Record<string, string> = { ...options.headers };
  if (options.token) headers.authorization = `Bearer ${options.token}`;
  let body = options.raw as string | Uint8Array<ArrayBuffer> | undefined;
  if (options.body !== undefined) {
    body = JSON.stringify(options.body);
    headers['content-type'] ??= 'application/json';
  }
  const response = await fetch(url, { method, headers, body, signal: options.signal ?? null });
  const bytes = Buffer.from(await response.arrayBuffer());
  const isJson = response.headers.get('content-type')?.startsWith('application/json');
  const answer = {
    status: response.status,
    headers: response.headers,
    body: isJson ? JSON.parse(bytes.toString()) : bytes,
  };
  checkAnswer(url, method, answer);
  return answer;
}

/** Asserts that a request is refused with this status and error code. */
export async function refused(attempt: Promise<unknown>, status: number, errcode?: string): Promise<Answer> {
  const error = await attempt.then(
    () => undefined,
    (e: unknown) => e,
  );
  assert.ok(error !== undefined, `expected ${status} ${errcode ?? ''}, but the request succeeded`);
  if (!(error instanceof ApiError)) throw error;
  assert.equal(error.answer.status, status, error.message);
  if (errcode !== undefined) assert.equal(error.answer.body.errcode, errcode, error.message);
  return error.answer;
}

export interface SyncOptions {
  since?: string | undefined;
  timeout?: number;
  filter?: unknown;
  fullState?: boolean;
  setPresence?: string;
}

/** What a test wants to see in a sync; anything truthy ends the wait and is handed back. */
export type SyncCheck<T> = (sync: Json) => T | undefined | false | null;

let transactions = 0;

export function nextTransactionId(): string {
  transactions += 1;
  return `t${process.pid}.${transactions}`;
}

/** A client on one account: plain HTTP, no state but its token and the place of its sync stream. */
export class Client {
  readonly url: string;
  readonly userId: string;
  readonly deviceId: string;
  accessToken: string;
  /** The place up to which `syncUntil` has read. */
  since: string | undefined;

  constructor(url: string, login: { user_id: string; access_token: string; device_id: string }) {
    this.url = url;
    this.userId = login.user_id;
    this.accessToken = login.access_token;
    this.deviceId = login.device_id;
  }

  get localpart(): string {
    return this.userId.slice(1, this.userId.indexOf(':'));
  }

  get serverName(): string {
    return this.userId.slice(this.userId.indexOf(':') + 1);
  }

  request(method: string, target: string, options: RequestOptions = {}): Promise<Answer> {
    const token = options.token === undefined ? this.accessToken : options.token;
    return request(this.url, method, target, { ...options, token });
  }

  /** A client-server call that must succeed; `target` is what follows /_matrix/client. */
  async api(method: string, target: string, body?: unknown, options: RequestOptions = {}): Promise<Json> {
    const answer = await this.request(method, `/_matrix/client${target}`, { body, ...options });
    if (answer.status !== 200) throw new ApiError(`${method} ${target}`, answer);
    return answer.body;
  }

  get(target: string, query?: RequestOptions['query']): Promise<Json> {
    return this.api('GET', target, undefined, query ? { query } : {});
  }

  put(target: string, body: unknown): Promise<Json> {
    return this.api('PUT', target, body);
  }

  post(target: string, body: unknown = {}): Promise<Json> {
    return this.api('POST', target, body);
  }

  delete(target: string, body?: unknown): Promise<Json> {
    return this.api('DELETE', target, body);
  }

  async createRoom(options: Json = { preset: 'public_chat' }): Promise<string> {
    return (await this.post('/v3/createRoom', options)).room_id;
  }

  async join(roomIdOrAlias: string, via?: string): Promise<string> {
    const query = via ? { via, server_name: via } : {};
    return (await this.api('POST', path`/v3/join/${roomIdOrAlias}`, {}, { query })).room_id;
  }

  leave(roomId: string): Promise<Json> {
    return this.post(path`/v3/rooms/${roomId}/leave`);
  }

  invite(roomId: string, userId: string): Promise<Json> {
    return this.post(path`/v3/rooms/${roomId}/invite`, { user_id: userId });
  }

  async send(
    roomId: string,
    type: string,
    content: Json,
    transaction = nextTransactionId(),
  ): Promise<string> {
    return (await this.put(path`/v3/rooms/${roomId}/send/${type}/${transaction}`, content)).event_id;
  }

  sendText(roomId: string, text: string): Promise<string> {
    return this.send(roomId, 'm.room.message', { msgtype: 'm.text', body: text });
  }

  async setState(roomId: string, type: string, content: Json, stateKey = ''): Promise<string> {
    return (await this.put(path`/v3/rooms/${roomId}/state/${type}/${stateKey}`, content)).event_id;
  }

  getState(roomId: string, type: string, stateKey = ''): Promise<Json> {
    return this.get(path`/v3/rooms/${roomId}/state/${type}/${stateKey}`);
  }

  event(roomId: string, eventId: string): Promise<Json> {
    return this.get(path`/v3/rooms/${roomId}/event/${eventId}`);
  }

  sync(options: SyncOptions = {}): Promise<Json> {
    const filter = typeof options.filter === 'string' ? options.filter : JSON.stringify(options.filter);
    return this.get('/v3/sync', {
      since: options.since,
      timeout: options.timeout ?? 0,
      filter: options.filter === undefined ? undefined : filter,
      full_state: options.fullState,
      set_presence: options.setPresence,
    });
  }

  /** Syncs on from where the last call ended until the check finds what it looks for. */
  async syncUntil<T>(
    what: string,
    check: SyncCheck<T>,
    options: SyncOptions = {},
    limitMs = 15_000,
  ): Promise<T> {
    const end = Date.now() + limitMs;
    const since = options.since ?? this.since;
    let token = since;
    for (;;) {
      const timeout = Math.min(Math.max(end - Date.now(), 0), 5_000);
      const sync = await this.sync({ ...options, since: token, timeout: token === undefined ? 0 : timeout });
      token = this.since = sync.next_batch;
      const found = check(sync);
      if (found) return found;
      assert.ok(Date.now() < end, `${this.userId} did not see in ${limitMs} ms of /sync: ${what}`);
    }
  }

  /** Waits until the timeline of a room, as synced, has this event. */
  seesEvent(roomId: string, eventId: string): Promise<Json> {
    return this.syncUntil(`event ${eventId}`, (sync) =>
      sync.rooms?.join?.[roomId]?.timeline?.events?.find((e: Json) => e.event_id === eventId),
    );
  }

  /** Waits until the user's own membership of the room has come down the sync in this section. */
  seesRoom(section: 'join' | 'invite' | 'leave' | 'knock', roomId: string): Promise<Json> {
    return this.syncUntil(`${roomId} in rooms.${section}`, (sync) => sync.rooms?.[section]?.[roomId]);
  }

  /** Waits until a user has this membership in the room's state, as this client sees it. */
  seesMember(roomId: string, userId: string, membership: string): Promise<Json> {
    return eventually(`${userId} to be ${membership}`, async () => {
      const content = await this.getState(roomId, 'm.room.member', userId).catch(() => undefined);
      return content?.membership === membership && content;
    });
  }
}

/** Asks again until the answer is truthy. */
export async function eventually<T>(
  what: string,
  ask: () => Promise<T | undefined | false | null>,
  limitMs = 15_000,
): Promise<T> {
  const end = Date.now() + limitMs;
  for (;;) {
    const found = await ask();
    if (found) return found;
    assert.ok(Date.now() < end, `waited ${limitMs} ms for ${what}`);
    await new Promise((wake) => setTimeout(wake, 100));
  }
}
