import type { FastifyBaseLogger } from 'fastify';
import type { Bus } from './bus.ts';
import { Coordinator } from './coordinator.ts';
import type { ToCoordinator, ToMember } from './messages.ts';
import { LEASE_MS, type Registry } from './registry.ts';

/** How often the lease is renewed, in milliseconds. */
const RENEW_MS = LEASE_MS / 4;
/** How often members look who has the lease, in milliseconds: while they have a coordinator, and while they have none. */
const LOOK_MS = 1_000;
const SEEK_MS = 150;
/** What the clocks of two machines may differ in the course of a lease, and a message may take, in milliseconds. */
const MARGIN_MS = 250;
/** How long a coordinator that goes waits for writes under way, in milliseconds. */
const RESIGN_MS = 5_000;

export interface LeadershipDeps {
  readonly self: string;
  readonly bus: Bus;
  readonly registry: Registry;
  readonly processesPerHome: number;
  readonly log: Pick<FastifyBaseLogger, 'info' | 'warn' | 'error'>;
  starts(): Promise<ReadonlyMap<string, number>>;
  post(to: string | readonly string[], term: number, message: ToMember): void;
  /** The term that this process follows. */
  joined(): number;
  join(holder: string, term: number): void;
  /** The coordinator is the one that was followed before there was doubt. */
  found(): void;
  /** This process is no member any more. */
  shutOut(): void;
}

/** Finds the coordinator, and becomes it when there is none. */
export class Leadership {
  readonly #deps: LeadershipDeps;
  #coordinator: string | undefined;
  #leading: { readonly term: number; coordinator: Coordinator | undefined; until: number } | undefined;
  #timer: NodeJS.Timeout | undefined;
  #renewal: NodeJS.Timeout | undefined;
  readonly #down = new Set<string>();
  #looking = false;
  #resigned = false;
  #stopped = false;

  constructor(deps: LeadershipDeps) {
    this.#deps = deps;
  }

  /** The coordinator that this process follows. */
  get coordinator(): string | undefined {
    return this.#coordinator;
  }

  start(): void {
    this.#look();
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    clearInterval(this.#renewal);
    this.#leading?.coordinator?.stop();
  }

  follow(coordinator: string, term: number): void {
    this.#coordinator = coordinator;
    if (this.#leading && this.#leading.term < term) this.#stepDown();
  }

  /** The coordinator may be another one now. */
  seek(): void {
    if (!this.#leading || this.#resigned) this.#coordinator = undefined;
    this.#schedule(0);
  }

  handle(from: string, term: number, message: ToCoordinator): void {
    if (this.#leading?.term === term) this.#leading.coordinator?.handle(from, message);
  }

  down(peer: string): void {
    this.#down.add(peer);
    this.#leading?.coordinator?.down(peer);
    if (peer === this.#coordinator) this.seek();
  }

  /** Lets another become coordinator, with nothing left to do for this one. */
  async resign(): Promise<void> {
    this.#resigned = true;
    const leading = this.#leading;
    if (!leading) return;
    await leading.coordinator?.resign(RESIGN_MS);
    this.#stepDown();
    // Its row would be waited for.
    await this.#deps.registry.remove(this.#deps.self).catch(() => {});
    await this.#deps.registry.giveUpLease(this.#deps.self, leading.term).catch(() => {});
  }

  #schedule(ms: number): void {
    clearTimeout(this.#timer);
    if (!this.#stopped) this.#timer = setTimeout(() => this.#look(), ms).unref();
  }

  async #look(): Promise<void> {
    if (this.#looking) return;
    this.#looking = true;
    try {
      await this.#find();
    } catch (err) {
      this.#deps.log.warn({ err }, 'the database does not say who coordinates the processes');
    } finally {
      this.#looking = false;
      this.#schedule(this.#coordinator === undefined ? SEEK_MS : LOOK_MS);
    }
  }

  async #find(): Promise<void> {
    const { registry, self, bus, joined, join, found, shutOut } = this.#deps;
    const asked = performance.now();
    const { term, holder, expired, present } = await registry.lease(self);
    if (this.#stopped || this.#resigned) return;
    if (!present) return shutOut();
    if (expired) {
      const won = await registry.takeLease(self);
      if (won !== undefined) await this.#lead(won, asked, holder);
      return;
    }
    if (term === joined()) {
      if (this.#coordinator === holder) return;
      this.#coordinator = holder;
      found();
      return;
    }
    if (holder !== self) {
      const member = (await registry.members()).find(({ id }) => id === holder);
      if (!member) return;
      bus.connect(member);
    }
    join(holder, term);
  }

  /**
   * @param asked when the lease was asked for, by this process's clock: it holds from there
   * @param lastHolder who had it before
   */
  async #lead(term: number, asked: number, lastHolder: string): Promise<void> {
    const { self, bus, registry, processesPerHome, log, starts, post, join } = this.#deps;
    this.#stepDown();
    log.info({ term, member: self }, 'this process coordinates the others');
    const leading = {
      term,
      until: asked + LEASE_MS - MARGIN_MS,
      coordinator: undefined as Coordinator | undefined,
    };
    this.#leading = leading;
    this.#renewal = setInterval(() => void this.#renew(), RENEW_MS).unref();
    await registry.beginTerm(term);
    const coordinator = new Coordinator({
      self,
      term,
      registry,
      processesPerHome,
      log,
      starts: await starts(),
      send: (to, message) => post(to, term, message),
      handedOver: bus.handedOver && ((to, then) => bus.handedOver!(to, then)),
      connect: (member) => bus.connect(member),
      disconnect: (member) => bus.disconnect(member),
      isDown: (member) => this.#down.has(member),
      valid: () => performance.now() < leading.until,
    });
    if (this.#leading !== leading) return;
    await coordinator.start(lastHolder);
    leading.coordinator = coordinator;
    join(self, term);
  }

  async #renew(): Promise<void> {
    const { registry, self, log } = this.#deps;
    const leading = this.#leading;
    if (!leading) return;
    const asked = performance.now();
    try {
      if (await registry.renewLease(self, leading.term)) {
        leading.until = Math.max(leading.until, asked + LEASE_MS - MARGIN_MS);
        leading.coordinator?.renewed();
        return;
      }
    } catch (err) {
      log.warn({ err }, 'the lease of the coordinator could not be renewed');
      if (performance.now() < leading.until) return;
    }
    if (this.#leading !== leading) return;
    log.warn({ term: leading.term }, 'this process does not coordinate the others any more');
    this.#stepDown();
    this.seek();
  }

  #stepDown(): void {
    clearInterval(this.#renewal);
    this.#leading?.coordinator?.stop();
    this.#leading = undefined;
    if (this.#coordinator === this.#deps.self) this.#coordinator = undefined;
  }
}
