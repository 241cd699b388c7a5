import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { UnavailableError } from '@trellis/storage/unavailable.ts';
import { isObject } from '../outbound/answers.ts';

/** Takes the content of one kind of EDU. What is wrong with it is dropped; nothing is thrown that others would see. */
export type EduHandler = (origin: string, content: JsonObject) => Promise<void>;

/** Spec: "Transactions". */
export const MAX_EDUS = 100;

/**
 * EDUs of a server's transaction, one after the other; one that fails does not keep the next. Throws when they cannot be
 * handled at the moment: the server sends the transaction again.
 */
export type HandleEdus = (origin: string, edus: JsonValue | undefined) => Promise<void>;

export function eduDispatcher(
  handlers: ReadonlyMap<string, EduHandler>,
  log: { warn(details: object, message: string): void },
): HandleEdus {
  return async (origin, edus) => {
    if (!Array.isArray(edus)) return;
    for (const edu of edus.slice(0, MAX_EDUS)) {
      if (!isObject(edu) || typeof edu.edu_type !== 'string' || !isObject(edu.content)) continue;
      const handler = handlers.get(edu.edu_type);
      if (!handler) continue;
      try {
        await handler(origin, edu.content);
      } catch (err) {
        if (isPassing(err)) throw err;
        log.warn({ err, origin, type: edu.edu_type }, 'an EDU could not be handled');
      }
    }
  };
}

/** The database is away, or another process that was to do it. */
function isPassing(error: unknown): boolean {
  return error instanceof UnavailableError || (error instanceof MatrixError && error.status === 503);
}
