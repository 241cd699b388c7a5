import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import type { JsonObject } from '../event.ts';
import { checkPdu } from '../event-format.ts';
import { contentHash, referenceHash } from '../hashes.ts';
import {
  buildEvent,
  checkContentHash,
  makeEvent,
  signEvent,
  signedText,
  signingServers,
} from '../make-event.ts';
import { redact } from '../redaction.ts';
import { knownRoomVersions } from '../room-versions.ts';
import { SigningKey, signaturesBy, verifyKey, verifySignature } from '../signing.ts';
import { canonicalValue } from './arbitraries.ts';
import { build, key, message, SERVER, version } from './events.ts';

const vectors = JSON.parse(readFileSync(new URL('vectors/signing.json', import.meta.url), 'utf8'));
const content = fc.dictionary(fc.string(), canonicalValue, { noNullPrototype: true, maxKeys: 5 });
const stateKeys = fc.constantFrom({}, { state_key: '' }, { state_key: '@bob:example.org' });
const types = fc.constantFrom('m.room.message', 'm.room.member', 'm.room.power_levels', 'm.room.create', 'x');

describe('signing events', () => {
  for (const { input, signed } of vectors.events)
    it(`makes the spec's hash and signature on ${input.type}`, () => {
      const v1 = version('1');
      const hashed = { ...input, hashes: { sha256: contentHash(input, v1) } };
      const signer = SigningKey.fromSeed(vectors.keyId, vectors.seed);
      assert.deepEqual(
        signEvent(hashed, { version: v1, key: signer, serverName: vectors.serverName }).pdu,
        signed,
      );
    });
});

for (const room of knownRoomVersions())
  describe(`events of room version ${room.id}`, () => {
    it('have the format, hash, signature and id that they should', () => {
      const publicKey = verifyKey(key.publicKeyBase64)!;
      fc.assert(
        fc.property(content, types, stateKeys, (value, type, stateKey) => {
          const event = build(room, { content: value as JsonObject, type, ...stateKey });
          checkPdu(event.pdu, room);
          assert.ok(checkContentHash(event));
          assert.ok(verifySignature(publicKey, signedText(event), signatureOn(event.pdu)));
          assert.deepEqual({ ...makeEvent(event.pdu, room), essential: undefined }, event);
        }),
        { numRuns: 20 },
      );
    });

    it('keep id and signature when redacted or given unsigned data', () => {
      const event = build(room);
      const redacted = makeEvent({ ...redact(event.pdu, room), unsigned: { age: 5 } }, room);
      assert.equal(redacted.eventId, event.eventId);
      assert.equal(signedText(redacted), signedText(event));
      assert.equal(checkContentHash(redacted), false);
    });

    it('have ids and hashes as the definition says', () => {
      const event = build(room);
      const { signatures, unsigned, ...essential } = redact(event.pdu, room);
      const digest = createHash('sha256').update(sortedJson(essential)).digest();
      const text =
        room.eventIds === 'url-safe-hash'
          ? digest.toString('base64url')
          : digest.toString('base64').slice(0, 43);
      assert.equal(referenceHash(event.pdu, room), text);
      if (room.eventIds !== 'server') assert.equal(event.eventId, `$${text}`);
      assert.match(event.eventId, room.eventIds === 'server' ? /^\$[\w-]{24}:example\.org$/ : /^\$[^:]{43}$/);
    });

    it('show what they refer to', () => {
      const proto = message(room);
      const event = build(room);
      assert.deepEqual(event.authEvents, proto.auth_events);
      assert.deepEqual(event.prevEvents, proto.prev_events);
      assert.equal(event.roomId, proto.room_id);
      assert.equal(event.stateKey, undefined);
      assert.equal(build(room, { state_key: '' }).stateKey, '');
    });

    it('say where room versions look what they redact', () => {
      const inContent = build(room, { type: 'm.room.redaction', content: { redacts: '$in' } });
      const onTop = build(room, { type: 'm.room.redaction', redacts: '$top' });
      assert.equal(inContent.redacts, room.redactsInContent ? '$in' : undefined);
      assert.equal(onTop.redacts, room.redactsInContent ? undefined : '$top');
    });
  });

describe('the room id', () => {
  it('is that of the create event since room version 12', () => {
    const room = version('12');
    const { room_id, ...proto } = message(room, {
      type: 'm.room.create',
      state_key: '',
      prev_events: [],
      auth_events: [],
    });
    const event = buildEvent(proto, { version: room, key, serverName: SERVER });
    assert.equal(event.roomId, `!${event.eventId.slice(1)}`);
    assert.equal(event.pdu.room_id, undefined);
    checkPdu(event.pdu, room);
  });
});

