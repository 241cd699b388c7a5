import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { PushFetch } from '../gateway.ts';

// biome-ignore lint/suspicious/noExplicitAny: the tests look at what gateways get
export type Json = any;

/** A push gateway that notes what it is told. */
export class TestGateway {
  readonly got: Json[] = [];
  /** What it answers; the usual when there is nothing left. */
  readonly answers: Array<{ status: number; body?: object; headers?: Record<string, string> }> = [];
  readonly #server: Server;

  constructor() {
    this.#server = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        const { status, body, headers } = this.answers.shift() ?? { status: 200, body: { rejected: [] } };
        if (status === 200) this.got.push(JSON.parse(Buffer.concat(chunks).toString()).notification);
        response.writeHead(status, { 'content-type': 'application/json', ...headers });
        response.end(JSON.stringify(body ?? {}));
      });
    });
  }

  async listen(): Promise<void> {
    await new Promise<void>((done) => this.#server.listen(0, '127.0.0.1', done));
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/_matrix/push/v1/notify`;
  }

  get events(): string[] {
    return this.got.flatMap(({ event_id }) => event_id ?? []);
  }

  close(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }
}

export const plainFetch: PushFetch = async (url, { method, headers, body, timeoutMs }) => {
  const answer = await fetch(url, { method, headers, body, signal: AbortSignal.timeout(timeoutMs) });
  return {
    status: answer.status,
    headers: Object.fromEntries(answer.headers),
    body: answer.body ?? new Blob([]).stream(),
    discard: () => void answer.body?.cancel(),
  };
};
