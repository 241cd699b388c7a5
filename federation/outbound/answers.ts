import type { JsonObject, JsonValue, Pdu } from '@trellis/protocol/event.ts';
import { FederationError } from './federation-error.ts';

/**
 * Readers for answers of other servers: a member that is missing or of another type makes the answer invalid,
 * lists are cut at a bound.
 */
export class AnswerReader {
  readonly #destination: string;
  readonly #answer: JsonObject;

  constructor(destination: string, answer: JsonObject) {
    this.#destination = destination;
    this.#answer = answer;
  }

  string(name: string): string {
    const value = this.#answer[name];
    return typeof value === 'string' ? value : this.#invalid(name);
  }

  optionalString(name: string): string | undefined {
    const value = this.#answer[name];
    return typeof value === 'string' ? value : undefined;
  }

  number(name: string): number {
    const value = this.#answer[name];
    return typeof value === 'number' ? value : this.#invalid(name);
  }

  object(name: string): JsonObject {
    const value = this.#answer[name];
    return isObject(value) ? value : this.#invalid(name);
  }

  optionalObject(name: string): JsonObject {
    const value = this.#answer[name];
    return isObject(value) ? value : {};
  }

  /** Members that are no objects are left out: one bad event does not spoil the others. */
  pdus(name: string, max: number): Pdu[] {
    return this.#list(name, max).filter(isObject);
  }

  strings(name: string, max: number): string[] {
    return this.#list(name, max).filter((item) => typeof item === 'string');
  }

  #list(name: string, max: number): JsonValue[] {
    const value = this.#answer[name] ?? [];
    if (!Array.isArray(value)) return this.#invalid(name);
    return value.length > max ? this.#invalid(name) : value;
  }

  #invalid(name: string): never {
    throw new FederationError(this.#destination, 'invalid', `the answer has no valid "${name}"`);
  }
}

export function isObject(value: JsonValue | undefined): value is JsonObject {
  return value !== null && typeof value === 'object' && !Array.isArray(value);
}
