import { randomBytes } from 'node:crypto';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { requireMember } from '@trellis/storage/fence.ts';
import type { Sequencer, Stream } from '@trellis/storage/streams.ts';
import type { FastifyBaseLogger } from 'fastify';
import type { Bus, DownReason } from './bus.ts';
import { Calls, unavailable } from './calls.ts';
import type { CallHandler, CallOptions, Cluster, Duty, Handover, Json, Role } from './cluster.ts';
import { Leadership } from './leadership.ts';
import type { Call, Item, Message, ToCoordinator, ToMember, ViewJson } from './messages.ts';
import { Questions } from './questions.ts';
import { Registry } from './registry.ts';
import { View } from './rendezvous.ts';
import { Rest } from './rest.ts';

/** How long a stop waits for others to take over, in milliseconds. */
const LEAVE_LIMIT = 30_000;
/** Of so many processes one has rooms: it appends for all of them, and they do the rest for their clients. */
const PROCESSES_PER_HOME = 8;
/** The topic of `doubt`. */
const DOUBT = 'doubt';

export interface JoinOptions {
  readonly id?: string;
  readonly bus: Bus;
  readonly db: Queryable;
  readonly roles: readonly Role[];
  /** In how many processes rooms live: in one of so many. */
  readonly processesPerHome?: number;
  readonly log: Pick<FastifyBaseLogger, 'info' | 'warn' | 'error'>;
  /** Where each stream begins when this process becomes coordinator: above all that was ever given. */
  starts(): Promise<ReadonlyMap<string, number>>;
}

/** A name for a process, not used again. */
export function memberId(): string {
  return randomBytes(9).toString('base64url');
}

/** A process among several. `joinCluster` makes one. */
export class ClusterMember implements Cluster {
  readonly self: string;
  readonly shared = true;
  readonly sequencer: Sequencer;
  /** Why this process cannot go on, once that is so: it was shut out and has to be started again. */
  readonly failed: Promise<string>;
  readonly #options: JoinOptions;
  readonly #registry: Registry;
  readonly #leadership: Leadership;
  readonly #calls: Calls;
  readonly #fail: (reason: string) => void;
  readonly #streams = new Map<string, Stream<never>>();
  readonly #topics = new Map<string, (payload: never) => void>();
  readonly #gapHandlers: Array<() => void> = [];
  readonly #handovers: Handover[] = [];
  readonly #questions = new Questions();
  readonly #rest: Rest;
  readonly #down = new Set<string>();
  readonly #welcomed = Promise.withResolvers<void>();
  readonly #left = Promise.withResolvers<void>();
  #viewed = Promise.withResolvers<void>();
  #loop: Message[] = [];
  #expiry: NodeJS.Timeout | undefined;
  /** Said while it was not known to whom. */
  #unsent: ToCoordinator[] = [];
  #positions: Readonly<Record<string, number>> = {};
  /** The term of the coordinator that this process follows; 0 before the first. */
  #term = 0;
  #view: View | undefined;
  #preparing: { readonly view: View; lost(duty: Duty, key: string): boolean } | undefined;
  #ready = false;
  #leaving = false;
  #ended = false;

