import type { JsonObject } from '@trellis/protocol/event.ts';
import type { CrossSigning } from '@trellis/users/e2ee/cross-signing.ts';
import type { Signatures, SignatureUpload } from '@trellis/users/e2ee/signatures.ts';
import type { Uia } from '@trellis/users/uia.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { mapOf } from './map-schema.ts';

export interface KeysSigningDeps {
  readonly crossSigning: CrossSigning;
  readonly signatures: Signatures;
  readonly uia: Uia;
}

const key = Type.Optional(
  Type.Object({
    user_id: Type.String(),
    usage: Type.Array(Type.String(), { maxItems: 10 }),
    keys: mapOf(Type.String(), { minProperties: 1, maxProperties: 1 }),
    signatures: Type.Optional(mapOf(mapOf(Type.String()))),
  }),
);
const uploadBody = Type.Object({ master_key: key, self_signing_key: key, user_signing_key: key });
interface UploadBody {
  master_key?: JsonObject;
  self_signing_key?: JsonObject;
  user_signing_key?: JsonObject;
}

const signaturesBody = mapOf(mapOf(Type.Object({})), {
  maxProperties: 1000,
});

/** Cross-signing (spec: "Cross-signing"). */
export function keysSigningRoutes(app: FastifyInstance, deps: KeysSigningDeps): void {
  const { crossSigning, signatures, uia } = deps;

  app.post<{ Body: UploadBody }>(
    '/_matrix/client/v3/keys/device_signing/upload',
    { schema: { body: uploadBody } },
    async (request) => {
      const { userId, appserviceId } = requesterOf(request);
      const { master_key: master, self_signing_key, user_signing_key } = request.body;
      const upload = { master, self_signing: self_signing_key, user_signing: user_signing_key };
      if (await crossSigning.upload(userId, upload, appserviceId !== undefined)) return {};
      await uia.confirmPassword({ endpoint: 'POST /keys/device_signing/upload', body: request.body, userId });
      await crossSigning.upload(userId, upload, true);
      return {};
    },
  );

  app.post<{ Body: SignatureUpload }>(
    '/_matrix/client/v3/keys/signatures/upload',
    { schema: { body: signaturesBody } },
    async (request) => {
      const failures = await signatures.upload(requesterOf(request).userId, request.body);
      return {
        failures: Object.fromEntries(
          [...failures].map(([userId, errors]) => [
            userId,
            Object.fromEntries([...errors].map(([target, error]) => [target, error.toBody()])),
          ]),
        ),
      };
    },
  );
}
