import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import type { JsonObject, JsonValue } from '../event.ts';
import {
  changesFromJson,
  changesToJson,
  compileRules,
  copyRoomRules,
  deleteRule,
  evaluate,
  flattenEvent,
  NO_CHANGES,
  needsDisplayNames,
  type PushEvent,
  type PushRuleChanges,
  putRule,
  type RoomContext,
  RULE_KINDS,
  ruleOf,
  rulesetOf,
  setActions,
  setEnabled,
} from '../push-rules/index.ts';
import { jsonObject } from './arbitraries.ts';

const ALICE = '@alice:example.org';
const ROOM: RoomContext = { memberCount: 10, senderPowerLevel: 0, notificationLevel: () => 50 };
const ONE_TO_ONE: RoomContext = { ...ROOM, memberCount: 2 };

function event(content: JsonObject, over: Partial<PushEvent> = {}): PushEvent {
  return {
    eventId: '$event',
    roomId: '!room:example.org',
    type: 'm.room.message',
    sender: '@bob:example.org',
    stateKey: undefined,
    content,
    ...over,
  };
}

const text = (body: string, more: JsonObject = {}) => event({ msgtype: 'm.text', body, ...more });

function outcome(of: PushEvent, changes?: PushRuleChanges, room = ROOM, displayName?: string) {
  return evaluate(compileRules(changes), flattenEvent(of, room), { userId: ALICE, displayName });
}

const withRule = (kind: (typeof RULE_KINDS)[number], body: JsonObject, ruleId = 'mine') =>
  putRule(NO_CHANGES, kind, ruleId, { actions: ['notify'], ...body });

const condition = (...conditions: JsonValue[]) =>
  withRule('override', { conditions, actions: ['notify', { set_tweak: 'mark' }] });

const holds = (of: PushEvent, ...conditions: JsonValue[]) =>
  outcome(of, condition(...conditions)).ruleId === 'mine';

