import type { BacklogRow } from './delivery-store.ts';

/** Events of one room from `from` to `last` that a destination lacks. */
interface Span {
  readonly roomId: string;
  /** Where it began; names the row in the database. */
  readonly opened: number;
  from: number;
  /** The newest event in it. */
  last: number;
  /** The destination left the room with `last`. */
  closed: boolean;
  /** There is a row of it. */
  stored: boolean;
}

/** Spans looked at for one transaction. */
const ROOMS_AT_A_TIME = 20;

/**
 * What one destination lacks, as spans of positions in rooms: a few numbers for a room, however many events there
 * are. Rows of them are written in the background, when `takeChanges` is asked.
 */
export class Backlog {
  readonly #destination: string;
  /** Oldest first for each room; only the last can be open. */
  readonly #rooms = new Map<string, Span[]>();
  readonly #changed = new Set<Span>();
  #removed: Span[] = [];

  constructor(destination: string) {
    this.#destination = destination;
  }

  get isEmpty(): boolean {
    return this.#rooms.size === 0;
  }

  /** Takes over a row as it was stored. `newest`: no event of an open span is after this. */
  restore(row: BacklogRow, newest: number): void {
    if (this.#rooms.get(row.roomId)?.some(({ opened }) => opened === row.opened)) return;
    const { roomId, opened, from, to } = row;
    const span = { roomId, opened, from, last: to ?? newest, closed: to !== null, stored: true };
    this.#rooms.set(roomId, [...(this.#rooms.get(roomId) ?? []), span]);
  }

  /** An event that the destination is to get. */
  add(roomId: string, pos: number): void {
    const spans = this.#rooms.get(roomId);
    const open = spans?.at(-1);
    if (open && !open.closed) {
      open.last = Math.max(open.last, pos);
      // The recovery after a restart finds older ones than what has come in since.
      if (pos < open.from) {
        open.from = pos;
        this.#changed.add(open);
      }
      return;
    }
    const span: Span = { roomId, opened: pos, from: pos, last: pos, closed: false, stored: false };
    if (spans) spans.push(span);
    else this.#rooms.set(roomId, [span]);
    this.#changed.add(span);
  }

  /** The destination left the room with the event at `pos`: it gets nothing after that. */
  close(roomId: string, pos: number): void {
    const open = this.#rooms.get(roomId)?.at(-1);
    if (!open || open.closed) return;
    open.closed = true;
    open.last = pos;
    this.#changed.add(open);
  }

  /** Where to look for the next events. */
  next(): Array<{ roomId: string; from: number; to: number }> {
    const next: Array<{ roomId: string; from: number; to: number }> = [];
    for (const [roomId, [span]] of this.#rooms) {
      next.push({ roomId, from: span!.from, to: span!.last });
      if (next.length === ROOMS_AT_A_TIME) break;
    }
    return next;
  }

  /** Nothing of the room up to `pos` is lacking any more. */
  delivered(roomId: string, pos: number): void {
    const spans = this.#rooms.get(roomId);
    if (!spans) return;
    while (spans[0] && spans[0].last <= pos) {
      const done = spans.shift()!;
      this.#changed.delete(done);
      if (done.stored) this.#removed.push(done);
    }
    if (spans.length === 0) this.#rooms.delete(roomId);
    else if (spans[0]!.from <= pos) {
      spans[0]!.from = pos + 1;
      this.#changed.add(spans[0]!);
    }
  }

  get hasChanges(): boolean {
    return this.#changed.size > 0 || this.#removed.length > 0;
  }

  /** What is to be written, and what to call when that failed. */
  takeChanges() {
    const put = [...this.#changed];
    const removed = this.#removed;
    const wereStored = put.map(({ stored }) => stored);
    this.#changed.clear();
    this.#removed = [];
    for (const span of put) span.stored = true;
    const rows = put.map(
      ({ roomId, opened, from, last, closed }): BacklogRow => ({
        destination: this.#destination,
        roomId,
        opened,
        from,
        to: closed ? last : null,
      }),
    );
    return {
      put: rows,
      removed: removed.map(({ roomId, opened }) => ({ destination: this.#destination, roomId, opened })),
      failed: () => {
        this.#removed.push(...removed);
        for (const [index, span] of put.entries()) {
          // Removing a row that is not there does no harm; one that is forgotten would be delivered again for ever.
          if (this.#rooms.get(span.roomId)?.includes(span)) {
            this.#changed.add(span);
            span.stored = wereStored[index]!;
          }
        }
      },
    };
  }
}
