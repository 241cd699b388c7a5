import { stateKeyOf } from '@trellis/protocol/event.ts';
import { roomStateBefore, stateAtPosition } from '@trellis/rooms/event-state.ts';
import type { UserMembership } from '@trellis/rooms/memberships.ts';
import type { Room } from '@trellis/rooms/room.ts';
import { endOfStayBefore } from '@trellis/rooms/visibility.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { eventListJson } from '../event-json.ts';
import { timelineJson, viewer } from './room-sections.ts';
import { sectionState } from './section-state.ts';
import { readTimeline } from './timeline.ts';
import { placeToken } from './token.ts';
import type { SyncView } from './view.ts';

/** The section of a room that the user left or was banned from: what happened up to that, and nothing after it. */
export async function leftSection(view: SyncView, room: Room, membership: UserMembership): Promise<string> {
  const { sources, userId, eventsFrom } = view;
  const own = await sources.rooms.parts.events.get(membership.eventId);
  const stay = await endOfStayBefore(sources.rooms, own, userId);
  // An invite or a knock that ended, a ban of somebody who was never there: of the room itself nothing is shown.
  const isOver = stay?.pos === undefined || (eventsFrom !== undefined && stay.pos <= eventsFrom);
  if (own?.pos === undefined || isOver) {
    const events = own ? eventListJson([own], viewer(view, membership.membership)) : '[]';
    const start = placeToken(Math.min(membership.pos, view.eventsTo) - 1);
    return `{"timeline":{"events":${events},"limited":false,"prev_batch":"${start}"},"${view.stateAfter}":{"events":[]},"account_data":{"events":[]}}`;
  }
  const from = (await wasJoined(view, room, eventsFrom)) ? eventsFrom : undefined;
  const timeline = await readTimeline(view, room, {
    after: from ?? Number.NEGATIVE_INFINITY,
    upTo: own.pos,
    always: own,
  });
  const state = await sectionState(view, room, {
    from,
    timeline,
    end: () => stateAtLeaving(view, stay!, own),
    needed: [userId],
  });
  return (
    `{"timeline":${await timelineJson(view, room, timeline)}` +
    `,"${view.stateAfter}":{"events":${eventListJson(state, viewer(view, membership.membership))}},"account_data":{"events":[]}}`
  );
}

/** Whether the user was in the room at a position, and so has been told of it up to there. */
async function wasJoined(
  { sources, userId }: SyncView,
  room: Room,
  pos: number | undefined,
): Promise<boolean> {
  if (pos === undefined) return false;
  const ref = (await stateAtPosition(sources.rooms, room, pos)).get('m.room.member', userId);
  const event = ref && (await sources.rooms.parts.events.get(ref.eventId));
  return event?.content.membership === 'join';
}

/** The room as it was when the user left it, with what has become of their membership since. */
async function stateAtLeaving(
  { sources, userId }: SyncView,
  stay: StoredEvent,
  own: StoredEvent,
): Promise<Snapshot> {
  const before = await roomStateBefore(sources.rooms, stay);
  return before.overlaid(new Map([[stateKeyOf('m.room.member', userId), own]]));
}
