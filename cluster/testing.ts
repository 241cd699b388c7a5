/** Several processes' `Cluster`s in one process, for tests of what is built on them. */
import { MatrixError } from '@trellis/protocol/errors.ts';
import { type ChangeCodec, Stream } from '@trellis/storage/streams.ts';
import { type CallHandler, type Cluster, type Duty, type Handover, type Json, ROLES } from './cluster.ts';
import { View } from './rendezvous.ts';

/** Latency of everything that is told or asked, in milliseconds. */
const HOP = 1;

class TestMember implements Cluster {
  readonly self: string;
  readonly shared = true;
  readonly #net: TestCluster;
  readonly topics = new Map<string, (payload: never) => void>();
  readonly methods = new Map<string, CallHandler>();
  readonly gaps: Array<() => void> = [];
  readonly handovers: Handover[] = [];
  readonly streams = new Map<string, Stream<never>>();
  readonly died = Promise.withResolvers<void>();
  dead = false;

  constructor(self: string, net: TestCluster) {
    this.self = self;
    this.#net = net;
  }

  get sequencer() {
    return {
      guard: () => async () => {
        if (this.dead) throw shutOut();
      },
      reserve: (stream: string, count: number, gapBefore: number) =>
        this.#net.reserve(this, stream, count, gapBefore),
      complete: (stream: string, position: number, changes: readonly unknown[]) =>
        this.#net.complete(this, stream, position, changes),
    };
  }

  /** The member's own object of a stream that the whole cluster shares. */
  stream<C>(name: string, codec?: ChangeCodec<C>): Stream<C> {
    const { sequencer } = this;
    const stream = new Stream<C>(
      name,
      this.#net.currentOf(name),
      codec ? { sequencer, codec } : { sequencer },
    );
    this.streams.set(name, stream as unknown as Stream<never>);
    return stream;
  }

  announce(topic: string, payload: Json): Promise<void> {
    return this.#net.tell(this, (member) => member.topics.get(topic)?.(payload as never), payload);
  }
  onAnnounce(topic: string, handler: (payload: never) => void): void {
    this.topics.set(topic, handler);
  }
  onGap(handler: () => void): void {
    this.gaps.push(handler);
  }
  doubt(): Promise<void> {
    return this.#net.tell(this, (member) => member.gaps.forEach((gap) => void gap()), null);
  }
  abreast(then: () => void): void {
    then();
  }
  rest(): void {}
  owner(duty: Duty, key: string): string {
    return this.#net.view.owner(duty, key);
  }
  owns(duty: Duty, key: string): boolean {
    return this.owner(duty, key) === this.self;
  }
  onHandover(handover: Handover): void {
    this.handovers.push(handover);
  }
  isMember(process: string): boolean {
    return this.#net.view.members.has(process);
  }
  async call<T extends Json | undefined>(duty: Duty, key: string, method: string, args: Json): Promise<T> {
    const own = this.owns(duty, key) ? this.methods.get(method) : undefined;
    // Without a detour.
    if (own) return (await own(args as never, key)) as T;
    return (await this.#net.call(duty, key, method, args)) as T;
  }
  serve(method: string, handler: CallHandler): void {
    this.methods.set(method, handler);
  }
}

interface SharedStream {
  next: number;
  current: number;
  pending: Map<
    number,
    { by: TestMember; done?: { changes: readonly unknown[] | undefined; heard: () => void } }
  >;
}

export class TestCluster {
  readonly members: TestMember[] = [];
  readonly #streams = new Map<string, SharedStream>();
  view = new View(0, []);
  /** Announcements go out one after the other. */
  #telling: Promise<void> = Promise.resolve();

  get alive(): TestMember[] {
    return this.members.filter(({ dead }) => !dead);
  }

  currentOf(name: string): number {
    return this.#stream(name).current;
  }

  /** Another process comes: others release what becomes its own, then all take. `compose` makes what it serves before. */
  async join(
    compose?: (member: TestMember) => Promise<void> | void,
    name = `m${this.members.length}`,
  ): Promise<TestMember> {
    const member = new TestMember(name, this);
    // What the others tell meanwhile it hears already.
    this.members.push(member);
    await compose?.(member);
    await this.#changeView();
    return member;
  }

  /** A name with which the next process to come gets a duty. */
  heir(duty: Duty, key: string): string {
    for (let i = 0; ; i++) {
      const name = `heir${i}`;
      const members = [...this.alive.map(({ self }) => self), name];
      const view = new View(
        0,
        members.map((id) => ({ id, roles: ROLES, address: id })),
      );
      if (view.owner(duty, key) === name) return name;
    }
  }

  /** A process dies, with what it had reserved and not completed. */
  async kill(member: TestMember): Promise<void> {
    member.dead = true;
    member.died.resolve();
    await this.#forget(member);
    await this.#changeView();
  }

