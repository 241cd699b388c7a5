import { randomBytes } from 'node:crypto';

/** A user of the homeserver that is measured, with what a client asks for while it joins. */
export class BenchClient {
  readonly #url: string;
  readonly #timeout: number;
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
    const authorization = this.#token && { authorization: `Bearer ${this.#token}` };
    const response = await fetch(`${this.#url}/_matrix/client/v3${path}`, {
      method,
      headers: { 'content-type': 'application/json', ...authorization },
      ...(body ? { body: JSON.stringify(body) } : {}),
      signal: AbortSignal.timeout(this.#timeout),
    });
    const answer = (await response.json()) as Record<string, unknown>;
    if (!response.ok) throw new Error(`${path}: ${response.status} ${JSON.stringify(answer)}`);
    return answer;
  }
}
