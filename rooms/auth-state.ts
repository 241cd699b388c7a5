import { splitStateKey, stateKeyOf } from '@trellis/protocol/event.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Rooms } from './rooms.ts';

/** The part of a state that an authorisation looks at, loaded. */
export class LoadedState {
  readonly #events: ReadonlyMap<string, StoredEvent>;

  constructor(events: ReadonlyMap<string, StoredEvent>) {
    this.#events = events;
  }

  get(type: string, stateKey: string): StoredEvent | undefined {
    return this.#events.get(stateKeyOf(type, stateKey));
  }

  values(): IterableIterator<StoredEvent> {
    return this.#events.values() as IterableIterator<StoredEvent>;
  }
}

/** Loads the state events of those keys, as far as the state has them. */
export async function loadState(
  rooms: Rooms,
  state: Snapshot,
  keys: readonly string[],
): Promise<LoadedState> {
  const wanted = new Map<string, string>();
  for (const key of keys) {
    const ref = state.getKey(key);
    if (ref) wanted.set(key, ref.eventId);
  }
  const events = await rooms.parts.events.getMany(wanted.values());
  const loaded = new Map<string, StoredEvent>();
  for (const [key, eventId] of wanted) {
    const event = events.get(eventId);
    if (!event) throw new Error(`state refers to the unknown event ${eventId} as ${splitStateKey(key)}`);
    loaded.set(key, event);
  }
  return new LoadedState(loaded);
}

export function loadAuthState(
  rooms: Rooms,
  state: Snapshot,
  pairs: ReadonlyArray<readonly [type: string, stateKey: string]>,
): Promise<LoadedState> {
  return loadState(
    rooms,
    state,
    pairs.map(([type, stateKey]) => stateKeyOf(type, stateKey)),
  );
}
