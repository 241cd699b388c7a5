import type { Random } from './random.ts';

interface Timed {
  /** Seconds from the start. */
  readonly at: number;
  readonly until: number;
}

/** What goes wrong, and when. Servers are numbers, pairs are [from, to]: what `from` asks of `to`. */
export type Fault = Timed &
  (
    | { readonly kind: 'kill' | 'stop' | 'pause'; readonly server: number }
    | { readonly kind: 'refuse' | 'swallow'; readonly pairs: ReadonlyArray<readonly [number, number]> }
    | {
        readonly kind: 'delay';
        readonly pairs: ReadonlyArray<readonly [number, number]>;
        readonly ms: number;
      }
  );

export interface ScheduleOptions {
  readonly servers: number;
  readonly seconds: number;
}

const LONGEST_FAULT = 25;
/** Also the shortest schedule has these. */
const FIRST = ['halves', 'kill'] as const;

/** Faults by chance over the whole time. At most half of the servers are down at a time. */
export function makeSchedule(random: Random, { servers, seconds }: ScheduleOptions): Fault[] {
  const faults: Fault[] = [];
  const all = Array.from({ length: servers }, (_, server) => server);
  const downUntil = all.map(() => 0);
  const longest = Math.min(LONGEST_FAULT, seconds / 3);
  const everySo = Math.max(1, Math.min(seconds / 10, 40 / servers));
  for (let at = everySo; at < seconds - 1; at += random.between(0.4, 1.6) * everySo) {
    const time = { at, until: Math.min(seconds, at + random.between(1, longest)) };
    const kind =
      FIRST[faults.length] ??
      random.weighted({ kill: 3, stop: 1, pause: 2, halves: 3, alone: 3, oneWay: 2, delay: 2 });
    if (kind === 'kill' || kind === 'stop' || kind === 'pause') {
      const server = random.pick(all);
      const down = downUntil.filter((until) => until > at).length;
      if (downUntil[server]! > at || down >= servers / 2) continue;
      // A server that has just come back stays for a moment.
      downUntil[server] = time.until + 2;
      faults.push({ ...time, kind, server });
    } else if (kind === 'delay') {
      const pairs = random.some(allPairs(all), random.whole(1, servers));
      faults.push({ ...time, kind, pairs, ms: random.whole(50, 1500) });
    } else {
      faults.push({ ...time, kind: random.pick(['refuse', 'swallow']), pairs: cut(random, all, kind) });
    }
  }
  return faults;
}

function cut(random: Random, all: readonly number[], how: 'halves' | 'alone' | 'oneWay') {
  if (how === 'oneWay') return random.some(allPairs(all), random.whole(1, all.length));
  const one = new Set(random.some(all, how === 'alone' ? 1 : Math.floor(all.length / 2)));
  return allPairs(all).filter(([from, to]) => one.has(from) !== one.has(to));
}

function allPairs(all: readonly number[]): Array<readonly [number, number]> {
  return all.flatMap((from) => all.filter((to) => to !== from).map((to) => [from, to] as const));
}

export function describeFault(fault: Fault): string {
  const what = 'server' in fault ? `server ${fault.server}` : `${fault.pairs.length} pairs`;
  return `${fault.at.toFixed(1)}-${fault.until.toFixed(1)} s ${fault.kind} ${what}`;
}
