-- How far each process is with work that is shared out among them (cluster/duty-marks.ts): everything up to the
-- positions that concerned it is done or stands in the tables of that work.
CREATE TABLE duty_marks (
  duty text NOT NULL,
  -- `cluster_members.id`; whoever is not among them is dead, and others take up its work from here.
  member text NOT NULL,
  events_pos bigint NOT NULL,
  lists_pos bigint NOT NULL,
  -- Everything in `duty_handovers` up to here is accounted for.
  seen bigint NOT NULL,
  PRIMARY KEY (duty, member)
);

-- Whoever takes up work that was another's looks for it from these positions on.
CREATE TABLE duty_handovers (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  duty text NOT NULL,
  events_pos bigint NOT NULL,
  lists_pos bigint NOT NULL,
  ts bigint NOT NULL
);

INSERT INTO duty_marks (duty, member, events_pos, lists_pos, seen)
  SELECT 'destination', '', events_pos, device_lists_pos, 0 FROM federation_progress;
DROP TABLE federation_progress;
INSERT INTO duty_marks (duty, member, events_pos, lists_pos, seen)
  SELECT 'pusher', '', pos, 0, 0 FROM push_progress;
DROP TABLE push_progress;

-- Which process delivers to an application service: no other may write how far it is.
ALTER TABLE appservice_deliveries ADD COLUMN owner text NOT NULL DEFAULT '';
