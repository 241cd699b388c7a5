/** How the processes of one installation speak to each other: two transports, sockets of one machine and Redis. */
import type { Json } from './cluster.ts';

export interface Peer {
  readonly id: string;
  readonly address: string;
}

/**
 * - `died`: its connections are closed, or nobody listens any more: it is certainly dead
 * - `left`: it closed its bus in good order
 * - `silent`: nothing was heard of it for too long, or it took nothing in
 * - `gave-us-up`: it lives, and holds this process for dead or has disconnected it
 * - `refused`: one of both does not know the secret, or who answers there is another one
 */
export type DownReason = 'died' | 'left' | 'silent' | 'gave-us-up' | 'refused';

export interface BusEvents {
  /** In the order in which `from` sent them, each once. Must not throw. */
  message(from: string, message: Json): void;
  /** Nothing more comes from that peer and nothing more reaches it. Called once, the id is not to be used again. */
  down(peer: string, why: DownReason): void;
}

export interface Bus {
  readonly self: string;
  /** Where others reach this process, from `start` on: to be put into the table of members. */
  readonly address: string;
  start(events: BusEvents): Promise<void>;
  /**
   * Begins to watch over a peer. Who speaks to this process is connected by that alone. Without effect where it is
   * connected already, or was `down` or disconnected.
   */
  connect(peer: Peer): void;
  /** Forgets about a peer, without `down` here; there it is `down`. */
  disconnect(peer: string): void;
  /**
   * Ordered, each once, as long as both live; to several it is encoded once. What is sent in one turn of the event loop
   * goes out in one write. Whoever is not connected (this process too) is passed over.
   */
  send(to: string | readonly string[], message: Json): void;
  /**
   * Calls back, in the order of the calls, once all that was sent to these has gone to where each reads it before
   * whatever comes to it from anywhere else from then on, as far as it begins that in a later phase of its event loop
   * (`setImmediate`). Those that are down are not waited for. Not there on a bus that knows no such place.
   */
  handedOver?(to: readonly string[], then: () => void): void;
  /** What was sent before still goes out, where the others take it in within a second. */
  close(): Promise<void>;
}

export interface BusOptions {
  /** The name of this process, another one at each start. */
  readonly self: string;
  /** Known to the processes of the installation only. */
  readonly secret: string | Uint8Array;
  /** After so many milliseconds without a sign of life a peer is `down`. */
  readonly silence?: number;
  /** More bytes than these are not kept for a peer that does not take them in: it is `down`. */
  readonly maxQueued?: number;
  readonly log?: BusLog;
}

export interface BusLog {
  warn(fields: object, text: string): void;
}

/** A single message is not longer, in UTF-8. */
export const MAX_MESSAGE = 64 * 1024 * 1024;
export const DEFAULT_MAX_QUEUED = 256 * 1024 * 1024;

/** Ids that were `down` or disconnected: as many as are remembered. */
const MAX_GONE = 10_000;

/** Ids that are not to be spoken to again. */
export class Gone {
  readonly #ids = new Set<string>();

  add(id: string): void {
    this.#ids.add(id);
    if (this.#ids.size <= MAX_GONE) return;
    for (const oldest of this.#ids) {
      this.#ids.delete(oldest);
      break;
    }
  }

  has(id: string): boolean {
    return this.#ids.has(id);
  }
}

export function encode(message: Json): string {
  const text = JSON.stringify(message);
  if (text.length > MAX_MESSAGE / 3 && Buffer.byteLength(text) > MAX_MESSAGE)
    throw new RangeError(`a message of ${text.length} characters`);
  return text;
}

/** Stops where the peer is done with meanwhile. A handler that throws is an error of the process, not of the peer. */
export function deliverAll(
  peer: { readonly id: string; readonly over: boolean },
  messages: readonly Json[],
  events: BusEvents,
): void {
  for (const message of messages) {
    if (peer.over) return;
    try {
      events.message(peer.id, message);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }
}
