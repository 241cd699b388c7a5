import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { canonicalJson } from '../canonical-json.ts';
import { MatrixError } from '../errors.ts';
import type { JsonObject, JsonValue } from '../event.ts';
import { checkPdu, MAX_EVENT_BYTES } from '../event-format.ts';
import { knownRoomVersions, type RoomVersion } from '../room-versions.ts';
import { jsonValue } from './arbitraries.ts';
import { build, version } from './events.ts';

const badJson = { name: 'MatrixError', status: 400, errcode: 'M_BAD_JSON' };
const tooLarge = { name: 'MatrixError', status: 413, errcode: 'M_TOO_LARGE' };

function changed(room: RoomVersion, changes: Record<string, unknown>): JsonObject {
  return { ...build(room).pdu, ...changes } as JsonObject;
}

function without(room: RoomVersion, name: string): JsonObject {
  const { [name]: _left, ...rest } = build(room).pdu;
  return rest;
}

/** What no room version takes, by member. */
const NEVER: Record<string, unknown[]> = {
  type: [1, null, {}, []],
  state_key: [1, null, {}],
  sender: [1, '', 'alice', '@alice', '@a:b c', null],
  content: [1, 'x', null, []],
  origin_server_ts: ['1', 1.5, null, 2 ** 53],
  depth: ['1', 1.5, -1, null, 2 ** 53, 2 ** 63],
  prev_events: [1, 'x', null, {}, [1], [null], [[]], [{}], ['x'], [['x', {}]], ['$'], Array(21).fill('$a:b')],
  auth_events: [1, 'x', null, {}, [1], [null], [[]], [{}], ['x'], [['x', {}]], ['$'], Array(11).fill('$a:b')],
  hashes: [1, null, [], {}, { sha256: 1 }],
  signatures: [1, null, [], { a: 1 }, { a: { b: 1 } }, { a: [] }],
  unsigned: [1, 'x', null, []],
  room_id: [1, '', 'room', '!', null, '!room', '!room:a b', `!${'x'.repeat(44)}`],
};

for (const room of knownRoomVersions())
  describe(`the event format of room version ${room.id}`, () => {
    it('has the events that this server makes', () => {
      checkPdu(build(room).pdu, room);
      checkPdu(build(room, { state_key: '', unsigned: { age: 1 } }).pdu, room);
    });

    for (const name of [
      'type',
      'sender',
      'content',
      'origin_server_ts',
      'depth',
      'prev_events',
      'auth_events',
      'hashes',
      'signatures',
      'room_id',
    ])
      it(`requires ${name}`, () => {
        assert.throws(() => checkPdu(without(room, name), room), badJson);
      });

    for (const [name, values] of Object.entries(NEVER))
      it(`has types in ${name}`, () => {
        for (const value of values)
          assert.throws(() => checkPdu(changed(room, { [name]: value }), room), badJson);
      });

    it('throws nothing but a MatrixError at any JSON', () => {
      const names = fc.constantFrom(...Object.keys(build(room).pdu), 'state_key', 'redacts', 'unsigned');
      fc.assert(
        fc.property(
          jsonValue,
          fc.dictionary(names, jsonValue, { maxKeys: 3, noNullPrototype: true }),
          (any, changes) => {
            for (const pdu of [any, changed(room, changes)]) {
              try {
                checkPdu(pdu, room);
              } catch (error) {
                assert.ok(error instanceof MatrixError);
              }
            }
          },
        ),
      );
    });
  });

describe('size limits', () => {
  const room = version('11');

  it('count an event in bytes of canonical JSON, signatures and all', () => {
    const size = (body: string) => Buffer.byteLength(canonicalJson(build(room, { content: { body } }).pdu));
    const free = MAX_EVENT_BYTES - size('');
    for (const [fits, tooLong] of [
      ['a'.repeat(free), 'a'.repeat(free + 1)],
      ['\u20ac'.repeat(Math.floor(free / 3)), '\u20ac'.repeat(Math.ceil(free / 3))],
      ['"'.repeat(Math.floor(free / 2)), '"'.repeat(Math.ceil(free / 2) + 1)],
    ] as const) {
      checkPdu(build(room, { content: { body: fits } }).pdu, room);
      assert.throws(() => checkPdu(build(room, { content: { body: tooLong } }).pdu, room), tooLarge);
    }
    const heavy = { ...build(room).pdu, unsigned: { x: 'a'.repeat(MAX_EVENT_BYTES) } };
    assert.throws(() => checkPdu(heavy, room), tooLarge);
  });

  for (const [name, prefix, suffix] of [
    ['type', '', ''],
    ['state_key', '', ''],
    ['sender', '@', ':b'],
    ['room_id', '!', ':b'],
  ] as const)
    it(`count ${name} in bytes`, () => {
      const free = 255 - prefix.length - suffix.length;
      for (const char of ['a', '\u20ac']) {
        const times = Math.floor(free / Buffer.byteLength(char));
        checkPdu(changed(room, { [name]: `${prefix}${char.repeat(times)}${suffix}` }), room);
        const long = `${prefix}${char.repeat(times + 1)}${suffix}`;
        assert.throws(() => checkPdu(changed(room, { [name]: long }), room), tooLarge);
      }
    });

  it('let 20 prev_events and 10 auth_events pass', () => {
    checkPdu(changed(room, { prev_events: Array(20).fill('$a'), auth_events: Array(10).fill('$a') }), room);
  });
});

