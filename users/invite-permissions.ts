import { MatrixError } from '@trellis/protocol/errors.ts';
import {
  INVITE_FILTER,
  INVITE_PERMISSION,
  type InviteVerdict,
  inviteVerdict,
} from '@trellis/protocol/invite-permission.ts';
import type { AccountData } from './account-data.ts';

/** Whom users let invite them, as their account data says (spec: "Invite permission"). */
export class InvitePermissions {
  readonly #accountData: Pick<AccountData, 'get'>;

  constructor(accountData: Pick<AccountData, 'get'>) {
    this.#accountData = accountData;
  }

  async verdict(userId: string, sender: string): Promise<InviteVerdict> {
    const [permission, filter] = await Promise.all([
      this.#accountData.get(userId, null, INVITE_PERMISSION),
      this.#accountData.get(userId, null, INVITE_FILTER),
    ]);
    return inviteVerdict(sender, permission, filter);
  }

  /** @throws M_INVITE_BLOCKED */
  async requireAllowed({
    sender,
    target,
  }: {
    readonly sender: string;
    readonly target: string;
  }): Promise<void> {
    if ((await this.verdict(target, sender)) === 'block')
      throw new MatrixError(403, 'M_INVITE_BLOCKED', 'The user does not want to be invited');
  }

  /** Invites that are there already are kept from the user too, whether they would be refused now or ignored. */
  async hides(userId: string, sender: string): Promise<boolean> {
    return (await this.verdict(userId, sender)) !== 'allow';
  }
}
