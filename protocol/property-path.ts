import type { JsonValue } from './event.ts';

/** A dot-separated property path taken apart (spec: appendices, "Dot-separated property paths"). */
export type PropertyPath = readonly string[];

/** `content.m\.relates_to` to `['content', 'm.relates_to']`. */
export function parsePropertyPath(path: string): PropertyPath {
  if (!path.includes('\\')) return path.split('.');
  const names: string[] = [];
  let name = '';
  for (let i = 0; i < path.length; i++) {
    const character = path[i]!;
    const next = path[i + 1];
    if (character === '\\' && (next === '.' || next === '\\')) {
      name += next;
      i++;
    } else if (character === '.') {
      names.push(name);
      name = '';
    } else name += character;
  }
  names.push(name);
  return names;
}

/** What stands at the path; `undefined` when nothing does. Lists are not looked into. */
export function propertyAt(root: JsonValue | undefined, path: PropertyPath): JsonValue | undefined {
  let value = root;
  for (const name of path) {
    if (typeof value !== 'object' || value === null || Array.isArray(value) || !Object.hasOwn(value, name))
      return undefined;
    value = value[name];
  }
  return value;
}
