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
  readonly #slots = new Map<Role, readonly string[]>();

  constructor(number: number, members: Iterable<Member>) {
    this.number = number;
    this.members = new Map([...members].map((member) => [member.id, member]));
  }

  /** The process that has a duty. Where none has the role that it needs, all share it. */
  owner(duty: Duty, key: string): string {
    const role = DUTIES[duty];
    let slots = this.#slots.get(role);
    if (!slots) {
      slots = assign([...this.members.values()], role);
      this.#slots.set(role, slots);
    }
    return slots[slotOf(duty, key)]!;
  }
}

/** Highest random weight: a member that comes or goes moves only the slots that it gains or had. */
function assign(members: readonly Member[], role: Role): string[] {
  const able = members.filter(({ roles }) => roles.includes(role));
  const candidates = (able.length > 0 ? able : members).map(({ id }) => id);
  if (candidates.length === 0) throw new Error('a view without members');
  return Array.from({ length: SLOTS }, (_, slot) => {
    let best = candidates[0]!;
    let highest = -1;
    for (const id of candidates) {
      const weight = createHash('sha256').update(`${slot} ${id}`).digest().readUInt32BE(0);
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
