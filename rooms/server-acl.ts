import type { JsonValue } from '@trellis/protocol/event.ts';
import { compileGlob, type Glob } from '@trellis/protocol/glob.ts';
import { isIpLiteral, parseServerName } from '@trellis/protocol/identifiers.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** An `m.room.server_acl` event, ready to be asked (spec: client-server API, "Server Access Control Lists"). */
interface ServerAcl {
  readonly allowIpLiterals: boolean;
  readonly allow: readonly Glob[];
  readonly deny: readonly Glob[];
  readonly verdicts: RecentlyUsed<string, boolean>;
}

const acls = new RecentlyUsed<string, ServerAcl>(1000);

/** Whether the room's current state lets a server take part in the room. */
export async function isServerAllowed(rooms: Rooms, room: Room, server: string): Promise<boolean> {
  const ref = room.state.get('m.room.server_acl', '');
  const event = ref && (await rooms.parts.events.get(ref.eventId));
  if (!event) return true;
  const acl = aclOf(event);
  let verdict = acl.verdicts.get(server);
  if (verdict === undefined) {
    verdict = isAllowedBy(acl, server);
    acl.verdicts.set(server, verdict);
  }
  return verdict;
}

function isAllowedBy(acl: ServerAcl, server: string): boolean {
  // Ports don't count, and neither does letter case (MSC4436).
  const host = parseServerName(server)?.host.toLowerCase();
  if (host === undefined) return false;
  if (!acl.allowIpLiterals && isIpLiteral(host)) return false;
  if (acl.deny.some((glob) => glob.matches(host))) return false;
  return acl.allow.some((glob) => glob.matches(host));
}

function aclOf(event: StoredEvent): ServerAcl {
  // A redaction leaves nothing of an access list: it denies everyone then.
  const key = event.redactedBy ? `${event.eventId} redacted` : event.eventId;
  let acl = acls.get(key);
  if (!acl) {
    const { allow, deny, allow_ip_literals: allowIpLiterals } = event.content;
    acl = {
      allowIpLiterals: allowIpLiterals !== false,
      allow: globsOf(allow),
      deny: globsOf(deny),
      verdicts: new RecentlyUsed(1000),
    };
    acls.set(key, acl);
  }
  return acl;
}

function globsOf(patterns: JsonValue | undefined): Glob[] {
  if (!Array.isArray(patterns)) return [];
  return patterns
    .filter((pattern) => typeof pattern === 'string')
    .map((pattern) => compileGlob(pattern.toLowerCase()));
}
