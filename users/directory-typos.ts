/** Shorter words are mistyped into other words too easily. */
const MIN_LENGTH = 4;
/** Only the beginning is compared in the database, so that the beginning of a word is enough to find it. */
const PREFIX = 5;
const TWO_ERRORS_FROM = 8;

/** Scripts whose words are found from any letter on, where a letter is most of a word. */
const UNFIT =
  /[^\p{Script=Latin}\p{Script=Cyrillic}\p{Script=Greek}\p{Script=Hebrew}\p{Script=Arabic}\p{N}]/u;

/**
 * The beginning of a folded word, whole and with each of its letters left out. Two beginnings with one letter
 * wrong, missing, too many or swapped with its neighbour have one of these in common.
 */
export function typoVariants(word: string): string[] {
  const letters = [...word];
  if (letters.length < MIN_LENGTH || UNFIT.test(word)) return [];
  const start = letters.slice(0, PREFIX);
  return [...new Set([start.join(''), ...start.map((_, i) => start.toSpliced(i, 1).join(''))])];
}

/** Whether what was typed begins the word, or would without a typing error: two of them in a long one. */
export function beginsOrAlmost(typed: string, word: string): boolean {
  if (word.startsWith(typed)) return true;
  const letters = [...typed];
  if (letters.length < MIN_LENGTH) return false;
  return prefixDistance(letters, [...word]) <= (letters.length < TWO_ERRORS_FROM ? 1 : 2);
}

/** The least number of letters to change, add, take away or swap to turn `typed` into a beginning of `word`. */
function prefixDistance(typed: readonly string[], word: readonly string[]): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: word.length + 1 }, (_, j) => j);
  for (let i = 1; i <= typed.length; i++) {
    const row = [i];
    for (let j = 1; j <= word.length; j++) {
      const changed = last[j - 1]! + (typed[i - 1] === word[j - 1] ? 0 : 1);
      let least = Math.min(changed, last[j]! + 1, row[j - 1]! + 1);
      if (i > 1 && j > 1 && typed[i - 1] === word[j - 2] && typed[i - 2] === word[j - 1])
        least = Math.min(least, beforeLast[j - 2]! + 1);
      row.push(least);
    }
    beforeLast = last;
    last = row;
  }
  return Math.min(...last);
}