describe('numbers and text', () => {
  it('are strict since room version 6', () => {
    for (const content of [{ a: 1.5 }, { a: [{ b: 2 ** 53 }] }, { a: 1e300 }]) {
      checkPdu(changed(version('5'), { content }), version('5'));
      assert.throws(() => checkPdu(changed(version('6'), { content }), version('6')), badJson);
      assert.throws(() => checkPdu(changed(version('6'), { unsigned: content }), version('6')), badJson);
    }
  });

  it('are Unicode and not too deep in every room version', () => {
    let deep: JsonValue = {};
    for (let i = 0; i < 50_000; i++) deep = [deep];
    for (const room of knownRoomVersions())
      for (const content of [{ a: '\ud800' }, { '\udc00': 1 }, { deep }])
        assert.throws(() => checkPdu(changed(room, { content }), room), badJson);
  });
});

describe('what differs between room versions', () => {
  it('is the form of references', () => {
    const pair = ['$a:b', { sha256: 'x' }];
    checkPdu(changed(version('2'), { prev_events: [pair] }), version('2'));
    for (const wrong of ['$a:b', ['$a:b'], [...pair, 1], ['$a:b', 1], [1, {}]])
      assert.throws(() => checkPdu(changed(version('2'), { prev_events: [wrong] }), version('2')), badJson);
    assert.throws(() => checkPdu(changed(version('3'), { prev_events: [pair] }), version('3')), badJson);
  });

  it('is the event id', () => {
    assert.throws(() => checkPdu(without(version('1'), 'event_id'), version('1')), badJson);
    for (const event_id of [1, '$', '$abc', 'a:b', '$a:', '$a:b c'])
      assert.throws(() => checkPdu(changed(version('1'), { event_id }), version('1')), badJson);
    assert.throws(
      () => checkPdu(changed(version('1'), { event_id: `$${'a'.repeat(255)}:b` }), version('1')),
      tooLarge,
    );
    checkPdu(without(version('3'), 'event_id'), version('3'));
  });

  it('is redacts', () => {
    assert.throws(() => checkPdu(changed(version('10'), { redacts: 1 }), version('10')), badJson);
    checkPdu(changed(version('10'), { redacts: '$a' }), version('10'));
    checkPdu(changed(version('11'), { redacts: 1 }), version('11'));
  });

  it('is the room id', () => {
    const create = { type: 'm.room.create', state_key: '', prev_events: [], auth_events: [] };
    checkPdu({ ...without(version('12'), 'room_id'), ...create }, version('12'));
    assert.throws(
      () => checkPdu({ ...without(version('11'), 'room_id'), ...create }, version('11')),
      badJson,
    );
    assert.throws(
      () => checkPdu({ ...without(version('12'), 'room_id'), ...create, state_key: 'x' }, version('12')),
      badJson,
    );
    assert.throws(() => checkPdu(changed(version('12'), { room_id: '!a:b' }), version('12')), badJson);
    assert.throws(
      () => checkPdu(changed(version('11'), { room_id: `!${'x'.repeat(43)}` }), version('11')),
      badJson,
    );
  });

  it('is who can authorise a join', () => {
    const member = (authoriser: unknown) => ({
      type: 'm.room.member',
      content: { membership: 'join', join_authorised_via_users_server: authoriser },
    });
    checkPdu(changed(version('8'), member('@a:b')), version('8'));
    for (const authoriser of [1, null, 'b', '@a', '@a:b c'])
      assert.throws(() => checkPdu(changed(version('8'), member(authoriser)), version('8')), badJson);
    checkPdu(changed(version('7'), member(1)), version('7'));
  });
});
