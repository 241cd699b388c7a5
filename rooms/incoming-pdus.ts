import { setTimeout as delay } from 'node:timers/promises';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import { isRoomId, serverNameOf } from '@trellis/protocol/identifiers.ts';
import { viewOf } from '@trellis/protocol/make-event.ts';
import type { StagedPdu, StagedPdus } from '@trellis/storage/staged-pdus.ts';
import { UnavailableError } from '@trellis/storage/unavailable.ts';
import { ForeignPdus, type HandedIn, type PduResults } from './foreign-pdus.ts';
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

export type { PduResults };

/** One PDU on its way. */
interface Job extends StagedPdu {
  state: 'waiting' | 'staging' | 'staged' | 'done';
  /** What the process that received it found, when that was another one. */
  readonly checked?: Incoming | undefined;
  result: Incoming | undefined;
}

/** What one server sent of one room, as long as anything of it is to be done here. */
class Queue {
  readonly roomId: string;
  readonly lock = new Lock();
  /** Resolves when the room is another process's to work on. */
  readonly leaving = Promise.withResolvers<void>();
  left = false;
  /** Those who wait for their PDUs, until what is not done of them is staged. */
  readonly waiting = new Set<Promise<void>>();

  constructor(roomId: string) {
    this.roomId = roomId;
  }
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
 *
 * Of several processes the one whose the room is does this; others check what they receive and hand it in there. When
 * the room becomes another's, what is not done is put aside and acknowledged, and that one takes it up.
 */
export class IncomingPdus {
  readonly #parts: IncomingPdusParts;
  readonly #foreign: ForeignPdus;
  /** By origin and room. */
  readonly #queues = new Map<string, Queue>();
  readonly #underWay = new Map<string, number>();
  /** Ids of what is in the queues. */
  readonly #ids = new Set<number>();
  readonly #closing = Promise.withResolvers<void>();
  /** Until what was put aside for this process is in the queues, before what comes anew. */
  #reading: Promise<void> = Promise.resolve();
  #closed = false;
  #later: Promise<void> | undefined;

  constructor(parts: IncomingPdusParts) {
    this.#parts = parts;
    this.#foreign = new ForeignPdus(parts, parts.patience ?? PATIENCE);
    const { cluster } = parts.rooms.parts;
    cluster.serve('room.pdus', (handed: HandedIn, roomId) => this.#takeHandedIn(handed, roomId), {
      drained: false,
    });
    cluster.onHandover({
      release: (lost) => this.#leave((roomId) => lost('room', roomId)),
      take: () => void this.#resumeInTime(),
    });
  }

  /** Takes the PDUs of one transaction. Throws M_LIMIT_EXCEEDED when the server is far behind with earlier ones. */
  async take(origin: string, pdus: readonly Pdu[]): Promise<PduResults> {
    const { cluster } = this.#parts.rooms.parts;
    this.#requireSpace(origin, pdus.length);
    const named = pdus.filter((pdu) => typeof pdu.room_id === 'string' && isRoomId(pdu.room_id));
    const byRoom = Map.groupBy(named, (pdu) => pdu.room_id as string);
    const results = await Promise.all(
      [...byRoom].map(([roomId, ofRoom]) => {
        if (cluster.owns('room', roomId))
          return this.#work(
            origin,
            roomId,
            ofRoom.map((pdu) => ({ pdu })),
          );
        this.#count(origin, ofRoom.length);
        return this.#foreign
          .handIn(origin, roomId, ofRoom)
          .finally(() => this.#count(origin, -ofRoom.length));
      }),
    );
    return Object.assign({}, ...results);
  }

