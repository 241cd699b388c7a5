import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inviteVerdict } from '../invite-permission.ts';

const BOB = '@bob:there.org';

test('a default action of block refuses every invite, any other value none', () => {
  assert.equal(inviteVerdict(BOB, { default_action: 'block' }, { allowed_users: [BOB] }), 'block');
  assert.equal(inviteVerdict(BOB, undefined, undefined), 'allow');
  assert.equal(inviteVerdict(BOB, {}, undefined), 'allow');
  for (const action of ['allow', 7, null])
    assert.equal(inviteVerdict(BOB, { default_action: action }, undefined), 'allow');
});

test('the first list that names the inviter decides: users before servers, allowed before ignored before blocked', () => {
  const lists = {
    allowed_users: ['@a*:there.org'],
    ignored_users: ['@?b:*', '@ab:there.org'],
    blocked_users: ['@*b:there.org'],
    allowed_servers: ['good.org'],
    ignored_servers: ['*.org'],
    blocked_servers: ['*'],
  };
  const verdict = (sender: string) => inviteVerdict(sender, {}, lists);
  assert.equal(verdict('@ab:there.org'), 'allow');
  assert.equal(verdict('@xb:there.org'), 'ignore');
  assert.equal(verdict('@xxb:there.org'), 'block');
  assert.equal(verdict('@x:good.org'), 'allow');
  assert.equal(verdict('@x:bad.org'), 'ignore');
  assert.equal(verdict('@x:bad.com'), 'block');
});

test('servers match without their port and whatever the letter case', () => {
  for (const blocked of ['there.org', 'THERE.*'])
    assert.equal(inviteVerdict('@bob:There.org:8448', undefined, { blocked_servers: [blocked] }), 'block');
});

test('a filter that is switched off, or of the wrong shape, lets everybody invite', () => {
  assert.equal(inviteVerdict(BOB, undefined, { enabled: false, blocked_servers: ['*'] }), 'allow');
  for (const list of [null, 'there.org', { 0: '*' }, [null, 3]])
    assert.equal(inviteVerdict(BOB, undefined, { blocked_users: list, blocked_servers: list }), 'allow');
});
