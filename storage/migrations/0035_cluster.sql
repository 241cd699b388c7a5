-- Processes that serve this installation together: who is not in here cannot commit events (cluster/registry.ts).
CREATE TABLE cluster_members (
  id text PRIMARY KEY,
  -- Of the coordinator that the member works with; 0 until one has taken it in.
  term bigint NOT NULL,
  roles text NOT NULL,
  address text NOT NULL,
  -- Whether it answers requests and may have duties.
  ready boolean NOT NULL DEFAULT false,
  started_ts bigint NOT NULL
);

-- The one of them that gives positions and decides who is a member: a lease, with a term that grows each time it changes hands.
CREATE TABLE cluster_coordinator (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  term bigint NOT NULL,
  holder text NOT NULL,
  until timestamptz NOT NULL
);
INSERT INTO cluster_coordinator (term, holder, until) VALUES (0, '', '-infinity');
