import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { authorise, authoriseByAuthEvents, mayApplyRedaction } from '../auth-rules/index.ts';
import type { AuthView, JsonObject, JsonValue } from '../event.ts';
import { knownRoomVersions, type RoomVersion } from '../room-versions.ts';
import { SigningKey, signJson } from '../signing.ts';
import { jsonObject, jsonValue } from './arbitraries.ts';
import { createOf, member, stateOf, versionOf, view } from './graph.ts';

const ALICE = '@alice:a';
const BOB = '@bob:b';
const CAROL = '@carol:c';
const all = knownRoomVersions();
const since = (id: number) =>
  all.filter((version) => Number.parseInt(version.id.split('.').at(-1)!, 10) >= id);
const before = (id: number) => all.filter((version) => !since(id).includes(version));

interface Case {
  readonly name: string;
  readonly event: AuthView | ((version: RoomVersion) => AuthView);
  /** Added to the create event, Alice with power level 100 and Bob with 0 in a room for the invited. */
  readonly state?: readonly AuthView[];
  readonly create?: JsonObject;
  readonly allowed?: readonly RoomVersion[];
  readonly refused?: readonly RoomVersion[];
}

const roomIdIn = (version: RoomVersion) => (version.roomIdIsCreateHash ? '!create' : '!room:a');

/** Alice has 100 in this room, or as its creator more. */
function levels(content: JsonObject, version?: RoomVersion): AuthView {
  const users: JsonObject = version?.privilegedCreators ? {} : { [ALICE]: 100 };
  return view({ type: 'm.room.power_levels', content: { users, ...content } });
}

function check({ event, state = [], create = {} }: Case, version: RoomVersion): string | undefined {
  const made = typeof event === 'function' ? event(version) : event;
  const roomId = made.type === 'm.room.create' ? made.roomId : roomIdIn(version);
  const base = [createOf(version, create), levels({}, version), member(ALICE, 'join'), member(BOB, 'join')];
  return authorise({ ...made, roomId }, stateOf([...base, ...state]), version);
}

function run(cases: readonly Case[]): void {
  for (const { allowed = [], refused = [], ...each } of cases)
    test(each.name, () => {
      assert.ok(allowed.length + refused.length > 0);
      for (const version of allowed) assert.equal(check(each, version), undefined, `version ${version.id}`);
      for (const version of refused)
        assert.equal(typeof check(each, version), 'string', `version ${version.id} should refuse`);
    });
}

const message = (sender: string, more: Partial<AuthView> = {}) =>
  view({ type: 'm.room.message', sender, ...more, stateKey: more.stateKey });
const setting = (sender: string, type: string, content: JsonObject = {}, stateKey = '') =>
  view({ type, sender, content, stateKey });

describe('m.room.create', () => {
  const create =
    (content: JsonObject = {}, more: Partial<AuthView> = {}) =>
    (version: RoomVersion) => ({
      ...createOf(version, content),
      ...more,
    });
  run([
    { name: 'is allowed', event: create(), allowed: all },
    { name: '1.1 has no prev_events', event: create({}, { prevEvents: ['$other'] }), refused: all },
    {
      name: '1.2 is of the server that the room id names',
      event: (version) => ({ ...createOf(version), sender: '@alice:b' }),
      refused: before(12),
      allowed: since(12),
    },
    { name: '1.2 bears no room id', event: create({}, { roomId: '!other' }), refused: since(12) },
    { name: '1.3 names a version', event: create({ room_version: 'unheard of' }), refused: all },
    { name: '1.3 names a version by a string', event: create({ room_version: 1 }), refused: all },
    {
      name: '1.3 needs no version',
      event: (version) => {
        const { room_version: _, ...content } = createOf(version).content;
        return { ...createOf(version), content };
      },
      allowed: all,
    },
    {
      name: '1.4 names its creator',
      event: (version) => ({ ...createOf(version), content: { room_version: version.id } }),
      refused: before(11),
      allowed: since(11),
    },
    {
      name: '1.4 lists additional creators',
      event: create({ additional_creators: [BOB] }),
      allowed: all,
    },
    ...[['bob'], [1], BOB, null, {}].map(
      (additional): Case => ({
        name: `1.4 has no additional creators ${JSON.stringify(additional)}`,
        event: create({ additional_creators: additional as JsonValue }),
        refused: since(12),
        allowed: before(12),
      }),
    ),
  ]);
});

