import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { profilesExtensionJson } from '../sync/profiles.ts';
import { stickyExtensionJson } from '../sync/sticky.ts';

describe('extensions of sliding sync', () => {
  it('tell what is set and what is gone of a profile, and who is out of sight (MSC4262)', () => {
    const news = new Map([
      ['@a:x', { 'm.tz': 'UTC', 'org.example.a': undefined }],
      ['@b:x', { 'm.tz': undefined }],
      ['@c:x', null],
    ]);
    assert.deepEqual(JSON.parse(profilesExtensionJson(news)!), {
      users: {
        '@a:x': { updated: { 'm.tz': 'UTC' }, removed: ['org.example.a'] },
        '@b:x': { removed: ['m.tz'] },
        '@c:x': null,
      },
    });
    assert.equal(profilesExtensionJson(new Map()), undefined);
  });

  it('say up to where sticky events were told when there is none (MSC4480)', async () => {
    const sticky = {
      has: (roomId: string) => roomId === '!a:x',
      between: async () => [],
    };
    const answer = await stickyExtensionJson({
      sticky,
      userId: '@u:x',
      deviceId: undefined,
      ignored: new Set(),
      roomIds: ['!a:x', '!b:x'],
      since: 5,
      to: 9,
    });
    assert.deepEqual(answer, { json: '{"next_batch":"9","rooms":{}}', empty: true });
  });
});
