import { setTimeout as sleep } from 'node:timers/promises';
import { type Answer, nextTransactionId, path } from '../client.ts';
import type { Json } from '../json.ts';
import type { Random } from './random.ts';
import type { ChaosRoom, Person, World } from './world.ts';

/** An event that a server said it has taken. */
export interface Acknowledged {
  readonly room: ChaosRoom;
  readonly eventId: string;
  readonly server: number;
  /** No server has reason to refuse it. */
  readonly everywhere: boolean;
  readonly what: string;
}

const REQUEST_LIMIT_MS = 20_000;
const ACTIONS = {
  message: 50,
  visit: 10,
  name: 6,
  setting: 6,
  nickname: 4,
  profile: 1,
  redact: 3,
  // In stormy rooms only:
  levels: 6,
  throwOut: 7,
  invite: 3,
  joinRules: 2,
} as const;
type Action = keyof typeof ACTIONS;
const STORMY: readonly Action[] = ['levels', 'throwOut', 'invite', 'joinRules'];

/** People of all servers doing things at the same time, and a record of what they were told was done. */
export class Load {
  readonly acknowledged: Acknowledged[] = [];
  readonly counts = { done: 0, refused: 0, lost: 0 };
  /** Answers that are never right. */
  readonly failures: string[] = [];
  readonly #world: World;
  #stopped = false;

  constructor(world: World) {
    this.#world = world;
  }

  /** @param perSecond what each server is asked in a second, about */
  async run(random: Random, perSecond: number): Promise<void> {
    const workers = this.#world.servers.flatMap((_, server) =>
      [0, 1].map((n) => this.#work(random.for(`worker ${server} ${n}`), server, 2000 / perSecond)),
    );
    await Promise.all(workers);
  }

  stop(): void {
    this.#stopped = true;
  }

