import type { FastifyInstance } from 'fastify';

const VERSIONS = Array.from({ length: 16 }, (_, i) => `v1.${i + 1}`);

/** Proposals that are served under their unstable names too, or that clients look for by these names. */
const FEATURES = {
  'org.matrix.label_based_filtering': true,
  'org.matrix.e2e_cross_signing': true,
  'uk.tcpip.msc4133': true,
  'uk.tcpip.msc4133.stable': true,
  'org.matrix.msc3266': true,
  'uk.half-shot.msc2666.query_mutual_rooms': true,
  'uk.half-shot.msc2666.query_mutual_rooms.stable': true,
};

export interface VersionsDeps {
  /** Further unstable features of other areas. */
  readonly unstableFeatures?: Readonly<Record<string, boolean>>;
}

/** `GET /versions` (spec: "API Versions"). */
export function versionsRoutes(app: FastifyInstance, { unstableFeatures = {} }: VersionsDeps): void {
  const answer = { versions: VERSIONS, unstable_features: { ...FEATURES, ...unstableFeatures } };
  app.get('/_matrix/client/versions', { config: { auth: 'none', rateLimit: false } }, async () => answer);
}
