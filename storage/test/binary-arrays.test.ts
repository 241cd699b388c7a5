import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { textArray } from '../binary-arrays.ts';
import { testDatabase } from '../testing.ts';

let database: Awaited<ReturnType<typeof testDatabase>>;
before(async () => {
  database = await testDatabase();
});
after(() => database.close());

for (const [name, values] of Object.entries<Array<string | null>>({
  none: [],
  'an empty one': [''],
  nothing: [null],
  'all kinds': ['a', null, '"\\{},', 'NULL', 'é', '𝕏', '\ud800', '\n', 'x'.repeat(100_000), null],
}))
  test(`PostgreSQL reads what was written: ${name}`, async () => {
    const rows = await database.db.query<{ value: string | null }>(
      'SELECT value FROM unnest($1::text[]) WITH ORDINALITY AS u(value, n) ORDER BY n',
      [textArray(values)],
    );
    // A surrogate without its other half is no UTF-8.
    const expected = values.map((value) => value && Buffer.from(value).toString());
    assert.deepEqual(
      rows.map(({ value }) => value),
      expected,
    );
  });
