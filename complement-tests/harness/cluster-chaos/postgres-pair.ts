import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';

const ROOT = new URL('../../../', import.meta.url).pathname;

/** A primary and its synchronous standby, looked after by `storage/postgres-pair.ts`. */
export class PostgresPair {
  readonly url: string;
  readonly #child: ChildProcess;
  readonly #answers: AsyncIterator<string>;

  private constructor(url: string, child: ChildProcess, answers: AsyncIterator<string>) {
    this.url = url;
    this.#child = child;
    this.#answers = answers;
  }

  static async start(folder: string): Promise<PostgresPair> {
    const child = spawn(process.execPath, [join(ROOT, 'storage/postgres-pair.ts'), folder], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const lines: Interface = createInterface({ input: child.stdout! });
    const answers = lines[Symbol.asyncIterator]();
    const { value } = await answers.next();
    if (typeof value !== 'string') throw new Error('no PostgreSQL with a standby could be started');
    return new PostgresPair(value, child, answers);
  }

  /** kill -9 of the primary; a moment later its standby is promoted. */
  async failOver(): Promise<void> {
    this.#child.stdin!.write('fail-over\n');
    const { value } = await this.#answers.next();
    if (value !== 'promoted') throw new Error(`the standby was not promoted: ${value}`);
  }

  async stop(): Promise<void> {
    const ended = new Promise<void>((done) => this.#child.once('exit', () => done()));
    this.#child.stdin!.end();
    await ended;
  }
}
