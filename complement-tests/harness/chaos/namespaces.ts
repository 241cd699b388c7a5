import { execFileSync } from 'node:child_process';
import { MADE_MACHINES, type Machine } from '../machine.ts';
import type { TestServer } from '../server.ts';
import type { Network, Trouble } from './network.ts';
import type { Surroundings } from './surroundings.ts';

const BRIDGE = 'trellis-chaos';
/** Of the bridge: where the test's requests come from. */
const OUTSIDE = '10.213.77.254/24';
const DEVICE = 'eth0';
/** Bytes in a full packet. */
const PACKET = 1500;

/**
 * Each server in a network namespace of its own, with an Ethernet device and a loopback that nobody shares. The kernel
 * is what refuses, swallows and delays. Needs Linux, root, and the programs `ip`, `tc` and `nft`.
 */
export class Namespaces implements Network {
  readonly #names: string[] = [];
  /** By server and destination. */
  readonly #troubles = new Map<string, Set<Trouble>>();
  readonly #count: number;

  constructor(count: number) {
    this.#count = count;
    if (count > MADE_MACHINES.length) throw new Error(`there are ${MADE_MACHINES.length} addresses only`);
    process.on('exit', () => this.close());
    // What a run before this one has left behind when it was killed.
    for (let server = 0; server < MADE_MACHINES.length; server++)
      quietly('ip', 'netns', 'del', nameOf(server));
    quietly('ip', 'link', 'del', BRIDGE);
    run('ip', 'link', 'add', BRIDGE, 'type', 'bridge');
    run('ip', 'address', 'add', OUTSIDE, 'dev', BRIDGE);
    run('ip', 'link', 'set', BRIDGE, 'up');
    for (let server = 0; server < count; server++) this.#make(server);
  }

  machine(server: number): Machine {
    return { address: MADE_MACHINES[server]!, prefix: ['ip', 'netns', 'exec', this.#names[server]!] };
  }

  async connect(servers: readonly TestServer[]): Promise<Array<Surroundings['links']>> {
    return servers.map(() => ({}));
  }

  trouble(from: number, to: number, trouble: Trouble): () => void {
    const key = `${from} ${to}`;
    const troubles = this.#troubles.get(key) ?? new Set();
    this.#troubles.set(key, troubles.add(trouble));
    this.#apply(from, to, troubles);
    return () => {
      troubles.delete(trouble);
      this.#apply(from, to, troubles);
    };
  }

  connections(): number {
    let sum = 0;
    for (const name of this.#names) {
      const lines = run('ip', 'netns', 'exec', name, 'cat', '/proc/net/snmp').split('\n');
      const [names, values] = lines.filter((line) => line.startsWith('Tcp:')).map((line) => line.split(' '));
      sum += Number(values![names!.indexOf('ActiveOpens')]);
    }
    return sum;
  }

  close(): void {
    for (const name of this.#names.splice(0)) quietly('ip', 'netns', 'del', name);
    quietly('ip', 'link', 'del', BRIDGE);
  }

  #make(server: number): void {
    const name = nameOf(server);
    const inside = (...args: string[]) => run('ip', '-n', name, ...args);
    run('ip', 'netns', 'add', name);
    this.#names.push(name);
    run('ip', 'link', 'add', name, 'type', 'veth', 'peer', 'name', DEVICE, 'netns', name);
    run('ip', 'link', 'set', name, 'master', BRIDGE, 'up');
    inside('link', 'set', 'lo', 'up');
    inside('address', 'add', `${MADE_MACHINES[server]}/24`, 'dev', DEVICE);
    inside('link', 'set', DEVICE, 'up');
    const tc = (...args: string[]) => run('tc', '-n', name, ...args);
    tc('qdisc', 'add', 'dev', DEVICE, 'root', 'handle', '1:', 'htb', 'default', '1');
    for (const to of this.#others(server)) {
      tc('class', 'add', 'dev', DEVICE, 'parent', '1:', 'classid', classOf(to), ...speed(0));
      const there = ['match', 'ip', 'dst', `${MADE_MACHINES[to]}/32`, 'flowid', classOf(to)];
      tc('filter', 'add', 'dev', DEVICE, 'protocol', 'ip', 'parent', '1:', 'u32', ...there);
    }
    const rules = `table ip chaos {
      ${this.#others(server)
        .map((to) => `chain to${to} {}`)
        .join('\n')}
      chain output { type filter hook output priority 0;
        ${this.#others(server)
          .map((to) => `ip daddr ${MADE_MACHINES[to]} jump to${to}`)
          .join('\n')}
      }
    }`;
    nft(name, rules);
  }

  #others(server: number): number[] {
    return Array.from({ length: this.#count }, (_, to) => to).filter((to) => to !== server);
  }

  /** On the way out. What `from` asks of `to` is meant; what it answers to `to` is only slowed down with it. */
  #apply(from: number, to: number, troubles: ReadonlySet<Trouble>): void {
    const name = this.#names[from];
    if (name === undefined) return;
    const is = (kind: Trouble['kind']) => [...troubles].some((trouble) => trouble.kind === kind);
    const rules: string[] = [`flush chain ip chaos to${to}`];
    if (is('refuse')) rules.push(`add rule ip chaos to${to} ct direction original reject with tcp reset`);
    else if (is('swallow')) rules.push(`add rule ip chaos to${to} ct direction original drop`);
    nft(name, rules.join('\n'));
    const delay = Math.max(0, ...[...troubles].map(({ ms }) => ms ?? 0));
    run(
      'tc',
      '-n',
      name,
      'class',
      'change',
      'dev',
      DEVICE,
      'parent',
      '1:',
      'classid',
      classOf(to),
      ...speed(delay),
    );
  }
}

const nameOf = (server: number) => `${BRIDGE}-${server}`;
/** Of what goes to another server, which can be slowed down by itself; `tc` takes it for hexadecimal. */
const classOf = (to: number) => `1:${(0x10 + to).toString(16)}`;

/** Of a class: a full packet takes so many milliseconds. */
function speed(delay: number): string[] {
  const bits = delay === 0 ? 10e9 : (PACKET * 8 * 1000) / delay;
  return ['htb', 'rate', `${Math.round(bits)}bit`, 'burst', `${2 * PACKET}`, 'quantum', `${PACKET}`];
}

function nft(namespace: string, rules: string): void {
  execFileSync('ip', ['netns', 'exec', namespace, 'nft', '-f', '-'], { input: rules, stdio: 'pipe' });
}

function run(program: string, ...args: string[]): string {
  return execFileSync(program, args, { encoding: 'utf8', stdio: 'pipe' });
}

function quietly(program: string, ...args: string[]): void {
  try {
    run(program, ...args);
  } catch {
    // There was none.
  }
}
