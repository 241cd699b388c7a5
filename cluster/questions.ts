import { unavailable } from './calls.ts';
import type { ToCoordinator } from './messages.ts';

interface Question {
  readonly message: ToCoordinator;
  readonly answer: PromiseWithResolvers<number>;
  readonly since: number;
}

/** How long what was asked of a coordinator may wait for one, in milliseconds. */
const WAIT_LIMIT = 15_000;

/** What a process has asked its coordinator, until it is answered. */
export class Questions {
  readonly #open = new Map<number, Question>();
  #last = 0;

  /** @param message with the number by which it will be answered */
  ask(message: (n: number) => ToCoordinator): { message: ToCoordinator; answered: Promise<number> } {
    const n = ++this.#last;
    const question = { message: message(n), answer: Promise.withResolvers<number>(), since: Date.now() };
    this.#open.set(n, question);
    return { message: question.message, answered: question.answer.promise };
  }

  answer(n: number): PromiseWithResolvers<number> | undefined {
    const question = this.#open.get(n);
    this.#open.delete(n);
    return question?.answer;
  }

  /**
   * Another coordinator has taken over: what the one before gave or was told is void.
   *
   * @returns what was only asked, to be asked again
   */
  carryOver(): ToCoordinator[] {
    const again: ToCoordinator[] = [];
    for (const [n, { message, answer }] of this.#open) {
      if (message.t !== 'complete') again.push(message);
      else {
        this.#open.delete(n);
        answer.reject(unavailable('The processes of the server had to agree anew: try again'));
      }
    }
    return again;
  }

  /** Nobody waits for ever for a coordinator that does not come. */
  expire(): void {
    const limit = Date.now() - WAIT_LIMIT;
    for (const [n, { answer, since }] of this.#open) {
      if (since > limit) break;
      this.#open.delete(n);
      answer.reject(unavailable('The processes of the server do not agree: try again later'));
    }
  }
}
