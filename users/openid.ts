import type { Queryable } from '@trellis/storage/database.ts';
import { ExpiringTokens } from './expiring-tokens.ts';

/** Tokens by which other services learn who a user is, through `/_matrix/federation/v1/openid/userinfo`. */
export function createOpenIdTokens(db: Queryable, lifetimeMs = 3_600_000): ExpiringTokens {
  return new ExpiringTokens(db, { table: 'openid_tokens', prefix: 'toi', lifetimeMs });
}