  constructor(options: JoinOptions) {
    this.#options = options;
    const { bus, db, log } = options;
    this.self = bus.self;
    this.#registry = new Registry(db);
    this.sequencer = {
      guard: () => {
        const term = this.#term;
        return (tx) => requireMember(tx, { memberId: this.self, term: () => term });
      },
      reserve: (s, c, g) => this.#ask((n) => ({ t: 'reserve', n, s, c, g })),
      complete: async (s, p, changes, u) => {
        await this.#ask((n) => ({ t: 'complete', n, s, p, x: JSON.stringify(changes), u }));
      },
    };
    const failed = Promise.withResolvers<string>();
    this.failed = failed.promise;
    this.#fail = (reason) => {
      this.#ended = true;
      failed.resolve(reason);
    };
    this.#leadership = new Leadership({
      self: this.self,
      bus,
      log,
      registry: this.#registry,
      processesPerHome: options.processesPerHome ?? PROCESSES_PER_HOME,
      starts: options.starts,
      post: (to, term, message) => this.#post(to, { m: message, term }),
      joined: () => this.#term,
      join: (holder, term) => this.#post(holder, { c: { t: 'join', ready: this.#ready }, term }),
      found: () => {
        for (const message of this.#unsent.splice(0)) this.#toCoordinator(message);
      },
      shutOut: () => this.#shutOut(),
    });
    this.#rest = new Rest({
      mayRest: () => {
        const { coordinator } = this.#leadership;
        return this.#ready && coordinator !== undefined && coordinator !== this.self;
      },
      isOvertaking: () => bus.handedOver !== undefined,
      tellRest: () => this.#toCoordinator({ t: 'rest' }),
      tellWake: () => this.#ask((n) => ({ t: 'wake', n })),
      handle: (from, call) => this.#calls.handle(from, call),
    });
    this.#topics.set(DOUBT, () => this.#gap());
    this.#calls = new Calls({
      self: this.self,
      send: (to, call) => this.#post(to, { r: call }),
      owner: (duty, key) => this.#view?.owner(duty, key),
      isLeaving: (duty, key) => this.#preparing?.lost(duty, key) ?? false,
      nextView: () => this.#viewed.promise,
      isUp: (member) => !this.#down.has(member) && this.#view?.members.has(member) === true,
      report: (err, method) => log.error({ err, method }, 'what another process asked for failed'),
    });
  }

  /** Registers, finds or becomes the coordinator, and is told everything from then on. */
  async join(): Promise<void> {
    const { bus, roles } = this.#options;
    await bus.start({
      message: (from, message) => this.#receive(from, message as unknown as Message),
      down: (peer, why) => this.#lost(peer, why),
    });
    await this.#registry.register({ id: this.self, roles, address: bus.address });
    this.#leadership.start();
    this.#expiry = setInterval(() => this.#questions.expire(), 1_000).unref();
    await Promise.race([
      this.#welcomed.promise,
      this.failed.then((reason) => Promise.reject(new Error(reason))),
    ]);
  }

  /** For commits of events: see `EventWriter`. */
  term(): number {
    return this.#term;
  }

  /** Where a stream is, to begin with. */
  position(stream: string): number {
    const position = this.#positions[stream];
    if (position === undefined) throw new Error(`there is no stream ${stream}`);
    return position;
  }

  /** Lets a stream follow what is told. */
  attach<Change>(stream: Stream<Change>): void {
    this.#streams.set(stream.name, stream as unknown as Stream<never>);
  }

  /** Everything is composed: takes part in the duties from now on. Resolves when it has some. */
  async ready(): Promise<void> {
    // Whatever was read while others wrote is read again.
    await this.#registry.setReady(this.self);
    this.#gap();
    this.#ready = true;
    this.#toCoordinator({ t: 'ready' });
    while (!this.#view?.members.has(this.self) && !this.#ended) await this.#viewed.promise;
  }

  /** Hands everything over to the others, and ends the membership. */
  async leave(): Promise<void> {
    if (!this.#ended) {
      const timer = setTimeout(this.#left.resolve, LEAVE_LIMIT);
      this.#ready = false;
      this.#leaving = true;
      this.#toCoordinator({ t: 'leave' });
      await Promise.race([this.#left.promise, this.failed]);
      clearTimeout(timer);
      await this.#leadership.resign();
      this.#toCoordinator({ t: 'gone' });
    }
    this.#ended = true;
    this.#leadership.stop();
    clearInterval(this.#expiry);
    await this.#registry.remove(this.self).catch(() => {});
    await this.#options.bus.close();
  }

  async announce(topic: string, payload: Json): Promise<void> {
    const text = JSON.stringify(payload);
    await this.#ask((n) => ({ t: 'announce', n, s: topic, x: text }));
  }

  onAnnounce(topic: string, handler: (payload: never) => void): void {
    this.#topics.set(topic, handler);
  }

  onGap(handler: () => void): void {
    this.#gapHandlers.push(handler);
  }

  doubt(): Promise<void> {
    return this.announce(DOUBT, null);
  }

  abreast(then: () => void): void {
    this.#rest.abreast(then);
  }

  rest(): void {
    this.#rest.rest();
  }

  owner(duty: Duty, key: string): string {
    return this.#view?.owner(duty, key) ?? '';
  }

  owns(duty: Duty, key: string): boolean {
    return this.#view?.owner(duty, key) === this.self;
  }

  onHandover(handover: Handover): void {
    this.#handovers.push(handover);
  }

  isMember(process: string): boolean {
    return this.#view?.members.has(process) ?? false;
  }

  async call<T extends Json | undefined>(duty: Duty, key: string, method: string, args: Json): Promise<T> {
    return (await this.#calls.call(duty, key, method, args)) as T;
  }

  serve(method: string, handler: CallHandler, options?: CallOptions): void {
    this.#calls.serve(method, handler, options);
  }

  #post(to: string | readonly string[], message: Message): void {
    if (typeof to !== 'string') {
      const others = to.filter((id) => id !== this.self);
      if (others.length > 0) this.#options.bus.send(others, message as unknown as Json);
      if (others.length < to.length) this.#post(this.self, message);
      return;
    }
    if (to !== this.self) {
      this.#options.bus.send(to, message as unknown as Json);
      return;
    }
    this.#loop.push(message);
    if (this.#loop.length > 1) return;
    queueMicrotask(() => {
      const messages = this.#loop;
      this.#loop = [];
      for (const each of messages) this.#receive(this.self, each);
    });
  }

  #receive(from: string, message: Message): void {
    if ('r' in message) {
      this.#call(from, message.r);
      return;
    }
    if ('c' in message) {
      this.#leadership.handle(from, message.term, message.c);
      return;
    }
    this.#follow(from, message.term, message.m);
  }

  #call(from: string, call: Call): void {
    const { coordinator } = this.#leadership;
    // The coordinator says things in order, and nobody knows more than it does.
    const isInOrder = from === coordinator || coordinator === this.self || !this.#options.bus.handedOver;
    this.#rest.receive(from, call, isInOrder);
  }

  #follow(from: string, term: number, message: ToMember): void {
    if (this.#ended && message.t !== 'left') return;
    if (message.t === 'term') {
      this.#leadership.seek();
      return;
    }
    if (message.t === 'welcome') {
      this.#welcome(from, term, message);
      return;
    }
    // Of a coordinator that has been replaced.
    if (term !== this.#term && message.t !== 'fenced') return;
    switch (message.t) {
      case 'reserved':
        this.#questions.answer(message.n)?.resolve(message.p);
        return;
      case 'done':
        for (const n of message.ns) this.#questions.answer(n)?.resolve(0);
        return;
      case 'refused':
        this.#questions.answer(message.n)?.reject(unavailable('This process was not allowed to write'));
        return;
      case 'tell':
        for (const item of message.items) this.#take(item);
        if (message.ack) this.#toCoordinator({ t: 'ack', q: message.q });
        return;
      case 'prepare':
        return void this.#prepare(message.view);
      case 'cancel':
        this.#switch(this.#view);
        return;
      case 'left':
        this.#left.resolve();
        return;
      case 'resigned':
        this.#leadership.seek();
        return;
      case 'fenced':
        if (term >= this.#term) this.#shutOut();
    }
  }

  #take(item: Item): void {
    switch (item[0]) {
      case 'change': {
        const [, stream, position, changes] = item;
        this.#streams.get(stream)?.announced(position, () => decodeJson(changes) as unknown[]);
        return;
      }
      case 'announce':
        this.#topics.get(item[1])?.(decodeJson(item[2]) as never);
        return;
      case 'skip':
        this.#streams.get(item[1])?.skipTo(item[2]);
        return;
      case 'gap':
        for (const handler of this.#gapHandlers) handler();
        return;
      case 'view':
        this.#switch(this.#viewOf(item[1]));
    }
  }

  #welcome(coordinator: string, term: number, { q, positions }: Extract<ToMember, { t: 'welcome' }>): void {
    if (term <= this.#term) return;
    const first = this.#term === 0;
    this.#term = term;
    this.#positions = positions;
    this.#rest.forget();
    this.#leadership.follow(coordinator, term);
    // What still holds is said anew.
    this.#unsent = [];
    for (const message of this.#questions.carryOver()) this.#toCoordinator(message);
    if (this.#leaving) this.#toCoordinator({ t: 'leave' });
    // It may have become so since it asked to be taken in.
    if (this.#ready) this.#toCoordinator({ t: 'ready' });
    if (first) this.#welcomed.resolve();
    else this.#gap();
    this.#toCoordinator({ t: 'ack', q });
    // Prepared by the coordinator before.
    if (this.#preparing) this.#switch(this.#view);
  }

  /** Anything may have been missed. */
  #gap(): void {
    for (const handler of this.#gapHandlers) handler();
    for (const stream of this.#streams.values())
      stream.skipTo(Math.max(stream.current, this.#positions[stream.name] ?? 0));
  }

  async #prepare(json: ViewJson): Promise<void> {
    const view = this.#viewOf(json);
    const lost = (duty: Duty, key: string) => this.owns(duty, key) && view.owner(duty, key) !== this.self;
    const preparing = { view, lost };
    this.#preparing = preparing;
    const releases = this.#handovers.map(async ({ release }) => release?.(lost));
    const results = await Promise.allSettled([...releases, this.#calls.drain(lost)]);
    for (const result of results)
      if (result.status === 'rejected')
        this.#options.log.error({ err: result.reason }, 'something could not be given up in good order');
    if (this.#preparing === preparing) this.#toCoordinator({ t: 'released', v: view.number });
  }

  /** From now on the view holds. Also when it is the one that held before, and a change has been called off. */
  #switch(view: View | undefined): void {
    for (const id of this.#view?.members.keys() ?? [])
      if (view && !view.members.has(id)) this.#calls.down(id);
    this.#view = view;
    this.#preparing = undefined;
    for (const member of view?.members.values() ?? [])
      if (member.id !== this.self) this.#options.bus.connect(member);
    if (view) for (const { take } of this.#handovers) take?.();
    this.#viewed.resolve();
    this.#viewed = Promise.withResolvers();
  }

  #viewOf({ number, members, homes }: ViewJson): View {
    return new View(number, members, homes);
  }

  #lost(peer: string, why: DownReason): void {
    this.#options.log.info({ member: peer, why }, 'a process is not reached any more');
    this.#down.add(peer);
    // It has still answered these.
    this.#rest.flush();
    this.#calls.down(peer);
    this.#leadership.down(peer);
    // Others have given up this process, so that it has probably been shut out while it was asleep.
    if (why === 'gave-us-up') this.#leadership.seek();
    else if (this.#view?.members.has(peer)) this.#toCoordinator({ t: 'unreachable', id: peer });
  }

  #ask(ask: (n: number) => ToCoordinator): Promise<number> {
    if (this.#ended) return Promise.reject(unavailable('The process is about to end'));
    const { message, answered } = this.#questions.ask(ask);
    if (message.t !== 'wake') this.#rest.stir();
    this.#toCoordinator(message);
    return answered;
  }

  #toCoordinator(message: ToCoordinator): void {
    const { coordinator } = this.#leadership;
    if (coordinator) this.#post(coordinator, { c: message, term: this.#term });
    else this.#unsent.push(message);
  }

  #shutOut(): void {
    if (!this.#ended) this.#fail('this process was shut out by the others: it has to be started again');
  }
}

/** Joins the processes that work on the database already, or begins alone. */
export async function joinCluster(options: JoinOptions): Promise<ClusterMember> {
  const member = new ClusterMember(options);
  await member.join();
  return member;
}
