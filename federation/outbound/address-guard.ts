import { BlockList, isIP, isIPv4, isIPv6 } from 'node:net';

/**
 * Ranges that are not the public internet: RFC 6890 special purposes, multicast, and the IPv6 forms of them.
 * Requests to names that others choose never go there unless the configuration allows it.
 */
export const PRIVATE_RANGES: readonly string[] = [
  '0.0.0.0/8',
  '10.0.0.0/8',
  '100.64.0.0/10',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.0.2.0/24',
  '192.88.99.0/24',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '198.51.100.0/24',
  '203.0.113.0/24',
  '224.0.0.0/4',
  '240.0.0.0/4',
  '::/128',
  '::1/128',
  '64:ff9b:1::/48',
  '100::/64',
  '2001:db8::/32',
  '3fff::/20',
  '5f00::/16',
  'fc00::/7',
  'fe80::/10',
  'fec0::/10',
  'ff00::/8',
];

export interface AddressRules {
  /** CIDR ranges or addresses that are refused; `PRIVATE_RANGES` when left out. */
  deny?: readonly string[];
  /** Exceptions to `deny`. */
  allow?: readonly string[];
}

/** Decides which addresses a request may be made to. */
export class AddressGuard {
  readonly #deny: BlockList;
  readonly #allow: BlockList;

  constructor(rules: AddressRules = {}) {
    this.#deny = blockList(rules.deny ?? PRIVATE_RANGES);
    this.#allow = blockList(rules.allow ?? []);
  }

  allows(address: string): boolean {
    const bare = address.split('%', 1)[0]!;
    if (isIPv4(bare)) return this.#allow.check(bare, 'ipv4') || !this.#deny.check(bare, 'ipv4');
    if (!isIPv6(bare)) return false;
    if (this.#allow.check(bare, 'ipv6')) return true;
    if (this.#deny.check(bare, 'ipv6')) return false;
    return embeddedIpv4(bare).every((embedded) => this.allows(embedded));
  }
}

function blockList(ranges: readonly string[]): BlockList {
  const list = new BlockList();
  for (const range of ranges) {
    const [address = '', prefix] = range.split('/');
    const family = isIP(address);
    const bits = prefix === undefined ? (family === 4 ? 32 : 128) : Number(prefix);
    if (family === 0 || !Number.isInteger(bits) || bits < 0 || bits > (family === 4 ? 32 : 128))
      throw new Error(`"${range}" is not an address range such as 10.0.0.0/8 or fc00::/7`);
    list.addSubnet(address, bits, family === 4 ? 'ipv4' : 'ipv6');
  }
  return list;
}

/** The IPv4 addresses that a transitional IPv6 address leads to: a way around rules written for IPv4. */
function embeddedIpv4(address: string): string[] {
  const bytes = ipv6Bytes(address);
  const quad = (at: number, mask = 0) =>
    bytes
      .slice(at, at + 4)
      .map((byte) => byte ^ mask)
      .join('.');
  const word = (index: number) => bytes[index * 2]! * 256 + bytes[index * 2 + 1]!;
  const zero = (from: number, to: number) => bytes.slice(from, to).every((byte) => byte === 0);
  // IPv4-compatible ::a.b.c.d (RFC 4291 2.5.5.1), IPv4-mapped ::ffff:a.b.c.d, IPv4-translated ::ffff:0:a.b.c.d.
  if (zero(0, 12)) return [quad(12)];
  if (zero(0, 10) && word(5) === 0xffff) return [quad(12)];
  if (zero(0, 8) && word(4) === 0xffff && word(5) === 0) return [quad(12)];
  // NAT64 (RFC 6052), 6to4 (RFC 3056), Teredo (RFC 4380: its server, and its client inverted).
  if (word(0) === 0x64 && word(1) === 0xff9b && zero(4, 12)) return [quad(12)];
  if (word(0) === 0x2002) return [quad(2)];
  if (word(0) === 0x2001 && word(1) === 0) return [quad(4), quad(12, 0xff)];
  // ISATAP (RFC 5214).
  if ((word(4) === 0 || word(4) === 0x200) && word(5) === 0x5efe) return [quad(12)];
  return [];
}

function ipv6Bytes(address: string): number[] {
  const quad = /(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(address);
  let text = address;
  if (quad) {
    const [a, b, c, d] = quad.slice(1).map(Number) as [number, number, number, number];
    text = `${address.slice(0, quad.index)}${(a * 256 + b).toString(16)}:${(c * 256 + d).toString(16)}`;
  }
  const [head = '', tail] = text.split('::');
  const left = head === '' ? [] : head.split(':');
  const right = tail === undefined || tail === '' ? [] : tail.split(':');
  const words =
    tail === undefined ? left : [...left, ...Array(8 - left.length - right.length).fill('0'), ...right];
  return words.flatMap((word) => [Number.parseInt(word, 16) >> 8, Number.parseInt(word, 16) & 255]);
}
