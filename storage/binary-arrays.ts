/** The type of the elements, by number (`pg_type`). */
const TEXT_OID = 25;
const HEADER = 20;
const NULL_LENGTH = -1;

/**
 * A `text[]` parameter as PostgreSQL sends and receives it in binary. As text, which is what arrays become otherwise,
 * each quote of each element is escaped here and found again there: for events, whose JSON has many, that is half of
 * what storing them costs.
 * https://www.postgresql.org/docs/current/protocol-message-formats.html, `array_recv`
 */
export function textArray(values: ReadonlyArray<string | null>): Buffer {
  let size = HEADER;
  let hasNull = false;
  for (const value of values) {
    size += 4;
    if (value === null) hasNull = true;
    else size += Buffer.byteLength(value);
  }
  const bytes = Buffer.allocUnsafe(size);
  // One dimension, counted from 1; none for an empty array.
  let at = bytes.writeInt32BE(values.length > 0 ? 1 : 0, 0);
  at = bytes.writeInt32BE(hasNull ? 1 : 0, at);
  at = bytes.writeInt32BE(TEXT_OID, at);
  if (values.length === 0) return bytes.subarray(0, at);
  at = bytes.writeInt32BE(values.length, at);
  at = bytes.writeInt32BE(1, at);
  for (const value of values) {
    const length = value === null ? NULL_LENGTH : bytes.write(value, at + 4);
    bytes.writeInt32BE(length, at);
    at += 4 + Math.max(length, 0);
  }
  return bytes;
}
