import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { ROLES } from '../cluster.ts';
import { Coordinator, type CoordinatorDeps } from '../coordinator.ts';
import type { ToMember } from '../messages.ts';
import type { Registry } from '../registry.ts';
import { homesOf, View } from '../rendezvous.ts';

/** Of a term that it surely has, if nothing else is said. */
function coordinatorOf(
  deps: Pick<CoordinatorDeps, 'registry' | 'send'> & Partial<CoordinatorDeps>,
): Coordinator {
  return new Coordinator({
    self: 'c',
    term: 1,
    processesPerHome: 1,
    log: { info: () => {}, warn: () => {}, error: () => {} },
    starts: new Map([['events', 10]]),
    connect: () => {},
    disconnect: () => {},
    isDown: () => false,
    valid: () => true,
    ...deps,
  });
}

describe('a coordinator that may have lost its lease', () => {
  it('answers what came meanwhile in its order, once it knows that it has not', async () => {
    const member = { id: 'm', roles: ROLES, address: '', ready: false };
    const registry = { members: async () => [member], admit: async () => true } as unknown as Registry;
    const sent: ToMember[] = [];
    let valid = true;
    const coordinator = coordinatorOf({
      registry,
      send: (_to, message) => void sent.push(message),
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

describe('a coordinator on a bus that hands over', () => {
  it('asks for no acknowledgement of changes, and waits for who is being shut out', async () => {
    const removed = Promise.withResolvers<void>();
    const registry = {
      members: async () => ['m', 'o'].map((id) => ({ id, roles: ROLES, address: '', ready: false })),
      admit: async () => true,
      remove: () => removed.promise,
    } as unknown as Registry;
    const sent: Array<readonly [to: string | readonly string[], message: ToMember]> = [];
    const handing: Array<readonly [to: readonly string[], then: () => void]> = [];
    const coordinator = coordinatorOf({
      registry,
      send: (to, message) => void sent.push([to, message]),
      handedOver: (to, then) => void handing.push([to, then]),
    });
    const turn = () => new Promise(setImmediate);
    for (const id of ['m', 'o']) coordinator.handle(id, { t: 'join', ready: true });
    await turn();
    const announce = async (n: number) => {
      sent.length = 0;
      coordinator.handle('m', { t: 'announce', n, s: 'topic', x: '1' });
      await turn();
      const told = sent.find(([, { t }]) => t === 'tell')![1];
      assert.ok(told.t === 'tell' && !told.ack);
      sent.length = 0;
    };
    const isDone = (n: number) =>
      sent.some(([to, { t, ...rest }]) => {
        return to === 'm' && t === 'done' && (rest as { ns: number[] }).ns.includes(n);
      });
    await announce(1);
    assert.ok(!isDone(1));
    const [to, then] = handing.pop()!;
    assert.deepEqual(to, ['m', 'o']);
    then();
    assert.ok(isDone(1));

    await announce(2);
    coordinator.down('o');
    handing.pop()![1]();
    assert.ok(!isDone(2), 'o may still answer somebody');
    removed.resolve();
    await turn();
    await turn();
    assert.ok(isDone(2));
    coordinator.stop();
  });
});

describe('a coordinator of members that rest', () => {
  it('tells them later, but not what is urgent nor what they ask for', async () => {
    const registry = {
      members: async () => ['m', 'o'].map((id) => ({ id, roles: ROLES, address: '', ready: true })),
      admit: async () => true,
    } as unknown as Registry;
    const sent: Array<readonly [to: string | readonly string[], message: ToMember]> = [];
    const coordinator = coordinatorOf({
      registry,
      send: (to, message) => void sent.push([to, message]),
      handedOver: (_to, then) => setImmediate(then),
    });
    const turn = () => new Promise(setImmediate);
    for (const id of ['m', 'o']) coordinator.handle(id, { t: 'join', ready: true });
    await turn();
    let n = 0;
    const complete = async (u: boolean) => {
      sent.length = 0;
      coordinator.handle('m', { t: 'reserve', n: ++n, s: 'events', c: 1, g: 0 });
      const { p } = sent.pop()![1] as Extract<ToMember, { t: 'reserved' }>;
      coordinator.handle('m', { t: 'complete', n: ++n, s: 'events', p, x: '[]', u });
      await turn();
      await turn();
    };
    /** How many things each was told, in the order of telling. */
    const told = () =>
      sent.flatMap(([to, message]) => (message.t === 'tell' ? [[[to].flat(), message.items.length]] : []));
    await complete(false);
    assert.deepEqual(told(), [[['m', 'o'], 1]]);
    coordinator.handle('o', { t: 'rest' });
    await complete(false);
    assert.deepEqual(told(), [[['m'], 1]]);
    await complete(false);
    await complete(true);
    assert.deepEqual(told(), [
      [['o'], 2],
      [['m', 'o'], 1],
    ]);
    await complete(false);
    sent.length = 0;
    coordinator.handle('o', { t: 'wake', n: 99 });
    assert.deepEqual(told(), [[['o'], 1]]);
    assert.deepEqual(sent.at(-1), ['o', { t: 'done', ns: [99] }]);
    await complete(false);
    assert.deepEqual(told(), [[['m', 'o'], 1]]);
    coordinator.handle('o', { t: 'rest' });
    await complete(false);
    await new Promise((later) => setTimeout(later, 100));
    assert.deepEqual(told(), [
      [['m'], 1],
      [['o'], 1],
    ]);
    coordinator.stop();
  });
});

describe('rooms', () => {
  const members = (count: number) =>
    Array.from({ length: count }, (_, i) => ({ id: `m${i}`, roles: ROLES, address: '' }));
  const owners = (view: View, duty: 'room' | 'user') =>
    new Set(Array.from({ length: 500 }, (_, i) => view.owner(duty, `!${i}`)));

  it('live with the coordinator where processes are few, and in one of eight where they are many', () => {
    assert.deepEqual(homesOf(members(4), 'm2', 8), ['m2']);
    const homes = homesOf(members(17), 'm2', 8);
    assert.equal(homes.length, 3);
    assert.equal(homes[0], 'm2');
    const view = new View(1, members(17), homes);
    assert.deepEqual(owners(view, 'room'), new Set(homes));
    assert.equal(owners(view, 'user').size, 17);
  });

  it('live in all processes of which the configuration says so', () => {
    const some = members(6).map((member, i) => (i < 3 ? member : { ...member, roles: ['client'] as const }));
    assert.deepEqual(homesOf(some, 'm1', 8), ['m0', 'm1', 'm2']);
    assert.deepEqual(homesOf(some, 'm5', 8), ['m0', 'm1', 'm2']);
  });
});
