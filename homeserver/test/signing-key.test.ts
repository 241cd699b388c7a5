import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { SigningKey } from '@trellis/protocol/signing.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import { readConfig } from '../config/load.ts';
import { adoptKey, loadSigningKey, readSigningKey, signingKeyLine } from '../signing-key-file.ts';

describe('the signing key', () => {
  let database: Awaited<ReturnType<typeof testDatabase>>;
  const folder = mkdtempSync(join(tmpdir(), 'trellis-test-key-'));
  const machine = (name: string, text = '') => {
    const config = readConfig(text, join(folder, name));
    return { ...config, data_dir: mkdtempSync(join(folder, name)) };
  };

  before(async () => {
    database = await testDatabase();
    await database.db.query("INSERT INTO installation (server_name) VALUES ('localhost')");
  });
  after(async () => {
    await database.close();
    rmSync(folder, { recursive: true, force: true });
  });

  it('is made once by processes that start together', async () => {
    const config = machine('one');
    const keys = await Promise.all(
      Array.from({ length: 4 }, () => loadSigningKey(config, database.db, false)),
    );
    assert.equal(new Set(keys.map(signingKeyLine)).size, 1);
    assert.deepEqual(readdirSync(config.data_dir), ['signing.key']);
  });

  it('is not made anew on another machine, and no other one is taken there', async () => {
    const two = machine('two');
    await assert.rejects(loadSigningKey(two, database.db, false), /have a signing key already: copy it/);
    assert.deepEqual(readdirSync(two.data_dir), []);
    const file = join(two.data_dir, 'signing.key');
    writeFileSync(file, signingKeyLine(SigningKey.generate()));
    await assert.rejects(loadSigningKey(two, database.db, false), {
      name: 'ConfigError',
      message: /is another key than that of the other processes.*adopt-key/s,
    });
    await adoptKey(database.db, (await readSigningKey(file))!);
    assert.equal(signingKeyLine(await loadSigningKey(two, database.db, false)), readFileSync(file, 'utf8'));
  });

  it('may be replaced where there are no others', async () => {
    const config = machine('three');
    const key = SigningKey.generate();
    const file = join(folder, 'elsewhere.key');
    writeFileSync(file, signingKeyLine(key));
    const loaded = await loadSigningKey({ ...config, signing_key: file }, database.db, true);
    assert.equal(loaded.keyId, key.keyId);
    await assert.rejects(loadSigningKey(machine('four'), database.db, false), /have a signing key/);
  });
});
