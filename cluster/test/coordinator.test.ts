import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { ROLES } from '../cluster.ts';
import { Coordinator } from '../coordinator.ts';
import type { ToMember } from '../messages.ts';
import type { Registry } from '../registry.ts';

describe('a coordinator that may have lost its lease', () => {
  it('answers what came meanwhile in its order, once it knows that it has not', async () => {
    const member = { id: 'm', roles: ROLES, address: '', ready: false };
    const registry = { members: async () => [member], admit: async () => true } as unknown as Registry;
    const sent: ToMember[] = [];
    let valid = true;
    const coordinator = new Coordinator({
      self: 'c',
      term: 1,
      registry,
      log: { info: () => {}, warn: () => {}, error: () => {} },
      starts: new Map([['events', 10]]),
      send: (_to, message) => void sent.push(message),
      connect: () => {},
      disconnect: () => {},
      isDown: () => false,
      valid: () => valid,
    });
    coordinator.handle('m', { t: 'join', ready: false });
    await new Promise(setImmediate);
    assert.equal(sent.splice(0)[0]?.t, 'welcome');

    valid = false;
    const reserve = (n: number) => coordinator.handle('m', { t: 'reserve', n, s: 'events', c: 1, g: 0 });
    reserve(1);
    assert.deepEqual(sent, []);
    coordinator.renewed();
    assert.deepEqual(sent, [], 'the renewal came too late');
    valid = true;
    reserve(2);
    assert.deepEqual(sent, []);
    coordinator.renewed();
    reserve(3);
    assert.deepEqual(
      sent,
      [1, 2, 3].map((n) => ({ t: 'reserved', n, p: 10 + n })),
    );
    coordinator.stop();
  });
});
