import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused, request } from './harness/client.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('profiles', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    server = await startServer({ name: 'profile' });
    alice = await server.register('alice');
    bob = await server.register('bob');
  });
  after(() => server.close());

  it('keeps a display name and an avatar, for all to see', async () => {
    await alice.put(path`/v3/profile/${alice.userId}/displayname`, { displayname: 'Alice 🌱' });
    await alice.put(path`/v3/profile/${alice.userId}/avatar_url`, { avatar_url: 'mxc://example.org/face' });
    const { body } = await request(server.url, 'GET', `/_matrix/client${path`/v3/profile/${alice.userId}`}`);
    assert.equal(body.displayname, 'Alice 🌱');
    assert.equal(body.avatar_url, 'mxc://example.org/face');
    assert.deepEqual(await bob.get(path`/v3/profile/${alice.userId}/displayname`), {
      displayname: 'Alice 🌱',
    });
  });

  it("refuses to change another's profile", async () => {
    await refused(
      bob.put(path`/v3/profile/${alice.userId}/displayname`, { displayname: 'x' }),
      403,
      'M_FORBIDDEN',
    );
  });

  it('says that a user does not exist', async () => {
    await refused(alice.get(path`/v3/profile/${`@nobody:${server.serverName}`}`), 404, 'M_NOT_FOUND');
  });

  it('carries a change into the rooms of the user', async () => {
    const room = await bob.createRoom();
    await alice.join(room);
    await bob.syncUntil('alice in the room', (s) => s.rooms?.join?.[room]);
    await alice.put(path`/v3/profile/${alice.userId}/displayname`, { displayname: 'Changed' });
    await bob.syncUntil('the new name', (s) =>
      s.rooms?.join?.[room]?.timeline.events.some(
        (e: { state_key?: string; content: { displayname?: string } }) =>
          e.state_key === alice.userId && e.content.displayname === 'Changed',
      ),
    );
    const member = await bob.getState(room, 'm.room.member', alice.userId);
    assert.deepEqual([member.membership, member.displayname], ['join', 'Changed']);
  });

  it('refuses what is not a name', async () => {
    await refused(alice.put(path`/v3/profile/${alice.userId}/displayname`, { displayname: { a: 1 } }), 400);
    await refused(
      alice.put(path`/v3/profile/${alice.userId}/displayname`, { displayname: 'x'.repeat(70_000) }),
      400,
    );
  });
});