describe('rules for all events', () => {
  run([
    {
      name: '4. others send to a room that federates',
      event: message(BOB),
      create: { 'm.federate': true },
      allowed: all,
    },
    { name: '4. others keep out', event: message(BOB), create: { 'm.federate': false }, refused: all },
    {
      name: '4. unless of the same server',
      event: message(ALICE),
      create: { 'm.federate': false },
      allowed: all,
    },
    {
      name: '4. of m.room.aliases: of the own server',
      event: setting(CAROL, 'm.room.aliases', {}, 'c'),
      allowed: before(6),
      refused: since(6),
    },
    {
      name: '4. of m.room.aliases: of another',
      event: setting(BOB, 'm.room.aliases', {}, 'c'),
      refused: all,
    },
    {
      name: '4. of m.room.aliases: no state',
      event: message(CAROL, { type: 'm.room.aliases' }),
      refused: all,
    },
    { name: '6. members send', event: message(BOB), allowed: all },
    { name: '6. strangers do not', event: message(CAROL), refused: all },
    { name: '6. the invited do not', event: message(CAROL), state: [member(CAROL, 'invite')], refused: all },
    {
      name: '7. third-party invites need the power to invite',
      event: setting(BOB, 'm.room.third_party_invite', {}, 'token'),
      state: [levels({ invite: 1 })],
      refused: all,
    },
    {
      name: '7. and nothing else',
      event: setting(BOB, 'm.room.third_party_invite', {}, '@token'),
      allowed: all,
    },
    { name: '8. state needs 50', event: setting(BOB, 'm.room.topic'), refused: all },
    {
      name: '8. or what state_default says',
      event: setting(BOB, 'm.room.topic'),
      state: [levels({ state_default: 0 })],
      allowed: all,
    },
    {
      name: '8. or what the type has',
      event: setting(BOB, 'm.room.topic'),
      state: [levels({ users: { [BOB]: 10 }, state_default: 90, events: { 'm.room.topic': 10 } })],
      allowed: all,
    },
    {
      name: '8. messages need events_default',
      event: message(BOB),
      state: [levels({ events_default: 1 })],
      refused: all,
    },
    {
      name: '8. users_default counts',
      event: message(BOB),
      state: [levels({ events_default: 10, users_default: 10 })],
      allowed: all,
    },
    {
      name: '8. strings are levels',
      event: message(BOB),
      state: [levels({ users: { [BOB]: ' +010 ' }, events_default: '10' })],
      allowed: before(10),
    },
    {
      name: '8. floats are cut off',
      event: message(BOB),
      state: [levels({ users: { [BOB]: 10.2 }, events_default: 10.9 })],
      allowed: before(6),
    },
    {
      name: '9. one’s own state',
      event: setting(ALICE, 'x', {}, ALICE),
      allowed: all,
    },
    {
      name: '9. another’s state',
      event: setting(ALICE, 'x', {}, BOB),
      allowed: all.filter((version) => version.ownedState),
      refused: all.filter((version) => !version.ownedState),
    },
    {
      name: '9. the state of someone as powerful',
      event: setting(BOB, 'x', {}, ALICE),
      state: [levels({ users: { [ALICE]: 100, [BOB]: 100 } })],
      refused: all,
    },
    {
      name: '9. one’s own state with a suffix (MSC3757)',
      event: setting(BOB, 'x', {}, `${BOB}_state:!@#_$`),
      state: [levels({ state_default: 0 })],
      allowed: all.filter((version) => version.ownedState),
      refused: all.filter((version) => !version.ownedState),
    },
    ...['@oops', `${ALICE}@suffix`, `@prefix_${ALICE}@`, '@:_', '@'].map(
      (key): Case => ({ name: `9. no user: ${key}`, event: setting(ALICE, 'x', {}, key), refused: all }),
    ),
    { name: '9. a suffix behind no separator', event: setting(BOB, 'x', {}, `${BOB}x`), refused: all },
  ]);

  test('2. asks for a create event', () => {
    for (const version of all)
      assert.match(authorise(message(BOB), stateOf([member(BOB, 'join')]), version)!, /no create event/);
  });

  test('2. asks for the create event of the room', () => {
    for (const version of since(12)) {
      const state = stateOf([createOf(version), member(BOB, 'join')]);
      assert.equal(authorise(message(BOB, { roomId: '!create' }), state, version), undefined);
      assert.match(authorise(message(BOB, { roomId: '!other' }), state, version)!, /another room/);
    }
  });

  test('without power levels the creator has 100 and state needs 50', () => {
    for (const version of all) {
      const roomId = roomIdIn(version);
      const state = stateOf([createOf(version), member(ALICE, 'join'), member(BOB, 'join')]);
      assert.equal(authorise({ ...setting(ALICE, 'm.room.topic'), roomId }, state, version), undefined);
      assert.ok(authorise({ ...setting(BOB, 'm.room.topic'), roomId }, state, version));
      assert.equal(authorise({ ...message(BOB), roomId }, state, version), undefined);
    }
  });

  test('11. redactions are authorised in versions 1 and 2 only', () => {
    const redaction = (redacts: string) =>
      message(BOB, { type: 'm.room.redaction', eventId: '$r:b', redacts });
    for (const version of before(3)) {
      assert.equal(check({ name: '', event: redaction('$x:b') }, version), undefined);
      assert.ok(check({ name: '', event: redaction('$x:a') }, version));
      assert.equal(
        check({ name: '', event: redaction('$x:a'), state: [levels({ redact: 0 })] }, version),
        undefined,
      );
      assert.ok(check({ name: '', event: { ...redaction(''), redacts: undefined } }, version));
    }
    for (const version of since(3))
      assert.equal(check({ name: '', event: redaction('$x:a') }, version), undefined);
  });
});

