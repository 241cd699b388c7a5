import { randomBytes } from 'node:crypto';
import { Agent, request } from 'node:http';

/** A user of the homeserver that is measured, with what a client asks for while it joins. */
export class BenchClient {
  readonly #url: string;
  readonly #timeout: number;
  readonly #agent = new Agent({ keepAlive: true });
  #token: string | undefined;

  /** @param timeout of a request, in milliseconds */
  constructor(url: string, timeout: number) {
    this.#url = url;
    this.#timeout = timeout;
  }

  async register(): Promise<void> {
    const body = {
      username: `bench${randomBytes(4).toString('hex')}`,
      password: 'bench-password-1',
      auth: { type: 'm.login.dummy' },
    };
    const { access_token: token } = await this.#call('POST', '/register', body);
    this.#token = String(token);
  }

  get(path: string): Promise<Record<string, unknown>> {
    return this.#call('GET', path);
  }

  post(path: string, body: object): Promise<Record<string, unknown>> {
    return this.#call('POST', path, body);
  }

  async #call(method: string, path: string, body?: object): Promise<Record<string, unknown>> {
    const { status, text } = await this.#ask(method, path, body === undefined ? '' : JSON.stringify(body));
    if (status !== 200) throw new Error(`${path}: ${status} ${text}`);
    return JSON.parse(text) as Record<string, unknown>;
  }

  /** Not by `fetch`, whose parser is optimised in the background during its first requests, at others' expense. */
  #ask(method: string, path: string, body: string): Promise<{ status: number | undefined; text: string }> {
    return new Promise((resolve, reject) => {
      const headers = {
        'content-type': 'application/json',
        ...(this.#token && { authorization: `Bearer ${this.#token}` }),
      };
      const signal = AbortSignal.timeout(this.#timeout);
      const options = { agent: this.#agent, method, headers, signal };
      const asking = request(`${this.#url}/_matrix/client/v3${path}`, options, (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('end', () =>
          resolve({ status: response.statusCode, text: Buffer.concat(chunks).toString() }),
        );
        response.on('error', reject);
      });
      asking.on('error', reject);
      asking.end(body);
    });
  }
}