describe('predefined push rules', () => {
  it('match as the spec says', () => {
    const member = (membership: string, stateKey: string) =>
      event({ membership }, { type: 'm.room.member', stateKey });
    const cases: Array<[PushEvent, string | undefined, RoomContext?]> = [
      [text('hi'), '.m.rule.message'],
      [text('hi'), '.m.rule.room_one_to_one', ONE_TO_ONE],
      [event({}, { type: 'm.room.encrypted' }), '.m.rule.encrypted'],
      [event({}, { type: 'm.room.encrypted' }), '.m.rule.encrypted_room_one_to_one', ONE_TO_ONE],
      [event({ msgtype: 'm.notice', body: 'hi' }), '.m.rule.suppress_notices'],
      [member('invite', ALICE), '.m.rule.invite_for_me'],
      [member('invite', '@carol:example.org'), '.m.rule.member_event'],
      [member('join', '@bob:example.org'), '.m.rule.member_event'],
      [event({}, { type: 'm.room.tombstone', stateKey: '' }), '.m.rule.tombstone'],
      [event({}, { type: 'm.room.tombstone' }), undefined],
      [event({}, { type: 'm.reaction' }), '.m.rule.reaction'],
      [event({}, { type: 'm.room.server_acl', stateKey: '' }), '.m.rule.room.server_acl'],
      [text('* hi', { 'm.relates_to': { rel_type: 'm.replace', event_id: '$x' } }), '.m.rule.suppress_edits'],
      [event({}, { type: 'm.call.invite' }), '.m.rule.call'],
      [event({}, { type: 'org.matrix.msc3381.poll.start' }), '.org.matrix.msc3930.rule.poll_start'],
      [
        event({}, { type: 'org.matrix.msc3381.poll.end' }),
        '.org.matrix.msc3930.rule.poll_end_one_to_one',
        ONE_TO_ONE,
      ],
      [event({}, { type: 'org.matrix.msc3381.poll.response' }), '.org.matrix.msc3930.rule.poll_response'],
      [event({}, { type: 'm.room.topic', stateKey: '' }), undefined],
    ];
    for (const [of, ruleId, room] of cases) assert.equal(outcome(of, undefined, room).ruleId, ruleId);
  });

  it('notify and highlight by their actions', () => {
    assert.deepEqual(outcome(text('hi')), {
      notify: true,
      highlight: false,
      actions: ['notify'],
      ruleId: '.m.rule.message',
    });
    assert.equal(outcome(event({ msgtype: 'm.notice' })).notify, false);
    const mention = outcome(text('hi', { 'm.mentions': { user_ids: [ALICE] } }));
    assert.deepEqual([mention.notify, mention.highlight], [true, true]);
  });

  it('find names in the text only when the event does not say whom it mentions', () => {
    assert.equal(outcome(text(`hi ${ALICE}!`)).ruleId, '.m.rule.contains_user_name');
    assert.equal(outcome(text('hi ALICE')).highlight, true);
    assert.equal(outcome(text('malice')).highlight, false);
    assert.equal(
      outcome(text('hi Wonder Girl.'), undefined, ROOM, 'Wonder girl').ruleId,
      '.m.rule.contains_display_name',
    );
    const meaningless: JsonValue[] = [{}, { user_ids: [] }, 'nonsense'];
    for (const mentions of meaningless) {
      assert.equal(outcome(text('hi alice', { 'm.mentions': mentions })).highlight, false);
      assert.equal(needsDisplayNames(flattenEvent(text('a', { 'm.mentions': mentions }), ROOM)), false);
    }
    assert.equal(needsDisplayNames(flattenEvent(text('a'), ROOM)), true);
    assert.equal(needsDisplayNames(flattenEvent(event({}), ROOM)), false);
  });

  it('let only those mention the room who may', () => {
    const able = { ...ROOM, senderPowerLevel: 50 };
    for (const mention of [text('hey', { 'm.mentions': { room: true } }), text('@room hey')]) {
      assert.equal(outcome(mention).highlight, false);
      assert.equal(outcome(mention, undefined, able).highlight, true);
    }
  });

  it("say nothing of the user's own events", () => {
    assert.equal(outcome({ ...text('hi'), sender: ALICE }).notify, false);
  });

  it('give users with and without changes the same outcome', () => {
    const changed = setEnabled(NO_CHANGES, 'override', '.m.rule.master', false);
    const contents = fc.oneof(
      jsonObject,
      fc.record({
        body: fc.constantFrom('alice', 'hi', '@room'),
        msgtype: fc.constantFrom('m.text', 'm.notice'),
      }),
    );
    const types = fc.constantFrom('m.room.message', 'm.room.member', 'm.reaction', 'm.room.encrypted');
    fc.assert(
      fc.property(
        contents,
        types,
        fc.option(fc.constantFrom('', ALICE), { nil: undefined }),
        (content, type, stateKey) => {
          const of = event(content as JsonObject, { type, stateKey });
          assert.deepEqual(outcome(of), outcome(of, changed));
        },
      ),
    );
  });
});

