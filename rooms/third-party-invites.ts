import { forbidden } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { parseUserId, serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { InvitePolicy, RemoteMembership } from './membership.ts';
import type { Rooms } from './rooms.ts';
import { sendEvent } from './send.ts';

/** An identity server's word that a user is who a third-party invite with that token is for. */
export interface SignedInvite {
  readonly mxid: string;
  readonly token: string;
  readonly signatures: Readonly<Record<string, Readonly<Record<string, string>>>>;
}

export interface ThirdPartyInvitesParts {
  readonly rooms: Rooms;
  readonly remote: Pick<RemoteMembership, 'invite'>;
  readonly mayInvite?: InvitePolicy | undefined;
  /** Asks the inviter's server to issue the invite. */
  readonly exchange: (server: string, roomId: string, invite: JsonObject) => Promise<void>;
}

/** Third-party invites that have found their user (spec: "Third-party invites"). */
export class ThirdPartyInvites {
  readonly #parts: ThirdPartyInvitesParts;

  constructor(parts: ThirdPartyInvitesParts) {
    this.#parts = parts;
  }

  /** Has a local user, whom the third-party invite is for, invited by who sent that. */
  async takeUp(roomId: string, sender: string, signed: SignedInvite): Promise<void> {
    const server = parseUserId(sender)?.serverName;
    if (server === undefined) throw forbidden('Nobody has issued such an invite');
    if (server === this.#parts.rooms.parts.serverName) return this.issue(roomId, sender, signed);
    await this.#parts.exchange(server, roomId, {
      type: 'm.room.member',
      room_id: roomId,
      sender,
      state_key: signed.mxid,
      content: { membership: 'invite', third_party_invite: { display_name: '', signed: copyOf(signed) } },
    });
  }

  /** Invites on behalf of a local user who sent the third-party invite; the auth rules verify the signature. */
  async issue(roomId: string, sender: string, signed: SignedInvite): Promise<void> {
    const { rooms, remote, mayInvite } = this.#parts;
    const target = signed.mxid;
    const room = await rooms.require(roomId);
    const ref = room.state.get('m.room.third_party_invite', signed.token);
    const issued = ref && (await rooms.parts.events.get(ref.eventId));
    if (issued?.sender !== sender) throw forbidden('The user has issued no such invite');
    const name = issued.content.display_name;
    const content: JsonObject = {
      membership: 'invite',
      third_party_invite: { display_name: typeof name === 'string' ? name : '', signed: copyOf(signed) },
    };
    if (serverNameOf(target) !== rooms.parts.serverName) {
      await remote.invite(roomId, sender, target, content);
      return;
    }
    await mayInvite?.({ roomId, sender, target, content });
    await sendEvent(rooms, roomId, { type: 'm.room.member', sender, stateKey: target, content });
  }
}

/** Only what was looked at goes into an event of ours. */
function copyOf({ mxid, token, signatures }: SignedInvite): JsonObject {
  return { mxid, token, signatures };
}
