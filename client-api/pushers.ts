import type { PusherRequest, Pushers, StoredPusher } from '@trellis/users/pushers.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

export interface PushersDeps {
  readonly pushers: Pushers;
}

/** MSC3881: switching the pushers of other devices off and on, and whose device each is. */
const ENABLED = 'org.matrix.msc3881.enabled';
const DEVICE_ID = 'org.matrix.msc3881.device_id';

const text = Type.Optional(Type.String());

const body = Type.Object({
  pushkey: Type.String({ minLength: 1 }),
  kind: Type.Union([Type.String(), Type.Null()]),
  app_id: Type.String({ minLength: 1 }),
  app_display_name: text,
  device_display_name: text,
  profile_tag: text,
  lang: text,
  data: Type.Optional(Type.Record(Type.String(), Type.Any())),
  append: Type.Optional(Type.Boolean()),
  [ENABLED]: Type.Optional(Type.Boolean()),
});

/** Pushers (spec: "Push Notifications"). */
export function pusherRoutes(app: FastifyInstance, { pushers }: PushersDeps): void {
  app.get('/_matrix/client/v3/pushers', async (request) => ({
    pushers: (await pushers.of(requesterOf(request).userId)).map(shown),
  }));

  app.post<{ Body: PusherRequest & { [ENABLED]?: boolean } }>(
    '/_matrix/client/v3/pushers/set',
    { schema: { body } },
    async (request) => {
      const { userId, deviceId } = requesterOf(request);
      const { [ENABLED]: enabled, ...pusher } = request.body;
      await pushers.set(userId, deviceId, { ...pusher, enabled });
      return {};
    },
  );
}

function shown(pusher: StoredPusher): object {
  const { pushkey, kind, app_id, app_display_name, device_display_name, profile_tag, lang, data } = pusher;
  const { enabled, deviceId } = pusher;
  return {
    pushkey,
    kind,
    app_id,
    app_display_name,
    device_display_name,
    ...(profile_tag && { profile_tag }),
    lang,
    data,
    [ENABLED]: enabled,
    ...(deviceId !== null && { [DEVICE_ID]: deviceId }),
  };
}
