import { invalidParam } from '@trellis/protocol/errors.ts';
import { isName } from '@trellis/users/e2ee/key-json.ts';
import type { DeviceMessages, ToDevice } from '@trellis/users/to-device.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { mapOf } from './map-schema.ts';

export interface ToDeviceDeps {
  readonly toDevice: ToDevice;
}

const body = Type.Object({
  messages: mapOf(mapOf(Type.Object({}))),
});

/** Spec: "Send-to-Device messaging". */
export function toDeviceRoutes(app: FastifyInstance, { toDevice }: ToDeviceDeps): void {
  app.put<{ Params: { eventType: string; txnId: string }; Body: { messages: DeviceMessages } }>(
    '/_matrix/client/v3/sendToDevice/:eventType/:txnId',
    { schema: { body }, config: { guests: true } },
    async (request) => {
      const { userId, deviceId, tokenId } = requesterOf(request);
      const { eventType, txnId } = request.params;
      if (!isName(eventType)) throw invalidParam('That is no event type');
      // Application services may act without a device.
      await toDevice.send({ userId, deviceId: deviceId ?? tokenId }, eventType, txnId, request.body.messages);
      return {};
    },
  );
}
