import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('room membership', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  let carol: Client;
  before(async () => {
    server = await startServer({ name: 'membership' });
    alice = await server.register('alice');
    bob = await server.register('bob');
    carol = await server.register('carol');
  });
  after(() => server.close());
  const act = (who: Client, what: string, room: string, body: Json = {}) =>
    who.post(`${path`/v3/rooms/${room}`}/${what}`, body);

  it('joins a public room by id and by alias, once', async () => {
    const room = await alice.createRoom({ preset: 'public_chat', room_alias_name: 'public' });
    assert.equal(await bob.join(`#public:${server.serverName}`), room);
    assert.equal(await bob.join(room), room);
    assert.equal((await act(carol, 'join', room)).room_id, room);
    const { chunk } = await alice.get(path`/v3/rooms/${room}/messages`, { dir: 'b', limit: 50 });
    assert.equal(chunk.filter((e: Json) => e.state_key === bob.userId).length, 1);
  });

  it('puts the reason and the profile into the member event', async () => {
    await bob.put(path`/v3/profile/${bob.userId}/displayname`, { displayname: 'Bob' });
    const room = await alice.createRoom();
    await act(bob, 'join', room, { reason: 'for the cake' });
    const member = await alice.getState(room, 'm.room.member', bob.userId);
    assert.deepEqual([member.displayname, member.reason], ['Bob', 'for the cake']);
    await act(bob, 'leave', room, { reason: 'no cake' });
    assert.equal((await alice.getState(room, 'm.room.member', bob.userId)).reason, 'no cake');
  });

  it('lets nobody into an invite-only room without an invite', async () => {
    const room = await alice.createRoom({ preset: 'private_chat' });
    await refused(bob.join(room), 403, 'M_FORBIDDEN');
    await alice.invite(room, bob.userId);
    assert.equal(await bob.join(room), room);
    await refused(alice.invite(room, bob.userId), 403, 'M_FORBIDDEN');
  });

  it('shows an invite with the stripped state of the room, and lets it be rejected', async () => {
    const room = await alice.createRoom({ preset: 'private_chat', name: 'Secret garden' });
    await alice.sendText(room, 'not for you yet');
    await alice.invite(room, bob.userId);
    const invite = await bob.seesRoom('invite', room);
    const stripped: Json[] = invite.invite_state.events;
    for (const type of ['m.room.create', 'm.room.name', 'm.room.join_rules', 'm.room.member'])
      assert.ok(
        stripped.some((e) => e.type === type),
        type,
      );
    assert.ok(!stripped.some((e) => e.type === 'm.room.message'));
    assert.ok(stripped.some((e) => e.state_key === bob.userId && e.content.membership === 'invite'));
    await bob.leave(room);
    await bob.seesRoom('leave', room);
    await refused(bob.join(room), 403, 'M_FORBIDDEN');
  });

  it('lets an invite be taken back', async () => {
    const room = await alice.createRoom({ preset: 'private_chat' });
    await alice.invite(room, bob.userId);
    await bob.seesRoom('invite', room);
    await act(alice, 'kick', room, { user_id: bob.userId });
    await bob.seesRoom('leave', room);
    await refused(bob.join(room), 403, 'M_FORBIDDEN');
  });

  it('lets only those with the power invite', async () => {
    const room = await alice.createRoom({
      preset: 'public_chat',
      power_level_content_override: { invite: 50 },
    });
    await bob.join(room);
    await refused(bob.invite(room, carol.userId), 403, 'M_FORBIDDEN');
    await refused(carol.invite(room, bob.userId), 403, 'M_FORBIDDEN');
  });

  it('kicks, and lets the kicked return', async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    await refused(act(bob, 'kick', room, { user_id: alice.userId }), 403, 'M_FORBIDDEN');
    await act(alice, 'kick', room, { user_id: bob.userId, reason: 'noise' });
    const member = await alice.getState(room, 'm.room.member', bob.userId);
    assert.deepEqual([member.membership, member.reason], ['leave', 'noise']);
    await refused(bob.sendText(room, 'still here?'), 403, 'M_FORBIDDEN');
    await refused(act(alice, 'kick', room, { user_id: carol.userId }), 403, 'M_FORBIDDEN');
    await bob.join(room);
  });

  it('bans, refuses the banned, and forgives', async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    await act(alice, 'ban', room, { user_id: bob.userId });
    await refused(bob.join(room), 403, 'M_FORBIDDEN');
    await refused(bob.leave(room), 403, 'M_FORBIDDEN');
    await refused(alice.invite(room, bob.userId), 403, 'M_FORBIDDEN');
    await refused(act(carol, 'unban', room, { user_id: bob.userId }), 403, 'M_FORBIDDEN');
    await act(alice, 'unban', room, { user_id: bob.userId });
    assert.equal((await alice.getState(room, 'm.room.member', bob.userId)).membership, 'leave');
    await bob.join(room);
  });

  it('takes a knock, shows it, and lets it be answered with an invite', async () => {
    const room = await alice.createRoom({
      preset: 'private_chat',
      name: 'Knock first',
      initial_state: [{ type: 'm.room.join_rules', content: { join_rule: 'knock' } }],
    });
    await refused(bob.join(room), 403, 'M_FORBIDDEN');
    await bob.api('POST', path`/v3/knock/${room}`, { reason: 'please' });
    const knock = await bob.seesRoom('knock', room);
    assert.ok(knock.knock_state.events.some((e: Json) => e.type === 'm.room.name'));
    assert.deepEqual(
      [
        (await alice.getState(room, 'm.room.member', bob.userId)).membership,
        (await alice.getState(room, 'm.room.member', bob.userId)).reason,
      ],
      ['knock', 'please'],
    );
    await alice.invite(room, bob.userId);
    await bob.seesRoom('invite', room);
    await bob.join(room);
    const closed = await alice.createRoom({ preset: 'private_chat' });
    await refused(bob.post(path`/v3/knock/${closed}`), 403, 'M_FORBIDDEN');
  });

  it('lets members of one room into another that is restricted to it', async () => {
    const club = await alice.createRoom();
    const room = await alice.createRoom({
      preset: 'private_chat',
      initial_state: [
        {
          type: 'm.room.join_rules',
          content: { join_rule: 'restricted', allow: [{ type: 'm.room_membership', room_id: club }] },
        },
      ],
    });
    await refused(bob.join(room), 403, 'M_FORBIDDEN');
    await bob.join(club);
    await bob.join(room);
    const member = await alice.getState(room, 'm.room.member', bob.userId);
    assert.equal(member.join_authorised_via_users_server, alice.userId);
  });

  it('forgets a room that was left, not one that was not', async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    await refused(act(bob, 'forget', room), 400, 'M_UNKNOWN');
    await bob.leave(room);
    await bob.get(path`/v3/rooms/${room}/messages`, { dir: 'b' });
    await act(bob, 'forget', room);
    await refused(bob.get(path`/v3/rooms/${room}/messages`, { dir: 'b' }), 403, 'M_FORBIDDEN');
    const sync = await bob.sync({ filter: { room: { include_leave: true } } });
    assert.ok(!sync.rooms?.leave?.[room]);
    await bob.join(room);
  });

  it('goes away from the sync of those who are left out', async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    await bob.seesRoom('join', room);
    await act(alice, 'ban', room, { user_id: bob.userId });
    const left = await bob.seesRoom('leave', room);
    assert.equal(left.timeline.events.at(-1).content.membership, 'ban');
    const secret = await alice.sendText(room, 'he is gone');
    const later = await bob.sync({ since: bob.since });
    assert.ok(!JSON.stringify(later).includes(secret));
    await refused(bob.event(room, secret), 404);
  });

  it('shows the end of a knock and of an invite without the room', async () => {
    const room = await alice.createRoom({
      preset: 'private_chat',
      initial_state: [{ type: 'm.room.join_rules', content: { join_rule: 'knock' } }],
    });
    for (const begin of [() => bob.post(path`/v3/knock/${room}`), () => alice.invite(room, bob.userId)]) {
      await begin();
      const { next_batch: since } = await bob.get('/v3/sync');
      await bob.leave(room);
      const left = (await bob.get('/v3/sync', { since })).rooms.leave[room];
      assert.deepEqual(
        left.timeline.events.map((e: Json) => [e.state_key, e.content.membership]),
        [[bob.userId, 'leave']],
      );
      assert.deepEqual(left.state.events, []);
    }
  });

  it('takes memberships as state events too', async () => {
    const room = await alice.createRoom({ preset: 'private_chat' });
    const set = (who: Client, target: Client, content: Json) =>
      who.put(path`/v3/rooms/${room}/state/m.room.member/${target.userId}`, content);
    await refused(set(bob, bob, { membership: 'join' }), 403, 'M_FORBIDDEN');
    const { event_id: invite } = await set(alice, bob, { membership: 'invite' });
    assert.equal((await bob.seesRoom('invite', room)).invite_state.events.at(-1).event_id ?? invite, invite);
    await set(bob, bob, { membership: 'join' });
    await set(bob, bob, { membership: 'join', displayname: 'B', join_authorised_via_users_server: 'unused' });
    const member = await alice.getState(room, 'm.room.member', bob.userId);
    assert.deepEqual(member, { membership: 'join', displayname: 'B' });
    // Who is there already keeps that name.
    await bob.join(room);
    assert.equal((await alice.getState(room, 'm.room.member', bob.userId)).displayname, 'B');
    await refused(set(bob, alice, { membership: 'leave' }), 403, 'M_FORBIDDEN');
    await refused(set(bob, bob, { membership: 'dance' }), 403, 'M_FORBIDDEN');
    const nobody = path`/v3/rooms/${room}/state/m.room.member/nobody`;
    await refused(alice.put(nobody, { membership: 'leave' }), 400, 'M_INVALID_PARAM');
    await set(bob, bob, { membership: 'leave' });
    await refused(bob.join(room), 403, 'M_FORBIDDEN');
  });

  it('leaves it to moderators of a public room whom to bring in', async () => {
    const room = await alice.createRoom({ preset: 'public_chat' });
    await bob.join(room);
    await refused(bob.invite(room, carol.userId), 403, 'M_FORBIDDEN');
    await alice.invite(room, carol.userId);
  });

  it('keeps invites from those who do not want them', async () => {
    const settings = (type: string, content: Json) =>
      carol.put(path`/v3/user/${carol.userId}/account_data/${type}`, content);
    const room = await alice.createRoom({ preset: 'private_chat' });
    await alice.invite(room, carol.userId);
    await carol.seesRoom('invite', room);
    await settings('m.invite_permission_config', { default_action: 'block' });
    assert.equal((await carol.get('/v3/sync')).rooms?.invite, undefined);
    const other = await alice.createRoom({ preset: 'private_chat' });
    await refused(alice.invite(other, carol.userId), 403, 'M_INVITE_BLOCKED');
    const member = path`/v3/rooms/${other}/state/m.room.member/${carol.userId}`;
    await refused(alice.put(member, { membership: 'invite' }), 403, 'M_INVITE_BLOCKED');

    await settings('m.invite_permission_config', {});
    await settings('org.matrix.msc4155.invite_permission_config', { ignored_users: [alice.userId] });
    await alice.invite(other, carol.userId);
    assert.equal((await carol.get('/v3/sync')).rooms?.invite, undefined);
    await settings('org.matrix.msc4155.invite_permission_config', {});
    const { invite } = (await carol.get('/v3/sync')).rooms;
    assert.ok(invite[room] && invite[other]);
  });

  it('says that it works with no identity server', async () => {
    const room = await alice.createRoom();
    const mail = {
      id_server: 'id.example.org',
      id_access_token: 'x',
      medium: 'email',
      address: 'b@example.org',
    };
    await refused(act(alice, 'invite', room, mail), 400, 'M_SERVER_NOT_TRUSTED');
    await refused(alice.post('/v3/createRoom', { invite_3pid: [mail] }), 400, 'M_SERVER_NOT_TRUSTED');
    const signed = { sender: alice.userId, mxid: bob.userId, token: 'unknown', signatures: {} };
    await refused(act(bob, 'join', room, { third_party_signed: signed }), 403, 'M_FORBIDDEN');
    await refused(act(carol, 'join', room, { third_party_signed: signed }), 403, 'M_FORBIDDEN');
  });

  it('answers for rooms that do not exist', async () => {
    await refused(bob.join('!nowhere:127.0.0.1:1'), 404);
    await refused(bob.join(`#nothing:${server.serverName}`), 404, 'M_NOT_FOUND');
    await refused(bob.join('neither'), 400, 'M_INVALID_PARAM');
    await refused(bob.sendText(`!unknown:${server.serverName}`, 'hello'), 403, 'M_FORBIDDEN');
  });
});
