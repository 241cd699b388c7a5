import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import {
  type CompiledRules,
  compileRules,
  NO_CHANGES,
  type PushRuleChanges,
  putRule,
} from '@trellis/protocol/push-rules/index.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { Notifications } from '../notifications.ts';
import { PushEvaluation, type UserPushRules } from '../push-evaluation.ts';
import { sendEvent } from '../send.ts';
import { isOfThread } from '../thread-of.ts';
import { type ReadPositions, Unread } from '../unread.ts';
import type { ReadUpTo } from '../unread-counter.ts';
import { type TestEngine, testEngine } from './engine.ts';

const SERVER = 'here.test';
const ALICE = `@alice:${SERVER}`;
const BOB = `@bob:${SERVER}`;
const NOTHING_READ: ReadUpTo = { unthreaded: 0, threads: new Map() };

/** Users' receipts and rules, in memory. */
class UserData implements ReadPositions, UserPushRules {
  readonly read = new Map<string, ReadUpTo>();
  readonly rules = new Map<string, CompiledRules>();
  readonly ignored = new Set<string>();

  readUpTo(userId: string): ReadUpTo {
    return this.read.get(userId) ?? NOTHING_READ;
  }

  compiled(userId: string): CompiledRules {
    return this.rules.get(userId) ?? compileRules(undefined);
  }

  async ignoredUsers(): Promise<ReadonlySet<string>> {
    return this.ignored;
  }

  reads(userId: string, event: StoredEvent, thread?: string): void {
    const { unthreaded, threads } = this.readUpTo(userId);
    if (thread === undefined) this.read.set(userId, { unthreaded: event.pos!, threads });
    else this.read.set(userId, { unthreaded, threads: new Map(threads).set(thread, event.pos!) });
  }

  changes(userId: string, changes: PushRuleChanges): void {
    this.rules.set(userId, compileRules(changes));
  }
}

