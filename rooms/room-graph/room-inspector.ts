import { MatrixError } from '@trellis/protocol/errors.ts';
import type { StateSnapshots } from '@trellis/storage/state-snapshots.ts';
import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';
import { StatesAt, settled } from '../state-at.ts';
import { examine, type GraphReport } from './check.ts';
import { describeGraph, type GraphDescription } from './describe.ts';
import { isMissingSnapshot } from './fresh-graph.ts';
import { rebuild } from './rebuild.ts';

/** States that are tried in the place of a lost one. */
const MAX_CANDIDATES = 100;

/** The administrator's tool for a room's graph: to look at it, to check what is kept of it, and to rebuild that. */
export class RoomInspector {
  readonly #rooms: Rooms;

  constructor(rooms: Rooms) {
    this.#rooms = rooms;
  }

  async describe(roomId: string): Promise<GraphDescription> {
    return describeGraph(this.#rooms, await this.#rooms.require(roomId));
  }

  /** Nothing is written to the room meanwhile. */
  async check(roomId: string): Promise<GraphReport> {
    await this.#readAgain(roomId);
    return this.#exclusive(roomId, async (room) => {
      requireWhole(room);
      return (await examine(this.#rooms, new StatesAt(this.#rooms), room)).report;
    });
  }

  /** @returns what was found before */
  async rebuild(roomId: string): Promise<GraphReport> {
    await this.#readAgain(roomId);
    await this.#makeReadable(roomId);
    return this.#exclusive(roomId, async (room) => {
      requireWhole(room);
      const findings = await examine(this.#rooms, new StatesAt(this.#rooms), room);
      if (!findings.report.sound) await rebuild(this.#rooms, room, findings);
      return findings.report;
    });
  }

  /** What counts is what the database says, not what is in memory. */
  async #readAgain(roomId: string): Promise<void> {
    if (!this.#rooms.peek(roomId)) return;
    await this.#rooms.exclusive(roomId, async (room) => {
      await settled(this.#rooms, room);
      this.#rooms.drop(room);
    });
  }

  async #exclusive<T>(roomId: string, task: (room: Room) => Promise<T>): Promise<T> {
    await this.#rooms.require(roomId).catch((error: unknown) => {
      if (!isMissingSnapshot(error)) throw error;
      throw new MatrixError(409, 'M_UNKNOWN', 'The state of the room is lost: rebuild it');
    });
    return this.#rooms.exclusive(roomId, task);
  }

  /** A room whose state is not in the database can't even be read: for a start it gets the newest that is. */
  async #makeReadable(roomId: string): Promise<void> {
    const { db, snapshots } = this.#rooms.parts;
    const [row] = await db.query<{ nid: number; state: number | null }>(
      'SELECT nid, state FROM rooms WHERE room_id = $1',
      [roomId],
    );
    if (!row || row.state === null || (await isReadable(snapshots, row.state))) return;
    const candidates = await db.query<{ state: number }>(
      `SELECT state_before AS state FROM events WHERE room = $1 AND state_before IS NOT NULL
       GROUP BY state_before ORDER BY max(pos) DESC LIMIT ${MAX_CANDIDATES}`,
      [row.nid],
    );
    for (const { state } of candidates) {
      if (!(await isReadable(snapshots, state))) continue;
      await db.query('UPDATE rooms SET state = $2 WHERE nid = $1', [row.nid, state]);
      return;
    }
  }
}

async function isReadable(snapshots: StateSnapshots, id: number): Promise<boolean> {
  try {
    await snapshots.load(id);
    return true;
  } catch (error) {
    if (isMissingSnapshot(error)) return false;
    throw error;
  }
}

function requireWhole(room: Room): void {
  if (!room.isResident) throw new MatrixError(400, 'M_UNKNOWN', 'This server is not in the room');
  if (room.partial)
    throw new MatrixError(409, 'M_UNKNOWN', "The room's members are still being fetched: wait for them");
}
