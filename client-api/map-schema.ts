import { type TSchema, Type } from 'typebox';

/**
 * An object whose members are all of one kind, whatever their names. (`Type.Record` asks a pattern of the names,
 * and lets values pass unseen whose name has a line break.)
 */
export function mapOf(values: TSchema, limits: { minProperties?: number; maxProperties?: number } = {}) {
  return Type.Object({}, { additionalProperties: values, ...limits });
}
