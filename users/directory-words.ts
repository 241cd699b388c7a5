const MAX_WORDS = 48;
const MAX_WORD_LENGTH = 64;
const MAX_SEARCH_WORDS = 6;

/** Letters that are no base letter with a mark, so that decomposing leaves them as they are. */
const PLAIN: Readonly<Record<string, string>> = {
  ß: 'ss',
  ø: 'o',
  ł: 'l',
  đ: 'd',
  æ: 'ae',
  œ: 'oe',
  ı: 'i',
  þ: 'th',
};

/** Scripts written without spaces: a name in them is found from any of its letters on. */
const UNSPACED =
  /^[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}]/u;

/** Text without case, accents and compatibility forms: `Ａdèle` is `adele`. */
export function fold(text: string): string {
  return text
    .normalize('NFKD')
    .replace(/\p{M}/gu, '')
    .toLowerCase()
    .replace(/[ßøłđæœıþ]/g, (letter) => PLAIN[letter]!);
}

/** The words a user is found by: of the name and of the localpart, and the user id as a whole. */
export function wordsOf(userId: string, displayName: string | undefined): string[] {
  const localpart = userId.slice(1, userId.indexOf(':'));
  const words = new Set([clip(fold(userId))]);
  for (const word of [...split(fold(displayName?.slice(0, 256) ?? '')), ...split(fold(localpart))]) {
    words.add(clip(word));
    if (UNSPACED.test(word)) for (const suffix of suffixes(word)) words.add(suffix);
    if (words.size >= MAX_WORDS) break;
  }
  return [...words].slice(0, MAX_WORDS);
}

/** What is looked for: each is the beginning of a word. */
export function searchWords(term: string): string[] {
  const words = fold(term.slice(0, 512))
    .split(/\s+/)
    .flatMap((part) => {
      if (part.startsWith('@')) return [part];
      return part.includes(':') ? [`@${part}`] : split(part);
    });
  return [...new Set(words.map(clip))].slice(0, MAX_SEARCH_WORDS);
}

function split(text: string): string[] {
  return text.match(/[\p{L}\p{N}]+/gu) ?? [];
}

function suffixes(word: string): string[] {
  const letters = [...word].slice(0, 16);
  return letters.map((_, i) => letters.slice(i).join(''));
}

function clip(word: string): string {
  return word.slice(0, MAX_WORD_LENGTH).toWellFormed();
}
