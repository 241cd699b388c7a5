import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import { isRoomId, serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { StagedPdu, StagedPdus } from '@trellis/storage/staged-pdus.ts';
import { checkIncoming, type Incoming, idOfPdu } from './incoming-event.ts';
import { Lock } from './lock.ts';
import { storeOutOfBand } from './out-of-band.ts';
import type { Receiver } from './receive.ts';
import type { RemoteEventsParts } from './remote-events.ts';
import type { Room } from './room.ts';
import { isServerAllowed } from './server-acl.ts';

export interface IncomingPdusParts extends RemoteEventsParts {
  readonly receiver: Receiver;
  readonly staged: StagedPdus;
  /** Resolves when no join to the room is under way any more: its events come before this server is in the room. */
  readonly joined: (roomId: string) => Promise<void>;
  readonly log: { warn(data: object, message: string): void };
  /** How long a transaction is worked on before it is answered, in milliseconds. */
  readonly patience?: number;
}

/** By event id; the error says why the event was not taken. */
export type PduResults = Record<string, { error?: string }>;

/** One PDU on its way. */
interface Job extends StagedPdu {
  state: 'waiting' | 'staging' | 'staged' | 'done';
  result: Incoming | undefined;
}

const PATIENCE = 15_000;
/** PDUs of one server that are under way: who sends more has to wait. */
const MAX_UNDER_WAY = 500;
const RETRY_AFTER = 10_000;
const READ_AT_A_TIME = 500;

/**
 * The PDUs of transactions: each server's are worked off in their order room by room, and no room or server waits for
 * another. What is not done after a while, since servers that have to be asked are slow, is put aside in the database
 * and acknowledged: it is worked on further, and again after a restart. So nothing acknowledged is lost.
 */
export class IncomingPdus {
  readonly #parts: IncomingPdusParts;
  /** By origin and room. */
  readonly #queues = new Map<string, Lock>();
  readonly #underWay = new Map<string, number>();
  readonly #closing = Promise.withResolvers<void>();
  #closed = false;

  constructor(parts: IncomingPdusParts) {
    this.#parts = parts;
  }

  /** Takes the PDUs of one transaction. Throws M_LIMIT_EXCEEDED when the server is far behind with earlier ones. */
  async take(origin: string, pdus: readonly Pdu[]): Promise<PduResults> {
    const { rooms, patience = PATIENCE } = this.#parts;
    if ((this.#underWay.get(origin) ?? 0) + pdus.length > MAX_UNDER_WAY)
      throw new MatrixError(429, 'M_LIMIT_EXCEEDED', 'Earlier transactions are still being worked on', {
        retry_after_ms: RETRY_AFTER,
      });
    await rooms.parts.ids.ensure(pdus.length);
    const jobs = pdus
      .filter((pdu) => typeof pdu.room_id === 'string' && isRoomId(pdu.room_id))
      .map((pdu): Job => {
        const id = rooms.parts.ids.next();
        return { id, origin, roomId: pdu.room_id as string, pdu, state: 'waiting', result: undefined };
      });
    const work = this.#enqueue(origin, jobs);
    const { promise: tooLong, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, patience);
    try {
      await Promise.race([Promise.all(work), tooLong, this.#closing.promise]);
    } finally {
      clearTimeout(timer);
    }
    await this.#stage(jobs.filter(({ state }) => state === 'waiting'));
    return this.#results(jobs);
  }

  /** Goes on with what the last run of the server had acknowledged but not done. */
  async resume(): Promise<void> {
    const { staged } = this.#parts;
    let last = 0;
    while (!this.#closed) {
      const batch = await staged.after(last, READ_AT_A_TIME);
      if (batch.length === 0) return;
      last = batch.at(-1)!.id;
      const byOrigin = Map.groupBy(batch, ({ origin }) => origin);
      const work = [...byOrigin].flatMap(([origin, pdus]) =>
        this.#enqueue(
          origin,
          pdus.map((pdu): Job => ({ ...pdu, state: 'staged', result: undefined })),
        ),
      );
      // A failed one stays where it is until the next start.
      await Promise.allSettled(work);
    }
  }

  /** Acknowledges what is under way as soon as it is put aside, and begins nothing more. */
  close(): void {
    this.#closed = true;
    this.#closing.resolve();
  }

  /** One promise for each room: rejects when something fails that is not the PDUs' fault. */
  #enqueue(origin: string, jobs: readonly Job[]): Array<Promise<void>> {
    const byRoom = Map.groupBy(jobs, ({ roomId }) => roomId);
    return [...byRoom].map(([roomId, ofRoom]) => {
      const key = `${origin} ${roomId}`;
      const queue = this.#queues.get(key) ?? new Lock();
      this.#queues.set(key, queue);
      this.#underWay.set(origin, (this.#underWay.get(origin) ?? 0) + ofRoom.length);
      const work = queue
        .run(() => this.#processRoom(origin, roomId, ofRoom))
        .finally(() => {
          if (!queue.busy) this.#queues.delete(key);
          const left = this.#underWay.get(origin)! - ofRoom.length;
          if (left > 0) this.#underWay.set(origin, left);
          else this.#underWay.delete(origin);
        });
      work.catch((err: unknown) => {
        // What a stop breaks off is put aside, or was not acknowledged and comes again.
        if (!this.#closed) this.#parts.log.warn({ err, origin, roomId }, 'receiving events failed');
      });
      return work;
    });
  }

  async #processRoom(origin: string, roomId: string, jobs: readonly Job[]): Promise<void> {
    const { rooms, verifier, joined } = this.#parts;
    if (this.#closed) return;
    await joined(roomId);
    const room = await rooms.get(roomId);
    if (!room) {
      for (const job of jobs) await this.#done(job, { eventId: undefined, error: 'unknown room' });
      return;
    }
    const checked = await checkIncoming(
      jobs.map(({ pdu }) => pdu),
      room.version,
      verifier,
    );
    for (const [i, job] of jobs.entries()) {
      if (this.#closed) return;
      await this.#done(job, await this.#processOne(origin, roomId, checked[i]!));
    }
  }

  async #processOne(origin: string, roomId: string, incoming: Incoming): Promise<Incoming> {
    const { rooms, receiver } = this.#parts;
    const { event, eventId } = incoming;
    if (!event) return incoming;
    if (event.roomId !== roomId) return { eventId, error: 'the event is of another room' };
    const room = await rooms.require(roomId);
    if (!(await isServerAllowed(rooms, room, origin)))
      return { eventId, error: 'the server is denied access to the room' };
    if (!room.isResident) return this.#outOfBand(room, event);
    // What became of it is no error of the request: rejected events are kept, and one whose predecessors could not
    // be had comes again with those that build on it.
    await receiver.receive(origin, event);
    return { eventId };
  }

  /** An invite that is taken back, a knock that is refused: all that is news of a room that this server is not in. */
  async #outOfBand(room: Room, event: RoomEvent): Promise<Incoming> {
    const { rooms } = this.#parts;
    const { eventId, stateKey, type, sender } = event;
    const { membership } = event.content;
    const refused = { eventId, error: 'this server is not in the room' };
    if (type !== 'm.room.member' || stateKey === undefined) return refused;
    if (serverNameOf(stateKey) !== rooms.parts.serverName || (membership !== 'leave' && membership !== 'ban'))
      return refused;
    const member = room.member(stateKey);
    // Only by who invited: what others of the room may do can't be checked from outside.
    const isTakenBack = member?.membership === 'invite' && member.sender === sender;
    if (!isTakenBack && member?.membership !== 'knock') return refused;
    await storeOutOfBand(rooms, event, null);
    return { eventId };
  }

  async #done(job: Job, result: Incoming): Promise<void> {
    job.result = result;
    const wasStaged = job.state === 'staged';
    job.state = 'done';
    if (wasStaged) await this.#parts.staged.remove([job.id]);
  }

  async #stage(jobs: Job[]): Promise<void> {
    if (jobs.length === 0) return;
    for (const job of jobs) job.state = 'staging';
    await this.#parts.staged.add(jobs);
    const doneMeanwhile = jobs.filter(({ result }) => result !== undefined);
    for (const job of jobs) if (!job.result) job.state = 'staged';
    if (doneMeanwhile.length > 0) await this.#parts.staged.remove(doneMeanwhile.map(({ id }) => id));
  }

  async #results(jobs: readonly Job[]): Promise<PduResults> {
    const results: PduResults = {};
    for (const job of jobs) {
      const version = (await this.#parts.rooms.get(job.roomId))?.version;
      const eventId = job.result?.eventId ?? (version && idOfPdu(job.pdu, version));
      if (eventId === undefined) continue;
      results[eventId] = job.result?.error === undefined ? {} : { error: job.result.error };
    }
    return results;
  }
}
