import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { sendEvent } from '../send.ts';
import { type TestEngine, testEngine } from './engine.ts';

const ALICE = '@alice:one.test';
const MEMBERS = 4;

describe('live rooms', () => {
  let engine: TestEngine;
  before(async () => {
    engine = await testEngine('one.test', { maxLiveMembers: 2 * MEMBERS - 1 });
  });
  after(() => engine.close());

  async function room(members = MEMBERS): Promise<string> {
    const roomId = await engine.createRoom(ALICE);
    for (let i = 1; i < members; i++) await engine.membership().join(roomId, `@user${i}:one.test`, []);
    return roomId;
  }
  const live = (roomIds: readonly string[]) =>
    roomIds.map((roomId) => engine.rooms.peek(roomId) !== undefined);
  const say = (roomId: string) =>
    sendEvent(engine.rooms, roomId, { type: 'm.room.message', sender: ALICE, content: { body: 'hi' } });

  it('make room for others when they have more members than may be kept, the least used first', async () => {
    const roomIds = [await room(), await room()];
    await say(roomIds[0]!);
    roomIds.push(await room(1));
    assert.deepEqual(live(roomIds), [true, false, true]);
    // Which of them is live is nothing that anybody notices.
    for (const roomId of roomIds) {
      await say(roomId);
      const { memberCount, timeline } = await engine.rooms.require(roomId);
      assert.equal(memberCount, roomId === roomIds[2] ? 1 : MEMBERS);
      assert.equal(timeline.newest?.type, 'm.room.message');
    }
  });

  it('may be larger than that: the one used last is kept', async () => {
    const roomId = await room(3 * MEMBERS);
    engine.rooms.drop(await engine.rooms.require(roomId));
    const again = await engine.rooms.require(roomId);
    assert.equal(engine.rooms.peek(roomId), again);
    assert.equal(again.dropped, false);
  });
});