  async #work(random: Random, server: number, pause: number): Promise<void> {
    const own = this.#world.rooms.filter(({ admins }) => admins.has(server));
    for (let n = 0; !this.#stopped; n++) {
      const room = random.pick(own);
      let action = random.weighted(ACTIONS);
      if (STORMY.includes(action) && !room.isStormy) action = 'message';
      await this.#act(random, action, room, server, n).catch((error: unknown) => this.#lost(error));
      await sleep(random.between(0.2, 1.8) * pause);
    }
  }

  /** A request that got no answer may have been done or not. */
  #lost(error: unknown): void {
    if (!(error instanceof TypeError || (error instanceof Error && error.name === 'TimeoutError')))
      throw error;
    this.counts.lost++;
  }

  #act(random: Random, action: Action, room: ChaosRoom, server: number, n: number): Promise<void> {
    const admin = room.admins.get(server)!;
    const steady = room.steady.get(server)!;
    const own = (kind: Person['kind']) =>
      this.#world.people.filter((p) => p.kind === kind && p.server === server);
    const stranger = random.pick(this.#world.people.filter(({ kind }) => kind === 'wanderer'));
    const text = `${action} ${n} of ${server}`;
    switch (action) {
      case 'message':
        return this.#send(random.pick([admin, steady]), room, { msgtype: 'm.text', body: text }, true);
      case 'visit':
        return this.#visit(random, random.pick(own('wanderer')), room, text);
      case 'name':
        return this.#setState(admin, room, random.pick(['m.room.name', 'm.room.topic']), '', {
          name: text,
          topic: text,
        });
      case 'setting':
        return this.#setState(admin, room, 'org.example.setting', `${random.whole(1, 3)}`, { text });
      case 'nickname':
        return this.#setState(steady, room, 'm.room.member', steady.client.userId, {
          membership: 'join',
          displayname: text,
        });
      case 'profile':
        return this.#request(steady, 'PUT', path`/v3/profile/${steady.client.userId}/displayname`, {
          displayname: text,
        }).then(() => {});
      case 'redact':
        return this.#redact(random, room, server);
      case 'levels':
        return this.#changeLevels(random, admin, room, stranger);
      case 'throwOut':
        return this.#throwOut(random.pick(['kick', 'ban', 'unban']), admin, room, stranger);
      case 'invite':
        return this.#throwOut('invite', admin, room, stranger);
      case 'joinRules':
        return this.#setState(admin, room, 'm.room.join_rules', '', {
          join_rule: random.pick(['public', 'public', 'invite']),
        });
    }
  }

  async #send(person: Person, room: ChaosRoom, content: Json, everywhere: boolean): Promise<void> {
    const target = path`/v3/rooms/${room.id}/send/m.room.message/${nextTransactionId()}`;
    this.#note(person, room, 'message', everywhere, await this.#request(person, 'PUT', target, content));
  }

  async #setState(person: Person, room: ChaosRoom, type: string, key: string, content: Json): Promise<void> {
    const target = path`/v3/rooms/${room.id}/state/${type}/${key}`;
    this.#note(person, room, type, true, await this.#request(person, 'PUT', target, content));
  }

  async #visit(random: Random, wanderer: Person, room: ChaosRoom, text: string): Promise<void> {
    const what = random.pick(['join', 'join', 'leave', 'message', 'message']);
    if (what === 'message') return this.#send(wanderer, room, { msgtype: 'm.text', body: text }, false);
    if (what === 'leave') {
      await this.#request(wanderer, 'POST', path`/v3/rooms/${room.id}/leave`, {});
      return;
    }
    const via = this.#world.servers[random.pick([...room.admins.keys()])]!.serverName;
    await this.#request(wanderer, 'POST', path`/v3/join/${room.id}`, {}, { via, server_name: via });
  }

  async #redact(random: Random, room: ChaosRoom, server: number): Promise<void> {
    const steady = room.steady.get(server)!;
    const recent = this.acknowledged.slice(-2000);
    const own = recent.filter((a) => a.room === room && a.server === server && a.what === 'message');
    if (own.length === 0) return;
    const target = path`/v3/rooms/${room.id}/redact/${random.pick(own).eventId}/${nextTransactionId()}`;
    // By the admin it would be allowed for every message, by the sender for his own alone: both are.
    const by = random.pick([steady, room.admins.get(server)!]);
    this.#note(by, room, 'redaction', by.kind === 'admin', await this.#request(by, 'PUT', target, {}));
  }

  async #changeLevels(random: Random, admin: Person, room: ChaosRoom, stranger: Person): Promise<void> {
    const target = path`/v3/rooms/${room.id}/state/m.room.power_levels/`;
    const now = await this.#request(admin, 'GET', target);
    if (now?.status !== 200) return;
    const whom = random.pick([stranger, ...room.steady.values()]);
    const users = { ...now.body.users, [whom.client.userId]: random.pick([0, 25, 50]) };
    await this.#setState(admin, room, 'm.room.power_levels', '', { ...now.body, users });
  }

  async #throwOut(how: string, admin: Person, room: ChaosRoom, stranger: Person): Promise<void> {
    await this.#request(admin, 'POST', path`/v3/rooms/${room.id}/${how}`, {
      user_id: stranger.client.userId,
    });
  }

  async #request(
    { client }: Person,
    method: string,
    target: string,
    body?: Json,
    query?: Record<string, string>,
  ): Promise<Answer | undefined> {
    const signal = AbortSignal.timeout(REQUEST_LIMIT_MS);
    const options = { signal, ...(body === undefined ? {} : { body }), ...(query ? { query } : {}) };
    const answer = await client.request(method, `/_matrix/client${target}`, options);
    if (answer.status === 200) {
      this.counts.done++;
      return answer;
    }
    // 502 to 504: another server is needed and does not answer.
    if (answer.status === 500 || answer.status > 504 || answer.status === 400)
      this.failures.push(`${method} ${target}: ${answer.status} ${JSON.stringify(answer.body)}`);
    this.counts.refused++;
    return undefined;
  }

  #note(by: Person, room: ChaosRoom, what: string, everywhere: boolean, answer: Answer | undefined): void {
    if (!answer) return;
    const { event_id: eventId } = answer.body;
    this.acknowledged.push({ room, eventId, server: by.server, everywhere, what });
  }
}