describe('push conditions', () => {
  it('event_match is on the whole text, whatever its case', () => {
    const topic = (value: JsonValue) => event({ topic: value }, { type: 'm.room.topic', stateKey: '' });
    const match = (pattern: JsonValue, key: JsonValue = 'content.topic') => ({
      kind: 'event_match',
      key,
      pattern,
    });
    assert.ok(holds(topic('Lunch plans'), match('lunc?*')));
    assert.ok(holds(topic('LUNCH'), match('lunc?*')));
    assert.ok(!holds(topic(' lunch'), match('lunc?*')));
    assert.ok(!holds(topic(null), match('*')));
    assert.ok(!holds(topic(5), match('*')));
    assert.ok(!holds(topic('a'), match('*', 'content.other')));
    assert.ok(!holds(topic('a'), match(5)));
    assert.ok(!holds(topic('a'), match('*', 5)));
    assert.ok(holds(text('an Example event'), match('ex*ple', 'content.body')));
    assert.ok(!holds(text('an Examples'), match('ex*ple', 'content.body')));
  });

  it('keys are escaped paths', () => {
    const of = event({ 'm.relates_to': { 'a\\b': 'x' }, m: { relates_to: { c: 'x' } }, toString: 'y' });
    assert.ok(holds(of, { kind: 'event_match', key: 'content.m\\.relates_to.a\\\\b', pattern: 'x' }));
    assert.ok(holds(of, { kind: 'event_match', key: 'content.m.relates_to.c', pattern: 'x' }));
    assert.ok(!holds(of, { kind: 'event_match', key: 'content.m\\.relates_to.c', pattern: 'x' }));
    assert.ok(!holds(event({}), { kind: 'event_property_is', key: 'content.__proto__.a', value: 'x' }));
  });

  it('event_property_is and event_property_contains compare exactly', () => {
    const of = event({ a: true, b: 1, c: null, d: 'x', e: ['x', 2, null, ['y'], {}], f: { g: 1 } });
    const is = (key: string, value: JsonValue) =>
      holds(of, { kind: 'event_property_is', key: `content.${key}`, value });
    const contains = (key: string, value: JsonValue) =>
      holds(of, { kind: 'event_property_contains', key: `content.${key}`, value });
    assert.ok(is('a', true) && is('b', 1) && is('c', null) && is('d', 'x'));
    assert.ok(!is('a', 'true') && !is('a', 1) && !is('z', null) && !is('d', 'X') && !is('f', { g: 1 }));
    assert.ok(contains('e', 'x') && contains('e', 2) && contains('e', null));
    assert.ok(!contains('e', 'y') && !contains('e', '2') && !contains('d', 'x') && !contains('e', {}));
  });

  it('room_member_count compares', () => {
    const matching = (is: JsonValue) => holds(text('x'), { kind: 'room_member_count', is });
    for (const is of ['10', '==10', '>9', '<11', '>=10', '<=10']) assert.ok(matching(is), String(is));
    for (const is of ['9', '>10', '<10', '', '=10', '1e1', 10, null]) assert.ok(!matching(is), String(is));
  });

  it('of unknown kind never hold, and all must hold', () => {
    assert.ok(!holds(text('x'), { kind: 'org.example.unknown' }));
    assert.ok(holds(text('x')));
    assert.ok(!holds(text('x'), { kind: 'room_member_count', is: '10' }, { kind: 'toString' }));
  });

  it('never throw, whatever they are made of', () => {
    const parts = { key: fc.jsonValue(), pattern: fc.jsonValue(), value: fc.jsonValue(), is: fc.jsonValue() };
    const kinds = [
      'event_match',
      'event_property_is',
      'event_property_contains',
      'room_member_count',
      'sender_notification_permission',
    ];
    fc.assert(
      fc.property(fc.record({ kind: fc.constantFrom(...kinds), ...parts }), jsonObject, (made, content) => {
        holds(event(content as JsonObject), made as JsonValue);
      }),
    );
  });
});

describe('rules for threads', () => {
  const reply = event({
    msgtype: 'm.text',
    body: 'hi',
    'm.relates_to': { rel_type: 'm.thread', event_id: '$root' },
  });
  const follower = (of: PushEvent, changes: PushRuleChanges | undefined, ...threads: string[]) =>
    evaluate(compileRules(changes), flattenEvent(of, ROOM), {
      userId: ALICE,
      subscribedTo: (_room, thread) => threads.includes(thread),
    });

  it('notify of those that the user follows, whatever is set for the room', () => {
    const quiet = putRule(NO_CHANGES, 'room', reply.roomId, { actions: [] });
    for (const changes of [undefined, quiet]) {
      const { ruleId, notify } = follower(reply, changes, '$root');
      assert.deepEqual([ruleId, notify], ['.io.element.msc4306.rule.subscribed_thread', true]);
    }
    assert.equal(follower(text('hi'), quiet, '$root').notify, false);
  });

  it('leave out others but for mentions, and say nothing where clients do not follow threads', () => {
    const loud = putRule(NO_CHANGES, 'room', reply.roomId, { actions: ['notify'] });
    for (const changes of [undefined, loud]) assert.equal(follower(reply, changes, '$other').notify, false);
    const mention = event({ ...reply.content, 'm.mentions': { user_ids: [ALICE] } });
    assert.equal(follower(mention, undefined, '$other').notify, true);
    assert.equal(outcome(reply).ruleId, '.m.rule.message');
  });

  it('cannot be made by users', () => {
    assert.throws(() => putRule(NO_CHANGES, 'postcontent', 'mine', { actions: [] }), {
      errcode: 'M_INVALID_PARAM',
    });
  });
});

