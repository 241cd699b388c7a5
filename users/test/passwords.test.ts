import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Passwords } from '../passwords.ts';
import { CHEAP } from './fixture.ts';

const peppered = (...ids: string[]) =>
  new Passwords({ ...CHEAP, peppers: ids.map((id) => ({ id, secret: `secret of ${id}` })) });

describe('password hashes', () => {
  it('are of argon2id, salted, and verify their password only', async () => {
    const passwords = new Passwords(CHEAP);
    const [one, two] = [await passwords.hash('sesame'), await passwords.hash('sesame')];
    assert.match(one, /^\$argon2id\$v=19\$m=64,t=1,p=1\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+$/);
    assert.notEqual(one, two);
    assert.equal(await passwords.verify('sesame', one), true);
    assert.equal(await passwords.verify('Sesame', one), false);
    assert.equal(await passwords.verify('', one), false);
  });

  it('verify nothing when there is none or it is damaged', async () => {
    const passwords = new Passwords(CHEAP);
    const good = await passwords.hash('sesame');
    assert.equal(await passwords.verify('sesame', undefined), false);
    for (const bad of [
      '',
      '$2b$12$abc',
      good.slice(0, -3),
      good.replace('m=64', 'm=99999999999'),
      `${good}!`,
    ])
      assert.equal(await passwords.verify('sesame', bad), false, bad);
  });

  it('take what is typed on another keyboard for the same', async () => {
    const passwords = new Passwords(CHEAP);
    assert.equal(await passwords.verify('cafe\u0301', await passwords.hash('caf\u00e9')), true);
  });

  it('cannot be checked without the pepper that went in', async () => {
    const hash = await peppered('2026').hash('sesame');
    assert.equal(await peppered('2026').verify('sesame', hash), true);
    assert.equal(await peppered('2027', '2026').verify('sesame', hash), true);
    assert.equal(await peppered('2027').verify('sesame', hash), false);
    assert.equal(await new Passwords(CHEAP).verify('sesame', hash), false);
  });

  it('are outdated when they were made with other settings', async () => {
    const hash = await peppered('2026').hash('sesame');
    assert.equal(peppered('2026').isOutdated(hash), false);
    assert.equal(peppered('2027', '2026').isOutdated(hash), true);
    assert.equal(new Passwords({ ...CHEAP, passes: 2 }).isOutdated(hash), true);
  });

  it('are not made of passwords that are too short or too long', () => {
    const passwords = new Passwords({ ...CHEAP, minLength: 8 });
    assert.throws(() => passwords.checkNew('short'), { errcode: 'M_WEAK_PASSWORD' });
    assert.throws(() => passwords.checkNew('🌱🌱🌱🌱'), { errcode: 'M_WEAK_PASSWORD' });
    assert.throws(() => passwords.checkNew('x'.repeat(513)), { errcode: 'M_INVALID_PARAM' });
    passwords.checkNew('long enough');
  });

  it('are worked out a few at a time, and too many are refused', async () => {
    const passwords = new Passwords({ ...CHEAP, concurrency: 1, maxWaiting: 2 });
    const results = await Promise.allSettled(Array.from({ length: 6 }, () => passwords.hash('sesame')));
    const refused = results.filter((result) => result.status === 'rejected');
    assert.equal(refused.length, 3);
    assert.ok(refused.every(({ reason }) => reason.errcode === 'M_LIMIT_EXCEEDED'));
    assert.ok(await passwords.hash('sesame'));
  });
});
