-- Of each process the last batch of events that it has committed in a transaction of several statements: when the
-- connection is lost while committing, this tells what became of it (storage/event-writer.ts).
CREATE TABLE event_writers (
  id text PRIMARY KEY,
  batch bigint NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);
