import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { JsonObject, JsonValue, Pdu } from '@trellis/protocol/event.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import { jsonObject, jsonValue, key, serverName } from '@trellis/protocol/test/arbitraries.ts';
import { mangled, timed, withinBudget } from '@trellis/protocol/test/fuzzing.ts';
import { IncomingPdus } from '@trellis/rooms/incoming-pdus.ts';
import { isServerAllowed } from '@trellis/rooms/server-acl.ts';
import { keyOf, type TestEngine, testEngine, testVerifier } from '@trellis/rooms/test/engine.ts';
import { ALICE, FOUNDER, RemoteGraph, receiverOf } from '@trellis/rooms/test/remote-graph.ts';
import { StagedPdus } from '@trellis/storage/staged-pdus.ts';
import { Stream } from '@trellis/storage/streams.ts';
import { Presence } from '@trellis/users/presence.ts';
import { Receipts } from '@trellis/users/receipts.ts';
import { Typing } from '@trellis/users/typing.ts';
import fc from 'fast-check';
import Fastify, { type FastifyInstance } from 'fastify';
import { eduDispatcher } from '../inbound/edus.ts';
import { ephemeralEduHandlers } from '../inbound/ephemeral-edus.ts';
import { transactionRoutes } from '../inbound/transactions.ts';
import { readKeyResponse } from '../key-response.ts';
import { boundaryOf, MultipartError, multipartParts } from '../outbound/multipart.ts';
import { parseServerAddress } from '../server-name.ts';
import { formatXMatrix, parseXMatrix } from '../x-matrix.ts';
import { createHttpServer } from './http-fixture.ts';

const EVE = '@eve:evil';
const anything = fc.oneof(jsonValue, fc.constantFrom(null, true, 0, -1, 2 ** 53, '', '\0', [], {}));

test('Authorization headers of any form are read or refused', () => {
  const header = fc
    .record({ origin: serverName, destination: serverName, key: fc.string(), sig: fc.base64String() })
    .map((parts) => formatXMatrix(parts));
  fc.assert(
    fc.property(mangled(fc.oneof(header, fc.string())), (text) => {
      const parsed = timed(() => parseXMatrix(text));
      if (parsed) timed(() => parseServerAddress(parsed.origin));
    }),
    withinBudget(0.7),
  );
});

test('key responses of any form are read or refused', () => {
  const keys = fc.oneof(
    fc.dictionary(
      fc.oneof(fc.constantFrom('ed25519:a', 'ed25519:b'), key),
      fc.oneof(fc.record({ key: fc.oneof(fc.base64String(), anything), expired_ts: anything }), anything),
    ),
    anything,
  );
  const response = fc.record(
    {
      server_name: fc.oneof(fc.constant('x.test'), anything),
      valid_until_ts: fc.oneof(fc.nat(), anything),
      verify_keys: keys,
      old_verify_keys: keys,
      signatures: fc.oneof(
        fc.dictionary(fc.constantFrom('x.test', 'y'), fc.dictionary(key, anything)),
        anything,
      ),
    },
    { requiredKeys: [] },
  );
  fc.assert(
    fc.property(response, (answer) => {
      assert.throws(() => timed(() => readKeyResponse(answer as JsonObject, 'x.test', 1)), Error);
    }),
    withinBudget(0.7),
  );
});

test('multipart bodies of any form, in pieces of any size, end', async () => {
  const part = fc
    .tuple(fc.string(), fc.string())
    .map(([header, body]) => `--x\r\ncontent-type: ${header}\r\n\r\n${body}\r\n`);
  const body = fc.array(part, { maxLength: 4 }).map((parts) => `${parts.join('')}--x--`);
  await fc.assert(
    fc.asyncProperty(
      mangled(body),
      fc.integer({ min: 1, max: 50 }),
      mangled(fc.constant('multipart/mixed; boundary="x"')),
      async (text, size, type) => {
        timed(() => boundaryOf(type));
        const bytes = Buffer.from(text).subarray(0, 20_000);
        async function* pieces() {
          for (let i = 0; i < bytes.length; i += size) yield bytes.subarray(i, i + size);
        }
        try {
          let parts = 0;
          for await (const each of multipartParts(pieces(), 'x')) {
            if (++parts % 2 === 0) for await (const _ of each.body);
          }
        } catch (error) {
          assert.ok(error instanceof MultipartError, String(error));
        }
      },
    ),
    withinBudget(0.7),
  );
});

/** A server with a room, that other servers send to. */
let engine: TestEngine;
let app: FastifyInstance;
let graph: RemoteGraph;
let typing: Typing;
const warnings: unknown[] = [];

before(async () => {
  engine = await testEngine('here');
  graph = new RemoteGraph('10');
  graph.member(EVE, 'join');
  await graph.joinFrom(engine);
  const { rooms, db, memberships } = engine;
  const log = { warn: (data: object) => void warnings.push(data) };
  typing = new Typing(new Stream('typing', 0));
  const handlers = ephemeralEduHandlers({
    rooms,
    memberships,
    receipts: new Receipts({ db, stream: new Stream('receipts', 0) }),
    typing,
    presence: new Presence({ db, stream: new Stream('presence', 0), enabled: true }),
    isServerAllowed: (room, server) => isServerAllowed(rooms, room, server),
  });
  app = createHttpServer(Fastify);
  app.decorateRequest('xMatrix', undefined);
  app.addHook('onRequest', async (request) => {
    request.xMatrix = { origin: 'evil', destination: 'here', key: '', sig: '' };
  });
  const pdus = new IncomingPdus({
    rooms,
    remote: graph,
    verifier: testVerifier,
    receiver: receiverOf(engine, graph),
    staged: new StagedPdus(db),
    joined: async () => {},
    log,
    patience: 3_000,
  });
  transactionRoutes(app, { pdus, edus: eduDispatcher(handlers, log) });
  await app.ready();
});
after(async () => {
  typing?.close();
  await app?.close();
  await engine?.close();
});

