import type { JsonObject } from '@trellis/protocol/event.ts';
import { parseJson } from '@trellis/protocol/json.ts';
import { isObject } from './answers.ts';

/** Items handed on at a time. */
const BATCH = 400;
/** One item at the most; what is beside the lists, together. In UTF-16 units. */
const MAX_ITEM = 1024 * 1024;
const MAX_REST = 16 * 1024 * 1024;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

/**
 * Reads a JSON object with large lists of objects as it comes in: never more of it is held than a batch of items and
 * what is beside the lists. Throws when it is not JSON, or too large where nothing large is expected; by then some of
 * it has been handed on.
 *
 * @param names of the members that hold these lists; items that are no objects are left out
 * @returns the object, with these lists empty
 */
export async function readLists(
  chunks: AsyncIterable<Uint8Array>,
  names: readonly string[],
  take: (items: JsonObject[], name: string) => Promise<void>,
): Promise<JsonObject> {
  const reader = new ListReader(names, take);
  const decoder = new TextDecoder();
  for await (const chunk of chunks) await reader.push(decoder.decode(chunk, { stream: true }));
  return reader.end(decoder.decode());
}

class ListReader {
  readonly #names: readonly string[];
  readonly #take: (items: JsonObject[], name: string) => Promise<void>;
  #rest = '';
  /** The beginning of an item that goes on in the next piece. */
  #carry = '';
  #items: JsonObject[] = [];
  /** The list that is being read. */
  #list: string | undefined;
  #depth = 0;
  #inString = false;
  #escaped = false;

  constructor(names: readonly string[], take: (items: JsonObject[], name: string) => Promise<void>) {
    this.#names = names;
    this.#take = take;
  }

  async push(piece: string): Promise<void> {
    const text = this.#carry + piece;
    let item = this.#carry === '' ? -1 : 0;
    let from = 0;
    for (let i = this.#carry.length; i < text.length; i++) {
      const code = text.charCodeAt(i);
      if (this.#inString) {
        if (this.#escaped) this.#escaped = false;
        else if (code === BACKSLASH) this.#escaped = true;
        else if (code === QUOTE) this.#inString = false;
        continue;
      }
      if (code === QUOTE) this.#inString = true;
      else if (code === OPEN_LIST || code === OPEN_OBJECT) {
        if (this.#list !== undefined && this.#depth === 2 && code === OPEN_OBJECT) item = i;
        else if (this.#depth === 1 && code === OPEN_LIST) {
          this.#addRest(text.slice(from, i));
          this.#list = this.#listNamedLast();
          from = i;
          if (this.#list !== undefined) this.#addRest('[');
        }
        this.#depth++;
      } else if (code === CLOSE_LIST || code === CLOSE_OBJECT) {
        this.#depth--;
        if (this.#list === undefined) continue;
        if (this.#depth === 2 && item >= 0) {
          await this.#add(text.slice(item, i + 1));
          item = -1;
        } else if (this.#depth === 1) {
          await this.#flush();
          this.#list = undefined;
          from = i;
        }
      }
    }
    if (this.#list === undefined) this.#addRest(text.slice(from));
    this.#carry = item >= 0 ? text.slice(item) : '';
    requireSize(this.#carry);
  }

  async end(piece: string): Promise<JsonObject> {
    await this.push(piece);
    const rest = parseJson(this.#rest);
    if (this.#list !== undefined || !isObject(rest)) throw new SyntaxError('not a whole JSON object');
    return rest;
  }

  /** The name before the list that begins here, if it is one of those looked for. */
  #listNamedLast(): string | undefined {
    const name = /"([^"\\]*)"\s*:\s*$/.exec(this.#rest.slice(-200))?.[1];
    return name !== undefined && this.#names.includes(name) ? name : undefined;
  }

  #addRest(text: string): void {
    this.#rest += text;
    if (this.#rest.length > MAX_REST) throw new SyntaxError('too much beside the lists');
  }

  async #add(text: string): Promise<void> {
    requireSize(text);
    const item = parseJson(text);
    if (isObject(item)) this.#items.push(item);
    if (this.#items.length >= BATCH) await this.#flush();
  }

  async #flush(): Promise<void> {
    const items = this.#items;
    this.#items = [];
    if (items.length > 0) await this.#take(items, this.#list!);
  }
}

function requireSize(item: string): void {
  if (item.length > MAX_ITEM) throw new SyntaxError('an item of a list is too large');
}
