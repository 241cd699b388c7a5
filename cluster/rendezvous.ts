import { createHash } from 'node:crypto';
import { DUTIES, type Duty, type Role } from './cluster.ts';

/** Keys are shared out in so many parts: ownership is a look at a table. */
const SLOTS = 1024;

export interface Member {
  readonly id: string;
  readonly roles: readonly Role[];
  /** Where its bus is reached. */
  readonly address: string;
}

/** Who is there, and so who does what: the same in every process that knows the same members. */
export class View {
  /** Grows with each view. */
  readonly number: number;
  readonly members: ReadonlyMap<string, Member>;
  readonly #homes: readonly string[];
  readonly #slots = new Map<string, readonly string[]>();

  /** @param homes those that have the duty `room`; all with its role when none are given */
  constructor(number: number, members: Iterable<Member>, homes: readonly string[] = []) {
    this.number = number;
    this.members = new Map([...members].map((member) => [member.id, member]));
    this.#homes = homes;
  }

  /** The process that has a duty. Where none has the role that it needs, all share it. */
  owner(duty: Duty, key: string): string {
    const isAtHome = duty === 'room' && this.#homes.length > 0;
    const who = isAtHome ? duty : DUTIES[duty];
    let slots = this.#slots.get(who);
    if (!slots) {
      slots = assign(isAtHome ? this.#homes : able([...this.members.values()], DUTIES[duty]));
      this.#slots.set(who, slots);
    }
    return slots[slotOf(duty, key)]!;
  }
}

/**
 * Where rooms are to live: in one of so many processes, the coordinator first, as what is appended where positions are
 * given needs to ask nobody. Where the configuration says which processes have the role `events`, in all of these.
 */
export function homesOf(members: readonly Member[], coordinator: string, processesPerHome: number): string[] {
  const candidates = able(members, 'events');
  if (candidates.length < members.length || !candidates.includes(coordinator)) return candidates;
  const others = candidates.filter((id) => id !== coordinator);
  others.sort((a, b) => weightOf('home', b) - weightOf('home', a) || (a < b ? -1 : 1));
  return [coordinator, ...others].slice(0, Math.ceil(members.length / processesPerHome));
}

function able(members: readonly Member[], role: Role): string[] {
  const having = members.filter(({ roles }) => roles.includes(role));
  return (having.length > 0 ? having : members).map(({ id }) => id);
}

function weightOf(what: string | number, id: string): number {
  return createHash('sha256').update(`${what} ${id}`).digest().readUInt32BE(0);
}

/** Highest random weight: a member that comes or goes moves only the slots that it gains or had. */
function assign(candidates: readonly string[]): string[] {
  if (candidates.length === 0) throw new Error('a view without members');
  return Array.from({ length: SLOTS }, (_, slot) => {
    let best = candidates[0]!;
    let highest = -1;
    for (const id of candidates) {
      const weight = weightOf(slot, id);
      if (weight > highest || (weight === highest && id < best)) {
        best = id;
        highest = weight;
      }
    }
    return best;
  });
}

/** FNV-1a over the key, begun with the duty. */
function slotOf(duty: Duty, key: string): number {
  let hash = 0x811c9dc5;
  for (const text of [duty, key])
    for (let i = 0; i < text.length; i++) {
      hash ^= text.charCodeAt(i);
      hash = Math.imul(hash, 0x01000193);
    }
  // The low bits of FNV alone are not well mixed.
  return ((hash ^ (hash >>> 15)) >>> 0) % SLOTS;
}