describe('rules of a user', () => {
  it('are checked by kind, and the most important of a kind first', () => {
    let changes = NO_CHANGES;
    // Of the kind that is left out users can have no rules of their own.
    const kinds = RULE_KINDS.filter((kind) => kind !== 'postcontent');
    for (const kind of kinds) {
      const ruleId = kind === 'room' ? '!room:example.org' : kind === 'sender' ? '@bob:example.org' : kind;
      changes = putRule(changes, kind, ruleId, { pattern: 'hi', actions: [{ set_tweak: kind }] });
    }
    for (const kind of kinds) {
      const { ruleId, actions } = outcome(text('hi'), changes);
      assert.deepEqual(actions, [{ set_tweak: kind }]);
      changes = setEnabled(changes, kind, ruleId!, false);
    }
    assert.equal(outcome(text('hi'), changes).ruleId, '.m.rule.message');
  });

  it('stand below the master rule only', () => {
    const changes = setEnabled(condition(), 'override', '.m.rule.master', true);
    assert.deepEqual(outcome(text('hi'), changes), {
      notify: false,
      highlight: false,
      actions: [],
      ruleId: '.m.rule.master',
    });
    const ids = rulesetOf(ALICE, changes).override.map(({ rule_id }) => rule_id);
    assert.deepEqual(ids.slice(0, 3), ['.m.rule.master', 'mine', '.m.rule.suppress_notices']);
  });

  it('keep historical actions but ignore them', () => {
    const changes = withRule('room', { actions: ['dont_notify', 'coalesce'] }, '!room:example.org');
    assert.deepEqual(rulesetOf(ALICE, changes).room[0]!.actions, ['dont_notify', 'coalesce']);
    assert.deepEqual(outcome(text('hi'), changes), {
      notify: false,
      highlight: false,
      actions: [],
      ruleId: '!room:example.org',
    });
  });

  it('find their place', () => {
    const put = (changes: PushRuleChanges, id: string, place = {}) =>
      putRule(changes, 'content', id, { pattern: 'x', actions: [] }, place);
    const order = (changes: PushRuleChanges) => changes.rules.content.map(({ rule_id }) => rule_id).join('');
    const abc = put(put(put(NO_CHANGES, 'c'), 'b'), 'a');
    assert.equal(order(abc), 'abc');
    assert.equal(order(put(abc, 'd', { before: 'b' })), 'adbc');
    assert.equal(order(put(abc, 'd', { after: 'b' })), 'abdc');
    assert.equal(order(put(abc, 'd', { before: 'c', after: 'a' })), 'abdc');
    assert.equal(order(put(abc, 'c', { before: 'a' })), 'cab');
    assert.equal(order(put(abc, 'a', { after: 'c' })), 'bca');
    assert.equal(order(put(abc, 'b')), 'abc');
    assert.equal(order(put(abc, 'b', { before: 'b' })), 'abc');
    assert.throws(() => put(abc, 'd', { before: 'x' }), { errcode: 'M_UNKNOWN', status: 400 });
    assert.throws(() => put(abc, 'd', { after: '.m.rule.contains_user_name' }), {
      errcode: 'M_INVALID_PARAM',
    });
  });

  it('are refused when malformed', () => {
    const put =
      (kind: (typeof RULE_KINDS)[number], body: JsonObject, id = 'mine') =>
      () =>
        putRule(NO_CHANGES, kind, id, body);
    assert.throws(put('content', { actions: [] }), { errcode: 'M_MISSING_PARAM' });
    assert.throws(put('content', { actions: [], pattern: 1 }), { errcode: 'M_BAD_JSON' });
    assert.throws(put('room', {}), { errcode: 'M_MISSING_PARAM' });
    assert.throws(put('room', { actions: 'notify' }), { errcode: 'M_BAD_JSON' });
    assert.throws(put('room', { actions: ['shout'] }), { errcode: 'M_BAD_JSON' });
    assert.throws(put('room', { actions: [{ tweak: 'x' }] }), { errcode: 'M_BAD_JSON' });
    assert.throws(put('override', { actions: [], conditions: {} }), { errcode: 'M_BAD_JSON' });
    assert.throws(put('override', { actions: [], conditions: [{}] }), { errcode: 'M_BAD_JSON' });
    for (const id of ['.mine', 'a/b', 'a\\b', ''])
      assert.throws(put('room', { actions: [] }, id), { errcode: 'M_INVALID_PARAM' });
  });

  it('change what is predefined', () => {
    const quiet = setActions(NO_CHANGES, 'underride', '.m.rule.message', []);
    assert.equal(outcome(text('hi'), quiet).notify, false);
    assert.deepEqual(ruleOf(ALICE, quiet, 'underride', '.m.rule.message').actions, []);
    const off = setEnabled(quiet, 'underride', '.m.rule.message', false);
    assert.equal(outcome(text('hi'), off).ruleId, undefined);
    assert.throws(() => deleteRule(off, 'underride', '.m.rule.message'), { errcode: 'M_NOT_FOUND' });
    assert.throws(() => setEnabled(off, 'override', '.m.rule.message', true), { errcode: 'M_NOT_FOUND' });
    assert.throws(() => setActions(off, 'room', '!x', []), { errcode: 'M_NOT_FOUND' });
  });

  it('go to text and back', () => {
    const changes = setActions(
      setEnabled(condition(), 'underride', '.m.rule.call', false),
      'underride',
      '.m.rule.message',
      [],
    );
    assert.deepEqual(changesFromJson(changesToJson(changes)), changes);
  });

  it('about a room are copied to the room after it', () => {
    const [old, upgraded] = ['!old:example.org', '!new:example.org'];
    const muted = putRule(condition({ kind: 'event_match', key: 'room_id', pattern: old }), 'room', old, {
      actions: ['dont_notify'],
    });
    const copied = copyRoomRules(muted, old, upgraded);
    assert.deepEqual(
      copied.rules.room.map(({ rule_id, actions }) => [rule_id, actions]),
      [
        [upgraded, ['dont_notify']],
        [old, ['dont_notify']],
      ],
    );
    const inNewRoom = { ...text('hi'), roomId: upgraded };
    assert.equal(outcome(inNewRoom, muted).ruleId, '.m.rule.message');
    assert.equal(outcome(inNewRoom, copied).ruleId, upgraded);
    assert.deepEqual(copyRoomRules(copied, old, upgraded), copied);
  });

  it("show placeholders as the user's own", () => {
    const { override, content } = rulesetOf(ALICE, NO_CHANGES);
    const find = (id: string) => override.find(({ rule_id }) => rule_id === id)!;
    assert.deepEqual(find('.m.rule.is_user_mention').conditions, [
      { kind: 'event_property_contains', key: 'content.m\\.mentions.user_ids', value: ALICE },
    ]);
    assert.deepEqual(find('.m.rule.invite_for_me').conditions![2], {
      kind: 'event_match',
      key: 'state_key',
      pattern: ALICE,
    });
    assert.equal(content[0]!.pattern, 'alice');
  });

  it('made to be slow are given up', () => {
    const pattern = '*?a'.repeat(300);
    let changes = NO_CHANGES;
    for (let i = 0; i < 200; i++)
      changes = putRule(changes, 'content', `${i}`, { pattern: `${pattern}b`, actions: [] });
    const started = performance.now();
    outcome(text('a'.repeat(60_000)), changes);
    assert.ok(performance.now() - started < 1_000);
  });
});
