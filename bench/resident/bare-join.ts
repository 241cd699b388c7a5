import { Agent, request } from 'node:https';

/**
 * What a join asks of another server, on a new connection, and nothing else: no event is checked, none is stored. No
 * homeserver can be faster.
 *
 * @returns milliseconds
 */
export async function bareJoin(roomId: string, via: string): Promise<number> {
  const agent = new Agent({ keepAlive: true, maxSockets: 1, rejectUnauthorized: false });
  const begun = performance.now();
  const room = encodeURIComponent(roomId);
  const user = encodeURIComponent('@bare:join.invalid');
  try {
    const template = await ask(agent, 'GET', via, `/_matrix/federation/v1/make_join/${room}/${user}?ver=11`);
    const { event } = JSON.parse(template) as { event: object };
    const path = `/_matrix/federation/v2/send_join/${room}/${encodeURIComponent('$bare')}?omit_members=true`;
    await ask(agent, 'PUT', via, path, JSON.stringify(event));
    await ask(agent, 'GET', via, '/_matrix/key/v2/server');
    return performance.now() - begun;
  } finally {
    agent.destroy();
  }
}

function ask(agent: Agent, method: string, server: string, path: string, body = ''): Promise<string> {
  return new Promise((resolve, reject) => {
    const headers = body === '' ? {} : { 'content-type': 'application/json' };
    const asking = request(`https://${server}${path}`, { agent, method, headers }, (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('end', () => resolve(Buffer.concat(chunks).toString()));
      response.on('error', reject);
    });
    asking.on('error', reject);
    asking.end(body);
  });
}
