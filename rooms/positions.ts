import type { EventWriter } from '@trellis/storage/event-writer.ts';
import type { Stream } from '@trellis/storage/streams.ts';
import type { EventChange } from './rooms.ts';

/** Positions asked for at once. */
const MAX_AT_ONCE = 32;
/** How long positions may be kept for what is about to come, in milliseconds: all readers wait for them. */
const MAX_KEPT = 20;

interface Reserved {
  readonly positions: number[];
  readonly era: number;
  timer: NodeJS.Timeout;
}

/**
 * Positions for the events of rooms, where another process gives them: whoever asks for one takes along those for the
 * tasks that wait for the same room.
 */
export class Positions {
  readonly #stream: Stream<EventChange>;
  readonly #writer: Pick<EventWriter, 'era'>;
  readonly #rooms = new Map<string, Reserved>();
  readonly #expected = new Map<string, number>();

  constructor(stream: Stream<EventChange>, writer: Pick<EventWriter, 'era'>) {
    this.#stream = stream;
    this.#writer = writer;
  }

  /** So many events follow each other at once. */
  expect(roomId: string, events: number): void {
    this.#expected.set(roomId, events);
  }

  /**
   * The next position of a room, higher than all before.
   *
   * @param tasks how many want to append to it, the one that asks included
   */
  async next(roomId: string, gapBefore: number, tasks: number): Promise<number> {
    const ready = gapBefore > 0 ? undefined : this.#rooms.get(roomId);
    if (ready && ready.era === this.#writer.era()) {
      const position = ready.positions.shift()!;
      if (ready.positions.length === 0) this.#forget(roomId, ready);
      return position;
    }
    const count = Math.min(Math.max(this.#expected.get(roomId) ?? 1, tasks, 1), MAX_AT_ONCE);
    this.giveBack(roomId);
    if (gapBefore > 0) return this.#alone(gapBefore);
    for (;;) {
      const era = this.#writer.era();
      const first = await this.#stream.reserveMany(count);
      const positions = Array.from({ length: count }, (_, i) => first + i);
      if (era !== this.#writer.era()) {
        // Given by a coordinator that is no more: what is stored there now might never be announced.
        this.#end(positions);
        continue;
      }
      positions.shift();
      if (positions.length > 0) {
        const timer = setTimeout(() => this.giveBack(roomId), MAX_KEPT);
        this.#rooms.set(roomId, { positions, era, timer });
      }
      return first;
    }
  }

  /** Nothing more is to come for now. */
  giveBack(roomId: string): void {
    this.#expected.delete(roomId);
    const reserved = this.#rooms.get(roomId);
    if (!reserved) return;
    this.#forget(roomId, reserved);
    this.#end(reserved.positions);
  }

  async #alone(gapBefore: number): Promise<number> {
    for (;;) {
      const era = this.#writer.era();
      const position = await this.#stream.reserve(gapBefore);
      if (era === this.#writer.era()) return position;
      this.#end([position]);
    }
  }

  #forget(roomId: string, reserved: Reserved): void {
    clearTimeout(reserved.timer);
    this.#rooms.delete(roomId);
  }

  /** Empty positions; where that can't be told, their coordinator is gone, and they with it. */
  #end(positions: readonly number[]): void {
    for (const position of positions) Promise.resolve(this.#stream.complete(position, [])).catch(() => {});
  }
}
