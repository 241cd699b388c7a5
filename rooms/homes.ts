import { setTimeout as delay } from 'node:timers/promises';
import type { Cluster, Duty } from '@trellis/cluster/cluster.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Commits } from './commits.ts';
import { Lock } from './lock.ts';

/** Tasks that share a loan at the most, and how long it is kept, in milliseconds: others wait for the room too. */
const MAX_TASKS = 32;
const MAX_HOLD = 100;
/** How long a task waits for the room's home when processes die, in milliseconds. */
const PATIENCE = 30_000;
const RETRY_MS = 25;
/** Desks that are kept when nobody is there. */
const MAX_DESKS = 10_000;
/** How often a loan that cannot be returned is offered back: until the processes have agreed that its home is gone. */
const MAX_RETURNS = 200;
const RETURN_RETRY_MS = 250;

export interface HomesDeps {
  readonly cluster: Cluster;
  readonly commits: Commits;
  /** Loads the room, and tells the position up to which it is known here; `null` where there is no such room. */
  upTo(roomId: string): Promise<number | null>;
  /** Makes sure that what is known here of the room is what is known up to that position, or forgets it. */
  match(roomId: string, upTo: number | null | undefined): Promise<void>;
  /** Nobody here writes to the room from now on. */
  done(roomId: string): void;
}

interface Loan {
  readonly id: string;
  readonly since: number;
  tasks: number;
  /** The loan is over as far as this process goes: all that was done under it is committed and announced. */
  readonly over: PromiseWithResolvers<void>;
}

interface Lent {
  readonly to: string;
  readonly id: string;
  readonly returned: PromiseWithResolvers<number | null | undefined>;
}

/** Where those wait, in this process, who want to change a room. */
class Desk {
  readonly lock = new Lock();
  /** Set while a task runs, or a loan is about to be given. */
  running: PromiseWithResolvers<void> | undefined;
  loan: Loan | undefined;
  lent: Lent | undefined;
}

/** What a home answers who wants to borrow: the room may be another's by now. */
type Grant = { readonly moved: true } | { readonly upTo: number | null };

/**
 * Who may change a room: one task at a time in the whole installation. Each room has a home, the process that has the
 * duty `room` for it, and there its lock is. Other processes borrow the lock: the home lends it when it is their turn
 * and everything of its own is announced, and has it back when everything of theirs is.
 */
export class Homes {
  readonly #deps: HomesDeps;
  readonly #desks = new Map<string, Desk>();
  /** Who waits here for rooms to be lent, and which. */
  readonly #asked = new Map<PromiseWithResolvers<Grant>, string>();
  /** Loans of others' rooms that are not over. */
  readonly #loans = new Set<Loan>();
  #handover:
    | { lost: (duty: Duty, key: string) => boolean; readonly over: PromiseWithResolvers<void> }
    | undefined;
  /** Grows with each hand-over: what was granted before one is void. */
  #epoch = 0;
  #nextLoan = 0;
  #maxDesks = MAX_DESKS;

