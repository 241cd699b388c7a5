import type { FastifyBaseLogger } from 'fastify';
import type { Item, ToCoordinator, ToMember } from './messages.ts';
import { Order, type Waiter } from './order.ts';
import type { Registry } from './registry.ts';
import { homesOf, type Member } from './rendezvous.ts';
import { ViewChange } from './view-change.ts';

/** What is sent to one member at once, at the most. */
const MAX_ITEMS = 500;
/** How much later members hear of something that rest, in milliseconds. */
const LATE_MS = 40;
/** How long members of the last term have to come over to this one, in milliseconds. */
const TAKE_OVER_MS = 2_000;
/** The same for the coordinator before, which has given no sign of life for as long as its lease was. */
const LAST_HOLDER_MS = 1_000;
/** Between tries to shut a member out while the database is away, in milliseconds. */
const RETRY_MS = 200;

export interface CoordinatorDeps {
  readonly self: string;
  readonly term: number;
  readonly registry: Registry;
  /** See `homesOf`. */
  readonly processesPerHome: number;
  readonly log: Pick<FastifyBaseLogger, 'info' | 'warn' | 'error'>;
  /** See `Order`. */
  readonly starts: ReadonlyMap<string, number>;
  send(to: string | readonly string[], message: ToMember): void;
  /** See `Bus.handedOver`: where it is there, nobody has to acknowledge what it hears of streams. */
  readonly handedOver?: ((to: readonly string[], then: () => void) => void) | undefined;
  /** Begins to watch over a member. */
  connect(member: Member): void;
  disconnect(member: string): void;
  /** Whether this process has lost touch with a member, and so never will be in touch again. */
  isDown(member: string): boolean;
  /** Whether the lease is surely still ours. */
  valid(): boolean;
}

interface Joined {
  readonly member: Member;
  /** Whether it takes part in the duties. */
  ready: boolean;
  /** Whether it answers requests, or has until now: not while it starts, when its event loop may be busy for long. */
  serves: boolean;
  /** Nobody asks it anything: it may hear of things later. */
  resting: boolean;
  acked: number;
}

/** To be done once all know what was told up to a number. */
interface Due<T> {
  readonly number: number;
  readonly due: readonly T[];
}

/**
 * The one process that orders what all are told, gives the positions of streams, and says who is a member
 * (docs/architecture.md, "Many processes"). It keeps nothing that could not be lost: the next one begins with a new term,
 * above all positions of this one.
 */
export class Coordinator {
  readonly #deps: CoordinatorDeps;
  readonly #order: Order;
  readonly #views: ViewChange;
  /** All that are told; those that are `ready` share the duties. */
  readonly #members = new Map<string, Joined>();
  readonly #known = new Map<string, Member>();
  readonly #fencing = new Set<string>();
  readonly #joining = new Set<string>();
  readonly #leaving = new Set<string>();
  /** Members of the terms before, which may believe to have duties, and have not come over yet. */
  readonly #awaited = new Set<string>();
  #drained: (() => void) | undefined;
  #items: Item[] = [];
  /** Whether those that rest are to be told these at once. */
  #isUrgent = false;
  /** What those that rest have not been told yet. */
  #late: Item[] = [];
  #lateTimer: NodeJS.Timeout | undefined;
  #waiters: Waiter[] = [];
  #after: Array<() => void> = [];
  #number = 0;
  /** Of what was told. The waiters come to know as soon as nobody can ask anybody who does not know it. */
  #unsettled: Due<Waiter>[] = [];
  /** For these all have to have done what they were told. */
  #undone: Due<() => void>[] = [];
  #given = 0;
  #flushing = false;
  /** What came while it was not sure that the lease is still ours. */
  #held: Array<[from: string, message: ToCoordinator]> = [];
  #stopped = false;