describe('m.room.member', () => {
  const rule = (join_rule: JsonValue) => view({ type: 'm.room.join_rules', content: { join_rule } });
  const join = (more: Partial<AuthView> = {}) => member(CAROL, 'join', more);
  const restrictedJoin = join({ content: { join_authorised_via_users_server: ALICE } });
  run([
    {
      name: '5.1 has a state key',
      event: message(BOB, { type: 'm.room.member', content: { membership: 'join' } }),
      refused: all,
    },
    { name: '5.1 has a membership', event: setting(BOB, 'm.room.member', {}, BOB), refused: all },
    {
      name: '5.1 has a membership that is text',
      event: setting(BOB, 'm.room.member', { membership: 1 }, BOB),
      refused: all,
    },
    { name: '5.8 has a known membership', event: member(BOB, 'hover'), refused: all },

    {
      name: '5.3.1 the creator joins first',
      event: member(ALICE, 'join', { prevEvents: ['$create'] }),
      state: [member(ALICE, 'leave')],
      allowed: since(3),
    },
    {
      name: '5.3.1 nobody else does',
      event: join({ prevEvents: ['$create'] }),
      refused: all,
    },
    {
      name: '5.3.1 additional creators do not',
      event: join({ prevEvents: ['$create'] }),
      create: { additional_creators: [CAROL] },
      refused: all,
    },
    {
      name: '5.3.1 the first join follows nothing else',
      event: member(ALICE, 'join', { prevEvents: ['$create', '$x'] }),
      state: [member(ALICE, 'leave')],
      refused: all,
    },
    {
      name: '5.3.2 nobody joins for another',
      event: join({ sender: ALICE }),
      state: [rule('public')],
      refused: all,
    },
    {
      name: '5.3.3 the banned stay out',
      event: join(),
      state: [rule('public'), member(CAROL, 'ban')],
      refused: all,
    },
    { name: '5.3.4 strangers stay out by default', event: join(), refused: all },
    {
      name: '5.3.4 the invited come in by default',
      event: join(),
      state: [member(CAROL, 'invite')],
      allowed: all,
    },
    { name: '5.3.4 invite: strangers stay out', event: join(), state: [rule('invite')], refused: all },
    {
      name: '5.3.4 invite: those who left stay out',
      event: join(),
      state: [rule('invite'), member(CAROL, 'leave')],
      refused: all,
    },
    {
      name: '5.3.4 invite: the invited come in',
      event: join(),
      state: [rule('invite'), member(CAROL, 'invite')],
      allowed: all,
    },
    {
      name: '5.3.4 invite: members may change',
      event: join(),
      state: [rule('invite'), member(CAROL, 'join')],
      allowed: all,
    },
    { name: '5.3.4 knock: strangers stay out', event: join(), state: [rule('knock')], refused: all },
    {
      name: '5.3.4 knock: the invited come in',
      event: join(),
      state: [rule('knock'), member(CAROL, 'invite')],
      allowed: since(7),
      refused: before(7),
    },
    {
      name: '5.3.4 knock: who knocks stays out',
      event: join(),
      state: [rule('knock'), member(CAROL, 'knock')],
      refused: all,
    },
    {
      name: '5.3.5.1 restricted: the invited come in',
      event: join(),
      state: [rule('restricted'), member(CAROL, 'invite')],
      allowed: since(8),
      refused: before(8),
    },
    {
      name: '5.3.5.1 knock_restricted: the invited come in',
      event: join(),
      state: [rule('knock_restricted'), member(CAROL, 'invite')],
      allowed: since(10),
      refused: before(10),
    },
    {
      name: '5.3.5.2 restricted: who was authorised comes in',
      event: restrictedJoin,
      state: [rule('restricted')],
      allowed: since(8),
      refused: before(8),
    },
    {
      name: '5.3.5.2 knock_restricted: who was authorised comes in',
      event: restrictedJoin,
      state: [rule('knock_restricted')],
      allowed: since(10),
      refused: before(10),
    },
    {
      name: '5.3.5.2 restricted: strangers stay out',
      event: join(),
      state: [rule('restricted')],
      refused: all,
    },
    {
      name: '5.3.5.2 restricted: only members authorise',
      event: restrictedJoin,
      state: [rule('restricted'), member(ALICE, 'leave')],
      refused: all,
    },
    {
      name: '5.3.5.2 restricted: only who may invite authorises',
      event: join({ content: { join_authorised_via_users_server: BOB } }),
      state: [rule('restricted'), levels({ invite: 50 })],
      refused: all,
    },
    {
      name: '5.3.5.2 restricted: only users authorise',
      event: join({ content: { join_authorised_via_users_server: [ALICE] } }),
      state: [rule('restricted')],
      refused: all,
    },
    { name: '5.3.6 public: everyone comes in', event: join(), state: [rule('public')], allowed: all },
    {
      name: '5.3.7 private: nobody comes in',
      event: join(),
      state: [rule('private'), member(CAROL, 'invite')],
      refused: all,
    },
    {
      name: '5.3.7 no rule: nobody comes in',
      event: join(),
      state: [rule(null), member(CAROL, 'invite')],
      refused: all,
    },

    { name: '5.4.2 members invite', event: member(CAROL, 'invite', { sender: BOB }), allowed: all },
    { name: '5.4.2 strangers do not', event: member('@d:d', 'invite', { sender: CAROL }), refused: all },
    ...['join', 'ban'].map(
      (membership): Case => ({
        name: `5.4.3 not to those with ${membership}`,
        event: member(CAROL, 'invite', { sender: ALICE }),
        state: [member(CAROL, membership)],
        refused: all,
      }),
    ),
    ...['invite', 'leave'].map(
      (membership): Case => ({
        name: `5.4.3 also to those with ${membership}`,
        event: member(CAROL, 'invite', { sender: ALICE }),
        state: [member(CAROL, membership)],
        allowed: all,
      }),
    ),
    {
      name: '5.4.4 invites need power',
      event: member(CAROL, 'invite', { sender: BOB }),
      state: [levels({ invite: 1 })],
      refused: all,
    },

    ...['join', 'invite'].map(
      (membership): Case => ({
        name: `5.5.1 one leaves from ${membership}`,
        event: member(CAROL, 'leave'),
        state: [member(CAROL, membership)],
        allowed: all,
      }),
    ),
    {
      name: '5.5.1 one leaves from knock',
      event: member(CAROL, 'leave'),
      state: [member(CAROL, 'knock')],
      allowed: since(7),
      refused: before(7),
    },
    ...['leave', 'ban'].map(
      (membership): Case => ({
        name: `5.5.1 one does not leave from ${membership}`,
        event: member(CAROL, 'leave'),
        state: [member(CAROL, membership)],
        refused: all,
      }),
    ),
    { name: '5.5.1 strangers do not leave', event: member(CAROL, 'leave'), refused: all },
    {
      name: '5.5.2 who is not in kicks nobody',
      event: member(BOB, 'leave', { sender: ALICE }),
      state: [member(ALICE, 'leave')],
      refused: all,
    },
    {
      name: '5.5.3 unbanning needs the power to ban',
      event: member(CAROL, 'leave', { sender: BOB }),
      state: [member(CAROL, 'ban'), levels({ users: { [BOB]: 50 }, ban: 60 })],
      refused: all,
    },
    {
      name: '5.5.3 with it one unbans',
      event: member(CAROL, 'leave', { sender: ALICE }),
      state: [member(CAROL, 'ban')],
      allowed: all,
    },
    { name: '5.5.4 who has the power kicks', event: member(BOB, 'leave', { sender: ALICE }), allowed: all },
    {
      name: '5.5.4 but not equals',
      event: member(CAROL, 'leave', { sender: BOB }),
      state: [member(CAROL, 'join'), levels({ users: { [BOB]: 60, [CAROL]: 60 } })],
      refused: all,
    },
    {
      name: '5.5.4 nor without the power',
      event: member(CAROL, 'leave', { sender: BOB }),
      state: [member(CAROL, 'join'), levels({ users: { [BOB]: 49 } })],
      refused: all,
    },

    {
      name: '5.6.1 who is not in bans nobody',
      event: member(BOB, 'ban', { sender: ALICE }),
      state: [member(ALICE, 'invite')],
      refused: all,
    },
    { name: '5.6.2 who has the power bans', event: member(CAROL, 'ban', { sender: ALICE }), allowed: all },
    {
      name: '5.6.2 but not equals',
      event: member(CAROL, 'ban', { sender: BOB }),
      state: [levels({ users: { [BOB]: 60, [CAROL]: 60 } })],
      refused: all,
    },
    {
      name: '5.6.2 nor without the power',
      event: member(CAROL, 'ban', { sender: BOB }),
      state: [levels({ users: { [BOB]: 49 } })],
      refused: all,
    },
    {
      name: '5.6.2 nobody bans a creator',
      event: member(ALICE, 'ban', { sender: BOB }),
      state: [levels({ users: { [BOB]: 2 ** 53 - 1 } })],
      refused: since(12),
    },

    {
      name: '5.7.1 knocking needs the rule',
      event: member(CAROL, 'knock'),
      state: [rule('public')],
      refused: all,
    },
    {
      name: '5.7.1 knock',
      event: member(CAROL, 'knock'),
      state: [rule('knock')],
      allowed: since(7),
      refused: before(7),
    },
    {
      name: '5.7.1 knock_restricted',
      event: member(CAROL, 'knock'),
      state: [rule('knock_restricted')],
      allowed: since(10),
      refused: before(10),
    },
    {
      name: '5.7.2 nobody knocks for another',
      event: member(CAROL, 'knock', { sender: BOB }),
      state: [rule('knock')],
      refused: all,
    },
    ...['ban', 'invite', 'join'].map(
      (membership): Case => ({
        name: `5.7.3 not from ${membership}`,
        event: member(CAROL, 'knock'),
        state: [rule('knock'), member(CAROL, membership)],
        refused: all,
      }),
    ),
    ...['leave', 'knock'].map(
      (membership): Case => ({
        name: `5.7.3 from ${membership}`,
        event: member(CAROL, 'knock'),
        state: [rule('knock'), member(CAROL, membership)],
        allowed: since(7),
      }),
    ),
  ]);
});