describe('unread counts', () => {
  let engine: TestEngine;
  let data: UserData;
  let unread: Unread;
  let roomId: string;
  before(async () => {
    engine = await testEngine(SERVER);
  });
  after(() => engine.close());
  beforeEach(async () => {
    data = new UserData();
    unread = newUnread();
    roomId = await engine.createRoom(ALICE, { preset: 'public_chat' });
    await engine.membership().join(roomId, BOB, []);
  });

  /** As after a restart: nothing of what was counted is in memory. */
  function newUnread(): Unread {
    const evaluation = new PushEvaluation(engine.rooms, data);
    return new Unread({ rooms: engine.rooms, evaluation, reads: data });
  }

  const send = (body: string, more: object = {}, sender = ALICE) =>
    sendEvent(engine.rooms, roomId, {
      type: 'm.room.message',
      sender,
      content: { msgtype: 'm.text', body, ...more },
    });
  const inThread = (root: StoredEvent, rel_type = 'm.thread') => ({
    'm.relates_to': { rel_type, event_id: root.eventId },
  });
  const counts = async (userId = BOB, of = unread) => {
    const { notify, highlight } = await of.counts(userId, roomId);
    return [notify, highlight];
  };
  const threadCounts = async () => Object.fromEntries((await unread.counts(BOB, roomId)).threads);

  it('are of messages and mentions since joining, never of own ones', async () => {
    assert.deepEqual(await counts(), [0, 0]);
    await send('hello');
    await send('hi bob');
    assert.deepEqual(await counts(), [2, 1]);
    assert.deepEqual(await counts(ALICE), [0, 0]);
    assert.deepEqual(await counts(`@stranger:${SERVER}`), [0, 0]);
  });

  it('begin anew after what the user sends, thread by thread', async () => {
    const root = await send('root');
    await send('in the thread', inThread(root));
    assert.deepEqual(await counts(), [1, 0]);
    await send('mine', {}, BOB);
    assert.deepEqual(await counts(), [0, 0]);
    assert.equal((await threadCounts())[root.eventId]?.notify, 1);
    await send('mine in the thread', inThread(root), BOB);
    assert.deepEqual(await threadCounts(), {});
    await send('after it');
    assert.deepEqual(await counts(), [1, 0]);
    assert.deepEqual(await counts(BOB, newUnread()), [1, 0]);
  });

  it('are the same however often they are asked for, also at the same time', async () => {
    await send('one');
    assert.deepEqual(await Promise.all([counts(), counts(), counts()]), Array(3).fill([1, 0]));
    await send('two');
    assert.deepEqual(await Promise.all([counts(), counts()]), Array(2).fill([2, 0]));
  });

  it('go down to what lies after the receipt', async () => {
    const events = [];
    for (let i = 0; i < 5; i++) events.push(await send(`${i}`));
    assert.deepEqual(await counts(), [5, 0]);
    data.reads(BOB, events[2]!);
    assert.deepEqual(await counts(), [2, 0]);
    assert.deepEqual(await counts(BOB, newUnread()), [2, 0]);
    data.reads(BOB, events[4]!);
    assert.deepEqual(await counts(), [0, 0]);
    await send('new');
    assert.deepEqual(await counts(), [1, 0]);
  });

  it('are kept apart by thread, and read by thread', async () => {
    const root = await send('root');
    const first = await send('in the thread', inThread(root));
    await send('bob, see the thread', inThread(root));
    const main = await send('bob, see the timeline');
    const last = await send('end of the thread', inThread(root));
    await send('about the root', inThread(root, 'm.reference'));
    const indirect = await send('about the thread', inThread(first, 'm.reference'));
    assert.deepEqual(await counts(), [3, 1]);
    assert.deepEqual(await threadCounts(), { [root.eventId]: { notify: 4, highlight: 1 } });
    data.reads(BOB, root, 'main');
    assert.deepEqual(await counts(), [2, 1]);
    data.reads(BOB, first, root.eventId);
    assert.deepEqual(await threadCounts(), { [root.eventId]: { notify: 3, highlight: 1 } });
    data.reads(BOB, main);
    assert.deepEqual(await counts(), [1, 0]);
    assert.deepEqual(await threadCounts(), { [root.eventId]: { notify: 2, highlight: 0 } });
    data.reads(BOB, last, root.eventId);
    assert.deepEqual(await threadCounts(), { [root.eventId]: { notify: 1, highlight: 0 } });
    data.reads(BOB, indirect, root.eventId);
    assert.deepEqual(await threadCounts(), {});
    assert.deepEqual(await counts(), [1, 0]);
  });

  it('do not have events that were redacted', async () => {
    const one = await send('hi bob');
    await send('two');
    assert.deepEqual(await counts(), [2, 1]);
    await sendEvent(engine.rooms, roomId, {
      type: 'm.room.redaction',
      sender: ALICE,
      redacts: one.eventId,
      content: {},
    });
    assert.deepEqual(await counts(), [1, 0]);
    assert.deepEqual(await counts(BOB, newUnread()), [1, 0]);
  });

  it("follow the user's own rules, and those who are ignored", async () => {
    data.changes(BOB, putRule(NO_CHANGES, 'room', roomId, { actions: [] }));
    data.changes(
      ALICE,
      putRule(NO_CHANGES, 'content', 'x', {
        pattern: 'cake',
        actions: ['notify', { set_tweak: 'highlight' }],
      }),
    );
    await send('muted');
    assert.deepEqual(await counts(), [0, 0]);
    await send('cake', {}, BOB);
    assert.deepEqual(await counts(ALICE), [1, 1]);
    data.ignored.add(BOB);
    await send('cake', {}, BOB);
    assert.deepEqual(await counts(ALICE), [1, 1]);
  });

  it('begin anew when the user left and came back', async () => {
    await send('before');
    assert.deepEqual(await counts(), [1, 0]);
    await engine.membership().leave(roomId, BOB);
    assert.deepEqual(await counts(), [0, 0]);
    await send('meanwhile');
    await engine.membership().join(roomId, BOB, []);
    assert.deepEqual(await counts(), [0, 0]);
    await send('after');
    assert.deepEqual(await counts(), [1, 0]);
  });

  it('go on after a restart from where they were stored, with what happened since', async () => {
    const events = [];
    for (let i = 0; i < 30; i++) events.push(await send(`${i}`));
    assert.deepEqual(await counts(), [30, 0]);
    await unread.close();
    const [stored] = await engine.db.query<{ counts: string }>(
      'SELECT counts FROM unread_counts WHERE user_id = $1 AND counts LIKE $2',
      [BOB, '%"notify":30%'],
    );
    assert.ok(stored);
    await send('hi bob');
    assert.deepEqual(await counts(BOB, newUnread()), [31, 1]);
    // A receipt that the stored count does not know of.
    data.reads(BOB, events[29]!);
    assert.deepEqual(await counts(BOB, newUnread()), [1, 1]);
  });

  it('reach back to before what is in memory', async () => {
    for (let i = 0; i < 250; i++) await send(`${i}`);
    engine.rooms.drop(engine.rooms.peek(roomId)!);
    assert.deepEqual(await counts(), [250, 0]);
  });

  it('have a list of what was notified', async () => {
    const list = new Notifications({
      rooms: engine.rooms,
      evaluation: new PushEvaluation(engine.rooms, data),
      reads: data,
    });
    const one = await send('one');
    const two = await send('two, bob');
    await send('mine', {}, BOB);
    const three = await send('three');
    data.reads(BOB, one);
    const ids = (found: Awaited<ReturnType<typeof list.list>>) =>
      found.notifications.map(({ event, read }) => [event.eventId, read]);
    const first = await list.list(BOB, Number.MAX_SAFE_INTEGER, 2, false);
    assert.deepEqual(ids(first), [
      [three.eventId, false],
      [two.eventId, false],
    ]);
    const second = await list.list(BOB, first.next!, 2, false);
    assert.deepEqual(ids(second)[0], [one.eventId, true]);
    const highlights = await list.list(BOB, Number.MAX_SAFE_INTEGER, 1, true);
    assert.deepEqual(ids(highlights), [[two.eventId, false]]);
  });

  it('know which thread a receipt can be for', async () => {
    const root = await send('root');
    const reply = await send('reply', inThread(root));
    const reference = await send('reference', inThread(root, 'm.reference'));
    const ofThread = (event: StoredEvent, thread: string) =>
      isOfThread(engine.rooms.parts.events, event, thread);
    assert.ok(await ofThread(reply, root.eventId));
    assert.ok(await ofThread(root, root.eventId));
    assert.ok(await ofThread(reference, root.eventId));
    assert.ok(await ofThread(root, 'main'));
    assert.ok(await ofThread(reference, 'main'));
    assert.ok(!(await ofThread(reply, 'main')));
    assert.ok(!(await ofThread(reply, reference.eventId)));
  });
});
