import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';
import { type PresenceChange, Stream, type TypingChange } from '@trellis/storage/streams.ts';
import { Presence, presenceContent } from '../presence.ts';
import { Typing } from '../typing.ts';
import { databaseForFile } from './fixture.ts';

const ALICE = '@alice:example.org';
const BOB = '@bob:elsewhere.test';
const MINUTE = 60_000;
const db = await databaseForFile();

describe('presence', () => {
  let stream: Stream<PresenceChange>;
  let presence: Presence;
  let told: string[];
  beforeEach(async () => {
    await db.query('DELETE FROM presence');
    mock.timers.enable({ apis: ['Date'], now: 1_000_000_000 });
    stream = new Stream('presence', 0);
    told = [];
    stream.subscribe((_pos, { userId, state }) =>
      told.push(`${userId[1]} ${state.presence}${state.currentlyActive ? ' active' : ''}`),
    );
    presence = new Presence({ db, stream, enabled: true });
  });
  afterEach(() => mock.timers.reset());
  const pass = (ms: number) => {
    mock.timers.tick(ms);
    presence.sweep();
  };

  it('follows the syncs of devices and tells each change once', () => {
    const { done } = presence.sync(ALICE, 'A', 'online');
    presence.sync(ALICE, 'A', 'online').done();
    assert.deepEqual(told, ['a online active']);
    pass(2 * MINUTE);
    assert.deepEqual(told, ['a online active', 'a online'], 'no longer active, but still waiting');
    done();
    pass(29_000);
    assert.equal(told.length, 2);
    pass(2_000);
    assert.equal(told.at(-1), 'a offline');
  });

  it('is that of the most present device', () => {
    presence.sync(ALICE, 'A', 'unavailable');
    const { done } = presence.sync(ALICE, 'B', 'online');
    assert.deepEqual(told, ['a unavailable', 'a online active']);
    done();
    pass(31_000);
    assert.equal(told.at(-1), 'a unavailable');
    presence.active(ALICE);
    assert.equal(told.at(-1), 'a online active');
  });

  it('is idle after five minutes without activity', () => {
    presence.sync(ALICE, 'A', 'online');
    pass(5 * MINUTE + 1);
    assert.equal(told.at(-1), 'a unavailable');
    presence.active(ALICE);
    assert.equal(told.at(-1), 'a online active');
  });

  it('can be set by the user, with a status; who is busy stays so', async () => {
    presence.sync(ALICE, 'A', 'online');
    presence.set(ALICE, 'A', 'org.matrix.msc3026.busy', 'writing');
    presence.sync(ALICE, 'A', 'online');
    const state = (await presence.get(ALICE))!;
    assert.deepEqual(presenceContent(state), {
      presence: 'org.matrix.msc3026.busy',
      status_msg: 'writing',
      last_active_ago: 0,
      currently_active: true,
    });
    presence.set(ALICE, 'A', 'offline', null);
    assert.equal(told.at(-1), 'a offline');
    assert.deepEqual(presenceContent((await presence.get(ALICE))!), {
      presence: 'offline',
      last_active_ago: 0,
    });
  });

  it('is not changed by syncs that say so', () => {
    presence.sync(ALICE, 'A', 'offline').done();
    assert.deepEqual(told, []);
  });

  it('tells readers what changed since their position', () => {
    presence.sync(ALICE, 'A', 'online');
    const from = stream.current;
    presence.receive(BOB, { presence: 'online', statusMsg: null, lastActiveTs: 1, currentlyActive: false });
    const users = (since: number | undefined) =>
      presence.changes(since, stream.current).map(({ userId }) => userId);
    assert.deepEqual(users(from), [BOB]);
    assert.deepEqual(users(stream.current), []);
    assert.deepEqual(users(undefined).sort(), [ALICE, BOB]);
  });

  it('of other servers ends when nothing is heard of it', () => {
    presence.receive(BOB, { presence: 'online', statusMsg: 'x', lastActiveTs: 1, currentlyActive: true });
    pass(29 * MINUTE);
    assert.deepEqual(told, ['b online active']);
    pass(2 * MINUTE);
    assert.deepEqual(told, ['b online active', 'b offline']);
  });

  it('is taken up again after a restart, until it is clear who does not come back', async () => {
    presence.sync(ALICE, 'A', 'online');
    presence.set(ALICE, 'A', 'online', 'here');
    await presence.close();
    presence = new Presence({ db, stream, enabled: true });
    await presence.start();
    assert.equal((await presence.get(ALICE))!.statusMsg, 'here');
    pass(31_000);
    assert.equal(told.at(-1), 'a offline');
    await presence.close();
    const [row] = await db.query('SELECT presence, status_msg FROM presence');
    assert.deepEqual(row, { presence: 'offline', status_msg: 'here' });
  });

  it('can be switched off', async () => {
    const off = new Presence({ db, stream, enabled: false });
    off.sync(ALICE, 'A', 'online').done();
    off.set(ALICE, 'A', 'online', 'x');
    assert.deepEqual([told, await off.get(ALICE)], [[], undefined]);
  });
});

describe('typing', () => {
  let typing: Typing;
  let told: string[];
  beforeEach(() => {
    mock.timers.enable({ apis: ['Date', 'setTimeout'], now: 1_000_000_000 });
    told = [];
    const stream = new Stream<TypingChange>('typing', 0);
    stream.subscribe((_pos, { userIds, changed }) =>
      told.push(`${changed.userId[1]}${changed.typing ? '+' : '-'} ${userIds.length}`),
    );
    typing = new Typing(stream);
  });
  afterEach(() => mock.timers.reset());

  it('lasts until it is said to be over, or the time is up', () => {
    typing.start('!r', ALICE, 10_000);
    typing.start('!r', BOB, 500);
    assert.deepEqual(typing.in('!r'), [ALICE, BOB]);
    mock.timers.tick(500);
    assert.deepEqual(typing.in('!r'), [ALICE]);
    typing.stop('!r', ALICE);
    typing.stop('!r', ALICE);
    assert.deepEqual(typing.in('!r'), []);
    assert.deepEqual(told, ['a+ 1', 'b+ 2', 'b- 1', 'a- 0']);
  });

  it('goes on when the user says so again, which is told now and then', () => {
    for (let i = 0; i < 7; i++) {
      typing.start('!r', ALICE, 10_000);
      mock.timers.tick(9_000);
    }
    assert.deepEqual(told, ['a+ 1', 'a+ 1']);
    mock.timers.tick(1_000);
    assert.deepEqual(typing.in('!r'), []);
  });

  it('is bounded in time and number', () => {
    typing.start('!r', ALICE, 1e9);
    mock.timers.tick(120_000);
    assert.deepEqual(typing.in('!r'), []);
    for (let i = 0; i < 150; i++) typing.start('!r', `@user${i}:example.org`);
    assert.equal(typing.in('!r').length, 100);
  });
});