  constructor(deps: CoordinatorDeps) {
    this.#deps = deps;
    this.#order = new Order(deps.starts, (item, waiter) => this.#tell(item, waiter));
    this.#views = new ViewChange({
      term: deps.term,
      log: deps.log,
      homes: (members) => homesOf(members, deps.self, deps.processesPerHome),
      send: (to, message) => {
        // What prepares a view comes after the view before it.
        this.#flush();
        this.#deps.send(to, message);
      },
      joined: () => this.#serving(),
      activate: (view) => {
        this.#after.push(() => this.#dismiss(view.members));
        this.#tell(['view', view], undefined);
      },
      // The view may still be on its way to some.
      taken: (members) => this.#onceDone(() => this.#dismiss(members)),
      shutOut: (member) => this.fence(member, 'did not give up its duties'),
    });
  }

  /**
   * Calls the members of the terms before. Those that do not come are shut out.
   *
   * @param lastHolder who let the lease run out
   */
  async start(lastHolder = ''): Promise<void> {
    for (const member of await this.#deps.registry.members()) {
      this.#known.set(member.id, member);
      // Who is still starting has no duties; its event loop may be busy.
      if (member.ready) this.#awaited.add(member.id);
      if (member.id === this.#deps.self) continue;
      if (this.#deps.isDown(member.id)) {
        this.fence(member.id, 'not reached any more');
        continue;
      }
      this.#deps.connect(member);
      this.#deps.send(member.id, { t: 'term' });
    }
    const shutOut = (id: string) => this.fence(id, 'did not come over to the new coordinator');
    setTimeout(() => {
      if (this.#awaited.has(lastHolder)) shutOut(lastHolder);
    }, LAST_HOLDER_MS).unref();
    setTimeout(() => {
      for (const id of this.#awaited) shutOut(id);
    }, TAKE_OVER_MS).unref();
  }

  stop(): void {
    this.#stopped = true;
    this.#held = [];
    this.#views.stop();
    clearTimeout(this.#lateTimer);
  }

  /**
   * Gives no positions any more, and resolves once all that were given are complete and known to all: nobody's work
   * fails because this coordinator goes.
   */
  async resign(limitMs: number): Promise<void> {
    const late = Promise.withResolvers<void>();
    const timer = setTimeout(late.resolve, limitMs);
    const drained = new Promise<void>((resolve) => {
      this.#drained = resolve;
    });
    this.#checkDrained();
    await Promise.race([drained, late.promise]);
    // Once all have acknowledged something more, they know as well that what they wrote is done.
    const known = new Promise<void>((resolve) => this.#onceDone(resolve));
    await Promise.race([known, late.promise]);
    clearTimeout(timer);
    this.#deps.send([...this.#members.keys()], { t: 'resigned' });
    this.stop();
  }

  /** Those who want to go and have no duties any more, as all know, may go. */
  #dismiss(members: readonly Member[]): void {
    for (const id of this.#leaving) {
      if (members.some((member) => member.id === id)) continue;
      this.#leaving.delete(id);
      this.#deps.send(id, { t: 'left' });
    }
  }

  #checkDrained(): void {
    const isDone = this.#items.length + this.#unsettled.length + this.#undone.length === 0;
    if (isDone && !this.#order.busy) this.#drained?.();
  }

  handle(from: string, message: ToCoordinator): void {
    if (this.#stopped) return;
    // Until the lease is surely ours again: nobody says it twice to the same coordinator.
    if (this.#held.length > 0 || !this.#deps.valid()) this.#held.push([from, message]);
    else this.#do(from, message);
  }

  /** The lease was renewed. */
  renewed(): void {
    const held = this.#held;
    this.#held = [];
    for (const [from, message] of held) this.handle(from, message);
    this.#settle();
  }

  #do(from: string, message: ToCoordinator): void {
    if (message.t === 'join') return void this.#join(from, message.ready);
    const member = this.#members.get(from);
    // Who was shut out is to know, whatever it wants; who has not joined yet is being taken in.
    if (!member) return void (this.#known.has(from) || this.#deps.send(from, { t: 'fenced' }));
    switch (message.t) {
      case 'reserve': {
        // The next coordinator is asked again.
        if (this.#drained) return;
        const position = this.#order.reserve(from, message.s, message.c, message.g);
        this.#deps.send(
          from,
          position === undefined
            ? { t: 'refused', n: message.n }
            : { t: 'reserved', n: message.n, p: position },
        );
        return;
      }
      case 'complete':
        if (!this.#order.complete(from, message)) this.#deps.send(from, { t: 'refused', n: message.n });
        return;
      case 'announce':
        this.#tell(['announce', message.s, message.x], { member: from, n: message.n });
        return;
      case 'ack':
        member.acked = message.q;
        this.#settle();
        return;
      case 'rest':
        if (from === this.#deps.self || !member.ready) return;
        // All that rest have been told the same.
        this.#flushLate();
        member.resting = true;
        this.#settle();
        return;
      case 'wake':
        if (member.resting) this.#flushLate();
        member.resting = false;
        this.#flush();
        this.#deps.send(from, { t: 'done', ns: [message.n] });
        return;
      case 'ready':
        if (member.ready) return;
        member.ready = true;
        member.serves = true;
        this.#changeView();
        return;
      case 'released':
        this.#views.released(from, message.v);
        return;
      case 'leave':
        member.ready = false;
        this.#leaving.add(from);
        this.#changeView();
        return;
      case 'gone':
        return void this.#forget(from);
      case 'unreachable':
        if (this.#members.has(message.id)) this.fence(message.id, `not reached by ${from}`);
    }
  }

  /** A member is not reached any more. */
  down(id: string): void {
    if (this.#known.has(id)) this.fence(id, 'not reached any more');
  }

  /** Shuts a member out for good: it can commit nothing from then on. */
  fence(id: string, reason: string): void {
    if (this.#fencing.has(id) || this.#stopped) return;
    this.#fencing.add(id);
    this.#deps.log.warn({ member: id, reason }, 'a process of the cluster is shut out');
    void this.#remove(id).then(() => {
      this.#fencing.delete(id);
      if (this.#stopped) return;
      this.#deps.send(id, { t: 'fenced' });
      this.#known.delete(id);
      this.#deps.disconnect(id);
      this.#members.delete(id);
      this.#awaited.delete(id);
      this.#order.abandon(id);
      this.#tell(['gap'], undefined);
      this.#settle();
      this.#changeView();
    });
  }

  async #remove(id: string): Promise<void> {
    while (!this.#stopped) {
      try {
        // Who was asleep, and is coordinator no more, has nobody to shut out.
        if (this.#deps.valid()) return await this.#deps.registry.remove(id);
      } catch (err) {
        this.#deps.log.warn({ err, member: id }, 'a process could not be shut out yet');
      }
      await new Promise((again) => setTimeout(again, RETRY_MS));
    }
  }

  async #join(id: string, ready: boolean): Promise<void> {
    const { registry, term, log } = this.#deps;
    if (this.#drained || this.#members.has(id) || this.#joining.has(id)) return;
    this.#joining.add(id);
    try {
      if (!this.#known.has(id)) {
        const member = (await registry.members()).find((each) => each.id === id);
        if (member) this.#known.set(id, member);
      }
      const member = this.#known.get(id);
      if (!member || this.#fencing.has(id) || !(await registry.admit(id, term)) || this.#fencing.has(id))
        return this.#deps.send(id, { t: 'fenced' });
      if (id !== this.#deps.self) this.#deps.connect(member);
      // It begins with what comes after the welcome, so that all before has to be on its way.
      this.#flush();
      this.#members.set(id, { member, ready, serves: ready, resting: false, acked: 0 });
      this.#deps.send(id, { t: 'welcome', q: this.#number, positions: this.#order.positions() });
      this.#awaited.delete(id);
      this.#settle();
      this.#changeView();
    } catch (err) {
      // It asks again.
      log.warn({ err, member: id }, 'a process could not be taken in yet');
    } finally {
      this.#joining.delete(id);
    }
  }

  async #forget(id: string): Promise<void> {
    // That it closes its connections is no death.
    this.#fencing.add(id);
    await this.#remove(id);
    this.#fencing.delete(id);
    if (this.#stopped) return;
    this.#members.delete(id);
    this.#known.delete(id);
    this.#deps.disconnect(id);
    this.#order.abandon(id);
    this.#settle();
    // A change under way may be waiting for it.
    this.#changeView();
  }

  #changeView(): void {
    // Until then two could believe to have the same duty.
    if (this.#awaited.size > 0 || this.#drained) return;
    const ready = [...this.#members.values()].filter((each) => each.ready).map(({ member }) => member);
    this.#views.want(ready);
  }

  /** Once all have done what they were told until now. */
  #onceDone(run: () => void): void {
    this.#after.push(run);
    this.#tell(['announce', '', 'null'], undefined);
  }

  #tell(item: Item, waiter: Waiter | undefined): void {
    this.#items.push(item);
    this.#isUrgent ||= item[0] !== 'change' || item[4];
    if (waiter) this.#waiters.push(waiter);
    if (this.#items.length >= MAX_ITEMS) this.#flush();
    if (this.#flushing) return;
    this.#flushing = true;
    // What comes in with the same turn of the event loop goes out together.
    setImmediate(() => {
      this.#flushing = false;
      this.#flush();
    });
  }

  #flush(): void {
    if (this.#items.length === 0 || this.#stopped) return;
    const items = this.#items;
    const number = ++this.#number;
    const { send, handedOver, self } = this.#deps;
    if (this.#waiters.length > 0) this.#unsettled.push({ number, due: this.#waiters });
    if (this.#after.length > 0) this.#undone.push({ number, due: this.#after });
    const ack = !handedOver || this.#after.length > 0;
    this.#items = [];
    this.#waiters = [];
    this.#after = [];
    const told = { t: 'tell', q: number, items, ack } as const;
    const isForAll = this.#isUrgent || this.#ids(({ resting }) => resting).length === 0;
    if (isForAll) this.#flushLate();
    else this.#tellLater(items);
    send(
      this.#ids(({ resting }) => isForAll || !resting),
      told,
    );
    handedOver?.(
      this.#ids(({ member, serves, resting }) => serves && !resting && member.id !== self),
      () => {
        this.#given = number;
        this.#settle();
      },
    );
    this.#isUrgent = false;
    if (this.#members.size === 0) this.#settle();
  }

  #tellLater(items: readonly Item[]): void {
    this.#late.push(...items);
    if (this.#late.length >= MAX_ITEMS) this.#flushLate();
    else this.#lateTimer ??= setTimeout(() => this.#flushLate(), LATE_MS).unref();
  }

  #flushLate(): void {
    clearTimeout(this.#lateTimer);
    this.#lateTimer = undefined;
    if (this.#late.length === 0 || this.#stopped) return;
    const items = this.#late;
    this.#late = [];
    const resting = this.#ids((member) => member.resting);
    const ack = this.#deps.handedOver === undefined;
    if (resting.length > 0) this.#deps.send(resting, { t: 'tell', q: this.#number, items, ack });
  }

  /** Who has not come over yet is there all the same, and answers requests. */
  #serving(): string[] {
    return this.#ids(({ serves }) => serves);
  }

  #ids(is: (member: Joined) => boolean): string[] {
    return [...this.#members].flatMap(([id, member]) => (is(member) ? [id] : []));
  }

  /** Tells those who wait for it what all know. */
  #settle(): void {
    if (this.#awaited.size > 0 || !this.#deps.valid()) return;
    let ackedByAll = this.#number;
    let acked = this.#number;
    for (const member of this.#members.values()) {
      if (!member.serves) continue;
      ackedByAll = Math.min(ackedByAll, member.acked);
      if (!member.resting) acked = Math.min(acked, member.acked);
    }
    const done = new Map<string, number[]>();
    // Who is being shut out is not waited for, but that it is.
    const known = this.#fencing.size === 0 ? Math.max(this.#given, acked) : acked;
    for (const { member, n } of takeUpTo(this.#unsettled, known)) {
      const ns = done.get(member);
      if (ns) ns.push(n);
      else done.set(member, [n]);
    }
    for (const [member, ns] of done) this.#deps.send(member, { t: 'done', ns });
    for (const run of takeUpTo(this.#undone, ackedByAll)) run();
    this.#checkDrained();
  }
}

function takeUpTo<T>(all: Due<T>[], number: number): T[] {
  let count = 0;
  while (count < all.length && all[count]!.number <= number) count++;
  return count === 0 ? [] : all.splice(0, count).flatMap(({ due }) => due);
}
