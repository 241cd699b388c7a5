import type { JsonObject, JsonValue } from './event.ts';
import { compileGlob } from './glob.ts';
import { parseServerName, parseUserId } from './identifiers.ts';

/** Account data by which users say who may invite them (spec: "Invite permission"; MSC4155, in more detail). */
export const INVITE_PERMISSION = 'm.invite_permission_config';
export const INVITE_FILTER = 'org.matrix.msc4155.invite_permission_config';

/** `block` refuses the invite; `ignore` takes it without the invited user hearing of it. */
export type InviteVerdict = 'allow' | 'ignore' | 'block';

/** Patterns of one list that are looked at. */
const MAX_PATTERNS = 1000;

/** The lists of MSC4155 in their order: the first that the sender is in decides. */
const USER_LISTS = [
  ['allowed_users', 'allow'],
  ['ignored_users', 'ignore'],
  ['blocked_users', 'block'],
] as const;
const SERVER_LISTS = [
  ['allowed_servers', 'allow'],
  ['ignored_servers', 'ignore'],
  ['blocked_servers', 'block'],
] as const;

/**
 * What becomes of an invite.
 *
 * @param permission content of `INVITE_PERMISSION`, if the user has one
 * @param filter content of `INVITE_FILTER`, if the user has one
 */
export function inviteVerdict(
  sender: string,
  permission: JsonObject | undefined,
  filter: JsonObject | undefined,
): InviteVerdict {
  if (permission?.default_action === 'block') return 'block';
  if (!filter || filter.enabled === false) return 'allow';
  for (const [list, verdict] of USER_LISTS) if (matches(filter[list], sender)) return verdict;
  // As with server ACLs, ports don't count, and neither does letter case.
  const server = parseUserId(sender)?.serverName;
  const host = server === undefined ? undefined : parseServerName(server)?.host.toLowerCase();
  if (host === undefined) return 'allow';
  for (const [list, verdict] of SERVER_LISTS) if (matches(filter[list], host, true)) return verdict;
  return 'allow';
}

function matches(patterns: JsonValue | undefined, text: string, ignoreCase = false): boolean {
  if (!Array.isArray(patterns)) return false;
  return patterns
    .slice(0, MAX_PATTERNS)
    .some(
      (pattern) =>
        typeof pattern === 'string' &&
        compileGlob(ignoreCase ? pattern.toLowerCase() : pattern).matches(text),
    );
}
