import type { SignUpConditions } from '@trellis/client-api/sign-up-conditions.ts';
import { parseJson } from '@trellis/protocol/json.ts';
import { AcceptedTerms } from '@trellis/users/accepted-terms.ts';
import type { CheckCaptcha, Stage } from '@trellis/users/uia-stages.ts';
import type { Config } from '../config/schema.ts';
import type { Core } from './core.ts';

const TIMEOUT_MS = 15_000;
const MAX_ANSWER_BYTES = 65_536;

/** What is asked of who registers, besides tokens and addresses: documents to accept, riddles to solve. */
export function composeSignUpConditions({ config, db }: Core) {
  const { terms, recaptcha } = config.registration;
  const conditions: SignUpConditions = {
    policies: terms,
    captcha: recaptcha && { publicKey: recaptcha.public_key },
  };
  const versions = new Map(Object.entries(terms ?? {}).map(([name, { version }]) => [name, version]));
  const params: Partial<Record<Stage, object>> = {
    ...(terms && { 'm.login.terms': { policies: terms } }),
    ...(recaptcha && { 'm.login.recaptcha': { public_key: recaptcha.public_key } }),
  };
  return {
    conditions,
    params,
    acceptedTerms: new AcceptedTerms(db, versions),
    checkCaptcha: recaptcha && captchaCheck(recaptcha),
  };
}

/** Asks the service that set the riddle. Others than Google's have the same interface. */
function captchaCheck({
  private_key,
  verify_url,
}: NonNullable<Config['registration']['recaptcha']>): CheckCaptcha {
  return async (response) => {
    const answer = await fetch(verify_url, {
      method: 'POST',
      body: new URLSearchParams({ secret: private_key, response }),
      redirect: 'error',
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const text = await boundedText(answer);
    if (!answer.ok) throw new Error(`the service that sets riddles answered ${answer.status}`);
    return (parseJson(text) as { success?: unknown }).success === true;
  };
}

async function boundedText(answer: Response): Promise<string> {
  const decoder = new TextDecoder();
  let text = '';
  for await (const chunk of answer.body ?? []) {
    text += decoder.decode(chunk, { stream: true });
    if (text.length > MAX_ANSWER_BYTES) throw new Error('the service that sets riddles says too much');
  }
  return text;
}
