import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { searchTermsOf, wordsOf } from '../search-words.ts';

function finds(term: string, text: string): boolean {
  const words = new Set(wordsOf(text));
  return searchTermsOf(term).words.every((word) => words.has(word));
}

describe('search words', () => {
  for (const [term, text] of [
    ['bread', 'Warm BREAD, and butter'],
    ['ｂｒｅａｄ', 'bread'],
    ['北京', '我喜欢北京大学'],
    ['大学', '我喜欢北京大学'],
    ['京大', '我喜欢北京大学'],
    ['北京大学', '我喜欢北京大学'],
    ['学', '我喜欢北京大学'],
    ['設定', 'サーバーの設定を変更した'],
    ['サーバー', 'サーバーの設定を変更した'],
    ['ｻｰﾊﾞｰ', 'サーバーの設定を変更した'],
    ['住んで', '東京都に住んでいます'],
    ['โรงเรียน', 'ผมไปโรงเรียนทุกวัน'],
    ['เรียน', 'ผมไปโรงเรียนทุกวัน'],
    ['한국어', '한국어를 공부합니다'],
    ['ສະບາຍ', 'ສະບາຍດີ'],
    ['iphone', '新しいiPhoneを買う'],
    ['买 iphone', '我想买iPhone手机'],
    ['straße', 'In der Straße'],
    ['привет', 'Привет, мир'],
    ['हिन्दी', 'मैं हिन्दी बोलता हूँ'],
  ] as const)
    it(`find ${term} in ${text}`, () => assert.ok(finds(term, text)));

  for (const [term, text] of [
    ['上海', '我喜欢北京大学'],
    ['brea', 'bread'],
    ['学大', '我喜欢北京大学'],
  ] as const)
    it(`do not find ${term} in ${text}`, () => assert.ok(!finds(term, text)));

  it('are shown as they were searched for', () => {
    assert.deepEqual(searchTermsOf('北京大学 Map map').highlights, ['北京大学', 'map']);
  });

  it('are bounded', () => {
    assert.ok(wordsOf('字'.repeat(100_000)).length <= 1000);
    assert.deepEqual(searchTermsOf('!?'), { words: [], highlights: [] });
  });
});
