import './harness/no-native-crypto.ts';
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { AutojoinRoomsMixin, LogService, MatrixClient } from '@vector-im/matrix-bot-sdk';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('matrix-bot-sdk', () => {
  let server: TestServer;
  let bot: MatrixClient;
  before(async () => {
    const silence = () => {};
    LogService.setLogger({ trace: silence, debug: silence, info: silence, warn: silence, error: silence });
    server = await startServer({ name: 'bot' });
  });
  after(async () => {
    bot?.stop();
    await server?.close();
  });

  it('runs a bot that joins where it is invited and answers', async () => {
    const account = await server.register('echo');
    bot = new MatrixClient(server.url, account.accessToken);
    AutojoinRoomsMixin.setupOnClient(bot);
    bot.on('room.message', async (roomId: string, event: Json) => {
      if (event.sender === account.userId || event.content?.msgtype !== 'm.text') return;
      await bot.replyText(roomId, event, `You said: ${event.content.body}`);
    });
    await bot.start();

    const alice = await server.register('alice');
    const room = await alice.createRoom({ preset: 'private_chat', invite: [account.userId] });
    await alice.seesMember(room, account.userId, 'join');
    await alice.syncUntil('now', () => true);
    const question = await alice.sendText(room, 'hello bot');
    const answer = await alice.syncUntil('the answer', (sync) =>
      sync.rooms?.join?.[room]?.timeline.events.find(
        (e: Json) => e.sender === account.userId && e.type === 'm.room.message',
      ),
    );
    assert.match(answer.content.body, /You said: hello bot/);
    assert.equal(answer.content['m.relates_to']['m.in_reply_to'].event_id, question);
    assert.deepEqual(await bot.getJoinedRooms(), [room]);
    assert.deepEqual((await bot.getJoinedRoomMembers(room)).sort(), [alice.userId, account.userId].sort());
    const mxc = await bot.uploadContent(Buffer.from('a file'), 'text/plain', 'a.txt');
    assert.match(mxc, /^mxc:/);
  });
});
