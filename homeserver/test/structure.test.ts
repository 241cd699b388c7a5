import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const MAX_LINES = 600;

const ENGINE = ['protocol', 'storage', 'cluster'];
const BELOW_EDGES = [...ENGINE, 'rooms', 'users'];
const EDGES = ['client-api', 'federation', 'appservices', 'media', 'push'];
const EVERYTHING = [...BELOW_EDGES, ...EDGES, 'homeserver'];

/** What each folder may import besides itself: docs/architecture.md. */
const MAY_IMPORT = new Map<string, readonly string[]>([
  ['protocol', []],
  ['storage', ['protocol']],
  ['cluster', ['protocol', 'storage']],
  ['rooms', ENGINE],
  ['users', ENGINE],
  ...EDGES.map((edge): [string, readonly string[]] => [edge, BELOW_EDGES]),
  ['homeserver', EVERYTHING],
  ['bench', EVERYTHING],
  ['complement-tests', []],
]);

interface Source {
  /** From the root, with slashes. */
  readonly path: string;
  readonly text: string;
}

function sources(): Source[] {
  return [...MAY_IMPORT.keys()].flatMap((folder) =>
    readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && /\.(ts|mjs)$/.test(entry.name))
      .map((entry) => join(entry.parentPath, entry.name))
      .filter((path) => !path.includes('node_modules'))
      .map((path) => ({ path: relative(ROOT, path), text: readFileSync(path, 'utf8') })),
  );
}

function isTest({ path }: Source): boolean {
  return path.startsWith('complement-tests/') || path.includes('/test/') || path.endsWith('.test.ts');
}

/** The folders of ours that a file imports from. */
function importedFolders({ path, text }: Source): string[] {
  const specifiers = [
    ...text.matchAll(/^\s*(?:import|export)\s[^'"`;]*?from\s*['"]([^'"]+)['"]/gm),
    ...text.matchAll(/^\s*import\s*['"]([^'"]+)['"]/gm),
    ...text.matchAll(/\bimport\(\s*['"`]([^'"`]+)['"`]/g),
  ].map((match) => match[1]!);
  return specifiers.flatMap((specifier) => {
    const ours = /^@trellis\/([^/]+)/.exec(specifier)?.[1];
    if (ours !== undefined) return [ours];
    if (!specifier.startsWith('.')) return [];
    return [join(dirname(path), specifier).split('/')[0]!];
  });
}

function brokenRules(files: readonly Source[]): string[] {
  return files.flatMap((file) => {
    const folder = file.path.split('/')[0]!;
    const allowed = [folder, ...MAY_IMPORT.get(folder)!];
    return importedFolders(file)
      .filter((imported) => !allowed.includes(imported))
      .map((imported) => `${file.path} imports ${imported}`);
  });
}

function tooLong(files: readonly Source[]): string[] {
  return files
    .filter((file) => !isTest(file))
    .map(({ path, text }) => ({ path, lines: text.split('\n').length - 1 }))
    .filter(({ lines }) => lines > MAX_LINES)
    .map(({ path, lines }) => `${path} has ${lines} lines`);
}

describe('the source', () => {
  const files = sources();

  it('is found', () => {
    for (const folder of ['protocol', 'storage', 'rooms', 'client-api'])
      assert.ok(files.filter(({ path }) => path.startsWith(`${folder}/`)).length > 5, folder);
    assert.ok(files.some((file) => importedFolders(file).includes('protocol')));
  });

  it('imports along the dependency rule only', () => {
    assert.deepEqual(brokenRules(files), []);
  });

  it('has no file that is too long to be read', () => {
    assert.deepEqual(tooLong(files), []);
  });
});

describe('these checks', () => {
  const file = (path: string, text: string) => [{ path, text }];

  it('see every way to import', () => {
    for (const text of [
      "import { Room } from '@trellis/rooms/room.ts';",
      "import type { Room } from '@trellis/rooms/room.ts';",
      "import {\n  type Room,\n  Rooms,\n} from '@trellis/rooms/room.ts';",
      "export { Room } from '@trellis/rooms/room.ts';",
      "export * from '../rooms/room.ts';",
      "import '../rooms/room.ts';",
      "const late = await import('@trellis/rooms/room.ts');",
      "type Room = import('../rooms/room.ts').Room;",
    ])
      assert.deepEqual(brokenRules(file('storage/x.ts', text)), ['storage/x.ts imports rooms'], text);
  });

  it('know which way is up', () => {
    const imports = (folder: string) => `import '@trellis/${folder}/x.ts';`;
    for (const [path, folder] of [
      ['protocol/x.ts', 'storage'],
      ['rooms/x.ts', 'users'],
      ['users/x.ts', 'rooms'],
      ['media/x.ts', 'federation'],
      ['client-api/sync/x.ts', 'homeserver'],
      ['complement-tests/x.test.ts', 'protocol'],
    ] as const)
      assert.equal(brokenRules(file(path, imports(folder))).length, 1, `${path} ${folder}`);
    for (const [path, folder] of [
      ['media/x.ts', 'users'],
      ['homeserver/x.ts', 'media'],
      ['rooms/test/x.test.ts', 'storage'],
    ] as const)
      assert.deepEqual(brokenRules(file(path, imports(folder))), []);
    assert.deepEqual(brokenRules(file('client-api/sync/x.ts', "import '../y.ts';\nimport 'node:fs';")), []);
  });

  it('count lines, of tests not', () => {
    const long = '\n'.repeat(MAX_LINES + 1);
    assert.equal(tooLong(file('rooms/x.ts', long)).length, 1);
    assert.equal(tooLong(file('rooms/x.ts', long.slice(1))).length, 0);
    assert.equal(tooLong(file('rooms/test/x.test.ts', long)).length, 0);
  });
});
