import { setTimeout as delay } from 'node:timers/promises';
import type { Json } from '@trellis/cluster/cluster.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Pdu } from '@trellis/protocol/event.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { type RoomVersion, roomVersion } from '@trellis/protocol/room-versions.ts';
import { checkIncoming, type Incoming } from './incoming-event.ts';
import type { RemoteEventsParts } from './remote-events.ts';

/** By event id; the error says why the event was not taken. */
export type PduResults = Record<string, { error?: string }>;

/** What one process hands in at another. */
export interface HandedIn {
  readonly origin: string;
  /** With the id where the event is checked already; the PDU is then as it goes on. */
  readonly pdus: ReadonlyArray<{ readonly pdu: Pdu; readonly eventId?: string }>;
  /** For how long it may be worked on before the answer, in milliseconds. */
  readonly patience: number;
}

const MAX_VERSIONS = 20_000;
/** The process whose the room is may just have died: others find out and take its place within seconds. */
const MAX_TRIES = 10;
const RETRY_MS = 1_000;

/** PDUs that came to this process, of rooms that are another's: they are checked here, where there is time. */
export class ForeignPdus {
  readonly #parts: RemoteEventsParts;
  readonly #patience: number;
  /** They never change. */
  readonly #versions = new RecentlyUsed<string, RoomVersion>(MAX_VERSIONS);

  constructor(parts: RemoteEventsParts, patience: number) {
    this.#parts = parts;
    this.#patience = patience;
  }

  /** Without the room itself, which need not be in memory here; `undefined` for one that is not known here. */
  async versionOf(roomId: string): Promise<RoomVersion | undefined> {
    const { rooms } = this.#parts;
    const known = rooms.peek(roomId)?.version ?? this.#versions.get(roomId);
    if (known) return known;
    const [row] = await rooms.parts.db.query<{ version: string }>(
      { name: 'room-version', text: 'SELECT version FROM rooms WHERE room_id = $1' },
      [roomId],
    );
    const version = row && roomVersion(row.version);
    if (version) this.#versions.set(roomId, version);
    return version;
  }

  /** Resolves when the PDUs are stored, or safely put aside. */
  async handIn(origin: string, roomId: string, pdus: readonly Pdu[]): Promise<PduResults> {
    const begun = performance.now();
    const checked = await this.#check(roomId, pdus);
    const handed: Array<HandedIn['pdus'][number]> = [];
    const results: PduResults = {};
    for (const [i, pdu] of pdus.entries()) {
      const { event, eventId, error } = checked?.[i] ?? {};
      if (event) handed.push({ pdu: event.pdu, eventId: event.eventId });
      else if (!checked) handed.push({ pdu });
      else if (eventId !== undefined) results[eventId] = { error: error ?? 'the event is not valid' };
    }
    if (handed.length === 0) return results;
    const patience = Math.max(this.#patience - (performance.now() - begun), 0);
    return { ...results, ...(await this.#call(roomId, { origin, pdus: handed, patience })) };
  }

  /** `undefined` when it takes too long, as keys can't be had, or the room is not known yet: it is done there then. */
  async #check(roomId: string, pdus: readonly Pdu[]): Promise<Incoming[] | undefined> {
    const version = await this.versionOf(roomId);
    if (!version) return undefined;
    const stop = new AbortController();
    const tooLong = delay(this.#patience / 2, undefined, { signal: stop.signal, ref: false }).catch(() => {});
    const checking = checkIncoming(pdus, version, this.#parts.verifier);
    try {
      return (await Promise.race([checking, tooLong])) ?? undefined;
    } finally {
      stop.abort();
      checking.catch(() => {});
    }
  }

  /** What was done before a process died is found done when it is handed in once more. */
  async #call(roomId: string, handed: HandedIn): Promise<PduResults> {
    const { cluster } = this.#parts.rooms.parts;
    for (let tries = 1; ; tries++)
      try {
        return await cluster.call<PduResults>('room', roomId, 'room.pdus', handed as unknown as Json);
      } catch (error) {
        if (!(error instanceof MatrixError) || error.status !== 503 || tries === MAX_TRIES) throw error;
        await delay(RETRY_MS);
      }
  }
}
