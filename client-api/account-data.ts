import { badJson, invalidParam, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { isRoomId } from '@trellis/protocol/identifiers.ts';
import type { AccountData } from '@trellis/users/account-data.ts';
import type { FastifyInstance } from 'fastify';
import { requireSelf } from './authentication.ts';

export interface AccountDataDeps {
  readonly accountData: AccountData;
}

interface Params {
  userId: string;
  roomId?: string;
  type: string;
}

/** Account data (spec: "Client Config"). */
export function accountDataRoutes(app: FastifyInstance, { accountData }: AccountDataDeps): void {
  for (const path of ['/account_data/:type', '/rooms/:roomId/account_data/:type']) {
    const url = `/_matrix/client/v3/user/:userId${path}`;

    app.get<{ Params: Params }>(url, async (request) => {
      const { userId, type } = request.params;
      requireSelf(request, userId);
      const content = await accountData.get(userId, roomIn(request.params), type);
      if (!content) throw notFound('Account data not found.');
      return content;
    });

    app.put<{ Params: Params; Body: unknown }>(url, async (request) => {
      const { userId, type } = request.params;
      requireSelf(request, userId);
      await accountData.set(userId, roomIn(request.params), type, objectBody(request.body));
      return {};
    });

    app.delete<{ Params: Params }>(
      `/_matrix/client/unstable/org.matrix.msc3391/user/:userId${path}`,
      async (request) => {
        const { userId, type } = request.params;
        requireSelf(request, userId);
        await accountData.delete(userId, roomIn(request.params), type);
        return {};
      },
    );
  }
}

function roomIn({ roomId }: Params): string | null {
  if (roomId === undefined) return null;
  if (!isRoomId(roomId)) throw invalidParam(`${roomId} is not a valid room ID.`);
  return roomId;
}

function objectBody(body: unknown): JsonObject {
  if (typeof body !== 'object' || body === null || Array.isArray(body))
    throw badJson('Content must be a JSON object.');
  return body as JsonObject;
}