describe('references of room versions 1 and 2', () => {
  it('state hashes that are known', () => {
    const room = version('1');
    const options = {
      version: room,
      key,
      serverName: SERVER,
      referenceHashOf: (id: string) => id.slice(1, 4),
    };
    const { pdu } = buildEvent(message(room), options);
    assert.deepEqual(pdu.prev_events, [['$one:example.org', { sha256: 'one' }]]);
    checkPdu(pdu, room);
  });
});

describe('the content hash', () => {
  const event = build(version('11'));
  const withHash = (sha256: unknown) =>
    checkContentHash({ ...event, pdu: { ...event.pdu, hashes: { sha256 } as JsonObject } });

  it('is compared as bytes', () => {
    const hash = contentHash(event.pdu, event.version);
    assert.ok(withHash(hash));
    assert.ok(withHash(`${hash}=`));
    assert.ok(withHash(hash.replaceAll('+', '-').replaceAll('/', '_')));
    for (const wrong of ['', hash.slice(1), `${hash.slice(1)}A`, 1, null, `${'='.repeat(60_000)}x`])
      assert.equal(withHash(wrong), false);
  });

  it('covers all but signatures, hashes and unsigned', () => {
    for (const changes of [{ content: {} }, { depth: 13 }, { extra: 1 }] as JsonObject[])
      assert.equal(checkContentHash({ ...event, pdu: { ...event.pdu, ...changes } }), false);
    assert.ok(checkContentHash({ ...event, pdu: { ...event.pdu, unsigned: { a: 1 }, signatures: {} } }));
  });
});

describe('the servers that must have signed', () => {
  const servers = (id: string, pdu: JsonObject) =>
    signingServers(makeEvent({ ...build(version(id)).pdu, ...pdu }, version(id)));
  const member = (members: JsonObject) => ({
    type: 'm.room.member',
    state_key: '@b:b.org',
    content: members,
  });

  it('are the sender\u2019s', () => {
    assert.deepEqual(servers('11', { sender: '@a:a.org:8448' }), ['a.org:8448']);
  });

  it('and that of the event id in room versions 1 and 2', () => {
    assert.deepEqual(servers('2', { sender: '@a:a.org', event_id: '$x:b.org' }), ['a.org', 'b.org']);
    assert.deepEqual(servers('1', {}), [SERVER]);
  });

  it('and the authorising user\u2019s since room version 8', () => {
    for (const membership of ['join', 'leave']) {
      const event = member({ membership, join_authorised_via_users_server: '@c:c.org' });
      assert.deepEqual(servers('8', event), [SERVER, 'c.org']);
      assert.deepEqual(servers('7', event), [SERVER]);
    }
  });

  it('but not the sender\u2019s of a third-party invite', () => {
    const invite = member({ membership: 'invite', third_party_invite: {} });
    assert.deepEqual(servers('11', invite), []);
    assert.deepEqual(servers('1', invite), [SERVER]);
    assert.deepEqual(servers('11', member({ membership: 'join', third_party_invite: {} })), [SERVER]);
    assert.deepEqual(servers('11', { ...invite, type: 'x' }), [SERVER]);
  });
});

describe('building events', () => {
  it('adds to the signatures of others', () => {
    const event = build(version('11'));
    const twice = signEvent(event.pdu, {
      version: event.version,
      key: SigningKey.generate('2'),
      serverName: 'b.org',
    });
    assert.equal(twice.eventId, event.eventId);
    assert.deepEqual(Object.keys(twice.pdu.signatures as JsonObject).sort(), ['b.org', SERVER]);
  });

  it('takes nothing that was not asked for', () => {
    const proto = {
      ...message(version('11')),
      event_id: '$x',
      hashes: { sha256: 'x' },
      signatures: { b: {} },
      evil: 1,
    };
    const { pdu } = buildEvent(proto, { version: version('11'), key, serverName: SERVER });
    assert.equal('evil' in pdu || 'event_id' in pdu, false);
    assert.deepEqual(Object.keys(pdu.signatures as JsonObject), [SERVER]);
  });

  it('refuses what canonical JSON cannot hold', () => {
    for (const bad of [{ a: 1.5 }, { a: '\ud800' }])
      assert.throws(() => build(version('11'), { content: bad }), { errcode: 'M_BAD_JSON' });
    assert.doesNotThrow(() => build(version('5'), { content: { a: 1.5 } }));
  });
});

function signatureOn(pdu: JsonObject): string {
  return signaturesBy(pdu, SERVER)[key.keyId] as string;
}

/** Enough of canonical JSON for events with ASCII keys. */
function sortedJson(value: unknown): string {
  return JSON.stringify(value, (_key, item) =>
    item && typeof item === 'object' && !Array.isArray(item)
      ? Object.fromEntries(Object.entries(item).sort(([a], [b]) => (a < b ? -1 : 1)))
      : item,
  );
}
