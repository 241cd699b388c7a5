-- Where deliveries of notifications stand: a position for each pusher, no row for each event.

ALTER TABLE pushers
  -- False: its user has switched it off (MSC3881).
  ADD COLUMN enabled boolean NOT NULL DEFAULT true,
  -- What came after `pos` waits until then; null: nothing is outstanding up to the position in push_progress.
  ADD COLUMN due_ts bigint,
  ADD COLUMN failing_since_ts bigint,
  ADD COLUMN failures integer NOT NULL DEFAULT 0,
  -- For mail: how many were sent without their reader showing up, and when the last one was.
  ADD COLUMN mails integer NOT NULL DEFAULT 0,
  ADD COLUMN mailed_ts bigint,
  -- For mail: in the links by which readers switch it off.
  ADD COLUMN unsubscribe text UNIQUE;
CREATE INDEX pushers_due ON pushers (due_ts) WHERE due_ts IS NOT NULL;

-- One row: the position in the stream of events up to which all pushers have been told, but for those with a due_ts.
CREATE TABLE push_progress (
  id boolean PRIMARY KEY DEFAULT true CHECK (id),
  pos bigint NOT NULL
);
