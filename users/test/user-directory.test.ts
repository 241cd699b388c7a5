import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { beginsOrAlmost, typoVariants } from '../directory-typos.ts';
import { UserDirectory } from '../user-directory.ts';
import { databaseForFile, SERVER } from './fixture.ts';

const ME = '@me:example.org';
const NAMES: Record<string, string | undefined> = {
  '@adele:example.org': 'Adèle Dupont',
  '@carolina:example.org': 'Zebra Keeper',
  '@d.ocean:example.org': undefined,
  '@lukasz:elsewhere.example': 'Łukasz Żółć',
  '@muller:elsewhere.example': 'Jürgen Müller-Straße',
  '@tanaka:elsewhere.example': '田中 太郎',
  '@hidden:elsewhere.example': 'Zebra Hidden',
  '@full:elsewhere.example': 'ＦＵＬＬ width',
};

const db = await databaseForFile();
const hidden = new Set(['@hidden:elsewhere.example']);
const visibility = {
  visibleTo: async (_by: string, ids: readonly string[]) => new Set(ids.filter((id) => !hidden.has(id))),
};
const directory = new UserDirectory({ db, serverName: SERVER, visibility });

async function find(term: string, limit = 10): Promise<string[]> {
  const { results } = await directory.search(ME, term, limit);
  return results.map(({ user_id }) => user_id.slice(1, user_id.indexOf(':')));
}

describe('the user directory', () => {
  before(async () => {
    await directory.setLocal(ME, 'Zebra Me', undefined);
    for (const [userId, name] of Object.entries(NAMES)) {
      if (userId.endsWith(`:${SERVER}`)) await directory.setLocal(userId, name, undefined);
      else await directory.noteProfile(userId, name, undefined);
    }
  });

  it('finds users by the beginning of any word of name and id, without regard to case', async () => {
    assert.deepEqual((await find('zeb')).sort(), ['carolina', ME.slice(1, ME.indexOf(':'))].sort());
    assert.deepEqual(await find('KEEPER zebra'), ['carolina']);
    assert.deepEqual(await find('CAROL'), ['carolina']);
    assert.deepEqual(await find('ocean'), ['d.ocean']);
    assert.deepEqual(await find('@carolina:exam'), ['carolina']);
    assert.deepEqual(await find('carolina:example.org'), ['carolina']);
    assert.deepEqual(await find('bra'), []);
    assert.deepEqual(await find('zebra adele'), []);
  });

  it('knows letters with and without marks, and other forms of them, as the same', async () => {
    for (const term of ['adele', 'ADÈLE', 'adèle dup', 'Ade\u0300le'])
      assert.deepEqual(await find(term), ['adele'], term);
    for (const term of ['lukasz zolc', 'Łukasz', 'żół']) assert.deepEqual(await find(term), ['lukasz'], term);
    for (const term of ['muller', 'Müller', 'strasse', 'straße'])
      assert.deepEqual(await find(term), ['muller'], term);
    assert.deepEqual(await find('full wid'), ['full']);
    for (const term of ['田', '中', '太郎']) assert.deepEqual(await find(term), ['tanaka'], term);
  });

  it('finds what was probably meant when nothing is as it was typed', async () => {
    for (const term of ['carolna', 'caorlina', 'carrolina', 'xarolina', 'karol', 'zebar keeper', 'keper'])
      assert.deepEqual(await find(term), ['carolina'], term);
    assert.deepEqual(await find('adlee dupnt'), ['adele']);
    for (const term of ['cxrxlina', 'zbra adele', 'kee', 'kxe'])
      assert.deepEqual(await find(term), term === 'kee' ? ['carolina'] : [], term);
  });

  it('shows nobody who is not to be seen, and oneself only as one of those in the rooms', async () => {
    assert.deepEqual(await find('hidden'), []);
    assert.deepEqual(await find('hiddne'), []);
    const all = new UserDirectory({ db, serverName: SERVER, visibility, searchAllUsers: true });
    const { results } = await all.search(ME, 'zebra', 10);
    assert.deepEqual(
      results.map(({ user_id, display_name }) => [user_id, display_name]),
      [
        ['@carolina:example.org', 'Zebra Keeper'],
        ['@hidden:elsewhere.example', 'Zebra Hidden'],
      ],
    );
  });

  it('says when there are more', async () => {
    for (let i = 0; i < 5; i++) await directory.setLocal(`@many${i}:example.org`, `Many ${i}`, undefined);
    const some = await directory.search(ME, 'many', 3);
    assert.deepEqual([some.results.length, some.limited], [3, true]);
    const all = await directory.search(ME, 'many', 5);
    assert.deepEqual([all.results.length, all.limited], [5, false]);
    assert.deepEqual(await directory.search(ME, '', 5), { results: [], limited: false });
    assert.deepEqual((await directory.search(ME, '\0 !', 5)).results, []);
  });

  it('follows changes of name, and forgets', async () => {
    const userId = '@fresh:elsewhere.example';
    await directory.noteProfile(userId, 'Before', 'mxc://elsewhere.example/a');
    await directory.noteProfile(userId, 'Later', undefined);
    assert.deepEqual(await find('before'), []);
    assert.deepEqual(await find('later'), ['fresh']);
    await directory.remove(userId);
    assert.deepEqual(await find('later'), []);
    await directory.noteProfile(userId, 'Later', undefined);
    assert.deepEqual(await find('later'), ['fresh']);
  });

  it('leaves the names of local users to their profiles, and takes anything for a name', async () => {
    await directory.noteProfile('@carolina:example.org', 'Secret Name', undefined);
    assert.deepEqual(await find('secret'), []);
    await directory.noteProfiles(
      [7, null, { a: 1 }, '', 'x\0y\ud800', 'w '.repeat(5000)].map((displayName, i) => ({
        userId: `@odd${i}:elsewhere.example`,
        displayName,
        avatarUrl: displayName,
      })),
    );
    assert.equal((await find('odd')).length, 6);
    await directory.noteProfile('nonsense', 'x', undefined);
  });
});

describe('typing errors', () => {
  it('leave a beginning in common', () => {
    const variants = (word: string) => new Set(typoVariants(word));
    for (const typed of ['carol', 'caro', 'crol', 'acrol', 'caxol', 'caarol'])
      assert.ok(!variants('carolina').isDisjointFrom(variants(typed)), typed);
    assert.deepEqual(typoVariants('abc'), []);
    assert.deepEqual(typoVariants('田中太郎'), []);
  });

  it('are one in a short word and two in a long one', () => {
    assert.ok(beginsOrAlmost('caroline', 'carolina'));
    assert.ok(beginsOrAlmost('craolnia', 'carolina'));
    assert.ok(!beginsOrAlmost('craolni', 'carolina'));
    assert.ok(!beginsOrAlmost('cxr', 'carolina'));
    assert.ok(!beginsOrAlmost('dave', 'carolina'));
  });
});
