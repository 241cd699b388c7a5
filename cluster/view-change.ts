import type { FastifyBaseLogger } from 'fastify';
import type { ToMember, ViewJson } from './messages.ts';
import type { Member } from './rendezvous.ts';

/** How long members may take to give up what moves, before they are let go on and asked again, in milliseconds. */
const TRY_MS = 3_000;
const PAUSE_MS = 200;
/** Who has not given up its duties after so long is shut out, in milliseconds. */
const PATIENCE_MS = 30_000;
/** Room for views in one term. */
const VIEWS_IN_TERM = 2 ** 20;

export interface ViewChangeDeps {
  readonly term: number;
  homes(members: readonly Member[]): string[];
  readonly log: Pick<FastifyBaseLogger, 'info' | 'warn'>;
  send(to: string | readonly string[], message: ToMember): void;
  /** All who may have duties. */
  joined(): string[];
  activate(view: ViewJson): void;
  /** These have the duties: the view is the last that was activated, if all have taken it already. */
  taken(members: readonly Member[]): void;
  shutOut(member: string): void;
}

function sameMembers(a: readonly Member[], b: readonly Member[]): boolean {
  return a.length === b.length && a.every(({ id }) => b.some((other) => other.id === id));
}

/**
 * Moves duties from one set of members to another: all give up what they lose, and only when all have, anybody takes
 * what they gain. One change at a time; what is wanted meanwhile comes next.
 */
export class ViewChange {
  readonly #deps: ViewChangeDeps;
  #number: number;
  #wanted: readonly Member[] | undefined;
  #active: readonly Member[] = [];
  #under:
    | {
        readonly view: ViewJson;
        readonly waiting: Set<string>;
        readonly since: number;
        timer: NodeJS.Timeout;
      }
    | undefined;
  #since: number | undefined;
  #pause: NodeJS.Timeout | undefined;
  #stopped = false;

  constructor(deps: ViewChangeDeps) {
    this.#deps = deps;
    this.#number = deps.term * VIEWS_IN_TERM;
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#under?.timer);
    clearTimeout(this.#pause);
  }

  /** @param ready those who are to share the duties */
  want(ready: readonly Member[]): void {
    if (!this.#wanted && sameMembers(ready, this.#under?.view.members ?? this.#active)) {
      this.#check();
      if (!this.#under && !this.#wanted) this.#deps.taken(this.#active);
      return;
    }
    this.#wanted = ready;
    if (!this.#under) {
      this.#begin();
      return;
    }
    this.#check();
  }

  #check(): void {
    if (!this.#under) return;
    // Who was waited for may be gone; who is wanted may be others.
    const joined = new Set(this.#deps.joined());
    for (const id of this.#under.waiting) if (!joined.has(id)) this.#under.waiting.delete(id);
    const still = this.#under.view.members.every(({ id }) => joined.has(id));
    if (!still) this.#cancel();
    else if (this.#under.waiting.size === 0) this.#finish();
  }

  released(member: string, number: number): void {
    if (this.#under?.view.number !== number) return;
    this.#under.waiting.delete(member);
    if (this.#under.waiting.size === 0) this.#finish();
  }

  #begin(): void {
    clearTimeout(this.#pause);
    if (!this.#wanted || this.#stopped) return;
    // Nobody there to take anything: whoever comes first makes the next view.
    if (this.#wanted.length === 0) {
      this.#active = [];
      this.#deps.taken([]);
      return;
    }
    const members = this.#wanted;
    const view = { number: ++this.#number, members, homes: this.#deps.homes(members) };
    this.#wanted = undefined;
    this.#since ??= Date.now();
    const joined = this.#deps.joined();
    const timer = setTimeout(() => this.#late(), TRY_MS);
    this.#under = { view, waiting: new Set(joined), since: Date.now(), timer };
    this.#deps.send(joined, { t: 'prepare', view });
  }

  #finish(): void {
    const { view, timer } = this.#under!;
    clearTimeout(timer);
    this.#under = undefined;
    this.#since = undefined;
    this.#deps.log.info(
      { view: view.number, members: view.members.map(({ id }) => id) },
      'duties are shared',
    );
    this.#active = view.members;
    this.#deps.activate(view);
    if (this.#wanted) this.#begin();
  }

  /** Some work may be waiting for what another holds back: all go on, and it is tried again. */
  #late(): void {
    const { waiting } = this.#under!;
    this.#deps.log.warn({ waiting: [...waiting] }, 'duties are not given up yet');
    if (Date.now() - this.#since! > PATIENCE_MS) for (const id of waiting) this.#deps.shutOut(id);
    this.#cancel();
  }

  #cancel(): void {
    const { view, timer } = this.#under!;
    clearTimeout(timer);
    this.#under = undefined;
    this.#deps.send(this.#deps.joined(), { t: 'cancel' });
    const joined = new Set(this.#deps.joined());
    this.#wanted ??= view.members.filter(({ id }) => joined.has(id));
    this.#pause = setTimeout(() => this.#begin(), PAUSE_MS);
  }
}
