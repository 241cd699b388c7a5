/** What a worker says of itself. */
export interface Load {
  /** The share of its time in which its event loop is busy, from 0 to 1. */
  readonly busy: number;
  readonly connections: number;
  /** Whether rooms live there: what it does itself it need not ask for. */
  readonly isHome: boolean;
}

/** A process to which connections are given. */
export interface Placed {
  readonly load: Load;
  /** Connections that it was given lately, which may not show in its load yet. */
  readonly given: number;
}

/** Connections that are to go elsewhere with their next answer. */
export interface Move<P extends Placed> {
  readonly from: P;
  readonly count: number;
}

/** Who is so much busier than it should be sends connections away. */
const TOO_MUCH = 0.25;
/** Where that part of the limit is enough for all with fewer processes, fewer are used. */
const AT_EASE = 0.75;
/** The part of its connections that a process with too much to do sends away at once. */
const PART = 0.25;
/** What a connection is thought to cost at least, while little is known. */
const LEAST_COST = 0.0005;

/**
 * Which process a connection goes to. A process that has its code and its rooms at hand, and several things to do each
 * time it wakes, does each of them in half the time that many need who do a little each: so as few as can do it at ease
 * get all the connections, and the others stand by.
 */
export class Placement {
  readonly #fill: number;
  #turn = 0;

  /** @param fill how busy a process is before the next is given connections; 0: each in turn */
  constructor(fill: number) {
    this.#fill = fill;
  }

  /** @param processes in their order; `undefined` when there are none */
  choose<P extends Placed>(processes: readonly P[]): P | undefined {
    if (processes.length === 0) return undefined;
    if (this.#fill === 0) return processes[this.#turn++ % processes.length];
    const cost = Math.max(LEAST_COST, sum(processes, busyOf) / Math.max(1, sum(processes, connectionsOf)));
    const expected = (process: P) => process.load.busy + process.given * cost;
    const ordered = inOrder(processes);
    const atEase = ordered.find((process) => expected(process) < this.#fill);
    return atEase ?? ordered.reduce((least, each) => (expected(each) < expected(least) ? each : least));
  }

  /** What is to be moved, by what all have said: to be asked for once a second. */
  moves<P extends Placed>(processes: readonly P[]): Array<Move<P>> {
    if (this.#fill === 0) return [];
    const ordered = inOrder(processes);
    const total = sum(ordered, busyOf);
    const even = Math.max(this.#fill, total / ordered.length);
    const limit = Math.max(this.#fill, even) + TOO_MUCH;
    const isAnyAtEase = ordered.some(({ load }) => load.busy < this.#fill);
    const tooBusy = ordered.filter(({ load }) => load.busy > Math.min(limit, 0.95));
    if (tooBusy.length > 0)
      return isAnyAtEase
        ? tooBusy.map((from) => ({ from, count: partOf(from, 1 - even / from.load.busy) }))
        : [];
    const needed = Math.max(1, Math.ceil(total / (this.#fill * AT_EASE)));
    // With their next answers, which are spread over some time by themselves.
    return ordered
      .slice(needed)
      .filter(({ load }) => load.connections > 0)
      .map((from) => ({ from, count: from.load.connections }));
  }
}

function partOf({ load }: Placed, share: number): number {
  return Math.ceil(load.connections * Math.min(PART, share));
}

function inOrder<P extends Placed>(processes: readonly P[]): P[] {
  return processes.toSorted((a, b) => Number(b.load.isHome) - Number(a.load.isHome));
}

function sum<P extends Placed>(processes: readonly P[], what: (process: P) => number): number {
  return processes.reduce((total, process) => total + what(process), 0);
}

const busyOf = ({ load }: Placed) => load.busy;
const connectionsOf = ({ load }: Placed) => load.connections;
