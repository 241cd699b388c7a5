-- Where the next run of the server begins in each stream (storage/stream-positions.ts).
CREATE TABLE stream_positions (
  stream text PRIMARY KEY,
  next_start bigint NOT NULL
);

-- One row: whose database this is. Starting a server of another name on it would sign with foreign identities.
CREATE TABLE installation (
  single boolean PRIMARY KEY DEFAULT true CHECK (single),
  server_name text NOT NULL
);
