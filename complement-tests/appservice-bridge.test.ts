import './harness/no-native-crypto.ts';
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import {
  AppServiceRegistration,
  Bridge,
  type Intent,
  Logger,
  type MatrixUser,
  type Request,
} from 'matrix-appservice-bridge';
import { stringify } from 'yaml';
import { type Client, eventually, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { freePort } from './harness/ports.ts';
import { startServer, type TestServer } from './harness/server.ts';

const REGISTRATION = {
  id: 'net',
  as_token: 'as-token-of-the-net',
  hs_token: 'hs-token-of-the-net',
  sender_localpart: '_net_bot',
  rate_limited: false,
  protocols: ['net'],
  namespaces: {
    users: [{ exclusive: true, regex: '@_net_.*' }],
    aliases: [{ exclusive: true, regex: '#_net_.*' }],
    rooms: [],
  },
  'de.sorunome.msc2409.push_ephemeral': true,
};

/** A network of channels in memory, and the bridge that carries it into Matrix. */
class NetBridge {
  readonly url: string;
  readonly #port: number;
  readonly events: Json[] = [];
  readonly ephemeral: Json[] = [];
  /** What reached the network's channels from Matrix. */
  readonly channels = new Map<string, string[]>();
  readonly #rooms = new Map<string, string>();
  bridge: Bridge | undefined;

  constructor(port: number) {
    this.#port = port;
    this.url = `http://127.0.0.1:${port}`;
  }

  async run({ url, serverName }: TestServer): Promise<void> {
    this.bridge = new Bridge({
      homeserverUrl: url,
      domain: serverName,
      registration: AppServiceRegistration.fromObject({ ...REGISTRATION, url: this.url }),
      // The library's stores are of nedb, which this Node no longer runs.
      disableStores: true,
      disableContext: true,
      logRequestOutcome: false,
      controller: {
        onUserQuery: (user: MatrixUser) =>
          user.localpart.endsWith('nobody') ? null : { name: `${nickOf(user.localpart)} (net)` },
        onAliasQuery: (_alias: string, localpart: string) => {
          if (localpart.endsWith('nowhere')) return null;
          return { creationOpts: { preset: 'public_chat', room_alias_name: localpart, name: localpart } };
        },
        onAliasQueried: (alias: string, roomId: string) => {
          this.#rooms.set(roomId, alias.slice('#_net_'.length).split(':')[0]!);
        },
        onEvent: (request: Request<Json>) => this.#onEvent(request.getData()),
        onEphemeralEvent: (request: Request<Json>) => {
          this.ephemeral.push(request.getData());
        },
        thirdPartyLookup: {
          protocols: ['net'],
          getProtocol: () => ({
            user_fields: ['nick'],
            location_fields: ['channel'],
            icon: 'mxc://example.org/net',
            field_types: {},
            instances: [],
          }),
          getUser: (protocol: string, { nick }: Json) => [
            { userid: `@_net_${nick}:${serverName}`, protocol, fields: { nick } },
          ],
        },
      },
    });
    await this.bridge.run(this.#port, undefined, '127.0.0.1');
    await this.bot.ensureRegistered();
  }

  /** In a bridged room everything is said in the channel too; where the bot is invited, it comes. */
  async #onEvent(event: Json): Promise<void> {
    this.events.push(event);
    const channel = this.#rooms.get(event.room_id);
    if (event.type === 'm.room.message' && channel !== undefined)
      this.channels.set(channel, [...(this.channels.get(channel) ?? []), event.content.body]);
    const isInvite = event.type === 'm.room.member' && event.content.membership === 'invite';
    if (isInvite && event.state_key === this.bot.userId) await this.bot.join(event.room_id);
  }

  get bot(): Intent {
    return this.bridge!.getIntent();
  }

  nick(nick: string): Intent {
    return this.bridge!.getIntentFromLocalpart(`_net_${nick}`);
  }

  news(roomId: string, type: string): Promise<Json> {
    return eventually(`${type} at the bridge`, async () =>
      this.ephemeral.find((event) => event.type === type && event.room_id === roomId),
    );
  }
}

function nickOf(localpart: string): string {
  return localpart.replace('_net_', '');
}

describe('matrix-appservice-bridge', () => {
  const folder = mkdtempSync(join(tmpdir(), 'trellis-test-net-'));
  let server: TestServer;
  let net: NetBridge;
  let alice: Client;
  let lobby: string;

  before(async () => {
    Logger.configure({ console: 'off' });
    net = new NetBridge(await freePort());
    const file = join(folder, 'net.yaml');
    writeFileSync(file, stringify({ ...REGISTRATION, url: net.url }));
    server = await startServer({ name: 'bridged', config: { application_services: [file] } });
    await net.run(server);
    alice = await server.register('alice');
  });
  after(async () => {
    await net?.bridge?.close();
    await server?.close();
    rmSync(folder, { recursive: true, force: true });
  });

  it('provisions users when they are asked for', async () => {
    const eve = `@_net_eve:${server.serverName}`;
    assert.equal((await alice.get(path`/v3/profile/${eve}`)).displayname, 'eve (net)');
    await refused(alice.get(path`/v3/profile/${`@_net_nobody:${server.serverName}`}`), 404, 'M_NOT_FOUND');
  });

  it('provisions rooms when their aliases are asked for', async () => {
    const alias = `#_net_lobby:${server.serverName}`;
    lobby = await alice.join(alias);
    assert.equal((await alice.getState(lobby, 'm.room.name')).name, '_net_lobby');
    assert.equal(await net.bot.resolveRoom(alias), lobby);
    await refused(alice.join(`#_net_nowhere:${server.serverName}`), 404, 'M_NOT_FOUND');
  });

  it('carries messages both ways', async () => {
    await alice.sendText(lobby, 'hello, net');
    await eventually('the channel to hear', async () => net.channels.get('lobby')?.includes('hello, net'));
    // Not in the room yet: the library has the user join it.
    const { event_id: eventId } = await net.nick('eve').sendText(lobby, 'hello, matrix');
    const heard = await alice.seesEvent(lobby, eventId);
    assert.equal(heard.sender, `@_net_eve:${server.serverName}`);
    const joined = await alice.get(path`/v3/rooms/${lobby}/joined_members`);
    assert.equal(joined.joined[heard.sender].display_name, 'eve (net)');
    // What its own users say comes back to the bridge once, and stops there.
    await alice.sendText(lobby, 'still there?');
    await eventually('the channel to hear', async () => net.channels.get('lobby')?.includes('still there?'));
    assert.deepEqual(net.channels.get('lobby'), ['hello, net', 'still there?']);
  });

  it('carries who types, reads and is there', async () => {
    const eventId = await alice.sendText(lobby, 'read this');
    await alice.put(path`/v3/rooms/${lobby}/typing/${alice.userId}`, { typing: true, timeout: 20_000 });
    await alice.post(path`/v3/rooms/${lobby}/receipt/m.read/${eventId}`);
    assert.deepEqual((await net.news(lobby, 'm.typing')).content, { user_ids: [alice.userId] });
    assert.ok((await net.news(lobby, 'm.receipt')).content[eventId]['m.read'][alice.userId].ts > 0);

    const eve = net.nick('eve');
    await eve.sendReadReceipt(lobby, eventId);
    await eve.sendTyping(lobby, true);
    const userId = `@_net_eve:${server.serverName}`;
    const ephemeral = (sync: Json, type: string) =>
      sync.rooms?.join?.[lobby]?.ephemeral?.events.find((event: Json) => event.type === type)?.content;
    const seen = { typing: false, read: false };
    await alice.syncUntil('both', (sync) => {
      seen.typing ||= ephemeral(sync, 'm.typing')?.user_ids.includes(userId) ?? false;
      seen.read ||= ephemeral(sync, 'm.receipt')?.[eventId]?.['m.read']?.[userId] !== undefined;
      return seen.typing && seen.read;
    });
    await eve.setPresence('online', 'on the net');
    const presence = await alice.get(path`/v3/presence/${userId}/status`);
    assert.equal(presence.status_msg, 'on the net');
  });

  it('comes where its bot is invited, and brings its users with the power they need', async () => {
    const room = await alice.createRoom({ preset: 'private_chat', invite: [net.bot.userId] });
    await alice.seesMember(room, net.bot.userId, 'join');
    await alice.setState(room, 'm.room.power_levels', {
      ...(await alice.getState(room, 'm.room.power_levels')),
      users: { [net.bot.userId]: 100 },
    });
    // Invited by the bot, and given by it what it takes to set a topic.
    const frank = net.nick('frank');
    await frank.ensureProfile('frank (net)');
    await frank.setRoomTopic(room, 'plumbing');
    assert.equal((await alice.getState(room, 'm.room.topic')).topic, 'plumbing');
    const userId = `@_net_frank:${server.serverName}`;
    assert.equal((await alice.getState(room, 'm.room.member', userId)).displayname, 'frank (net)');
    await frank.setRoomUserProfile(room, { displayname: 'frank of the plumbing' });
    assert.equal((await alice.getState(room, 'm.room.member', userId)).displayname, 'frank of the plumbing');
    const members = await net.bridge!.getBot().getJoinedMembers(room);
    assert.equal(members[userId]!.display_name, 'frank of the plumbing');
    await net.bot.kick(room, userId, 'closing');
    await alice.seesMember(room, userId, 'leave');
  });

  it('uploads media and links to it', async () => {
    const eve = net.nick('eve');
    const url = await eve.uploadContent('from the net', { name: 'net.txt', type: 'text/plain' });
    const { event_id: eventId } = await eve.sendMessage(lobby, { msgtype: 'm.file', body: 'net.txt', url });
    assert.equal((await alice.seesEvent(lobby, eventId)).content.url, url);
  });

  it('is reached by the server, and looked things up at', async () => {
    assert.ok((await net.bridge!.pingAppserviceRoute(lobby, 20_000)) >= 0);
    const protocols = await alice.get('/v3/thirdparty/protocols');
    assert.deepEqual(protocols.net.user_fields, ['nick']);
    const users = await alice.get('/v3/thirdparty/user/net', { nick: 'eve' });
    assert.deepEqual(users, [
      { userid: `@_net_eve:${server.serverName}`, protocol: 'net', fields: { nick: 'eve' } },
    ]);
  });
});
