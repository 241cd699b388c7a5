import type { Accounts } from './accounts.ts';
import { canonicalPhone } from './threepid-address.ts';

export type JsonObject = Record<string, unknown>;

export function asObject(value: unknown): JsonObject | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as JsonObject)
    : undefined;
}

/**
 * The user that a log-in or a password stage means (spec: "Identifier types"; `user`, `medium` and `address` beside
 * `password` are the deprecated form). There need not be one of that id: to ask for their password is harmless.
 */
export async function accountOf(accounts: Accounts, request: JsonObject): Promise<{ userId: string }> {
  const identifier = asObject(request.identifier) ?? request;
  const { type, user, medium, address } = identifier;
  if (type === 'm.id.phone') {
    const { country, phone } = identifier;
    const number =
      typeof country === 'string' && typeof phone === 'string' ? canonicalPhone(country, phone) : undefined;
    if (number === undefined) return { userId: '' };
    return (await accounts.findByThreepid('msisdn', number)) ?? { userId: `msisdn:${number}` };
  }
  if (typeof medium === 'string' && typeof address === 'string' && type !== 'm.id.user')
    return (
      (await accounts.findByThreepid(medium, address)) ?? { userId: `${medium}:${address}`.slice(0, 255) }
    );
  if (typeof user !== 'string' || user.length > 255) return { userId: '' };
  return (await accounts.find(user)) ?? { userId: user };
}