describe('third-party invites (5.4.1)', () => {
  const key = SigningKey.generate('1');
  const other = SigningKey.generate('1');
  const issued = (content: JsonObject) =>
    view({ type: 'm.room.third_party_invite', stateKey: 'token', sender: BOB, content });
  const signed = signJson({ mxid: CAROL, token: 'token' }, 'id.example', key);
  const invite = (third: JsonValue, sender = BOB) =>
    member(CAROL, 'invite', { sender, content: { third_party_invite: third } });
  const state = [issued({ public_key: key.publicKeyBase64 })];
  run([
    { name: 'is allowed', event: invite({ signed }), state, allowed: all },
    {
      name: 'needs no membership',
      event: invite({ signed }),
      state: [...state, member(BOB, 'leave')],
      allowed: all,
    },
    {
      name: '5.4.1.1 not to the banned',
      event: invite({ signed }),
      state: [...state, member(CAROL, 'ban')],
      refused: all,
    },
    { name: '5.4.1.2 has a signed part', event: invite({}), state, refused: all },
    { name: '5.4.1.2 is an object', event: invite('yes'), state, refused: all },
    {
      name: '5.4.1.3 has a token',
      event: invite({ signed: signJson({ mxid: CAROL }, 'id', key) }),
      state,
      refused: all,
    },
    {
      name: '5.4.1.3 has a user',
      event: invite({ signed: signJson({ token: 'token' }, 'id', key) }),
      state,
      refused: all,
    },
    {
      name: '5.4.1.4 has the invited user',
      event: invite({ signed: signJson({ mxid: '@d:d', token: 'token' }, 'id', key) }),
      state,
      refused: all,
    },
    { name: '5.4.1.5 was issued', event: invite({ signed }), refused: all },
    { name: '5.4.1.6 was issued by the sender', event: invite({ signed }, ALICE), state, refused: all },
    {
      name: '5.4.1.7 is signed by one of public_keys',
      event: invite({ signed }),
      state: [
        issued({
          public_key: other.publicKeyBase64,
          public_keys: [{ public_key: 'nonsense' }, 3, { public_key: key.publicKeyBase64 }],
        }),
      ],
      allowed: all,
    },
    {
      name: '5.4.1.8 is signed',
      event: invite({ signed: { mxid: CAROL, token: 'token' } }),
      state,
      refused: all,
    },
    {
      name: '5.4.1.8 is signed by the right key',
      event: invite({ signed }),
      state: [issued({ public_key: other.publicKeyBase64 })],
      refused: all,
    },
    {
      name: '5.4.1.8 is signed as it stands',
      event: invite({ signed: { ...signed, more: 1 } }),
      state,
      refused: all,
    },
  ]);
});

