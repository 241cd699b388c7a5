import { notFound } from '@trellis/protocol/errors.ts';
import type { Reports } from '@trellis/rooms/reports.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { visibleEvent } from './room-events.ts';

export interface ReportDeps {
  readonly rooms: Rooms;
  readonly reports: Reports;
}

const MAX_REASON_LENGTH = 4096;

const reason = Type.String({ maxLength: MAX_REASON_LENGTH });
const requiredReason = Type.Object({ reason });
const eventBody = Type.Optional(
  Type.Object({
    reason: Type.Optional(reason),
    // Gone since v1.18; clients still send it.
    score: Type.Optional(Type.Union([Type.Integer({ minimum: -100, maximum: 0 }), Type.Null()])),
  }),
);

/** Reporting events and rooms to the administrators (spec: "Reporting Content"). */
export function reportRoutes(app: FastifyInstance, { rooms, reports }: ReportDeps): void {
  app.post<{
    Params: { roomId: string; eventId: string };
    Body: { reason?: string; score?: number | null } | undefined;
  }>('/_matrix/client/v3/rooms/:roomId/report/:eventId', { schema: { body: eventBody } }, async (request) => {
    const { userId } = requesterOf(request);
    const { roomId, eventId } = request.params;
    const found = await visibleEvent(rooms, roomId, eventId, userId);
    if (!found?.room.isJoined(userId))
      throw notFound('The event was not found or you are not joined to the room');
    await reports.add({
      reporter: userId,
      roomId,
      eventId,
      reason: request.body?.reason ?? '',
      score: request.body?.score ?? undefined,
    });
    return {};
  });

  // The second is the name that MSC4151 had before v1.13.
  for (const base of ['v3/rooms', 'unstable/org.matrix.msc4151/rooms'])
    app.post<{ Params: { roomId: string }; Body: { reason: string } }>(
      `/_matrix/client/${base}/:roomId/report`,
      { schema: { body: requiredReason } },
      async (request) => {
        const { roomId } = request.params;
        if (!(await rooms.get(roomId))) throw notFound('The room was not found');
        await reports.add({ reporter: requesterOf(request).userId, roomId, reason: request.body.reason });
        return {};
      },
    );
}