let txn = 0;
const send = (payload: string) =>
  app.inject({
    method: 'PUT',
    url: `/_matrix/federation/v1/send/${txn++}`,
    headers: { 'content-type': 'application/json' },
    payload,
  });

/** Events that a hostile server signs rightly, so that they get far. */
const draft = fc.record({
  type: fc.oneof(
    fc.constantFrom(
      'm.room.message',
      'm.room.member',
      'm.room.power_levels',
      'm.room.join_rules',
      'm.room.redaction',
      'm.room.third_party_invite',
      'm.room.server_acl',
      'm.room.tombstone',
      'm.room.create',
      'm.room.policy',
    ),
    fc.string(),
  ),
  stateKey: fc.option(fc.oneof(fc.constantFrom('', EVE, ALICE, FOUNDER), fc.string()), { nil: undefined }),
  content: fc.oneof(
    fc.record(
      {
        membership: fc.constantFrom('join', 'leave', 'invite', 'knock', 'ban'),
        displayname: anything,
        third_party_invite: anything,
        'm.relates_to': fc.oneof(
          fc.record({ event_id: fc.oneof(fc.constant('$x'), anything), rel_type: anything, key: anything }),
          anything,
        ),
        users: anything,
        redacts: anything,
        body: anything,
      },
      { requiredKeys: [] },
    ),
    jsonObject,
  ),
  prev: fc.array(fc.oneof(fc.nat({ max: 5 }), fc.constant(-1)), { minLength: 1, maxLength: 4 }),
  depth: fc.oneof(fc.nat(), fc.constant(Number.MAX_SAFE_INTEGER)),
  ts: fc.maxSafeInteger(),
  change: fc.option(
    fc.tuple(fc.constantFrom('content', 'hashes', 'signatures', 'depth', 'sender'), anything),
  ),
});

type Draft = typeof draft extends fc.Arbitrary<infer T> ? T : never;

function pduOf({ type, stateKey, content, prev, depth, ts, change }: Draft): Pdu | undefined {
  const known = [...graph.events.keys()];
  try {
    const template = graph.stateAfter.get(known.at(-1)!)!;
    const { pdu } = buildEvent(
      {
        room_id: graph.roomId,
        sender: EVE,
        type,
        ...(stateKey === undefined ? {} : { state_key: stateKey }),
        content: content as JsonObject,
        prev_events: prev.map((back) => (back < 0 ? `$unknown${txn}` : known.at(-1 - back)!)),
        auth_events: ['m.room.create\0', 'm.room.power_levels\0', `m.room.member\0${EVE}`].flatMap(
          (each) => template.get(each) ?? [],
        ),
        depth,
        origin_server_ts: ts,
      },
      { version: graph.version, key: keyOf('evil'), serverName: 'evil' },
    );
    return change ? { ...pdu, [change[0]]: change[1] as JsonValue } : pdu;
  } catch {
    // It has no canonical form, so that nobody could sign it.
    return undefined;
  }
}

const edu = fc.record(
  {
    edu_type: fc.oneof(fc.constantFrom('m.typing', 'm.receipt', 'm.presence'), anything),
    content: fc.oneof(
      fc.record(
        {
          room_id: fc.oneof(fc.constant('!r'), anything),
          user_id: fc.oneof(fc.constant(EVE), anything),
          typing: anything,
          push: fc.oneof(
            fc.array(fc.record({ user_id: fc.oneof(fc.constant(EVE), anything), presence: anything })),
            anything,
          ),
        },
        { requiredKeys: [] },
      ),
      fc.dictionary(fc.string(), fc.record({ 'm.read': fc.dictionary(fc.constant(EVE), anything) })),
      anything,
    ),
  },
  { requiredKeys: [] },
);

test('transactions of any form are answered without an error of the server', {
  timeout: 600_000,
}, async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(draft, { maxLength: 4 }),
      fc.array(fc.oneof(edu, anything), { maxLength: 4 }),
      fc.array(anything, { maxLength: 2 }),
      mangled(fc.constant('')),
      async (drafts, edus, junk, noise) => {
        const pdus = [...drafts.flatMap((each) => pduOf(each) ?? []), ...junk];
        const texts = [
          JSON.stringify({ origin: 'evil', origin_server_ts: 1, pdus, edus }),
          JSON.stringify({ pdus: junk, edus: junk }) + noise,
        ];
        for (const text of texts) {
          const answer = await send(text);
          assert.ok(answer.statusCode < 500, `${answer.body}\n${text}`);
          if (answer.statusCode === 200) assert.equal(typeof (answer.json() as JsonObject).pdus, 'object');
        }
      },
    ),
    withinBudget(4),
  );
  assert.deepEqual(warnings, []);
  // The room is still one: its state can be read anew, and events of others and ours come in.
  engine.rooms.drop(await engine.rooms.require(graph.roomId));
  const room = await engine.rooms.require(graph.roomId);
  assert.ok(room.isJoined(ALICE) && room.isJoined(FOUNDER));
});