describe('m.room.power_levels (10)', () => {
  /** Bob has 60. */
  const current = { users: { [BOB]: 60, [CAROL]: 60 }, ban: 70, kick: 60, events: { x: 70, y: 10 } };
  const state = [view({ type: 'm.room.power_levels', content: current })];
  const change = (content: JsonObject) => setting(BOB, 'm.room.power_levels', { ...current, ...content });
  /** Alice sets the first power levels. */
  const first = (content: JsonObject, allowed: readonly RoomVersion[], name: string): Case => ({
    name,
    event: setting(ALICE, 'm.room.power_levels', content),
    state: [view({ type: 'm.room.power_levels', stateKey: 'elsewhere' })],
    allowed,
    refused: all.filter((version) => !allowed.includes(version)),
  });
  const unsafe = before(6);
  run([
    first({ ban: '50' }, before(10), '10.1 levels as strings'),
    first({ kick: 50.5 }, before(10), '10.1 levels as floats'),
    first({ kick: Number.POSITIVE_INFINITY }, [], '10.1 levels beyond numbers'),
    ...['fifty', '5 0', '0x10', '', null, true, [], {}].map((level) =>
      first({ invite: level as JsonValue }, [], `10.1 no level: ${JSON.stringify(level)}`),
    ),
    first({ events: { x: '50' } }, before(10), '10.2 events as strings'),
    first({ events: [] }, [], '10.2 events as a list'),
    first({ notifications: { room: 'loud' } }, unsafe, '10.2 notifications that are no level'),
    first({ notifications: 20 }, unsafe, '10.2 notifications that are no object'),
    first({ users: { [BOB]: '50' } }, before(10), '10.3 users as strings'),
    first({ users: { bob: 50 } }, [], '10.3 users that are none'),
    first({ users: { [BOB]: 'fifty' } }, [], '10.3 users without level'),
    first({ users: [] }, [], '10.3 users as a list'),
    first({ users: { [ALICE]: 100 } }, before(12), '10.4 creators'),
    {
      name: '10.4 additional creators',
      event: setting(ALICE, 'm.room.power_levels', { users: { [BOB]: 100 } }),
      create: { additional_creators: [BOB] },
      refused: since(12),
      allowed: before(12),
    },
    { name: '10.6 what is above oneself is not changed', event: change({ ban: 50 }), state, refused: all },
    {
      name: '10.6 nor taken away',
      event: setting(BOB, 'm.room.power_levels', { ...current, ban: undefined as never }),
      state,
      refused: all,
    },
    { name: '10.6 nor set', event: change({ invite: 61 }), state, refused: all },
    { name: '10.6 nor raised', event: change({ kick: 61 }), state, refused: all },
    {
      name: '10.7 events above oneself are not changed',
      event: change({ events: { x: 60, y: 10 } }),
      state,
      refused: all,
    },
    { name: '10.7 nor removed', event: change({ events: { y: 10 } }), state, refused: all },
    { name: '10.8 nor added', event: change({ events: { x: 70, y: 10, z: 61 } }), state, refused: all },
    {
      name: '10.8 notifications are not set above oneself',
      event: change({ notifications: { room: 61 } }),
      state,
      refused: since(6),
    },
    {
      name: '10.8 before version 6 they are',
      event: change({ notifications: { room: 61 } }),
      state,
      allowed: before(6),
    },
    {
      name: '10.9 equals are not changed',
      event: change({ users: { [BOB]: 60, [CAROL]: 0 } }),
      state,
      refused: all,
    },
    {
      name: '10.9 nor taken away',
      event: change({ users: { [BOB]: 60 } }),
      state,
      refused: all,
    },
    {
      name: '10.10 one does not raise oneself',
      event: change({ users: { [BOB]: 61, [CAROL]: 60 } }),
      state,
      refused: all,
    },
    {
      name: '10.10 nor another',
      event: change({ users: { [BOB]: 60, [CAROL]: 60, '@d:d': 61 } }),
      state,
      refused: all,
    },
  ]);

  test('what is within the sender’s power may change', () => {
    for (const version of all) {
      // In version 12 the creator may not be listed.
      const users: JsonObject = version.privilegedCreators ? { [CAROL]: 60 } : { [ALICE]: 100, [CAROL]: 60 };
      const now = view({
        type: 'm.room.power_levels',
        content: { ...current, users: { ...users, [BOB]: 60 } },
      });
      const allowed: JsonObject[] = [
        { kick: 50 },
        { kick: undefined as never },
        { invite: 60 },
        { events: { x: 70 } },
        { events: { x: 70, y: 60, z: 1 } },
        { users },
        { users: { ...users, [BOB]: 10 } },
        { users: { ...users, [BOB]: 60, '@d:d': 60 } },
      ];
      if (!version.integerPowerLevels)
        allowed.push({ ban: '70' }, { ban: 70.9 }, { events: { x: ' 0070', y: 10 } });
      for (const content of allowed) {
        const event = setting(BOB, 'm.room.power_levels', { ...now.content, ...content });
        const reason = check({ name: '', event, state: [now] }, version);
        assert.equal(reason, undefined, `${version.id} ${JSON.stringify(content)}`);
      }
    }
  });

  test('10.5 the first power levels may be any', () => {
    for (const version of all) {
      const event = { ...setting(ALICE, 'm.room.power_levels', { ban: 1000 }), roomId: roomIdIn(version) };
      assert.equal(authorise(event, stateOf([createOf(version), member(ALICE, 'join')]), version), undefined);
    }
  });

  test('creators stand above all levels since version 12', () => {
    for (const version of since(12)) {
      const event = setting(ALICE, 'm.room.power_levels', { ban: 2 ** 53 - 1 });
      const high = view({
        type: 'm.room.power_levels',
        content: { ban: 2 ** 53 - 1, state_default: 2 ** 53 - 1 },
      });
      assert.equal(check({ name: '', event, state: [high] }, version), undefined);
      const additional = { ...event, sender: BOB };
      assert.ok(check({ name: '', event: additional, state: [high] }, version));
      const create = { additional_creators: [BOB] };
      assert.equal(check({ name: '', event: additional, state: [high], create }, version), undefined);
    }
  });
});

