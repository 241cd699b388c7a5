import { badJson, forbidden, invalidParam, MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { isEventId } from '@trellis/protocol/identifiers.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import type { DelayedEvents } from '@trellis/rooms/delayed-events.ts';
import type { Membership } from '@trellis/rooms/membership.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { appendDraft, type Draft } from '@trellis/rooms/send.ts';
import { checkState, checkStateKey } from '@trellis/rooms/state-rules.ts';
import type { Transactions } from '@trellis/rooms/transactions.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { requesterOf, requireActive } from './authentication.ts';
import { checkCanonicalAlias } from './canonical-alias.ts';
import { stickyDurationOf } from './sticky-duration.ts';
import type { TransactionSend, TransactionSends } from './transaction-sends.ts';

export interface RoomSendDeps {
  readonly rooms: Rooms;
  readonly transactions: Transactions;
  readonly aliases: Aliases;
  readonly membership: Membership;
  readonly delayedEvents: Pick<DelayedEvents, 'schedule'>;
  readonly sends: TransactionSends;
}

const MAX_REL_TYPES = 50;

interface SendParams {
  roomId: string;
  eventType: string;
  txnId: string;
}

/** Sending events, state and redactions (spec: "Sending events to a room", "Redactions"). */
export function roomSendRoutes(app: FastifyInstance, deps: RoomSendDeps): void {
  const { rooms, transactions, aliases, membership, sends } = deps;

  app.put<{ Params: SendParams; Body: JsonObject }>(
    '/_matrix/client/v3/rooms/:roomId/send/:eventType/:txnId',
    { config: { guests: true, rateLimit: 'messages' } },
    async (request) => {
      const { roomId, eventType, txnId } = request.params;
      const delay = delayOf(request);
      if (delay !== undefined) return delayed(request, roomId, eventType, txnId, delay);
      const content = contentOf(request);
      // Since v1.18 redactions may be sent this way too (MSC4169).
      const redacts =
        eventType === 'm.room.redaction' && typeof content.redacts === 'string' ? content.redacts : undefined;
      const draft = { type: eventType, content, redacts, stickyMs: stickyDurationOf(request) };
      const eventId = await send(request, roomId, txnId, draft);
      return { event_id: eventId };
    },
  );

  app.put<{ Params: { roomId: string; eventId: string; txnId: string }; Body: JsonObject | undefined }>(
    '/_matrix/client/v3/rooms/:roomId/redact/:eventId/:txnId',
    { config: { rateLimit: 'messages' } },
    async (request) => {
      const { roomId, eventId, txnId } = request.params;
      if (!isEventId(eventId)) throw invalidParam('That is no event id');
      const { reason, ...others } = request.body ?? {};
      if (reason !== undefined && typeof reason !== 'string') throw badJson('reason is not a string');
      const relTypes = relTypesOf(others);
      const content: JsonObject = reason === undefined ? {} : { reason };
      const redaction = { type: 'm.room.redaction', content, redacts: eventId };
      const also = relTypes.length > 0 ? { relTypes, ...(reason !== undefined && { reason }) } : undefined;
      return { event_id: await send(request, roomId, txnId, redaction, also) };
    },
  );

  for (const path of ['/state/:eventType/:stateKey', '/state/:eventType', '/state/:eventType/'])
    app.put<{ Params: { roomId: string; eventType: string; stateKey?: string }; Body: JsonObject }>(
      `/_matrix/client/v3/rooms/:roomId${path}`,
      { config: { guests: true, rateLimit: 'messages' } },
      async (request) => {
        const { roomId, eventType, stateKey = '' } = request.params;
        const requester = requesterOf(request);
        const { userId } = requester;
        const content = contentOf(request);
        const leaves = eventType === 'm.room.member' && stateKey === userId && content.membership === 'leave';
        if (!leaves) requireActive(requester);
        const delay = delayOf(request);
        if (delay !== undefined) {
          const draft = { roomId, type: eventType, stateKey, content, stickyMs: stickyDurationOf(request) };
          return { delay_id: await deps.delayedEvents.schedule(userId, draft, delay, undefined) };
        }
        const room = await rooms.get(roomId);
        if (eventType === 'm.room.member') {
          if (requester.isGuest && !leaves && !room?.isJoined(userId))
            throw new MatrixError(403, 'M_GUEST_ACCESS_FORBIDDEN', 'Guests join by way of /join');
          const ts = timestampOf(request);
          return { event_id: await membership.set(roomId, userId, stateKey, content, ts) };
        }
        if (!room?.isJoined(userId)) throw forbidden('You are not in that room');
        checkStateKey(room, stateKey);
        await checkState(rooms, room, eventType, content);
        if (eventType === 'm.room.canonical_alias' && stateKey === '')
          await checkCanonicalAlias(rooms, aliases, room, content);
        const { event, committed } = await rooms.exclusive(roomId, (live) =>
          appendDraft(rooms, live, {
            type: eventType,
            stateKey,
            sender: userId,
            content,
            stickyMs: stickyDurationOf(request),
            originServerTs: timestampOf(request),
          }),
        );
        await committed;
        return { event_id: event.eventId };
      },
    );

  async function send(
    request: FastifyRequest,
    roomId: string,
    txnId: string,
    draft: Omit<Draft, 'sender'>,
    alsoRedacts?: TransactionSend['alsoRedacts'],
  ): Promise<string> {
    const { userId, deviceId, tokenId, isSuspended } = requesterOf(request);
    return sends.send({
      requester: { userId, deviceId, tokenId, ...(isSuspended && { isSuspended }) },
      roomId,
      txnId,
      draft: { ...draft, sender: userId, originServerTs: timestampOf(request) },
      ...(alsoRedacts && { alsoRedacts }),
    });
  }

  async function delayed(
    request: FastifyRequest,
    roomId: string,
    type: string,
    txnId: string,
    delay: number,
  ): Promise<{ delay_id: string }> {
    const requester = requireActive(requesterOf(request));
    const key = `${roomId} ${type} ${txnId}`;
    const delayId = await transactions.once(requester, `delayed ${key}`, ({ deviceId }) => {
      const draft = { roomId, type, content: contentOf(request), stickyMs: stickyDurationOf(request) };
      return deps.delayedEvents.schedule(requester.userId, draft, delay, `${deviceId} ${key}`);
    });
    return { delay_id: delayId };
  }
}

function contentOf(request: FastifyRequest): JsonObject {
  const { body } = request;
  if (typeof body !== 'object' || body === null || Array.isArray(body))
    throw badJson('The body is not a JSON object');
  return body as JsonObject;
}

/** Types of relations to the redacted event that go with it (MSC3912, by its name until it is in the spec). */
function relTypesOf({ 'org.matrix.msc3912.with_relations': given }: JsonObject): string[] {
  if (given === undefined) return [];
  const isList = Array.isArray(given) && given.length <= MAX_REL_TYPES;
  if (!isList || !given.every((type) => typeof type === 'string' && type.length <= 255))
    throw badJson(`with_relations is not a list of up to ${MAX_REL_TYPES} relation types`);
  return (given as string[]).filter((type) => !type.includes('\0'));
}

/** Milliseconds after which the event is to be sent (MSC4140). */
function delayOf(request: FastifyRequest): number | undefined {
  const { 'org.matrix.msc4140.delay': delay } = request.query as Record<
    string,
    string | string[] | undefined
  >;
  if (delay === undefined) return undefined;
  if (typeof delay !== 'string' || !/^\d+$/.test(delay))
    throw invalidParam('The delay is not a number of milliseconds');
  return Number(delay);
}

/** Application services may say when an event was sent (spec: "Timestamp massaging"). */
function timestampOf(request: FastifyRequest): number | undefined {
  const { ts } = request.query as { ts?: string };
  if (ts === undefined || requesterOf(request).appserviceId === undefined) return undefined;
  const time = Number(ts);
  if (!Number.isSafeInteger(time) || time < 0) throw invalidParam('ts is not a number of milliseconds');
  return time;
}
