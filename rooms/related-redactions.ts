import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, RoomEvent } from '@trellis/protocol/event.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Database } from '@trellis/storage/database.ts';
import { announce } from './announce.ts';
import { REDACTION, relationOf } from './append.ts';
import { followMissed } from './missed-events.ts';
import type { Room } from './room.ts';
import { mayRedact } from './room-rights.ts';
import type { Rooms } from './rooms.ts';
import { sendEvent } from './send.ts';

/** A redaction that goes for what relates to its target too. */
export interface RelatedRedaction {
  readonly roomId: string;
  readonly target: string;
  readonly sender: string;
  /** `*` for any. */
  readonly relTypes: readonly string[];
  readonly reason?: string;
}

/** Events that one request may take along. */
const MAX_EVENTS = 2_000;
/** Targets whose relations that are yet to come are redacted, the newest of them; for a day. */
const MAX_TARGETS = 10_000;
const REMEMBERED_MS = 24 * 3600_000;

/**
 * Redacts what relates to a redacted event, on behalf of who redacted that (MSC3912): what there is, and what comes
 * later. What the user may not redact stays. Done in the background.
 */
export class RelatedRedactions {
  readonly #db: Database;
  readonly #rooms: Rooms;
  readonly #failed: (error: unknown) => void;
  readonly #targets = new RecentlyUsed<string, RelatedRedaction[]>(MAX_TARGETS, { ttl: REMEMBERED_MS });
  readonly #running = new Set<Promise<void>>();

  constructor(db: Database, rooms: Rooms, failed: (error: unknown) => void) {
    this.#db = db;
    this.#rooms = rooms;
    this.#failed = failed;
    const { cluster, stream } = rooms.parts;
    // Done by the process that has stored what relates.
    stream.subscribe((_pos, { event, isFromElsewhere }) => {
      if (!isFromElsewhere) this.#follow(event);
    });
    followMissed(rooms, (event) => (event.redactedBy ? undefined : this.#follow(event)), failed);
    cluster.onAnnounce('related-redactions', (redaction: RelatedRedaction) => this.#remember(redaction));
    cluster.onGap(() => this.start().catch(failed));
  }

  #follow(event: RoomEvent): void {
    if (this.#targets.size === 0) return;
    const relation = relationOf(event);
    if (!relation || relation.relType === REDACTION) return;
    for (const redaction of this.#targets.get(relation.target) ?? [])
      if (covers(redaction, relation.relType)) this.#run(() => this.#redact(redaction, [event.eventId]));
  }

  /** Takes up what earlier runs of the server were asked for. */
  async start(): Promise<void> {
    const rows = await this.#db.query<Omit<RelatedRedaction, 'reason'> & { reason: string | null }>(
      `SELECT r.room_id AS "roomId", d.target, d.sender, d.rel_types AS "relTypes", d.reason
       FROM related_redactions d JOIN rooms r ON r.nid = d.room WHERE d.ts > $1 ORDER BY d.ts LIMIT $2`,
      [Date.now() - REMEMBERED_MS, MAX_TARGETS],
    );
    for (const { reason, ...row } of rows) this.#remember({ ...row, ...(reason !== null && { reason }) });
  }

  /** Resolves when the request is stored; the work goes on. */
  async add(redaction: RelatedRedaction): Promise<void> {
    const room = await this.#rooms.require(redaction.roomId);
    const { target, sender, relTypes, reason } = redaction;
    await this.#db.query(
      `INSERT INTO related_redactions (target, room, sender, rel_types, reason, ts) VALUES ($1, $2, $3, $4, $5, $6)
       ON CONFLICT (target, sender) DO UPDATE SET rel_types = excluded.rel_types, reason = excluded.reason,
         ts = excluded.ts`,
      [target, room.nid, sender, relTypes, reason?.replaceAll('\0', '') ?? null, Date.now()],
    );
    await announce(this.#rooms.parts.cluster, 'related-redactions', { ...redaction });
    this.#run(async () => this.#redact(redaction, await this.#related(room, redaction)));
  }

  async prune(): Promise<void> {
    await this.#db.query('DELETE FROM related_redactions WHERE ts <= $1', [Date.now() - REMEMBERED_MS]);
  }

  async idle(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  #remember(redaction: RelatedRedaction): void {
    const others = this.#targets.get(redaction.target) ?? [];
    this.#targets.set(redaction.target, [
      ...others.filter(({ sender }) => sender !== redaction.sender),
      redaction,
    ]);
  }

  #run(work: () => Promise<void>): void {
    const running: Promise<void> = work()
      .catch(this.#failed)
      .finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  async #related(room: Room, { target, relTypes }: RelatedRedaction): Promise<string[]> {
    const rows = await this.#db.query<{ eventId: string }>(
      `SELECT r.event_id AS "eventId" FROM relations r JOIN events e ON e.event_id = r.event_id
       WHERE r.room = $1 AND r.target = $2 AND r.rel_type <> $3 AND e.status = 0 AND e.redacted_by IS NULL
         AND ('*' = ANY($4::text[]) OR r.rel_type = ANY($4::text[]))
       ORDER BY r.pos DESC LIMIT $5`,
      [room.nid, target, REDACTION, relTypes, MAX_EVENTS],
    );
    return rows.map(({ eventId }) => eventId);
  }

  async #redact({ roomId, sender, reason }: RelatedRedaction, eventIds: readonly string[]): Promise<void> {
    for (const redacts of eventIds) {
      const room = await this.#rooms.require(roomId);
      if (!room.isJoined(sender)) return;
      if (!(await mayRedact(this.#rooms, room, sender, redacts))) continue;
      try {
        const content: JsonObject = reason === undefined ? {} : { reason };
        await sendEvent(this.#rooms, roomId, { type: 'm.room.redaction', sender, content, redacts });
      } catch (error) {
        if (!(error instanceof MatrixError)) throw error;
      }
    }
  }
}

function covers({ relTypes }: RelatedRedaction, relType: string): boolean {
  return relTypes.includes('*') || relTypes.includes(relType);
}