describe('auth_events (3)', () => {
  function authEvents(version: RoomVersion, more: readonly AuthView[] = []) {
    const create = createOf(version);
    const roomId = create.roomId;
    const events = [levels({}, version), member(BOB, 'join'), ...more].map((event) => ({ ...event, roomId }));
    const event = { ...message(BOB), roomId };
    return { create, event, events: version.roomIdIsCreateHash ? events : [create, ...events] };
  }

  test('are accepted', () => {
    for (const version of all) {
      const { create, event, events } = authEvents(version);
      assert.equal(authoriseByAuthEvents(event, events, version, create), undefined);
    }
  });

  test('3.1 hold nothing twice', () => {
    for (const version of all) {
      const { create, event, events } = authEvents(version, [member(BOB, 'join')]);
      assert.match(authoriseByAuthEvents(event, events, version, create)!, /two auth events/);
    }
  });

  test('3.2 hold nothing that does not belong there', () => {
    for (const version of all)
      for (const extra of [
        member(ALICE, 'join'),
        view({ type: 'm.room.topic' }),
        view({ type: 'm.room.join_rules' }),
      ]) {
        const { create, event, events } = authEvents(version, [extra]);
        assert.match(authoriseByAuthEvents(event, events, version, create)!, /does not belong/);
      }
  });

  test('3.2 hold state only', () => {
    for (const version of all) {
      const { create, event, events } = authEvents(version, [message(BOB)]);
      assert.match(authoriseByAuthEvents(event, events, version, create)!, /no state event/);
    }
  });

  test('3.2 hold no create event since version 12', () => {
    for (const version of since(12)) {
      const { create, event, events } = authEvents(version);
      assert.match(authoriseByAuthEvents(event, [create, ...events], version, create)!, /does not belong/);
    }
  });

  test('3.3 hold nothing rejected', () => {
    for (const version of all) {
      const { create, event, events } = authEvents(version);
      const rejected = events.map((auth) =>
        auth.type === 'm.room.member' ? { ...auth, rejected: true } : auth,
      );
      assert.match(authoriseByAuthEvents(event, rejected, version, create)!, /rejected/);
    }
  });

  test('3.4 hold the create event before version 12, and 2. it is accepted since', () => {
    for (const version of before(12)) {
      const { event, events } = authEvents(version);
      assert.match(authoriseByAuthEvents(event, events.slice(1), version)!, /no create event/);
    }
    for (const version of since(12)) {
      const { create, event, events } = authEvents(version);
      assert.ok(authoriseByAuthEvents(event, events, version));
      assert.ok(authoriseByAuthEvents(event, events, version, { ...create, rejected: true }));
      assert.ok(authoriseByAuthEvents(event, events, version, { ...create, eventId: '$other' }));
    }
  });

  test('3.5 are of the same room (MSC4307)', () => {
    for (const version of all) {
      const { create, event, events } = authEvents(version);
      const foreign = events.map((auth) =>
        auth.type === 'm.room.member' ? { ...auth, roomId: '!other:a' } : auth,
      );
      assert.match(authoriseByAuthEvents(event, foreign, version, create)!, /another room/);
    }
  });

  test('have to allow the event', () => {
    for (const version of all) {
      const { create, event, events } = authEvents(version);
      const withoutMember = events.filter((auth) => auth.type !== 'm.room.member');
      assert.match(authoriseByAuthEvents(event, withoutMember, version, create)!, /not in the room/);
    }
  });

  test('matter to no create event', () => {
    for (const version of all)
      assert.equal(authoriseByAuthEvents(createOf(version), [view({ type: 'x' })], version), undefined);
  });
});

