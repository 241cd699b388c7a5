import type { AuthView } from '../event.ts';
import { type KnownEvents, powerLevelsOf, type Resolution } from './needs.ts';
import { isEarlier } from './power-order.ts';

/**
 * The mainline ordering based on a `m.room.power_levels` event: first what was authorised by the oldest power levels
 * of its mainline or by none of them, then the earlier, then the smaller id.
 *
 * @param known has the auth events of all events
 */
export function* mainlineOrder(
  events: readonly AuthView[],
  powerLevels: AuthView | undefined,
  known: KnownEvents,
): Resolution<AuthView[]> {
  const closest = events.map((event) => powerLevelsOf(event, known.map));
  const sources = new Set(closest.filter((event) => event !== undefined).map((event) => event.eventId));
  let positions: number[];
  // With the same power levels for all events, or none on the mainline, their positions are all the same.
  if (!powerLevels || (sources.size <= 1 && !closest.includes(undefined))) positions = events.map(() => 0);
  else {
    yield* known.loadPowerLevelsChain(new Set([powerLevels.eventId, ...sources]));
    const mainline = new Mainline(powerLevels, known.map);
    positions = closest.map((event) => mainline.positionOf(event));
  }
  const order = events.map((event, i) => ({ event, position: positions[i]! }));
  order.sort((a, b) => {
    if (a.position !== b.position) return a.position > b.position ? -1 : 1;
    return a.event === b.event ? 0 : isEarlier(a.event, b.event) ? -1 : 1;
  });
  return order.map(({ event }) => event);
}

class Mainline {
  readonly #known: ReadonlyMap<string, AuthView>;
  readonly #positions = new Map<string, number>();

  constructor(powerLevels: AuthView, known: ReadonlyMap<string, AuthView>) {
    this.#known = known;
    let event: AuthView | undefined = powerLevels;
    for (let i = 0; event && !this.#positions.has(event.eventId); i++) {
      this.#positions.set(event.eventId, i);
      event = powerLevelsOf(event, known);
    }
  }

  /** Where the way from one `m.room.power_levels` event to the one before it meets the mainline. */
  positionOf(powerLevels: AuthView | undefined): number {
    const path: string[] = [];
    let position = Number.POSITIVE_INFINITY;
    for (let event = powerLevels; event; event = powerLevelsOf(event, this.#known)) {
      const found = this.#positions.get(event.eventId);
      if (found !== undefined) {
        position = found;
        break;
      }
      // Counts as off the mainline while the way is followed, so that a cycle ends.
      this.#positions.set(event.eventId, Number.POSITIVE_INFINITY);
      path.push(event.eventId);
    }
    for (const id of path) this.#positions.set(id, position);
    return position;
  }
}