  constructor(deps: HomesDeps) {
    this.#deps = deps;
    const { cluster } = deps;
    if (!cluster.shared) return;
    const longRunning = { drained: false };
    cluster.serve(
      'room.borrow',
      (args: { by: string; loan: string }, roomId) => this.#lend(roomId, args),
      longRunning,
    );
    cluster.serve(
      'room.return',
      (args: { loan: string; upTo: number | null }, roomId) => this.#returned(roomId, args),
      longRunning,
    );
    cluster.onHandover({ release: (lost) => this.#release(lost), take: () => this.#take() });
  }

  /** Runs `task` alone on the room. */
  run<T>(roomId: string, task: () => Promise<T>): Promise<T> {
    const desk = this.#desk(roomId);
    const { shared } = this.#deps.cluster;
    return desk.lock.run(shared ? () => this.#inTurn(roomId, desk, task) : task);
  }

  /** Tasks of this process that want to change the room, the one that does included. */
  waiting(roomId: string): number {
    return this.#desks.get(roomId)?.lock.length ?? 0;
  }

  /** Whether a task of this process may be changing the room now. */
  isWriting(roomId: string): boolean {
    return this.#desks.get(roomId)?.running !== undefined;
  }

  async #inTurn<T>(roomId: string, desk: Desk, task: () => Promise<T>): Promise<T> {
    const until = Date.now() + PATIENCE;
    while (!this.#mayRun(roomId, desk)) {
      if (this.#isHeld(roomId)) await this.#handover!.over.promise;
      else if (!(await this.#borrow(roomId, desk))) await this.#wait(until);
    }
    const running = Promise.withResolvers<void>();
    desk.running = running;
    if (desk.loan) desk.loan.tasks++;
    try {
      return await task();
    } finally {
      this.#deps.done(roomId);
      desk.running = undefined;
      if (desk.loan && this.#isToBeReturned(desk, desk.loan)) this.#giveBack(roomId, desk);
      running.resolve();
    }
  }

  #mayRun(roomId: string, desk: Desk): boolean {
    if (this.#isHeld(roomId)) return false;
    return desk.loan !== undefined || this.#deps.cluster.owns('room', roomId);
  }

  /** While duties move nobody begins on a room of another, nor on one that goes to another. */
  #isHeld(roomId: string): boolean {
    if (!this.#handover) return false;
    return !this.#deps.cluster.owns('room', roomId) || this.#handover.lost('room', roomId);
  }

  async #wait(until: number): Promise<void> {
    if (Date.now() > until)
      throw new MatrixError(503, 'M_UNKNOWN', 'The room is out of reach: try again later');
    await delay(RETRY_MS);
  }

  /** Asks the home for the room's lock. Returns false when it is to be asked again. */
  async #borrow(roomId: string, desk: Desk): Promise<boolean> {
    const { cluster, match } = this.#deps;
    const epoch = this.#epoch;
    const id = `${cluster.self} ${++this.#nextLoan}`;
    let grant: Grant;
    try {
      grant = await cluster.call<Grant>('room', roomId, 'room.borrow', { by: cluster.self, loan: id });
    } catch (error) {
      if (!isUnavailable(error)) throw error;
      return false;
    }
    if ('moved' in grant) return false;
    const loan = { id, since: Date.now(), tasks: 0, over: Promise.withResolvers<void>() };
    if (epoch !== this.#epoch) {
      void this.#tellReturned(roomId, loan, grant.upTo);
      return true;
    }
    desk.loan = loan;
    this.#loans.add(loan);
    try {
      await match(roomId, grant.upTo);
    } catch (error) {
      this.#giveBack(roomId, desk);
      throw error;
    }
    return true;
  }

  #isToBeReturned({ lock }: Desk, loan: Loan): boolean {
    const isAlone = lock.length <= 1;
    return (
      isAlone || this.#handover !== undefined || loan.tasks >= MAX_TASKS || Date.now() - loan.since > MAX_HOLD
    );
  }

  /** Returns the loan once all that was done is committed and announced. The next task here asks for a new one. */
  #giveBack(roomId: string, desk: Desk): void {
    const loan = desk.loan!;
    desk.loan = undefined;
    const { commits, upTo } = this.#deps;
    void commits
      .idle(roomId)
      .then(() => upTo(roomId))
      // Not known here: nor is it there then.
      .catch(() => undefined)
      .then((position) => {
        this.#loans.delete(loan);
        loan.over.resolve();
        return this.#tellReturned(roomId, loan, position ?? null);
      });
  }

  async #tellReturned(roomId: string, { id }: Loan, upTo: number | null): Promise<void> {
    for (let tries = 0; tries < MAX_RETURNS; tries++) {
      try {
        await this.#deps.cluster.call('room', roomId, 'room.return', { loan: id, upTo });
        return;
      } catch {
        await delay(RETURN_RETRY_MS, undefined, { ref: false });
      }
    }
  }

  async #lend(roomId: string, { by, loan }: { by: string; loan: string }): Promise<Grant> {
    // It has become the room's home while it asked for it: the task that did is what would be waited for.
    if (by === this.#deps.cluster.self) return { moved: true };
    const desk = this.#desk(roomId);
    const answer = Promise.withResolvers<Grant>();
    this.#asked.set(answer, roomId);
    desk.lock
      .run(async () => {
        const upTo = await this.#readyToLend(roomId, by);
        if (!this.#asked.delete(answer)) return;
        if (upTo === undefined) return answer.resolve({ moved: true });
        desk.lent = { to: by, id: loan, returned: Promise.withResolvers() };
        answer.resolve({ upTo });
        await this.#deps.match(roomId, await desk.lent.returned.promise);
      })
      .catch(answer.reject)
      .finally(() => {
        this.#asked.delete(answer);
        desk.lent = undefined;
      });
    return answer.promise;
  }

  /** The position that the room is at, once nothing of it is under way here; `undefined` when it is not to be lent. */
  async #readyToLend(roomId: string, by: string): Promise<number | null | undefined> {
    const { cluster, commits, upTo } = this.#deps;
    for (;;) {
      // Not kept waiting here: this process may be about to go for good.
      if (this.#isHeld(roomId) || !cluster.owns('room', roomId) || !cluster.isMember(by)) return undefined;
      const epoch = this.#epoch;
      await commits.idle(roomId);
      const position = await upTo(roomId);
      if (epoch === this.#epoch) return position;
    }
  }

  #returned(roomId: string, { loan, upTo }: { loan: string; upTo: number | null }): null {
    const lent = this.#desks.get(roomId)?.lent;
    if (lent?.id === loan) lent.returned.resolve(upTo);
    return null;
  }

  /** Ends what runs on rooms that go to others, and on all rooms of others: those may go from one to another. */
  async #release(lost: (duty: Duty, key: string) => boolean): Promise<void> {
    this.#epoch++;
    if (this.#handover) this.#handover.lost = lost;
    else this.#handover = { lost, over: Promise.withResolvers() };
    const running: Promise<void>[] = [];
    for (const [roomId, desk] of this.#desks) {
      if (desk.running && (desk.loan || lost('room', roomId))) running.push(desk.running.promise);
      else if (desk.loan) this.#giveBack(roomId, desk);
    }
    await Promise.all(running);
    await Promise.all([...this.#loans].map(({ over }) => over.promise));
    const { commits } = this.#deps;
    await Promise.all(
      [...commits.rooms()].filter((roomId) => lost('room', roomId)).map((id) => commits.idle(id)),
    );
  }

  #take(): void {
    const { cluster } = this.#deps;
    this.#handover?.over.resolve();
    this.#handover = undefined;
    // Not once it is their turn: what comes before may be waiting for the new home, and that for this answer.
    for (const [answer, roomId] of this.#asked)
      if (!cluster.owns('room', roomId)) {
        this.#asked.delete(answer);
        answer.resolve({ moved: true });
      }
    // Who had borrowed a room has ended it before, unless it died.
    for (const [roomId, { lent }] of this.#desks)
      if (lent && !(cluster.owns('room', roomId) && cluster.isMember(lent.to)))
        lent.returned.resolve(undefined);
  }

  #desk(roomId: string): Desk {
    let desk = this.#desks.get(roomId);
    if (!desk) {
      if (this.#desks.size >= this.#maxDesks) this.#tidy();
      desk = new Desk();
      this.#desks.set(roomId, desk);
    }
    return desk;
  }

  /** Drops the desks at which nobody is. */
  #tidy(): void {
    for (const [roomId, { lock }] of this.#desks) if (!lock.busy) this.#desks.delete(roomId);
    this.#maxDesks = Math.max(MAX_DESKS, this.#desks.size * 2);
  }
}

function isUnavailable(error: unknown): boolean {
  return error instanceof MatrixError && error.status === 503;
}