describe('handling redactions', () => {
  const target = message(ALICE);
  const redaction = (sender: string) => message(sender, { type: 'm.room.redaction' });
  const apply = (version: RoomVersion, by: AuthView, of: AuthView, more: AuthView[] = []) =>
    mayApplyRedaction(by, of, stateOf([createOf(version), levels({}, version), ...more]), version);

  test('1. by power', () => {
    for (const version of since(3)) {
      assert.equal(apply(version, redaction(ALICE), message(BOB)), true);
      assert.equal(apply(version, redaction(BOB), target), false);
      assert.equal(apply(version, redaction(BOB), target, [levels({ redact: 0 })]), true);
    }
  });

  test('2. by server', () => {
    for (const version of since(3)) assert.equal(apply(version, redaction('@other:a'), target), true);
  });

  test('the auth rules have decided in versions 1 and 2', () => {
    for (const version of before(3)) assert.equal(apply(version, redaction(BOB), target), true);
  });

  test('neither of other rooms nor of create events', () => {
    for (const version of all) {
      assert.equal(apply(version, redaction(ALICE), { ...target, roomId: '!other:a' }), false);
      assert.equal(apply(version, redaction(ALICE), { ...createOf(version), roomId: '!room:a' }), false);
    }
  });
});

test('whatever events hold, an answer is given', () => {
  const user = fc.constantFrom(ALICE, BOB, CAROL, '', '@', '__proto__');
  const levelsLike = fc.record(
    {
      users: fc.oneof(fc.dictionary(user, jsonValue), jsonValue),
      events: fc.oneof(fc.dictionary(fc.constantFrom('m.room.topic', '__proto__'), jsonValue), jsonValue),
      notifications: jsonValue,
      users_default: jsonValue,
      ban: jsonValue,
      invite: jsonValue,
    },
    { requiredKeys: [] },
  );
  const memberLike = fc.record(
    {
      membership: fc.oneof(fc.constantFrom('join', 'invite', 'leave', 'ban', 'knock'), jsonValue),
      third_party_invite: fc.oneof(
        jsonValue,
        fc.record({
          signed: fc.oneof(jsonValue, fc.record({ mxid: user, token: user, signatures: jsonValue })),
        }),
      ),
      join_authorised_via_users_server: fc.oneof(user, jsonValue),
    },
    { requiredKeys: [] },
  );
  const ruleLike = fc.record({
    join_rule: fc.oneof(fc.constantFrom('public', 'knock', 'restricted', 'invite'), jsonValue),
    public_key: jsonValue,
    public_keys: jsonValue,
  });
  const event = fc
    .record({
      type: fc.constantFrom(
        'm.room.create',
        'm.room.member',
        'm.room.power_levels',
        'm.room.join_rules',
        'm.room.third_party_invite',
        'm.room.redaction',
        'm.room.aliases',
        'm.room.topic',
      ),
      stateKey: fc.oneof(fc.constant(''), user, fc.string(), fc.constant(undefined)),
      sender: user,
      content: fc.oneof(levelsLike, memberLike, ruleLike, jsonObject),
      redacts: fc.option(fc.string(), { nil: undefined }),
    })
    .map((members) => view(members as Partial<AuthView> & { type: string }));
  const arbitrary = fc.record({
    version: fc.constantFrom(...all),
    events: fc.array(event, { maxLength: 8 }),
    event,
    withRoom: fc.boolean(),
  });
  fc.assert(
    fc.property(arbitrary, ({ version, events, event: tested, withRoom }) => {
      const room = withRoom ? [createOf(version), member(ALICE, 'join'), member(BOB, 'join')] : [];
      const made = { ...tested, roomId: roomIdIn(version) };
      for (const answer of [
        authorise(made, stateOf([...room, ...events]), version),
        authoriseByAuthEvents(made, [...room, ...events], version, room[0]),
      ])
        assert.ok(answer === undefined || typeof answer === 'string');
      assert.equal(typeof mayApplyRedaction(made, made, stateOf([...room, ...events]), version), 'boolean');
    }),
    { numRuns: 500 },
  );
});

test('versionOf knows the versions of the tables above', () => {
  assert.equal(since(12).length + before(12).length, all.length);
  assert.ok(since(12).includes(versionOf('12')));
  assert.ok(before(11).includes(versionOf('org.matrix.msc3757.10')));
});