  /** Goes on with what an earlier run of the server, or another process, had acknowledged but not done. */
  async resume(): Promise<void> {
    const { staged, rooms } = this.#parts;
    const read = Promise.withResolvers<void>();
    this.#reading = read.promise;
    try {
      let last = 0;
      while (!this.#closed) {
        const batch = await staged.after(last, READ_AT_A_TIME);
        if (batch.length === 0) return;
        last = batch.at(-1)!.id;
        const own = batch.filter(
          ({ id, roomId }) => rooms.parts.cluster.owns('room', roomId) && !this.#ids.has(id),
        );
        const byQueue = Map.groupBy(own, ({ origin, roomId }) => `${origin} ${roomId}`);
        const work = [...byQueue.values()].map((pdus) =>
          this.#enqueue(
            this.#queueOf(pdus[0]!.origin, pdus[0]!.roomId),
            pdus.map((pdu): Job => ({ ...pdu, state: 'staged', result: undefined })),
          ),
        );
        read.resolve();
        // A failed one stays where it is until the next start, or until the database is there again.
        await Promise.allSettled(work);
      }
    } finally {
      read.resolve();
    }
  }

  /** Acknowledges what is under way as soon as it is put aside, and begins nothing more. */
  close(): void {
    this.#closed = true;
    this.#closing.resolve();
  }

  /** What was put aside could not be worked on while the database was away. */
  #resumeLater(): void {
    this.#later ??= delay(RETRY_AFTER, undefined, { ref: false }).then(() => {
      this.#later = undefined;
      return this.#resumeInTime();
    });
  }

  async #resumeInTime(): Promise<void> {
    while (!this.#closed)
      try {
        return await this.resume();
      } catch (err) {
        this.#parts.log.warn({ err }, 'received events that were put aside could not be read');
        await Promise.race([delay(RETRY_AFTER, undefined, { ref: false }), this.#closing.promise]);
      }
  }

  async #takeHandedIn({ origin, pdus, patience }: HandedIn, roomId: string): Promise<PduResults> {
    await this.#reading;
    this.#requireSpace(origin, pdus.length);
    const version = await this.#foreign.versionOf(roomId);
    const given = pdus.map(({ pdu, eventId }) => {
      const checked = version && eventId !== undefined && { eventId, event: viewOf(pdu, eventId, version) };
      return checked ? { pdu, checked } : { pdu };
    });
    return this.#work(origin, roomId, given, patience);
  }

  /** Works on PDUs of one room until they are done, or for as long as there is patience: then they are put aside. */
  async #work(
    origin: string,
    roomId: string,
    given: ReadonlyArray<{ readonly pdu: Pdu; readonly checked?: Incoming }>,
    patience = this.#parts.patience ?? PATIENCE,
  ): Promise<PduResults> {
    const { ids } = this.#parts.rooms.parts;
    await ids.ensure(given.length);
    const jobs = given.map(
      (one): Job => ({ ...one, id: ids.next(), origin, roomId, state: 'waiting', result: undefined }),
    );
    const queue = this.#queueOf(origin, roomId);
    const work = this.#enqueue(queue, jobs);
    const answered = this.#untilStaged(queue, work, jobs, patience);
    queue.waiting.add(answered);
    try {
      await answered;
    } finally {
      queue.waiting.delete(answered);
    }
    return this.#results(jobs);
  }

  async #untilStaged(queue: Queue, work: Promise<void>, jobs: Job[], patience: number): Promise<void> {
    const { promise: tooLong, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, patience);
    try {
      await Promise.race([work, tooLong, queue.leaving.promise, this.#closing.promise]);
    } finally {
      clearTimeout(timer);
    }
    await this.#stage(jobs.filter(({ state }) => state === 'waiting'));
  }

  /** Puts aside all that is to be done in rooms that become another process's. */
  async #leave(isLost: (roomId: string) => boolean): Promise<void> {
    const answered: Array<Promise<void>> = [];
    for (const [key, queue] of this.#queues) {
      if (!isLost(queue.roomId)) continue;
      this.#queues.delete(key);
      queue.left = true;
      queue.leaving.resolve();
      answered.push(...queue.waiting);
    }
    await Promise.allSettled(answered);
  }

  #requireSpace(origin: string, more: number): void {
    if ((this.#underWay.get(origin) ?? 0) + more > MAX_UNDER_WAY)
      throw new MatrixError(429, 'M_LIMIT_EXCEEDED', 'Earlier transactions are still being worked on', {
        retry_after_ms: RETRY_AFTER,
      });
  }

  #count(origin: string, change: number): void {
    const count = (this.#underWay.get(origin) ?? 0) + change;
    if (count > 0) this.#underWay.set(origin, count);
    else this.#underWay.delete(origin);
  }

  #queueOf(origin: string, roomId: string): Queue {
    const key = `${origin} ${roomId}`;
    let queue = this.#queues.get(key);
    if (!queue) {
      queue = new Queue(roomId);
      this.#queues.set(key, queue);
    }
    return queue;
  }

  /** Rejects when something fails that is not the PDUs' fault. */
  #enqueue(queue: Queue, jobs: readonly Job[]): Promise<void> {
    const { origin, roomId } = jobs[0]!;
    const key = `${origin} ${roomId}`;
    this.#count(origin, jobs.length);
    for (const { id } of jobs) this.#ids.add(id);
    const work = queue.lock
      .run(() => this.#processRoom(queue, origin, jobs))
      .finally(() => {
        if (!queue.lock.busy && this.#queues.get(key) === queue) this.#queues.delete(key);
        this.#count(origin, -jobs.length);
        for (const { id } of jobs) this.#ids.delete(id);
      });
    work.catch((err: unknown) => {
      // What a stop breaks off is put aside, or was not acknowledged and comes again.
      if (this.#closed) return;
      this.#parts.log.warn({ err, origin, roomId }, 'receiving events failed');
      if (err instanceof UnavailableError && jobs.some(({ state }) => state === 'staged'))
        this.#resumeLater();
    });
    return work;
  }

  async #processRoom(queue: Queue, origin: string, jobs: readonly Job[]): Promise<void> {
    const { rooms, verifier, joined } = this.#parts;
    const { roomId } = queue;
    if (this.#closed || queue.left) return;
    await joined(roomId);
    const room = await rooms.get(roomId);
    if (!room) {
      for (const job of jobs) await this.#done(job, { eventId: undefined, error: 'unknown room' });
      return;
    }
    const unchecked = jobs.filter((job) => !job.checked);
    const found = await checkIncoming(
      unchecked.map(({ pdu }) => pdu),
      room.version,
      verifier,
    );
    const fresh = new Map(unchecked.map((job, i) => [job, found[i]!]));
    const checked = jobs.map((job) => job.checked ?? fresh.get(job)!);
    for (let i = 0; i < jobs.length; ) {
      if (this.#closed || queue.left) return;
      const together = await this.#processRun(origin, roomId, checked.slice(i));
      for (let end = i + together; i < end; i++) await this.#done(jobs[i]!, { eventId: checked[i]!.eventId });
      if (together > 0) continue;
      await this.#done(jobs[i]!, await this.#processOne(origin, roomId, checked[i]!));
      i++;
    }
  }

  /** Takes in together what simply follows what is here, as most events do. @returns how many of the first ones */
  async #processRun(origin: string, roomId: string, incoming: readonly Incoming[]): Promise<number> {
    const { rooms, receiver } = this.#parts;
    const end = incoming.findIndex(({ event }) => event?.roomId !== roomId);
    const events = incoming.slice(0, end < 0 ? undefined : end).map(({ event }) => event!);
    if (events.length < 2) return 0;
    const room = await rooms.require(roomId);
    if (!room.isResident || !(await isServerAllowed(rooms, room, origin))) return 0;
    return receiver.receiveRun(roomId, events);
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
      const version = await this.#foreign.versionOf(job.roomId);
      const eventId = job.result?.eventId ?? (version && idOfPdu(job.pdu, version));
      if (eventId === undefined) continue;
      results[eventId] = job.result?.error === undefined ? {} : { error: job.result.error };
    }
    return results;
  }
}
