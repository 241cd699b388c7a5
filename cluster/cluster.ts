/**
 * What a process knows of the others that serve the same installation. Everything above this folder sees only these
 * interfaces; a process that is alone gets `alone`, where all of it happens on the spot.
 */
import type { Sequencer } from '@trellis/storage/streams.ts';

/** What can be sent to another process. */
export type Json =
  | string
  | number
  | boolean
  | null
  | readonly Json[]
  | { readonly [key: string]: Json | undefined };

/** Parts of the work that a process may be given; all of them when nothing is said. */
export const ROLES = ['client', 'sync', 'federation-in', 'federation-out', 'events', 'jobs'] as const;
export type Role = (typeof ROLES)[number];

/**
 * Work of which each piece (a key) is done by one process at a time, and by processes of which role. Who does what
 * follows from the live processes alone (rendezvous hashing), so that nothing has to be configured or kept.
 */
export const DUTIES = {
  /** Key: room id. Where a room's events are appended, and who types there. */
  room: 'events',
  /** Key: user id. Presence, and what belongs to a connection of a user. */
  user: 'events',
  /** Key: server name. The queue of what goes to another server. */
  destination: 'federation-out',
  /** Key: id of an application service. */
  appservice: 'federation-out',
  /** Key: user id. The pushers of a user. */
  pusher: 'jobs',
  /** Key: the name of a task of which there is one in the whole installation. */
  task: 'jobs',
  /**
   * Requests that come to a process which has not the role for them; those of the role's processes are answered on the
   * spot. Key: who asks, so that the same process is asked again.
   */
  'client-request': 'client',
  'sync-request': 'sync',
  'federation-request': 'federation-in',
} as const satisfies Record<string, Role>;
export type Duty = keyof typeof DUTIES;

export interface Handover {
  /**
   * Other processes came or went, and `lost` is no longer for this one: what is under way for it is to be ended, or
   * stored, before another takes over. Nobody does that work while this is awaited, so it is to be quick (milliseconds;
   * after 30 s the process is shut out).
   */
  release?(lost: (duty: Duty, key: string) => boolean): Promise<void> | void;
  /** From now on `owns` answers anew: what has been gained is to be taken up, from what the database says. */
  take?(): void;
}

export type CallHandler = (args: never, key: string) => Promise<Json | undefined> | Json | undefined;

export interface CallOptions {
  /** Whether a hand-over waits for calls that are under way (it does when not said): not for what may take long. */
  readonly drained?: boolean;
}

export interface Cluster {
  /** This process among all; another one after each start. */
  readonly self: string;
  /** Whether other processes may be there. */
  readonly shared: boolean;
  /** For `Stream`; `undefined` where the process is alone. */
  readonly sequencer: Sequencer | undefined;

  /**
   * Tells all processes, this one too, and resolves when each has heard, or will have before it begins anything that
   * comes to it from then on (`abreast`). All hear everything in one order, that of the
   * streams' changes included. Who dies before it has told leaves a gap: see `onGap`.
   */
  announce(topic: string, payload: Json): Promise<void>;
  /** One handler a topic. It must not wait and must not throw. */
  onAnnounce(topic: string, handler: (payload: never) => void): void;
  /**
   * Announcements may have been missed, as a process died on the way: whatever in memory was kept right by
   * announcements is to be forgotten and read again. Called before the streams' own gaps.
   */
  onGap(handler: () => void): void;
  /**
   * Something may be in the database that nobody was told of, as the connection was lost while it was being stored: has
   * all processes forget as after a gap.
   */
  doubt(): Promise<void>;

  /**
   * Whoever comes from outside may have been told by another process that something is done: what comes is begun here
   * once this process knows of all that was done before it came.
   */
  abreast(then: () => void): void;
  /**
   * Nobody from outside has a connection with this process: it need not be woken for each thing that it is told, but for
   * several at a time, until something is to be begun (`abreast`).
   */
  rest(): void;

  /** The process that has a duty. */
  owner(duty: Duty, key: string): string;
  owns(duty: Duty, key: string): boolean;
  onHandover(handover: Handover): void;
  /** Whether that process is one of those that share the duties, by what `owner` goes by. */
  isMember(process: string): boolean;

  /**
   * Has the owner of a duty do something; here, without a detour, when that is this process. A `MatrixError` comes back
   * as one. When the owner changes before it has begun, the next one is asked. When it dies meanwhile: M_UNKNOWN with
   * status 503, and it is not known whether it was done.
   */
  call<T extends Json | undefined>(duty: Duty, key: string, method: string, args: Json): Promise<T>;
  /** One handler a method; to be there before the process joins the others. */
  serve(method: string, handler: CallHandler, options?: CallOptions): void;
}

/** The only process: nobody to tell, every duty is its own. */
export function alone(): Cluster {
  const topics = new Map<string, (payload: never) => void>();
  const gapHandlers: Array<() => void> = [];
  const methods = new Map<string, CallHandler>();
  return {
    self: 'alone',
    shared: false,
    sequencer: undefined,
    announce: async (topic, payload) => topics.get(topic)?.(payload as never),
    onAnnounce: (topic, handler) => void topics.set(topic, handler),
    onGap: (handler) => void gapHandlers.push(handler),
    doubt: async () => {
      for (const handler of gapHandlers) handler();
    },
    abreast: (then) => then(),
    rest: () => {},
    owner: () => 'alone',
    owns: () => true,
    onHandover: () => {},
    isMember: (process) => process === 'alone',
    call: async (_duty, key, method, args) => {
      const handler = methods.get(method);
      if (!handler) throw new Error(`nobody serves ${method}`);
      return (await handler(args as never, key)) as never;
    },
    serve: (method, handler) => void methods.set(method, handler),
  };
}