  /**
   * A process goes in good order.
   *
   * @param remove sees to it that the process writes nothing more, before what it had begun is given up
   */
  async leave(member: TestMember, remove?: () => Promise<unknown>): Promise<void> {
    const next = this.#viewOf(this.alive.filter((other) => other !== member));
    await this.#release(next);
    member.dead = true;
    member.died.resolve();
    this.#activate(next);
    await remove?.();
    await this.#forget(member);
  }

  /** Nobody waits for positions that a process has reserved and will not complete. */
  async #forget(member: TestMember): Promise<void> {
    for (const stream of this.#streams.values())
      for (const [position, { by, done }] of stream.pending)
        if (by === member && !done)
          stream.pending.get(position)!.done = { changes: undefined, heard: () => {} };
    this.#telling = this.#telling.then(() => {
      for (const other of this.alive) for (const gap of other.gaps) gap();
    });
    for (const name of this.#streams.keys()) this.#advance(name);
    await this.#telling;
  }

  async reserve(by: TestMember, name: string, count: number, gapBefore: number): Promise<number> {
    await hop();
    if (by.dead) throw shutOut();
    const stream = this.#stream(name);
    const first = stream.next + 1 + gapBefore;
    for (let i = 0; i < count; i++) stream.pending.set(first + i, { by });
    stream.next = first + count - 1;
    return first;
  }

  async complete(by: TestMember, name: string, position: number, changes: readonly unknown[]): Promise<void> {
    const sent = JSON.parse(JSON.stringify(changes)) as unknown[];
    await hop();
    if (by.dead) throw shutOut();
    const entry = this.#stream(name).pending.get(position);
    if (!entry) throw new Error(`stream ${name}: position ${position} was not reserved`);
    await new Promise<void>((heard) => {
      entry.done = { changes: sent, heard };
      this.#advance(name);
    });
  }

  tell(by: TestMember, hear: (member: TestMember) => void, payload: Json): Promise<void> {
    JSON.stringify(payload);
    const told = this.#telling.then(async () => {
      if (by.dead) throw shutOut();
      for (const member of this.alive) {
        await hop();
        if (!member.dead) hear(member);
      }
    });
    this.#telling = told.catch(() => {});
    return told;
  }

  async call(duty: Duty, key: string, method: string, args: Json): Promise<Json | undefined> {
    await hop();
    const owner = this.members.find(({ self }) => self === this.view.owner(duty, key))!;
    const handler = owner.methods.get(method);
    if (!handler) throw new Error(`nobody serves ${method}`);
    const gone = new MatrixError(503, 'M_UNKNOWN', 'The process that was at it has died');
    const result = await Promise.race([
      handler(JSON.parse(JSON.stringify(args)) as never, key),
      owner.died.promise.then(() => Promise.reject(gone)),
    ]);
    await hop();
    if (owner.dead) throw gone;
    return result === undefined ? undefined : (JSON.parse(JSON.stringify(result)) as Json);
  }

  #stream(name: string): SharedStream {
    let stream = this.#streams.get(name);
    if (!stream) {
      stream = { next: 0, current: 0, pending: new Map() };
      this.#streams.set(name, stream);
    }
    return stream;
  }

  #advance(name: string): void {
    const stream = this.#stream(name);
    for (const [position, { done }] of stream.pending) {
      if (!done) break;
      stream.pending.delete(position);
      stream.current = position;
      this.#telling = this.#telling.then(async () => {
        for (const member of this.alive) {
          await hop();
          const { changes } = done;
          if (member.dead) continue;
          if (changes) member.streams.get(name)?.announced(position, () => changes);
          else member.streams.get(name)?.skipTo(position);
        }
        done.heard();
      });
    }
  }

  #viewOf(members: readonly TestMember[]): View {
    return new View(
      this.view.number + 1,
      members.map(({ self }) => ({ id: self, roles: ROLES, address: self })),
    );
  }

  async #changeView(): Promise<void> {
    const next = this.#viewOf(this.alive);
    await this.#release(next);
    this.#activate(next);
  }

  async #release(next: View): Promise<void> {
    for (const member of this.alive) {
      const lost = (duty: Duty, key: string) =>
        member.owns(duty, key) && next.owner(duty, key) !== member.self;
      for (const { release } of member.handovers) await release?.(lost);
    }
  }

  #activate(next: View): void {
    this.view = next;
    for (const member of this.alive) for (const { take } of member.handovers) take?.();
  }
}

export type { TestMember };

/** `n` processes that know of each other. */
export async function testCluster(n: number): Promise<TestCluster> {
  const cluster = new TestCluster();
  for (let i = 0; i < n; i++) await cluster.join();
  return cluster;
}

function hop(): Promise<void> {
  return new Promise((there) => setTimeout(there, Math.random() * HOP));
}

function shutOut(): Error {
  return new MatrixError(503, 'M_UNKNOWN', 'This process was shut out');
}
