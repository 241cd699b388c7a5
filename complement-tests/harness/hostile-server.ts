import { createHash, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, request as httpsRequest, type Server } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeCertificate } from './certificate.ts';
import type { Answer } from './client.ts';
import type { Json } from './json.ts';
import { freePort } from './ports.ts';
import type { TestServer } from './server.ts';

const VERSION = '10';
const KEY_ID = 'ed25519:hostile';
/** What room version 10 leaves of a redacted event's content, of the types that the tests use. */
const KEPT: Record<string, readonly string[]> = {
  'm.room.member': ['membership', 'join_authorised_via_users_server'],
  'm.room.create': ['creator'],
  'm.room.join_rules': ['join_rule', 'allow'],
  'm.room.power_levels': [
    'ban',
    'events',
    'events_default',
    'kick',
    'redact',
    'state_default',
    'users',
    'users_default',
  ],
};
const KEPT_KEYS =
  'type room_id sender state_key content hashes depth prev_events prev_state auth_events origin origin_server_ts membership'.split(
    ' ',
  );

export interface ReceivedRequest {
  readonly method: string;
  readonly path: string;
  readonly body: Json;
}

/**
 * Another homeserver in a few lines, with a certificate that servers under test trust, real signatures, and nothing to
 * keep it from lying. It makes events of room version 10.
 */
export class HostileServer {
  readonly name: string;
  readonly received: ReceivedRequest[] = [];
  /** Answers by what the path contains; `undefined` goes on to the next, and at last to 404. */
  answer: (request: ReceivedRequest) => Json = () => undefined;
  readonly #server: Server;
  readonly #folder: string;
  readonly #key: KeyObject;
  readonly #publicKey: string;
  #transactions = 0;

  private constructor(port: number) {
    this.name = `127.0.0.1:${port}`;
    this.#folder = mkdtempSync(join(tmpdir(), 'trellis-hostile-'));
    const { certFile, keyFile } = makeCertificate(this.#folder);
    const { publicKey, privateKey } = generateKeyPairSync('ed25519');
    this.#key = privateKey;
    this.#publicKey = base64(publicKey.export({ format: 'der', type: 'spki' }).subarray(12));
    const tls = { cert: readFileSync(certFile), key: readFileSync(keyFile) };
    this.#server = createServer(tls, (request, response) => {
      this.#respond(request, response).catch(() => response.destroy());
    });
  }

  static async start(): Promise<HostileServer> {
    const port = await freePort();
    const server = new HostileServer(port);
    await new Promise<void>((listening) => server.#server.listen(port, '127.0.0.1', listening));
    return server;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((closed) => this.#server.close(closed));
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** Makes a signed request to a server under test. */
  async request(
    to: TestServer,
    method: string,
    path: string,
    body?: Json,
    more: { origin?: string; raw?: string | Buffer; headers?: Record<string, string> } = {},
  ): Promise<Answer> {
    const { origin = this.name } = more;
    const signed = {
      method,
      uri: path,
      origin,
      destination: to.serverName,
      ...(body === undefined ? {} : { content: body }),
    };
    const sig = this.#sign(signed);
    const payload = more.raw ?? (body === undefined ? undefined : JSON.stringify(body));
    const authorization = `X-Matrix origin="${origin}",destination="${to.serverName}",key="${KEY_ID}",sig="${sig}"`;
    return new Promise((resolve, reject) => {
      const request = httpsRequest(
        {
          host: '127.0.0.1',
          port: to.federationPort,
          method,
          path,
          rejectUnauthorized: false,
          headers: { authorization, 'content-type': 'application/json', ...more.headers },
        },
        async (response) => {
          const chunks: Buffer[] = [];
          for await (const chunk of response) chunks.push(chunk as Buffer);
          const text = Buffer.concat(chunks).toString();
          let json: Json = text;
          try {
            json = JSON.parse(text);
          } catch {
            // Left as text.
          }
          resolve({ status: response.statusCode ?? 0, headers: new Headers(), body: json });
        },
      );
      request.on('error', reject);
      request.end(payload);
    });
  }

  send(to: TestServer, pdus: readonly Json[], edus: readonly Json[] = []): Promise<Answer> {
    const path = `/_matrix/federation/v1/send/${Date.now()}-${this.#transactions++}`;
    return this.request(to, 'PUT', path, { origin: this.name, origin_server_ts: Date.now(), pdus, edus });
  }

  /** Completes an event: hashes and signs it. */
  event(proto: Json): { id: string; pdu: Json } {
    const { signatures: _signatures, hashes: _hashes, unsigned: _unsigned, ...rest } = proto;
    const unhashed = { depth: 100, origin_server_ts: Date.now(), prev_events: [], auth_events: [], ...rest };
    const pdu = { ...unhashed, hashes: { sha256: base64(sha256(unhashed)) } };
    const redacted: Json = {};
    for (const key of KEPT_KEYS) if (key in pdu) redacted[key] = pdu[key];
    redacted.content = Object.fromEntries(
      Object.entries(pdu.content).filter(([key]) => KEPT[pdu.type]?.includes(key)),
    );
    const id = `$${sha256(redacted).toString('base64url')}`;
    return { id, pdu: { ...pdu, signatures: { [this.name]: { [KEY_ID]: this.#sign(redacted) } } } };
  }

  /** Joins a room of the server under test; what follows can be built on the answer. */
  async join(
    to: TestServer,
    roomId: string,
    userId: string,
  ): Promise<{ join: Json; state: Json[]; id: string }> {
    const [room, user] = [encodeURIComponent(roomId), encodeURIComponent(userId)];
    const made = await this.request(
      to,
      'GET',
      `/_matrix/federation/v1/make_join/${room}/${user}?ver=${VERSION}`,
    );
    if (made.status !== 200) throw new Error(`make_join: ${JSON.stringify(made)}`);
    const { id, pdu } = this.event(made.body.event);
    const path = `/_matrix/federation/v2/send_join/${room}/${encodeURIComponent(id)}`;
    const sent = await this.request(to, 'PUT', path, pdu);
    if (sent.status !== 200) throw new Error(`send_join: ${JSON.stringify(sent)}`);
    return { join: pdu, state: sent.body.state, id };
  }

  async #respond(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const text = Buffer.concat(chunks).toString();
    const received = {
      method: request.method ?? '',
      path: decodeURIComponent(request.url ?? ''),
      body: text === '' ? undefined : JSON.parse(text),
    };
    const answer = received.path.startsWith('/_matrix/key/v2/server') ? this.#keys() : this.answer(received);
    if (!received.path.startsWith('/_matrix/key/')) this.received.push(received);
    response
      .writeHead(answer === undefined ? 404 : 200, { 'content-type': 'application/json' })
      .end(JSON.stringify(answer ?? { errcode: 'M_NOT_FOUND', error: 'no' }));
  }

  #keys(): Json {
    const keys = {
      server_name: this.name,
      valid_until_ts: Date.now() + 3_600_000,
      verify_keys: { [KEY_ID]: { key: this.#publicKey } },
      old_verify_keys: {},
    };
    return { ...keys, signatures: { [this.name]: { [KEY_ID]: this.#sign(keys) } } };
  }

  #sign(object: Json): string {
    return base64(sign(null, Buffer.from(canonical(object)), this.#key));
  }
}

function canonical(value: Json): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const members = Object.keys(value)
    .sort()
    .map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`);
  return `{${members.join(',')}}`;
}

const sha256 = (object: Json) => createHash('sha256').update(canonical(object)).digest();
const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64').replace(/=+$/, '');
