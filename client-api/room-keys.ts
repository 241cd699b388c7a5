import { Readable } from 'node:stream';
import { invalidParam, missingParam, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import type { BackedUpKey, KeyBackups, KeyRange } from '@trellis/users/e2ee/key-backups.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { mapOf } from './map-schema.ts';

export interface RoomKeysDeps {
  readonly backups: KeyBackups;
}

const versionBody = Type.Object({
  algorithm: Type.String({ minLength: 1, maxLength: 255 }),
  auth_data: Type.Object({}),
  version: Type.Optional(Type.String()),
});
interface VersionBody {
  algorithm: string;
  auth_data: JsonObject;
  version?: string;
}

const count = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const keyData = Type.Object({
  first_message_index: count,
  forwarded_count: count,
  is_verified: Type.Boolean(),
  session_data: Type.Object({}),
});
type KeyData = Omit<BackedUpKey, 'roomId' | 'sessionId'>;
const roomBackup = Type.Object({ sessions: mapOf(keyData) });
interface RoomBackup {
  sessions: Record<string, KeyData>;
}
const backup = Type.Object({ rooms: mapOf(roomBackup) });

const querystring = Type.Object({ version: Type.Optional(Type.String()) });

const VERSION = '/_matrix/client/v3/room_keys/version';
const KEYS = '/_matrix/client/v3/room_keys/keys';

/** Server-side key backups (spec: "Server-side key backups"). */
export function roomKeysRoutes(app: FastifyInstance, { backups }: RoomKeysDeps): void {
  app.post<{ Body: VersionBody }>(VERSION, { schema: { body: versionBody } }, async (request) => {
    const { algorithm, auth_data } = request.body;
    return { version: await backups.create(requesterOf(request).userId, algorithm, auth_data) };
  });

  app.get(VERSION, async (request) => backups.info(requesterOf(request).userId));

  app.get<{ Params: { version: string } }>(`${VERSION}/:version`, async (request) =>
    backups.info(requesterOf(request).userId, request.params.version),
  );

  app.put<{ Params: { version: string }; Body: VersionBody }>(
    `${VERSION}/:version`,
    { schema: { body: versionBody } },
    async (request) => {
      const { version } = request.params;
      const { algorithm, auth_data, version: named = version } = request.body;
      if (named !== version) throw invalidParam('The version in the body is not that in the path');
      await backups.update(requesterOf(request).userId, version, algorithm, auth_data);
      return {};
    },
  );

  app.delete<{ Params: { version: string } }>(`${VERSION}/:version`, async (request) => {
    await backups.remove(requesterOf(request).userId, request.params.version);
    return {};
  });

  app.put<{ Body: { rooms: Record<string, RoomBackup> } }>(
    KEYS,
    { schema: { querystring, body: backup } },
    async (request) => put(request, Object.entries(request.body.rooms).flatMap(roomKeys)),
  );

  app.put<{ Params: { roomId: string }; Body: RoomBackup }>(
    `${KEYS}/:roomId`,
    { schema: { querystring, body: roomBackup } },
    async (request) => put(request, roomKeys([request.params.roomId, request.body])),
  );

  app.put<{ Params: { roomId: string; sessionId: string }; Body: KeyData }>(
    `${KEYS}/:roomId/:sessionId`,
    { schema: { querystring, body: keyData } },
    async (request) => put(request, [{ ...request.params, ...dataOf(request.body) }]),
  );

  app.get(KEYS, { schema: { querystring } }, async (request, reply) => {
    const pages = await begin(backups.keys(requesterOf(request).userId, versionOf(request), {}));
    reply.header('content-type', 'application/json');
    return reply.send(Readable.from(backupJson(pages)));
  });

  app.get<{ Params: { roomId: string } }>(
    `${KEYS}/:roomId`,
    { schema: { querystring } },
    async (request, reply) => {
      const range = rangeOf(request.params);
      const pages = await begin(backups.keys(requesterOf(request).userId, versionOf(request), range));
      reply.header('content-type', 'application/json');
      return reply.send(Readable.from(roomJson(pages)));
    },
  );

  app.get<{ Params: { roomId: string; sessionId: string } }>(
    `${KEYS}/:roomId/:sessionId`,
    { schema: { querystring } },
    async (request) => {
      const range = rangeOf(request.params);
      for await (const [key] of backups.keys(requesterOf(request).userId, versionOf(request), range))
        return dataOf(key!);
      throw notFound('Key not found.');
    },
  );

  for (const path of [KEYS, `${KEYS}/:roomId`, `${KEYS}/:roomId/:sessionId`])
    app.delete<{ Params: KeyRange }>(path, { schema: { querystring } }, async (request) =>
      backups.removeKeys(requesterOf(request).userId, versionOf(request), rangeOf(request.params)),
    );

  function put(request: FastifyRequest, keys: readonly BackedUpKey[]) {
    return backups.put(requesterOf(request).userId, versionOf(request), keys);
  }
}

function roomKeys([roomId, { sessions }]: [string, RoomBackup]): BackedUpKey[] {
  return Object.entries(sessions).map(([sessionId, data]) => ({ roomId, sessionId, ...dataOf(data) }));
}

function dataOf({ first_message_index, forwarded_count, is_verified, session_data }: KeyData): KeyData {
  return { first_message_index, forwarded_count, is_verified, session_data };
}

function versionOf(request: FastifyRequest): string {
  const { version } = request.query as { version?: string };
  if (version === undefined) throw missingParam('version is missing');
  return version;
}

/** No key has an id with U+0000, which the database cannot be asked for. */
function rangeOf(params: KeyRange): KeyRange {
  if (`${params.roomId}${params.sessionId}`.includes('\0')) throw invalidParam('That is no id');
  return params;
}

/** Takes the first page before the answer begins: what is wrong with the request must be its status. */
async function begin(pages: AsyncGenerator<BackedUpKey[]>): Promise<AsyncGenerator<BackedUpKey[]>> {
  const first = await pages.next();
  return (async function* () {
    if (first.done) return;
    yield first.value;
    yield* pages;
  })();
}

/** Written page by page: a backup can be larger than one would like to hold. */
async function* backupJson(pages: AsyncGenerator<BackedUpKey[]>): AsyncGenerator<string> {
  let room: string | undefined;
  yield '{"rooms":{';
  for await (const keys of pages) {
    let text = '';
    for (const key of keys) {
      if (key.roomId === room) text += ',';
      else text += `${room === undefined ? '' : '}},'}${JSON.stringify(key.roomId)}:{"sessions":{`;
      room = key.roomId;
      text += sessionJson(key);
    }
    yield text;
  }
  yield room === undefined ? '}}' : '}}}}';
}

async function* roomJson(pages: AsyncGenerator<BackedUpKey[]>): AsyncGenerator<string> {
  let first = true;
  yield '{"sessions":{';
  for await (const keys of pages) {
    yield `${first ? '' : ','}${keys.map(sessionJson).join(',')}`;
    first = false;
  }
  yield '}}';
}

function sessionJson(key: BackedUpKey): string {
  return `${JSON.stringify(key.sessionId)}:${JSON.stringify(dataOf(key))}`;
}
